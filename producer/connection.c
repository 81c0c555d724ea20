/* SPDX-License-Identifier: MIT */
#include "producer/connection.h"

#include <stdio.h>
#include <string.h>

#include "kernels/base/clock.h"

static void on_log(const rd_kafka_t *kafka, int level, const char *facility, const char *text)
{
    const struct connection *c = rd_kafka_opaque(kafka);

    if (c && c->options->verbose)
        fprintf(stderr, "%d %s %s %s\n", level, rd_kafka_name(kafka), facility, text);
}

static void on_error(rd_kafka_t *kafka, int code, const char *reason, void *opaque)
{
    struct connection *c = opaque;

    (void)kafka;
    /* That all of them are down follows from what each of them said. */
    if (code != RD_KAFKA_RESP_ERR__ALL_BROKERS_DOWN || !*c->trouble)
        snprintf(c->trouble, sizeof c->trouble, "%s", reason);
    c->trouble_us = clock_mono_us();
}

static int set_pairs(rd_kafka_conf_t *conf, const char *const *pairs, const char *prefix,
                     struct error *error)
{
    char reason[512];

    for (; pairs && pairs[0]; pairs += 2)
        if (rd_kafka_conf_set(conf, pairs[0], pairs[1], reason, sizeof reason))
            return error_set(error, "%s%s=%s: %s", prefix, pairs[0],
                             strstr(pairs[0], "password") || strstr(pairs[0], "secret") ? "..."
                                                                                        : pairs[1],
                             reason);
    return 0;
}

enum client_status connection_open(struct connection *c, const struct client_options *options,
                                   const struct connection_settings *settings, void *owner,
                                   struct error *error)
{
    const char *const always[] = {"client.id", "pgpt", NULL};
    const char *const brokers[] = {"bootstrap.servers", options->brokers, NULL};
    rd_kafka_conf_t *conf = rd_kafka_conf_new();
    char reason[512];

    *c = (struct connection){.options = options, .owner = owner};
    rd_kafka_conf_set_opaque(conf, c);
    rd_kafka_conf_set_log_cb(conf, on_log);
    rd_kafka_conf_set_error_cb(conf, on_error);
    if (settings->on_delivery)
        rd_kafka_conf_set_dr_msg_cb(conf, settings->on_delivery);
    if (set_pairs(conf, always, "", error) || set_pairs(conf, settings->defaults, "", error) ||
        set_pairs(conf, options->properties, "-X ", error) ||
        set_pairs(conf, brokers, "--brokers: ", error) ||
        set_pairs(conf, settings->fixed, "", error)) {
        rd_kafka_conf_destroy(conf);
        return CLIENT_WRONG;
    }
    c->kafka = rd_kafka_new(settings->type, conf, reason, sizeof reason);
    if (!c->kafka) {
        rd_kafka_conf_destroy(conf);
        error_set(error, "Kafka client: %s", reason);
        return CLIENT_WRONG;
    }
    if (settings->type == RD_KAFKA_CONSUMER)
        rd_kafka_poll_set_consumer(c->kafka);
    return CLIENT_OK;
}

void connection_close(struct connection *c)
{
    if (c->kafka)
        rd_kafka_destroy(c->kafka);
    c->kafka = NULL;
}

const char *connection_topic(const struct connection *c, enum topic topic)
{
    return c->options->topics[topic] ? c->options->topics[topic] : topic_table[topic].name;
}

static bool no_answer(rd_kafka_resp_err_t code)
{
    return code == RD_KAFKA_RESP_ERR__TIMED_OUT || code == RD_KAFKA_RESP_ERR__TRANSPORT ||
           code == RD_KAFKA_RESP_ERR__ALL_BROKERS_DOWN || code == RD_KAFKA_RESP_ERR__RESOLVE ||
           code == RD_KAFKA_RESP_ERR__AUTHENTICATION || code == RD_KAFKA_RESP_ERR__SSL;
}

static const struct {
    rd_kafka_resp_err_t code;
    const char *remedy;
} remedies[] = {
    {RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED,
     "grant this user the right to it (kafka-acls), or be another (-X sasl.username)"},
    {RD_KAFKA_RESP_ERR_GROUP_AUTHORIZATION_FAILED,
     "grant this user READ on the groups pgpt-* (kafka-acls)"},
    {RD_KAFKA_RESP_ERR_CLUSTER_AUTHORIZATION_FAILED,
     "grant this user IDEMPOTENT_WRITE, and for pgpt topics CREATE and ALTER (kafka-acls)"},
    {RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART, "create the topics by: pgpt topics --create"},
    {RD_KAFKA_RESP_ERR__UNKNOWN_TOPIC, "create the topics by: pgpt topics --create"},
    {RD_KAFKA_RESP_ERR__UNKNOWN_PARTITION, "create the topics by: pgpt topics --create"},
    {RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE, "the topic's max.message.bytes says how large"},
    {RD_KAFKA_RESP_ERR_NOT_ENOUGH_REPLICAS,
     "start the brokers that are down, or lower the topic's min.insync.replicas"},
    {RD_KAFKA_RESP_ERR_NOT_ENOUGH_REPLICAS_AFTER_APPEND,
     "start the brokers that are down, or lower the topic's min.insync.replicas"},
    {RD_KAFKA_RESP_ERR_INVALID_REPLICATION_FACTOR,
     "--replication may be as high as the number of brokers"},
    {RD_KAFKA_RESP_ERR__MSG_TIMED_OUT,
     "are the brokers up? -X message.timeout.ms says how long they are waited for"},
    {RD_KAFKA_RESP_ERR__UNSUPPORTED_FEATURE, "these brokers are too old for it"}};

void connection_reason(const struct connection *c, rd_kafka_resp_err_t code,
                       char reason[CONNECTION_REASON_MAX])
{
    const char *remedy = NULL, *told = rd_kafka_err2str(code);
    rd_kafka_resp_err_t first;
    char fatal[512];

    /* What follows from a fatal error is told as the error itself. */
    if ((code == RD_KAFKA_RESP_ERR__FATAL || code == RD_KAFKA_RESP_ERR__PURGE_QUEUE ||
         code == RD_KAFKA_RESP_ERR__PURGE_INFLIGHT) &&
        (first = rd_kafka_fatal_error(c->kafka, fatal, sizeof fatal))) {
        code = first;
        told = fatal;
    }
    for (size_t i = 0; i < sizeof remedies / sizeof *remedies; i++)
        if (remedies[i].code == code)
            remedy = remedies[i].remedy;
    snprintf(reason, CONNECTION_REASON_MAX, "%s%s%s", told, remedy ? "; " : "",
             remedy ? remedy : "");
}

enum client_status connection_failed(struct connection *c, rd_kafka_resp_err_t code,
                                     const char *what, struct error *error)
{
    char reason[CONNECTION_REASON_MAX];

    /* The reason of a failed connection waits in the client's queue. */
    if (rd_kafka_type(c->kafka) == RD_KAFKA_PRODUCER || !*c->trouble)
        rd_kafka_poll(c->kafka, 0);
    if (no_answer(code)) {
        error_set(error, "%s: the brokers (%s) do not answer%s%s", what, c->options->brokers,
                  *c->trouble ? ": " : "", c->trouble);
        return CLIENT_UNREACHABLE;
    }
    connection_reason(c, code, reason);
    error_set(error, "%s: %s", what, reason);
    return CLIENT_FAILED;
}

enum client_status connection_partitions(struct connection *c, enum topic topic, int32_t *count,
                                         struct error *error)
{
    const char *name = connection_topic(c, topic);
    const struct rd_kafka_metadata *metadata;
    rd_kafka_topic_t *handle = rd_kafka_topic_new(c->kafka, name, NULL);
    rd_kafka_resp_err_t code;

    if (!handle) {
        error_set(error, "topic %.100s: %s; %s names it", name,
                  rd_kafka_err2str(rd_kafka_last_error()), topic_table[topic].environment);
        return CLIENT_WRONG;
    }
    code = rd_kafka_metadata(c->kafka, 0, handle, &metadata, c->options->timeout_ms);
    rd_kafka_topic_destroy(handle);
    if (code)
        return connection_failed(c, code, name, error);
    code = metadata->topic_cnt == 1 ? metadata->topics[0].err : RD_KAFKA_RESP_ERR_UNKNOWN;
    *count = code ? 0 : metadata->topics[0].partition_cnt;
    rd_kafka_metadata_destroy(metadata);
    if (code == RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART || (!code && !*count)) {
        error_set(error, "topic %s is missing; create the topics by: pgpt topics --create", name);
        return CLIENT_NO_TOPIC;
    }
    return code ? connection_failed(c, code, name, error) : CLIENT_OK;
}

static enum client_status ask_offsets(struct connection *c, rd_kafka_topic_partition_list_t *list,
                                      int64_t time_ms, struct error *error)
{
    rd_kafka_resp_err_t code;
    char what[300];
    int at = 0; /* the partition that is told of */

    for (int i = 0; i < list->cnt; i++)
        list->elems[i].offset = time_ms;
    code = rd_kafka_offsets_for_times(c->kafka, list, c->options->timeout_ms);
    for (int i = 0; i < list->cnt && !code; i++) {
        code = list->elems[i].err;
        at = i;
    }
    snprintf(what, sizeof what, "offsets of %.250s", list->elems[at].topic);
    return code ? connection_failed(c, code, what, error) : CLIENT_OK;
}

void connection_fill_ends(rd_kafka_topic_partition_list_t *found,
                          const rd_kafka_topic_partition_list_t *ends)
{
    for (int i = 0; i < found->cnt; i++)
        if (found->elems[i].offset < 0)
            found->elems[i].offset = ends->elems[i].offset;
}

/* A partition without a record that late has no answer, and "its end" would be looked up later:
 * what comes until then would be missed. So the ends are taken first, and count there. */
enum client_status connection_offsets(struct connection *c, rd_kafka_topic_partition_list_t *list,
                                      int64_t since_us, struct error *error)
{
    rd_kafka_topic_partition_list_t *ends;
    enum client_status status;

    if (since_us == FOLLOW_FROM_START || !list->cnt) {
        for (int i = 0; i < list->cnt; i++)
            list->elems[i].offset = RD_KAFKA_OFFSET_BEGINNING;
        return CLIENT_OK;
    }
    /* The end asked for as a time is the end as this reader sees it: open transactions lie behind.
     */
    status = ask_offsets(c, list, RD_KAFKA_OFFSET_END, error);
    if (status || since_us == FOLLOW_FROM_NOW)
        return status;
    ends = rd_kafka_topic_partition_list_copy(list);
    status = ask_offsets(c, list, since_us / 1000, error);
    connection_fill_ends(list, ends);
    rd_kafka_topic_partition_list_destroy(ends);
    return status;
}
