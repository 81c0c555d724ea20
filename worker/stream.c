/* SPDX-License-Identifier: MIT */
#include "worker/stream.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/base/clock.h"
#include "schema/codec.h"
#include "worker/assignment.h"
#include "worker/fault.h"
#include "worker/kafka_client.h"

enum {
    POLL_MS = 100,
    QUEUE_MAX = 100000, /* chunks and events that the client holds ... */
    PARTITION_MAX =
        QUEUE_MAX / 4 /* ... and of these, chunks of one partition: its leader may be gone */
};

struct stream {
    struct pipeline *pipeline;
    struct codec *codec;
    struct buffer buffer;
    rd_kafka_t *producer;
    rd_kafka_topic_t *chunks, *events;
    pthread_t thread;
    bool started;
    _Atomic bool stopping;
    _Atomic int32_t unacked[ASSIGNMENT_PARTITIONS_MAX]; /* chunks, a partition */
};

/* A chunk that cannot be delivered would hold its job back for ever: the worker ends, and its jobs
 * run elsewhere. Events are only a courtesy. */
static void on_failed(struct stream *s, const rd_kafka_message_t *message)
{
    if (message->err == RD_KAFKA_RESP_ERR__PURGE_QUEUE ||
        message->err == RD_KAFKA_RESP_ERR__PURGE_INFLIGHT)
        return; /* the worker ends: the job is not settled */
    if (message->_private)
        health_fail(s->pipeline->health, "a chunk could not be delivered to %s [%d]: %s",
                    rd_kafka_topic_name(message->rkt), message->partition,
                    rd_kafka_err2str(message->err));
    else
        log_write(LOG_WARN, "stream", NULL, "a live event was not delivered: %s",
                  rd_kafka_err2str(message->err));
}

static void on_delivery(rd_kafka_t *producer, const rd_kafka_message_t *message, void *opaque)
{
    struct stream *s = opaque;
    struct job *job = message->_private;

    (void)producer;
    if (message->err) {
        on_failed(s, message);
        return;
    }
    if (!job)
        return;
    metrics_add(METRIC_CHUNKS_PRODUCED, 1);
    atomic_fetch_sub(&s->unacked[message->partition], 1);
    /* At 0 the job may be gone before this line ends: nothing of it is touched after. */
    if (atomic_fetch_sub(&job->chunks_unacked, 1) == 1)
        settle_poke(s->pipeline->settle);
}

static void *stream_main(void *argument)
{
    struct stream *s = argument;

    pthread_setname_np(pthread_self(), "stream");
    while (!atomic_load(&s->stopping))
        rd_kafka_poll(s->producer, POLL_MS);
    rd_kafka_flush(s->producer, (int)s->pipeline->config->worker_drain_ms);
    return NULL;
}

/* ---- sending ---- */

static enum stream_status produce(struct stream *s, rd_kafka_topic_t *topic, const struct job *job,
                                  void *opaque)
{
    rd_kafka_headers_t *headers = kafka_client_trace_headers(job->traceparent, job->tracestate);
    rd_kafka_vu_t args[] = {
        {.vtype = RD_KAFKA_VTYPE_RKT, .u.rkt = topic},
        {.vtype = RD_KAFKA_VTYPE_PARTITION, .u.i32 = job->partition},
        {.vtype = RD_KAFKA_VTYPE_KEY, .u.mem = {(void *)job->job_id, strlen(job->job_id)}},
        {.vtype = RD_KAFKA_VTYPE_VALUE, .u.mem = {s->buffer.data, s->buffer.size}},
        {.vtype = RD_KAFKA_VTYPE_MSGFLAGS, .u.i = RD_KAFKA_MSG_F_COPY},
        {.vtype = RD_KAFKA_VTYPE_OPAQUE, .u.ptr = opaque},
        {.vtype = RD_KAFKA_VTYPE_HEADERS, .u.headers = headers}};
    rd_kafka_error_t *failed =
        rd_kafka_produceva(s->producer, args, sizeof args / sizeof *args - !headers);
    rd_kafka_resp_err_t code;

    if (!failed)
        return STREAM_SENT;
    if (headers)
        rd_kafka_headers_destroy(headers);
    code = rd_kafka_error_code(failed);
    rd_kafka_error_destroy(failed);
    /* A partition that was just added is known after the next refresh of the metadata. */
    if (code == RD_KAFKA_RESP_ERR__QUEUE_FULL)
        return STREAM_FULL;
    if (code == RD_KAFKA_RESP_ERR__UNKNOWN_PARTITION)
        return STREAM_LATER;
    log_write(LOG_ERROR, "stream", &job->log, "producing to %s [%d]: %s",
              rd_kafka_topic_name(topic), job->partition, rd_kafka_err2str(code));
    return STREAM_FAILED;
}

enum stream_status stream_chunk(struct stream *s, struct job *job,
                                const struct generation_chunk *chunk)
{
    _Atomic int32_t *unacked = &s->unacked[job->partition];
    enum stream_status status;
    struct error error;

    if (atomic_load(unacked) >= PARTITION_MAX)
        return STREAM_LATER;
    if (codec_encode(s->codec, RECORD_GENERATION_CHUNK, chunk, &s->buffer, &error)) {
        health_fail(s->pipeline->health, "a chunk could not be encoded: %s", error.message);
        return STREAM_FAILED;
    }
    atomic_fetch_add(&job->chunks_unacked, 1);
    atomic_fetch_add(unacked, 1);
    status = produce(s, s->chunks, job, job);
    if (status == STREAM_SENT)
        return status;
    atomic_fetch_sub(&job->chunks_unacked, 1);
    atomic_fetch_sub(unacked, 1);
    if (status == STREAM_FAILED)
        health_fail(s->pipeline->health, "a chunk could not be produced to %s [%d]",
                    s->pipeline->config->topic_chunks, job->partition);
    return status;
}

void stream_event(struct stream *s, const struct job *job, const char *state, int64_t at_us)
{
    const struct job_identity *identity = job_identity_get();
    struct error error;
    struct job_event event = {
        .job_id = {job->job_id, strlen(job->job_id)},
        .attempt = job->attempt,
        .state = state,
        .at_us = at_us,
        .worker = {identity->worker, strlen(identity->worker)},
        .tenant = job->request.tenant,
        .model = {identity->model, strlen(identity->model)},
        .source_partition = job->partition,
        .source_offset = job->offset,
        .accepted_at_us = job->accepted_at_us,
        .started_at_us = job->started_at_us,
    };

    if (codec_encode(s->codec, RECORD_JOB_EVENT, &event, &s->buffer, &error))
        log_write(LOG_WARN, "stream", &job->log, "a live event was not encoded: %s", error.message);
    else if (produce(s, s->events, job, NULL) != STREAM_SENT)
        log_write(LOG_DEBUG, "stream", &job->log, "a live event was dropped: there is no room");
}

/* ---- life ---- */

struct stream *stream_create(struct pipeline *pipeline, struct error *error)
{
    struct stream *s = calloc(1, sizeof *s);

    if (!s) {
        error_set(error, "stream: out of memory");
        return NULL;
    }
    s->pipeline = pipeline;
    s->codec = codec_open(NULL, error);
    if (!s->codec) {
        free(s);
        return NULL;
    }
    return s;
}

static rd_kafka_t *producer_new(struct stream *s, struct error *error)
{
    char linger[24], queue[24];
    const char *settings[] = {"enable.idempotence",
                              "true",
                              "acks",
                              "all",
                              "message.timeout.ms",
                              "0", /* no limit: retries without end */
                              "linger.ms",
                              linger,
                              "queue.buffering.max.messages",
                              queue,
                              "queue.buffering.max.kbytes",
                              "131072",
                              "topic.metadata.refresh.interval.ms",
                              "10000",
                              NULL};
    struct kafka_client_options options = {s->pipeline->config, s->pipeline->health, "stream",
                                           settings, s};
    rd_kafka_conf_t *conf;

    snprintf(queue, sizeof queue, "%d", QUEUE_MAX);
    snprintf(linger, sizeof linger, "%lld", (long long)s->pipeline->config->chunk_linger_ms);
    conf = kafka_client_conf(&options, error);
    if (!conf)
        return NULL;
    rd_kafka_conf_set_dr_msg_cb(conf, on_delivery);
    return kafka_client_new(RD_KAFKA_PRODUCER, conf, error);
}

int stream_start(struct stream *s, struct error *error)
{
    const struct config *config = s->pipeline->config;

    s->producer = producer_new(s, error);
    if (!s->producer)
        return -1;
    s->chunks = rd_kafka_topic_new(s->producer, config->topic_chunks, NULL);
    s->events = rd_kafka_topic_new(s->producer, config->topic_events, NULL);
    if (!s->chunks || !s->events)
        return error_set(error, "stream: topic %s: %s",
                         s->chunks ? config->topic_events : config->topic_chunks,
                         rd_kafka_err2str(rd_kafka_last_error()));
    if (pthread_create(&s->thread, NULL, stream_main, s))
        return error_set(error, "stream: its thread could not be started");
    s->started = true;
    return 0;
}

void stream_stop(struct stream *s)
{
    if (!s->started)
        return;
    atomic_store(&s->stopping, true);
    pthread_join(s->thread, NULL);
    s->started = false;
}

void stream_destroy(struct stream *s)
{
    if (!s)
        return;
    if (s->chunks)
        rd_kafka_topic_destroy(s->chunks);
    if (s->events)
        rd_kafka_topic_destroy(s->events);
    if (s->producer) {
        rd_kafka_purge(s->producer, RD_KAFKA_PURGE_F_QUEUE | RD_KAFKA_PURGE_F_INFLIGHT);
        rd_kafka_destroy(s->producer);
    }
    codec_close(s->codec);
    buffer_free(&s->buffer);
    free(s);
}
