/* SPDX-License-Identifier: MIT */
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/base/clock.h"
#include "producer/client.h"
#include "producer/connection.h"
#include "producer/id_map.h"
#include "schema/codec.h"

enum { SEQUENCES_MAX = 8, RECORD_ARENA_MAX = 64 << 20 };

struct watched {
    uint8_t id[16];
    void *user;
    struct merge merges[SEQUENCES_MAX];
};

struct follow {
    struct client_options client_options;
    struct follow_options options;
    struct connection connection;
    struct codec *codec;
    struct arena *arena; /* what the last event points to */
    pthread_mutex_t lock;
    struct id_map *map; /* under the lock: id -> struct watched */
    /* A result whose rest is being passed on; set under the lock, read by the reader without it: */
    struct watched *ending;
    struct generation_result result;
    size_t ending_sequence;
};

/* ---- opening ---- */

static enum client_status add_topic(struct follow *f, enum topic topic,
                                    rd_kafka_topic_partition_list_t *list, struct error *error)
{
    int32_t count = 0;
    enum client_status status = connection_partitions(&f->connection, topic, &count, error);

    if (!status)
        rd_kafka_topic_partition_list_add_range(list, connection_topic(&f->connection, topic), 0,
                                                count - 1);
    return status;
}

static enum client_status assign(struct follow *f, struct error *error)
{
    rd_kafka_topic_partition_list_t *list = rd_kafka_topic_partition_list_new(32);
    enum client_status status = add_topic(f, TOPIC_RESULTS, list, error);
    rd_kafka_resp_err_t code;

    if (!status && f->options.chunks)
        status = add_topic(f, TOPIC_CHUNKS, list, error);
    if (!status)
        status = connection_offsets(&f->connection, list, f->options.since_us, error);
    if (!status) {
        code = rd_kafka_assign(f->connection.kafka, list);
        if (code)
            status = connection_failed(&f->connection, code,
                                       connection_topic(&f->connection, TOPIC_RESULTS), error);
    }
    rd_kafka_topic_partition_list_destroy(list);
    return status;
}

static enum client_status follow_start(struct follow *f, struct error *error)
{
    static const char *const defaults[] = {"fetch.wait.max.ms",
                                           "100",
                                           "fetch.queue.backoff.ms",
                                           "10",
                                           "fetch.error.backoff.ms",
                                           "50",
                                           "queued.min.messages",
                                           "10000",
                                           "queued.max.messages.kbytes",
                                           "16384",
                                           NULL};
    /* librdkafka wants a group's name for assign(); nobody joins or commits. */
    static const char *const fixed[] = {"group.id",
                                        "pgpt-follow-without-group",
                                        "enable.auto.commit",
                                        "false",
                                        "isolation.level",
                                        "read_committed",
                                        "auto.offset.reset",
                                        "earliest",
                                        NULL};
    const struct connection_settings settings = {
        .type = RD_KAFKA_CONSUMER, .defaults = defaults, .fixed = fixed};
    enum client_status status;

    f->arena = arena_create(64 << 10, RECORD_ARENA_MAX);
    f->map = id_map_create(f->options.max_jobs);
    if (!f->arena || !f->map) {
        error_set(error, "follow: out of memory");
        return CLIENT_FAILED;
    }
    f->codec = codec_open(NULL, error);
    if (!f->codec)
        return CLIENT_FAILED;
    status = connection_open(&f->connection, &f->client_options, &settings, f, error);
    return status ? status : assign(f, error);
}

enum client_status follow_open(const struct follow_options *options, struct follow **out,
                               struct error *error)
{
    struct follow *f = calloc(1, sizeof *f);
    enum client_status status;

    *out = NULL;
    if (!f) {
        error_set(error, "follow: out of memory");
        return CLIENT_FAILED;
    }
    f->client_options = *options->client;
    f->options = *options;
    f->options.client = &f->client_options;
    pthread_mutex_init(&f->lock, NULL);
    status = follow_start(f, error);
    if (status)
        follow_close(f);
    else
        *out = f;
    return status;
}

void follow_close(struct follow *f)
{
    size_t at = 0;
    struct watched *w;

    if (!f)
        return;
    if (f->connection.kafka) {
        rd_kafka_consumer_close(f->connection.kafka);
        connection_close(&f->connection);
    }
    while (f->map && (w = id_map_at(f->map, &at)))
        free(w);
    free(f->ending);
    id_map_destroy(f->map);
    codec_close(f->codec);
    arena_destroy(f->arena);
    pthread_mutex_destroy(&f->lock);
    free(f);
}

/* ---- watching ---- */

enum client_status follow_watch(struct follow *f, const char *job_id, void *user,
                                struct error *error)
{
    struct watched *w = calloc(1, sizeof *w);
    enum id_map_status status;

    if (!w) {
        error_set(error, "follow: out of memory");
        return CLIENT_FAILED;
    }
    if (uuid_parse((struct text){job_id, strlen(job_id)}, w->id)) {
        error_set(error, "job id \"%s\" is not a UUID of 36 characters", job_id);
        free(w);
        return CLIENT_WRONG;
    }
    w->user = user;
    pthread_mutex_lock(&f->lock);
    status = id_map_put(f->map, w->id, w);
    pthread_mutex_unlock(&f->lock);
    if (status == ID_MAP_OK)
        return CLIENT_OK;
    free(w);
    if (status == ID_MAP_FULL)
        error_set(error, "more than %zu jobs are followed at once", f->options.max_jobs);
    else if (status == ID_MAP_TAKEN)
        error_set(error, "job %s is followed already", job_id);
    else
        error_set(error, "follow: out of memory");
    return status == ID_MAP_FULL    ? CLIENT_FULL
           : status == ID_MAP_TAKEN ? CLIENT_WRONG
                                    : CLIENT_FAILED;
}

void *follow_forget(struct follow *f, const char *job_id)
{
    uint8_t id[16];
    struct watched *w;
    void *user = NULL;

    if (uuid_parse((struct text){job_id, strlen(job_id)}, id))
        return NULL;
    pthread_mutex_lock(&f->lock);
    w = id_map_remove(f->map, id);
    if (w)
        user = w->user;
    pthread_mutex_unlock(&f->lock);
    free(w);
    return user;
}

size_t follow_count(struct follow *f)
{
    size_t count;

    pthread_mutex_lock(&f->lock);
    count = id_map_count(f->map) + (f->ending != NULL);
    pthread_mutex_unlock(&f->lock);
    return count;
}

/* ---- reading ---- */

static void event_begin(struct follow_event *event, enum follow_kind kind, const struct watched *w,
                        int32_t attempt)
{
    *event = (struct follow_event){.kind = kind, .user = w->user, .attempt = attempt};
    uuid_format(w->id, event->job_id);
}

/* The job's next piece made from its result, then the result itself. */
static enum follow_kind end_next(struct follow *f, struct follow_event *event)
{
    struct watched *w = f->ending;

    while (f->ending_sequence < f->result.sequence_count && f->ending_sequence < SEQUENCES_MAX) {
        size_t sequence = f->ending_sequence++;

        event_begin(event, FOLLOW_PIECE, w, f->result.attempt);
        if (merge_result(&w->merges[sequence], &f->result, (int32_t)sequence, &event->piece))
            return FOLLOW_PIECE;
    }
    event_begin(event, FOLLOW_RESULT, w, f->result.attempt);
    event->result = &f->result;
    pthread_mutex_lock(&f->lock);
    f->ending = NULL;
    pthread_mutex_unlock(&f->lock);
    free(w);
    return FOLLOW_RESULT;
}

/* Fills the event when the chunk brings something new. The lock is held: another thread may forget
 * the job. */
static enum follow_kind read_chunk(struct follow *f, const struct generation_chunk *chunk,
                                   struct watched *w, struct follow_event *event)
{
    event_begin(event, FOLLOW_PIECE, w, chunk->attempt);
    if (chunk->attempt < f->options.attempt || chunk->sequence < 0 ||
        chunk->sequence >= SEQUENCES_MAX ||
        !merge_chunk(&w->merges[chunk->sequence], chunk, &event->piece))
        return FOLLOW_NOTHING;
    return FOLLOW_PIECE;
}

static enum follow_kind read_record(struct follow *f, const rd_kafka_message_t *message,
                                    const uint8_t id[16], bool is_result,
                                    struct follow_event *event, struct error *error)
{
    struct generation_chunk chunk;
    enum follow_kind kind = FOLLOW_NOTHING;
    enum codec_status status;
    struct error reason;
    struct watched *w;

    arena_reset(f->arena);
    status = codec_decode(f->codec, is_result ? RECORD_GENERATION_RESULT : RECORD_GENERATION_CHUNK,
                          message->payload, message->len, f->arena,
                          is_result ? (void *)&f->result : (void *)&chunk, &reason);
    if (status == CODEC_NO_MEMORY) {
        error_set(error, "out of memory for a record of job %.36s: %s", (const char *)message->key,
                  reason.message);
        return FOLLOW_ERROR;
    }
    /* A foreign or broken record under our job's key is not ours to judge: it is passed over. */
    if (status || (is_result && f->result.attempt < f->options.attempt))
        return FOLLOW_NOTHING;
    pthread_mutex_lock(&f->lock);
    w = is_result ? id_map_remove(f->map, id) : id_map_get(f->map, id);
    if (is_result)
        f->ending = w;
    else if (w)
        kind = read_chunk(f, &chunk, w, event);
    pthread_mutex_unlock(&f->lock);
    if (!w || !is_result)
        return kind;
    f->ending_sequence = 0;
    return end_next(f, event);
}

static enum follow_kind read_message(struct follow *f, const rd_kafka_message_t *message,
                                     struct follow_event *event, struct error *error)
{
    struct text key = {message->key, message->key_len};
    uint8_t id[16];
    bool watched;

    if (!key.data || uuid_parse(key, id))
        return FOLLOW_NOTHING;
    pthread_mutex_lock(&f->lock);
    watched = id_map_get(f->map, id) != NULL;
    pthread_mutex_unlock(&f->lock);
    if (!watched) /* other people's jobs cost no decoding */
        return FOLLOW_NOTHING;
    return read_record(
        f, message, id,
        !strcmp(rd_kafka_topic_name(message->rkt), connection_topic(&f->connection, TOPIC_RESULTS)),
        event, error);
}

/* What librdkafka does not mend by itself. */
static bool is_permanent(rd_kafka_resp_err_t code)
{
    return code == RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED ||
           code == RD_KAFKA_RESP_ERR_GROUP_AUTHORIZATION_FAILED ||
           code == RD_KAFKA_RESP_ERR_CLUSTER_AUTHORIZATION_FAILED ||
           code == RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART ||
           code == RD_KAFKA_RESP_ERR__UNKNOWN_TOPIC || code == RD_KAFKA_RESP_ERR__FATAL;
}

static enum follow_kind reading_failed(struct follow *f, const rd_kafka_message_t *message,
                                       struct error *error)
{
    char reason[CONNECTION_REASON_MAX];

    connection_reason(&f->connection, message->err, reason);
    error_set(error, "reading %s: %s",
              message->rkt ? rd_kafka_topic_name(message->rkt) : "results and chunks", reason);
    return FOLLOW_ERROR;
}

enum follow_kind follow_next(struct follow *f, int timeout_ms, struct follow_event *event,
                             struct error *error)
{
    int64_t until = clock_mono_us() + (int64_t)timeout_ms * 1000;
    enum follow_kind kind = FOLLOW_NOTHING;
    int64_t left_us;

    if (f->ending)
        return end_next(f, event);
    do {
        rd_kafka_message_t *message;

        left_us = until - clock_mono_us();
        message = rd_kafka_consumer_poll(f->connection.kafka,
                                         left_us > 0 ? (int)((left_us + 999) / 1000) : 0);
        if (!message)
            continue;
        if (!message->err) {
            kind = read_message(f, message, event, error);
        } else if (is_permanent(message->err)) {
            kind = reading_failed(f, message, error);
        }
        rd_kafka_message_destroy(message);
    } while (kind == FOLLOW_NOTHING && left_us > 0);
    if (kind == FOLLOW_NOTHING || kind == FOLLOW_ERROR)
        event->kind = kind;
    return kind;
}

const char *follow_trouble(const struct follow *f, int64_t since_us)
{
    return f->connection.trouble_us > since_us ? f->connection.trouble : "";
}
