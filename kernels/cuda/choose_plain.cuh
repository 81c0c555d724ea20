/* SPDX-License-Identifier: MIT
 *
 * choose_plain: a plain row's token from the units that the logits product left, by one warp: lanes
 * merge units l, l + 32, ..., then one another (logsum.cuh).
 */
#ifndef PGPT_KERNELS_CUDA_CHOOSE_PLAIN_CUH
#define PGPT_KERNELS_CUDA_CHOOSE_PLAIN_CUH

#include "kernels/cuda/logsum.cuh"
#include "kernels/cuda/product.h"

struct plain_choice {
    int32_t token;
    float logprob;
};

/* units (count) as float4: max, sum, best, token. eos, bos: the row's logits of the forced tokens.
 */
static __device__ __forceinline__ struct plain_choice
choose_plain(const struct cuda_rules &rules, const float4 *units, int32_t count, float eos,
             float bos, int32_t position, int32_t max_new, int lane)
{
    struct logsum sums = {-INFINITY, 0.0f};
    float best = -INFINITY, raw;
    struct plain_choice choice;

    choice.token = 0x7fffffff;
    for (int u = lane; u < count; u += 32) {
        float4 v = units[u];
        struct logsum unit = {v.x, v.y};

        sums = u == lane ? unit : logsum_merge(sums, unit);
        if (v.z > best) { /* later units hold higher ids */
            best = v.z;
            choice.token = __float_as_int(v.w);
        }
    }
    sums = logsum_warp(sums, lane);
    for (int mask = 16; mask; mask >>= 1) {
        float other = __shfl_xor_sync(0xffffffffu, best, mask);
        int32_t token = __shfl_xor_sync(0xffffffffu, choice.token, mask);

        if (other > best || (other == best && token < choice.token)) {
            best = other;
            choice.token = token;
        }
    }
    raw = best;
    if (best == -INFINITY) /* every token is forbidden: the first, as an argmax has it */
        choice.token = 0;
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

#endif
