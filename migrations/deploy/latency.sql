-- SPDX-License-Identifier: MIT
begin;

-- Exact values, one row per job (its first final state), append-only.
create table job_latency (
    finished_at      timestamptz not null,
    job_id           uuid not null,
    status           text not null,
    model            text not null,
    tenant           text not null,
    worker           text not null,
    prompt_tokens    integer not null,
    generated_tokens integer not null,
    queue_us         bigint not null,
    encode_us        bigint not null,
    first_token_us   bigint not null,
    decode_us        bigint not null,
    total_us         bigint not null,
    batch_size_mean  double precision not null
) partition by range (finished_at);
-- rows come nearly in time's order, so a block range index finds a window at almost no cost
create index job_latency_finished on job_latency using brin (finished_at) with (pages_per_range = 16);
comment on table job_latency is 'Exact timings in microseconds of each job''s first final state; a partition a day (UTC)';

-- Makes the partition of one day (UTC). Attaching takes a weak lock, creating in place would stop readers.
create function job_latency_partition_make(day date) returns boolean
language plpgsql security definer set search_path = pg_catalog, public, pg_temp as $$
declare
    name text := 'job_latency_' || to_char(day, 'YYYYMMDD');
begin
    perform pg_advisory_xact_lock(hashtext('pgpt.job_latency'));
    if to_regclass('public.' || name) is not null then
        return false;
    end if;
    execute format('create table public.%I (like public.job_latency including all)', name);
    execute format('alter table public.job_latency attach partition public.%I for values from (%L) to (%L)',
                   name, day::text || ' 00:00:00+00', (day + 1)::text || ' 00:00:00+00');
    return true;
end
$$;
comment on function job_latency_partition_make is 'Makes the partition of a day; false when it was there';

-- Per minute, model, tenant and metric: how many values fell into each bucket. Bucket i holds the values
-- v with 1.02^(i-1) < v <= 1.02^i microseconds; -32768 holds zero. Histograms merge by adding counts.
-- Counts of the running minute change with every batch: room in the page keeps the index out of it
-- (a third more events a second).
create table latency_histogram (
    minute timestamptz not null,
    model  text not null,
    tenant text not null,
    metric text not null check (metric in ('queue', 'first_token', 'per_token', 'total')),
    bucket smallint not null,
    count  bigint not null check (count > 0),
    primary key (minute, model, tenant, metric, bucket)
) with (fillfactor = 40);
comment on table latency_histogram is 'Latencies of completed jobs in logarithmic buckets: percentiles are at most 1 % off';

-- The bucket's value with the same relative error to both of its ends: 2 * 1.02^i / 2.02, at most 0.991 % off.
create function latency_bucket_value(bucket integer) returns double precision
language sql immutable strict parallel safe as
$$ select case when bucket <= -32768 then 0 else 2 / 2.02::float8 * 1.02::float8 ^ bucket end $$;
create function latency_bucket(value double precision) returns integer
language sql immutable strict parallel safe as
$$ select case when value <= 0 then -32768 else ceil(ln(value) / ln(1.02::float8))::integer end $$;

-- Per minute, model, tenant, worker and final state: jobs and tokens.
create table job_minute (
    minute           timestamptz not null,
    model            text not null,
    tenant           text not null,
    worker           text not null,
    status           text not null,
    jobs             bigint not null,
    prompt_tokens    bigint not null,
    generated_tokens bigint not null,
    last_finished_at timestamptz not null,
    primary key (minute, model, tenant, worker, status)
) with (fillfactor = 40);
comment on table job_minute is 'Jobs by their first final state and tokens, per minute: what throughput and worker_status add up';

-- Partitions ahead of time, and the end of what is too old. A call deletes at most 20,000 rows of each
-- table, so it never holds the recorder up; the recorder calls it again while it returns true.
create function recorder_maintain(latency_days integer, history_days integer) returns boolean
language plpgsql security definer set search_path = pg_catalog, public, pg_temp as $$
declare
    today  date := (now() at time zone 'UTC')::date;
    oldest timestamptz := now() - make_interval(days => history_days);
    old    record;
    gone   bigint;
    more   boolean := false;
begin
    if latency_days < 1 or history_days < 1 then
        raise exception 'retention of % and % days: each must be at least 1', latency_days, history_days;
    end if;
    for ahead in -1..3 loop
        perform job_latency_partition_make(today + ahead);
    end loop;
    for old in
        select c.relname from pg_inherits i join pg_class c on c.oid = i.inhrelid
         where i.inhparent = 'public.job_latency'::regclass
           and c.relname < 'job_latency_' || to_char(today - latency_days, 'YYYYMMDD')
    loop
        execute format('drop table public.%I', old.relname);
    end loop;
    delete from job where job_id in
        (select job_id from job where finished_at < oldest order by finished_at limit 20000);
    get diagnostics gone = row_count;
    more := more or gone = 20000;
    -- their final event was lost, with the events topic's retention for one
    delete from job where job_id in
        (select job_id from job where finished_at is null and updated_at < oldest limit 20000);
    get diagnostics gone = row_count;
    more := more or gone = 20000;
    delete from latency_histogram where ctid in
        (select ctid from latency_histogram where minute < oldest order by minute limit 20000);
    get diagnostics gone = row_count;
    more := more or gone = 20000;
    delete from job_minute where ctid in
        (select ctid from job_minute where minute < oldest order by minute limit 20000);
    get diagnostics gone = row_count;
    return more or gone = 20000;
end
$$;
comment on function recorder_maintain is 'Makes the next days'' partitions and removes what is past its days; true = call again';

do $$
begin
    for ahead in -1..3 loop
        perform job_latency_partition_make((now() at time zone 'UTC')::date + ahead);
    end loop;
end
$$;

grant select, insert, update on latency_histogram, job_minute to recorder;
grant select, insert on job_latency to recorder;
grant select on job_latency, latency_histogram, job_minute to reader;
revoke execute on function job_latency_partition_make, recorder_maintain from public;
grant execute on function job_latency_partition_make, recorder_maintain to recorder;
commit;
