/* SPDX-License-Identifier: MIT
 *
 * The settle stage's transactions against a mock cluster: whom they wait for, and what happens when
 * a step fails, is fenced, or leaves its fate open. What consumers of committed records see is for
 * the tests on a real broker, what is in the records for test_settle_records.c.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "tests/unit/worker_fixture.h"

#include "schema/codec.h"
#include "tests/unit/kafka_fixture.h"
#include "tests/unit/settle_fixture.h"
#include "worker/ledger_metadata.h"
#include "worker/offsets_call.h"
#include "worker/takeover.h"

static void a_job_waits_for_its_chunks_alone(void **state)
{
    struct job *slow = outcome_of(0, 0, JOB_COMPLETED);

    (void)state;
    atomic_store(&slow->chunks_unacked, 2);
    settle_push(settle, slow);
    settle_push(settle, outcome_of(0, 1, JOB_COMPLETED));
    assert_true(falls_to(1, 10000));
    assert_false(settles_within(400));
    assert_int_equal(metrics_value(METRIC_JOBS_AWAITING_CHUNKS), 1);
    assert_int_equal(metrics_value(METRIC_JOBS_AWAITING_CANCELS), 0);
    assert_int_equal(kafka_fixture_ask(&k, 0, 1), LEDGER_DONE); /* its neighbour did not wait */
    assert_int_equal(kafka_fixture_ask(&k, 0, 0), LEDGER_RUNNING);
    assert_int_equal(results(0), 1);
    atomic_store(&slow->chunks_unacked, 0);
    settle_poke(settle);
    assert_true(settles_within(10000));
    assert_int_equal(results(0), 2);
}

static void see_cancelled(const rd_kafka_message_t *record, void *user)
{
    struct codec *codec = codec_open(NULL, &error);
    struct arena *arena = arena_create(4096, 1 << 20);
    struct generation_result result;

    assert_int_equal(codec_decode(codec, RECORD_GENERATION_RESULT, record->payload, record->len,
                                  arena, &result, &error),
                     CODEC_OK);
    *(int *)user += !strcmp(result.status, "cancelled");
    arena_destroy(arena);
    codec_close(codec);
}

/* The brokers may answer the reader of cancels later than the one of requests. */
static void a_completed_job_waits_for_cancels_sent_before_it(void **state)
{
    int cancelled_results = 0;

    (void)state;
    atomic_store(&cancels_known, false);
    settle_push(settle, outcome_of(0, 0, JOB_COMPLETED));
    settle_push(settle, outcome_of(0, 1, JOB_COMPLETED));
    settle_push(settle, outcome_of(0, 2, JOB_FAILED)); /* no cancel could change that */
    assert_true(falls_to(2, 10000));
    assert_false(falls_to(1, 400));
    assert_int_equal(results(0), 1);
    assert_int_equal(metrics_value(METRIC_JOBS_AWAITING_CHUNKS), 0);
    assert_int_equal(metrics_value(METRIC_JOBS_AWAITING_CANCELS), 2);
    atomic_store(&cancelled, 1);
    atomic_store(&cancels_known, true);
    settle_poke(settle);
    assert_true(settles_within(10000));
    assert_int_equal(
        kafka_fixture_read(&k, k.config->topic_results, 0, see_cancelled, &cancelled_results), 3);
    assert_int_equal(cancelled_results, 1);
    assert_int_equal(grown(METRIC_JOBS_CANCELLED), 1);
    assert_int_equal(grown(METRIC_JOBS_COMPLETED), 1);
    atomic_store(&cancelled, -1);
}

static void jobs_of_a_lost_partition_are_dropped(void **state)
{
    struct job *job = outcome_of(1, 0, JOB_COMPLETED);
    struct ledger ledger;

    (void)state;
    assert_true(assignment_give_up(k.pipeline.assignment, 1, 0, &ledger));
    settle_push(settle, job);
    settle_push(settle, outcome_of(2, 0, JOB_COMPLETED));
    assert_true(settles_within(10000));
    assert_int_equal(grown(METRIC_STALE_DROPPED), 1);
    assert_int_equal(results(1), 0);
    assert_int_equal(results(2), 1);
}

/* ---- errors ---- */

/* The broker says that the commit's member is of an older epoch. */
static void an_abortable_error_keeps_the_jobs(void **state)
{
    (void)state;
    rd_kafka_mock_push_request_errors(k.cluster, API_TXN_OFFSET_COMMIT, 1,
                                      RD_KAFKA_RESP_ERR_ILLEGAL_GENERATION);
    settle_push(settle, outcome_of(0, 0, JOB_COMPLETED));
    assert_true(settles_within(15000));
    assert_int_equal(grown(METRIC_TRANSACTIONS_ABORTED), 1);
    assert_int_equal(grown(METRIC_TRANSACTIONS_COMMITTED), 1);
    assert_int_equal(grown(METRIC_TRANSACTIONS_INDETERMINATE), 0);
    assert_int_equal(grown(METRIC_JOBS_COMPLETED), 1);
    assert_int_equal(results(0), 2); /* published again; the mock shows the aborted one, too */
    assert_int_equal(kafka_fixture_ask(&k, 0, 0), LEDGER_DONE);
}

static void a_refused_record_aborts(void **state)
{
    (void)state;
    rd_kafka_mock_partition_push_request_errors(k.cluster, k.config->topic_results, 0, API_PRODUCE,
                                                1, RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED);
    settle_push(settle, outcome_of(0, 0, JOB_COMPLETED));
    assert_true(settles_within(15000));
    assert_true(grown(METRIC_TRANSACTIONS_ABORTED) >= 1);
    assert_int_equal(grown(METRIC_TRANSACTIONS_COMMITTED), 1);
    assert_int_equal(results(0), 1);
}

static bool not_ready(void)
{
    return metrics_value(METRIC_NOT_READY_COMMITS) == 1;
}

/* Every try to commit fails until the worker says that it is not ready. */
static void refuse_until_not_ready(void)
{
    int64_t until = clock_mono_us() + 20000000;
    int aborted = grown(METRIC_TRANSACTIONS_ABORTED);

    for (int i = 0; i < 2000; i++) /* more than it can meet */
        rd_kafka_mock_push_request_errors(k.cluster, API_PRODUCE, 1,
                                          RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED);
    while (!not_ready() && clock_mono_us() < until)
        usleep(1000);
    assert_true(not_ready());
    assert_true(grown(METRIC_TRANSACTIONS_ABORTED) - aborted > 2); /* a few may fail */
}

/* A worker that commits nothing is full in the end and consumes nothing. */
static void a_worker_is_not_ready_while_every_commit_fails(void **state)
{
    struct ledger ledger;

    (void)state;
    settle_push(settle, outcome_of(0, 0, JOB_COMPLETED));
    refuse_until_not_ready();
    rd_kafka_mock_clear_request_errors(k.cluster, API_PRODUCE);
    assert_true(settles_within(10000));
    assert_false(not_ready());
    assert_int_equal(grown(METRIC_JOBS_COMPLETED), 1);
    settle_push(settle, outcome_of(0, 1, JOB_COMPLETED));
    refuse_until_not_ready();
    assignment_give_up(k.pipeline.assignment, 0, 1000, &ledger); /* nothing is left to fail */
    assert_true(settles_within(10000));
    for (int i = 0; i < 500 && not_ready(); i++) /* settle looks at what is left now and then */
        usleep(20000);
    assert_false(not_ready());
    rd_kafka_mock_clear_request_errors(k.cluster, API_PRODUCE);
}

static void a_lost_partition_drops_its_jobs_when_they_are_tried_again(void **state)
{
    struct job *first = outcome_of(0, 0, JOB_COMPLETED), *second = outcome_of(1, 0, JOB_COMPLETED);
    struct ledger ledger;

    (void)state;
    rd_kafka_mock_start_request_tracking(k.cluster);
    rd_kafka_mock_broker_push_request_error_rtts(k.cluster, 1, API_TXN_OFFSET_COMMIT, 1,
                                                 RD_KAFKA_RESP_ERR_ILLEGAL_GENERATION, 1500);
    settle_push(settle, first);
    settle_push(settle, second);
    kafka_fixture_wait_asked(&k, API_TXN_OFFSET_COMMIT);
    assert_false(assignment_give_up(k.pipeline.assignment, 1, 0, &ledger)); /* it is in there */
    assert_true(settles_within(15000));
    assert_int_equal(grown(METRIC_STALE_DROPPED), 1);
    assert_int_equal(grown(METRIC_JOBS_COMPLETED), 1);
    assert_int_equal(kafka_fixture_ask(&k, 0, 0), LEDGER_DONE);
    rd_kafka_mock_stop_request_tracking(k.cluster);
}

/* Offsets went through, but the partition was lost before the commit: it must not happen. */
static void a_partition_lost_before_the_commit_aborts(void **state)
{
    struct ledger ledger;

    (void)state;
    rd_kafka_mock_start_request_tracking(k.cluster);
    rd_kafka_mock_broker_push_request_error_rtts(k.cluster, 1, API_TXN_OFFSET_COMMIT, 1,
                                                 RD_KAFKA_RESP_ERR_NO_ERROR, 1500);
    settle_push(settle, outcome_of(1, 0, JOB_COMPLETED));
    kafka_fixture_wait_asked(&k, API_TXN_OFFSET_COMMIT);
    assert_false(assignment_give_up(k.pipeline.assignment, 1, 0, &ledger));
    assert_true(settles_within(15000));
    assert_int_equal(grown(METRIC_TRANSACTIONS_ABORTED), 1);
    assert_int_equal(grown(METRIC_TRANSACTIONS_COMMITTED), 0);
    assert_int_equal(grown(METRIC_JOBS_COMPLETED), 0);
    assert_int_equal(grown(METRIC_STALE_DROPPED), 1);
    rd_kafka_mock_stop_request_tracking(k.cluster);
}

static void a_fenced_producer_ends_the_worker(void **state)
{
    char reason[512] = "";

    (void)state;
    rd_kafka_mock_push_request_errors(k.cluster, API_END_TXN, 1,
                                      RD_KAFKA_RESP_ERR_INVALID_PRODUCER_EPOCH);
    settle_push(settle, outcome_of(0, 0, JOB_COMPLETED));
    for (int i = 0; i < 500 && !health_failed(k.pipeline.health, reason, sizeof reason); i++)
        usleep(20000);
    assert_true(health_failed(k.pipeline.health, reason, sizeof reason));
    assert_non_null(strstr(reason, "worker-1")); /* the name that is used twice */
    assert_int_equal(settle_depth(settle), 1);   /* not forgotten: it was never committed */
    assert_int_equal(grown(METRIC_JOBS_COMPLETED), 0);
}

/* The coordinator ended the transaction by its timeout, then the worker comes to abort it. */
static void a_transaction_that_the_coordinator_ended_is_run_again(void **state)
{
    (void)state;
    rd_kafka_mock_push_request_errors(k.cluster, API_TXN_OFFSET_COMMIT, 1,
                                      RD_KAFKA_RESP_ERR_ILLEGAL_GENERATION);
    rd_kafka_mock_push_request_errors(k.cluster, API_END_TXN, 1,
                                      RD_KAFKA_RESP_ERR_INVALID_TXN_STATE);
    settle_push(settle, outcome_of(0, 0, JOB_COMPLETED));
    assert_true(settles_within(15000));
    assert_int_equal(grown(METRIC_TRANSACTIONS_INDETERMINATE), 1);
    assert_int_equal(grown(METRIC_TRANSACTIONS_COMMITTED), 1);
    assert_int_equal(grown(METRIC_JOBS_COMPLETED), 1);
    assert_false(health_failed(k.pipeline.health, error.message, sizeof error.message));
}

/* So it does to the producer, which is fenced then: no sign of a second worker of the name. */
static void a_producer_fenced_by_the_timeout_is_made_anew(void **state)
{
    (void)state;
    k.config->kafka_transaction_timeout_ms = 1000;
    rd_kafka_mock_broker_push_request_error_rtts(k.cluster, 1, API_END_TXN, 1,
                                                 RD_KAFKA_RESP_ERR_INVALID_PRODUCER_EPOCH, 1500);
    settle_push(settle, outcome_of(0, 0, JOB_COMPLETED));
    assert_true(settles_within(15000));
    assert_int_equal(grown(METRIC_TRANSACTIONS_INDETERMINATE), 1);
    assert_int_equal(grown(METRIC_JOBS_COMPLETED), 1);
    assert_false(health_failed(k.pipeline.health, error.message, sizeof error.message));
}

/* ---- an open fate ---- */

/* librdkafka never frees the request of such a call: the defect that makes the call hang. */
const char *__lsan_default_suppressions(void);
const char *__lsan_default_suppressions(void)
{
    return "leak:rd_kafka_coord_req\n";
}

/* The group's coordinator moves, and the first answer to where it is now is that it moved: nothing
 * asks again, and the call never returns, whatever its limit. Where another lookup took that
 * answer, the next job tries again. */
static void a_call_that_hangs_is_left_behind(void **state)
{
    int64_t begun = 0, jobs = 0;

    (void)state;
    for (; jobs < 8 && !offsets_calls_left(); jobs++) {
        begun = clock_mono_us();
        rd_kafka_mock_push_request_errors(k.cluster, API_TXN_OFFSET_COMMIT, 1,
                                          RD_KAFKA_RESP_ERR_NOT_COORDINATOR);
        rd_kafka_mock_push_request_errors(k.cluster, API_FIND_COORDINATOR, 1,
                                          RD_KAFKA_RESP_ERR_NOT_COORDINATOR);
        settle_push(settle, outcome_of(0, jobs, JOB_COMPLETED));
        assert_true(settles_within(10000));
        rd_kafka_mock_clear_request_errors(k.cluster, API_TXN_OFFSET_COMMIT);
        rd_kafka_mock_clear_request_errors(k.cluster, API_FIND_COORDINATOR);
    }
    assert_int_equal(offsets_calls_left(), 1);
    assert_in_range(clock_mono_us() - begun, KAFKA_FIXTURE_CALL_MS * 1000, 10000000);
    assert_int_equal(grown(METRIC_TRANSACTIONS_INDETERMINATE), 1);
    assert_int_equal(grown(METRIC_TRANSACTIONS_COMMITTED), jobs);
    assert_int_equal(grown(METRIC_JOBS_COMPLETED), jobs);
    rd_kafka_mock_broker_set_down(k.cluster, 1); /* what wakes the client, which clears up */
    rd_kafka_mock_broker_set_up(k.cluster, 1);
    for (int i = 0; i < 500 && offsets_calls_left(); i++)
        usleep(20000);
    assert_int_equal(offsets_calls_left(), 0);
}

/* No answer to the commit within the call's limit; then the brokers are quick again. */
static void slow_commit(void)
{
    rd_kafka_mock_start_request_tracking(k.cluster);
    rd_kafka_mock_broker_push_request_error_rtts(
        k.cluster, 1, API_END_TXN, 1, RD_KAFKA_RESP_ERR_NO_ERROR, KAFKA_FIXTURE_CALL_MS * 2);
}

static void a_timeout_makes_a_new_producer_and_publishes_again(void **state)
{
    /* Both are in the worker before the first may commit: one transaction. */
    struct job *completed = outcome_of(0, 0, JOB_COMPLETED), *failed = outcome_of(2, 0, JOB_FAILED);

    (void)state;
    slow_commit();
    settle_push(settle, completed);
    settle_push(settle, failed);
    assert_true(settles_within(20000));
    assert_int_equal(grown(METRIC_TRANSACTIONS_INDETERMINATE), 1);
    assert_true(kafka_fixture_requests(&k, API_INIT_PRODUCER_ID) >= 1); /* a new epoch */
    assert_int_equal(grown(METRIC_TRANSACTIONS_COMMITTED), 1);
    assert_int_equal(grown(METRIC_JOBS_COMPLETED), 1); /* counted once */
    assert_int_equal(grown(METRIC_JOBS_FAILED), 1);
    assert_int_equal(results(0), 2);
    assert_int_equal(kafka_fixture_ask(&k, 0, 0), LEDGER_DONE);
    assert_int_equal(kafka_fixture_ask(&k, 2, 0), LEDGER_DONE);
    rd_kafka_mock_stop_request_tracking(k.cluster);
}

/* The answer was lost, the commit was not: the brokers show the jobs as done. */
static void what_was_committed_is_not_published_again(void **state)
{
    static const _Atomic bool draining = false;
    struct takeover *takeover = takeover_create(&k.pipeline, &draining, &error);
    const int32_t partition = 0;
    struct job *jobs[3];
    struct ledger ledger;

    (void)state;
    assert_non_null(takeover);
    slow_commit();
    jobs[0] = outcome_of(0, 0, JOB_COMPLETED);
    assert_int_equal(kafka_fixture_ask(&k, 0, 1), LEDGER_ADMIT); /* it still runs */
    jobs[1] = outcome_of(0, 2, JOB_COMPLETED);
    jobs[2] = outcome_of(3, 0, JOB_COMPLETED); /* of this one they show nothing */
    for (int i = 0; i < 3; i++) /* all in the worker before the first may commit: one transaction */
        settle_push(settle, jobs[i]);
    ledger_init(&ledger, 0, 16);
    ledger_finish(&ledger, 0);
    ledger_finish(&ledger, 2);
    if (takeover_commit(takeover, k.consumer, &partition, &ledger, 1, &error))
        fail_msg("%s", error.message);
    assert_true(settles_within(20000));
    assert_int_equal(grown(METRIC_TRANSACTIONS_INDETERMINATE), 1);
    assert_int_equal(results(0), 2);
    assert_int_equal(results(3), 2);
    assert_int_equal(grown(METRIC_JOBS_COMPLETED), 3);
    assert_int_equal(kafka_fixture_ask(&k, 0, 0), LEDGER_DONE);
    assert_int_equal(kafka_fixture_ask(&k, 0, 2), LEDGER_DONE);
    assert_int_equal(kafka_fixture_ask(&k, 0, 1), LEDGER_RUNNING);
    rd_kafka_mock_stop_request_tracking(k.cluster);
    takeover_destroy(takeover);
}

/* The brokers go away in a transaction and come back: nothing is lost, nothing is counted twice. */
static void brokers_that_go_away_come_back(void **state)
{
    (void)state;
    settle_push(settle, outcome_of(0, 0, JOB_COMPLETED));
    assert_true(settles_within(10000));
    rd_kafka_mock_broker_set_down(k.cluster, 1);
    for (int64_t o = 1; o < 20; o++)
        settle_push(settle, outcome_of(0, o, JOB_COMPLETED));
    assert_false(settles_within(3000));
    rd_kafka_mock_broker_set_up(k.cluster, 1);
    assert_true(settles_within(30000));
    assert_int_equal(grown(METRIC_JOBS_COMPLETED), 20);
}

/* Brokers that answer, and records that they do not acknowledge: not with the same producer for
 * ever. */
static void records_that_nobody_acknowledges_get_a_new_producer(void **state)
{
    (void)state;
    rd_kafka_mock_partition_set_leader(k.cluster, k.config->topic_results, 0, -1);
    settle_push(settle, outcome_of(0, 0, JOB_COMPLETED));
    for (int i = 0; i < 1500 && !grown(METRIC_TRANSACTIONS_INDETERMINATE); i++)
        usleep(20000);
    assert_int_equal(grown(METRIC_TRANSACTIONS_INDETERMINATE), 1);
    assert_int_equal(settle_depth(settle), 1);
    rd_kafka_mock_partition_set_leader(k.cluster, k.config->topic_results, 0, 1);
    assert_true(settles_within(30000));
    assert_int_equal(grown(METRIC_JOBS_COMPLETED), 1);
    assert_int_equal(results(0), 1);
}

/* Told to stop while nobody answers, it stops in time and keeps what it does not know. */
static void stopping_does_not_wait_for_ever(void **state)
{
    int64_t begun;

    (void)state;
    rd_kafka_mock_broker_set_down(k.cluster, 1);
    settle_push(settle, outcome_of(0, 0, JOB_COMPLETED));
    usleep(100000);
    begun = clock_mono_us();
    settle_stop(settle, 500);
    assert_true(clock_mono_us() - begun < 8 * (int64_t)KAFKA_FIXTURE_CALL_MS * 1000);
    assert_int_equal(settle_depth(settle), 1);
    assert_int_equal(grown(METRIC_JOBS_COMPLETED), 0);
    rd_kafka_mock_broker_set_up(k.cluster, 1);
}

static int64_t processor_us(void)
{
    struct timespec t;

    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (int64_t)t.tv_sec * 1000000 + t.tv_nsec / 1000;
}

static void stopping_commits_what_is_ready(void **state)
{
    struct job *slow = outcome_of(0, 0, JOB_COMPLETED);
    int64_t begun = processor_us();

    (void)state;
    atomic_store(&slow->chunks_unacked, 1); /* its chunks never arrive */
    settle_push(settle, slow);
    settle_push(settle, outcome_of(0, 1, JOB_COMPLETED));
    settle_stop(settle, 1000);
    assert_in_range(processor_us() - begun, 0, 100000); /* it slept meanwhile */
    assert_int_equal(settle_depth(settle), 1);
    assert_int_equal(grown(METRIC_JOBS_COMPLETED), 1);
    assert_int_equal(results(0), 1);
}

static void survives(int api, rd_kafka_resp_err_t code, int before, rd_kafka_resp_err_t before_code,
                     int64_t offset)
{
    rd_kafka_mock_push_request_errors(k.cluster, api, 2, code, code);
    if (before >= 0)
        rd_kafka_mock_push_request_errors(k.cluster, before, 1, before_code);
    settle_push(settle, outcome_of(0, offset, JOB_COMPLETED));
    if (!settles_within(20000))
        fail_msg("request %d, error %s: not settled", api, rd_kafka_err2name(code));
    if (health_failed(k.pipeline.health, error.message, sizeof error.message))
        fail_msg("request %d, error %s: %s", api, rd_kafka_err2name(code), error.message);
    rd_kafka_mock_clear_request_errors(k.cluster, api);
    if (before >= 0)
        rd_kafka_mock_clear_request_errors(k.cluster, before);
}

/* Every request of a transaction meets every error that brokers may answer while they move, restart
 * or are slow: whatever class it falls into, the job is settled and counted once. */
static void any_passing_error_of_any_request_is_survived(void **state)
{
    static const struct {
        int api, before; /* what must fail first so that the request is made; -1 = nothing */
        rd_kafka_resp_err_t before_code;
    } requests[] = {
        {API_PRODUCE, -1, 0},
        {API_ADD_PARTITIONS_TO_TXN, -1, 0},
        {API_ADD_OFFSETS_TO_TXN, -1, 0},
        {API_TXN_OFFSET_COMMIT, -1, 0},
        {API_END_TXN, -1, 0},
        {API_INIT_PRODUCER_ID, API_END_TXN, RD_KAFKA_RESP_ERR_INVALID_TXN_STATE},
        {API_METADATA, API_END_TXN, RD_KAFKA_RESP_ERR_INVALID_TXN_STATE},
        {API_FIND_COORDINATOR, API_TXN_OFFSET_COMMIT, RD_KAFKA_RESP_ERR_NOT_COORDINATOR}};
    static const rd_kafka_resp_err_t errors[] = {RD_KAFKA_RESP_ERR__TRANSPORT,
                                                 RD_KAFKA_RESP_ERR_NOT_COORDINATOR,
                                                 RD_KAFKA_RESP_ERR_COORDINATOR_NOT_AVAILABLE,
                                                 RD_KAFKA_RESP_ERR_COORDINATOR_LOAD_IN_PROGRESS,
                                                 RD_KAFKA_RESP_ERR_CONCURRENT_TRANSACTIONS,
                                                 RD_KAFKA_RESP_ERR_REQUEST_TIMED_OUT,
                                                 RD_KAFKA_RESP_ERR_NOT_ENOUGH_REPLICAS,
                                                 RD_KAFKA_RESP_ERR_UNKNOWN};
    int64_t offset = 0;

    (void)state;
    for (size_t r = 0; r < sizeof requests / sizeof *requests; r++)
        for (size_t e = 0; e < sizeof errors / sizeof *errors; e++, offset++)
            survives(requests[r].api, errors[e], requests[r].before, requests[r].before_code,
                     offset);
    assert_int_equal(grown(METRIC_JOBS_COMPLETED), offset);
    for (int64_t o = 0; o < offset; o++)
        assert_int_equal(kafka_fixture_ask(&k, 0, o), LEDGER_DONE);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(a_job_waits_for_its_chunks_alone),
        TEST(a_completed_job_waits_for_cancels_sent_before_it),
        TEST(jobs_of_a_lost_partition_are_dropped),
        TEST(an_abortable_error_keeps_the_jobs),
        TEST(a_refused_record_aborts),
        TEST(a_worker_is_not_ready_while_every_commit_fails),
        TEST(a_lost_partition_drops_its_jobs_when_they_are_tried_again),
        TEST(a_partition_lost_before_the_commit_aborts),
        TEST(a_fenced_producer_ends_the_worker),
        TEST(a_transaction_that_the_coordinator_ended_is_run_again),
        TEST(a_producer_fenced_by_the_timeout_is_made_anew),
        TEST(a_call_that_hangs_is_left_behind),
        TEST(any_passing_error_of_any_request_is_survived),
        TEST(a_timeout_makes_a_new_producer_and_publishes_again),
        TEST(what_was_committed_is_not_published_again),
        TEST(brokers_that_go_away_come_back),
        TEST(records_that_nobody_acknowledges_get_a_new_producer),
        TEST(stopping_does_not_wait_for_ever),
        TEST(stopping_commits_what_is_ready),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
