/* SPDX-License-Identifier: MIT */
#include "kernels/cuda/product_hopper.cuh"

const struct hopper_format hopper_bf16 = HOPPER_FORMAT(format_bf16);
