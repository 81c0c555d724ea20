/* SPDX-License-Identifier: MIT
 *
 * step: what the CPU back end does in one call: encode what was admitted, run decode steps, choose
 * tokens, report. With few rows all threads work together on each product; with many, each thread
 * takes rows and carries them through whole steps alone, without waiting for the others. One owner.
 */
#ifndef PGPT_KERNELS_CPU_STEP_H
#define PGPT_KERNELS_CPU_STEP_H

#include "kernels/cpu/choose.h"
#include "kernels/cpu/layers.h"
#include "kernels/cpu/slots.h"

struct step {
    const struct rules_tables *rules;
    const struct weights *weights;
    struct threads *threads;
    struct frame *frames; /* (threads) */
    struct slots *slots;
    struct row **rows;         /* (max_rows) work: the running rows of a call */
    struct slot **pending;     /* (max_rows) work: the slots to encode */
    int32_t *cuts;             /* (max_rows + 1) work: where the shares of a call begin */
    struct engine_item *items; /* (max_rows) */
};

void step_run(struct step *step, int32_t k, struct engine_output *out);

/* A crew of all threads, or of one when there is only one. */
struct crew step_crew(const struct step *step);

struct choose step_choose(const struct step *step, struct frame *frame);
struct choose_sampling step_sampling(const struct engine_request *request, int32_t sequence);

#endif
