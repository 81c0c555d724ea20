/* SPDX-License-Identifier: MIT
 *
 * logsum: max and sum of exponentials of a row of logits in one fixed order, whoever computes it. A
 * unit is 32 columns: lane q of 4 adds columns 8t + 2q and 8t + 2q + 1 for t = 0..3, then lanes
 * (0+1)+(2+3). A row's max is the greatest of its units'; each unit's sum is scaled to it; lane l
 * of a warp adds those of units l, l + 32, ... in order, then lanes add by xor 16, 8, 4, 2, 1. So
 * all but the additions can be spread over any number of threads. Columns past the vocabulary are
 * -inf.
 */
#ifndef PGPT_KERNELS_CUDA_LOGSUM_CUH
#define PGPT_KERNELS_CUDA_LOGSUM_CUH

struct logsum {
    float max, sum;
};

/* e^x for x <= 0. What is lost by rounding the exponent matters only where the result is small
 * against the 1 of the greatest; so two instructions do in place of eight. */
static __device__ __forceinline__ float logsum_exp(float x)
{
    float y;

    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(__fmul_rn(x, 1.44269504088896341f)));
    return y;
}

/* What is taken from exponents whose greatest is max: no branches, and no NaN where all are -inf.
 */
static __device__ __forceinline__ float logsum_base(float max)
{
    return max == -INFINITY ? 0.0f : max;
}

/* COUNT units side by side. v: of each, lane q's columns in the order t, then 2q, 2q + 1. Call with
 * whole groups of 4 lanes. */
template <int COUNT>
static __device__ __forceinline__ void logsum_units(struct logsum (&r)[COUNT],
                                                    const float (&v)[COUNT][8])
{
#pragma unroll
    for (int u = 0; u < COUNT; u++) {
        r[u].max = v[u][0];
#pragma unroll
        for (int i = 1; i < 8; i++)
            r[u].max = fmaxf(r[u].max, v[u][i]);
    }
#pragma unroll
    for (int mask = 1; mask <= 2; mask <<= 1)
#pragma unroll
        for (int u = 0; u < COUNT; u++)
            r[u].max = fmaxf(r[u].max, __shfl_xor_sync(0xffffffffu, r[u].max, mask));
#pragma unroll
    for (int u = 0; u < COUNT; u++) {
        const float base = logsum_base(r[u].max);

        r[u].sum = 0.0f;
#pragma unroll
        for (int i = 0; i < 8; i++)
            r[u].sum = __fadd_rn(r[u].sum, logsum_exp(v[u][i] - base));
    }
#pragma unroll
    for (int mask = 1; mask <= 2; mask <<= 1)
#pragma unroll
        for (int u = 0; u < COUNT; u++)
            r[u].sum = __fadd_rn(r[u].sum, __shfl_xor_sync(0xffffffffu, r[u].sum, mask));
}

/* One. */
static __device__ __forceinline__ struct logsum logsum_unit(const float v[8])
{
    struct logsum r[1];
    float unit[1][8];

#pragma unroll
    for (int i = 0; i < 8; i++)
        unit[0][i] = v[i];
    logsum_units<1>(r, unit);
    return r[0];
}

/* A unit's part in the sum of a row whose greatest logit is max. */
static __device__ __forceinline__ float logsum_scaled(struct logsum unit, float max)
{
    return __fmul_rn(unit.sum, logsum_exp(unit.max - logsum_base(max)));
}

/* Over the lanes of a warp; every lane gets the same bits. */
static __device__ __forceinline__ float logsum_warp_max(float mine)
{
#pragma unroll
    for (int mask = 16; mask; mask >>= 1)
        mine = fmaxf(mine, __shfl_xor_sync(0xffffffffu, mine, mask));
    return mine;
}
static __device__ __forceinline__ float logsum_warp_add(float mine)
{
#pragma unroll
    for (int mask = 16; mask; mask >>= 1)
        mine = __fadd_rn(mine, __shfl_xor_sync(0xffffffffu, mine, mask));
    return mine;
}

/* One warp: a row's sums from its units (count). */
static __device__ __forceinline__ struct logsum logsum_units(const struct logsum *units,
                                                             int32_t count, int lane)
{
    struct logsum total = {-INFINITY, 0.0f};

    for (int32_t u = lane; u < count; u += 32)
        total.max = fmaxf(total.max, units[u].max);
    total.max = logsum_warp_max(total.max);
    for (int32_t u = lane; u < count; u += 32)
        total.sum = __fadd_rn(total.sum, logsum_scaled(units[u], total.max));
    total.sum = logsum_warp_add(total.sum);
    return total;
}

/* ln p of a token by its logit, as full rows have it. */
static __device__ __forceinline__ float logsum_logprob(struct logsum sum, float logit)
{
    return __fsub_rn(__fsub_rn(logit, sum.max), logf(sum.sum));
}

#endif
