/* SPDX-License-Identifier: MIT
 *
 * kafka_fixture: librdkafka's mock cluster with the product's topics, and a worker's parts around
 * it. The mock knows no isolation and keeps no offsets of transactions: it serves for errors and
 * for what the worker does about them, never as a proof of exactly-once. Include it after
 * worker_fixture.h.
 */
#ifndef PGPT_TESTS_KAFKA_FIXTURE_H
#define PGPT_TESTS_KAFKA_FIXTURE_H

#include <librdkafka/rdkafka.h>
#include <librdkafka/rdkafka_mock.h>
#include <unistd.h>

#include "kernels/base/clock.h"
#include "worker/assignment.h"
#include "worker/health.h"
#include "worker/pipeline.h"

enum { KAFKA_FIXTURE_PARTITIONS = 4, KAFKA_FIXTURE_CALL_MS = 2000 };
/* Numbers of the protocol's requests. */
enum {
    API_PRODUCE = 0,
    API_FETCH = 1,
    API_LIST_OFFSETS = 2,
    API_METADATA = 3,
    API_OFFSET_COMMIT = 8,
    API_OFFSET_FETCH = 9,
    API_FIND_COORDINATOR = 10,
    API_INIT_PRODUCER_ID = 22,
    API_ADD_PARTITIONS_TO_TXN = 24,
    API_ADD_OFFSETS_TO_TXN = 25,
    API_END_TXN = 26,
    API_TXN_OFFSET_COMMIT = 28
};

struct kafka_fixture {
    rd_kafka_t *bare; /* holds the cluster */
    rd_kafka_mock_cluster_t *cluster;
    struct config *config;
    struct pipeline pipeline;
    rd_kafka_t *consumer; /* the worker's, as intake would have it: a group, no subscription */
};

__attribute__((unused)) static rd_kafka_t *
kafka_fixture_client(rd_kafka_type_t type, const char *brokers, const char *group)
{
    rd_kafka_conf_t *conf = rd_kafka_conf_new();
    char reason[256];
    rd_kafka_t *client;

    rd_kafka_conf_set(conf, "log_level", "0", reason, sizeof reason);
    rd_kafka_conf_set(conf, "fetch.wait.max.ms", "10", reason, sizeof reason);
    if ((brokers && rd_kafka_conf_set(conf, "bootstrap.servers", brokers, reason, sizeof reason)) ||
        (group && (rd_kafka_conf_set(conf, "group.id", group, reason, sizeof reason) ||
                   rd_kafka_conf_set(conf, "enable.auto.commit", "false", reason, sizeof reason) ||
                   rd_kafka_conf_set(conf, "enable.partition.eof", "true", reason, sizeof reason))))
        fail_msg("%s", reason);
    client = rd_kafka_new(type, conf, reason, sizeof reason);
    if (!client)
        fail_msg("%s", reason);
    if (type == RD_KAFKA_CONSUMER)
        rd_kafka_poll_set_consumer(client);
    return client;
}

/* Settings come as a user would give them, through the environment. */
__attribute__((unused)) static struct config *kafka_fixture_config(const char *brokers)
{
    struct config *config;
    char call[16];

    snprintf(call, sizeof call, "%d", KAFKA_FIXTURE_CALL_MS);
    setenv("PGPT_BROKERS", brokers, 1);
    setenv("PGPT_RECORDER_ENABLED", "false", 1);
    setenv("PGPT_WORKER_NAME", "worker-1", 1);
    setenv("PGPT_KAFKA_CALL_TIMEOUT_MS", call, 1);
    setenv("PGPT_TRANSACTION_TIMEOUT_MS", "6000", 1);
    setenv("PGPT_COMMIT_INTERVAL_MS", "500", 1); /* jobs that are pushed together go together */
    config = config_load(NULL, stderr);
    assert_non_null(config);
    return config;
}

__attribute__((unused)) static void kafka_fixture_open(struct kafka_fixture *f)
{
    struct error error;

    memset(f, 0, sizeof *f);
    log_configure(LOG_ERROR, LOG_LOGFMT, "test");
    f->bare = kafka_fixture_client(RD_KAFKA_PRODUCER, NULL, NULL);
    f->cluster = rd_kafka_mock_cluster_new(f->bare, 1);
    assert_non_null(f->cluster);
    f->config = kafka_fixture_config(rd_kafka_mock_cluster_bootstraps(f->cluster));
    const char *const topics[] = {f->config->topic_requests, f->config->topic_chunks,
                                  f->config->topic_results,  f->config->topic_events,
                                  f->config->topic_index,    f->config->topic_control,
                                  f->config->topic_dlq};
    for (size_t i = 0; i < sizeof topics / sizeof *topics; i++)
        assert_int_equal(rd_kafka_mock_topic_create(f->cluster, topics[i],
                                                    i < 5 ? KAFKA_FIXTURE_PARTITIONS : 1, 1),
                         0);
    f->consumer =
        kafka_fixture_client(RD_KAFKA_CONSUMER, f->config->kafka_brokers, f->config->kafka_group);
    f->pipeline.config = f->config;
    f->pipeline.health = health_create(30000000);
    f->pipeline.assignment = assignment_create(&error);
    assert_non_null(f->pipeline.health);
    assert_non_null(f->pipeline.assignment);
    assignment_set_consumer(f->pipeline.assignment, f->consumer);
}

__attribute__((unused)) static void kafka_fixture_close(struct kafka_fixture *f)
{
    assignment_destroy(f->pipeline.assignment);
    health_destroy(f->pipeline.health);
    rd_kafka_consumer_close(f->consumer);
    rd_kafka_destroy(f->consumer);
    config_free(f->config);
    rd_kafka_mock_cluster_destroy(f->cluster);
    rd_kafka_destroy(f->bare);
}

__attribute__((unused)) static void kafka_fixture_take(struct kafka_fixture *f, int32_t partition)
{
    struct duplicates *d = duplicates_create((struct duplicates_limits){1000000, 100, 1000});
    struct ledger ledger;

    ledger_init(&ledger, 0, 16);
    assert_non_null(d);
    assert_int_equal(assignment_take(f->pipeline.assignment, partition, &ledger, d), 0);
}

/* What the worker says of a record: admitted, done. */
__attribute__((unused)) static enum ledger_answer
kafka_fixture_ask(struct kafka_fixture *f, int32_t partition, int64_t offset)
{
    struct assignment_admission answer;

    assert_true(
        assignment_begin(f->pipeline.assignment, partition, offset, LEDGER_SPAN, 3, &answer));
    return answer.answer;
}

__attribute__((unused)) static void kafka_fixture_produce(struct kafka_fixture *f,
                                                          const char *topic, int32_t partition,
                                                          const void *value, size_t size)
{
    rd_kafka_t *producer = kafka_fixture_client(RD_KAFKA_PRODUCER, f->config->kafka_brokers, NULL);

    assert_int_equal(rd_kafka_producev(producer, RD_KAFKA_V_TOPIC(topic),
                                       RD_KAFKA_V_PARTITION(partition),
                                       RD_KAFKA_V_VALUE((void *)value, size),
                                       RD_KAFKA_V_MSGFLAGS(RD_KAFKA_MSG_F_COPY), RD_KAFKA_V_END),
                     0);
    assert_int_equal(rd_kafka_flush(producer, 10000), 0);
    rd_kafka_destroy(producer);
}

/* Calls `see` (NULL = count only) for all records of a partition, aborted ones included. */
typedef void (*kafka_fixture_see)(const rd_kafka_message_t *record, void *user);
__attribute__((unused)) static int kafka_fixture_read(struct kafka_fixture *f, const char *topic,
                                                      int32_t partition, kafka_fixture_see see,
                                                      void *user)
{
    rd_kafka_t *reader =
        kafka_fixture_client(RD_KAFKA_CONSUMER, f->config->kafka_brokers, "reader");
    rd_kafka_topic_partition_list_t *list = rd_kafka_topic_partition_list_new(1);
    int64_t until = clock_mono_us() + 10000000;
    bool end = false;
    int count = 0;

    rd_kafka_topic_partition_list_add(list, topic, partition)->offset = RD_KAFKA_OFFSET_BEGINNING;
    assert_int_equal(rd_kafka_assign(reader, list), 0);
    rd_kafka_topic_partition_list_destroy(list);
    while (!end) {
        rd_kafka_message_t *message = rd_kafka_consumer_poll(reader, 100);

        end = message && message->err == RD_KAFKA_RESP_ERR__PARTITION_EOF;
        if (message && !message->err && see)
            see(message, user);
        count += message && !message->err;
        if (message)
            rd_kafka_message_destroy(message);
        if (clock_mono_us() > until)
            fail_msg("%s is not read to its end", topic);
    }
    rd_kafka_consumer_close(reader);
    rd_kafka_destroy(reader);
    return count;
}

/* Requests of one kind that the brokers have seen since tracking began. */
__attribute__((unused)) static int kafka_fixture_requests(struct kafka_fixture *f, int api)
{
    size_t count = 0;
    rd_kafka_mock_request_t **requests = rd_kafka_mock_get_requests(f->cluster, &count);
    int found = 0;

    for (size_t i = 0; i < count; i++)
        found += rd_kafka_mock_request_api_key(requests[i]) == api;
    rd_kafka_mock_request_destroy_array(requests, count);
    return found;
}

/* Until the brokers were asked so; tracking has begun. */
__attribute__((unused)) static void kafka_fixture_wait_asked(struct kafka_fixture *f, int api)
{
    int64_t until = clock_mono_us() + 20000000;

    while (!kafka_fixture_requests(f, api) && clock_mono_us() < until)
        usleep(2000);
    assert_true(kafka_fixture_requests(f, api) > 0);
}

#endif
