# SPDX-License-Identifier: MIT
target_sources(pgpt_worker PRIVATE scheduler.c)
