-- SPDX-License-Identifier: MIT
begin;
select metric, jobs, p50, p90, p95, p99 from latency_percentiles where false;
select model, tenant, metric, jobs, p50, p90, p95, p99 from latency_percentiles_by_model where false;
select minute, model, tenant, metric, jobs, p50, p90, p95, p99 from latency_percentiles_by_minute where false;
select metric, jobs, p50, p90, p95, p99 from latency_percentiles_over(now()) where false;
select minute, jobs, completed, failed, cancelled, expired, jobs_per_s, tokens_per_s from throughput where false;
select minute, model, tenant, jobs, jobs_per_s, tokens_per_s from throughput_by_model where false;
select worker, last_finished_at, alive_jobs, oldest_accepted_at, completed_last_day, failed_last_day, jobs_per_s,
       tokens_per_s from worker_status where false;
select 1 / has_table_privilege('reader', 'latency_percentiles', 'select')::int;
rollback;
