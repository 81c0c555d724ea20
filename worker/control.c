/* SPDX-License-Identifier: MIT */
#include "worker/control.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/base/clock.h"
#include "schema/codec.h"
#include "worker/job_id.h"
#include "worker/kafka_client.h"

enum {
    POLL_MS = 100,
    ASK_TIMEOUT_MS = 1000,
    ASK_PAUSE_US = 2000, /* between two; results wait longer for company */
    CONTROL_PARTITION = 0,
    RECORD_ARENA_MAX = 1 << 20
};

/* Open addressing over ids in order of arrival: slot -> index into the ring of ids. */
struct cancelled {
    uint8_t (*ring)[16]; /* (max) */
    uint32_t *slots;     /* (slot_count), index + 1, 0 = free */
    size_t max, count, next, slot_count;
};

struct control {
    struct pipeline *pipeline;
    struct codec *codec;
    struct arena *arena; /* reset for each record */
    rd_kafka_t *consumer;
    rd_kafka_t *asker; /* asks for the log's end; a broker answers a connection's requests in turn,
                        * and a fetch waits for records */
    pthread_t thread;
    bool started;
    _Atomic bool stopping;
    rd_kafka_queue_t *queue; /* what the thread waits at */
    _Atomic bool caught_up;
    /* Times of the monotonic clock: the newest request that was read, and up to when the cancels
     * that were sent before a request was read are known. */
    _Atomic int64_t wanted_us, known_us;
    /* The thread's own: */
    int64_t end;              /* the log's end when it was asked for, -1 = not known yet */
    int64_t asked_us;         /* when it was */
    int64_t waiting_since_us; /* of what is wanted and not known; 0 = nothing is */
    int64_t read_to;          /* all records before this offset are applied */
    pthread_mutex_t lock;     /* guards cancelled */
    struct cancelled cancelled;
};

static size_t slot_start(const struct cancelled *c, const uint8_t id[16])
{
    return (size_t)job_id_hash(id) & (c->slot_count - 1);
}

/* The slot that holds the id, or the free one where it belongs. */
static size_t slot_find(const struct cancelled *c, const uint8_t id[16])
{
    size_t slot = slot_start(c, id);

    while (c->slots[slot] && memcmp(c->ring[c->slots[slot] - 1], id, 16) != 0)
        slot = (slot + 1) & (c->slot_count - 1);
    return slot;
}

/* Backward-shift deletion keeps every chain without gaps. */
static void slot_free(struct cancelled *c, size_t hole)
{
    size_t slot = hole;

    for (;;) {
        slot = (slot + 1) & (c->slot_count - 1);
        if (!c->slots[slot])
            break;
        size_t home = slot_start(c, c->ring[c->slots[slot] - 1]);

        if (((slot - home) & (c->slot_count - 1)) >= ((slot - hole) & (c->slot_count - 1))) {
            c->slots[hole] = c->slots[slot];
            hole = slot;
        }
    }
    c->slots[hole] = 0;
}

static int cancelled_init(struct cancelled *c, size_t max)
{
    c->max = max;
    c->slot_count = 16;
    while (c->slot_count < max * 2)
        c->slot_count *= 2;
    c->ring = calloc(max, sizeof *c->ring);
    c->slots = calloc(c->slot_count, sizeof *c->slots);
    return c->ring && c->slots ? 0 : -1;
}

static void cancelled_add(struct cancelled *c, const uint8_t id[16])
{
    size_t slot = slot_find(c, id);

    if (c->slots[slot])
        return;
    if (c->count == c->max) {
        slot_free(c, slot_find(c, c->ring[c->next]));
        metrics_add(METRIC_CANCELS_EVICTED, 1);
        slot = slot_find(c, id);
    } else {
        c->count++;
    }
    memcpy(c->ring[c->next], id, 16);
    c->slots[slot] = (uint32_t)c->next + 1;
    c->next = (c->next + 1) % c->max;
}

bool control_is_cancelled(struct control *control, const uint8_t id[16])
{
    bool found;

    pthread_mutex_lock(&control->lock);
    found = control->cancelled.slots[slot_find(&control->cancelled, id)] != 0;
    pthread_mutex_unlock(&control->lock);
    return found;
}

bool control_caught_up(const struct control *control)
{
    return atomic_load(&((struct control *)control)->caught_up);
}

void control_look(struct control *c, int64_t read_mono_us)
{
    bool idle = atomic_load(&c->wanted_us) <= atomic_load(&c->known_us);

    atomic_store(&c->wanted_us, read_mono_us);
    if (idle) /* else the thread looks again by itself */
        rd_kafka_queue_yield(c->queue);
}

bool control_knows(struct control *c, int64_t read_mono_us)
{
    return atomic_load(&c->known_us) >= read_mono_us;
}

static void record_apply(struct control *c, const rd_kafka_message_t *message)
{
    struct job_control record;
    struct error error;
    uint8_t id[16];

    arena_reset(c->arena);
    if (codec_decode(c->codec, RECORD_JOB_CONTROL, message->payload, message->len, c->arena,
                     &record, &error)) {
        log_write(LOG_WARN, "control", NULL, "record at offset %lld ignored: %s",
                  (long long)message->offset, error.message);
        return;
    }
    if (record.action.size != 6 || memcmp(record.action.data, "cancel", 6) != 0 ||
        uuid_parse(record.job_id, id)) {
        log_write(LOG_WARN, "control", NULL,
                  "record at offset %lld ignored: action must be cancel and job_id a UUID",
                  (long long)message->offset);
        return;
    }
    pthread_mutex_lock(&c->lock);
    cancelled_add(&c->cancelled, id);
    pthread_mutex_unlock(&c->lock);
    /* Wherever the job is, and its replay or its namesake of another partition; a job on its way
     * between two places asks control_is_cancelled() itself. */
    scheduler_cancel(c->pipeline->scheduler, id);
    engine_stage_cancel(c->pipeline->engine_stage, id);
}

/* Asks for the end of what is committed now: records behind a transaction that is still open count
 * when it has ended. False while the brokers do not answer. */
static bool end_ask(struct control *c)
{
    int64_t low, high, now_us = clock_mono_us();

    if (rd_kafka_query_watermark_offsets(c->asker, c->pipeline->config->topic_control,
                                         CONTROL_PARTITION, &low, &high, ASK_TIMEOUT_MS))
        return false;
    c->end = high > low ? high : 0;
    c->asked_us = now_us;
    return true;
}

/* Results wait for this reader: an operator shall know why. */
static void wait_report(struct control *c, int64_t now_us)
{
    int64_t for_us = now_us - c->waiting_since_us;
    struct error reason;

    if (for_us < c->pipeline->config->kafka_call_timeout_ms * 1000)
        return;
    error_set(&reason,
              "control records of the last %lld s could not be read; results wait for them",
              (long long)for_us / 1000000);
    health_block(c->pipeline->health, HEALTH_CONTROL, reason.message);
}

static void known(struct control *c)
{
    atomic_store(&c->known_us, c->asked_us);
    c->end = -1;
    health_clear(c->pipeline->health, HEALTH_CONTROL);
    if (!atomic_exchange(&c->caught_up, true))
        log_write(LOG_INFO, "control", NULL, "control records read up to offset %lld",
                  (long long)c->read_to);
    settle_poke(c->pipeline->settle);
}

/* What is wanted is known when the end that was asked for since then has been read to. Returns how
 * long to wait for records, ms. */
static int review(struct control *c)
{
    int64_t now_us = clock_mono_us();
    bool wanted = !atomic_load(&c->caught_up) || atomic_load(&c->wanted_us) > c->known_us;

    if (!wanted) {
        c->waiting_since_us = 0;
        return POLL_MS;
    }
    if (!c->waiting_since_us)
        c->waiting_since_us = now_us;
    if (c->end < 0 && now_us - c->asked_us < ASK_PAUSE_US)
        return (int)((ASK_PAUSE_US - (now_us - c->asked_us)) / 1000) + 1;
    if ((c->end >= 0 || end_ask(c)) && c->read_to >= c->end) {
        known(c);
        c->waiting_since_us = 0;
        return 0;
    }
    if (atomic_load(&c->caught_up))
        wait_report(c, now_us);
    return POLL_MS;
}

static void *control_main(void *argument)
{
    struct control *c = argument;

    pthread_setname_np(pthread_self(), "control");
    while (!atomic_load(&c->stopping)) {
        rd_kafka_message_t *message = rd_kafka_consumer_poll(c->consumer, review(c));

        if (message && !message->err) {
            record_apply(c, message);
            c->read_to = message->offset + 1;
        } else if (message && message->err == RD_KAFKA_RESP_ERR__PARTITION_EOF) {
            c->read_to = message->offset;
        } else if (message && !kafka_client_broken(c->consumer, message->err)) {
            log_write(LOG_WARN, "control", NULL, "%s", rd_kafka_message_errstr(message));
        }
        if (message)
            rd_kafka_message_destroy(message);
        rd_kafka_poll(c->asker, 0); /* error callbacks */
    }
    return NULL;
}

struct control *control_create(struct pipeline *pipeline, struct error *error)
{
    const char *const dirs[] = {pipeline->config->schema_dir, NULL};
    struct control *c = calloc(1, sizeof *c);

    if (!c) {
        error_set(error, "control: out of memory");
        return NULL;
    }
    c->pipeline = pipeline;
    c->end = -1;
    pthread_mutex_init(&c->lock, NULL);
    c->codec = codec_open(*pipeline->config->schema_dir ? dirs : NULL, error);
    if (!c->codec) {
        control_destroy(c);
        return NULL;
    }
    c->arena = arena_create(4096, RECORD_ARENA_MAX);
    if (!c->arena || cancelled_init(&c->cancelled, (size_t)pipeline->config->cancel_max_ids)) {
        error_set(error, "control: out of memory for %lld cancels; lower cancel.max_ids",
                  (long long)pipeline->config->cancel_max_ids);
        control_destroy(c);
        return NULL;
    }
    return c;
}

static rd_kafka_t *asker_new(struct control *c, struct error *error)
{
    /* Nothing but age takes an answer such as "not authorized" out of this client's cache. */
    const char *const settings[] = {"isolation.level",
                                    "read_committed",
                                    "topic.metadata.refresh.interval.ms",
                                    "1000",
                                    "metadata.max.age.ms",
                                    "3000",
                                    NULL};
    struct kafka_client_options options = {c->pipeline->config, c->pipeline->health, "control-end",
                                           settings, c};
    rd_kafka_conf_t *conf = kafka_client_conf(&options, error);

    return conf ? kafka_client_new(RD_KAFKA_CONSUMER, conf, error) : NULL;
}

int control_start(struct control *c, struct error *error)
{
    const char *const settings[] = {"group.id",
                                    "unused-control-reader",
                                    "enable.auto.commit",
                                    "false",
                                    "auto.offset.reset",
                                    "earliest",
                                    "enable.partition.eof",
                                    "true",
                                    "fetch.wait.max.ms",
                                    "100",
                                    "queued.min.messages",
                                    "1000",
                                    NULL};
    struct kafka_client_options options = {c->pipeline->config, c->pipeline->health, "control",
                                           settings, c};
    rd_kafka_conf_t *conf = kafka_client_conf(&options, error);
    rd_kafka_topic_partition_list_t *list;
    rd_kafka_resp_err_t code;

    health_block(c->pipeline->health, HEALTH_CONTROL, "control records are not read yet");
    c->consumer = conf ? kafka_client_new(RD_KAFKA_CONSUMER, conf, error) : NULL;
    if (!c->consumer)
        return -1;
    c->asker = asker_new(c, error);
    if (!c->asker)
        return -1;
    rd_kafka_poll_set_consumer(c->consumer);
    c->queue = rd_kafka_queue_get_consumer(c->consumer);
    list = rd_kafka_topic_partition_list_new(1);
    rd_kafka_topic_partition_list_add(list, c->pipeline->config->topic_control, CONTROL_PARTITION)
        ->offset = RD_KAFKA_OFFSET_BEGINNING;
    code = rd_kafka_assign(c->consumer, list);
    rd_kafka_topic_partition_list_destroy(list);
    if (code)
        return error_set(error, "control: %s", rd_kafka_err2str(code));
    if (pthread_create(&c->thread, NULL, control_main, c))
        return error_set(error, "control: its thread could not be started");
    c->started = true;
    return 0;
}

void control_stop(struct control *c)
{
    if (!c->started)
        return;
    atomic_store(&c->stopping, true);
    pthread_join(c->thread, NULL);
    c->started = false;
    rd_kafka_consumer_close(c->consumer);
}

void control_destroy(struct control *c)
{
    if (!c)
        return;
    if (c->queue)
        rd_kafka_queue_destroy(c->queue);
    if (c->consumer)
        rd_kafka_destroy(c->consumer);
    if (c->asker)
        rd_kafka_destroy(c->asker);
    codec_close(c->codec);
    if (c->arena)
        arena_destroy(c->arena);
    free(c->cancelled.ring);
    free(c->cancelled.slots);
    pthread_mutex_destroy(&c->lock);
    free(c);
}
