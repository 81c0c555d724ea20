/* SPDX-License-Identifier: MIT
 *
 * lag: how many records of the owned request partitions are not finished, as a metric. The consumer
 * knows the ends only of partitions that it fetches from, and a full worker pauses them: so the
 * brokers are asked every few seconds, without waiting for the answer. Intake thread only.
 */
#ifndef PGPT_WORKER_LAG_H
#define PGPT_WORKER_LAG_H

#include <librdkafka/rdkafka.h>

#include "worker/pipeline.h"

struct lag; /* opaque: a queue for answers */

/* The consumer must outlive it. */
struct lag *lag_create(struct pipeline *pipeline, rd_kafka_t *consumer,
                       struct error *error) PGPT_MUST_CHECK;
void lag_destroy(struct lag *lag); /* NULL is allowed */

/* The next review asks, whenever it asked last. */
void lag_ask_now(struct lag *lag);
/* Takes an answer that has come and asks again when it is time. assigned (partition_end) bools. */
void lag_review(struct lag *lag, const uint8_t *assigned, int32_t partition_end,
                int64_t now_mono_us);

#endif
