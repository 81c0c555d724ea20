/* SPDX-License-Identifier: MIT */
#include "producer/connection.h"

#include <stdio.h>
#include <string.h>

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

enum client_status connection_failed(struct connection *c, rd_kafka_resp_err_t code,
                                     const char *what, struct error *error)
{
    /* The reason of a failed connection waits in the client's queue. */
    if (rd_kafka_type(c->kafka) == RD_KAFKA_PRODUCER || !*c->trouble)
        rd_kafka_poll(c->kafka, 0);
    if (no_answer(code)) {
        error_set(error, "%s: the brokers (%s) do not answer%s%s", what, c->options->brokers,
                  *c->trouble ? ": " : "", c->trouble);
        return CLIENT_UNREACHABLE;
    }
    error_set(error, "%s: %s", what, rd_kafka_err2str(code));
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
        error_set(error, "topic %s: %s", name, rd_kafka_err2str(rd_kafka_last_error()));
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

    for (int i = 0; i < list->cnt; i++)
        list->elems[i].offset = time_ms;
    code = rd_kafka_offsets_for_times(c->kafka, list, c->options->timeout_ms);
    for (int i = 0; i < list->cnt && !code; i++)
        code = list->elems[i].err;
    return code ? connection_failed(c, code, "asking for offsets", error) : CLIENT_OK;
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
