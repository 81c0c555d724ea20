/* SPDX-License-Identifier: MIT */
#include "worker/kafka_client.h"

#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#include "kernels/base/clock.h"
#include "worker/log.h"

/* The health of the process for librdkafka's error callback: its opaque belongs to the roles. */
static struct health *_Atomic process_health;

static void log_line(const rd_kafka_t *client, int level, const char *facility, const char *text)
{
    enum log_level mapped = level <= 3   ? LOG_ERROR
                            : level <= 4 ? LOG_WARN
                            : level <= 6 ? LOG_INFO
                                         : LOG_DEBUG;

    log_write(mapped, "kafka", NULL, "%s: %s: %s", client ? rd_kafka_name(client) : "-", facility,
              text);
}

/* Every client of the process says it at every try; one line every few seconds is enough. */
static bool down_is_news(int64_t now_us)
{
    enum { DOWN_EVERY_US = 5000000 };
    static _Atomic int64_t next_us;
    int64_t next = atomic_load(&next_us);

    return now_us >= next &&
           atomic_compare_exchange_strong(&next_us, &next, now_us + DOWN_EVERY_US);
}

/* Errors that librdkafka does not mend by itself end the worker, so that its jobs move on. */
static void error_line(rd_kafka_t *client, int code, const char *reason, void *opaque)
{
    char fatal[512];

    (void)opaque;
    if (code == RD_KAFKA_RESP_ERR__ALL_BROKERS_DOWN && !down_is_news(clock_mono_us()))
        return;
    if (code != RD_KAFKA_RESP_ERR__FATAL) {
        log_write(LOG_WARN, "kafka", NULL, "%s: %s", rd_kafka_name(client), reason);
        return;
    }
    rd_kafka_fatal_error(client, fatal, sizeof fatal);
    health_fail(process_health, "Kafka client %s: fatal error: %s", rd_kafka_name(client), fatal);
}

static int set(rd_kafka_conf_t *conf, const char *name, const char *value, struct error *error)
{
    char reason[512];

    if (rd_kafka_conf_set(conf, name, value, reason, sizeof reason) == RD_KAFKA_CONF_OK)
        return 0;
    return error_set(error, "kafka.%s: %s", name, reason);
}

/* By default a client that found its broker gone may wait 10 s before it looks again: as long as
 * the group's session, so that a broker's restart cost partitions that nobody else should have had.
 */
#define RECONNECT_MAX_MS "1000"

static int set_all(rd_kafka_conf_t *conf, const struct kafka_client_options *o, struct error *error)
{
    char client_id[256];

    snprintf(client_id, sizeof client_id, "%s-%s", o->config->worker_name, o->role);
    if (set(conf, "bootstrap.servers", o->config->kafka_brokers, error) ||
        set(conf, "client.id", client_id, error) ||
        set(conf, "reconnect.backoff.max.ms", RECONNECT_MAX_MS, error))
        return -1;
    for (size_t i = 0; i < o->config->kafka_count; i++)
        if (set(conf, o->config->kafka[i].name, o->config->kafka[i].value, error))
            return -1;
    /* Last: the guarantees rest on these, a pass-through setting must not undo them. */
    for (const char *const *pair = o->settings; pair && pair[0]; pair += 2)
        if (set(conf, pair[0], pair[1], error))
            return -1;
    return 0;
}

rd_kafka_conf_t *kafka_client_conf(const struct kafka_client_options *options, struct error *error)
{
    rd_kafka_conf_t *conf = rd_kafka_conf_new();

    process_health = options->health;
    rd_kafka_conf_set_log_cb(conf, log_line);
    rd_kafka_conf_set_error_cb(conf, error_line);
    rd_kafka_conf_set_opaque(conf, options->opaque);
    if (set_all(conf, options, error)) {
        rd_kafka_conf_destroy(conf);
        return NULL;
    }
    return conf;
}

rd_kafka_t *kafka_client_new(rd_kafka_type_t type, rd_kafka_conf_t *conf, struct error *error)
{
    char reason[512];
    rd_kafka_t *client = rd_kafka_new(type, conf, reason, sizeof reason);

    if (!client) {
        rd_kafka_conf_destroy(conf);
        error_set(error, "Kafka client: %s", reason);
    }
    return client;
}

bool kafka_client_broken(rd_kafka_t *client, rd_kafka_resp_err_t code)
{
    if (code != RD_KAFKA_RESP_ERR__FATAL)
        return false;
    error_line(client, code, "", NULL);
    return true;
}

/* Of an error that no call of this producer survives. A coordinator that has ended the transaction
 * by its timeout, or has lost it, knows nothing of it: the next producer may. */
static enum kafka_class fatal_class(rd_kafka_resp_err_t code)
{
    switch (code) {
    case RD_KAFKA_RESP_ERR_INVALID_TXN_STATE:
    case RD_KAFKA_RESP_ERR_INVALID_PRODUCER_ID_MAPPING:
        return KAFKA_INDETERMINATE;
    case RD_KAFKA_RESP_ERR__FENCED:
    case RD_KAFKA_RESP_ERR_PRODUCER_FENCED:
    case RD_KAFKA_RESP_ERR_INVALID_PRODUCER_EPOCH:
        return KAFKA_FENCED;
    default:
        return KAFKA_FATAL;
    }
}

enum kafka_class kafka_client_classify(rd_kafka_error_t *error, const char *call)
{
    static const char *const names[] = {[KAFKA_ABORT] = "abort",
                                        [KAFKA_INDETERMINATE] = "indeterminate",
                                        [KAFKA_FENCED] = "fenced",
                                        [KAFKA_FATAL] = "fatal"};
    enum kafka_class class = KAFKA_INDETERMINATE;

    if (!error)
        return KAFKA_OK;
    if (rd_kafka_error_is_fatal(error))
        class = fatal_class(rd_kafka_error_code(error));
    else if (rd_kafka_error_txn_requires_abort(error))
        class = KAFKA_ABORT;
    log_write(class == KAFKA_FATAL ? LOG_ERROR : LOG_WARN, "settle", NULL, "%s: %s (%s)", call,
              rd_kafka_error_string(error), names[class]);
    rd_kafka_error_destroy(error);
    return class;
}

rd_kafka_headers_t *kafka_client_trace_headers(struct text traceparent, struct text tracestate)
{
    rd_kafka_headers_t *headers;

    if (!traceparent.size && !tracestate.size)
        return NULL;
    headers = rd_kafka_headers_new(2);
    if (headers && traceparent.size)
        rd_kafka_header_add(headers, "traceparent", -1, traceparent.data,
                            (ssize_t)traceparent.size);
    if (headers && tracestate.size)
        rd_kafka_header_add(headers, "tracestate", -1, tracestate.data, (ssize_t)tracestate.size);
    return headers;
}

int32_t kafka_client_partitions(rd_kafka_t *client, const char *topic, int timeout_ms)
{
    const struct rd_kafka_metadata *metadata;
    rd_kafka_topic_t *handle = rd_kafka_topic_new(client, topic, NULL);
    int32_t count = -1;

    if (!handle)
        return -1;
    if (!rd_kafka_metadata(client, 0, handle, &metadata, timeout_ms)) {
        if (metadata->topic_cnt == 1 && !metadata->topics[0].err)
            count = metadata->topics[0].partition_cnt;
        rd_kafka_metadata_destroy(metadata);
    }
    rd_kafka_topic_destroy(handle);
    return count;
}
