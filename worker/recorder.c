/* SPDX-License-Identifier: MIT */
#include "worker/recorder.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/base/clock.h"
#include "schema/codec.h"
#include "worker/kafka_client.h"
#include "worker/recorder_store.h"

enum { POLL_MS = 100, KAFKA_CALL_MS = 5000, PARTITIONS_MAX = 8192 };
enum { RETRY_FIRST_MS = 200, RETRY_MAX_MS = 10000 };
static const int64_t maintain_every_us = 3600000000;

/* An owned partition of the events topic. It is paused until its place was read from SQL. */
struct owned {
    struct recorder_position position;
    bool positioned;
    bool moved; /* the batch holds events of it, or skipped some */
};

struct recorder {
    const struct config *config;
    struct health *health;
    struct codec *codec;
    struct recorder_store *store;
    struct recorder_batch *batch;
    rd_kafka_t *consumer;
    struct owned *owned;                 /* (owned_count), at most PARTITIONS_MAX */
    struct recorder_position *positions; /* (PARTITIONS_MAX) scratch */
    size_t owned_count;
    int64_t batch_begun_us; /* 0 = the batch holds nothing */
    int64_t retry_at_us, retry_ms, maintain_at_us;
    unsigned random;
    pthread_t thread;
    bool started, ran; /* ran: to its end, and closed what was to be closed */
    _Atomic bool stopping;
};

/* ---- what is owned ---- */

static struct owned *owned_find(struct recorder *r, int32_t partition)
{
    for (size_t i = 0; i < r->owned_count; i++)
        if (r->owned[i].position.partition == partition)
            return &r->owned[i];
    return NULL;
}

static rd_kafka_topic_partition_list_t *owned_list(const struct recorder *r, bool positioned)
{
    rd_kafka_topic_partition_list_t *list =
        rd_kafka_topic_partition_list_new((int)r->owned_count + 1);

    for (size_t i = 0; i < r->owned_count; i++)
        if (r->owned[i].positioned == positioned)
            rd_kafka_topic_partition_list_add(list, r->config->topic_events,
                                              r->owned[i].position.partition);
    return list;
}

/* Forgets the batch; every partition is paused until its place was read from SQL again. */
static void places_forget(struct recorder *r)
{
    rd_kafka_topic_partition_list_t *list = owned_list(r, true), *others = owned_list(r, false);

    rd_kafka_pause_partitions(r->consumer, list);
    rd_kafka_pause_partitions(r->consumer, others);
    rd_kafka_topic_partition_list_destroy(list);
    rd_kafka_topic_partition_list_destroy(others);
    for (size_t i = 0; i < r->owned_count; i++)
        r->owned[i].positioned = r->owned[i].moved = false;
    recorder_batch_reset(r->batch);
    r->batch_begun_us = 0;
}

static void owned_add(struct recorder *r, int32_t partition)
{
    if (owned_find(r, partition))
        return;
    if (r->owned_count == PARTITIONS_MAX)
        health_fail(r->health, "recorder: more than %d partitions of %s", PARTITIONS_MAX,
                    r->config->topic_events);
    else
        r->owned[r->owned_count++] = (struct owned){.position.partition = partition};
}

static void owned_remove(struct recorder *r, int32_t partition)
{
    struct owned *found = owned_find(r, partition);

    if (found)
        *found = r->owned[--r->owned_count];
}

static void on_rebalance(rd_kafka_t *consumer, rd_kafka_resp_err_t code,
                         rd_kafka_topic_partition_list_t *list, void *opaque)
{
    struct recorder *r = opaque;
    bool assigned = code == RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS;
    rd_kafka_error_t *error;

    for (int i = 0; i < list->cnt; i++)
        list->elems[i].offset = RD_KAFKA_OFFSET_BEGINNING; /* the place comes from SQL */
    error = assigned ? rd_kafka_incremental_assign(consumer, list)
                     : rd_kafka_incremental_unassign(consumer, list);
    if (error) { /* the group would wait for ever, for partitions that nobody reads */
        health_fail(r->health, "recorder: %s: %s", assigned ? "assign" : "unassign",
                    rd_kafka_error_string(error));
        rd_kafka_error_destroy(error);
    }
    for (int i = 0; i < list->cnt; i++) {
        if (assigned)
            owned_add(r, list->elems[i].partition);
        else
            owned_remove(r, list->elems[i].partition);
    }
    places_forget(r);
    metrics_set(METRIC_RECORDER_PARTITIONS, (int64_t)r->owned_count);
    log_write(LOG_INFO, "recorder", NULL, "%d partitions %s, %zu owned", list->cnt,
              assigned ? "assigned" : "revoked", r->owned_count);
}

/* ---- trying again ---- */

static void retry_later(struct recorder *r, const char *reason)
{
    int64_t wait_ms = r->retry_ms / 2 + rand_r(&r->random) % (int)r->retry_ms;

    log_write(LOG_WARN, "recorder", NULL, "%s; next try in %lld ms", reason, (long long)wait_ms);
    metrics_add(METRIC_RECORDER_ERRORS, 1);
    metrics_set(METRIC_RECORDER_CONNECTED, recorder_store_connected(r->store));
    r->retry_at_us = clock_mono_us() + wait_ms * 1000;
    r->retry_ms = r->retry_ms * 2 < RETRY_MAX_MS ? r->retry_ms * 2 : RETRY_MAX_MS;
    places_forget(r);
}

static void connect_again(struct recorder *r)
{
    struct error error;

    if (recorder_store_connect(r->store, &error)) {
        retry_later(r, error.message);
        return;
    }
    log_write(LOG_INFO, "recorder", NULL, "connected to PostgreSQL");
    metrics_set(METRIC_RECORDER_CONNECTED, 1);
    r->maintain_at_us = 0;
}

static void maintain(struct recorder *r)
{
    struct error error;
    bool more = false;

    r->maintain_at_us = clock_mono_us() + maintain_every_us;
    if (!recorder_store_maintain(r->store, &more, &error)) {
        if (more)
            r->maintain_at_us = clock_mono_us() + 1000000;
    } else if (recorder_store_connected(r->store)) {
        log_write(LOG_WARN, "recorder", NULL, "%s; tried again in a minute", error.message);
        metrics_add(METRIC_RECORDER_ERRORS, 1);
        r->maintain_at_us = clock_mono_us() + 60000000;
    } else {
        retry_later(r, error.message);
    }
}

/* ---- places ---- */

/* Where to go on: where SQL says, unless the topic no longer or not yet has that offset. */
static int place_check(struct recorder *r, struct owned *o, struct error *error)
{
    int64_t low, high, stored = o->position.stored;
    rd_kafka_resp_err_t code = rd_kafka_query_watermark_offsets(
        r->consumer, r->config->topic_events, o->position.partition, &low, &high, KAFKA_CALL_MS);
    struct log_context where = {.partition = o->position.partition, .offset = stored};

    if (code)
        return error_set(error, "%s: its offsets cannot be read: %s", r->config->topic_events,
                         rd_kafka_err2str(code));
    o->position.next = stored;
    if (stored >= low && stored <= high)
        return 0;
    o->position.next = low;
    if (stored > high)
        log_write(
            LOG_ERROR, "recorder", &where,
            "%s ends at %lld, before the recorded offset: was the topic made anew? Going on at "
            "%lld",
            r->config->topic_events, (long long)high, (long long)low);
    else if (stored > 0)
        log_write(LOG_ERROR, "recorder", &where,
                  "%lld events were deleted by retention before they were recorded; going on at "
                  "%lld. Raise retention.ms of %s",
                  (long long)(low - stored), (long long)low, r->config->topic_events);
    return 0;
}

/* A partition whose fetching an error has ended, as when the log was cut under it, takes no seek
 * ever again, nor does one that an earlier try could not assign anew. */
static bool takes_no_seek(const rd_kafka_topic_partition_t *sought)
{
    return sought->err == RD_KAFKA_RESP_ERR__STATE ||
           sought->err == RD_KAFKA_RESP_ERR__UNKNOWN_PARTITION;
}

static int places_restart(struct recorder *r, const rd_kafka_topic_partition_list_t *sought,
                          struct error *error)
{
    rd_kafka_topic_partition_list_t *list = rd_kafka_topic_partition_list_new(sought->cnt);
    rd_kafka_error_t *failed = NULL;
    int status = 0;

    for (int i = 0; i < sought->cnt; i++)
        if (takes_no_seek(&sought->elems[i]))
            rd_kafka_topic_partition_list_add(list, sought->elems[i].topic,
                                              sought->elems[i].partition)
                ->offset = sought->elems[i].offset;
    /* One that an earlier try took out is not there any more: what counts is the assignment. */
    if (list->cnt && (failed = rd_kafka_incremental_unassign(r->consumer, list)))
        rd_kafka_error_destroy(failed);
    failed = list->cnt ? rd_kafka_incremental_assign(r->consumer, list) : NULL;
    if (failed) {
        status = error_set(error, "assigning anew: %s", rd_kafka_error_string(failed));
        rd_kafka_error_destroy(failed);
    }
    rd_kafka_topic_partition_list_destroy(list);
    return status;
}

static int places_seek(struct recorder *r, struct error *error)
{
    rd_kafka_topic_partition_list_t *list = owned_list(r, false);
    rd_kafka_error_t *failed;
    int status = 0;

    for (int i = 0; i < list->cnt; i++)
        list->elems[i].offset = owned_find(r, list->elems[i].partition)->position.next;
    /* In this order: a seek wakes the client's thread, which finds by itself what was resumed up to
     * a second later. When it fails, all are paused again. */
    rd_kafka_resume_partitions(r->consumer, list);
    failed = rd_kafka_seek_partitions(r->consumer, list, KAFKA_CALL_MS);
    if (failed) {
        status = error_set(error, "seek: %s", rd_kafka_error_string(failed));
        rd_kafka_error_destroy(failed);
    }
    for (int i = 0; i < list->cnt && !status; i++)
        if (list->elems[i].err && !takes_no_seek(&list->elems[i]))
            status = error_set(error, "seek in partition %d: %s", (int)list->elems[i].partition,
                               rd_kafka_err2str(list->elems[i].err));
    if (!status)
        status = places_restart(r, list, error);
    rd_kafka_topic_partition_list_destroy(list);
    return status;
}

static int places_read(struct recorder *r, struct error *error)
{
    size_t count = 0, taken = 0;

    for (size_t i = 0; i < r->owned_count; i++)
        if (!r->owned[i].positioned)
            r->positions[count++] = r->owned[i].position;
    if (!count)
        return 0;
    if (recorder_store_positions(r->store, r->config->topic_events, r->positions, count, error)) {
        recorder_store_disconnect(r->store);
        return -1;
    }
    for (size_t i = 0; i < r->owned_count; i++) {
        if (r->owned[i].positioned)
            continue;
        r->owned[i].position = r->positions[taken++];
        if (place_check(r, &r->owned[i], error))
            return -1;
    }
    if (places_seek(r, error))
        return -1;
    for (size_t i = 0; i < r->owned_count; i++)
        r->owned[i].positioned = true;
    return 0;
}

/* ---- writing ---- */

/* Kafka's own commit is for lag displays: the place is in SQL. */
static void kafka_commit(struct recorder *r, size_t count)
{
    rd_kafka_topic_partition_list_t *list = rd_kafka_topic_partition_list_new((int)count);

    for (size_t i = 0; i < count; i++)
        rd_kafka_topic_partition_list_add(list, r->config->topic_events, r->positions[i].partition)
            ->offset = r->positions[i].next;
    rd_kafka_commit(r->consumer, list, 1);
    rd_kafka_topic_partition_list_destroy(list);
}

static void batch_written(struct recorder *r, size_t count, int64_t begun_us)
{
    metrics_add(METRIC_RECORDER_EVENTS, r->batch->event_count);
    metrics_observe(METRIC_SQL_TIME, clock_mono_us() - begun_us);
    for (size_t i = 0; i < r->owned_count; i++) {
        if (r->owned[i].moved)
            r->owned[i].position.stored = r->owned[i].position.next;
        r->owned[i].moved = false;
    }
    kafka_commit(r, count);
    recorder_batch_reset(r->batch);
    r->batch_begun_us = 0;
    r->retry_ms = RETRY_FIRST_MS;
}

static void batch_write(struct recorder *r)
{
    int64_t begun_us = clock_mono_us();
    struct error error;
    size_t count = 0;

    for (size_t i = 0; i < r->owned_count; i++)
        if (r->owned[i].moved)
            r->positions[count++] = r->owned[i].position;
    if (recorder_store_write(r->store, r->config->topic_events, r->batch, r->positions, count,
                             &error) == RECORDER_STORED)
        batch_written(r, count, begun_us);
    else
        retry_later(r, error.message);
}

static bool batch_due(const struct recorder *r, int64_t now_us)
{
    return r->batch_begun_us && (recorder_batch_full(r->batch) ||
                                 now_us - r->batch_begun_us >= r->config->recorder_flush_ms * 1000);
}

/* ---- reading ---- */

/* An event that cannot be read is logged and passed over; false = memory is out, it must come
 * again. */
static bool event_add(struct recorder *r, const rd_kafka_message_t *message)
{
    struct log_context where = {.partition = message->partition, .offset = message->offset};
    struct job_event event;
    struct error error;
    enum codec_status status = codec_decode(r->codec, RECORD_JOB_EVENT, message->payload,
                                            message->len, r->batch->arena, &event, &error);

    enum recorder_added added = RECORDER_NO_EVENT;

    if (!status)
        added = recorder_batch_add(r->batch, &event, &error);
    if (status == CODEC_NO_MEMORY || status == CODEC_RETRY || added == RECORDER_NO_ROOM) {
        retry_later(r, error.message);
        return false;
    }
    if (added != RECORDER_ADDED)
        log_write(LOG_WARN, "recorder", &where, "event passed over: %s", error.message);
    return true;
}

static void message_take(struct recorder *r, const rd_kafka_message_t *message)
{
    struct owned *o = owned_find(r, message->partition);

    if (message->err && kafka_client_broken(r->consumer, message->err))
        return;
    if (message->err) {
        log_write(LOG_WARN, "recorder", NULL, "%s", rd_kafka_message_errstr(message));
        if (message->err == RD_KAFKA_RESP_ERR__AUTO_OFFSET_RESET ||
            message->err == RD_KAFKA_RESP_ERR_OFFSET_OUT_OF_RANGE)
            places_forget(r); /* the log was cut under us: find the place again */
        return;
    }
    if (!o || !o->positioned || message->offset < o->position.next || !event_add(r, message))
        return;
    o->position.next = message->offset + 1;
    o->moved = true;
    if (!r->batch_begun_us)
        r->batch_begun_us = clock_mono_us();
}

static int poll_timeout(const struct recorder *r, int64_t now_us)
{
    int64_t due_ms;

    if (!r->batch_begun_us)
        return POLL_MS;
    due_ms = r->config->recorder_flush_ms - (now_us - r->batch_begun_us) / 1000;
    return due_ms < 0 ? 0 : due_ms > POLL_MS ? POLL_MS : (int)due_ms;
}

/* Everything between two polls. Polling goes on whatever PostgreSQL does. */
static void tend(struct recorder *r, int64_t now_us)
{
    struct error error;

    if (now_us < r->retry_at_us)
        return;
    if (!recorder_store_connected(r->store))
        connect_again(r);
    if (recorder_store_connected(r->store) && now_us >= r->maintain_at_us)
        maintain(r);
    if (!recorder_store_connected(r->store))
        return;
    if (places_read(r, &error))
        retry_later(r, error.message);
    else if (batch_due(r, now_us))
        batch_write(r);
}

static void *recorder_main(void *argument)
{
    struct recorder *r = argument;
    char reason[8];

    pthread_setname_np(pthread_self(), "recorder");
    while (!atomic_load(&r->stopping)) {
        int64_t now_us = clock_mono_us();
        rd_kafka_message_t *message;

        tend(r, now_us);
        message = rd_kafka_consumer_poll(r->consumer, poll_timeout(r, now_us));
        if (message) {
            message_take(r, message);
            rd_kafka_message_destroy(message);
        }
    }
    if (r->batch_begun_us && recorder_store_connected(r->store))
        batch_write(r);
    if (!health_failed(r->health, reason, sizeof reason)) /* then it may not end */
        rd_kafka_consumer_close(r->consumer);
    r->ran = true;
    return NULL;
}

/* ---- life ---- */

struct recorder *recorder_create(struct pipeline *pipeline, struct error *error)
{
    const struct config *config = pipeline->config;
    struct recorder *r = calloc(1, sizeof *r);

    if (!r) {
        error_set(error, "recorder: out of memory");
        return NULL;
    }
    r->config = config;
    r->health = pipeline->health;
    r->retry_ms = RETRY_FIRST_MS;
    r->random = (unsigned)clock_mono_us();
    r->codec = codec_open(NULL, error);
    if (!r->codec) {
        recorder_destroy(r);
        return NULL;
    }
    r->store = recorder_store_create(
        &(struct recorder_store_options){config->database_url, (int)config->recorder_retention_days,
                                         (int)config->recorder_history_days, &r->stopping});
    r->batch = recorder_batch_create((size_t)config->recorder_batch);
    r->owned = calloc(PARTITIONS_MAX, sizeof *r->owned);
    r->positions = calloc(PARTITIONS_MAX, sizeof *r->positions);
    if (!r->store || !r->batch || !r->owned || !r->positions) {
        error_set(error, "recorder: out of memory; lower recorder.batch");
        recorder_destroy(r);
        return NULL;
    }
    return r;
}

int recorder_start(struct recorder *r, struct error *error)
{
    const char *const settings[] = {"group.id",
                                    r->config->recorder_group,
                                    "group.protocol",
                                    "consumer",
                                    "enable.auto.commit",
                                    "false",
                                    "enable.auto.offset.store",
                                    "false",
                                    "auto.offset.reset",
                                    "error",
                                    "isolation.level",
                                    "read_committed",
                                    "fetch.wait.max.ms",
                                    "100",
                                    "queued.min.messages",
                                    "10000",
                                    "queued.max.messages.kbytes",
                                    "16384",
                                    "fetch.queue.backoff.ms",
                                    "5",
                                    NULL};
    struct kafka_client_options options = {r->config, r->health, "recorder", settings, r};
    rd_kafka_conf_t *conf = kafka_client_conf(&options, error);
    rd_kafka_topic_partition_list_t *topics;
    rd_kafka_resp_err_t code;

    if (!conf)
        return -1;
    rd_kafka_conf_set_rebalance_cb(conf, on_rebalance);
    r->consumer = kafka_client_new(RD_KAFKA_CONSUMER, conf, error);
    if (!r->consumer)
        return -1;
    rd_kafka_poll_set_consumer(r->consumer);
    topics = rd_kafka_topic_partition_list_new(1);
    rd_kafka_topic_partition_list_add(topics, r->config->topic_events, RD_KAFKA_PARTITION_UA);
    code = rd_kafka_subscribe(r->consumer, topics);
    rd_kafka_topic_partition_list_destroy(topics);
    if (code)
        return error_set(error, "recorder: subscribing to %s: %s", r->config->topic_events,
                         rd_kafka_err2str(code));
    if (pthread_create(&r->thread, NULL, recorder_main, r))
        return error_set(error, "recorder: its thread could not be started");
    r->started = true;
    return 0;
}

void recorder_stop(struct recorder *r)
{
    if (!r->started)
        return;
    atomic_store(&r->stopping, true);
    pthread_join(r->thread, NULL);
    r->started = false;
}

void recorder_destroy(struct recorder *r)
{
    if (!r)
        return;
    if (r->consumer && !r->ran) /* an assignment that nobody takes would never let it go */
        rd_kafka_consumer_close(r->consumer);
    if (r->consumer)
        rd_kafka_destroy_flags(r->consumer, RD_KAFKA_DESTROY_F_NO_CONSUMER_CLOSE);
    codec_close(r->codec);
    recorder_store_destroy(r->store);
    recorder_batch_destroy(r->batch);
    free(r->owned);
    free(r->positions);
    free(r);
}
