/* SPDX-License-Identifier: MIT */
#define LANES_PLAIN /* where the compiler has vectors without being asked, as on aarch64 */
#include "kernels/cpu/isa.h"
#include "kernels/cpu/ops_body.h"

const struct ops ops_plain = OPS_TABLE;

static const struct ops *const tables[ISA_COUNT] = {
    [ISA_PLAIN] = &ops_plain,
#if defined(__x86_64__)
    [ISA_AVX2] = &ops_avx2,
    [ISA_AVX512] = &ops_avx512,
#elif defined(__aarch64__)
    [ISA_NEON] = &ops_neon,
    [ISA_NEON_DOT] = &ops_neon, /* nothing here has a use for dot products */
#endif
};

const struct ops *ops_current(void)
{
    return tables[isa_current()];
}
