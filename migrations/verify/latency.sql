-- SPDX-License-Identifier: MIT
begin;
select finished_at, job_id, status, model, tenant, worker, prompt_tokens, generated_tokens, queue_us, encode_us,
       first_token_us, decode_us, total_us, batch_size_mean from job_latency where false;
select minute, model, tenant, metric, bucket, count from latency_histogram where false;
select minute, model, tenant, worker, status, jobs, prompt_tokens, generated_tokens, last_finished_at
  from job_minute where false;
select 1 / (count(*) >= 5)::int from pg_inherits where inhparent = 'job_latency'::regclass;
select 1 / has_function_privilege('recorder', 'recorder_maintain(integer, integer)', 'execute')::int;
rollback;
