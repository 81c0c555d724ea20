-- SPDX-License-Identifier: MIT
-- The documented queries (migrations/README.md) find their rows by index, with tables as full as a busy day's.
begin;
select plan(7);

insert into job (job_id, status, state_rank, attempt, tenant, model, worker, source_partition, source_offset,
    accepted_at, finished_at, updated_at)
select ('00000000-0000-4000-8000-' || lpad(to_hex(n), 12, '0'))::uuid,
       case when n % 50 = 0 then 'failed' else 'completed' end, 3, 1, 't' || n % 1000, 'm', 'w' || n % 4, n % 12, n,
       now() - make_interval(secs => n), now() - make_interval(secs => n), now()
  from generate_series(1, 60000) n;
insert into latency_histogram
select date_trunc('minute', now()) - make_interval(mins => n), 'm', 't' || t, 'total', 500 + b, 1
  from generate_series(0, 600) n, generate_series(1, 4) t, generate_series(1, 25) b;
insert into job_minute
select date_trunc('minute', now()) - make_interval(mins => n), 'm', 't' || t, 'w', 'completed', 1, 1, 1, now()
  from generate_series(0, 3000) n, generate_series(1, 10) t;
insert into job_latency
select now() - make_interval(secs => n / 4.0), gen_random_uuid(), 'completed', 'm', 't', 'w', 1, 1, 1, 1, 1, 1, 1, 1
  from generate_series(1, 60000) n;
analyze job; analyze latency_histogram; analyze job_minute; analyze job_latency;

create function pg_temp.plan_of(query text) returns text language plpgsql as $$
declare
    line text;
    whole text := '';
begin
    for line in execute 'explain ' || query loop
        whole := whole || line || E'\n';
    end loop;
    return whole;
end
$$;

select alike(pg_temp.plan_of($$select * from job where job_id = '00000000-0000-4000-8000-000000000007'$$),
    '%Index Scan using job_pkey%', 'one job by its id');
select alike(pg_temp.plan_of($$select * from job where tenant = 't7' and finished_at is not null order by finished_at desc limit 20$$),
    '%Index Scan Backward using job_tenant%', 'the newest jobs of a tenant');
select alike(pg_temp.plan_of($$select * from job where status = 'failed' and finished_at > now() - interval '1 hour' order by finished_at desc$$),
    '%job_failed%', 'the failed jobs of the last hour');
select alike(pg_temp.plan_of($$select worker, count(*) from job where finished_at is null group by worker$$),
    '%job_alive%', 'what runs now');
select alike(pg_temp.plan_of($$select * from latency_percentiles_by_minute where minute > now() - interval '10 minutes'$$),
    '%latency_histogram_pkey%', 'percentiles of the last minutes');
select alike(pg_temp.plan_of($$select * from throughput where minute > now() - interval '10 minutes'$$),
    '%job_minute_pkey%', 'throughput of the last minutes');
select alike(pg_temp.plan_of($$select * from job_latency where finished_at > now() - interval '1 minute'$$),
    '%finished_at_idx%', 'exact latencies of the last minute');
select finish();
rollback;
