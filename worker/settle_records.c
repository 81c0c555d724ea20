/* SPDX-License-Identifier: MIT */
#include "worker/settle_records.h"

#include <stdlib.h>
#include <string.h>

#include "kernels/base/clock.h"
#include "kernels/text/utf8.h"
#include "worker/dead_letter.h"
#include "worker/kafka_client.h"

/* A topic takes 1,048,588 bytes by default, with what its batch adds. */
enum { RECORD_MAX = (1 << 20) - 1024, DEAD_LETTER_LEAST = 32 << 10, TENANT_BYTES_MAX = 64 };

struct record {
    const char *topic;
    int32_t partition; /* RD_KAFKA_PARTITION_UA: by key */
    const void *key;
    size_t key_size;
    const void *value;
    size_t value_size;
    rd_kafka_headers_t *headers; /* taken */
};

/* A full local queue is waited for: the transaction is bounded, so is the wait. */
static int produce(struct settle_records *s, const struct record *r, bool *too_large,
                   struct error *error)
{
    int64_t until = clock_mono_us() + (int64_t)s->timeout_ms * 1000;
    rd_kafka_resp_err_t code;

    do {
        rd_kafka_vu_t args[] = {
            {.vtype = RD_KAFKA_VTYPE_TOPIC, .u.cstr = r->topic},
            {.vtype = RD_KAFKA_VTYPE_PARTITION, .u.i32 = r->partition},
            {.vtype = RD_KAFKA_VTYPE_KEY, .u.mem = {(void *)r->key, r->key_size}},
            {.vtype = RD_KAFKA_VTYPE_VALUE, .u.mem = {(void *)r->value, r->value_size}},
            {.vtype = RD_KAFKA_VTYPE_MSGFLAGS, .u.i = RD_KAFKA_MSG_F_COPY},
            {.vtype = RD_KAFKA_VTYPE_HEADERS, .u.headers = r->headers}};
        rd_kafka_error_t *failed =
            rd_kafka_produceva(s->producer, args, sizeof args / sizeof *args - !r->headers);

        if (!failed)
            return 0;
        code = rd_kafka_error_code(failed);
        error_set(error, "producing to %s: %s", r->topic, rd_kafka_error_string(failed));
        rd_kafka_error_destroy(failed);
        if (code == RD_KAFKA_RESP_ERR__QUEUE_FULL)
            rd_kafka_flush(s->producer, 20);
    } while (code == RD_KAFKA_RESP_ERR__QUEUE_FULL && clock_mono_us() < until);
    *too_large = code == RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE;
    if (r->headers)
        rd_kafka_headers_destroy(r->headers);
    return -1;
}

static int put_record(struct settle_records *s, enum record_type type, const void *record,
                      const char *topic, const struct job *job, bool *too_large,
                      struct error *error)
{
    struct record r = {.topic = topic,
                       .partition = job->partition,
                       .key = job->job_id,
                       .key_size = strlen(job->job_id)};

    if (codec_encode(s->codec, type, record, &s->buffer, error))
        return -1;
    r.value = s->buffer.data;
    r.value_size = s->buffer.size;
    if (r.value_size + r.key_size + job->traceparent.size + job->tracestate.size > RECORD_MAX) {
        *too_large = true;
        return error_set(error, "a record of %zu bytes for %s is too large", r.value_size, topic);
    }
    r.headers = kafka_client_trace_headers(job->traceparent, job->tracestate);
    return produce(s, &r, too_large, error);
}

/* A result over the broker's limit would block the partition for ever. What failed is too large by
 * its request's metadata alone: it keeps its error and goes without them. What did not becomes a
 * failed one. */
static int put_result(struct settle_records *s, struct job *job, struct error *error)
{
    bool too_large = false;

    if (!put_record(s, RECORD_GENERATION_RESULT, &job->result, s->config->topic_results, job,
                    &too_large, error))
        return 0;
    if (!too_large)
        return -1;
    if (!job->result.has_error) {
        job->result.sequences = NULL;
        job->result.sequence_count = 0;
        job_finish(job, JOB_FAILED, "internal",
                   "the result is larger than 1 MiB, the most that a record may hold; ask for "
                   "fewer or shorter sequences",
                   clock_wall_us());
    }
    job->result.metadata_count = 0;
    return put_record(s, RECORD_GENERATION_RESULT, &job->result, s->config->topic_results, job,
                      &too_large, error);
}

static int put_event(struct settle_records *s, const struct job *job, struct error *error)
{
    const struct generation_result *r = &job->result;
    struct text tenant = job->request.tenant; /* of an invalid request: as long as it likes */
    bool too_large;
    struct job_event event = {
        .job_id = r->job_id,
        .attempt = job->attempt,
        .state = r->status,
        .at_us = clock_wall_us(),
        .worker = r->worker,
        .tenant = {tenant.data, utf8_cut(tenant.data, tenant.size, TENANT_BYTES_MAX)},
        .model = r->model,
        .source_partition = job->partition,
        .source_offset = job->offset,
        .has_usage = true,
        .usage = r->usage,
        .has_timings = true,
        .timings = r->timings,
        .accepted_at_us = job->accepted_at_us,
        .started_at_us = job->started_at_us,
        .dead_lettered = job->outcome == JOB_POISON,
        .has_error = r->has_error,
        .error = r->error,
    };

    return put_record(s, RECORD_JOB_EVENT, &event, s->config->topic_events, job, &too_large, error);
}

static int put_dead_letter(struct settle_records *s, const struct job *job, struct error *error)
{
    bool too_large;
    struct record r = {.topic = s->config->topic_dlq,
                       .partition = RD_KAFKA_PARTITION_UA,
                       .key = job->original_key.data,
                       .key_size = job->original_key.size,
                       .value = job->original.data,
                       .value_size = dead_letter_payload(s->config, job, s->dead_letter_max)};

    r.headers = dead_letter_headers(s->config, job, s->dead_letter_max, clock_wall_us());
    if (!r.headers)
        return error_set(error, "no memory for the headers of a dead letter");
    return produce(s, &r, &too_large, error);
}

void settle_records_cut_further(struct settle_records *s)
{
    if (s->dead_letter_max / 2 >= DEAD_LETTER_LEAST)
        s->dead_letter_max /= 2;
    log_write(LOG_ERROR, "settle", NULL,
              "%s does not take a dead letter; they are cut to %zu bytes now. Set its "
              "max.message.bytes to %d: `pgpt topics --check`",
              s->config->topic_dlq, s->dead_letter_max, DEAD_LETTER_RECORD_MAX);
}

int settle_records_job(struct settle_records *s, struct job *job, struct error *error)
{
    if (job->outcome == JOB_DUPLICATE)
        return 0;
    if ((job->outcome == JOB_DEAD_LETTER || job->outcome == JOB_POISON) &&
        put_dead_letter(s, job, error))
        return -1;
    if (job->outcome == JOB_DEAD_LETTER)
        return 0;
    return put_result(s, job, error) || put_event(s, job, error) ? -1 : 0;
}

int settle_records_index(struct settle_records *s, const struct assignment_part *part,
                         const struct job_list *jobs, struct error *error)
{
    struct job_index_entry *entries = malloc((jobs->count + 1) * sizeof *entries);
    struct job_index index = {.at_us = clock_wall_us(), .jobs = entries};
    struct record r = {.topic = s->config->topic_index, .partition = part->partition};
    bool too_large;
    int status;

    if (!entries)
        return error_set(error, "no memory for an index record");
    for (const struct job *job = jobs->head; job; job = job->next)
        if (job->partition == part->partition && job->has_id && job->outcome != JOB_DUPLICATE) {
            memcpy(entries[index.job_count].id, job->id, 16);
            entries[index.job_count++].source_offset = job->offset;
        }
    status =
        index.job_count ? codec_encode(s->codec, RECORD_JOB_INDEX, &index, &s->buffer, error) : 0;
    free(entries);
    if (status || !index.job_count)
        return status;
    r.value = s->buffer.data;
    r.value_size = s->buffer.size;
    return produce(s, &r, &too_large, error);
}
