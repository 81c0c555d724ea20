/* SPDX-License-Identifier: MIT
 *
 * run: one request's generation, from the engine's items to the result's sequences: the only place
 * that maps generation_request to engine_request and engine_item to generation_sequence. The caller
 * drives the engine:
 *
 *   source_len = generation_prepare(...)              validate.h: check and tokenise
 *   generation_run_create(...)                        one object a request, in its arena
 *   generation_run_request(request, source, ...)      -> engine_admit()
 *   for each item of engine_step(): generation_run_take(run, item)
 *       stopped by a string (GENERATION_TOOK_STOP): engine_stop_sequence()
 *   generation_run_finished(run): engine_release(), generation_run_result()
 *
 * Owned by the arena; one thread at a time.
 */
#ifndef PGPT_KERNELS_GENERATE_RUN_H
#define PGPT_KERNELS_GENERATE_RUN_H

#include "kernels/engine.h"
#include "kernels/generate/generation.h"
#include "kernels/text/assemble.h"

#ifdef __cplusplus
extern "C" {
#endif

struct generation_run {
    const struct generation_request *request;
    struct arena *arena;
    struct assemble_rules rules;
    int32_t source_count;
    int32_t sequence_count;
    int32_t finished_count;
    struct assembly sequences[]; /* (sequence_count) */
};

/* NULL when the arena is full. request and arena outlive the run. */
struct generation_run *generation_run_create(const struct generation_request *request,
                                             int32_t source_count,
                                             const struct detokeniser *detokeniser,
                                             struct arena *arena) PGPT_MUST_CHECK;

/* Bytes that a run can take from its arena at most, results included: for the arena's maximum. */
size_t generation_run_memory(const struct generation_request *request,
                             const struct detokeniser *detokeniser);

/* The request in the engine's words. An absent seed is taken from job_id: the first 8 bytes of the
 * UUID, big-endian (0 when it is none). */
void generation_run_request(const struct generation_request *request, const int32_t *source,
                            int32_t source_count, uint64_t tag, struct engine_request *out);
/* Rows that the request holds in the engine: max(num_return_sequences, num_beams). */
int32_t generation_run_rows(const struct generation_request *request);

enum generation_took {
    GENERATION_TOOK_NOMEM = -1,
    GENERATION_TOOK_SOME,     /* the sequence runs on, or had ended before */
    GENERATION_TOOK_STOP,     /* a stop string ended it now: tell the engine */
    GENERATION_TOOK_FINISHED, /* the engine ended it now */
};

/* Feeds one item of this request. */
enum generation_took generation_run_take(struct generation_run *run,
                                         const struct engine_item *item) PGPT_MUST_CHECK;

/* Ends the sequences that still run (cancelled, expired). -1 = the arena is full. */
int generation_run_end(struct generation_run *run, enum assemble_finish finish) PGPT_MUST_CHECK;

bool generation_run_finished(const struct generation_run *run);

/* Sets result->sequences, sequence_count and usage; texts stay in the arena. -1 = it is full. */
int generation_run_result(struct generation_run *run,
                          struct generation_result *result) PGPT_MUST_CHECK;

#ifdef __cplusplus
}
#endif
#endif
