-- SPDX-License-Identifier: MIT
-- Percentiles are nearest-rank values of the buckets, in microseconds, at most 1 % off the exact ones.
begin;

create view latency_percentiles as
with counted as (
    select metric, bucket, sum(count) as n
      from latency_histogram
     group by metric, bucket
), running as (
    select metric, bucket, sum(n) over (partition by metric order by bucket) as upto,
           sum(n) over (partition by metric) as total
      from counted
)
select metric, max(total)::bigint as jobs,
       latency_bucket_value(min(bucket) filter (where upto >= ceil(0.50 * total))) as p50,
       latency_bucket_value(min(bucket) filter (where upto >= ceil(0.90 * total))) as p90,
       latency_bucket_value(min(bucket) filter (where upto >= ceil(0.95 * total))) as p95,
       latency_bucket_value(min(bucket) filter (where upto >= ceil(0.99 * total))) as p99
  from running
 group by metric;
comment on view latency_percentiles is 'Percentiles in microseconds of all completed jobs kept; metric: queue, first_token, per_token, total';

create view latency_percentiles_by_model as
with counted as (
    select model, tenant, metric, bucket, sum(count) as n
      from latency_histogram
     group by model, tenant, metric, bucket
), running as (
    select model, tenant, metric, bucket, sum(n) over (partition by model, tenant, metric order by bucket) as upto,
           sum(n) over (partition by model, tenant, metric) as total
      from counted
)
select model, tenant, metric, max(total)::bigint as jobs,
       latency_bucket_value(min(bucket) filter (where upto >= ceil(0.50 * total))) as p50,
       latency_bucket_value(min(bucket) filter (where upto >= ceil(0.90 * total))) as p90,
       latency_bucket_value(min(bucket) filter (where upto >= ceil(0.95 * total))) as p95,
       latency_bucket_value(min(bucket) filter (where upto >= ceil(0.99 * total))) as p99
  from running
 group by model, tenant, metric;
comment on view latency_percentiles_by_model is 'The same for each model and tenant';

create view latency_percentiles_by_minute as
with counted as (
    select minute, model, tenant, metric, bucket, sum(count) as n
      from latency_histogram
     group by minute, model, tenant, metric, bucket
), running as (
    select minute, model, tenant, metric, bucket, sum(n) over (partition by minute, model, tenant, metric order by bucket) as upto,
           sum(n) over (partition by minute, model, tenant, metric) as total
      from counted
)
select minute, model, tenant, metric, max(total)::bigint as jobs,
       latency_bucket_value(min(bucket) filter (where upto >= ceil(0.50 * total))) as p50,
       latency_bucket_value(min(bucket) filter (where upto >= ceil(0.90 * total))) as p90,
       latency_bucket_value(min(bucket) filter (where upto >= ceil(0.95 * total))) as p95,
       latency_bucket_value(min(bucket) filter (where upto >= ceil(0.99 * total))) as p99
  from running
 group by minute, model, tenant, metric;
comment on view latency_percentiles_by_minute is 'The same for each minute, model and tenant; a condition on minute reads those minutes alone';

-- select * from latency_percentiles_over(now() - interval '1 hour');
create function latency_percentiles_over(since timestamptz, until timestamptz default 'infinity',
                                         only_model text default null, only_tenant text default null)
returns table (metric text, jobs bigint, p50 double precision, p90 double precision, p95 double precision,
               p99 double precision)
language sql stable as $$
with counted as (
    select h.metric, bucket, sum(count) as n
      from latency_histogram h
     where minute >= date_trunc('minute', since) and minute < until
       and (only_model is null or model = only_model)
       and (only_tenant is null or tenant = only_tenant)
     group by h.metric, bucket
), running as (
    select metric, bucket, sum(n) over (partition by metric order by bucket) as upto,
           sum(n) over (partition by metric) as total
      from counted
)
select metric, max(total)::bigint as jobs,
       latency_bucket_value(min(bucket) filter (where upto >= ceil(0.50 * total))) as p50,
       latency_bucket_value(min(bucket) filter (where upto >= ceil(0.90 * total))) as p90,
       latency_bucket_value(min(bucket) filter (where upto >= ceil(0.95 * total))) as p95,
       latency_bucket_value(min(bucket) filter (where upto >= ceil(0.99 * total))) as p99
  from running
 group by metric
$$;
comment on function latency_percentiles_over is 'Percentiles in microseconds of a window of whole minutes, of one model or tenant where named';

-- The current minute is divided by the seconds that it has lasted.
create view throughput_by_model as
select minute, model, tenant, sum(jobs)::bigint as jobs,
       coalesce(sum(jobs) filter (where status = 'completed'), 0)::bigint as completed,
       coalesce(sum(jobs) filter (where status = 'failed'), 0)::bigint as failed,
       coalesce(sum(jobs) filter (where status = 'cancelled'), 0)::bigint as cancelled,
       coalesce(sum(jobs) filter (where status = 'expired'), 0)::bigint as expired,
       sum(prompt_tokens)::bigint as prompt_tokens, sum(generated_tokens)::bigint as generated_tokens,
       sum(jobs)::float8 / seconds as jobs_per_s, sum(generated_tokens)::float8 / seconds as tokens_per_s
  from job_minute
 cross join lateral (select least(60, greatest(1, extract(epoch from now() - minute)))::float8 as seconds) lasted
 group by minute, model, tenant, seconds;
comment on view throughput_by_model is 'Jobs and tokens a second for each minute, model and tenant';

create view throughput as
select minute, sum(jobs)::bigint as jobs, sum(completed)::bigint as completed, sum(failed)::bigint as failed,
       sum(cancelled)::bigint as cancelled, sum(expired)::bigint as expired,
       sum(prompt_tokens)::bigint as prompt_tokens, sum(generated_tokens)::bigint as generated_tokens,
       sum(jobs_per_s) as jobs_per_s, sum(tokens_per_s) as tokens_per_s
  from throughput_by_model
 group by minute;
comment on view throughput is 'Jobs and tokens a second for each minute';

create view worker_status as
with done as (
    select worker, max(last_finished_at) as last_finished_at,
           coalesce(sum(jobs) filter (where status = 'completed'), 0)::bigint as completed_last_day,
           coalesce(sum(jobs) filter (where status = 'failed'), 0)::bigint as failed_last_day,
           coalesce(sum(jobs) filter (where minute > now() - interval '5 minutes'), 0) / 300.0 as jobs_per_s,
           coalesce(sum(generated_tokens) filter (where minute > now() - interval '5 minutes'), 0) / 300.0 as tokens_per_s
      from job_minute
     where minute > now() - interval '1 day'
     group by worker
), alive as (
    select worker, count(*) as alive_jobs, min(accepted_at) as oldest_accepted_at
      from job
     where finished_at is null
     group by worker
)
select worker, last_finished_at, coalesce(alive_jobs, 0) as alive_jobs, oldest_accepted_at,
       coalesce(completed_last_day, 0) as completed_last_day, coalesce(failed_last_day, 0) as failed_last_day,
       coalesce(jobs_per_s, 0)::float8 as jobs_per_s, coalesce(tokens_per_s, 0)::float8 as tokens_per_s
  from done full join alive using (worker);
comment on view worker_status is 'Workers of the last day: jobs they hold, rates over the last five minutes';

grant select on latency_percentiles, latency_percentiles_by_model, latency_percentiles_by_minute, throughput,
    throughput_by_model, worker_status to reader;
commit;
