/* SPDX-License-Identifier: MIT
 * The window of duplicates: what is one, what is none, and how much is remembered. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "tests/unit/worker_fixture.h"

static bool memory_out;

static void *calloc_or_not(size_t count, size_t size)
{
    return memory_out && count > 1 ? NULL : calloc(count, size); /* tables; never an id's entry */
}

/* Its table is looked into, and cannot always grow. */
#define calloc calloc_or_not
#include "worker/duplicates.c"
#undef calloc

static int begin(struct duplicates *d, uint64_t number, int64_t offset)
{
    uint8_t id[16];

    fixture_id(number, id);
    return duplicates_begin(d, id, offset);
}

static void finish(struct duplicates *d, uint64_t number, int64_t offset, int64_t now_us)
{
    uint8_t id[16];

    fixture_id(number, id);
    duplicates_finish(d, id, offset, now_us);
}

static struct duplicates *create(int64_t window_us, size_t min, size_t max)
{
    struct duplicates *d = duplicates_create((struct duplicates_limits){window_us, min, max});

    assert_non_null(d);
    return d;
}

static void running_and_finished_ids_are_duplicates(void **state)
{
    struct duplicates *d = create(1000, 10, 100);

    (void)state;
    assert_int_equal(begin(d, 1, 50), 1);
    assert_int_equal(begin(d, 1, 51), 0); /* it runs at 50 */
    assert_int_equal(begin(d, 1, 50), 1); /* redelivered: no duplicate of itself */
    assert_int_equal(duplicates_count(d), 1);
    finish(d, 1, 50, 10);
    assert_int_equal(begin(d, 1, 51), 0); /* it was finished */
    assert_int_equal(begin(d, 1, 50), 1);
    assert_int_equal(begin(d, 2, 51), 1);
    duplicates_destroy(d);
}

static void rebuilt_from_the_index(void **state)
{
    struct duplicates *d = create(1000, 10, 100);

    (void)state;
    finish(d, 7, 20, 10); /* never begun here */
    finish(d, 7, 30, 20); /* a replay of it */
    assert_int_equal(duplicates_count(d), 1);
    assert_int_equal(begin(d, 7, 40), 0);
    assert_int_equal(begin(d, 7, 20), 1);
    duplicates_destroy(d);
}

static void young_ones_stay_between_the_bounds(void **state)
{
    struct duplicates *d = create(1000, 10, 20);

    (void)state;
    for (uint64_t i = 0; i < 15; i++)
        finish(d, i, (int64_t)i, 100); /* more than the least, all young */
    assert_int_equal(duplicates_count(d), 15);
    finish(d, 15, 15, 1101); /* the first 15 are older than the window now */
    assert_int_equal(duplicates_count(d), 10);
    assert_int_equal(begin(d, 5, 99), 1); /* forgotten */
    assert_int_equal(begin(d, 6, 99), 0); /* the least number is kept, old or not */
    assert_int_equal(begin(d, 15, 99), 0);
    duplicates_destroy(d);
}

/* After a silence all are old; who comes first does not pay for all of them. */
static void old_ones_go_a_few_at_a_time(void **state)
{
    enum { IDS = 5000, LEAST = 10 };
    struct duplicates *d = create(1000, LEAST, 100000);
    size_t before = IDS;

    (void)state;
    for (uint64_t i = 0; i < IDS; i++)
        finish(d, i, (int64_t)i, 100);
    assert_int_equal(duplicates_count(d), IDS);
    for (uint64_t i = IDS; before > LEAST; i++) {
        finish(d, i, (int64_t)i, 1000000 + (int64_t)i * 2000);
        assert_in_range(before + 1 - duplicates_count(d), 1, 100);
        before = duplicates_count(d);
    }
    assert_int_equal(before, LEAST);
    duplicates_destroy(d);
}

static void the_most_is_the_most(void **state)
{
    struct duplicates *d = create(1000000, 5, 20);

    (void)state;
    for (uint64_t i = 0; i < 50; i++)
        finish(d, i, (int64_t)i, 100);
    assert_int_equal(duplicates_count(d), 20);
    assert_int_equal(begin(d, 29, 99), 1);
    assert_int_equal(begin(d, 30, 99), 0);
    duplicates_destroy(d);
}

static void running_ones_are_never_pushed_out(void **state)
{
    struct duplicates *d = create(0, 0, 1);

    (void)state;
    for (uint64_t i = 0; i < 100; i++)
        assert_int_equal(begin(d, i, (int64_t)i), 1);
    for (uint64_t i = 1000; i < 1100; i++)
        finish(d, i, (int64_t)i, (int64_t)i);
    assert_int_equal(duplicates_count(d), 101);
    for (uint64_t i = 0; i < 100; i++)
        assert_int_equal(begin(d, i, 9999), 0);
    duplicates_destroy(d);
}

/* Growing is spread over the additions, and is over before it must begin again. */
static void the_table_grows_a_little_at_a_time(void **state)
{
    enum { IDS = 9 * FIRST_BUCKETS };
    struct duplicates *d = create(1000, 10, 100);
    size_t moved, tables = 1;

    (void)state;
    for (uint64_t i = 0; i < IDS; i++) {
        bool growing = d->old != NULL;

        moved = growing ? d->moved : 0;
        assert_int_equal(begin(d, i, (int64_t)i), 1);
        if (d->old)
            assert_in_range(d->moved, moved + growing, moved + 2);
        if (!growing && d->old) {
            assert_int_equal(d->bucket_count, 2 * (i > FIRST_BUCKETS ? i : FIRST_BUCKETS));
            tables++;
        }
        if (growing && !d->old)
            assert_in_range(i, d->bucket_count * 3 / 4 - 2, d->bucket_count * 3 / 4 + 2);
    }
    assert_int_equal(tables, 5);
    for (uint64_t i = 0; i < IDS; i++)
        assert_int_equal(begin(d, i, -1), 0);
    duplicates_destroy(d);
}

static void a_table_that_cannot_grow_is_only_slower(void **state)
{
    struct duplicates *d = create(1000, 10, 100);

    (void)state;
    memory_out = true;
    for (uint64_t i = 0; i < 3000; i++)
        assert_int_equal(begin(d, i, (int64_t)i), 1);
    assert_int_equal(d->bucket_count, FIRST_BUCKETS);
    memory_out = false;
    for (uint64_t i = 3000; i < 9000; i++)
        assert_int_equal(begin(d, i, (int64_t)i), 1);
    assert_true(d->bucket_count > 4 * FIRST_BUCKETS);
    for (uint64_t i = 0; i < 9000; i++)
        assert_int_equal(begin(d, i, -1), 0);
    duplicates_destroy(d);
}

/* Senders choose ids. These all have one sum under a shift and an exclusive or, such as a hash
 * without a secret may begin with; they must not fall into a few buckets. */
static void chosen_ids_do_not_share_a_bucket(void **state)
{
    enum { BUCKETS = 1024, IDS = 8 * BUCKETS };
    static const struct {
        int right, left;
    } shifts[] = {{29, 35}, {33, 31}, {0, 64}};
    static int held[BUCKETS];

    (void)state;
    for (int s = 0; s < 3; s++) {
        memset(held, 0, sizeof held);
        for (uint64_t i = 0; i < IDS; i++) {
            uint64_t b = i * 0x9E3779B97F4A7C15u;
            uint64_t a = b >> shifts[s].right ^ (shifts[s].left < 64 ? b << shifts[s].left : 0);
            uint8_t id[16];

            memcpy(id, &a, 8);
            memcpy(id + 8, &b, 8);
            held[job_id_hash(id) % BUCKETS]++;
        }
        for (int i = 0; i < BUCKETS; i++)
            assert_in_range(held[i], 0, 40); /* 8 on the average */
    }
}

/* Against a plain list, through several doublings of the table. */
static void sequences_agree_with_a_list(void **state)
{
    enum { IDS = 6000, LEAST = 500, MOST = 2000, WINDOW = 300 };
    static struct {
        int64_t offset, finished_us;
    } known[IDS];
    static uint64_t order[20 * IDS];
    struct duplicates *d = create(WINDOW, LEAST, MOST);
    size_t oldest = 0, newest = 0;
    int64_t now = 1;

    (void)state;
    fixture_seed(4);
    for (int64_t step = 0; step < 60000; step++) {
        uint64_t number = fixture_random(IDS);

        now += (int64_t)fixture_random(2);
        if (fixture_random(2)) {
            int64_t offset = fixture_random(5) ? step + 1 : known[number].offset;

            if (!offset)
                continue;
            assert_int_equal(begin(d, number, offset),
                             !known[number].offset || known[number].offset == offset);
            if (!known[number].offset)
                known[number].offset = offset;
        } else if (known[number].offset && !known[number].finished_us) {
            finish(d, number, known[number].offset, now);
            known[number].finished_us = now;
            order[newest++] = number;
            while (newest - oldest > MOST ||
                   (newest - oldest > LEAST && known[order[oldest]].finished_us < now - WINDOW)) {
                known[order[oldest]].offset = known[order[oldest]].finished_us = 0;
                oldest++;
            }
        }
    }
    for (uint64_t number = 0; number < IDS; number++)
        assert_int_equal(begin(d, number, 1000000), !known[number].offset);
    assert_true(oldest > LEAST);
    duplicates_destroy(d);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(running_and_finished_ids_are_duplicates),
        cmocka_unit_test(rebuilt_from_the_index),
        cmocka_unit_test(young_ones_stay_between_the_bounds),
        cmocka_unit_test(old_ones_go_a_few_at_a_time),
        cmocka_unit_test(the_most_is_the_most),
        cmocka_unit_test(running_ones_are_never_pushed_out),
        cmocka_unit_test(the_table_grows_a_little_at_a_time),
        cmocka_unit_test(a_table_that_cannot_grow_is_only_slower),
        cmocka_unit_test(chosen_ids_do_not_share_a_bucket),
        cmocka_unit_test(sequences_agree_with_a_list),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
