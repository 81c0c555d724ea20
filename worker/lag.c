/* SPDX-License-Identifier: MIT */
#include "worker/lag.h"

#include <stdlib.h>

#include "worker/assignment.h"

enum { ASK_EVERY_US = 5000000 };

struct lag {
    struct pipeline *pipeline;
    rd_kafka_t *consumer;
    rd_kafka_queue_t *answers;
    bool asked;
    int64_t ask_at_us;
};

struct lag *lag_create(struct pipeline *pipeline, rd_kafka_t *consumer, struct error *error)
{
    struct lag *l = calloc(1, sizeof *l);

    if (!l) {
        error_set(error, "lag: out of memory");
        return NULL;
    }
    l->pipeline = pipeline;
    l->consumer = consumer;
    l->answers = rd_kafka_queue_new(consumer);
    return l;
}

void lag_destroy(struct lag *l)
{
    if (!l)
        return;
    rd_kafka_queue_destroy(l->answers);
    free(l);
}

/* A failed answer leaves the metric as it is: the next one comes in a few seconds. */
static void answer_take(struct lag *l, rd_kafka_event_t *event)
{
    const rd_kafka_ListOffsets_result_t *result = rd_kafka_event_ListOffsets_result(event);
    const rd_kafka_ListOffsetsResultInfo_t **infos;
    int64_t unfinished = 0;
    size_t count;

    if (!result || rd_kafka_event_error(event)) {
        log_write(LOG_DEBUG, "intake", NULL, "lag: %s", rd_kafka_event_error_string(event));
        return;
    }
    infos = rd_kafka_ListOffsets_result_infos(result, &count);
    for (size_t i = 0; i < count; i++) {
        const rd_kafka_topic_partition_t *end =
            rd_kafka_ListOffsetsResultInfo_topic_partition(infos[i]);

        if (!end->err)
            unfinished +=
                assignment_unfinished(l->pipeline->assignment, end->partition, end->offset);
    }
    metrics_set(METRIC_REQUESTS_LAG, unfinished);
}

static void ask(struct lag *l, const uint8_t *assigned, int32_t partition_end)
{
    rd_kafka_topic_partition_list_t *list = rd_kafka_topic_partition_list_new(16);
    rd_kafka_AdminOptions_t *options =
        rd_kafka_AdminOptions_new(l->consumer, RD_KAFKA_ADMIN_OP_LISTOFFSETS);

    /* what a reader of committed records can get */
    rd_kafka_error_t *failed =
        rd_kafka_AdminOptions_set_isolation_level(options, RD_KAFKA_ISOLATION_LEVEL_READ_COMMITTED);

    if (failed)
        rd_kafka_error_destroy(failed);
    for (int32_t p = 0; p < partition_end; p++)
        if (assigned[p])
            rd_kafka_topic_partition_list_add(list, l->pipeline->config->topic_requests, p)
                ->offset = RD_KAFKA_OFFSET_SPEC_LATEST;
    if (list->cnt)
        rd_kafka_ListOffsets(l->consumer, list, options, l->answers);
    else
        metrics_set(METRIC_REQUESTS_LAG, 0);
    l->asked = list->cnt > 0;
    rd_kafka_AdminOptions_destroy(options);
    rd_kafka_topic_partition_list_destroy(list);
}

void lag_ask_now(struct lag *l)
{
    l->ask_at_us = 0;
}

void lag_review(struct lag *l, const uint8_t *assigned, int32_t partition_end, int64_t now_mono_us)
{
    rd_kafka_event_t *event = l->asked ? rd_kafka_queue_poll(l->answers, 0) : NULL;

    if (event) {
        answer_take(l, event);
        rd_kafka_event_destroy(event);
        l->asked = false;
    }
    if (l->asked || now_mono_us < l->ask_at_us)
        return;
    l->ask_at_us = now_mono_us + ASK_EVERY_US;
    ask(l, assigned, partition_end);
}
