/* SPDX-License-Identifier: MIT */
#include "producer/topic_admin.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

/* ---- what is wanted ---- */

static void setting(struct topic_setting *s, const char *name, int64_t value)
{
    s->name = name;
    snprintf(s->value, sizeof s->value, "%" PRId64, value);
}

size_t topic_settings_wanted(enum topic topic, int32_t replication,
                             struct topic_setting settings[TOPIC_SETTINGS_MAX])
{
    const struct topic_row *row = &topic_table[topic];
    size_t count = 0;

    settings[count++] = (struct topic_setting){"cleanup.policy", "delete"};
    setting(&settings[count++], "retention.ms", row->retention_ms);
    setting(&settings[count++], "max.message.bytes", row->max_message_bytes);
    /* One replica may be missing without stopping writers. */
    setting(&settings[count++], "min.insync.replicas", replication > 1 ? replication - 1 : 1);
    if (row->segment_ms)
        setting(&settings[count++], "segment.ms", row->segment_ms);
    return count;
}

static const char *found_setting(const struct topic_state *state, const char *name)
{
    for (size_t i = 0; i < state->setting_count; i++)
        if (!strcmp(state->settings[i].name, name))
            return state->settings[i].value;
    return "not told";
}

static size_t compare_number(const char *topic, const char *what, int32_t wanted, int32_t found,
                             topic_tell *tell, void *opaque)
{
    char a[16], b[16];

    if (wanted == found)
        return 0;
    snprintf(a, sizeof a, "%d", wanted);
    snprintf(b, sizeof b, "%d", found);
    tell(opaque, topic, what, a, b);
    return 1;
}

size_t topic_compare(const struct topic_state topics[TOPIC_COUNT],
                     const char *const names[TOPIC_COUNT], int32_t partitions, int32_t replication,
                     topic_tell *tell, void *opaque)
{
    size_t count = 0;

    if (!partitions)
        partitions = topics[TOPIC_REQUESTS].partitions;
    if (!replication)
        replication = topics[TOPIC_REQUESTS].replication;
    for (int t = 0; t < TOPIC_COUNT; t++) {
        struct topic_setting wanted[TOPIC_SETTINGS_MAX];
        size_t wanted_count;

        if (!topics[t].exists) {
            tell(opaque, names[t], "topic", "present", "missing");
            count++;
            continue;
        }
        if (partitions || !topic_table[t].partitioned)
            count +=
                compare_number(names[t], "partitions", topic_table[t].partitioned ? partitions : 1,
                               topics[t].partitions, tell, opaque);
        if (replication)
            count += compare_number(names[t], "replication", replication, topics[t].replication,
                                    tell, opaque);
        wanted_count = topic_settings_wanted(
            (enum topic)t, replication ? replication : topics[t].replication, wanted);
        for (size_t i = 0; i < wanted_count; i++) {
            const char *found = found_setting(&topics[t], wanted[i].name);

            if (!strcmp(found, wanted[i].value))
                continue;
            tell(opaque, names[t], wanted[i].name, wanted[i].value, found);
            count++;
        }
    }
    return count;
}

/* ---- the brokers ---- */

enum client_status topic_admin_open(struct topic_admin *a, const struct client_options *options,
                                    struct error *error)
{
    const struct connection_settings settings = {.type = RD_KAFKA_PRODUCER};
    enum client_status status;

    memset(a, 0, sizeof *a);
    status = connection_open(&a->connection, options, &settings, a, error);
    if (!status)
        a->queue = rd_kafka_queue_new(a->connection.kafka);
    return status;
}

void topic_admin_close(struct topic_admin *a)
{
    if (a->queue)
        rd_kafka_queue_destroy(a->queue);
    connection_close(&a->connection);
}

static rd_kafka_AdminOptions_t *admin_options(struct topic_admin *a, rd_kafka_admin_op_t operation)
{
    rd_kafka_AdminOptions_t *options = rd_kafka_AdminOptions_new(a->connection.kafka, operation);
    char reason[256] = "";

    /* These fail for values out of range only. */
    (void)rd_kafka_AdminOptions_set_request_timeout(options, a->connection.options->timeout_ms,
                                                    reason, sizeof reason);
    if (operation == RD_KAFKA_ADMIN_OP_CREATETOPICS ||
        operation == RD_KAFKA_ADMIN_OP_CREATEPARTITIONS)
        (void)rd_kafka_AdminOptions_set_operation_timeout(
            options, a->connection.options->timeout_ms, reason, sizeof reason);
    return options;
}

/* The answer to the one request that is under way; NULL with the reason. The caller destroys it. */
static rd_kafka_event_t *answer(struct topic_admin *a, const char *what, enum client_status *status,
                                struct error *error)
{
    rd_kafka_event_t *event =
        rd_kafka_queue_poll(a->queue, a->connection.options->timeout_ms + 1000);
    rd_kafka_resp_err_t code = event ? rd_kafka_event_error(event) : RD_KAFKA_RESP_ERR__TIMED_OUT;

    *status = CLIENT_OK;
    if (!code)
        return event;
    *status = connection_failed(&a->connection, code, what, error);
    if (event)
        rd_kafka_event_destroy(event);
    return NULL;
}

static enum client_status refused(struct topic_admin *a, const char *what, const char *name,
                                  rd_kafka_resp_err_t code, const char *told, struct error *error)
{
    char reason[CONNECTION_REASON_MAX];

    connection_reason(&a->connection, code, reason);
    error_set(error, "%s topic %s: %s%s%s", what, name, reason, told ? ": " : "", told ? told : "");
    return CLIENT_FAILED;
}

/* A topic's own outcome. */
static enum client_status topic_outcome(struct topic_admin *a,
                                        const rd_kafka_topic_result_t *result, const char *what,
                                        rd_kafka_resp_err_t harmless, struct error *error)
{
    rd_kafka_resp_err_t code = rd_kafka_topic_result_error(result);

    if (!code || code == harmless)
        return CLIENT_OK;
    return refused(a, what, rd_kafka_topic_result_name(result), code,
                   rd_kafka_topic_result_error_string(result), error);
}

static enum client_status resource_outcome(struct topic_admin *a,
                                           const rd_kafka_ConfigResource_t *resource,
                                           const char *what, struct error *error)
{
    rd_kafka_resp_err_t code = rd_kafka_ConfigResource_error(resource);

    return code ? refused(a, what, rd_kafka_ConfigResource_name(resource), code,
                          rd_kafka_ConfigResource_error_string(resource), error)
                : CLIENT_OK;
}

enum client_status topic_admin_create(struct topic_admin *a, enum topic topic, int32_t partitions,
                                      int32_t replication, struct error *error)
{
    rd_kafka_AdminOptions_t *options = admin_options(a, RD_KAFKA_ADMIN_OP_CREATETOPICS);
    struct topic_setting wanted[TOPIC_SETTINGS_MAX];
    size_t count = topic_settings_wanted(topic, replication, wanted);
    rd_kafka_NewTopic_t *new_topic;
    rd_kafka_event_t *event;
    enum client_status status;
    char reason[256] = "";

    new_topic = rd_kafka_NewTopic_new(connection_topic(&a->connection, topic),
                                      topic_table[topic].partitioned ? partitions : 1, replication,
                                      reason, sizeof reason);
    if (!new_topic) {
        rd_kafka_AdminOptions_destroy(options);
        error_set(error, "topic %s: %s", connection_topic(&a->connection, topic), reason);
        return CLIENT_WRONG;
    }
    for (size_t i = 0; i < count; i++)
        rd_kafka_NewTopic_set_config(new_topic, wanted[i].name, wanted[i].value);
    rd_kafka_CreateTopics(a->connection.kafka, &new_topic, 1, options, a->queue);
    rd_kafka_NewTopic_destroy(new_topic);
    rd_kafka_AdminOptions_destroy(options);
    event = answer(a, "creating topics", &status, error);
    if (event) {
        size_t results;

        /* Somebody else may have made it just now. */
        status = topic_outcome(a,
                               rd_kafka_CreateTopics_result_topics(
                                   rd_kafka_event_CreateTopics_result(event), &results)[0],
                               "creating", RD_KAFKA_RESP_ERR_TOPIC_ALREADY_EXISTS, error);
        rd_kafka_event_destroy(event);
    }
    return status;
}

enum client_status topic_admin_grow(struct topic_admin *a, enum topic topic, int32_t partitions,
                                    struct error *error)
{
    rd_kafka_AdminOptions_t *options = admin_options(a, RD_KAFKA_ADMIN_OP_CREATEPARTITIONS);
    rd_kafka_NewPartitions_t *more;
    rd_kafka_event_t *event;
    enum client_status status;
    char reason[256] = "";

    more = rd_kafka_NewPartitions_new(connection_topic(&a->connection, topic), (size_t)partitions,
                                      reason, sizeof reason);
    if (!more) {
        rd_kafka_AdminOptions_destroy(options);
        error_set(error, "topic %s: %s", connection_topic(&a->connection, topic), reason);
        return CLIENT_WRONG;
    }
    rd_kafka_CreatePartitions(a->connection.kafka, &more, 1, options, a->queue);
    rd_kafka_NewPartitions_destroy(more);
    rd_kafka_AdminOptions_destroy(options);
    event = answer(a, "adding partitions", &status, error);
    if (event) {
        size_t results;

        status = topic_outcome(a,
                               rd_kafka_CreatePartitions_result_topics(
                                   rd_kafka_event_CreatePartitions_result(event), &results)[0],
                               "adding partitions to", RD_KAFKA_RESP_ERR_NO_ERROR, error);
        rd_kafka_event_destroy(event);
    }
    return status;
}

enum client_status topic_admin_alter(struct topic_admin *a, enum topic topic, int32_t replication,
                                     struct error *error)
{
    rd_kafka_AdminOptions_t *options = admin_options(a, RD_KAFKA_ADMIN_OP_INCREMENTALALTERCONFIGS);
    rd_kafka_ConfigResource_t *resource = rd_kafka_ConfigResource_new(
        RD_KAFKA_RESOURCE_TOPIC, connection_topic(&a->connection, topic));
    struct topic_setting wanted[TOPIC_SETTINGS_MAX];
    size_t count = topic_settings_wanted(topic, replication, wanted);
    rd_kafka_event_t *event;
    enum client_status status;

    for (size_t i = 0; i < count; i++) {
        rd_kafka_error_t *failed = rd_kafka_ConfigResource_add_incremental_config(
            resource, wanted[i].name, RD_KAFKA_ALTER_CONFIG_OP_TYPE_SET, wanted[i].value);

        if (failed) /* for empty names only, as CreateTopics' settings do */
            rd_kafka_error_destroy(failed);
    }
    rd_kafka_IncrementalAlterConfigs(a->connection.kafka, &resource, 1, options, a->queue);
    rd_kafka_ConfigResource_destroy(resource);
    rd_kafka_AdminOptions_destroy(options);
    event = answer(a, "setting topics", &status, error);
    if (event) {
        size_t results;

        status =
            resource_outcome(a,
                             rd_kafka_IncrementalAlterConfigs_result_resources(
                                 rd_kafka_event_IncrementalAlterConfigs_result(event), &results)[0],
                             "setting", error);
        rd_kafka_event_destroy(event);
    }
    return status;
}

/* ---- reading ---- */

static int topic_of(const struct topic_admin *a, const char *name)
{
    for (int t = 0; t < TOPIC_COUNT; t++)
        if (!strcmp(connection_topic(&a->connection, (enum topic)t), name))
            return t;
    return -1;
}

static enum client_status read_counts(struct topic_admin *a, struct error *error)
{
    const struct rd_kafka_metadata *metadata;
    rd_kafka_resp_err_t code = rd_kafka_metadata(a->connection.kafka, 1, NULL, &metadata,
                                                 a->connection.options->timeout_ms);

    if (code)
        return connection_failed(&a->connection, code, "reading topics", error);
    a->brokers = metadata->broker_cnt;
    for (int i = 0; i < metadata->topic_cnt; i++) {
        const struct rd_kafka_metadata_topic *topic = &metadata->topics[i];
        int t = topic_of(a, topic->topic);

        if (t < 0 || topic->err || !topic->partition_cnt)
            continue;
        a->topics[t].exists = true;
        a->topics[t].partitions = topic->partition_cnt;
        a->topics[t].replication = topic->partitions[0].replica_cnt;
    }
    rd_kafka_metadata_destroy(metadata);
    return CLIENT_OK;
}

/* Keeps the values of settings that the table knows. */
static void keep_settings(struct topic_state *state, enum topic topic,
                          const rd_kafka_ConfigEntry_t **entries, size_t count)
{
    state->setting_count = topic_settings_wanted(topic, 1, state->settings);
    for (size_t s = 0; s < state->setting_count; s++) {
        struct topic_setting *kept = &state->settings[s];

        snprintf(kept->value, sizeof kept->value, "not told");
        for (size_t e = 0; e < count; e++)
            if (!strcmp(rd_kafka_ConfigEntry_name(entries[e]), kept->name) &&
                rd_kafka_ConfigEntry_value(entries[e]))
                snprintf(kept->value, sizeof kept->value, "%s",
                         rd_kafka_ConfigEntry_value(entries[e]));
    }
}

static enum client_status read_settings(struct topic_admin *a, struct error *error)
{
    rd_kafka_ConfigResource_t *resources[TOPIC_COUNT];
    const rd_kafka_ConfigResource_t **results;
    rd_kafka_AdminOptions_t *options = admin_options(a, RD_KAFKA_ADMIN_OP_DESCRIBECONFIGS);
    rd_kafka_event_t *event = NULL;
    enum client_status status = CLIENT_OK;
    size_t count = 0;

    for (int t = 0; t < TOPIC_COUNT; t++)
        if (a->topics[t].exists)
            resources[count++] = rd_kafka_ConfigResource_new(
                RD_KAFKA_RESOURCE_TOPIC, connection_topic(&a->connection, (enum topic)t));
    if (count) {
        rd_kafka_DescribeConfigs(a->connection.kafka, resources, count, options, a->queue);
        rd_kafka_ConfigResource_destroy_array(resources, count);
        event = answer(a, "reading topics' settings", &status, error);
    }
    rd_kafka_AdminOptions_destroy(options);
    if (!event)
        return status;
    results = rd_kafka_DescribeConfigs_result_resources(
        rd_kafka_event_DescribeConfigs_result(event), &count);
    for (size_t i = 0; i < count && !status; i++) {
        int t = topic_of(a, rd_kafka_ConfigResource_name(results[i]));
        size_t entry_count;
        const rd_kafka_ConfigEntry_t **entries =
            rd_kafka_ConfigResource_configs(results[i], &entry_count);

        status = resource_outcome(a, results[i], "reading settings of", error);
        if (!status && t >= 0)
            keep_settings(&a->topics[t], (enum topic)t, entries, entry_count);
    }
    rd_kafka_event_destroy(event);
    return status;
}

enum client_status topic_admin_read(struct topic_admin *a, struct error *error)
{
    enum client_status status;

    memset(a->topics, 0, sizeof a->topics);
    status = read_counts(a, error);
    return status ? status : read_settings(a, error);
}
