/* SPDX-License-Identifier: MIT */
#include "kernels/cuda/product_kernel.cuh"

/* For checking the other formats: many rows' kernels alone. */
const product_kernel product_kernels_f32[COMBINE_COUNT][SHAPE_COUNT] = {
    PRODUCT_MANY(format_f32, PRODUCT_EMBED, PRODUCT_QKV),
    PRODUCT_MANY(format_f32, PRODUCT_NORM, PRODUCT_QKV),
    PRODUCT_MANY(format_f32, PRODUCT_ROWS, PRODUCT_RESIDUAL),
    PRODUCT_MANY(format_f32, PRODUCT_NORM, PRODUCT_PLAIN),
    PRODUCT_MANY(format_f32, PRODUCT_NORM, PRODUCT_LOGITS),
    PRODUCT_MANY(format_f32, PRODUCT_EMBED, PRODUCT_PLAIN),
    PRODUCT_MANY(format_f32, PRODUCT_NORM, PRODUCT_CROSS),
};
