/* SPDX-License-Identifier: MIT
 *
 * step_ring: the way from the engine's thread to the text thread and back. Down goes a bounded ring
 * of batches, each what one turn of the engine did, copied out of the engine's own memory; up come
 * only numbers: sequences that a stop string ended. Batches keep their memory from turn to turn;
 * one holds at most what all rows can generate in a call. One thread sends, one receives; each end
 * may be closed by any thread.
 */
#ifndef PGPT_WORKER_STEP_RING_H
#define PGPT_WORKER_STEP_RING_H

#include "kernels/engine.h"
#include "worker/running.h"

struct step_item {
    struct running *running;
    struct engine_item item; /* its tokens and logprobs point into the batch once it is received */
    size_t token_at, logprob_at;
};

struct step_end {
    struct running *running;
    enum running_end end;
};

/* To be taken in this order: admitted, items, ends. */
struct step_batch {
    struct running **admitted; /* (admitted_count) jobs that joined before the step */
    struct step_item *items;   /* (item_count) */
    struct step_end *ends;     /* (end_count) the engine's last word about these jobs */
    size_t admitted_count, item_count, end_count;
    int64_t encoded_mono_us; /* when what was admitted had been encoded */
    int64_t at_mono_us;      /* when the tokens were on the host */
    int64_t steps;           /* that the stage has run so far, these included */
    double row_steps;        /* the sum of their rows */
    /* Inside. */
    int32_t *tokens; /* (token_count) */
    float *logprobs; /* (logprob_count) */
    size_t token_count, logprob_count;
    size_t admitted_room, item_room, end_room, token_room, logprob_room;
};

/* -1 = no memory. */
int step_batch_admit(struct step_batch *batch, struct running *running) PGPT_MUST_CHECK;
int step_batch_add(struct step_batch *batch, struct running *running,
                   const struct engine_item *item) PGPT_MUST_CHECK;
int step_batch_end(struct step_batch *batch, struct running *running,
                   enum running_end end) PGPT_MUST_CHECK;

struct step_ring; /* opaque: has a lock */

struct step_ring *step_ring_create(int32_t max_rows) PGPT_MUST_CHECK;
void step_ring_destroy(struct step_ring *ring); /* NULL is allowed */

/* Engine thread: an empty batch to fill; waits while the text thread is a ring behind. NULL when
 * the ring was closed. */
struct step_batch *step_ring_open(struct step_ring *ring);
void step_ring_send(struct step_ring *ring); /* the batch that was opened */

/* Text thread: the oldest batch; NULL when none came within wait_us, or the ring was closed and is
 * empty. */
struct step_batch *step_ring_receive(struct step_ring *ring, int64_t wait_us);
void step_ring_done(struct step_ring *ring); /* with the batch that was received */

/* A sequence to stop. The tag belongs to one job alone, so that a
 * note about one that has left hits no other. */
struct step_stop {
    uint64_t tag;
    int32_t sequence;
};
/* Text thread. A note too many is dropped: the sequence then runs on to its end, unseen. */
void step_ring_stop(struct step_ring *ring, struct step_stop stop);
/* Engine thread: moves up to max notes out; returns how many. */
size_t step_ring_stops(struct step_ring *ring, struct step_stop *stops, size_t max);

void step_ring_close(struct step_ring *ring);
bool step_ring_closed(struct step_ring *ring);

#endif
