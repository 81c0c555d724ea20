-- SPDX-License-Identifier: MIT
begin;
drop view worker_status;
drop view throughput;
drop view throughput_by_model;
drop function latency_percentiles_over(timestamptz, timestamptz, text, text);
drop view latency_percentiles_by_minute;
drop view latency_percentiles_by_model;
drop view latency_percentiles;
commit;
