# SPDX-License-Identifier: MIT
target_sources(pgpt_worker PRIVATE
  config.c health.c log.c metrics.c pg_binary.c pg_session.c recorder.c recorder_batch.c recorder_columns.c recorder_store.c)
