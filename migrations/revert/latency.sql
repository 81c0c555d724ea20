-- SPDX-License-Identifier: MIT
begin;
drop function recorder_maintain(integer, integer);
drop function job_latency_partition_make(date);
drop function latency_bucket(double precision);
drop function latency_bucket_value(integer);
drop table job_minute;
drop table latency_histogram;
drop table job_latency;
commit;
