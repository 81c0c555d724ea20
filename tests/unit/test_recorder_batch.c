/* SPDX-License-Identifier: MIT
 * One row a job, however its events come; buckets within one per cent; bounds. That the merge is
 * the same as SQL's is tested in test_recorder_store.c. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "kernels/text/utf8.h"
#include "tests/unit/worker_fixture.h"

#include "tests/unit/recorder_fixture.h"

static const int64_t year_2026 = 1767225600000000;
static struct error error;

static struct recorder_batch *create(size_t events)
{
    struct recorder_batch *b = recorder_batch_create(events);

    assert_non_null(b);
    return b;
}

static void add(struct recorder_batch *b, const struct job_event *event)
{
    if (recorder_batch_add(b, event, &error))
        fail_msg("%s", error.message);
}

static struct job_event simple(const char *state, int32_t attempt, int64_t at_us)
{
    return (struct job_event){.job_id = {"00000000-0000-4000-8000-000000000001", 36},
                              .attempt = attempt,
                              .state = state,
                              .at_us = at_us,
                              .worker = {"w", 1},
                              .tenant = {"t", 1},
                              .model = {"m", 1}};
}

static void the_newest_attempt_and_state_win(void **state)
{
    struct recorder_batch *b = create(16);
    struct job_event e = simple("started", 1, 10);

    (void)state;
    e.started_at_us = 500;
    add(b, &e);
    e = simple("accepted", 2, 20); /* a later attempt, though a lower state */
    e.accepted_at_us = 300;
    add(b, &e);
    e = simple("completed", 1, 30); /* an older attempt's end: it counts as a final, no more */
    e.accepted_at_us = 200;
    e.started_at_us = 600;
    add(b, &e);
    assert_int_equal(b->row_count, 1);
    assert_int_equal(b->event_count, 3);
    assert_int_equal(b->rows[0].newest.attempt, 2);
    assert_string_equal(b->rows[0].newest.status, "accepted");
    assert_int_equal(b->rows[0].accepted_at_us, 200);
    assert_int_equal(b->rows[0].started_at_us, 500);
    assert_int_equal(b->rows[0].finals, 1);
    assert_string_equal(b->rows[0].first_final.status, "completed");
    e = simple("failed", 2, 40);
    add(b, &e);
    e = simple("expired", 2, 50); /* an equal: the first stays */
    add(b, &e);
    assert_string_equal(b->rows[0].newest.status, "failed");
    assert_string_equal(b->rows[0].first_final.status, "completed");
    assert_int_equal(b->rows[0].finals, 3);
    recorder_batch_destroy(b);
}

/* What each job's row must be, said in one pass over the events. */
static void random_streams_agree_with_a_scan(void **state)
{
    struct recorder_fixture *f = malloc(sizeof *f);

    (void)state;
    fixture_seed(9);
    for (int round = 0; round < 200; round++) {
        struct recorder_batch *b = create(RECORDER_FIXTURE_EVENTS);

        recorder_fixture_make(f, year_2026);
        for (int i = 0; i < f->count; i++)
            add(b, &f->events[i]);
        recorder_batch_sort(b);
        for (size_t r = 0; r < b->row_count; r++) {
            const struct job_event *newest = NULL, *first = NULL;
            int64_t accepted = 0;
            int finals = 0, best = 0;

            assert_true(!r || memcmp(b->sorted[r - 1]->id, b->sorted[r]->id, 16) < 0);
            for (int i = 0; i < f->count; i++) {
                const struct job_event *e = &f->events[i];
                int rank = !strcmp(e->state, "accepted") ? 1 : !strcmp(e->state, "started") ? 2 : 3;
                uint8_t id[16];

                assert_int_equal(uuid_parse(e->job_id, id), 0);
                if (memcmp(id, b->sorted[r]->id, 16))
                    continue;
                if (e->attempt * 10 + rank > best) {
                    best = e->attempt * 10 + rank;
                    newest = e;
                }
                if (e->accepted_at_us && (!accepted || e->accepted_at_us < accepted))
                    accepted = e->accepted_at_us;
                if (rank == 3 && finals++ == 0)
                    first = e;
            }
            assert_string_equal(b->sorted[r]->newest.status, newest->state);
            assert_int_equal(b->sorted[r]->newest.at_us, newest->at_us);
            assert_int_equal(b->sorted[r]->accepted_at_us, accepted);
            assert_int_equal(b->sorted[r]->finals, finals);
            if (finals)
                assert_int_equal(b->sorted[r]->first_final.at_us, first->at_us);
        }
        recorder_batch_destroy(b);
    }
    free(f);
}

static void what_is_no_event_changes_nothing(void **state)
{
    struct recorder_batch *b = create(16);
    struct job_event e = simple("completed", 1, 10);

    (void)state;
    e.job_id = (struct text){"no-uuid", 7};
    assert_int_equal(recorder_batch_add(b, &e, &error), RECORDER_NO_EVENT);
    assert_non_null(strstr(error.message, "job_id"));
    e = simple("paused", 1, 10);
    assert_int_equal(recorder_batch_add(b, &e, &error), RECORDER_NO_EVENT);
    assert_non_null(strstr(error.message, "state"));
    assert_int_equal(b->row_count, 0);
    assert_int_equal(b->event_count, 0);
    recorder_batch_destroy(b);
}

/* Not the same as what is no event: this one must come again. */
static void an_event_without_memory_has_no_room(void **state)
{
    static const char bad[] = "t\xff"; /* it is copied to be mended */
    struct recorder_batch *b = create(16);
    struct job_event e = simple("completed", 1, 10);

    (void)state;
    for (size_t size = 1 << 20; size; size /= 2)
        while (arena_alloc(b->arena, size))
            ;
    e.tenant = (struct text){bad, 2};
    assert_int_equal(recorder_batch_add(b, &e, &error), RECORDER_NO_ROOM);
    assert_int_equal(b->row_count, 0);
    assert_int_equal(b->event_count, 0);
    recorder_batch_reset(b);
    assert_int_equal(recorder_batch_add(b, &e, &error), RECORDER_ADDED);
    assert_string_equal(b->rows[0].newest.tenant.data, "t?");
    recorder_batch_destroy(b);
}

static void a_full_batch_takes_no_more(void **state)
{
    struct recorder_batch *b = create(3);
    struct job_event e;
    char id[37];

    (void)state;
    for (int i = 0; i < 4; i++) {
        e = simple("accepted", 1, 10);
        snprintf(id, sizeof id, "00000000-0000-4000-8000-00000000000%d", i);
        e.job_id = (struct text){id, 36};
        assert_int_equal(recorder_batch_full(b), i == 3);
        assert_int_equal(recorder_batch_add(b, &e, &error),
                         i == 3 ? RECORDER_NO_ROOM : RECORDER_ADDED);
    }
    assert_int_equal(b->row_count, 3);
    recorder_batch_reset(b);
    assert_int_equal(b->row_count, 0);
    add(b, &e);
    assert_int_equal(b->row_count, 1);
    recorder_batch_destroy(b);
}

static void texts_become_what_postgresql_takes(void **state)
{
    static char longest[20000];
    struct recorder_batch *b = create(16);
    struct job_event e = simple("failed", 1, 10);

    (void)state;
    for (size_t i = 0; i + 2 <= sizeof longest; i += 2)
        memcpy(longest + i, "я", 2);
    e.tenant = (struct text){"a\0b\xffz\xed\xa0\x80я", 10};
    e.worker = (struct text){longest, sizeof longest};
    e.has_error = true;
    e.error = (struct generation_error){{"c", 1}, {longest, sizeof longest}};
    add(b, &e);
    assert_string_equal(b->rows[0].newest.tenant.data, "a?b?z???я");
    assert_int_equal(b->rows[0].newest.worker.size, 256);
    assert_int_equal(b->rows[0].newest.error.message.size, 8192);
    assert_true(utf8_valid(b->rows[0].newest.worker.data, 256));
    recorder_batch_destroy(b);
}

static void times_are_clamped(void **state)
{
    struct recorder_batch *b = create(16);
    struct job_event e = simple("completed", 1, INT64_MAX);

    (void)state;
    e.accepted_at_us = INT64_MIN;
    add(b, &e);
    assert_true(b->rows[0].newest.at_us < 253402300800000000); /* year 10000 */
    assert_int_equal(b->rows[0].accepted_at_us, 0);
    recorder_batch_destroy(b);
}

/* A bucket's upper end is within two per cent above the value: its middle within one. */
static void buckets_keep_their_error(void **state)
{
    (void)state;
    fixture_seed(10);
    assert_int_equal(recorder_bucket_of(0), RECORDER_ZERO_BUCKET);
    assert_int_equal(recorder_bucket_of(-5), RECORDER_ZERO_BUCKET);
    assert_int_equal(recorder_bucket_of(NAN), RECORDER_ZERO_BUCKET);
    assert_int_equal(recorder_bucket_of(1), 0);
    assert_true(recorder_bucket_of((double)INT64_MAX) < INT16_MAX);
    for (int i = 0; i < 100000; i++) {
        double value = exp((double)fixture_random(1000000) / 1000000 * 40 - 6);
        int16_t bucket = recorder_bucket_of(value);

        assert_true(value <= pow(1.02, bucket) * (1 + 1e-12));
        assert_true(value > pow(1.02, bucket - 1) * (1 - 1e-12));
    }
}

static void only_new_finals_are_counted(void **state)
{
    struct recorder_batch *b = create(64);
    struct job_event e;
    char id[37];

    (void)state;
    for (int i = 0; i < 6; i++) {
        e = simple(i == 5 ? "failed" : "completed", 1, year_2026 + i);
        snprintf(id, sizeof id, "00000000-0000-4000-8000-00000000000%d", i);
        e.job_id = (struct text){id, 36};
        e.has_timings = e.has_usage = true;
        e.timings = (struct generation_timings){
            .queue_us = 100, .first_token_us = 200, .decode_us = 1000, .total_us = 5000};
        e.usage = (struct generation_usage){10, i == 4 ? 0 : 20};
        add(b, &e);
        b->rows[i].final_is_new = i != 3; /* as the store has learnt it */
    }
    recorder_batch_count(b);
    assert_int_equal(b->minute_count, 2); /* completed and failed */
    assert_int_equal(b->minutes[0].jobs, 4);
    assert_int_equal(b->minutes[0].generated_tokens, 60);
    assert_int_equal(b->minutes[0].last_us, year_2026 + 4);
    assert_int_equal(b->minutes[1].jobs, 1);
    assert_int_equal(b->bucket_count, 4); /* one a metric: the failed one is not in */
    for (size_t i = 0; i < 4; i++) {
        bool per_token = b->buckets[i].metric == RECORDER_PER_TOKEN;

        assert_int_equal(b->buckets[i].count, per_token ? 3 : 4); /* no tokens, no time a token */
        if (per_token)
            assert_int_equal(b->buckets[i].bucket, recorder_bucket_of(50));
    }
    recorder_batch_destroy(b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_newest_attempt_and_state_win),
        cmocka_unit_test(random_streams_agree_with_a_scan),
        cmocka_unit_test(what_is_no_event_changes_nothing),
        cmocka_unit_test(an_event_without_memory_has_no_room),
        cmocka_unit_test(a_full_batch_takes_no_more),
        cmocka_unit_test(texts_become_what_postgresql_takes),
        cmocka_unit_test(times_are_clamped),
        cmocka_unit_test(buckets_keep_their_error),
        cmocka_unit_test(only_new_finals_are_counted),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
