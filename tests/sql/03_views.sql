-- SPDX-License-Identifier: MIT
-- Throughput, worker status, and that a reader can read all of it.
begin;
select plan(8);

insert into job_minute values
    (date_trunc('minute', now()) - interval '2 minutes', 'm', 'a', 'w1', 'completed', 120, 1200, 2400, now() - interval '2 minutes'),
    (date_trunc('minute', now()) - interval '2 minutes', 'm', 'b', 'w2', 'completed', 60, 600, 600, now() - interval '2 minutes'),
    (date_trunc('minute', now()) - interval '2 minutes', 'm', 'a', 'w1', 'failed', 6, 0, 0, now() - interval '2 minutes'),
    (date_trunc('minute', now()) - interval '3 days', 'm', 'a', 'w3', 'completed', 1, 1, 1, now() - interval '3 days');
insert into job (job_id, status, state_rank, attempt, tenant, model, worker, source_partition, source_offset,
    accepted_at, updated_at)
values (gen_random_uuid(), 'started', 2, 1, 'a', 'm', 'w1', 0, 0, now(), now()),
       (gen_random_uuid(), 'accepted', 1, 1, 'a', 'm', 'w9', 0, 1, now() - interval '1 second', now());
set local role reader;

select is((select jobs_per_s from throughput where minute > now() - interval '1 hour'), (186 / 60.0)::float8, 'jobs a second');
select is((select tokens_per_s from throughput where minute > now() - interval '1 hour'), (3000 / 60.0)::float8, 'tokens a second');
select results_eq($$select jobs, completed, failed, cancelled, expired from throughput where minute > now() - interval '1 hour'$$,
    $$values (186::bigint, 180::bigint, 6::bigint, 0::bigint, 0::bigint)$$, 'jobs by outcome');
select results_eq($$select tenant, jobs from throughput_by_model where minute > now() - interval '1 hour' order by 1$$,
    $$values ('a', 126::bigint), ('b', 60::bigint)$$, 'each tenant');
select results_eq($$select worker, alive_jobs, completed_last_day, failed_last_day from worker_status order by 1$$,
    $$values ('w1', 1::bigint, 120::bigint, 6::bigint), ('w2', 0::bigint, 60::bigint, 0::bigint), ('w9', 1::bigint, 0::bigint, 0::bigint)$$,
    'workers with their jobs; one that finished nothing yet shows too');
select is((select jobs_per_s from worker_status where worker = 'w1'), (126 / 300.0)::float8, 'a rate over five minutes');
select lives_ok('select * from latency_percentiles, latency_percentiles_by_model, latency_percentiles_by_minute, latency_percentiles_over(now())');
select throws_ok('insert into job_minute values (now(), $$$$, $$$$, $$$$, $$$$, 1, 1, 1, now())', '42501', null, 'a reader writes nothing');
select finish();
rollback;
