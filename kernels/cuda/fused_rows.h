/* SPDX-License-Identifier: MIT
 *
 * fused_rows: whole decode steps in one kernel, for some hundred plain or sampled rows. A cluster
 * of 8 blocks owns up to 40 rows for as many steps as a call wants; a block has a head and its
 * share of every product's columns. Where fused.h keeps weights in registers and norms every row in
 * every block, here they pass through a ring in shared memory, the warpgroup instruction multiplies
 * them with all rows of the cluster, and each row has one block that norms it and chooses its
 * tokens. Needs Hopper (built for 9.0a), float16 or bfloat16, 512 dimensions, 8 heads, feed-forward
 * 256. The same bits as the products and attentions launched one by one.
 */
#ifndef PGPT_KERNELS_CUDA_FUSED_ROWS_H
#define PGPT_KERNELS_CUDA_FUSED_ROWS_H

#include "kernels/cuda/network.h"

enum {
    FUSED_ROWS_LAYERS = 4,
    FUSED_ROWS_TILES = 5,  /* of 8 rows: a cluster's most */
    FUSED_ROWS_KEYS = 192, /* a row: with more, attentions launched by themselves are faster */
    /* Rows that do not fit are two launches, from so many steps on, as measured
     * (kernels/cuda/NOTES.md). */
    FUSED_ROWS_TWICE_STEPS = 4,
};

/* Looks at the device and the model; once at the start. clusters: that the device runs at once, 0 =
 * this kernel cannot run here. */
cudaError_t fused_rows_prepare(const struct network *network, int capability, int32_t *clusters);
/* Rows of a launch, at most. */
static inline int32_t fused_rows_most(int32_t clusters)
{
    return clusters * 8 * FUSED_ROWS_TILES;
}
/* Can it run n rows, and is it faster than launched kernels? keys: that all rows look at together,
 * of sources and their own. */
static inline bool fused_rows_suits(int32_t clusters, int32_t n, int32_t steps, int64_t keys)
{
    const int32_t most = fused_rows_most(clusters);
    const bool twice = n <= 2 * most && steps >= FUSED_ROWS_TWICE_STEPS;

    return (n <= most || twice) && keys <= (int64_t)n * FUSED_ROWS_KEYS;
}
/* `steps` steps, choice included, for n active rows (host's count, equal to *step->n): plain ones,
 * or, if `sampled`, such that are sampled and nothing else, and plain ones; step->logits (rows of a
 * launch, units, PRODUCT_UNIT) is then worked in. out: all of it, which the host sees, by places in
 * the active list. One launch after the other where there are more
 * rows than fit. pdl: may begin while the kernel before it drains. */
cudaError_t fused_rows_enqueue(const struct network *network, const struct network_step *step,
                               int32_t n, int32_t steps, bool sampled, struct step_output out,
                               int32_t clusters, bool pdl, cudaStream_t stream);

#endif
