/* SPDX-License-Identifier: MIT
 *
 * Calls of librdkafka, of the allocator and for threads that fail where a mock cluster cannot be
 * made to: what each stage does then. tests/unit/errors.txt lists every call and its test.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "tests/unit/worker_fixture.h"

#include "tests/unit/kafka_fixture.h"
#include "tests/worker/failing.h"
#include "worker/control.h"
#include "worker/dead_letter.h"
#include "worker/engines.h"
#include "worker/lag.h"
#include "worker/offsets_call.h"
#include "worker/settle.h"
#include "worker/stream.h"
#include "worker/takeover.h"
#include "worker/topics.h"

static struct kafka_fixture k;
static struct error error;
static _Atomic bool draining;
static const int32_t zero = 0;

static int setup(void **state)
{
    static const struct job_identity identity = {"prometheus-mini", "v1", "e1", "worker-1"};

    (void)state;
    job_identity_set(&identity);
    kafka_fixture_open(&k);
    k.pipeline.scheduler = scheduler_create(64, 1000, &error);
    k.pipeline.settle = settle_create(&k.pipeline, &error);
    k.pipeline.control =
        control_create(&k.pipeline, &error); /* knows of all that fixture's jobs ask */
    assert_non_null(k.pipeline.scheduler);
    assert_non_null(k.pipeline.settle);
    assert_non_null(k.pipeline.control);
    *error.message = '\0';
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    failing_clear();
    control_destroy(k.pipeline.control);
    settle_destroy(k.pipeline.settle);
    scheduler_destroy(k.pipeline.scheduler);
    kafka_fixture_close(&k);
    assert_int_equal(job_alive(), 0);
    return 0;
}

static bool failed(void)
{
    char reason[512];

    return health_failed(k.pipeline.health, reason, sizeof reason);
}

static void says(const char *words)
{
    if (!strstr(error.message, words))
        fail_msg("\"%s\" does not say \"%s\"", error.message, words);
}

/* ---- clients that cannot be made ---- */

static int start_control(void)
{
    struct control *control = control_create(&k.pipeline, &error);
    int status = control_start(control, &error);

    control_stop(control);
    control_destroy(control);
    return status;
}

static int start_stream(void)
{
    struct stream *stream = stream_create(&k.pipeline, &error);
    int status = stream_start(stream, &error);

    stream_stop(stream);
    stream_destroy(stream);
    return status;
}

static int start_engines(void)
{
    struct engines *engines = engines_create(&k.pipeline, &error);

    engines_destroy(engines);
    return engines ? 0 : -1;
}

static int start_settle(void)
{
    struct settle *settle = settle_create(&k.pipeline, &error);
    int status = settle_start(settle, &error);
    struct error reason;

    if (health_failed(k.pipeline.health, reason.message, sizeof reason.message))
        error = reason; /* as main says it */
    settle_stop(settle, 100);
    settle_destroy(settle);
    return status;
}

static int take_over(void)
{
    struct takeover *takeover = takeover_create(&k.pipeline, &draining, &error);
    int64_t offset;
    int status = takeover_run(takeover, k.consumer, &zero, &offset, 1, &error);

    takeover_destroy(takeover);
    return status;
}

static int (*const starts[])(void) = {start_control, start_stream, start_engines, start_settle,
                                      take_over};

static void refuses(struct config_kafka_property *own, size_t count, const char *words)
{
    struct config_kafka_property *kept = k.config->kafka;
    size_t kept_count = k.config->kafka_count;

    for (size_t i = 0; i < sizeof starts / sizeof *starts; i++) {
        k.config->kafka = own;
        k.config->kafka_count = count;
        *error.message = '\0';
        assert_int_equal(starts[i](), -1);
        k.config->kafka = kept;
        k.config->kafka_count = kept_count;
        says(words);
    }
}

static void a_client_with_an_unknown_setting_is_not_started(void **state)
{
    char unknown[] = "no.such.setting", one[] = "1";
    struct config_kafka_property own[] = {{unknown, one}};

    (void)state;
    refuses(own, 1, "kafka.no.such.setting");
}

static void a_client_that_cannot_be_made_is_not_started(void **state)
{
    char protocol[] = "security.protocol", ssl[] = "ssl";
    char authority[] = "ssl.ca.location", nowhere[] = "/no/such/file";
    struct config_kafka_property own[] = {{protocol, ssl}, {authority, nowhere}};

    (void)state;
    refuses(own, 2, "Kafka client:");
}

static void a_stage_without_a_thread_is_not_started(void **state)
{
    (void)state;
    for (size_t i = 0; i < 4; i++) {
        failing_set("pthread_create", 1, 1);
        assert_int_equal(starts[i](), -1);
        assert_int_equal(failing_clear(), 1);
        says("thread");
    }
}

/* ---- control, stream, lag, engines, topics ---- */

static void control_without_its_partition_is_not_started(void **state)
{
    (void)state;
    failing_set("rd_kafka_assign", 1, 1);
    assert_int_equal(start_control(), -1);
    assert_int_equal(failing_clear(), 1);
    says("control:");
}

static void the_end_of_control_is_asked_until_it_is_known(void **state)
{
    struct control *control = control_create(&k.pipeline, &error);

    (void)state;
    failing_set_code("rd_kafka_query_watermark_offsets", 1, 3, RD_KAFKA_RESP_ERR__TIMED_OUT);
    assert_int_equal(control_start(control, &error), 0);
    for (int i = 0; i < 2000 && failing_hits() < 3; i++) {
        bool caught_up = control_caught_up(control);

        assert_true(!caught_up || failing_hits() == 3);
        usleep(10000);
    }
    assert_int_equal(failing_hits(), 3);
    for (int i = 0; i < 2000 && !control_caught_up(control); i++)
        usleep(10000);
    assert_true(control_caught_up(control));
    control_stop(control);
    control_destroy(control);
}

static void a_topic_that_cannot_be_had_starts_no_stream(void **state)
{
    (void)state;
    for (int at = 1; at <= 2; at++) {
        failing_set("rd_kafka_topic_new", at, 1);
        assert_int_equal(start_stream(), -1);
        assert_int_equal(failing_clear(), 1);
        says(at == 1 ? k.config->topic_chunks : k.config->topic_events);
    }
}

static enum stream_status chunk_status(struct stream *stream, struct job *job,
                                       rd_kafka_resp_err_t code)
{
    static const int32_t tokens[] = {7};
    const struct generation_chunk chunk = {.job_id = {job->job_id, 36},
                                           .token_ids = tokens,
                                           .token_count = 1,
                                           .text = {"text", 4},
                                           .engine_id = {"e1", 2}};
    enum stream_status status;

    failing_set_code("rd_kafka_produceva", 1, 1, code);
    status = stream_chunk(stream, job, &chunk);
    assert_int_equal(failing_clear(), 1);
    assert_int_equal(atomic_load(&job->chunks_unacked), 0);
    return status;
}

static void a_chunk_waits_or_ends_the_worker(void **state)
{
    struct stream *stream = stream_create(&k.pipeline, &error);
    struct job *job = fixture_job(0, 0, 1, 1);

    (void)state;
    job->traceparent = (struct text){"00-trace", 8};
    assert_int_equal(stream_start(stream, &error), 0);
    assert_int_equal(chunk_status(stream, job, RD_KAFKA_RESP_ERR__QUEUE_FULL), STREAM_FULL);
    assert_int_equal(chunk_status(stream, job, RD_KAFKA_RESP_ERR__UNKNOWN_PARTITION), STREAM_LATER);
    assert_false(failed());
    failing_set("rd_kafka_produceva", 1, 1);
    stream_event(stream, job, "accepted", 1); /* only a courtesy */
    assert_int_equal(failing_clear(), 1);
    assert_false(failed());
    assert_int_equal(chunk_status(stream, job, RD_KAFKA_RESP_ERR__FATAL), STREAM_FAILED);
    assert_true(failed());
    stream_stop(stream);
    stream_destroy(stream);
    job_destroy(job);
}

static void chunks_that_are_not_delivered_do_not_hold_the_end(void **state)
{
    static const struct generation_chunk chunk = {.engine_id = {"e1", 2}};
    struct stream *stream = stream_create(&k.pipeline, &error);
    struct job *job = fixture_job(0, 0, 1, 1);
    int64_t begun;

    (void)state;
    k.config->worker_drain_ms = 300;
    assert_int_equal(stream_start(stream, &error), 0);
    rd_kafka_mock_broker_set_down(k.cluster, 1);
    assert_int_equal(stream_chunk(stream, job, &chunk), STREAM_SENT);
    begun = clock_mono_us();
    stream_stop(stream);
    assert_in_range(clock_mono_us() - begun, 250000, 3000000);
    stream_destroy(stream);
    assert_false(failed()); /* the job is not settled, and runs elsewhere */
    job_destroy(job);
    rd_kafka_mock_broker_set_up(k.cluster, 1);
}

static void a_chunk_goes_without_trace_headers_that_no_memory_is_left_for(void **state)
{
    static const char *const calls[] = {"rd_kafka_headers_new", "rd_kafka_header_add"};

    (void)state;
    for (size_t i = 0; i < 2; i++) {
        rd_kafka_headers_t *headers;

        failing_set(calls[i], 1, 1);
        headers = kafka_client_trace_headers((struct text){"00-trace", 8}, (struct text){"s", 1});
        assert_int_equal(failing_clear(), 1);
        if (headers)
            rd_kafka_headers_destroy(headers);
    }
}

static void a_lag_that_is_not_told_stays(void **state)
{
    struct lag *lag = lag_create(&k.pipeline, k.consumer, &error);
    const uint8_t assigned[] = {1};
    int64_t now = clock_mono_us();

    (void)state;
    metrics_set(METRIC_REQUESTS_LAG, 7);
    failing_set("rd_kafka_AdminOptions_set_isolation_level", 1, 1); /* then of all records */
    rd_kafka_mock_broker_set_down(k.cluster, 1);
    k.config->kafka_call_timeout_ms = 500;
    lag_review(lag, assigned, 1, now);
    assert_int_equal(failing_clear(), 1);
    usleep(300000);
    lag_review(lag, assigned, 1, now += 1000);
    assert_int_equal(metrics_value(METRIC_REQUESTS_LAG), 7);
    rd_kafka_mock_broker_set_up(k.cluster, 1);
    kafka_fixture_take(&k, 0);
    for (int i = 0; i < 1000 && metrics_value(METRIC_REQUESTS_LAG); i++) {
        lag_review(lag, assigned, 1, now += 1000000);
        usleep(10000);
    }
    assert_int_equal(metrics_value(METRIC_REQUESTS_LAG), 0);
    lag_destroy(lag);
}

static void engines_that_are_not_told_are_asked_for_again(void **state)
{
    static const char *const calls[] = {"rd_kafka_metadata", "rd_kafka_committed"};

    (void)state;
    metrics_set(METRIC_ENGINE_IDS_MIXED, 1);
    for (size_t i = 0; i < 2; i++) {
        struct engines *engines;

        failing_set(calls[i], 1, 1);
        engines = engines_create(&k.pipeline, &error);
        for (int j = 0; j < 500 && !failing_hits(); j++)
            usleep(10000);
        engines_destroy(engines);
        assert_int_equal(failing_clear(), 1);
        assert_int_equal(metrics_value(METRIC_ENGINE_IDS_MIXED), 1); /* as it was */
    }
    start_engines();
    metrics_set(METRIC_ENGINE_IDS_MIXED, 0);
}

static void a_topic_that_does_not_answer_is_named(void **state)
{
    static const char *const calls[] = {"rd_kafka_metadata", "rd_kafka_topic_new"};

    (void)state;
    for (size_t i = 0; i < 2; i++) {
        failing_set(calls[i], 3, 1);
        assert_int_equal(topics_outputs(k.consumer, k.config, &error), -1);
        assert_int_equal(failing_clear(), 1);
        says(k.config->topic_results);
    }
    assert_int_equal(topics_outputs(k.consumer, k.config, &error), KAFKA_FIXTURE_PARTITIONS);
}

/* ---- takeover ---- */

static void committed_ledger(struct takeover *takeover, struct ledger *ledger)
{
    struct assignment_admission answer;

    (void)takeover;
    assert_true(assignment_begin(k.pipeline.assignment, 0, 0, 64, 3, &answer));
    assert_int_equal(answer.attempt, 1); /* no try looked like a death */
    assert_true(assignment_give_up(k.pipeline.assignment, 0, 0, ledger));
}

/* One call of a takeover fails; the next try takes the partition, and nothing looks like a death.
 */
static void takeover_fails_once(const char *call, int at, const char *words)
{
    struct takeover *takeover = takeover_create(&k.pipeline, &draining, &error);
    struct ledger ledger;
    int64_t offset = -1;

    failing_set_code(call, at, 1, RD_KAFKA_RESP_ERR__TIMED_OUT);
    assert_int_equal(takeover_run(takeover, k.consumer, &zero, &offset, 1, &error), words ? -1 : 0);
    if (failing_clear() != 1)
        fail_msg("%s: call %d was not made", call, at);
    if (words) {
        says(words);
        assert_int_equal(takeover_run(takeover, k.consumer, &zero, &offset, 1, &error), 0);
    }
    assert_int_equal(offset, 0);
    committed_ledger(takeover, &ledger);
    ledger_give_up(&ledger);
    assert_int_equal(takeover_commit(takeover, k.consumer, &zero, &ledger, 1, &error), 0);
    takeover_destroy(takeover);
}

static void a_takeover_is_tried_again_whatever_fails(void **state)
{
    (void)state;
    for (int i = 0; i < 10; i++)
        kafka_fixture_produce(&k, k.config->topic_requests, 0, "record", 6);
    takeover_fails_once("rd_kafka_query_watermark_offsets", 1, "first offset cannot be read");
    takeover_fails_once("rd_kafka_committed", 1, "committed offsets cannot be read");
    takeover_fails_once("rd_kafka_offsets_for_times", 1, NULL); /* then all of the topic */
    takeover_fails_once("rd_kafka_assign", 1, "index topic cannot be read");
    takeover_fails_once("rd_kafka_commit_queue", 1, "committing 1 ledgers");
    takeover_fails_once("calloc", 1, "no memory");
    takeover_fails_once("calloc", 2, "no memory");
    takeover_fails_once("calloc", 3, "no memory"); /* a window */
    takeover_fails_once("malloc", 1, "no memory to commit a ledger");
    takeover_fails_once("malloc", 2, "no memory to own partition 0"); /* after the mark's commit */
}

/* The end is asked for only where a death was left. */
static void the_end_of_a_dead_owners_partition_must_be_known(void **state)
{
    struct takeover *takeover = takeover_create(&k.pipeline, &draining, &error);
    int64_t offset;

    (void)state;
    assert_int_equal(takeover_run(takeover, k.consumer, &zero, &offset, 1, &error), 0);
    takeover_forget(takeover, 0);
    failing_set("rd_kafka_query_watermark_offsets", 1, 1);
    assert_int_equal(takeover_run(takeover, k.consumer, &zero, &offset, 1, &error), -1);
    assert_int_equal(failing_clear(), 1);
    says("its end cannot be read");
    assert_int_equal(takeover_run(takeover, k.consumer, &zero, &offset, 1, &error), 0);
    takeover_destroy(takeover);
}

/* ---- settle ---- */

static struct settle *settle;

static struct job *outcome_of(int64_t offset, enum job_outcome outcome)
{
    struct assignment_admission answer;
    struct job *job;

    assert_true(assignment_begin(k.pipeline.assignment, 0, offset, LEDGER_SPAN, 3, &answer));
    job = fixture_job(0, offset, answer.epoch, (uint64_t)offset);
    job->traceparent = (struct text){"00-trace", 8};
    if (outcome == JOB_DEAD_LETTER) {
        job->outcome = outcome;
        job->dead_letter.error_class = "why";
    } else {
        job_finish(job, outcome, NULL, NULL, 5000000);
    }
    return job;
}

/* One call of a transaction fails; its jobs are settled and counted once all the same. */
static void settles_though(const char *call, int at, rd_kafka_resp_err_t code, int64_t offset)
{
    uint64_t before = metrics_value(METRIC_JOBS_COMPLETED);
    int64_t until = clock_mono_us() + 20000000;

    failing_set_code(call, at, 1, code);
    settle_push(settle, outcome_of(offset, JOB_COMPLETED));
    while (settle_depth(settle) && clock_mono_us() < until)
        usleep(2000);
    if (settle_depth(settle) || failing_clear() != 1)
        fail_msg("%s, call %d: not settled, or not called", call, at);
    assert_int_equal(metrics_value(METRIC_JOBS_COMPLETED) - before, 1);
    assert_int_equal(kafka_fixture_ask(&k, 0, offset), LEDGER_DONE);
    assert_false(failed());
}

static void a_transaction_is_tried_again_whatever_fails(void **state)
{
    (void)state;
    kafka_fixture_take(&k, 0);
    settle = settle_create(&k.pipeline, &error);
    assert_int_equal(settle_start(settle, &error), 0);
    settles_though("pthread_create", 1, 0, 0); /* the offsets' thread, at the first transaction */
    settles_though("rd_kafka_begin_transaction", 1, RD_KAFKA_RESP_ERR__STATE, 1);
    settles_though("rd_kafka_produceva", 1, RD_KAFKA_RESP_ERR__QUEUE_FULL, 2);
    settles_though("rd_kafka_produceva", 1, RD_KAFKA_RESP_ERR__UNKNOWN_TOPIC, 3);
    settles_though("rd_kafka_produceva", 2, RD_KAFKA_RESP_ERR__UNKNOWN_TOPIC, 4);
    settles_though("rd_kafka_produceva", 3, RD_KAFKA_RESP_ERR__UNKNOWN_TOPIC, 5); /* the index */
    settles_though("rd_kafka_flush", 1, RD_KAFKA_RESP_ERR__TIMED_OUT, 6);
    settles_though("rd_kafka_consumer_group_metadata", 1, 0, 7);
    settles_though("malloc", 1, 0, 8); /* the index record */
    settles_though("malloc", 2, 0, 9); /* the ledger */
    settles_though("realloc", 1, 0, 10);
    settles_though("rd_kafka_headers_new", 1, 0, 11);
    settle_stop(settle, 5000);
    settle_destroy(settle);
}

/* The fate is open and the brokers do not say it at first, nor take a producer. */
static void an_open_fate_is_asked_for_until_it_is_known(void **state)
{
    (void)state;
    kafka_fixture_take(&k, 0);
    settle = settle_create(&k.pipeline, &error);
    assert_int_equal(settle_start(settle, &error), 0);
    rd_kafka_mock_push_request_errors(k.cluster, API_END_TXN, 1,
                                      RD_KAFKA_RESP_ERR_INVALID_TXN_STATE);
    settles_though("rd_kafka_committed", 1, RD_KAFKA_RESP_ERR__TIMED_OUT, 0);
    rd_kafka_mock_push_request_errors(k.cluster, API_END_TXN, 1,
                                      RD_KAFKA_RESP_ERR_INVALID_TXN_STATE);
    settles_though("rd_kafka_init_transactions", 1, RD_KAFKA_RESP_ERR__TIMED_OUT, 1);
    settle_stop(settle, 5000);
    settle_destroy(settle);
}

static void a_dead_letter_waits_for_memory(void **state)
{
    static const char *const calls[] = {"rd_kafka_headers_new", "rd_kafka_header_add",
                                        "rd_kafka_produceva"};

    (void)state;
    kafka_fixture_take(&k, 0);
    settle = settle_create(&k.pipeline, &error);
    assert_int_equal(settle_start(settle, &error), 0);
    for (int64_t i = 0; i < 3; i++) {
        failing_set(calls[i], 1, 1);
        settle_push(settle, outcome_of(i, JOB_DEAD_LETTER));
        for (int j = 0; j < 2000 && settle_depth(settle); j++)
            usleep(5000);
        assert_int_equal(settle_depth(settle), 0);
        assert_int_equal(failing_clear(), 1);
    }
    settle_stop(settle, 5000);
    settle_destroy(settle);
    assert_int_equal(kafka_fixture_read(&k, k.config->topic_dlq, 0, NULL, NULL), 3);
}

/* The brokers know the name and refuse it: a settings' fault, which no try mends. */
static void a_refused_transactional_id_ends_the_worker(void **state)
{
    (void)state;
    rd_kafka_mock_push_request_errors(k.cluster, API_INIT_PRODUCER_ID, 1,
                                      RD_KAFKA_RESP_ERR_TRANSACTIONAL_ID_AUTHORIZATION_FAILED);
    assert_int_equal(start_settle(), -1);
    assert_true(failed());
    says("refuse a transactional producer");
}

static void names_that_are_too_long_together_are_refused(void **state)
{
    char group[520];

    (void)state;
    memset(group, 'g', sizeof group - 1);
    group[sizeof group - 1] = '\0';
    char *kept = k.config->kafka_group;
    k.config->kafka_group = group;
    assert_int_equal(start_settle(), -1);
    k.config->kafka_group = kept;
    assert_true(failed());
    says("longer than");
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(a_client_with_an_unknown_setting_is_not_started),
        TEST(a_client_that_cannot_be_made_is_not_started),
        TEST(a_stage_without_a_thread_is_not_started),
        TEST(control_without_its_partition_is_not_started),
        TEST(the_end_of_control_is_asked_until_it_is_known),
        TEST(a_topic_that_cannot_be_had_starts_no_stream),
        TEST(a_chunk_waits_or_ends_the_worker),
        TEST(chunks_that_are_not_delivered_do_not_hold_the_end),
        TEST(a_chunk_goes_without_trace_headers_that_no_memory_is_left_for),
        TEST(a_lag_that_is_not_told_stays),
        TEST(engines_that_are_not_told_are_asked_for_again),
        TEST(a_topic_that_does_not_answer_is_named),
        TEST(a_takeover_is_tried_again_whatever_fails),
        TEST(the_end_of_a_dead_owners_partition_must_be_known),
        TEST(a_transaction_is_tried_again_whatever_fails),
        TEST(an_open_fate_is_asked_for_until_it_is_known),
        TEST(a_dead_letter_waits_for_memory),
        TEST(a_refused_transactional_id_ends_the_worker),
        TEST(names_that_are_too_long_together_are_refused),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
