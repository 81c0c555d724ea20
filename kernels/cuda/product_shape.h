/* SPDX-License-Identifier: MIT
 *
 * product_shape: the tiles that products come in and the kernels of each format, for product.cu and
 * the files that instantiate them.
 */
#ifndef PGPT_KERNELS_CUDA_PRODUCT_SHAPE_H
#define PGPT_KERNELS_CUDA_PRODUCT_SHAPE_H

#include "kernels/cuda/product.h"

enum {
    WIDE_COLUMNS = 64,
    WIDE_PIECES = 4,    /* of the weights' ring */
    WIDE_PIECE = 8192,  /* bytes of one: 64 columns by 2 blocks */
    WIDE_STAGE_PAD = 4, /* words between the rows of sums */
    NARROW_PAD = 4,
    NARROW_BLOCKS = 4, /* of weights in a warp's registers; of each part of a window */
};

enum product_shape_id {
    SHAPE_NARROW_16, /* 16 rows by 16 columns */
    SHAPE_NARROW_32, /* 16 by 32 */
    SHAPE_WIDE_32,   /* 32 by 64 */
    SHAPE_WIDE_64,
    SHAPE_WINDOWS, /* 16 by 16, a window of the inputs at a time: fits everywhere */
    SHAPE_COUNT
};

/* Inputs with outputs, as a Marian model needs them. */
enum product_combination {
    COMBINE_EMBED_QKV,
    COMBINE_NORM_QKV,
    COMBINE_ROWS_RESIDUAL,
    COMBINE_NORM_PLAIN,
    COMBINE_NORM_LOGITS,
    COMBINE_EMBED_PLAIN,
    COMBINE_NORM_CROSS,
    COMBINE_COUNT
};

/* Bytes of the ring, which also holds the sums (rows, WIDE_COLUMNS + WIDE_STAGE_PAD) of a finished
 * tile. */
#ifdef __CUDACC__
__host__ __device__
#endif
    static inline constexpr int
    wide_ring_bytes(int rows)
{
    return WIDE_PIECES * WIDE_PIECE > rows * (WIDE_COLUMNS + WIDE_STAGE_PAD) * 4
               ? WIDE_PIECES * WIDE_PIECE
               : rows * (WIDE_COLUMNS + WIDE_STAGE_PAD) * 4;
}

/* Engines on several devices may be open: what a launch has to know of its device lies in tables by
 * the current device's index, which is below PRODUCT_DEVICES. */
enum { PRODUCT_DEVICES = 64 };
int product_device(void);

typedef void (*product_kernel)(struct product);

extern const product_kernel product_kernels_f32[COMBINE_COUNT][SHAPE_COUNT];
extern const product_kernel product_kernels_f16[COMBINE_COUNT][SHAPE_COUNT];
extern const product_kernel product_kernels_bf16[COMBINE_COUNT][SHAPE_COUNT];
extern const product_kernel product_kernels_int8[COMBINE_COUNT][SHAPE_COUNT];

/* product_logits.cu: large vocabularies, few rows. */
cudaError_t product_logits_prepare(void);
bool product_logits_takes(const struct product *product, int32_t n_most, int multiprocessors);
cudaError_t product_logits_enqueue(const struct product *product, int32_t n_most,
                                   int multiprocessors, bool pdl, cudaStream_t stream);

#endif
