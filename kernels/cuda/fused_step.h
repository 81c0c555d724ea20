/* SPDX-License-Identifier: MIT
 *
 * fused_step: one decode step of few rows of any kind in one kernel, up to the logits' units or, of
 * larger vocabularies, up to the logits product; tokens are chosen by the kernels behind. The
 * structure is fused.h's: clusters of 16 or 8 blocks with up to 8 rows each. Where fused.h takes
 * all steps of a call for plain rows of small models, this one serves sampled, penalised and beam
 * rows and deeper, wider decoders. Needs Hopper's clusters, float16 or bfloat16, 512 dimensions, 8
 * heads, feed-forward 256 or 2,048, up to FUSED_STEP_LAYERS layers and 512 positions. The same bits
 * as the products and attentions launched one by one.
 */
#ifndef PGPT_KERNELS_CUDA_FUSED_STEP_H
#define PGPT_KERNELS_CUDA_FUSED_STEP_H

#include "kernels/cuda/network.h"

enum {
    FUSED_STEP_LAYERS = 16,
    FUSED_STEP_ROWS = 8, /* a cluster */
    FUSED_STEP_SHAPES = 2,
    FUSED_STEP_LOGITS = 4096, /* largest vocabulary whose logits come from this kernel */
};

/* What the device can run at once. */
struct fused_step_limits {
    int32_t clusters[FUSED_STEP_SHAPES]; /* of 16 blocks, of 8; 0 = the kernel cannot run here */
    bool logits;                         /* they come from this kernel */
};

/* Looks at the device and the model; once at the start. */
cudaError_t fused_step_prepare(const struct network *network, int capability,
                               struct fused_step_limits *limits);
/* Most rows that one launch takes; 0 = none. */
int32_t fused_step_rows_most(const struct fused_step_limits *limits);
/* network_step() in this way, for step->n_most rows at most. */
cudaError_t fused_step_enqueue(const struct network *network, const struct network_step *step,
                               const struct fused_step_limits *limits, bool pdl, bool chained,
                               cudaStream_t stream);

#endif
