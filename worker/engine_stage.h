/* SPDX-License-Identifier: MIT
 *
 * engine_stage: where jobs run. Two threads: the engine's takes jobs from the scheduler while rows
 * are free, admits and steps, and looks at deadlines, cancels and assignments; the text thread
 * turns the steps' tokens into texts and chunks and finishes jobs. Between them a bounded ring of
 * batches goes down; back come only numbers (a stop string was found: slot and sequence). A running
 * job belongs to the stage; the engine thread lets go of it with its last word about the slot.
 */
#ifndef PGPT_WORKER_ENGINE_STAGE_H
#define PGPT_WORKER_ENGINE_STAGE_H

#include "worker/pipeline.h"

struct engine_stage *engine_stage_create(struct pipeline *pipeline,
                                         struct error *error) PGPT_MUST_CHECK;
int engine_stage_start(struct engine_stage *stage, struct error *error) PGPT_MUST_CHECK;

/* Takes no more jobs from the scheduler; running ones go on. For a drain, followed by waiting for
 * engine_stage_depth() == 0 as long as the grace period lasts. */
void engine_stage_close(struct engine_stage *stage);
/* Stops and joins the threads. Jobs still running stay with the stage, their offsets open. */
void engine_stage_stop(struct engine_stage *stage);
/* Frees them too: call it when the stream's thread has stopped. NULL is allowed. */
void engine_stage_destroy(struct engine_stage *stage);

/* engine_stage_depth() and engine_stage_cancel(): worker/pipeline.h, any thread. */

#endif
