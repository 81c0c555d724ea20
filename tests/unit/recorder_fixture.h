/* SPDX-License-Identifier: MIT
 *
 * recorder_fixture: random streams of job events: few jobs, all states, attempts and times out of
 * order, equals, replays, texts that PostgreSQL does not take. Include it after worker_fixture.h.
 */
#ifndef PGPT_TESTS_RECORDER_FIXTURE_H
#define PGPT_TESTS_RECORDER_FIXTURE_H

#include "worker/recorder_batch.h"

enum { RECORDER_FIXTURE_JOBS = 24, RECORDER_FIXTURE_EVENTS = 300 };

struct recorder_fixture {
    struct job_event events[RECORDER_FIXTURE_EVENTS];
    char ids[RECORDER_FIXTURE_JOBS][37];
    int count;
};

__attribute__((unused)) static void recorder_fixture_event(struct recorder_fixture *f,
                                                           struct job_event *e, int64_t at_us)
{
    static const char *const states[] = {"accepted", "started",   "completed",
                                         "failed",   "cancelled", "expired"};
    static const struct text texts[] = {{"", 0},         {"tenant-1", 8}, {"a\0b", 3},
                                        {"\xff\xfe", 2}, {"я", 2},        {"tenant-2", 8}};
    bool knows = fixture_random(2);

    memset(e, 0, sizeof *e);
    e->job_id = (struct text){f->ids[fixture_random(RECORDER_FIXTURE_JOBS)], 36};
    e->attempt = 1 + (int32_t)fixture_random(3);
    e->state = states[fixture_random(6)];
    e->at_us = at_us + (int64_t)fixture_random(180000000);
    e->worker = texts[fixture_random(6)];
    e->tenant = texts[fixture_random(6)];
    e->model = texts[fixture_random(2)];
    e->source_partition = (int32_t)fixture_random(12);
    e->source_offset = (int64_t)fixture_random(1000);
    e->has_usage = fixture_random(4) != 0;
    e->usage.prompt_tokens = (int32_t)fixture_random(300);
    e->usage.generated_tokens = (int32_t)fixture_random(3) * 25;
    e->has_timings = fixture_random(4) != 0;
    e->timings.queue_us = (int64_t)fixture_random(100000);
    e->timings.first_token_us = (int64_t)fixture_random(100000);
    e->timings.decode_us = (int64_t)fixture_random(1000000);
    e->timings.total_us = (int64_t)fixture_random(2000000);
    e->timings.batch_size_mean = (double)fixture_random(64) / 2;
    e->accepted_at_us = knows ? at_us + (int64_t)fixture_random(1000000) : 0;
    e->started_at_us = knows ? e->accepted_at_us + (int64_t)fixture_random(1000000) : 0;
    e->dead_lettered = fixture_random(10) == 0;
    e->has_error = fixture_random(3) == 0;
    e->error.error_class = texts[fixture_random(6)];
    e->error.message = texts[fixture_random(6)];
}

__attribute__((unused)) static void recorder_fixture_make(struct recorder_fixture *f, int64_t at_us)
{
    for (uint64_t i = 0; i < RECORDER_FIXTURE_JOBS; i++) {
        uint8_t id[16];

        fixture_id(i * 0x0101010101010101u + fixture_random(1000), id);
        uuid_format(id, f->ids[i]);
    }
    f->count = RECORDER_FIXTURE_EVENTS;
    for (int i = 0; i < f->count; i++)
        recorder_fixture_event(f, &f->events[i], at_us);
}

#endif
