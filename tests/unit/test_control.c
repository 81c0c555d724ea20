/* SPDX-License-Identifier: MIT
 * Cancels: read to their end before anything is admitted, remembered within a bound, oldest out. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "tests/unit/worker_fixture.h"

#include "kernels/base/clock.h"
#include "schema/codec.h"
#include "tests/unit/kafka_fixture.h"
#include "worker/control.h"

static struct kafka_fixture k;
static struct error error;
static _Atomic int in_engine; /* cancels that the engine stage was told of */

bool engine_stage_cancel(struct engine_stage *stage, const uint8_t id[16])
{
    (void)stage;
    (void)id;
    atomic_fetch_add(&in_engine, 1);
    return false;
}

static _Atomic int pokes;

void settle_poke(struct settle *settle)
{
    (void)settle;
    atomic_fetch_add(&pokes, 1);
}

static int setup(void **state)
{
    (void)state;
    kafka_fixture_open(&k);
    k.pipeline.scheduler = scheduler_create(64, 1000, &error);
    k.config->cancel_max_ids = 100;
    atomic_store(&in_engine, 0);
    return k.pipeline.scheduler ? 0 : -1;
}

static int teardown(void **state)
{
    (void)state;
    scheduler_destroy(k.pipeline.scheduler);
    kafka_fixture_close(&k);
    return 0;
}

/* Ids first..first+count-1, in one go. */
static void send_many(uint64_t first, int count, const char *action)
{
    rd_kafka_t *producer = kafka_fixture_client(RD_KAFKA_PRODUCER, k.config->kafka_brokers, NULL);
    struct codec *codec = codec_open(NULL, &error);
    struct buffer buffer = {0};

    for (int i = 0; i < count; i++) {
        struct job_control record = {.action = {action, strlen(action)}, .created_at_us = 1};
        uint8_t id[16];
        char text[37];

        fixture_id(first + (uint64_t)i, id);
        uuid_format(id, text);
        record.job_id = (struct text){text, 36};
        assert_int_equal(codec_encode(codec, RECORD_JOB_CONTROL, &record, &buffer, &error), 0);
        assert_int_equal(
            rd_kafka_producev(producer, RD_KAFKA_V_TOPIC(k.config->topic_control),
                              RD_KAFKA_V_PARTITION(0), RD_KAFKA_V_VALUE(buffer.data, buffer.size),
                              RD_KAFKA_V_MSGFLAGS(RD_KAFKA_MSG_F_COPY), RD_KAFKA_V_END),
            0);
    }
    assert_int_equal(rd_kafka_flush(producer, 10000), 0);
    rd_kafka_destroy(producer);
    buffer_free(&buffer);
    codec_close(codec);
}

static void cancel(uint64_t number, const char *action)
{
    send_many(number, 1, action);
}

static void cancel_many(uint64_t first, int count)
{
    send_many(first, count, "cancel");
}

static struct control *start(void)
{
    struct control *control = control_create(&k.pipeline, &error);

    assert_non_null(control);
    if (control_start(control, &error))
        fail_msg("%s", error.message);
    return control;
}

static void stop(struct control *control)
{
    control_stop(control);
    control_destroy(control);
}

static bool is_cancelled(struct control *control, uint64_t number)
{
    uint8_t id[16];

    fixture_id(number, id);
    return control_is_cancelled(control, id);
}

static void catch_up(struct control *control)
{
    for (int i = 0; i < 3000 && !control_caught_up(control); i++)
        usleep(10000);
    assert_true(control_caught_up(control));
}

static void wait_for(struct control *control, uint64_t number)
{
    for (int i = 0; i < 1000 && !is_cancelled(control, number); i++)
        usleep(10000);
    assert_true(is_cancelled(control, number));
}

static bool control_blocks(void)
{
    char reasons[2048];

    health_ready(k.pipeline.health, reasons, sizeof reasons);
    return strstr(reasons, "control") != NULL;
}

static void cancels_sent_before_the_start_count(void **state)
{
    struct control *control;

    (void)state;
    cancel(1, "cancel");
    cancel(2, "pause"); /* no such action */
    kafka_fixture_produce(&k, k.config->topic_control, 0, "junk", 4);
    cancel(3, "cancel");
    rd_kafka_mock_broker_set_down(k.cluster, 1);
    control = start();
    assert_true(control_blocks());
    rd_kafka_mock_broker_set_up(k.cluster, 1);
    catch_up(control); /* the last of them has been read then */
    assert_true(is_cancelled(control, 1));
    assert_false(is_cancelled(control, 2));
    assert_true(is_cancelled(control, 3));
    assert_false(control_blocks());
    stop(control);
}

static void an_empty_topic_is_read_at_once(void **state)
{
    struct control *control = start();

    (void)state;
    catch_up(control);
    assert_false(is_cancelled(control, 1));
    stop(control);
}

static void not_ready_while_the_brokers_do_not_answer(void **state)
{
    struct control *control;

    (void)state;
    rd_kafka_mock_broker_set_down(k.cluster, 1);
    control = start();
    usleep(500000);
    assert_false(control_caught_up(control));
    assert_true(control_blocks());
    rd_kafka_mock_broker_set_up(k.cluster, 1);
    catch_up(control);
    stop(control);
}

static void a_queued_job_is_cancelled_where_it_is(void **state)
{
    struct control *control = start();
    struct job *queued = fixture_job(0, 0, 1, 7);
    struct job_list out;

    (void)state;
    job_list_init(&out);
    catch_up(control);
    scheduler_push(k.pipeline.scheduler, queued, 0);
    cancel(7, "cancel");
    wait_for(control, 7);
    for (int i = 0; i < 500 && !out.count; i++) {
        scheduler_sweep(k.pipeline.scheduler, 0, &out);
        usleep(10000);
    }
    assert_ptr_equal(out.head, queued);
    cancel(8, "cancel"); /* not queued: perhaps it runs */
    wait_for(control, 8);
    for (int i = 0; i < 500 && atomic_load(&in_engine) < 2; i++)
        usleep(10000);
    assert_int_equal(atomic_load(&in_engine), 2); /* of the first, a replay may run */
    fixture_jobs_destroy(&out);
    stop(control);
}

static void the_oldest_go_and_are_counted(void **state)
{
    uint64_t evicted = metrics_value(METRIC_CANCELS_EVICTED);
    struct control *control;

    (void)state;
    cancel_many(0, 100);
    cancel_many(50, 50); /* known: they take no second place */
    cancel_many(100, 60);
    cancel_many(1000, 700); /* round the ring many times */
    cancel_many(2000, 40);
    control = start();
    catch_up(control);
    assert_int_equal(metrics_value(METRIC_CANCELS_EVICTED) - evicted, 800);
    for (uint64_t number = 0; number < 160; number++)
        assert_false(is_cancelled(control, number));
    for (uint64_t number = 1000; number < 1640; number++)
        assert_false(is_cancelled(control, number));
    for (uint64_t number = 1640; number < 1700; number++)
        assert_true(is_cancelled(control, number));
    for (uint64_t number = 2000; number < 2040; number++)
        assert_true(is_cancelled(control, number));
    stop(control);
}

static void what_could_not_be_fetched_is_fetched_again(void **state)
{
    struct control *control = start();

    (void)state;
    catch_up(control);
    rd_kafka_mock_push_request_errors(k.cluster, API_FETCH, 1, RD_KAFKA_RESP_ERR_UNKNOWN);
    cancel(9, "cancel");
    wait_for(control, 9);
    assert_false(health_failed(k.pipeline.health, error.message, sizeof error.message));
    stop(control);
}

/* Waits until the cancels before `at` are known; returns how long that took, ms. */
static int64_t wait_known(struct control *control, int64_t at)
{
    int64_t since_us = clock_mono_us();

    while (!control_knows(control, at) && clock_mono_us() - since_us < 10000000)
        usleep(500);
    assert_true(control_knows(control, at));
    return (clock_mono_us() - since_us) / 1000;
}

/* Without any cancel: what is asked is the end of the log, and nobody waits for a record. */
static void what_was_sent_before_a_request_is_known_soon(void **state)
{
    struct control *control = start();
    int quick = 0;

    (void)state;
    catch_up(control);
    for (int i = 0; i < 20; i++) {
        int64_t at = clock_mono_us();

        assert_false(control_knows(control, at));
        atomic_store(&pokes, 0);
        control_look(control, at);
        quick += wait_known(control, at) < 40;
        for (int n = 0; n < 10000 && !atomic_load(&pokes); n++)
            usleep(1000);
        assert_true(atomic_load(&pokes) >= 1); /* settle waits for it */
    }
    /* Not behind a fetch that waits for 100 ms; a busy machine holds up some of them. */
    assert_true(quick >= 10);
    stop(control);
}

/* The cancel is in the log, but this reader is given it late. */
static void a_cancel_that_is_read_late_counts(void **state)
{
    struct control *control = start();

    (void)state;
    catch_up(control);
    for (uint64_t number = 20; number < 25; number++) {
        int64_t at;

        rd_kafka_mock_push_request_errors(k.cluster, API_FETCH, 2, RD_KAFKA_RESP_ERR_UNKNOWN,
                                          RD_KAFKA_RESP_ERR_UNKNOWN);
        usleep(150000); /* a fetch waits for 100 ms; now it is refused, and the next comes later */
        cancel(number, "cancel");
        at = clock_mono_us();
        control_look(control, at);
        wait_known(control, at);
        assert_true(is_cancelled(control, number));
    }
    stop(control);
}

static void results_that_wait_for_cancels_make_the_worker_unready(void **state)
{
    struct control *control = start();
    int64_t at;

    (void)state;
    catch_up(control);
    assert_false(control_blocks());
    rd_kafka_mock_broker_set_down(k.cluster, 1);
    at = clock_mono_us();
    control_look(control, at);
    for (int i = 0; i < 1000 && !control_blocks(); i++)
        usleep(10000);
    assert_true(control_blocks());
    assert_false(control_knows(control, at));
    rd_kafka_mock_broker_set_up(k.cluster, 1);
    wait_known(control, at);
    assert_false(control_blocks());
    stop(control);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(cancels_sent_before_the_start_count),
        TEST(an_empty_topic_is_read_at_once),
        TEST(not_ready_while_the_brokers_do_not_answer),
        TEST(a_queued_job_is_cancelled_where_it_is),
        TEST(the_oldest_go_and_are_counted),
        TEST(what_could_not_be_fetched_is_fetched_again),
        TEST(what_was_sent_before_a_request_is_known_soon),
        TEST(a_cancel_that_is_read_late_counts),
        TEST(results_that_wait_for_cancels_make_the_worker_unready),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
