-- SPDX-License-Identifier: MIT
begin;
do $$
declare
    unwanted text;
begin
    foreach unwanted in array array['recorder', 'reader'] loop
        execute format('revoke all on database %I from %I', current_database(), unwanted);
        execute format('revoke all on schema public from %I', unwanted);
        begin
            execute format('drop role %I', unwanted);
        exception when dependent_objects_still_exist then
            raise notice 'role % is used elsewhere in this cluster and stays', unwanted;
        end;
    end loop;
end
$$;
commit;
