/* SPDX-License-Identifier: MIT
 *
 * logsum: max and sum of exponentials of a row of logits in one fixed order, whoever computes it. A
 * unit is 32 columns: lane q of 4 adds columns 8t + 2q and 8t + 2q + 1 for t = 0..3, then lanes
 * (0+1)+(2+3). Units: lane l of a warp merges units l, l + 32, ... in order, then lanes merge by
 * xor 16, 8, 4, 2, 1, the lower lane's pair first. Columns past the vocabulary are -inf.
 */
#ifndef PGPT_KERNELS_CUDA_LOGSUM_CUH
#define PGPT_KERNELS_CUDA_LOGSUM_CUH

struct logsum {
    float max, sum;
};

static __device__ __forceinline__ float logsum_exp(float x)
{
    return expf(x);
}

/* What is taken from exponents whose greatest is max: no branches, and no NaN where all are -inf.
 */
static __device__ __forceinline__ float logsum_base(float max)
{
    return max == -INFINITY ? 0.0f : max;
}

/* v (8): lane q's columns in the order t, then 2q, 2q + 1. Call with whole groups of 4 lanes. */
static __device__ __forceinline__ struct logsum logsum_unit(const float v[8])
{
    struct logsum r;

    r.max = v[0];
#pragma unroll
    for (int i = 1; i < 8; i++)
        r.max = fmaxf(r.max, v[i]);
    r.max = fmaxf(r.max, __shfl_xor_sync(0xffffffffu, r.max, 1));
    r.max = fmaxf(r.max, __shfl_xor_sync(0xffffffffu, r.max, 2));
    r.sum = 0.0f;
#pragma unroll
    for (int i = 0; i < 8; i++)
        r.sum = __fadd_rn(r.sum, logsum_exp(v[i] - logsum_base(r.max)));
    r.sum = __fadd_rn(r.sum, __shfl_xor_sync(0xffffffffu, r.sum, 1));
    r.sum = __fadd_rn(r.sum, __shfl_xor_sync(0xffffffffu, r.sum, 2));
    return r;
}

/* a, then b. */
static __device__ __forceinline__ struct logsum logsum_merge(struct logsum a, struct logsum b)
{
    struct logsum r;
    float sa, sb;

    r.max = fmaxf(a.max, b.max);
    sa = __fmul_rn(a.sum, logsum_exp(a.max - logsum_base(r.max)));
    sb = __fmul_rn(b.sum, logsum_exp(b.max - logsum_base(r.max)));
    r.sum = __fadd_rn(sa, sb);
    return r;
}

/* Over the lanes of a warp; every lane gets the same bits. */
static __device__ __forceinline__ struct logsum logsum_warp(struct logsum mine, int lane)
{
#pragma unroll
    for (int mask = 16; mask; mask >>= 1) {
        struct logsum other;

        other.max = __shfl_xor_sync(0xffffffffu, mine.max, mask);
        other.sum = __shfl_xor_sync(0xffffffffu, mine.sum, mask);
        mine = lane & mask ? logsum_merge(other, mine) : logsum_merge(mine, other);
    }
    return mine;
}

#endif
