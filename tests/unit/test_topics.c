/* SPDX-License-Identifier: MIT
 * Each topic that is missing is named, and the remedy; the least of the outputs counts. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "tests/unit/worker_fixture.h"

#include "tests/unit/kafka_fixture.h"
#include "worker/topics.h"

enum { TOPICS = 7, OUTPUTS_FROM = 1, OUTPUTS_TO = 5 };

static const char *const names[TOPICS] = {"pgpt.requests", "pgpt.chunks", "pgpt.results",
                                          "pgpt.events",   "pgpt.index",  "pgpt.control",
                                          "pgpt.dlq"};

/* A cluster where topic i has partitions[i] partitions; 0 = it is not there. */
static int32_t ask(const int partitions[TOPICS], struct error *reason)
{
    rd_kafka_t *bare = kafka_fixture_client(RD_KAFKA_PRODUCER, NULL, NULL);
    rd_kafka_mock_cluster_t *cluster = rd_kafka_mock_cluster_new(bare, 1);
    struct config *config = kafka_fixture_config(rd_kafka_mock_cluster_bootstraps(cluster));
    rd_kafka_t *client = kafka_fixture_client(RD_KAFKA_CONSUMER, config->kafka_brokers, "reader");
    int32_t count;

    for (int i = 0; i < TOPICS; i++)
        if (partitions[i])
            assert_int_equal(rd_kafka_mock_topic_create(cluster, names[i], partitions[i], 1), 0);
        else
            rd_kafka_mock_topic_set_error(cluster, names[i],
                                          RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART);
    *reason = (struct error){""};
    count = topics_outputs(client, config, reason);
    rd_kafka_destroy(client);
    config_free(config);
    rd_kafka_mock_cluster_destroy(cluster);
    rd_kafka_destroy(bare);
    return count;
}

static void a_missing_topic_is_named(void **state)
{
    struct error reason;

    (void)state;
    for (int missing = 0; missing < TOPICS; missing++) {
        int partitions[TOPICS] = {4, 4, 4, 4, 4, 1, 1};

        partitions[missing] = 0;
        assert_int_equal(ask(partitions, &reason), -1);
        assert_non_null(strstr(reason.message, names[missing]));
        assert_non_null(strstr(reason.message, "pgpt topics --create"));
    }
}

static void the_least_of_the_outputs_counts(void **state)
{
    struct error reason;

    (void)state;
    assert_int_equal(ask((const int[TOPICS]){8, 4, 4, 4, 4, 1, 1}, &reason), 4);
    assert_string_equal(reason.message, "");
    for (int least = OUTPUTS_FROM; least < OUTPUTS_TO; least++) {
        int partitions[TOPICS] = {4, 4, 4, 4, 4, 1, 1};

        partitions[least] = 3;
        assert_int_equal(ask(partitions, &reason), 3);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_missing_topic_is_named),
        cmocka_unit_test(the_least_of_the_outputs_counts),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
