/* SPDX-License-Identifier: MIT
 *
 * takeover: how a partition changes hands. Taking: read the stable committed offset and ledger,
 * commit the `open` mark before anything of the partition is decoded, rebuild the window of
 * duplicates from pgpt.index. Giving up in order: commit the ledger with the mark cleared. Intake
 * thread only.
 */
#ifndef PGPT_WORKER_TAKEOVER_H
#define PGPT_WORKER_TAKEOVER_H

#include <librdkafka/rdkafka.h>

#include "worker/assignment.h"
#include "worker/pipeline.h"

struct takeover; /* opaque: an index reader and its decoder */

/* When `draining` becomes true a takeover under way fails. */
struct takeover *takeover_create(struct pipeline *pipeline, const _Atomic bool *draining,
                                 struct error *error) PGPT_MUST_CHECK;
/* Before the consumer that it committed with. NULL is allowed. */
void takeover_destroy(struct takeover *takeover);

/* Takes `count` partitions; offsets[i] is where to read on. -1 = nothing was taken, try again. */
int takeover_run(struct takeover *takeover, rd_kafka_t *consumer, const int32_t *partitions,
                 int64_t *offsets, int count, struct error *error) PGPT_MUST_CHECK;

/* The partition is newly assigned: what an earlier ownership tried to commit is not ours any more.
 */
void takeover_forget(struct takeover *takeover, int32_t partition);

/* Commits the ledgers of partitions by the consumer itself, outside transactions. Without an answer
 * within a call's limit it fails, and no other is made before that answer has come: takeover_run()
 * fails as well until then. */
int takeover_commit(struct takeover *takeover, rd_kafka_t *consumer, const int32_t *partitions,
                    const struct ledger *ledgers, int count, struct error *error) PGPT_MUST_CHECK;

/* Waits up to wait_ms until the last commit has its answer. False: it may still reach the brokers.
 */
bool takeover_quiet(struct takeover *takeover, int wait_ms);

#endif
