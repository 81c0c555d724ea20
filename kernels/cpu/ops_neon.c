/* SPDX-License-Identifier: MIT */
#include "kernels/cpu/ops_body.h"

const struct ops ops_neon = OPS_TABLE;
