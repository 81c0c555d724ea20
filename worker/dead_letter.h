/* SPDX-License-Identifier: MIT
 *
 * dead_letter: records for pgpt.dlq, the original bytes with headers that say why, and the limit
 * that stops a worker from dead-lettering everything after a bad deploy.
 */
#ifndef PGPT_WORKER_DEAD_LETTER_H
#define PGPT_WORKER_DEAD_LETTER_H

#include <librdkafka/rdkafka.h>

#include "worker/config.h"
#include "worker/job.h"

/* What a record of the DLQ topic may hold; the broker's max.message.bytes is 64 KiB over a
 * request's largest. A payload that does not fit with its headers is cut; dlq.sha256 then has the
 * whole one's. */
enum { DEAD_LETTER_RECORD_MAX = (1 << 20) + (64 << 10), DEAD_LETTER_OVERHEAD = 8 << 10 };

/* Bytes of the original payload that fit into a record of record_max bytes. */
size_t dead_letter_payload(const struct config *config, const struct job *job, size_t record_max);

/* dlq.topic, dlq.partition, dlq.offset, dlq.attempt, dlq.error_class, dlq.error_message,
 * dlq.worker, dlq.at_us, the trace headers, and dlq.sha256 when cut. NULL without memory. */
rd_kafka_headers_t *dead_letter_headers(const struct config *config, const struct job *job,
                                        size_t record_max, int64_t now_us) PGPT_MUST_CHECK;

/* The share of dead letters among the last 1,000 records. One thread's. */
enum { DEAD_LETTER_WINDOW = 1000, DEAD_LETTER_WINDOW_MIN = 200 };
struct dead_letter_limit {
    uint8_t dead[DEAD_LETTER_WINDOW];
    int32_t at, seen, count;
};
/* Counts one record; true while more than `ratio` of at least 200 were dead letters. */
bool dead_letter_limit_add(struct dead_letter_limit *limit, bool dead, double ratio);

#endif
