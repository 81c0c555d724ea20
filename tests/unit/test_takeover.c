/* SPDX-License-Identifier: MIT
 * A partition changes hands: the mark, deaths, lost answers, the window of duplicates; on a mock
 * cluster, which keeps the offsets of plain commits. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "tests/unit/worker_fixture.h"

#include "schema/codec.h"
#include "tests/unit/kafka_fixture.h"
#include "worker/ledger_metadata.h"
#include "worker/takeover.h"

static struct kafka_fixture k;
static struct error error;
static const int32_t zero = 0;
static _Atomic bool draining;

static int setup(void **state)
{
    kafka_fixture_open(&k);
    for (int i = 0; i < 10; i++)
        kafka_fixture_produce(&k, k.config->topic_requests, 0, "record", 6);
    *state = takeover_create(&k.pipeline, &draining, &error);
    return *state ? 0 : -1;
}

static int teardown(void **state)
{
    takeover_destroy(*state);
    kafka_fixture_close(&k);
    return 0;
}

/* What lies committed for partition 0, as text. */
static void committed(int64_t *offset, char text[LEDGER_METADATA_MAX])
{
    rd_kafka_topic_partition_list_t *list = rd_kafka_topic_partition_list_new(1);

    rd_kafka_topic_partition_list_add(list, k.config->topic_requests, 0);
    assert_int_equal(rd_kafka_committed(k.consumer, list, 5000), 0);
    *offset = list->elems[0].offset;
    snprintf(text, LEDGER_METADATA_MAX, "%.*s", (int)list->elems[0].metadata_size,
             list->elems[0].metadata ? (char *)list->elems[0].metadata : "");
    rd_kafka_topic_partition_list_destroy(list);
}

static void committed_ledger(struct ledger *ledger)
{
    char text[LEDGER_METADATA_MAX];
    int64_t offset;

    committed(&offset, text);
    assert_int_equal(ledger_metadata_read(text, strlen(text), offset, ledger, &error), 0);
}

static int64_t run_ok(struct takeover *takeover)
{
    int64_t offset = -1;

    if (takeover_run(takeover, k.consumer, &zero, &offset, 1, &error))
        fail_msg("%s", error.message);
    return offset;
}

static void run_fails(struct takeover *takeover, const char *reason)
{
    struct assignment_admission answer;
    int64_t offset = -1;

    assert_int_equal(takeover_run(takeover, k.consumer, &zero, &offset, 1, &error), -1);
    if (!strstr(error.message, reason))
        fail_msg("\"%s\" does not say \"%s\"", error.message, reason);
    assert_false(assignment_begin(k.pipeline.assignment, 0, 0, 64, 3, &answer)); /* not taken */
}

static void the_first_owner_begins_at_the_beginning(void **state)
{
    struct ledger ledger;

    assert_int_equal(run_ok(*state), 0);
    assert_int_equal(kafka_fixture_ask(&k, 0, 0), LEDGER_ADMIT);
    committed_ledger(&ledger); /* the mark was committed before anything was read */
    assert_true(ledger.open);
    assert_int_equal(ledger.takeovers, 0);
    assert_int_equal(ledger.base, 0);
    assert_int_equal(ledger.bound, k.config->queue_max_jobs + 1024);
}

static void records_deleted_by_retention_are_not_waited_for(void **state)
{
    assert_int_equal(
        rd_kafka_mock_partition_delete_records(k.cluster, k.config->topic_requests, 0, 4), 0);
    assert_int_equal(run_ok(*state), 4);
}

static void finished_offsets_are_known_to_the_next_owner(void **state)
{
    struct ledger ledger;

    ledger_init(&ledger, 3, 8);
    ledger_finish(&ledger, 5);
    if (takeover_commit(*state, k.consumer, &zero, &ledger, 1, &error))
        fail_msg("%s", error.message);
    assert_int_equal(run_ok(*state), 3);
    assert_int_equal(kafka_fixture_ask(&k, 0, 2), LEDGER_DONE);
    assert_int_equal(kafka_fixture_ask(&k, 0, 3), LEDGER_ADMIT);
    assert_int_equal(kafka_fixture_ask(&k, 0, 5), LEDGER_DONE);
}

static void a_mark_left_open_is_a_death(void **state)
{
    uint64_t unclean = metrics_value(METRIC_TAKEOVERS_UNCLEAN);
    struct assignment_admission answer;
    struct ledger ledger;

    run_ok(*state);
    takeover_forget(*state, 0); /* the next owner knows nothing of this one */
    run_ok(*state);
    assert_int_equal(metrics_value(METRIC_TAKEOVERS_UNCLEAN) - unclean, 1);
    committed_ledger(&ledger);
    assert_int_equal(ledger.takeovers, 1);
    assert_int_equal(ledger.suspect_end, 10); /* the log's end, far below the bound */
    assert_true(assignment_begin(k.pipeline.assignment, 0, 0, 64, 3, &answer));
    assert_int_equal(answer.attempt, 2);
}

static void given_up_in_order_is_none(void **state)
{
    uint64_t unclean = metrics_value(METRIC_TAKEOVERS_UNCLEAN);
    struct ledger ledger;

    run_ok(*state);
    assert_true(assignment_give_up(k.pipeline.assignment, 0, 0, &ledger));
    ledger_give_up(&ledger);
    assert_int_equal(takeover_commit(*state, k.consumer, &zero, &ledger, 1, &error), 0);
    run_ok(*state);
    assert_int_equal(metrics_value(METRIC_TAKEOVERS_UNCLEAN) - unclean, 0);
}

static void metadata_of_another_program_is_passed_over(void **state)
{
    rd_kafka_topic_partition_list_t *list = rd_kafka_topic_partition_list_new(1);
    rd_kafka_topic_partition_t *entry =
        rd_kafka_topic_partition_list_add(list, k.config->topic_requests, 0);

    entry->offset = 6;
    entry->metadata = strdup("reset by hand");
    entry->metadata_size = strlen(entry->metadata);
    assert_int_equal(rd_kafka_commit(k.consumer, list, 0), 0);
    rd_kafka_topic_partition_list_destroy(list);
    assert_int_equal(run_ok(*state), 6);
}

/* ---- errors ---- */

static void nothing_is_taken_without_committed_offsets(void **state)
{
    rd_kafka_mock_push_request_errors(k.cluster, API_OFFSET_FETCH, 1,
                                      RD_KAFKA_RESP_ERR_GROUP_AUTHORIZATION_FAILED);
    run_fails(*state, "committed offsets cannot be read");
    assert_int_equal(run_ok(*state), 0);
}

static void a_try_that_failed_is_no_death(void **state)
{
    struct ledger ledger;

    for (int i = 0; i < 3; i++) {
        rd_kafka_mock_push_request_errors(k.cluster, API_OFFSET_COMMIT, 1,
                                          RD_KAFKA_RESP_ERR_GROUP_AUTHORIZATION_FAILED);
        run_fails(*state, "committing 1 ledgers");
    }
    run_ok(*state);
    committed_ledger(&ledger);
    assert_int_equal(ledger.takeovers, 0);
}

/* The commit of the mark was made, its answer lost: found again, it is ours. */
static void a_mark_whose_answer_was_lost_is_no_death(void **state)
{
    struct ledger mark;

    rd_kafka_mock_push_request_errors(k.cluster, API_OFFSET_COMMIT, 1,
                                      RD_KAFKA_RESP_ERR_GROUP_AUTHORIZATION_FAILED);
    run_fails(*state, "committing 1 ledgers");
    ledger_init(&mark, 0, 0);
    ledger_take_over(&mark, (int32_t)k.config->queue_max_jobs + 1024, 10);
    assert_int_equal(takeover_commit(*state, k.consumer, &zero, &mark, 1, &error), 0);
    run_ok(*state);
    committed_ledger(&mark);
    assert_int_equal(mark.takeovers, 0);
    takeover_forget(*state, 0); /* but once the partition was away, it is somebody's */
    run_ok(*state);
    committed_ledger(&mark);
    assert_int_equal(mark.takeovers, 1);
}

/* The answer comes later than it may: the caller goes on, nothing else is committed meanwhile, and
 * the mark is found as its own. */
static void a_commit_that_is_answered_late_has_an_end(void **state)
{
    int64_t begun = clock_mono_us(), waited;
    struct ledger ledger;

    k.config->kafka_call_timeout_ms = 500;
    rd_kafka_mock_start_request_tracking(k.cluster);
    rd_kafka_mock_broker_push_request_error_rtts(k.cluster, 1, API_OFFSET_COMMIT, 1,
                                                 RD_KAFKA_RESP_ERR_NO_ERROR, 3000);
    run_fails(*state, "committing 1 ledgers");
    waited = clock_mono_us();
    assert_in_range(waited - begun, 500000, 2500000);
    k.config->kafka_call_timeout_ms =
        KAFKA_FIXTURE_CALL_MS; /* what waited now would wait for long */
    run_fails(*state, "no answer yet");
    ledger_init(&ledger, 5, 8);
    assert_int_equal(takeover_commit(*state, k.consumer, &zero, &ledger, 1, &error), -1);
    assert_false(takeover_quiet(*state, 0));
    assert_in_range(clock_mono_us() - waited, 0, KAFKA_FIXTURE_CALL_MS * 1000 * 3 / 4);
    assert_int_equal(kafka_fixture_requests(&k, API_OFFSET_COMMIT), 1);
    assert_true(takeover_quiet(*state, 10000));
    run_ok(*state);
    committed_ledger(&ledger);
    assert_int_equal(ledger.base, 0);
    assert_int_equal(ledger.takeovers, 0);
    assert_false(health_failed(k.pipeline.health, error.message, sizeof error.message));
    rd_kafka_mock_stop_request_tracking(k.cluster);
}

static void a_commit_that_is_never_answered_ends_the_worker(void **state)
{
    char reason[512] = "";

    k.config->kafka_call_timeout_ms = 300;
    k.config->worker_stall_ms = 150; /* ten times that is too long */
    rd_kafka_mock_broker_push_request_error_rtts(k.cluster, 1, API_OFFSET_COMMIT, 1,
                                                 RD_KAFKA_RESP_ERR_NO_ERROR, 3000);
    run_fails(*state, "committing 1 ledgers");
    run_fails(*state, "no answer yet");
    assert_false(health_failed(k.pipeline.health, reason, sizeof reason));
    assert_false(takeover_quiet(*state, 1500));
    assert_true(health_failed(k.pipeline.health, reason, sizeof reason));
    assert_non_null(strstr(reason, "no answer for"));
}

/* Every request of a takeover meets every error that brokers may answer while they move, restart or
 * are slow: the partition is taken in the end, and no try looks like a death. */
static void any_passing_error_of_any_request_is_survived(void **state)
{
    static const int apis[] = {API_OFFSET_FETCH, API_OFFSET_COMMIT,    API_LIST_OFFSETS,
                               API_FETCH,        API_FIND_COORDINATOR, API_METADATA};
    static const rd_kafka_resp_err_t errors[] = {RD_KAFKA_RESP_ERR__TRANSPORT,
                                                 RD_KAFKA_RESP_ERR_NOT_COORDINATOR,
                                                 RD_KAFKA_RESP_ERR_COORDINATOR_NOT_AVAILABLE,
                                                 RD_KAFKA_RESP_ERR_COORDINATOR_LOAD_IN_PROGRESS,
                                                 RD_KAFKA_RESP_ERR_NOT_LEADER_FOR_PARTITION,
                                                 RD_KAFKA_RESP_ERR_REQUEST_TIMED_OUT,
                                                 RD_KAFKA_RESP_ERR_UNKNOWN};
    struct ledger ledger;
    int64_t offset;

    for (size_t a = 0; a < sizeof apis / sizeof *apis; a++) {
        for (size_t e = 0; e < sizeof errors / sizeof *errors; e++) {
            int tries = 0;

            rd_kafka_mock_push_request_errors(k.cluster, apis[a], 2, errors[e], errors[e]);
            while (takeover_run(*state, k.consumer, &zero, &offset, 1, &error))
                if (++tries == 20)
                    fail_msg("request %d, error %s: %s", apis[a], rd_kafka_err2name(errors[e]),
                             error.message);
            rd_kafka_mock_clear_request_errors(k.cluster, apis[a]);
            committed_ledger(&ledger);
            assert_true(ledger.open);
            assert_int_equal(ledger.takeovers, 0);
            assert_true(assignment_give_up(k.pipeline.assignment, 0, 0, &ledger));
            ledger_give_up(&ledger);
            assert_int_equal(takeover_commit(*state, k.consumer, &zero, &ledger, 1, &error), 0);
            takeover_forget(*state, 0);
        }
    }
}

/* ---- the window of duplicates ---- */

static void index_produce(int32_t partition, uint64_t number, int64_t offset)
{
    struct job_index_entry entry = {.source_offset = offset};
    struct job_index index = {.at_us = clock_wall_us(), .jobs = &entry, .job_count = 1};
    struct codec *codec = codec_open(NULL, &error);
    struct buffer buffer = {0};

    assert_non_null(codec);
    fixture_id(number, entry.id);
    assert_int_equal(codec_encode(codec, RECORD_JOB_INDEX, &index, &buffer, &error), 0);
    kafka_fixture_produce(&k, k.config->topic_index, partition, buffer.data, buffer.size);
    buffer_free(&buffer);
    codec_close(codec);
}

static bool is_new(int32_t partition, uint64_t number, int64_t offset)
{
    uint8_t id[16];

    fixture_id(number, id);
    return assignment_is_new(k.pipeline.assignment, partition, id, offset);
}

static void the_window_is_rebuilt_from_the_index(void **state)
{
    const int32_t partitions[] = {0, 1, 2};
    struct ledger ledgers[3];
    int64_t offsets[3];

    for (int i = 0; i < 3; i++)
        ledger_init(&ledgers[i], 6, 8);
    assert_int_equal(takeover_commit(*state, k.consumer, partitions, ledgers, 3, &error), 0);
    index_produce(0, 7, 3);
    index_produce(1, 8, 4);
    kafka_fixture_produce(&k, k.config->topic_index, 0, "no index record", 15);
    index_produce(0, 9, 5);
    kafka_fixture_produce(&k, k.config->topic_requests, 1, "r", 1);
    kafka_fixture_produce(&k, k.config->topic_requests, 2, "r", 1);
    if (takeover_run(*state, k.consumer, partitions, offsets, 3, &error))
        fail_msg("%s", error.message);
    assert_false(is_new(0, 7, 20));
    assert_false(is_new(0, 9, 20));
    assert_true(is_new(0, 7, 3)); /* redelivered */
    assert_false(is_new(1, 8, 20));
    assert_true(is_new(1, 7, 20)); /* identity is id and partition */
    assert_true(is_new(0, 8, 20));
    assert_true(is_new(2, 7, 20));
}

static void a_worker_that_drains_waits_for_no_index(void **state)
{
    int64_t offset;

    draining = true;
    assert_int_equal(takeover_run(*state, k.consumer, &zero, &offset, 1, &error), -1);
    assert_non_null(strstr(error.message, "drains"));
    draining = false;
    run_ok(*state);
}

/* The mock knows no transactions: what an aborted or open one left in the index looks the same. */
static void index_records_that_were_not_committed_are_passed_over(void **state)
{
    struct ledger ledger;

    ledger_init(&ledger, 3, 8);
    ledger_finish(&ledger, 5);
    assert_int_equal(takeover_commit(*state, k.consumer, &zero, &ledger, 1, &error), 0);
    index_produce(0, 12, 2);
    index_produce(0, 14, 4); /* its owner died before the commit */
    index_produce(0, 15, 5); /* the next one's, behind it */
    index_produce(0, 16, 6);
    run_ok(*state);
    assert_false(is_new(0, 12, 20));
    assert_true(is_new(0, 14, 20)); /* never ran to its end: it must */
    assert_false(is_new(0, 15, 20));
    assert_true(is_new(0, 16, 20));
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(the_first_owner_begins_at_the_beginning),
        TEST(records_deleted_by_retention_are_not_waited_for),
        TEST(finished_offsets_are_known_to_the_next_owner),
        TEST(a_mark_left_open_is_a_death),
        TEST(given_up_in_order_is_none),
        TEST(metadata_of_another_program_is_passed_over),
        TEST(nothing_is_taken_without_committed_offsets),
        TEST(a_try_that_failed_is_no_death),
        TEST(a_mark_whose_answer_was_lost_is_no_death),
        TEST(a_commit_that_is_answered_late_has_an_end),
        TEST(a_commit_that_is_never_answered_ends_the_worker),
        TEST(any_passing_error_of_any_request_is_survived),
        TEST(the_window_is_rebuilt_from_the_index),
        TEST(a_worker_that_drains_waits_for_no_index),
        TEST(index_records_that_were_not_committed_are_passed_over),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
