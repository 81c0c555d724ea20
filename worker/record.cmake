# SPDX-License-Identifier: MIT
target_sources(pgpt_worker PRIVATE config.c health.c log.c metrics.c)
