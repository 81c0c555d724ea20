/* SPDX-License-Identifier: MIT
 *
 * What every Kafka client of the worker is configured with, and which setting wins.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

#include "worker/kafka_client.h"

static char *value_of(const struct config *config, const char *name)
{
    const char *const settings[] = {"acks", "all", NULL};
    struct kafka_client_options options = {config, NULL, "test", settings, NULL};
    struct error error;
    rd_kafka_conf_t *conf = kafka_client_conf(&options, &error);
    size_t size = 0;
    char *value;

    assert_non_null(conf);
    assert_int_equal(rd_kafka_conf_get(conf, name, NULL, &size), RD_KAFKA_CONF_OK);
    value = malloc(size);
    assert_non_null(value);
    assert_int_equal(rd_kafka_conf_get(conf, name, value, &size), RD_KAFKA_CONF_OK);
    rd_kafka_conf_destroy(conf);
    return value;
}

static void expect(const struct config *config, const char *name, const char *wanted)
{
    char *value = value_of(config, name);

    assert_string_equal(value, wanted);
    free(value);
}

/* A broker that comes back is found long before the group's session (10 s) is over. */
static void a_broker_that_comes_back_is_found_soon(void **state)
{
    struct config config = {.kafka_brokers = "127.0.0.1:1", .worker_name = "w"};

    (void)state;
    expect(&config, "reconnect.backoff.max.ms", "1000");
    expect(&config, "client.id", "w-test");
}

static void pass_through_wins_where_no_guarantee_rests_on_it(void **state)
{
    struct config_kafka_property own[] = {{"reconnect.backoff.max.ms", "300"}, {"acks", "1"}};
    struct config config = {
        .kafka_brokers = "127.0.0.1:1", .worker_name = "w", .kafka = own, .kafka_count = 2};

    (void)state;
    expect(&config, "reconnect.backoff.max.ms", "300");
    expect(&config, "acks", "-1");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_broker_that_comes_back_is_found_soon),
        cmocka_unit_test(pass_through_wins_where_no_guarantee_rests_on_it),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
