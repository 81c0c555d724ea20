/* SPDX-License-Identifier: MIT
 *
 * config_table: every setting of the worker, once. config.c makes the struct, the parser, the
 * environment names (PGPT_ + upper case, dots as underscores), --check-config and the documented
 * sample from it. No include guard: it is included with different macros, then undefined here.
 *
 *   STRING(field, "name", default, secret, help)      INT(field, "name", default, min, max, help)
 *   BOOL(field, "name", default, help)                REAL(field, "name", default, min, max, help)
 *   CHOICE(field, "name", default, "a|b|c", help)
 */
STRING(worker_name, "worker.name", "", false,
       "unique and stable name of this worker; empty = host name and a random suffix")
INT(worker_drain_ms, "worker.drain_ms", 25000, 0, 3600000,
    "grace period after SIGTERM for running jobs")
INT(worker_prepare_threads, "worker.prepare_threads", 1, 1, 64, "tokenising threads")
INT(worker_stall_ms, "worker.stall_ms", 30000, 1000, 3600000,
    "a thread without progress for this long makes /healthz fail and ends the worker")

STRING(engine_model, "model", "models/prometheus-mini", false, "model directory")
STRING(engine_model_name, "model.name", "prometheus-mini", false,
       "name that requests may ask for in `model`; \"\" in a request means this one")
STRING(engine_device, "engine.device", "cpu", false, "cpu or cuda:N")
CHOICE(engine_compute, "engine.compute", "auto", "auto|fp32|fp16|bf16|int8|dynamic",
       "compute format; auto = fp32 on the CPU, fp16 on CUDA")
BOOL(engine_cache_int8, "engine.cache_int8", false,
     "attention caches in int8 (CUDA): about half of their memory")
INT(engine_threads, "engine.threads", 0, 0, 1024, "CPU threads of the engine; 0 = all cores")
INT(engine_max_rows, "engine.max_rows", 0, 0, 65536,
    "sequences in the running batch; 0 = the device's default")
INT(engine_steps, "engine.steps", 0, 0, 64, "decode steps a call; 0 = 1 on the CPU, 4 on CUDA")
INT(engine_memory_mb, "engine.memory_mb", 0, 0, 1048576,
    "budget for attention caches and work space; 0 = what max_rows needs")

INT(queue_max_jobs, "queue.max_jobs", 4096, 1, 1000000,
    "jobs that were read and are not committed yet: waiting, running, finished")
INT(queue_max_mb, "queue.max_mb", 256, 1, 1048576,
    "memory of the jobs that were read and are not committed yet")
REAL(queue_resume_ratio, "queue.resume_ratio", 0.75, 0.1, 1.0,
     "paused partitions resume when the jobs fall to this share of max_jobs and max_mb")
INT(queue_ageing_ms, "queue.ageing_ms", 2000, 1, 3600000,
    "a waiting job gains one priority level each time this long passes")

STRING(kafka_brokers, "brokers", "127.0.0.1:9192", false, "Kafka bootstrap servers")
STRING(kafka_group, "group", "pgpt-workers", false, "consumer group of the workers")
STRING(topic_requests, "topic.requests", "pgpt.requests", false, "topic of GenerationRequest")
STRING(topic_chunks, "topic.chunks", "pgpt.chunks", false, "topic of GenerationChunk")
STRING(topic_results, "topic.results", "pgpt.results", false, "topic of GenerationResult")
STRING(topic_events, "topic.events", "pgpt.events", false, "topic of JobEvent")
STRING(topic_index, "topic.index", "pgpt.index", false, "topic of JobIndex")
STRING(topic_control, "topic.control", "pgpt.control", false, "topic of JobControl")
STRING(topic_dlq, "topic.dlq", "pgpt.dlq", false, "topic of dead letters")
INT(kafka_transaction_timeout_ms, "transaction.timeout_ms", 10000, 2000, 900000,
    "transaction.timeout.ms of the results' producer")
INT(kafka_call_timeout_ms, "kafka_call.timeout_ms", 8000, 500, 600000,
    "limit of one blocking Kafka call")
INT(chunk_linger_ms, "chunk.linger_ms", 0, 0, 1000, "linger.ms of the chunk producer")

INT(commit_interval_ms, "commit.interval_ms", 5, 0, 60000,
    "commit when the oldest finished job is this old, or nothing else is in the worker")
INT(commit_max_jobs, "commit.max_jobs", 500, 1, 16384, "or when this many are finished")
INT(ledger_max_ahead, "ledger.max_ahead", 16384, 64, 16384,
    "offsets past the oldest unfinished one that a partition may run ahead")
INT(duplicate_window_ms, "duplicate.window_ms", 900000, 0, 86400000,
    "how long a finished job_id is remembered at least")
INT(duplicate_min_jobs, "duplicate.min_jobs", 100000, 0, 1000000,
    "finished job_ids a partition remembers at least")
INT(duplicate_max_jobs, "duplicate.max_jobs", 1000000, 1, 10000000,
    "finished job_ids a partition remembers at most")
INT(cancel_max_ids, "cancel.max_ids", 1000000, 1, 10000000, "remembered cancels, oldest out")
INT(poison_max_deaths, "poison.max_deaths", 3, 1, 100,
    "deaths of a job running alone before it is dead-lettered")
REAL(dlq_limit_ratio, "dlq.limit_ratio", 0.2, 0.0, 1.0,
     "share of the last 1000 messages (200 at least) dead-lettered that stops the intake")
INT(live_event_ms, "live_event.ms", 100, 0, 60000,
    "accepted and started events are sent for jobs alive after this long")

BOOL(recorder_enabled, "recorder.enabled", true, "project events into PostgreSQL")
STRING(recorder_group, "recorder.group", "pgpt-recorder", false, "consumer group of the recorder")
STRING(database_url, "database_url", "", true,
       "PostgreSQL connection string; a password in it is never printed")
INT(recorder_batch, "recorder.batch", 8192, 1, 65536, "events in one SQL transaction at most")
INT(recorder_flush_ms, "recorder.flush_ms", 50, 1, 60000, "or after this long")
INT(recorder_retention_days, "recorder.retention_days", 14, 1, 3650,
    "days of job_latency partitions kept")
INT(recorder_history_days, "recorder.history_days", 400, 1, 3650,
    "days of finished jobs, histograms and per-minute counts kept")

STRING(http_address, "http.address", "127.0.0.1", false, "address of /metrics and health")
INT(http_port, "http.port", 9464, 0, 65535, "its port; 0 = none")
CHOICE(log_level, "log.level", "info", "error|warn|info|debug", "least severe level written")
CHOICE(log_format, "log.format", "logfmt", "logfmt|json", "form of the log lines")
CHOICE(output_framing, "output.framing", "single-object", "single-object",
       "framing of produced records")
STRING(schema_dir, "schema.dir", "", false,
       "directory with other writers' <Record>.*.avsc; empty = none")

#undef STRING
#undef INT
#undef BOOL
#undef REAL
#undef CHOICE
