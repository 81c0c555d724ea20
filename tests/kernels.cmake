# SPDX-License-Identifier: MIT
pgpt_unit_test(product pgpt_cpu)
