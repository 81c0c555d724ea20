/* SPDX-License-Identifier: MIT
 * Ready only when nothing stands against it, alive while every thread moves, failed once for all.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <cmocka.h>

#include "worker/health.h"
#include "worker/metrics.h"

static char text[2048];

static void ready_when_no_gate_is_blocked(void **state)
{
    struct health *h = health_create(1000);

    (void)state;
    assert_false(health_ready(h, text, sizeof text));
    assert_non_null(strstr(text, "model"));
    assert_non_null(strstr(text, "control"));
    assert_non_null(strstr(text, "partition"));
    assert_non_null(strstr(text, "topics"));
    for (int gate = 0; gate < HEALTH_GATE_COUNT; gate++)
        health_clear(h, (enum health_gate)gate);
    assert_true(health_ready(h, text, sizeof text));
    assert_string_equal(text, "");
    assert_int_equal(metrics_value(METRIC_READY), 1);
    for (int gate = 0; gate < HEALTH_GATE_COUNT; gate++) {
        health_block(h, (enum health_gate)gate, "because of this one");
        assert_false(health_ready(h, text, sizeof text));
        assert_string_equal(text, "because of this one\n");
        assert_int_equal(metrics_value(METRIC_READY), 0);
        health_clear(h, (enum health_gate)gate);
    }
    health_destroy(h);
}

static void long_reasons_are_cut(void **state)
{
    static char long_reason[4000];
    struct health *h = health_create(1000);
    char small[64];

    (void)state;
    memset(long_reason, 'x', sizeof long_reason - 1);
    for (int gate = 0; gate < HEALTH_GATE_COUNT; gate++)
        health_block(h, (enum health_gate)gate, long_reason);
    memset(small, 'y', sizeof small);
    assert_false(health_ready(h, small, sizeof small));
    assert_true(strlen(small) < sizeof small);
    assert_false(health_ready(h, NULL, 0));
    health_destroy(h);
}

static void a_thread_that_stands_still_is_named(void **state)
{
    static const char *const names[] = {"intake", "prepare", "text", "engine", "settle"};
    struct health *h = health_create(1000);

    (void)state;
    assert_true(health_alive(h, 1000000, text, sizeof text)); /* none has begun */
    for (int beat = 0; beat < HEALTH_BEAT_COUNT; beat++)
        health_beat(h, (enum health_beat)beat, 5000);
    assert_true(health_alive(h, 6000, text, sizeof text));
    for (int beat = 0; beat < HEALTH_BEAT_COUNT; beat++) {
        for (int other = 0; other < HEALTH_BEAT_COUNT; other++)
            health_beat(h, (enum health_beat)other, other == beat ? 5000 : 7000);
        assert_false(health_alive(h, 7000, text, sizeof text));
        assert_non_null(strstr(text, names[beat]));
    }
    health_destroy(h);
}

static void a_thread_may_have_a_shorter_limit(void **state)
{
    struct health *h = health_create(1000);

    (void)state;
    health_limit(h, HEALTH_BEAT_SETTLE, 300);
    health_limit(h, HEALTH_BEAT_INTAKE, 5000); /* never more than the stall limit */
    health_beat(h, HEALTH_BEAT_SETTLE, 5000);
    assert_true(health_alive(h, 5300, text, sizeof text));
    assert_false(health_alive(h, 5301, text, sizeof text));
    assert_non_null(strstr(text, "settle"));
    health_beat(h, HEALTH_BEAT_SETTLE, 6000);
    health_beat(h, HEALTH_BEAT_INTAKE, 5000);
    assert_false(health_alive(h, 6001, text, sizeof text));
    assert_non_null(strstr(text, "intake"));
    health_destroy(h);
}

static void the_first_failure_stays(void **state)
{
    struct health *h = health_create(1000);

    (void)state;
    assert_false(health_failed(h, text, sizeof text));
    health_fail(h, "first %d", 1);
    health_fail(h, "second");
    assert_true(health_failed(h, text, sizeof text));
    assert_string_equal(text, "first 1");
    assert_false(health_alive(h, 0, text, sizeof text));
    assert_string_equal(text, "first 1");
    health_destroy(h);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(ready_when_no_gate_is_blocked),
        cmocka_unit_test(long_reasons_are_cut),
        cmocka_unit_test(a_thread_that_stands_still_is_named),
        cmocka_unit_test(a_thread_may_have_a_shorter_limit),
        cmocka_unit_test(the_first_failure_stays),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
