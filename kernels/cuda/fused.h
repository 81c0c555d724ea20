/* SPDX-License-Identifier: MIT
 *
 * fused: whole decode steps in one kernel, for few rows. A cluster of 16 or 8 blocks owns up to 8
 * rows for as many steps as a call wants; a block has a head (or half of one) and its share of
 * every product's columns; what all need travels through distributed shared memory. Clusters never
 * wait for one another. Needs Hopper's clusters and a model of 512 dimensions, 8 heads,
 * feed-forward 256, at most 256 positions. The same bits as the products and attentions launched
 * one by one.
 */
#ifndef PGPT_KERNELS_CUDA_FUSED_H
#define PGPT_KERNELS_CUDA_FUSED_H

#include "kernels/cuda/network.h"

enum { FUSED_LAYERS = 6, FUSED_ROWS = 8 };

/* What the device can run at once; 0 = this kernel cannot run here. */
struct fused_limits {
    int32_t clusters16, clusters8;
};

/* Looks at the device and the model; once at the start. */
cudaError_t fused_prepare(const struct network *network, int capability,
                          struct fused_limits *limits);
/* Most rows that one launch takes. */
int32_t fused_rows_most(const struct fused_limits *limits);
/* `steps` steps, choice of plain rows included, for n active rows (host's count, equal to
 * *step->n). */
cudaError_t fused_enqueue(const struct network *network, const struct network_step *step, int32_t n,
                          int32_t steps, const struct fused_limits *limits, cudaStream_t stream);

#endif
