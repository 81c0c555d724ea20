/* SPDX-License-Identifier: MIT */
#include "kernels/cuda/product_kernel.cuh"

const product_kernel product_kernels_f32[COMBINE_COUNT][SHAPE_COUNT] = PRODUCT_KERNELS(format_f32);
