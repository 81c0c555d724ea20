/* SPDX-License-Identifier: MIT */
#include "kernels/cuda/product_kernel.cuh"

const product_kernel product_kernels_int8[COMBINE_COUNT][SHAPE_COUNT] =
    PRODUCT_KERNELS(format_int8);
