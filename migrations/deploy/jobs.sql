-- SPDX-License-Identifier: MIT
begin;

create table job (
    job_id           uuid primary key,
    status           text not null
        check (status in ('accepted', 'started', 'completed', 'failed', 'cancelled', 'expired')),
    state_rank       smallint not null check (state_rank between 1 and 3),
    attempt          integer not null,
    finals           integer not null default 0,
    tenant           text not null,
    model            text not null,
    worker           text not null,
    source_partition integer not null,
    source_offset    bigint not null,
    accepted_at      timestamptz,
    started_at       timestamptz,
    finished_at      timestamptz,
    updated_at       timestamptz not null,
    prompt_tokens    integer,
    generated_tokens integer,
    queue_us         bigint,
    encode_us        bigint,
    first_token_us   bigint,
    decode_us        bigint,
    total_us         bigint,
    batch_size_mean  double precision,
    dead_lettered    boolean not null default false,
    error_class      text,
    error_message    text
) with (fillfactor = 90);

comment on table job is 'One row per job: its newest attempt''s newest state, from pgpt.events';
comment on column job.state_rank is '1 accepted, 2 started, 3 final; the row moves to the greatest (attempt, state_rank), the first of equals';
comment on column job.attempt is '1 = first run; more after a worker died with it or after a replay';
comment on column job.finals is 'final states seen; above 1 after a replay from the dead-letter topic or a resend past the duplicate window';
comment on column job.accepted_at is 'when a worker first admitted it';
comment on column job.started_at is 'when it first began to run';
comment on column job.finished_at is 'when the final state of this row was reached; null while it is alive';
comment on column job.updated_at is 'time of the event that set the status';
comment on column job.queue_us is 'request record to admission, microseconds';
comment on column job.first_token_us is 'admission to first token, microseconds';
comment on column job.total_us is 'request record to result, microseconds';
comment on column job.dead_lettered is 'the request went to the dead-letter topic too';

-- newest first, for all and for one tenant; retention walks the first of them
create index job_finished on job (finished_at) where finished_at is not null;
create index job_tenant on job (tenant, finished_at);
create index job_failed on job (finished_at) where status = 'failed';
-- what runs now, and where
create index job_alive on job (worker, accepted_at) where finished_at is null;

create table recorder_offset (
    topic       text not null,
    partition   integer not null check (partition >= 0),
    next_offset bigint not null check (next_offset >= 0),
    updated_at  timestamptz not null default now(),
    primary key (topic, partition)
);
comment on table recorder_offset is 'The next event to record of each partition; changes in one transaction with the rows';

grant select, insert, update on job, recorder_offset to recorder;
grant select on job, recorder_offset to reader;
commit;
