/* SPDX-License-Identifier: MIT */
#include "kernels/cpu/isa.h"
#include "kernels/cpu/ops_body.h"

const struct ops ops_plain = OPS_TABLE;

const struct ops *ops_current(void)
{
#if defined(__x86_64__)
    switch (isa_current()) {
    case ISA_AVX512:
        return &ops_avx512;
    case ISA_AVX2:
        return &ops_avx2;
    case ISA_PLAIN:
        break;
    }
#endif
    return &ops_plain;
}
