/* SPDX-License-Identifier: MIT */
#include "worker/dead_letter.h"

#include <openssl/sha.h>
#include <stdio.h>
#include <string.h>

size_t dead_letter_payload(const struct config *config, const struct job *job, size_t record_max)
{
    size_t others = job->original_key.size + job->traceparent.size + job->tracestate.size +
                    strlen(job->dead_letter.error_message) + strlen(config->topic_requests) +
                    strlen(config->worker_name) + DEAD_LETTER_OVERHEAD;
    size_t room = others < record_max ? record_max - others : 0;

    return job->original.size < room ? job->original.size : room;
}

static bool add(rd_kafka_headers_t *headers, const char *name, const char *value, size_t size)
{
    return rd_kafka_header_add(headers, name, -1, value, (ssize_t)size) ==
           RD_KAFKA_RESP_ERR_NO_ERROR;
}

static bool add_number(rd_kafka_headers_t *headers, const char *name, int64_t number)
{
    char text[32];
    int size = snprintf(text, sizeof text, "%lld", (long long)number);

    return add(headers, name, text, (size_t)size);
}

static bool add_sha256(rd_kafka_headers_t *headers, const struct text *payload)
{
    unsigned char digest[SHA256_DIGEST_LENGTH];
    char text[2 * SHA256_DIGEST_LENGTH + 1];

    SHA256((const unsigned char *)payload->data, payload->size, digest);
    for (int i = 0; i < SHA256_DIGEST_LENGTH; i++)
        snprintf(text + 2 * i, 3, "%02x", digest[i]);
    return add(headers, "dlq.sha256", text, sizeof text - 1);
}

rd_kafka_headers_t *dead_letter_headers(const struct config *config, const struct job *job,
                                        size_t record_max, int64_t now_us)
{
    rd_kafka_headers_t *h = rd_kafka_headers_new(12);
    const struct job_dead_letter *d = &job->dead_letter;
    bool ok = h && add(h, "dlq.topic", config->topic_requests, strlen(config->topic_requests)) &&
              add_number(h, "dlq.partition", job->partition) &&
              add_number(h, "dlq.offset", job->offset) &&
              add_number(h, "dlq.attempt", job->attempt) &&
              add(h, "dlq.error_class", d->error_class, strlen(d->error_class)) &&
              add(h, "dlq.error_message", d->error_message, strlen(d->error_message)) &&
              add(h, "dlq.worker", config->worker_name, strlen(config->worker_name)) &&
              add_number(h, "dlq.at_us", now_us);

    if (ok && job->traceparent.size)
        ok = add(h, "traceparent", job->traceparent.data, job->traceparent.size);
    if (ok && job->tracestate.size)
        ok = add(h, "tracestate", job->tracestate.data, job->tracestate.size);
    if (ok && dead_letter_payload(config, job, record_max) < job->original.size)
        ok = add_sha256(h, &job->original);
    if (!ok && h) {
        rd_kafka_headers_destroy(h);
        h = NULL;
    }
    return h;
}

bool dead_letter_limit_add(struct dead_letter_limit *limit, bool dead, double ratio)
{
    if (limit->seen == DEAD_LETTER_WINDOW)
        limit->count -= limit->dead[limit->at];
    else
        limit->seen++;
    limit->dead[limit->at] = dead;
    limit->count += dead;
    limit->at = (limit->at + 1) % DEAD_LETTER_WINDOW;
    return limit->seen >= DEAD_LETTER_WINDOW_MIN && limit->count > ratio * limit->seen;
}
