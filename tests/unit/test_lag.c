/* SPDX-License-Identifier: MIT
 *
 * The metric of unfinished records: counted from ledgers, and against the ends that a (mock) broker
 * reports for partitions that nobody fetches from.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <unistd.h>

#include <cmocka.h>
#include <librdkafka/rdkafka.h>
#include <librdkafka/rdkafka_mock.h>

#include "kernels/base/clock.h"
#include "worker/assignment.h"
#include "worker/lag.h"

static void unfinished_are_counted(void **state)
{
    struct ledger ledger;

    (void)state;
    ledger_init(&ledger, 100, 8);
    assert_int_equal(ledger_unfinished(&ledger, 100), 0);
    assert_int_equal(ledger_unfinished(&ledger, 110), 10);
    ledger_finish(&ledger, 103); /* above the watermark */
    ledger_finish(&ledger, 109);
    assert_int_equal(ledger_unfinished(&ledger, 110), 8);
    ledger_finish(&ledger, 100); /* moves it */
    assert_int_equal(ledger.base, 101);
    assert_int_equal(ledger_unfinished(&ledger, 110), 7);
    /* an end that is older than the ledger */
    assert_int_equal(ledger_unfinished(&ledger, 50), 0);
}

static rd_kafka_t *client_new(rd_kafka_type_t type, const char *brokers)
{
    char reason[256];
    rd_kafka_conf_t *conf = rd_kafka_conf_new();
    rd_kafka_t *client;

    rd_kafka_conf_set(conf, "bootstrap.servers", brokers, reason, sizeof reason);
    if (type == RD_KAFKA_CONSUMER)
        rd_kafka_conf_set(conf, "group.id", "lag", reason, sizeof reason);
    client = rd_kafka_new(type, conf, reason, sizeof reason);
    assert_non_null(client);
    return client;
}

static void records_produce(rd_kafka_t *producer, int partition, int count)
{
    for (int i = 0; i < count; i++)
        assert_int_equal(rd_kafka_producev(producer, RD_KAFKA_V_TOPIC("requests"),
                                           RD_KAFKA_V_PARTITION(partition),
                                           RD_KAFKA_V_VALUE("x", 1), RD_KAFKA_V_END),
                         RD_KAFKA_RESP_ERR_NO_ERROR);
    assert_int_equal(rd_kafka_flush(producer, 5000), RD_KAFKA_RESP_ERR_NO_ERROR);
}

static void partition_take(struct assignment *assignment, int partition)
{
    struct ledger ledger;

    ledger_init(&ledger, 0, 8);
    assert_int_equal(
        assignment_take(assignment, partition, &ledger,
                        duplicates_create((struct duplicates_limits){1000000, 10, 100})),
        0);
}

/* Reviews as the intake does, until the metric has the value or 10 s are over. */
static uint64_t review_until(struct lag *lag, const uint8_t *assigned, uint64_t wanted)
{
    int64_t end = clock_mono_us() + 10000000, skipped = 0;

    while (clock_mono_us() < end) {
        /* the clock that it sees runs fast, so that it asks again and again */
        lag_review(lag, assigned, 3, clock_mono_us() + (skipped += 100000));
        if (metrics_value(METRIC_REQUESTS_LAG) == wanted)
            break;
        usleep(2000);
    }
    return metrics_value(METRIC_REQUESTS_LAG);
}

static void ends_come_from_the_brokers(void **state)
{
    char requests[] = "requests";
    struct config config = {.topic_requests = requests};
    struct error error;
    struct pipeline pipeline = {.config = &config, .assignment = assignment_create(&error)};
    rd_kafka_t *bare = client_new(RD_KAFKA_PRODUCER, "");
    rd_kafka_mock_cluster_t *cluster = rd_kafka_mock_cluster_new(bare, 1);
    uint8_t assigned[3] = {1, 0, 1};
    rd_kafka_t *producer, *consumer;
    struct lag *lag;

    (void)state;
    rd_kafka_mock_topic_create(cluster, requests, 3, 1);
    producer = client_new(RD_KAFKA_PRODUCER, rd_kafka_mock_cluster_bootstraps(cluster));
    consumer = client_new(RD_KAFKA_CONSUMER, rd_kafka_mock_cluster_bootstraps(cluster));
    lag = lag_create(&pipeline, consumer, &error);
    assert_non_null(lag);
    partition_take(pipeline.assignment, 0);
    partition_take(pipeline.assignment, 2);
    records_produce(producer, 0, 5);
    records_produce(producer, 1, 7); /* somebody else's */
    records_produce(producer, 2, 11);
    assert_int_equal(review_until(lag, assigned, 16), 16);
    records_produce(producer, 2, 4);
    assert_int_equal(review_until(lag, assigned, 20), 20);
    assigned[0] = assigned[2] = 0; /* all given up */
    assert_int_equal(review_until(lag, assigned, 0), 0);
    lag_destroy(lag);
    rd_kafka_destroy(consumer);
    rd_kafka_destroy(producer);
    rd_kafka_mock_cluster_destroy(cluster);
    rd_kafka_destroy(bare);
    assignment_destroy(pipeline.assignment);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(unfinished_are_counted),
                                       cmocka_unit_test(ends_come_from_the_brokers)};

    return cmocka_run_group_tests(tests, NULL, NULL);
}
