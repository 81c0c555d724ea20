/* SPDX-License-Identifier: MIT
 *
 * choose: the end of a decode step for full rows: sampling, repetition penalty, bad phrases and
 * beam searches, by the definitions the CPU back end follows too (kernels/search/). Plain rows are
 * chosen by merging the logits product's partial maxima (see product.h). Integer sums of weights
 * are exact and sums of floats have one order (logsum.cuh), so a row's bits depend on the row
 * alone. All functions only enqueue on the stream, allocate nothing and may be captured into a
 * graph; blocks past *n return at once. pdl: may start while the kernel before drains (launch.cuh).
 */
#ifndef PGPT_KERNELS_CUDA_CHOOSE_H
#define PGPT_KERNELS_CUDA_CHOOSE_H

#include <cuda_runtime.h>
#include <stddef.h>

#include "kernels/cuda/product.h"
#include "kernels/cuda/rows.h"
#include "kernels/search/rules.h"

/* Rows of at most this many logits stay in registers and their logits are left as they were. Longer
 * ones are looked at several times: the functions below then write into the logits. */
enum { CHOOSE_KEPT = 8192 };

/* What the model says of every choice; the sets and phrases of `rules` in device memory. */
struct choose_rules {
    struct rules rules;
    int32_t start_token; /* the first of a row's input_ids */
};

/* What the choice of plain rows goes by (see product.h). */
struct choose_plain_rows {
    struct cuda_rules rules;
    const struct product_unit *units; /* (n, units) */
    const float *special;             /* (n, 2) */
};

/* One step's choice for sampled and greedy rows. logits (n, V) float32, logits_bias included,
 * unprocessed; row i of it belongs to active[i]. n in device memory; n_most bounds it (the grid):
 * logits and active have room for as many, which may be read before n is known.
 * Writes tokens, logprobs, row.token, row.position and row.finished. Leaves alone: finished rows,
 * beams, and, when `plain` is NULL, plain rows (those have no flag of CUDA_ROW_FULL). */
cudaError_t choose_full(struct cuda_rows rows, struct choose_rules rules,
                        const struct choose_plain_rows *plain, float *logits, const int32_t *active,
                        const int32_t *n, int32_t n_most, bool pdl, cudaStream_t stream);

/* One step of beam searches. groups (count, room for count_most) names the active ones, finished
 * ones are left alone;
 * place (max_rows): a row's index in the active list, hence in logits. work: choose_beams_work()
 * bytes, 16-byte aligned. For each group: state, finished, beam_tokens and beam_parents of this
 * step; for each of its rows, which now continue the beam that the search gave them: token,
 * position, finished, source_row (positions up to the one just computed, and the next one, which is
 * the row's own) and, where a penalty or phrases ask for it, tokens. logprobs are not written.
 * V >= BEAM_CANDIDATES. */
cudaError_t choose_beams(struct cuda_rows rows, struct choose_rules rules, float *logits,
                         const int32_t *groups, const int32_t *count, int32_t count_most,
                         const int32_t *place, void *work, bool pdl, cudaStream_t stream);
size_t choose_beams_work(int32_t count_most);

/* Reads finished groups back: for hypothesis h of group g, best first: out_length[g * BEAM_MAX + h]
 * (0 = no such hypothesis), out_score and out_tokens ((g * BEAM_MAX + h) * P ..). groups names
 * `count` groups; it and the outputs lie in memory that the device can reach. */
cudaError_t choose_beams_collect(struct cuda_rows rows, const int32_t *groups, int32_t count,
                                 int32_t *out_length, float *out_score, int32_t *out_tokens,
                                 cudaStream_t stream);

/* probabilities (V): what sampling would draw row r's next token from, given one row of logits,
 * which is not advanced. For traces. */
cudaError_t choose_probabilities(struct cuda_rows rows, struct choose_rules rules, int32_t r,
                                 float *logits, float *probabilities, cudaStream_t stream);

#endif
