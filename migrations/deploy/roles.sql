-- SPDX-License-Identifier: MIT
-- recorder writes the projection, reader reads it; neither owns anything. Roles belong to the whole
-- cluster, so another database of it may have made them before. They have no password until one is set.
begin;
do $$
declare
    wanted text;
begin
    foreach wanted in array array['recorder', 'reader'] loop
        if not exists (select from pg_roles where rolname = wanted) then
            execute format('create role %I login', wanted);
        end if;
        execute format('grant connect on database %I to %I', current_database(), wanted);
        execute format('grant usage on schema public to %I', wanted);
    end loop;
end
$$;
commit;
