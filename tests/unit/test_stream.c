/* SPDX-License-Identifier: MIT
 *
 * The producer of chunks against a mock cluster: what is acknowledged, what is refused, and what
 * happens when nobody takes anything.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "tests/unit/worker_fixture.h"

#include "tests/unit/kafka_fixture.h"
#include "worker/settle.h"
#include "worker/stream.h"

static struct kafka_fixture k;
static struct stream *stream;
static struct job *jobs[KAFKA_FIXTURE_PARTITIONS];
static struct error error;

static int setup(void **state)
{
    static const struct job_identity identity = {"prometheus-mini", "v1", "e1", "worker-1"};

    (void)state;
    job_identity_set(&identity);
    kafka_fixture_open(&k);
    k.config->worker_drain_ms = 300;
    k.pipeline.settle = settle_create(&k.pipeline, &error); /* is poked; has no thread */
    stream = stream_create(&k.pipeline, &error);
    assert_non_null(k.pipeline.settle);
    assert_non_null(stream);
    if (stream_start(stream, &error))
        fail_msg("%s", error.message);
    for (int32_t p = 0; p < KAFKA_FIXTURE_PARTITIONS; p++)
        jobs[p] = fixture_job(p, 0, 1, (uint64_t)p);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    stream_stop(stream);
    stream_destroy(stream);
    settle_destroy(k.pipeline.settle);
    for (int32_t p = 0; p < KAFKA_FIXTURE_PARTITIONS; p++)
        job_destroy(jobs[p]);
    kafka_fixture_close(&k);
    return 0;
}

static enum stream_status send_chunk(struct job *job)
{
    static const int32_t tokens[] = {7, 8};
    struct generation_chunk chunk = {.job_id = {job->job_id, 36},
                                     .token_ids = tokens,
                                     .token_count = 2,
                                     .text = {"text", 4},
                                     .engine_id = {"e1", 2}};

    return stream_chunk(stream, job, &chunk);
}

static bool acknowledged_within(const struct job *job, int ms)
{
    for (int i = 0; i < ms / 5 && atomic_load(&job->chunks_unacked); i++)
        usleep(5000);
    return atomic_load(&job->chunks_unacked) == 0;
}

static bool failed_within(char reason[512], int ms)
{
    for (int i = 0; i < ms / 5 && !health_failed(k.pipeline.health, reason, 512); i++)
        usleep(5000);
    return health_failed(k.pipeline.health, reason, 512);
}

static void see_key(const rd_kafka_message_t *record, void *user)
{
    assert_int_equal(record->key_len, 36);
    assert_memory_equal(record->key, user, 36);
}

static void chunks_are_sent_and_acknowledged(void **state)
{
    uint64_t before = metrics_value(METRIC_CHUNKS_PRODUCED);

    (void)state;
    for (int i = 0; i < 10; i++)
        assert_int_equal(send_chunk(jobs[2]), STREAM_SENT);
    assert_true(acknowledged_within(jobs[2], 10000));
    assert_int_equal(metrics_value(METRIC_CHUNKS_PRODUCED) - before, 10);
    assert_int_equal(kafka_fixture_read(&k, k.config->topic_chunks, 2, see_key, jobs[2]->job_id),
                     10);
}

static void a_lost_answer_is_asked_for_again(void **state)
{
    (void)state;
    rd_kafka_mock_push_request_errors(
        k.cluster, API_PRODUCE, 3, RD_KAFKA_RESP_ERR_NOT_ENOUGH_REPLICAS,
        RD_KAFKA_RESP_ERR__TRANSPORT, RD_KAFKA_RESP_ERR_NOT_LEADER_FOR_PARTITION);
    assert_int_equal(send_chunk(jobs[0]), STREAM_SENT);
    assert_true(acknowledged_within(jobs[0], 20000));
    assert_int_equal(kafka_fixture_read(&k, k.config->topic_chunks, 0, NULL, NULL), 1);
}

/* Its job could never settle. */
static void a_refused_chunk_ends_the_worker(void **state)
{
    char reason[512] = "";

    (void)state;
    rd_kafka_mock_push_request_errors(k.cluster, API_PRODUCE, 1,
                                      RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED);
    assert_int_equal(send_chunk(jobs[1]), STREAM_SENT);
    assert_true(failed_within(reason, 10000));
    assert_non_null(strstr(reason, k.config->topic_chunks));
    assert_int_equal(atomic_load(&jobs[1]->chunks_unacked), 1);
}

static int events(void)
{
    return kafka_fixture_read(&k, k.config->topic_events, 1, NULL, NULL);
}

/* Later ones arrive, though perhaps not one that the client had when it learnt of the refusal. */
static void a_refused_event_does_not(void **state)
{
    char reason[512] = "";
    int later = 0;

    (void)state;
    rd_kafka_mock_start_request_tracking(k.cluster);
    rd_kafka_mock_push_request_errors(k.cluster, API_PRODUCE, 1,
                                      RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED);
    stream_event(stream, jobs[1], "started", 1);
    kafka_fixture_wait_asked(&k, API_PRODUCE);
    assert_false(failed_within(reason, 500));
    rd_kafka_mock_stop_request_tracking(k.cluster);
    while (later < 200 && !events()) {
        stream_event(stream, jobs[1], "started", 2 + later++);
        usleep(50000);
    }
    assert_in_range(events(), 1, later); /* the first one is not among them */
    assert_int_equal(send_chunk(jobs[1]), STREAM_SENT);
    assert_true(acknowledged_within(jobs[1], 10000));
    assert_false(failed_within(reason, 0));
}

/* It was just added: the metadata will tell. */
static void a_partition_that_is_not_known_yet_waits(void **state)
{
    struct job *job = fixture_job(77, 0, 1, 77);

    (void)state;
    assert_int_equal(send_chunk(jobs[0]), STREAM_SENT); /* the metadata are there then */
    assert_true(acknowledged_within(jobs[0], 10000));
    assert_int_equal(send_chunk(job), STREAM_LATER);
    assert_int_equal(atomic_load(&job->chunks_unacked), 0);
    job_destroy(job);
}

/* Nobody takes chunks: a partition holds a quarter of the room, all of them what there is. */
static void room_is_bounded(void **state)
{
    int sent[KAFKA_FIXTURE_PARTITIONS] = {0};
    char reason[512] = "";

    (void)state;
    assert_int_equal(send_chunk(jobs[0]), STREAM_SENT);
    assert_true(acknowledged_within(jobs[0], 10000));
    rd_kafka_mock_broker_set_down(k.cluster, 1);
    for (int32_t p = 0; p < KAFKA_FIXTURE_PARTITIONS; p++)
        while (sent[p] < 100001 && send_chunk(jobs[p]) == STREAM_SENT)
            sent[p]++;
    for (int32_t p = 0; p < KAFKA_FIXTURE_PARTITIONS; p++)
        assert_int_equal(sent[p], 25000);
    assert_int_equal(send_chunk(jobs[1]), STREAM_LATER);
    stream_event(stream, jobs[1], "started", 1); /* dropped: the client's queue is full */
    stream_stop(stream);
    assert_int_equal(atomic_load(&jobs[1]->chunks_unacked), 25000); /* not settled */
    assert_false(failed_within(reason, 10));
    rd_kafka_mock_broker_set_up(k.cluster, 1);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(chunks_are_sent_and_acknowledged),        TEST(a_lost_answer_is_asked_for_again),
        TEST(a_refused_chunk_ends_the_worker),         TEST(a_refused_event_does_not),
        TEST(a_partition_that_is_not_known_yet_waits), TEST(room_is_bounded)};

    return cmocka_run_group_tests(tests, NULL, NULL);
}
