/* SPDX-License-Identifier: MIT
 *
 * product_hopper: products of many normed rows on compute capability 9.0 (product_hopper.cuh), for
 * product.cu and the files that instantiate the kernels.
 */
#ifndef PGPT_KERNELS_CUDA_PRODUCT_HOPPER_H
#define PGPT_KERNELS_CUDA_PRODUCT_HOPPER_H

#include "kernels/cuda/product.h"
#include "kernels/cuda/product_shape.h"

enum {
    HOPPER_WINDOW = 256,   /* inputs of a row that are read at once */
    HOPPER_STAGE = 64 + 4, /* sums between the rows of a finished tile */
    HOPPER_ROWS_LEAST = 17,
};

/* 32 rows by 64 columns, 64 by 128, 64 by 64 */
enum hopper_shape { HOPPER_32, HOPPER_64, HOPPER_64_SLIM, HOPPER_SHAPES };
enum hopper_output {
    HOPPER_PLAIN,
    HOPPER_ACTIVE, /* plain with an activation */
    HOPPER_RESIDUAL,
    HOPPER_QKV,
    HOPPER_CROSS,
    HOPPER_LOGITS,
    HOPPER_OUTPUTS
};

/* Inputs of a product that a kernel is made for; residuals alone have one for 256 and for multiples
 * of 1,024. */
enum hopper_inputs { HOPPER_ANY, HOPPER_512, HOPPER_256, HOPPER_1024, HOPPER_INPUTS };

/* product_parts.cuh */
enum {
    PARTS_THREADS = 128,
    PARTS_COLUMNS = 64,
    PARTS_INPUTS = 256, /* a part of the inputs is one, two or four times as many, */
    PARTS_KINDS = 3,
};

struct hopper_format {
    product_kernel product[HOPPER_OUTPUTS][HOPPER_SHAPES][HOPPER_INPUTS];
    /* residuals of 1,024, 2,048 and 4,096 inputs: tiles of 32 and of 64 rows */
    product_kernel parts[2][PARTS_KINDS];
    /* of 256, 512, 768, 1,024 inputs */
    product_kernel embed[PRODUCT_WIDTH / PRODUCT_INPUTS], norm[PRODUCT_WIDTH / PRODUCT_INPUTS];
};
extern const struct hopper_format hopper_f16, hopper_bf16;

#ifdef __CUDACC__
#define HOPPER_BOTH __host__ __device__ static inline constexpr
#else
#define HOPPER_BOTH static inline
#endif

/* Shared memory: two windows of rows; sums for each warpgroup (SPLIT 2: three arrays, where the
 * rows were); the rows' facts. */
HOPPER_BOTH int hopper_stage_at(int rows, int split)
{
    return split == 1 ? 2 * rows * HOPPER_WINDOW * 2 : 0;
}
HOPPER_BOTH int hopper_info_at(int rows, int split)
{
    int windows = 2 * rows * HOPPER_WINDOW * 2, sums = rows * HOPPER_STAGE * 4;

    return split == 1 ? windows + 2 * sums : windows > 3 * sums ? windows : 3 * sums;
}

/* Shared memory of product_parts: rows, own sums, those of others, the mailbox. */
HOPPER_BOTH int parts_sums_at(int rows, int part)
{
    return rows * part * 2;
}
HOPPER_BOTH int parts_letter_at(int rows, int part)
{
    return parts_sums_at(rows, part) + rows * HOPPER_STAGE * 4;
}
HOPPER_BOTH int parts_box_at(int rows, int part)
{
    return parts_letter_at(rows, part) + rows * PARTS_COLUMNS * 4;
}

/* Once a device. Without it, or on another capability, hopper_takes() nothing. */
cudaError_t hopper_prepare(int capability);
bool hopper_takes(enum cuda_format format, int32_t n_most);
cudaError_t hopper_enqueue(const struct product *product, int32_t n_most, bool pdl,
                           cudaStream_t stream);
cudaError_t hopper_embed_enqueue(const struct product *product, int32_t n_most, bool pdl,
                                 cudaStream_t stream);

#endif
