/* SPDX-License-Identifier: MIT
 *
 * mock_brokers: librdkafka's mock cluster with the topics that a client uses, for tests of
 * producer/. What answers it gives is chosen per test (rd_kafka_mock_push_request_errors and so
 * on). Include it after cmocka.h.
 */
#ifndef PGPT_TESTS_MOCK_BROKERS_H
#define PGPT_TESTS_MOCK_BROKERS_H

#include <librdkafka/rdkafka.h>
#include <librdkafka/rdkafka_mock.h>

#include "producer/topic_table.h"

struct mock_brokers {
    rd_kafka_t *host; /* holds the cluster */
    rd_kafka_mock_cluster_t *cluster;
    const char *bootstrap; /* the cluster's */
};

static void mock_brokers_start(struct mock_brokers *b, int partitions)
{
    rd_kafka_conf_t *conf = rd_kafka_conf_new();
    char reason[256];

    assert_int_equal(rd_kafka_conf_set(conf, "log_level", "0", NULL, 0), RD_KAFKA_CONF_OK);
    b->host = rd_kafka_new(RD_KAFKA_PRODUCER, conf, reason, sizeof reason);
    assert_non_null(b->host);
    b->cluster = rd_kafka_mock_cluster_new(b->host, 1);
    assert_non_null(b->cluster);
    for (int t = 0; t < TOPIC_COUNT; t++)
        assert_int_equal(rd_kafka_mock_topic_create(b->cluster, topic_table[t].name, partitions, 1),
                         0);
    b->bootstrap = rd_kafka_mock_cluster_bootstraps(b->cluster);
}

static void mock_brokers_stop(struct mock_brokers *b)
{
    rd_kafka_mock_cluster_destroy(b->cluster);
    rd_kafka_destroy(b->host);
}

#endif
