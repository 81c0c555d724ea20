-- SPDX-License-Identifier: MIT
-- Percentiles of 100,000 random values, spread over minutes, models and tenants and merged again, against
-- the exact nearest-rank ones.
begin;
select plan(11);
select setseed(0.25);

create temp table exact as
select date_trunc('minute', now()) - make_interval(mins => (random() * 59)::int) as minute,
       'm' || (n % 2) as model, 't' || (random() * 4)::int as tenant, metric,
       -- heavy-tailed, light-tailed and tiny values
       case metric when 'queue' then exp(random() * 14) when 'total' then 20000 + 1e6 * random() * random()
                   when 'per_token' then 0.05 + random() else -ln(1 - random()) * 5000 end as value
  from generate_series(1, 100000) n, unnest(array['queue', 'first_token', 'per_token', 'total']) metric;
insert into latency_histogram
select minute, model, tenant, metric, latency_bucket(value), count(*) from exact group by 1, 2, 3, 4, 5;

create temp view exact_percentiles as
select metric, percentile_disc(array[0.5, 0.9, 0.95, 0.99]) within group (order by value) as p from exact group by metric;

select is((select sum(jobs)::int from latency_percentiles), 400000, 'no value is lost');
select ok(bool_and(abs(p50 / p[1] - 1) < 0.01), 'p50 within 1 %') from latency_percentiles join exact_percentiles using (metric);
select ok(bool_and(abs(p90 / p[2] - 1) < 0.01), 'p90 within 1 %') from latency_percentiles join exact_percentiles using (metric);
select ok(bool_and(abs(p95 / p[3] - 1) < 0.01), 'p95 within 1 %') from latency_percentiles join exact_percentiles using (metric);
select ok(bool_and(abs(p99 / p[4] - 1) < 0.01), 'p99 within 1 %') from latency_percentiles join exact_percentiles using (metric);

select ok(count(*) = 40 and bool_and(abs(v.p95 / e.p - 1) < 0.01), 'each model and tenant within 1 %')
  from latency_percentiles_by_model v
  join (select model, tenant, metric, percentile_disc(0.95) within group (order by value) as p from exact group by 1, 2, 3) e
 using (model, tenant, metric);
select ok(count(*) > 2000 and bool_and(abs(v.p99 / e.p - 1) < 0.01), 'each minute within 1 %')
  from latency_percentiles_by_minute v
  join (select minute, model, tenant, metric, percentile_disc(0.99) within group (order by value) as p from exact group by 1, 2, 3, 4) e
 using (minute, model, tenant, metric);
select ok(bool_and(abs(v.p50 / e.p - 1) < 0.01) and count(*) = 4, 'a window of one tenant within 1 %')
  from latency_percentiles_over(now() - interval '10 minutes', now() - interval '3 minutes', only_tenant => 't2') v
  join (select metric, percentile_disc(0.5) within group (order by value) as p from exact
         where minute >= date_trunc('minute', now() - interval '10 minutes') and minute < now() - interval '3 minutes'
           and tenant = 't2' group by 1) e using (metric);

-- every bucket's value is within 1 % of whatever fell into it
select ok(bool_and(abs(latency_bucket_value(latency_bucket(v)) / v - 1) < 0.01), 'each value within 1 %')
  from (select exp(n / 100.0) as v from generate_series(-300, 4000) n) s;
select is(latency_bucket_value(latency_bucket(0)), 0::float8, 'zero stays zero');
select is(latency_bucket(1.0), 0, 'the bucket of 1 ends at 1');
select finish();
rollback;
