/* SPDX-License-Identifier: MIT
 *
 * prepare: threads between intake and scheduler. Each takes a decoded job, checks it, drops it when
 * its cancel came first, tokenises it and pushes it to the scheduler; an invalid job goes to settle
 * as failed. Owns the jobs in its queue. The queue is bounded by what the intake admits.
 */
#ifndef PGPT_WORKER_PREPARE_H
#define PGPT_WORKER_PREPARE_H

#include "worker/pipeline.h"

struct prepare *prepare_create(struct pipeline *pipeline, struct error *error) PGPT_MUST_CHECK;
int prepare_start(struct prepare *prepare, struct error *error) PGPT_MUST_CHECK;
/* Stops and joins the threads; jobs still queued are destroyed (their offsets stay open). */
void prepare_stop(struct prepare *prepare);
void prepare_destroy(struct prepare *prepare); /* NULL is allowed */

/* prepare_push() and prepare_depth(): worker/pipeline.h, any thread. */

#endif
