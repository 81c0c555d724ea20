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

static __device__ __forceinline__ void plain_best_merge(struct plain_best *best, float logit,
                                                        int32_t token)
{
    if (logit > best->logit || (logit == best->logit && token < best->token)) {
        best->logit = logit;
        best->token = token;
    }
}

static __device__ __forceinline__ struct plain_best plain_best_warp(struct plain_best best)
{
#pragma unroll
    for (int mask = 16; mask; mask >>= 1) {
        float logit = __shfl_xor_sync(0xffffffffu, best.logit, mask);
        int32_t token = __shfl_xor_sync(0xffffffffu, best.token, mask);

        plain_best_merge(&best, logit, token);
    }
    return best;
}

/* eos, bos: the row's logits of the forced tokens. sums: of the whole row. */
static __device__ __forceinline__ struct plain_choice
plain_choose(const struct cuda_rules &rules, struct plain_best best, struct logsum sums, float eos,
             float bos, int32_t position, int32_t max_new)
{
    struct plain_choice choice;
    float raw = best.logit;

    /* every token is forbidden: the first, as an argmax has it */
    choice.token = best.logit == -INFINITY ? 0 : best.token;
    if (rules.forced_eos >= 0 && position + 1 == max_new) {
        choice.token = rules.forced_eos;
        raw = eos;
    } else if (rules.forced_bos >= 0 && position == 0) {
        choice.token = rules.forced_bos;
        raw = bos;
    }
    choice.logprob = raw - (sums.max + logf(sums.sum));
    return choice;
}

/* One warp. units (count <= PLAIN_FEW) as float4: max, sum, best, token. */
static __device__ __forceinline__ struct plain_choice
choose_plain(const struct cuda_rules &rules, const float4 *units, int32_t count, float eos,
             float bos, int32_t position, int32_t max_new, int lane)
{
    struct logsum sums = {-INFINITY, 0.0f};
    struct plain_best best = plain_best_none();
    float4 v[PLAIN_EACH];

#pragma unroll
    for (int i = 0; i < PLAIN_EACH; i++) {
        v[i] = lane + 32 * i < count ? units[lane + 32 * i]
                                     : make_float4(-INFINITY, 0.0f, -INFINITY, 0.0f);
        sums.max = fmaxf(sums.max, v[i].x);
        if (v[i].z > best.logit) { /* later units hold higher ids */
            best.logit = v[i].z;
            best.token = __float_as_int(v[i].w);
        }
    }
    sums.max = logsum_warp_max(sums.max);
#pragma unroll
    for (int i = 0; i < PLAIN_EACH; i++) {
        struct logsum unit = {v[i].x, v[i].y};

        sums.sum = __fadd_rn(sums.sum, logsum_scaled(unit, sums.max));
    }
    sums.sum = logsum_warp_add(sums.sum);
    return plain_choose(rules, plain_best_warp(best), sums, eos, bos, position, max_new);
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
