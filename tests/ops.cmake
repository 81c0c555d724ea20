# SPDX-License-Identifier: MIT
pgpt_unit_test(lag pgpt_worker)
