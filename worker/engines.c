/* SPDX-License-Identifier: MIT */
#include "worker/engines.h"

#include <stdlib.h>
#include <string.h>

#include "worker/ledger_metadata.h"

enum { ASK_EVERY_US = 15000000 };

struct engines {
    struct pipeline *pipeline;
    rd_kafka_t *consumer;
    rd_kafka_queue_t *answers;
    bool asked, mixed;
    int64_t ask_at_us;
};

struct engines *engines_create(struct pipeline *pipeline, rd_kafka_t *consumer, struct error *error)
{
    struct engines *e = calloc(1, sizeof *e);

    if (!e) {
        error_set(error, "engines: out of memory");
        return NULL;
    }
    e->pipeline = pipeline;
    e->consumer = consumer;
    e->answers = rd_kafka_queue_new(consumer);
    return e;
}

void engines_destroy(struct engines *e)
{
    if (!e)
        return;
    rd_kafka_queue_destroy(e->answers);
    free(e);
}

/* True when the partition's owner runs another engine; its id goes to `other`. */
static bool is_other(const rd_kafka_topic_partition_t *entry, char other[LEDGER_ENGINE_ID_SIZE])
{
    const char *own = job_identity_get()->engine_id;
    struct ledger ledger;
    struct error error;

    if (entry->err || entry->offset < 0 || !own ||
        ledger_metadata_read(entry->metadata, entry->metadata_size, entry->offset, &ledger, &error))
        return false;
    strcpy(other, ledger.engine_id); /* of the same size */
    return ledger.open && *other && strcmp(other, own) != 0;
}

static void answer_take(struct engines *e, rd_kafka_event_t *event)
{
    const rd_kafka_ListConsumerGroupOffsets_result_t *result =
        rd_kafka_event_ListConsumerGroupOffsets_result(event);
    char other[LEDGER_ENGINE_ID_SIZE] = "";
    const rd_kafka_topic_partition_list_t *list;
    const rd_kafka_group_result_t **groups;
    bool mixed = false;
    size_t count;

    if (!result || rd_kafka_event_error(event))
        return; /* asked again soon */
    groups = rd_kafka_ListConsumerGroupOffsets_result_groups(result, &count);
    list = count == 1 ? rd_kafka_group_result_partitions(groups[0]) : NULL;
    for (int i = 0; list && i < list->cnt && !mixed; i++)
        mixed = !strcmp(list->elems[i].topic, e->pipeline->config->topic_requests) &&
                is_other(&list->elems[i], other);
    if (mixed && !e->mixed)
        log_write(LOG_WARN, "intake", NULL,
                  "a worker of this group runs engine_id %s, this one %s: jobs that move between "
                  "them are not replayed byte for byte",
                  other, job_identity_get()->engine_id);
    e->mixed = mixed;
    metrics_set(METRIC_ENGINE_IDS_MIXED, mixed);
}

static void ask(struct engines *e)
{
    rd_kafka_ListConsumerGroupOffsets_t *question =
        rd_kafka_ListConsumerGroupOffsets_new(e->pipeline->config->kafka_group, NULL);

    rd_kafka_ListConsumerGroupOffsets(e->consumer, &question, 1, NULL, e->answers);
    rd_kafka_ListConsumerGroupOffsets_destroy(question);
    e->asked = true;
}

void engines_review(struct engines *e, int64_t now_mono_us)
{
    rd_kafka_event_t *event = e->asked ? rd_kafka_queue_poll(e->answers, 0) : NULL;

    if (event) {
        answer_take(e, event);
        rd_kafka_event_destroy(event);
        e->asked = false;
    }
    if (e->asked || now_mono_us < e->ask_at_us)
        return;
    e->ask_at_us = now_mono_us + ASK_EVERY_US;
    ask(e);
}
