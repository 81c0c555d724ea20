/* SPDX-License-Identifier: MIT
 *
 * metrics_table: every metric of the worker, once; monitoring/METRICS.md is checked against it. No
 * include guard: included with different macros, then undefined here. Labels are literals; nothing
 * with unbounded values (job ids, tenants) is a label.
 *
 *   COUNTER(id, "name", "labels", help)   GAUGE(id, ...)   HISTOGRAM(id, ...): microseconds in,
 *   seconds out
 */
GAUGE(PROCESS_START, "pgpt_start_time_seconds", "", "Unix time at which the process started")
GAUGE(READY, "pgpt_ready", "", "1 while ready; /readyz says why not")
GAUGE(NOT_READY_ENGINE, "pgpt_not_ready", "reason=\"engine\"", "1 for each reason not to be ready")
GAUGE(NOT_READY_CONTROL, "pgpt_not_ready", "reason=\"control\"", "")
GAUGE(NOT_READY_ASSIGNMENT, "pgpt_not_ready", "reason=\"assignment\"", "")
GAUGE(NOT_READY_TOPICS, "pgpt_not_ready", "reason=\"topics\"", "")
GAUGE(NOT_READY_DLQ_LIMIT, "pgpt_not_ready", "reason=\"dlq_limit\"", "")
GAUGE(NOT_READY_OFFSETS, "pgpt_not_ready", "reason=\"offsets\"", "")
GAUGE(NOT_READY_COMMITS, "pgpt_not_ready", "reason=\"commits\"", "")
GAUGE(NOT_READY_DRAINING, "pgpt_not_ready", "reason=\"draining\"", "")
COUNTER(JOBS_COMPLETED, "pgpt_jobs_total", "outcome=\"completed\"", "Jobs by outcome, committed")
COUNTER(JOBS_FAILED, "pgpt_jobs_total", "outcome=\"failed\"", "")
COUNTER(JOBS_CANCELLED, "pgpt_jobs_total", "outcome=\"cancelled\"", "")
COUNTER(JOBS_EXPIRED, "pgpt_jobs_total", "outcome=\"expired\"", "")
COUNTER(JOBS_POISON, "pgpt_jobs_total", "outcome=\"poison\"", "")
COUNTER(JOBS_DEAD_LETTER, "pgpt_jobs_total", "outcome=\"dead_letter\"", "")
COUNTER(JOBS_DUPLICATE, "pgpt_jobs_total", "outcome=\"duplicate\"", "")
COUNTER(REQUESTS_CONSUMED, "pgpt_requests_consumed_total", "", "Request records read")
COUNTER(TOKENS_GENERATED, "pgpt_tokens_generated_total", "", "Generated tokens, EOS included")
COUNTER(TOKENS_PROMPT, "pgpt_tokens_prompt_total", "", "Encoder input tokens")
COUNTER(CHUNKS_PRODUCED, "pgpt_chunks_total", "", "Chunks acknowledged")
COUNTER(ENGINE_STEPS, "pgpt_engine_steps_total", "", "Decode steps run")
GAUGE(ENGINE_ROWS, "pgpt_engine_rows", "", "Sequences in the running batch")
GAUGE(QUEUE_DEPTH, "pgpt_queue_jobs", "", "Jobs admitted but not running")
GAUGE(JOBS_IN_FLIGHT, "pgpt_jobs_in_flight", "", "Jobs between intake and commit")
GAUGE(JOBS_BYTES, "pgpt_jobs_in_flight_bytes", "", "Memory that they hold")
GAUGE(JOBS_AWAITING_CHUNKS, "pgpt_jobs_awaiting_chunks", "",
      "Jobs that ended, held back until their chunks are acknowledged")
GAUGE(JOBS_AWAITING_CANCELS, "pgpt_jobs_awaiting_cancels", "",
      "Jobs that ended, held back until the cancels sent before their requests are known")
GAUGE(REQUESTS_LAG, "pgpt_requests_lag", "", "Records of owned partitions that are not finished")
GAUGE(PARTITIONS_ASSIGNED, "pgpt_partitions_assigned", "", "Request partitions owned")
GAUGE(PARTITIONS_PAUSED, "pgpt_partitions_paused", "", "Of these, paused")
GAUGE(LEDGER_AHEAD, "pgpt_ledger_ahead_offsets", "",
      "Largest distance of a finished offset from its partition's watermark")
COUNTER(TRANSACTIONS_COMMITTED, "pgpt_transactions_total", "result=\"committed\"",
        "Transactions by result")
COUNTER(TRANSACTIONS_ABORTED, "pgpt_transactions_total", "result=\"aborted\"", "")
COUNTER(TRANSACTIONS_INDETERMINATE, "pgpt_transactions_total", "result=\"indeterminate\"", "")
COUNTER(REBALANCES, "pgpt_rebalances_total", "", "Assignment changes")
COUNTER(PARTITIONS_LOST, "pgpt_partitions_lost_total", "", "Partitions lost without a revoke")
COUNTER(TAKEOVERS_UNCLEAN, "pgpt_takeovers_unclean_total", "",
        "Partitions taken over from a worker that died")
COUNTER(STALE_DROPPED, "pgpt_stale_jobs_dropped_total", "",
        "Jobs dropped because their partition moved")
COUNTER(CANCELS_EVICTED, "pgpt_cancels_evicted_total", "", "Remembered cancels pushed out")
GAUGE(ENGINE_IDS_MIXED, "pgpt_engine_ids_mixed", "",
      "1 when another engine_id writes in this group")
COUNTER(RECORDER_EVENTS, "pgpt_recorder_events_total", "", "Events written to PostgreSQL")
COUNTER(RECORDER_ERRORS, "pgpt_recorder_errors_total", "", "Failed PostgreSQL transactions")
GAUGE(RECORDER_PARTITIONS, "pgpt_recorder_partitions", "", "Event partitions owned")
GAUGE(RECORDER_CONNECTED, "pgpt_recorder_connected", "", "1 while PostgreSQL answers")
HISTOGRAM(QUEUE_TIME, "pgpt_job_queue_seconds", "", "Request record to admission")
HISTOGRAM(FIRST_TOKEN_TIME, "pgpt_job_first_token_seconds", "", "Admission to first token")
HISTOGRAM(TOTAL_TIME, "pgpt_job_duration_seconds", "", "Request record to result")
HISTOGRAM(STEP_TIME, "pgpt_engine_step_seconds", "", "One decode step")
HISTOGRAM(COMMIT_TIME, "pgpt_commit_seconds", "", "One transaction, begin to commit")
HISTOGRAM(SQL_TIME, "pgpt_recorder_flush_seconds", "", "One SQL transaction")

#undef COUNTER
#undef GAUGE
#undef HISTOGRAM
