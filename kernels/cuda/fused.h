/* SPDX-License-Identifier: MIT
 *
 * fused: decode steps of few rows in one kernel. A cluster of 16 or 8 blocks owns up to 8 rows; a
 * block has a head (or half of one) and its share of every product's columns, whose weights come
 * through a ring in its shared memory; what all need travels through distributed shared memory.
 * Clusters never wait for one another. Of plain and sampled rows it takes as many steps as a call
 * wants, choice included; of rows of any kind, and of models with more tokens or a wider
 * feed-forward, one step, up to the logits' units or up to the logits product. Needs Hopper's
 * clusters, float16 or bfloat16, 512 dimensions, 8 heads, feed-forward 256 or 2,048. The same bits
 * as the products and attentions launched one by one.
 */
#ifndef PGPT_KERNELS_CUDA_FUSED_H
#define PGPT_KERNELS_CUDA_FUSED_H

#include "kernels/cuda/network.h"

enum {
    FUSED_LAYERS = 16,
    FUSED_ROWS = 8,          /* a cluster */
    FUSED_SHAPES = 2,        /* clusters of 16 blocks, and of 8 */
    FUSED_VOCABULARY = 4096, /* most tokens whose logits come from this kernel */
};

/* What the device can run at once; 0 = this kernel cannot run here. */
struct fused_limits {
    int32_t clusters[FUSED_SHAPES];      /* of many steps */
    int32_t step_clusters[FUSED_SHAPES]; /* of one */
    int32_t rows, step_rows;             /* most rows of a launch */
};

/* Looks at the device and the model; once at the start. */
cudaError_t fused_prepare(const struct network *network, int capability,
                          struct fused_limits *limits);
/* `steps` steps, choice included, for n active rows (host's count, equal to *step->n): plain ones,
 * or, if `sampled`, such that are sampled and nothing else, and plain ones. out: all of it, which
 * the host sees, by places in the active list. pdl: may begin while the kernel before it drains. */
cudaError_t fused_enqueue(const struct network *network, const struct network_step *step, int32_t n,
                          int32_t steps, bool sampled, struct step_output out,
                          const struct fused_limits *limits, bool pdl, cudaStream_t stream);
/* network_step() in this way, for step->n_most rows at most. */
cudaError_t fused_step_enqueue(const struct network *network, const struct network_step *step,
                               const struct fused_limits *limits, bool pdl, bool chained,
                               cudaStream_t stream);

#endif
