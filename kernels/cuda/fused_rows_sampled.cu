/* SPDX-License-Identifier: MIT */
#include "kernels/cuda/fused_rows_kernel.cuh"

/* Up to 8 rows a cluster are fused.h's: here they come only where it is left out, and go with what
 * 16 have. */
template <class F> static struct fused_rows_variant variant_in(int32_t tiles)
{
    return tiles <= 2   ? fused_rows_get<F, 2, true>()
           : tiles == 3 ? fused_rows_get<F, 3, true>()
           : tiles == 4 ? fused_rows_get<F, 4, true>()
                        : fused_rows_get<F, FUSED_ROWS_TILES, true>();
}

struct fused_rows_variant fused_rows_sampled_variant(enum cuda_format format, int32_t tiles)
{
    return format == CUDA_BF16 ? variant_in<format_bf16>(tiles) : variant_in<format_f16>(tiles);
}
