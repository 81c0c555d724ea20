/* SPDX-License-Identifier: MIT
 *
 * The client library against librdkafka's mock brokers, where answers can be chosen.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdio.h>
#include <string.h>

#include "producer/client.h"
#include "producer/connection.h"
#include "tests/unit/mock_brokers.h"

enum { PARTITIONS = 4 };

static struct mock_brokers brokers;
static struct client_options options;
static struct error error;

static size_t accepted, refused;
static char refused_id[37];

static void on_ack(const struct client_ack *ack, void *opaque)
{
    assert_ptr_equal(opaque, &accepted);
    if (ack->error)
        snprintf(refused_id, sizeof refused_id, "%s", ack->job_id);
    *(ack->error ? &refused : &accepted) += 1;
}

static int brokers_start(void **state)
{
    (void)state;
    mock_brokers_start(&brokers, PARTITIONS);
    return 0;
}

static int test_begin(void **state)
{
    (void)state;
    rd_kafka_mock_clear_request_errors(brokers.cluster, 0);
    rd_kafka_mock_broker_set_rtt(brokers.cluster, 1, 0);
    options = (struct client_options){
        .brokers = brokers.bootstrap, .timeout_ms = 5000, .on_ack = on_ack, .opaque = &accepted};
    accepted = refused = 0;
    return 0;
}

static int brokers_stop(void **state)
{
    (void)state;
    mock_brokers_stop(&brokers);
    return 0;
}

static enum client_status submit(struct client *client, const char *job_id)
{
    struct generation_request request;

    generation_request_init(&request);
    request.job_id = (struct text){job_id, strlen(job_id)};
    request.prompt = (struct text){"Hello", 5};
    return client_submit(client, &request, NULL, &error);
}

static const char id_1[] = "6f1e0c2a-9a54-4c0e-8d0b-0d5b1c8f7a11";

/* These brokers know no record at any time: every partition must still have an offset of now. */
static void test_time_without_records_is_where_the_partition_ends(void **state)
{
    static const char *const fixed[] = {"group.id", "unused", NULL};
    const struct connection_settings settings = {.type = RD_KAFKA_CONSUMER, .fixed = fixed};
    rd_kafka_topic_partition_list_t *list = rd_kafka_topic_partition_list_new(PARTITIONS);
    struct connection connection;
    struct client *client;

    (void)state;
    assert_int_equal(client_open(&options, &client, &error), CLIENT_OK);
    for (int i = 0; i < 40; i++) {
        char id[37];

        assert_int_equal(client_new_id(id, &error), 0);
        assert_int_equal(submit(client, id), CLIENT_OK);
    }
    assert_int_equal(client_flush(client, 5000), 0);
    assert_int_equal(accepted, 40);
    client_close(client);

    rd_kafka_topic_partition_list_add_range(list, "pgpt.requests", 0, PARTITIONS - 1);
    assert_int_equal(connection_open(&connection, &options, &settings, NULL, &error), CLIENT_OK);
    for (int64_t since = 0; since < 2; since++) { /* from now on, and from some time */
        int64_t sum = 0;

        assert_int_equal(connection_offsets(&connection, list, since * 1000000, &error), CLIENT_OK);
        for (int i = 0; i < PARTITIONS; i++) {
            assert_true(list->elems[i].offset >= 0);
            sum += list->elems[i].offset;
        }
        assert_int_equal(sum, 40);
    }
    connection_close(&connection);
    rd_kafka_topic_partition_list_destroy(list);
}

/* -1 = no record that late. */
static void test_no_answer_is_the_end_taken_before(void **state)
{
    rd_kafka_topic_partition_list_t *found = rd_kafka_topic_partition_list_new(PARTITIONS), *ends;
    static const int64_t answers[] = {5, -1, 0, -1}, before[] = {9, 7, 0, 0},
                         start[] = {5, 7, 0, 0};

    (void)state;
    rd_kafka_topic_partition_list_add_range(found, "t", 0, PARTITIONS - 1);
    ends = rd_kafka_topic_partition_list_copy(found);
    for (int i = 0; i < PARTITIONS; i++) {
        found->elems[i].offset = answers[i];
        ends->elems[i].offset = before[i];
    }
    connection_fill_ends(found, ends);
    for (int i = 0; i < PARTITIONS; i++)
        assert_int_equal(found->elems[i].offset, start[i]);
    rd_kafka_topic_partition_list_destroy(found);
    rd_kafka_topic_partition_list_destroy(ends);
}

static void test_refused_record_is_told(void **state)
{
    struct client *client;

    (void)state;
    assert_int_equal(client_open(&options, &client, &error), CLIENT_OK);
    rd_kafka_mock_push_request_errors(brokers.cluster, 0 /* Produce */, 1,
                                      RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE);
    assert_int_equal(submit(client, id_1), CLIENT_OK);
    assert_int_equal(client_flush(client, 5000), 0);
    assert_int_equal(refused, 1);
    assert_string_equal(refused_id, id_1);
    client_close(client);
}

static void test_passing_trouble_is_retried(void **state)
{
    struct client *client;

    (void)state;
    assert_int_equal(client_open(&options, &client, &error), CLIENT_OK);
    rd_kafka_mock_push_request_errors(
        brokers.cluster, 0, 3, RD_KAFKA_RESP_ERR_NOT_LEADER_FOR_PARTITION,
        RD_KAFKA_RESP_ERR_NOT_ENOUGH_REPLICAS, RD_KAFKA_RESP_ERR__TRANSPORT);
    assert_int_equal(submit(client, id_1), CLIENT_OK);
    assert_int_equal(client_cancel(client, id_1, "", NULL, &error), CLIENT_OK);
    assert_int_equal(client_flush(client, 10000), 0);
    assert_int_equal(accepted, 2);
    client_close(client);
}

/* What is under way when a client is closed leaks nothing and calls nobody back. */
static void test_close_with_records_under_way(void **state)
{
    struct client *client;

    (void)state;
    assert_int_equal(client_open(&options, &client, &error), CLIENT_OK);
    rd_kafka_mock_broker_set_rtt(brokers.cluster, 1, 400);
    for (int i = 0; i < 50; i++)
        assert_int_equal(submit(client, id_1), CLIENT_OK);
    client_close(client);
    assert_int_equal(accepted + refused, 0);
}

static void test_full_queue_asks_to_try_again(void **state)
{
    static const char *const small[] = {"queue.buffering.max.messages", "10", NULL};
    enum client_status status = CLIENT_OK;
    struct client *client;

    (void)state;
    options.properties = small;
    assert_int_equal(client_open(&options, &client, &error), CLIENT_OK);
    rd_kafka_mock_broker_set_rtt(brokers.cluster, 1, 300);
    for (int i = 0; i < 100 && !status; i++)
        status = submit(client, id_1);
    assert_int_equal(status, CLIENT_FULL);
    assert_non_null(strstr(error.message, "pgpt.requests"));
    rd_kafka_mock_broker_set_rtt(brokers.cluster, 1, 0);
    assert_int_equal(client_flush(client, 10000), 0);
    assert_int_equal(submit(client, id_1), CLIENT_OK);
    client_close(client);
}

static void test_wrong_arguments(void **state)
{
    static const char *const unknown[] = {"no.such", "1", NULL};
    static const char *const secret[] = {"ssl.key.password.x", "s3cret", NULL};
    struct follow_options follow_options = {.client = &options, .max_jobs = 2};
    struct client_options wrong = options;
    struct client *client;
    struct follow *follow;
    int user;

    (void)state;
    wrong.properties = unknown;
    assert_int_equal(client_open(&wrong, &client, &error), CLIENT_WRONG);
    assert_non_null(strstr(error.message, "no.such"));
    wrong.properties = secret;
    assert_int_equal(client_open(&wrong, &client, &error), CLIENT_WRONG);
    assert_null(strstr(error.message, "s3cret"));
    assert_int_equal(client_open(&options, &client, &error), CLIENT_OK);
    assert_int_equal(submit(client, "not a uuid"), CLIENT_WRONG);
    client_close(client);

    assert_int_equal(follow_open(&follow_options, &follow, &error), CLIENT_OK);
    assert_int_equal(follow_watch(follow, "x", &user, &error), CLIENT_WRONG);
    assert_int_equal(follow_watch(follow, id_1, &user, &error), CLIENT_OK);
    assert_int_equal(follow_watch(follow, id_1, &user, &error), CLIENT_WRONG);
    assert_int_equal(follow_watch(follow, "00000000-9a54-4c0e-8d0b-0d5b1c8f7a11", &user, &error),
                     CLIENT_OK);
    assert_int_equal(follow_watch(follow, "00000001-9a54-4c0e-8d0b-0d5b1c8f7a11", &user, &error),
                     CLIENT_FULL);
    assert_int_equal(follow_count(follow), 2);
    assert_ptr_equal(follow_forget(follow, "6F1E0C2A-9A54-4C0E-8D0B-0D5B1C8F7A11"), &user);
    assert_null(follow_forget(follow, id_1));
    assert_int_equal(follow_count(follow), 1);
    follow_close(follow); /* with a job still watched */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(test_time_without_records_is_where_the_partition_ends, test_begin),
        cmocka_unit_test(test_no_answer_is_the_end_taken_before),
        cmocka_unit_test_setup(test_refused_record_is_told, test_begin),
        cmocka_unit_test_setup(test_passing_trouble_is_retried, test_begin),
        cmocka_unit_test_setup(test_close_with_records_under_way, test_begin),
        cmocka_unit_test_setup(test_full_queue_asks_to_try_again, test_begin),
        cmocka_unit_test_setup(test_wrong_arguments, test_begin),
    };

    return cmocka_run_group_tests(tests, brokers_start, brokers_stop);
}
