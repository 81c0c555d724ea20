/* SPDX-License-Identifier: MIT
 *
 * choose_plain: a plain row's token from the units that the logits product left: by one warp where
 * they are few, by a block where they are many; the same bits (logsum.cuh).
 */
#ifndef PGPT_KERNELS_CUDA_CHOOSE_PLAIN_CUH
#define PGPT_KERNELS_CUDA_CHOOSE_PLAIN_CUH

#include "kernels/cuda/logsum.cuh"
#include "kernels/cuda/product.h"

enum {
    PLAIN_EACH = 4,              /* units a lane, when a warp chooses alone */
    PLAIN_FEW = 32 * PLAIN_EACH, /* units that one warp takes at most */
};

struct plain_choice {
    int32_t token;
    float logprob;
};

/* The largest logit that may be chosen, and the lowest token that has it. */
struct plain_best {
    float logit;
    int32_t token;
};

static __device__ __forceinline__ struct plain_best plain_best_none(void)
{
    struct plain_best none = {-INFINITY, 0x7fffffff};

    return none;
}

/* Keys of logits have their order, as whole numbers; 0 and -0 have one. */
static __device__ __forceinline__ uint32_t plain_key(float logit)
{
    const uint32_t bits = __float_as_uint(logit + 0.0f);

    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}
static __device__ __forceinline__ float plain_value(uint32_t key)
{
    return __uint_as_float(key & 0x80000000u ? key ^ 0x80000000u : ~key);
}

static __device__ __forceinline__ struct plain_best plain_best_warp(const struct plain_best &mine)
{
    const uint32_t key = plain_key(mine.logit), most = __reduce_max_sync(0xffffffffu, key);
    const uint32_t token =
        __reduce_min_sync(0xffffffffu, key == most ? (uint32_t)mine.token : 0x7fffffffu);
    struct plain_best best = {plain_value(most), (int32_t)token};

    return best;
}

/* The row's token, and its logit. eos, bos: the row's logits of the forced tokens. */
static __device__ __forceinline__ int32_t plain_token(const struct cuda_rules &rules,
                                                      const struct plain_best &best, float eos,
                                                      float bos, int32_t position, int32_t max_new,
                                                      float *logit)
{
    if (rules.forced_eos >= 0 && position + 1 == max_new) {
        *logit = eos;
        return rules.forced_eos;
    }
    if (rules.forced_bos >= 0 && position == 0) {
        *logit = bos;
        return rules.forced_bos;
    }
    *logit = best.logit;
    /* every token is forbidden: the first, as an argmax has it */
    return best.logit == -INFINITY ? 0 : best.token;
}

/* sums: of the whole row. */
static __device__ __forceinline__ struct plain_choice
plain_choose(const struct cuda_rules &rules, struct plain_best best, struct logsum sums, float eos,
             float bos, int32_t position, int32_t max_new)
{
    struct plain_choice choice;
    float raw;

    choice.token = plain_token(rules, best, eos, bos, position, max_new, &raw);
    choice.logprob = raw - (sums.max + logf(sums.sum));
    return choice;
}

/* What a lane has seen of the units. */
struct plain_units {
    float4 v[PLAIN_EACH];
};

/* One warp. units (count <= PLAIN_FEW) as float4: max, sum, best, token. The best of the row. */
static __device__ __forceinline__ struct plain_best
plain_look(struct plain_units *look, const float4 *units, int32_t count, int lane)
{
    struct plain_best best = plain_best_none();

#pragma unroll
    for (int i = 0; i < PLAIN_EACH; i++) {
        const float4 v = lane + 32 * i < count ? units[lane + 32 * i]
                                               : make_float4(-INFINITY, 0.0f, -INFINITY, 0.0f);

        look->v[i] = v;
        if (v.z > best.logit) { /* later units hold higher ids */
            best.logit = v.z;
            best.token = __float_as_int(v.w);
        }
    }
    return plain_best_warp(best);
}

/* One warp: the logarithm of the row's sum of exponentials. */
static __device__ __forceinline__ float plain_logsum(const struct plain_units *look)
{
    struct logsum sums = {-INFINITY, 0.0f};

#pragma unroll
    for (int i = 0; i < PLAIN_EACH; i++)
        sums.max = fmaxf(sums.max, look->v[i].x);
    sums.max = logsum_warp_max(sums.max);
#pragma unroll
    for (int i = 0; i < PLAIN_EACH; i++) {
        struct logsum unit = {look->v[i].x, look->v[i].y};

        sums.sum = __fadd_rn(sums.sum, logsum_scaled(unit, sums.max));
    }
    sums.sum = logsum_warp_add(sums.sum);
    return sums.max + logf(sums.sum);
}

/* One warp: max and sum of a row of any length. */
static __device__ __forceinline__ struct logsum plain_sum(const float4 *units, int32_t count,
                                                          int lane)
{
    struct logsum total = {-INFINITY, 0.0f};

#pragma unroll 1
    for (int32_t u = lane; u < count; u += 32)
        total.max = fmaxf(total.max, units[u].x);
    total.max = logsum_warp_max(total.max);
#pragma unroll 1
    for (int32_t u = lane; u < count; u += 32)
        total.sum = __fadd_rn(total.sum, logsum_scaled({units[u].x, units[u].y}, total.max));
    total.sum = logsum_warp_add(total.sum);
    return total;
}

/* One warp: both. */
static __device__ __forceinline__ struct plain_choice
choose_plain(const struct cuda_rules &rules, const float4 *units, int32_t count, float eos,
             float bos, int32_t position, int32_t max_new, int lane)
{
    struct plain_choice choice;
    struct plain_units look;
    float raw;

    choice.token = plain_token(rules, plain_look(&look, units, count, lane), eos, bos, position,
                               max_new, &raw);
    choice.logprob = raw - plain_logsum(&look);
    return choice;
}

/* A block; its first warp gets the result. terms (count): room in shared memory. */
static __device__ __forceinline__ struct plain_choice
choose_plain_block(const struct cuda_rules &rules, const float4 *units, int32_t count, float *terms,
                   float eos, float bos, int32_t position, int32_t max_new)
{
    __shared__ struct plain_best bests[32];
    __shared__ float maxima[32];
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, warps = blockDim.x >> 5;
    struct plain_best best = plain_best_none();
    struct logsum sums = {-INFINITY, 0.0f};

#pragma unroll 8
    for (int32_t u = threadIdx.x; u < count; u += blockDim.x) {
        float4 v = units[u];

        sums.max = fmaxf(sums.max, v.x);
        if (v.z > best.logit) {
            best.logit = v.z;
            best.token = __float_as_int(v.w);
        }
    }
    best = plain_best_warp(best);
    sums.max = logsum_warp_max(sums.max);
    if (lane == 0) {
        bests[warp] = best;
        maxima[warp] = sums.max;
    }
    __syncthreads();
    best = lane < warps ? bests[lane] : plain_best_none();
    best = plain_best_warp(best);
    sums.max = logsum_warp_max(lane < warps ? maxima[lane] : -INFINITY);
#pragma unroll 8
    for (int32_t u = threadIdx.x; u < count; u += blockDim.x) {
        struct logsum unit = {units[u].x, units[u].y};

        terms[u] = logsum_scaled(unit, sums.max);
    }
    __syncthreads();
    if (warp == 0)
#pragma unroll 8
        for (int32_t u = lane; u < count; u += 32)
            sums.sum = __fadd_rn(sums.sum, terms[u]);
    sums.sum = logsum_warp_add(sums.sum);
    return plain_choose(rules, best, sums, eos, bos, position, max_new);
}

/* One thread: row `index` has its next token. */
static __device__ __forceinline__ void plain_advance(const struct cuda_rows &rows,
                                                     const struct cuda_rules &rules, int32_t index,
                                                     struct plain_choice choice)
{
    struct cuda_row *row = rows.row + index;
    size_t at = (size_t)index * rows.P + row->position;

    rows.tokens[at] = choice.token;
    rows.logprobs[at] = choice.logprob;
    row->token = choice.token;
    row->finished = choice.token == rules.eos_token || row->position + 1 >= row->max_new;
    row->position++;
}

#endif
