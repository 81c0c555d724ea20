/* SPDX-License-Identifier: MIT
 *
 * product_stream: products of many rows on compute capability 9.0 that keep their rows and let the
 * weights pass by (product_stream.cuh), for product_hopper.cu and the upload of weights. They want
 * their weights in another order beside the one that all other kernels read: struct cuda_weight,
 * tiled.
 */
#ifndef PGPT_KERNELS_CUDA_PRODUCT_STREAM_H
#define PGPT_KERNELS_CUDA_PRODUCT_STREAM_H

#include "kernels/cuda/product.h"

enum {
    STREAM_THREADS = 384, /* two warpgroups that multiply, one that fetches */
    STREAM_ROWS = 128,    /* of a block, half of them a warpgroup */
    STREAM_COLUMNS = 64,  /* of a tile */
    STREAM_INPUTS = 512,
    STREAM_PIECES = STREAM_INPUTS / 64,
    STREAM_TILED = 128, /* columns by 64 inputs that lie together in tiled weights: */
    STREAM_PIECE = STREAM_TILED * 128,  /* bytes */
    STREAM_SLOT = STREAM_COLUMNS * 128, /* bytes of a tile's columns by 64 inputs */
    STREAM_SLOTS = 12,
    STREAM_BLOCKS = 2,      /* of a cluster, at most */
    STREAM_ROWS_LEAST = 65, /* of a product */
};

/* Shared memory: rows (pieces of 64 inputs), the ring, its barriers, the rows' facts. */
enum {
    STREAM_RING_AT = STREAM_ROWS * STREAM_INPUTS * 2,
    STREAM_BARRIERS_AT = STREAM_RING_AT + STREAM_SLOTS * STREAM_SLOT,
    STREAM_INFO_AT = STREAM_BARRIERS_AT + 2 * STREAM_SLOTS * 8,
    STREAM_SHARED = STREAM_INFO_AT + STREAM_ROWS * 16,
};

/* Once a device. Without it, or on another capability, stream_takes() nothing. */
cudaError_t stream_prepare(int capability);
/* Bytes of a weight's tiled copy; 0 where nobody would read it. */
size_t stream_tiled_bytes(const struct cuda_weight *weight);
/* Fills `tiled` from `packed`. */
cudaError_t stream_tile(const struct cuda_weight *weight);
bool stream_takes(const struct product *product, int32_t n_most);
cudaError_t stream_enqueue(const struct product *product, int32_t n_most, bool pdl,
                           cudaStream_t stream);

#endif
