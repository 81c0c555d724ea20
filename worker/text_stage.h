/* SPDX-License-Identifier: MIT
 *
 * text_stage: the lower half of the engine stage. Its thread takes the engine's batches, makes
 * texts and chunks of the tokens, looks for stop strings, sends live events, and finishes jobs:
 * their last owner before settle. A chunk that the stream has no room for waits with its own job;
 * the batch and the other jobs go on.
 */
#ifndef PGPT_WORKER_TEXT_STAGE_H
#define PGPT_WORKER_TEXT_STAGE_H

#include "worker/pipeline.h"
#include "worker/step_ring.h"

struct text_stage; /* opaque */

struct text_stage *text_stage_create(struct pipeline *pipeline, struct step_ring *ring,
                                     struct running_table *table,
                                     struct error *error) PGPT_MUST_CHECK;
int text_stage_start(struct text_stage *stage, struct error *error) PGPT_MUST_CHECK;
/* Joins the thread, which ends when the ring is closed and empty. */
void text_stage_stop(struct text_stage *stage);
void text_stage_destroy(struct text_stage *stage); /* NULL is allowed */

#endif
