/* SPDX-License-Identifier: MIT
 *
 * Who else runs which engine: what other owners committed, and brokers that do not answer.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "tests/unit/worker_fixture.h"

#include "tests/unit/kafka_fixture.h"
#include "worker/engines.h"
#include "worker/takeover.h"

static struct kafka_fixture k;
static struct error error;

static int setup(void **state)
{
    static const struct job_identity identity = {"prometheus-mini", "v1", "e1", "worker-1"};

    (void)state;
    job_identity_set(&identity);
    kafka_fixture_open(&k);
    metrics_set(METRIC_ENGINE_IDS_MIXED, 0);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    kafka_fixture_close(&k);
    return 0;
}

/* As an owner of the partition leaves it. */
static void commit(int32_t partition, const char *engine_id, bool open)
{
    static _Atomic bool draining;
    struct takeover *takeover = takeover_create(&k.pipeline, &draining, &error);
    struct ledger ledger;

    assert_non_null(takeover);
    ledger_init(&ledger, 0, 16);
    ledger.open = open;
    strcpy(ledger.engine_id, engine_id); /* hexadecimal */
    if (takeover_commit(takeover, k.consumer, &partition, &ledger, 1, &error))
        fail_msg("%s", error.message);
    takeover_destroy(takeover);
}

static bool mixed_within(int ms)
{
    struct engines *engines = engines_create(&k.pipeline, &error);
    int64_t until = clock_mono_us() + (int64_t)ms * 1000;
    bool mixed;

    assert_non_null(engines);
    while (!(mixed = metrics_value(METRIC_ENGINE_IDS_MIXED) == 1) && clock_mono_us() < until)
        usleep(5000);
    engines_destroy(engines);
    return mixed;
}

static void another_engine_is_seen(void **state)
{
    (void)state;
    commit(0, "e1", true);
    commit(2, "e2", true);
    assert_true(mixed_within(30000));
}

static void the_same_engine_and_one_that_left_are_not(void **state)
{
    (void)state;
    commit(0, "e1", true);
    commit(1, "e2", false); /* gave its partition up */
    assert_false(mixed_within(1500));
}

static void brokers_that_do_not_answer_keep_nobody(void **state)
{
    int64_t begun = clock_mono_us();
    struct engines *engines;

    (void)state;
    rd_kafka_mock_broker_set_down(k.cluster, 1);
    engines = engines_create(&k.pipeline, &error);
    assert_non_null(engines);
    assert_in_range(clock_mono_us() - begun, 0,
                    900000); /* less than a call: it asks in its thread */
    usleep(100000);
    engines_destroy(engines);
    assert_in_range(clock_mono_us() - begun, 0, 12000000); /* two calls of a second */
    rd_kafka_mock_broker_set_up(k.cluster, 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(another_engine_is_seen, setup, teardown),
        cmocka_unit_test_setup_teardown(the_same_engine_and_one_that_left_are_not, setup, teardown),
        cmocka_unit_test_setup_teardown(brokers_that_do_not_answer_keep_nobody, setup, teardown)};

    return cmocka_run_group_tests(tests, NULL, NULL);
}
