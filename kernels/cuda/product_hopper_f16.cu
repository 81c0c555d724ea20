/* SPDX-License-Identifier: MIT */
#include "kernels/cuda/product_hopper.cuh"

const struct hopper_format hopper_f16 = HOPPER_FORMAT(format_f16);
