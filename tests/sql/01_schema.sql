-- SPDX-License-Identifier: MIT
-- Tables, least privilege, partitions and retention.
begin;
select plan(28);

select col_is_pk('job', 'job_id');
select col_is_pk('recorder_offset', array['topic', 'partition']);
select col_is_pk('latency_histogram', array['minute', 'model', 'tenant', 'metric', 'bucket']);
select is_partitioned('job_latency');
select throws_ok($$insert into job (job_id, status, state_rank, attempt, tenant, model, worker, source_partition,
    source_offset, updated_at) values (gen_random_uuid(), 'done', 3, 1, '', '', '', 0, 0, now())$$, '23514',
    null, 'a status that nobody knows is refused');

-- least privilege
select table_privs_are('job', 'reader', array['SELECT']);
select table_privs_are('recorder_offset', 'reader', array['SELECT']);
select table_privs_are('latency_percentiles', 'reader', array['SELECT']);
select table_privs_are('job', 'recorder', array['SELECT', 'INSERT', 'UPDATE']);
select table_privs_are('job_latency', 'recorder', array['SELECT', 'INSERT']);
select table_privs_are('latency_histogram', 'recorder', array['SELECT', 'INSERT', 'UPDATE']);
select function_privs_are('recorder_maintain', array['integer', 'integer'], 'recorder', array['EXECUTE']);
select function_privs_are('recorder_maintain', array['integer', 'integer'], 'reader', array[]::text[]);
select isnt_superuser('recorder');
select isnt_superuser('reader');

-- partitions: made ahead, found by day, dropped by retention
set local role recorder;
select is(recorder_maintain(14, 400), false, 'the recorder may maintain, nothing is too old');
select is(job_latency_partition_make((now() at time zone 'UTC')::date - 20), true, 'a day long gone is made');
select is(job_latency_partition_make((now() at time zone 'UTC')::date - 20), false, 'and only once');
select throws_ok('select recorder_maintain(0, 400)', 'P0001', null, 'no retention at all is refused');
reset role;
select is((select count(*)::int from pg_inherits where inhparent = 'job_latency'::regclass), 6, 'yesterday to three days ahead, and the old one');
insert into job_latency select d, gen_random_uuid(), 'completed', 'm', 't', 'w', 1, 1, 1, 1, 1, 1, 1, 1
  from unnest(array[now(), now() + interval '2 days', now() - interval '20 days']) d;
select is((select count(distinct tableoid)::int from job_latency), 3, 'rows lie in the partition of their day');
select lives_ok('select recorder_maintain(14, 400)');
select is((select count(*)::int from pg_inherits where inhparent = 'job_latency'::regclass), 5, 'the old partition is gone');
select is((select count(*)::int from job_latency), 2, 'and its row with it');

-- history: jobs and rollups past their days go, in bounded steps
insert into job (job_id, status, state_rank, attempt, tenant, model, worker, source_partition, source_offset,
    finished_at, updated_at)
select gen_random_uuid(), 'completed', 3, 1, '', '', '', 0, n, now() - make_interval(days => n / 100), now()
  from generate_series(0, 40999) n;
select is(recorder_maintain(14, 100), true, 'more is left after 20,000 rows');
select ok((select recorder_maintain(14, 100) is false and count(*) > 0 from job) and
    (select max(finished_at) > now() - interval '1 day' from job) and
    (select recorder_maintain(14, 100) is false), 'until nothing is');
insert into job (job_id, status, state_rank, attempt, tenant, model, worker, source_partition, source_offset, updated_at)
select gen_random_uuid(), 'started', 2, 1, '', '', '', 0, n, now() - make_interval(days => n)
  from unnest(array[99, 101]) n;
select is(recorder_maintain(14, 100), false, 'jobs whose end was never told are looked at, too');
select is((select count(*)::int from job where finished_at is null), 1, 'and go when they are as old');

select finish();
rollback;
