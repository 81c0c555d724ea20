/* SPDX-License-Identifier: MIT */
#include "kernels/cpu/ops_body.h"

const struct ops ops_avx2 = OPS_TABLE;
