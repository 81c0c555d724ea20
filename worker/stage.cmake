# SPDX-License-Identifier: MIT
target_sources(pgpt_worker PRIVATE http.c prepare.c scheduler.c stream.c)
