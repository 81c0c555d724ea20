/* SPDX-License-Identifier: MIT */
#include "worker/engines.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "worker/condition.h"
#include "worker/fault.h"
#include "worker/kafka_client.h"
#include "worker/ledger_metadata.h"

enum {
    ASK_EVERY_S = 15,
    ASK_OFTEN_S = 1,      /* tests, that need not wait */
    ASK_TIMEOUT_MS = 1000 /* engines_destroy() waits for two of them at most */
};

struct engines {
    struct pipeline *pipeline;
    rd_kafka_t *reader; /* of the group's offsets; member of nothing */
    bool mixed;
    pthread_t thread;
    bool started;
    pthread_mutex_t lock;
    pthread_cond_t wake;
    bool stopping; /* under the lock */
};

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

static void answer_take(struct engines *e, const rd_kafka_topic_partition_list_t *list)
{
    char other[LEDGER_ENGINE_ID_SIZE] = "";
    bool mixed = false;

    for (int i = 0; i < list->cnt && !mixed; i++)
        mixed = is_other(&list->elems[i], other);
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
    const char *topic = e->pipeline->config->topic_requests;
    rd_kafka_topic_partition_list_t *list;
    int32_t partitions;

    rd_kafka_poll(e->reader, 0); /* error callbacks */
    partitions = kafka_client_partitions(e->reader, topic, ASK_TIMEOUT_MS);
    if (partitions < 0)
        return; /* asked again soon */
    list = rd_kafka_topic_partition_list_new(partitions);
    rd_kafka_topic_partition_list_add_range(list, topic, 0, partitions - 1);
    if (!rd_kafka_committed(e->reader, list, ASK_TIMEOUT_MS))
        answer_take(e, list);
    rd_kafka_topic_partition_list_destroy(list);
}

/* Waits until the next question is due; false when it is time to end. */
static bool rest(struct engines *e)
{
    int64_t pause_s = FAULT_FAILS("ask_engines_seldom") ? ASK_OFTEN_S : ASK_EVERY_S;
    struct timespec until = condition_end(pause_s * 1000000);
    bool stopping;
    int due = 0;

    pthread_mutex_lock(&e->lock);
    while (!e->stopping && !due)
        due = pthread_cond_timedwait(&e->wake, &e->lock, &until);
    stopping = e->stopping;
    pthread_mutex_unlock(&e->lock);
    return !stopping;
}

static void *engines_main(void *argument)
{
    struct engines *e = argument;

    do
        ask(e);
    while (rest(e));
    return NULL;
}

/* The admin client's call for a group's offsets would not wait, but it aborts the process when the
 * coordinator's connection is lost at the wrong moment (librdkafka issue 4605, up to 2.16 at
 * least). Read uncommitted: a transaction that is open now must not hold the answer back. */
struct engines *engines_create(struct pipeline *pipeline, struct error *error)
{
    const char *const settings[] = {"group.id",
                                    pipeline->config->kafka_group,
                                    "enable.auto.commit",
                                    "false",
                                    "isolation.level",
                                    "read_uncommitted",
                                    NULL};
    struct engines *e = calloc(1, sizeof *e);
    struct kafka_client_options options = {pipeline->config, pipeline->health, "engines", settings,
                                           e};
    rd_kafka_conf_t *conf;

    if (!e) {
        error_set(error, "engines: out of memory");
        return NULL;
    }
    e->pipeline = pipeline;
    pthread_mutex_init(&e->lock, NULL);
    condition_init(&e->wake);
    conf = kafka_client_conf(&options, error);
    e->reader = conf ? kafka_client_new(RD_KAFKA_CONSUMER, conf, error) : NULL;
    if (e->reader && pthread_create(&e->thread, NULL, engines_main, e))
        error_set(error, "engines: its thread could not be started");
    else
        e->started = e->reader != NULL;
    if (e->started)
        return e;
    engines_destroy(e);
    return NULL;
}

void engines_destroy(struct engines *e)
{
    if (!e)
        return;
    if (e->started) {
        pthread_mutex_lock(&e->lock);
        e->stopping = true;
        pthread_cond_signal(&e->wake);
        pthread_mutex_unlock(&e->lock);
        pthread_join(e->thread, NULL);
    }
    if (e->reader)
        rd_kafka_destroy_flags(e->reader, RD_KAFKA_DESTROY_F_NO_CONSUMER_CLOSE);
    pthread_cond_destroy(&e->wake);
    pthread_mutex_destroy(&e->lock);
    free(e);
}
