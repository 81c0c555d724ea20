/* SPDX-License-Identifier: MIT */
#include "kernels/cpu/ops_body.h"

const struct ops ops_avx512 = OPS_TABLE;
