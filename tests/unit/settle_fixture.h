/* SPDX-License-Identifier: MIT
 *
 * settle_fixture: a settle stage on a mock cluster, a double of what control knows, and jobs with
 * an outcome. One test thread; setup() and teardown() own all of it. Include it after
 * kafka_fixture.h.
 */
#ifndef PGPT_TESTS_SETTLE_FIXTURE_H
#define PGPT_TESTS_SETTLE_FIXTURE_H

#include "worker/settle.h"

static struct kafka_fixture k;
static struct settle *settle;
static struct error error;
static uint64_t before[METRIC_COUNT];
static _Atomic bool cancels_known = true;
static _Atomic int64_t cancelled = -1; /* the one job that control knows a cancel of, by number */

bool control_knows(struct control *control, int64_t read_mono_us)
{
    (void)control;
    (void)read_mono_us;
    return atomic_load(&cancels_known);
}

bool control_is_cancelled(struct control *control, const uint8_t id[16])
{
    uint8_t known[16];

    (void)control;
    fixture_id((uint64_t)atomic_load(&cancelled), known);
    return atomic_load(&cancelled) >= 0 && !memcmp(known, id, 16);
}

static void ask(void)
{
    for (int m = 0; m < METRIC_COUNT; m++)
        before[m] = metrics_value((enum metric)m);
}

static int grown(enum metric metric)
{
    return (int)(metrics_value(metric) - before[metric]);
}

static int setup(void **state)
{
    static const struct job_identity identity = {"prometheus-mini", "v1", "engine-1", "worker-1"};

    (void)state;
    job_identity_set(&identity);
    kafka_fixture_open(&k);
    settle = settle_create(&k.pipeline, &error);
    assert_non_null(settle);
    if (settle_start(settle, &error))
        fail_msg("%s", error.message);
    for (int32_t p = 0; p < KAFKA_FIXTURE_PARTITIONS; p++)
        kafka_fixture_take(&k, p);
    ask();
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    settle_stop(settle, 5000);
    settle_destroy(settle);
    kafka_fixture_close(&k);
    assert_int_equal(job_alive(), 0);
    return 0;
}

/* A job that was read and has an outcome. */
static struct job *outcome_of(int32_t partition, int64_t offset, enum job_outcome outcome)
{
    struct assignment_admission answer;
    struct job *job;

    assert_true(
        assignment_begin(k.pipeline.assignment, partition, offset, LEDGER_SPAN, 3, &answer));
    job = fixture_job(partition, offset, answer.epoch, (uint64_t)(partition * 1000 + offset));
    if (outcome == JOB_DUPLICATE || outcome == JOB_DEAD_LETTER)
        job->outcome = outcome;
    else
        job_finish(job, outcome, outcome == JOB_COMPLETED ? NULL : "invalid", "because", 5000000);
    return job;
}

/* No more than so many jobs are left. */
static bool falls_to(size_t depth, int ms)
{
    int64_t until = clock_mono_us() + (int64_t)ms * 1000;

    while (settle_depth(settle) > depth && clock_mono_us() < until)
        usleep(2000);
    return settle_depth(settle) <= depth;
}

static bool settles_within(int ms)
{
    return falls_to(0, ms);
}

static int results(int32_t partition)
{
    return kafka_fixture_read(&k, k.config->topic_results, partition, NULL, NULL);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

#endif
