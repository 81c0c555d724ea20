-- SPDX-License-Identifier: MIT
begin;
select job_id, status, state_rank, attempt, finals, tenant, model, worker, source_partition, source_offset,
       accepted_at, started_at, finished_at, updated_at, prompt_tokens, generated_tokens, queue_us, encode_us,
       first_token_us, decode_us, total_us, batch_size_mean, dead_lettered, error_class, error_message
  from job where false;
select topic, partition, next_offset, updated_at from recorder_offset where false;
select 1 / has_table_privilege('recorder', 'job', 'insert, update')::int;
select 1 / has_table_privilege('reader', 'job', 'select')::int;
rollback;
