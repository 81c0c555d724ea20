/* SPDX-License-Identifier: MIT */
#include "worker/admission.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/base/clock.h"
#include "schema/codec.h"
#include "worker/dead_letter.h"
#include "worker/fault.h"

enum { TRACE_BYTES_MAX = 4096 };

struct admission {
    struct pipeline *pipeline;
    struct codec *codec;
    struct dead_letter_limit limit;
};

struct admission *admission_create(struct pipeline *pipeline, struct error *error)
{
    const char *const dirs[] = {pipeline->config->schema_dir, NULL};
    struct admission *a = calloc(1, sizeof *a);

    if (!a) {
        error_set(error, "admission: out of memory");
        return NULL;
    }
    a->pipeline = pipeline;
    a->codec = codec_open(*pipeline->config->schema_dir ? dirs : NULL, error);
    if (!a->codec) {
        free(a);
        return NULL;
    }
    return a;
}

void admission_destroy(struct admission *a)
{
    if (!a)
        return;
    codec_close(a->codec);
    free(a);
}

/* The last header of that name, at most max bytes; longer ones are dropped. */
static struct text header_text(const rd_kafka_headers_t *headers, struct arena *arena,
                               const char *name, size_t max)
{
    const void *value;
    size_t size;
    struct text text = {"", 0};

    if (!headers || rd_kafka_header_get_last(headers, name, &value, &size) || !value || size > max)
        return text;
    text = arena_text(arena, value, size);
    return text.data ? text : (struct text){"", 0};
}

/* A record that an operator sent again carries the attempt it died at; its own deaths add to it. */
static void replay_read(struct job *job, const rd_kafka_headers_t *headers)
{
    struct text text = header_text(headers, job->arena, "dlq.attempt", 16);
    char *end;
    long attempt;

    if (!text.size)
        return;
    errno = 0;
    attempt = strtol(text.data, &end, 10);
    if (errno || end != text.data + text.size || attempt < 0 || attempt > INT32_MAX - job->attempt)
        return;
    job->replayed = true;
    job->attempt += (int32_t)attempt;
}

/* The sender chose it, so it may be any 64 bits: without one that means something, now_us. */
static int64_t record_timestamp_us(const rd_kafka_message_t *message, int64_t now_us)
{
    rd_kafka_timestamp_type_t type;
    int64_t timestamp_ms = rd_kafka_message_timestamp(message, &type);
    bool known = type != RD_KAFKA_TIMESTAMP_NOT_AVAILABLE && timestamp_ms >= 0;

    return known && timestamp_ms <= INT64_MAX / 1000 ? timestamp_ms * 1000 : now_us;
}

static struct job *job_from(const rd_kafka_message_t *message,
                            const struct assignment_admission *answer)
{
    struct job *job = job_create(message->len + message->key_len);
    rd_kafka_headers_t *headers = NULL;

    if (!job)
        return NULL;
    job->partition = message->partition;
    job->offset = message->offset;
    job->epoch = answer->epoch;
    job->attempt = answer->attempt;
    job->run_alone = answer->runs == LEDGER_SINGLE;
    job->log.partition = message->partition;
    job->log.offset = message->offset;
    job->accepted_at_us = clock_wall_us();
    job->accepted_mono_us = clock_mono_us();
    job->record_timestamp_us = record_timestamp_us(message, job->accepted_at_us);
    if (message->key)
        job->original_key = arena_text(job->arena, message->key, message->key_len);
    if (message->payload)
        job->original = arena_text(job->arena, message->payload, message->len);
    if ((message->key && !job->original_key.data) || (message->payload && !job->original.data)) {
        job_destroy(job);
        return NULL;
    }
    rd_kafka_message_headers(message, &headers);
    job->traceparent = header_text(headers, job->arena, "traceparent", TRACE_BYTES_MAX);
    job->tracestate = header_text(headers, job->arena, "tracestate", TRACE_BYTES_MAX);
    job->log.traceparent = job->traceparent.data;
    replay_read(job, headers);
    return job;
}

bool admission_is_full(const struct config *config, bool was_full)
{
    double share = was_full ? config->queue_resume_ratio : 1.0;

    /* At the bound it is full; once full, until it is down to the share. */
    return (double)job_alive() + !was_full > share * (double)config->queue_max_jobs ||
           (double)job_bytes() + !was_full > share * (double)config->queue_max_mb * (1 << 20);
}

static void dead_letter(struct job *job, const char *class, const char *message)
{
    job->outcome = JOB_DEAD_LETTER;
    job->dead_letter.error_class = class;
    snprintf(job->dead_letter.error_message, sizeof job->dead_letter.error_message, "%.*s",
             (int)sizeof job->dead_letter.error_message - 1, message);
    log_write(LOG_WARN, "intake", &job->log, "dead letter (%s): %s", class, message);
}

/* Decodes into the job. False = try again later. */
static bool decode(struct admission *a, struct job *job)
{
    struct error error;
    enum codec_status status = codec_decode(a->codec, RECORD_GENERATION_REQUEST, job->original.data,
                                            job->original.size, job->arena, &job->request, &error);

    /* A record that needs more than its arena's maximum always will; other memory comes back. */
    if (status == CODEC_RETRY || (status == CODEC_NO_MEMORY && !arena_is_full(job->arena))) {
        log_write(LOG_WARN, "intake", &job->log, "read again later: %s", error.message);
        return false;
    }
    if (status == CODEC_OK && FAULT_FAILS("decoded")) {
        error_set(&error, "a fault refuses it");
        status = CODEC_BAD_PAYLOAD;
    }
    if (status != CODEC_OK) {
        generation_request_init(&job->request);
        dead_letter(job, "undecodable", error.message);
        return true;
    }
    if (uuid_parse(job->request.job_id, job->id)) {
        dead_letter(job, "no_job_id", "job_id is not a UUID of 36 characters");
        return true;
    }
    job->has_id = true;
    memcpy(job->job_id, job->request.job_id.data, 36);
    return true;
}

/* A replay is no duplicate, but takes its place in the window: a retry beside it is one. */
static void duplicate_check(const struct pipeline *p, struct job *job)
{
    if (assignment_is_new(p->assignment, job->partition, job->id, job->offset) || job->replayed)
        return;
    job->outcome = JOB_DUPLICATE;
    log_write(LOG_INFO, "intake", &job->log,
              "duplicate: this job_id is running or was finished within the window");
}

static void poison(struct job *job)
{
    static const char message[] = "workers died while this job ran alone; it is not tried again";

    job->dead_letter.error_class = "poison";
    snprintf(job->dead_letter.error_message, sizeof job->dead_letter.error_message, "%s", message);
    job_finish(job, JOB_POISON, "poison", message, clock_wall_us());
    log_write(LOG_ERROR, "intake", &job->log, "poison: %s", message);
}

enum admission_status admission_run(struct admission *a, const rd_kafka_message_t *message,
                                    const struct assignment_admission *answer)
{
    struct pipeline *p = a->pipeline;
    struct job *job = job_from(message, answer);
    bool over;

    if (!job)
        return ADMISSION_RETRY;
    metrics_add(METRIC_REQUESTS_CONSUMED, 1);
    if (answer->unreadable) {
        dead_letter(job, "poison", "workers died while this record was read; it is not read again");
        settle_push(p->settle, job);
        return ADMISSION_OK;
    }
    FAULT_POINT("decode");
    if (!decode(a, job)) {
        job_destroy(job);
        return ADMISSION_RETRY;
    }
    job_charge(job);
    over = dead_letter_limit_add(&a->limit, job->outcome == JOB_DEAD_LETTER,
                                 p->config->dlq_limit_ratio);
    if (job->outcome == JOB_OPEN)
        duplicate_check(p, job);
    if (job->outcome == JOB_OPEN && answer->poison)
        poison(job);
    if (job->outcome == JOB_OPEN) {
        control_look(p->control, job->accepted_mono_us);
        prepare_push(p->prepare, job);
    } else {
        settle_push(p->settle, job);
    }
    return over ? ADMISSION_LIMIT : ADMISSION_OK;
}
