/* SPDX-License-Identifier: MIT
 *
 * settle: the only stage that commits. It gathers jobs with an outcome, waits until all their
 * chunks are acknowledged, and publishes them in Kafka transactions: results, final events, index
 * records and dead letters together with the offsets and the ledger in the commit's metadata. It
 * keeps a job until the fate of its transaction is known, and frees it then. One thread of its own.
 */
#ifndef PGPT_WORKER_SETTLE_H
#define PGPT_WORKER_SETTLE_H

#include "worker/pipeline.h"

struct settle *settle_create(struct pipeline *pipeline, struct error *error) PGPT_MUST_CHECK;
/* Makes the transactional producer (waits for the brokers up to a call's timeout) and the thread.
 */
int settle_start(struct settle *settle, struct error *error) PGPT_MUST_CHECK;
/* Commits what it holds, for at most wait_ms, then joins the thread. */
void settle_stop(struct settle *settle, int wait_ms);
void settle_destroy(struct settle *settle); /* NULL is allowed; frees jobs that are left */

/* settle_push(), settle_poke(), settle_depth(): worker/pipeline.h, any thread. */

#endif
