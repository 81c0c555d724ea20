/* SPDX-License-Identifier: MIT
 * Whose turn it is: groups, single ones, others between them; generated histories. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "tests/unit/worker_fixture.h"
#include "worker/suspects.h"

/* Messages are this test's: the linker puts this in place of the client's call. */
static int messages;

void __wrap_rd_kafka_message_destroy(rd_kafka_message_t *message);
void __wrap_rd_kafka_message_destroy(rd_kafka_message_t *message)
{
    messages--;
    free(message);
}

static struct error error;
static struct suspects *s;
static int64_t now;
static size_t jobs; /* in the worker */
static struct assignment_mark marks[SUSPECTS_GROUP_MAX];

static int setup(void **state)
{
    (void)state;
    s = suspects_create(&error);
    now = 1000000;
    jobs = 0;
    return s ? 0 : -1;
}

static int teardown(void **state)
{
    (void)state;
    suspects_destroy(s);
    assert_int_equal(messages, 0);
    return 0;
}

static void keep(int32_t partition, int64_t offset, enum ledger_run runs, size_t size)
{
    const struct assignment_admission answer = {.answer = LEDGER_ADMIT, .runs = runs};
    rd_kafka_message_t *message = calloc(1, sizeof *message);

    assert_non_null(message);
    message->partition = partition;
    message->offset = offset;
    message->len = size;
    messages++;
    assert_int_equal(suspects_keep(s, message, &answer, now), 0);
}

static void keep_group(int32_t partition, int64_t first, int count)
{
    for (int64_t o = first; o < first + count; o++)
        keep(partition, o, LEDGER_GROUP, 100);
}

static bool passes(enum ledger_run runs)
{
    const struct assignment_admission answer = {.answer = LEDGER_ADMIT, .runs = runs};

    return suspects_passes(s, &answer);
}

static int review(bool more)
{
    return suspects_review(s, jobs, more, now, marks);
}

/* Admits all that may be; their number. */
static int admit_all(void)
{
    int count = 0;

    while (suspects_next(s)) {
        suspects_admitted(s);
        count++;
    }
    jobs += (size_t)count;
    return count;
}

static void assert_mark(int i, int32_t partition, int64_t first, int64_t end, enum ledger_run runs)
{
    assert_int_equal(marks[i].partition, partition);
    assert_int_equal(marks[i].first, first);
    assert_int_equal(marks[i].end, end);
    assert_int_equal(marks[i].runs, runs);
}

static void without_suspects_everything_passes(void **state)
{
    (void)state;
    for (int i = 0; i < 1000; i++)
        assert_true(passes(LEDGER_FREE));
    assert_false(passes(LEDGER_GROUP));
    assert_false(passes(LEDGER_SINGLE));
    assert_false(suspects_is_busy(s));
    assert_int_equal(review(false), 0);
    assert_null(suspects_next(s));
}

/* Of several partitions, marked at once, when the worker is empty; nothing beside it. */
static void a_group_runs_with_nothing_beside_it(void **state)
{
    (void)state;
    jobs = 5;
    keep_group(1, 10, 3);
    keep_group(4, 70, 2);
    keep(1, 17, LEDGER_GROUP, 1); /* finished ones lie between */
    assert_true(suspects_is_busy(s));
    assert_true(passes(LEDGER_FREE)); /* others have their turn until the group is gathered */
    assert_int_equal(review(true), 0);
    assert_true(passes(LEDGER_FREE));
    assert_int_equal(review(false), 0); /* no more will come, but five jobs run */
    assert_false(passes(LEDGER_FREE));
    assert_null(suspects_next(s));
    keep(2, 5, LEDGER_FREE, 1); /* read meanwhile */
    jobs = 0;
    assert_int_equal(review(false), 2);
    assert_mark(0, 1, 10, 18, LEDGER_GROUP);
    assert_mark(1, 4, 70, 72, LEDGER_GROUP);
    assert_null(suspects_next(s)); /* not before they are committed */
    assert_int_equal(review(false), 2);
    suspects_start(s);
    assert_int_equal(admit_all(), 6);
    assert_int_equal(review(false), 0);
    assert_null(suspects_next(s)); /* it runs */
    jobs = 1;
    assert_int_equal(review(false), 0);
    assert_false(passes(LEDGER_FREE));
    jobs = 0;
    assert_int_equal(review(false), 0);
    assert_int_equal(suspects_next(s)->message->partition, 2);
    assert_int_equal(admit_all(), 1);
    assert_false(suspects_is_busy(s));
    assert_true(passes(LEDGER_FREE));
}

static void a_group_is_gathered_for_a_while(void **state)
{
    (void)state;
    keep_group(0, 0, 2);
    assert_int_equal(review(true), 0);
    now += SUSPECTS_GATHER_US - 1;
    assert_int_equal(review(true), 0);
    now += 1;
    assert_int_equal(review(true), 1);
    assert_mark(0, 0, 0, 2, LEDGER_GROUP);
}

static void a_whole_group_waits_for_nothing(void **state)
{
    (void)state;
    keep_group(3, 0, SUSPECTS_GROUP_MAX + 5);
    assert_int_equal(review(true), 1);
    assert_mark(0, 3, 0, SUSPECTS_GROUP_MAX, LEDGER_GROUP);
    suspects_start(s);
    assert_int_equal(admit_all(), SUSPECTS_GROUP_MAX);
}

/* What a death says of a group of one, it says of that one. */
static void a_group_of_one_is_a_single_one(void **state)
{
    (void)state;
    keep(0, 7, LEDGER_GROUP, 1);
    assert_int_equal(review(false), 1);
    assert_mark(0, 0, 7, 8, LEDGER_SINGLE);
    suspects_start(s);
    assert_int_equal(suspects_next(s)->answer.runs, LEDGER_SINGLE);
    assert_int_equal(admit_all(), 1);
}

/* One after the other without others between them, but not for ever. */
static void single_ones_run_one_after_the_other(void **state)
{
    (void)state;
    for (int64_t o = 0; o < 40; o++)
        keep(0, o, LEDGER_SINGLE, 1);
    keep_group(0, 40, 2); /* of the same partition: not before its single ones */
    for (int64_t o = 0; o < SUSPECTS_GROUP_MAX; o++) {
        assert_int_equal(review(false), 1);
        assert_mark(0, 0, o, o + 1, LEDGER_SINGLE);
        suspects_start(s);
        assert_int_equal(admit_all(), 1);
        assert_int_equal(review(false), 0);
        keep(9, o, LEDGER_FREE, 1);
        assert_false(passes(LEDGER_FREE));
        jobs = 0;
    }
    assert_int_equal(review(false), 0); /* the others' turn */
    assert_int_equal(admit_all(), SUSPECTS_GROUP_MAX);
    jobs = 0;
    for (int64_t o = SUSPECTS_GROUP_MAX; o < 40; o++) {
        assert_int_equal(review(false), 1);
        assert_mark(0, 0, o, o + 1, LEDGER_SINGLE);
        suspects_start(s);
        assert_int_equal(admit_all(), 1);
        jobs = 0;
    }
    assert_int_equal(review(false), 0);
    assert_int_equal(review(false), 1);
    assert_mark(0, 0, 40, 42, LEDGER_GROUP);
}

static void slow_single_ones_let_others_between_them(void **state)
{
    (void)state;
    for (int64_t o = 0; o < 3; o++)
        keep(0, o, LEDGER_SINGLE, 1);
    assert_int_equal(review(false), 1);
    suspects_start(s);
    assert_int_equal(admit_all(), 1);
    now += SUSPECTS_SINGLE_ROUND_US;
    keep(9, 0, LEDGER_FREE, 1);
    jobs = 0;
    assert_int_equal(review(false), 0);
    assert_int_equal(admit_all(), 1);
    assert_true(passes(LEDGER_FREE));
}

static void others_between_two_rounds_are_counted(void **state)
{
    int passed = 0;

    (void)state;
    keep(0, 0, LEDGER_GROUP, 1);
    while (passes(LEDGER_FREE))
        passed++;
    assert_int_equal(passed, SUSPECTS_BESIDE_MAX);
    for (int64_t o = 0; o < SUSPECTS_BESIDE_MAX; o++) {
        assert_false(suspects_is_full(s));
        keep(1, o, LEDGER_FREE, 1);
    }
    assert_true(suspects_is_full(s));
    assert_null(suspects_next(s)); /* they had theirs */
    assert_int_equal(review(true), 1);
    suspects_start(s);
    assert_int_equal(admit_all(), 1);
    keep(0, 1, LEDGER_GROUP, 1);
    jobs = 0;
    assert_int_equal(review(true), 0);
    assert_int_equal(admit_all(), SUSPECTS_BESIDE_MAX);
    assert_false(passes(LEDGER_FREE));
    assert_false(suspects_is_full(s));
}

/* A partition is not read on for ever, nor are huge records. */
static void a_partition_has_enough(void **state)
{
    (void)state;
    keep_group(0, 0, SUSPECTS_HELD_MAX - 1);
    assert_false(suspects_has_enough(s, 0, false));
    assert_true(suspects_has_enough(s, 0, true));
    keep_group(0, SUSPECTS_HELD_MAX, 1);
    assert_true(suspects_has_enough(s, 0, false));
    assert_false(suspects_has_enough(s, 1, false));
    suspects_forget(s, 0);
    assert_false(suspects_has_enough(s, 0, true));
    for (int64_t o = 0; o < 16; o++) {
        assert_false(suspects_has_enough(s, 1, false));
        keep(1, o, LEDGER_GROUP, 1 << 20);
    }
    assert_true(suspects_has_enough(s, 1, false));
    assert_false(suspects_has_enough(s, 2, false)); /* one of each at least */
}

/* At any time: what was not admitted goes with its partition, and the rest goes on. */
static void partitions_that_are_given_up_are_forgotten(void **state)
{
    (void)state;
    jobs = 1;
    keep_group(0, 0, 2);
    keep_group(1, 0, 2);
    assert_int_equal(review(false), 0);
    suspects_forget(s, 0);
    jobs = 0;
    assert_int_equal(review(false), 1);
    assert_mark(0, 1, 0, 2, LEDGER_GROUP);
    suspects_start(s);
    suspects_admitted(s);
    jobs = 1;
    suspects_forget(s, 1); /* in the middle */
    assert_null(suspects_next(s));
    jobs = 0;
    assert_int_equal(review(false), 0);
    assert_false(suspects_is_busy(s));
    assert_true(passes(LEDGER_FREE));
    keep_group(2, 0, 2);
    jobs = 1;
    assert_int_equal(review(false), 0);
    suspects_forget(s, 2); /* while the worker gets empty */
    assert_int_equal(review(false), 0);
    assert_true(passes(LEDGER_FREE));
}

/* ---- generated histories ---- */

enum { PARTITIONS = 5, RECORDS = 300 };

static struct {
    struct {
        enum ledger_run runs[RECORDS];
        int64_t read, admitted, suspects_end;
        bool paused;
    } logs[PARTITIONS];
    size_t suspects, others; /* jobs in the worker */
    int admitted, held;      /* suspects that wait */
    int beside;              /* others since the last suspect, or since one waits */
} world;

static void logs_make(void)
{
    memset(&world, 0, sizeof world);
    for (int p = 0; p < PARTITIONS; p++) {
        int64_t single_end = (int64_t)fixture_random(20);

        world.logs[p].suspects_end = (int64_t)fixture_random(2) * (int64_t)fixture_random(RECORDS);
        for (int64_t o = 0; o < world.logs[p].suspects_end; o++)
            world.logs[p].runs[o] = o < single_end ? LEDGER_SINGLE : LEDGER_GROUP;
    }
}

static void admitted(int32_t p, enum ledger_run runs)
{
    world.admitted++;
    world.logs[p].admitted++;
    if (runs == LEDGER_FREE) {
        assert_int_equal(world.suspects, 0);
        world.others++;
        world.beside++;
        return;
    }
    assert_int_equal(world.others, 0);
    assert_true(runs == LEDGER_GROUP || !world.suspects);
    world.suspects++;
    world.held--;
    world.beside = 0;
}

static void jobs_end(void)
{
    if (world.suspects && fixture_random(2))
        world.suspects--;
    if (world.others && fixture_random(2))
        world.others--;
    jobs = world.suspects + world.others;
}

static void round_review(void)
{
    bool more = false;
    int mark_count;

    for (int p = 0; p < PARTITIONS; p++) {
        world.logs[p].paused = world.logs[p].paused && suspects_has_enough(s, p, true);
        more = more || world.logs[p].read < world.logs[p].suspects_end;
    }
    mark_count = review(more);
    for (int i = 0; i < mark_count; i++)
        for (int64_t o = marks[i].first; o < marks[i].end; o++)
            assert_true(world.logs[marks[i].partition].runs[o] == marks[i].runs ||
                        (mark_count == 1 && marks[i].end == marks[i].first + 1));
    if (mark_count && fixture_random(4)) /* else the commit failed */
        suspects_start(s);
}

static void read_record(int32_t p)
{
    int64_t o = world.logs[p].read;

    if (o == RECORDS || world.logs[p].paused)
        return;
    world.logs[p].read++;
    if (passes(world.logs[p].runs[o])) {
        admitted(p, LEDGER_FREE);
        return;
    }
    if (world.logs[p].runs[o] != LEDGER_FREE && world.held++ == 0)
        world.beside = 0;
    keep(p, o, world.logs[p].runs[o], 10);
    world.logs[p].paused = suspects_has_enough(s, p, false);
}

/* Everything is admitted once; suspects run with nothing beside them but their group, and others do
 * not come between for longer than the header says. */
static void history(void)
{
    logs_make();
    for (int n = 0; world.admitted < PARTITIONS * RECORDS; n++) {
        const struct suspect *next;

        assert_true(n < 200000);
        now += (int64_t)fixture_random(5000);
        jobs_end();
        round_review();
        while ((next = suspects_next(s)) && fixture_random(10)) {
            admitted(next->message->partition, next->answer.runs);
            suspects_admitted(s);
        }
        for (int k = 0; k < 8 && !suspects_is_full(s); k++)
            read_record((int32_t)fixture_random(PARTITIONS));
        assert_true(world.beside <= SUSPECTS_BESIDE_MAX || !world.held);
    }
    for (int p = 0; p < PARTITIONS; p++)
        assert_int_equal(world.logs[p].admitted, RECORDS);
    jobs = 0;
    assert_int_equal(review(false), 0); /* the last round's end */
    assert_false(suspects_is_busy(s));
}

static void generated_histories_keep_the_order(void **state)
{
    (void)state;
    for (uint64_t seed = 1; seed <= 60; seed++) {
        fixture_seed(seed);
        suspects_destroy(s);
        setup(NULL);
        history();
    }
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(without_suspects_everything_passes),
        TEST(a_group_runs_with_nothing_beside_it),
        TEST(a_group_is_gathered_for_a_while),
        TEST(a_whole_group_waits_for_nothing),
        TEST(a_group_of_one_is_a_single_one),
        TEST(single_ones_run_one_after_the_other),
        TEST(slow_single_ones_let_others_between_them),
        TEST(others_between_two_rounds_are_counted),
        TEST(a_partition_has_enough),
        TEST(partitions_that_are_given_up_are_forgotten),
        TEST(generated_histories_keep_the_order),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
