-- SPDX-License-Identifier: MIT
begin;
drop table recorder_offset;
drop table job;
commit;
