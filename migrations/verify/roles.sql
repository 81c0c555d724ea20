-- SPDX-License-Identifier: MIT
begin;
select 1 / count(*) from pg_roles where rolname = 'recorder';
select 1 / count(*) from pg_roles where rolname = 'reader';
rollback;
