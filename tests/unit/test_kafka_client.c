/* SPDX-License-Identifier: MIT
 *
 * What every Kafka client of the worker is configured with, and which setting wins.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

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

/* What a consumer gets by poll when its client is broken for good, and nobody hears of otherwise.
 */
static void a_broken_consumer_fails_the_worker(void **state)
{
    struct config config = {.kafka_brokers = "127.0.0.1:1", .worker_name = "w"};
    const char *const settings[] = {"group.id", "g", NULL};
    struct health *health = health_create(1000);
    struct kafka_client_options options = {&config, health, "test", settings, NULL};
    struct error error;
    char reason[512];
    rd_kafka_conf_t *conf = kafka_client_conf(&options, &error);
    rd_kafka_t *consumer = conf ? kafka_client_new(RD_KAFKA_CONSUMER, conf, &error) : NULL;

    (void)state;
    assert_non_null(consumer);
    assert_false(kafka_client_broken(consumer, RD_KAFKA_RESP_ERR__TRANSPORT));
    assert_false(health_failed(health, reason, sizeof reason));
    rd_kafka_test_fatal_error(consumer, RD_KAFKA_RESP_ERR_GROUP_AUTHORIZATION_FAILED, "not yours");
    assert_true(kafka_client_broken(consumer, RD_KAFKA_RESP_ERR__FATAL));
    assert_true(health_failed(health, reason, sizeof reason));
    assert_non_null(strstr(reason, "w-test"));
    assert_non_null(strstr(reason, "not yours"));
    rd_kafka_destroy_flags(consumer, RD_KAFKA_DESTROY_F_NO_CONSUMER_CLOSE);
    health_destroy(health);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_broker_that_comes_back_is_found_soon),
        cmocka_unit_test(pass_through_wins_where_no_guarantee_rests_on_it),
        cmocka_unit_test(a_broken_consumer_fails_the_worker),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
