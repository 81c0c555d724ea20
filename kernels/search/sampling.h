/* SPDX-License-Identifier: MIT
 *
 * sampling: how a token is drawn from scores, defined so that any device can reproduce it.
 *
 * z[t] is the processed score divided by the temperature, m = max z, and every token has the
 * integer weight w[t] = trunc(e^(z[t] - m) * 2^32). Sums of weights are exact in 64 bits (V <=
 * 2^20), so they do not depend on the order or the number of threads that add them. top-k (k >= 1):
 * tokens with z below the k-th largest z lose their weight; equal ones stay. top-p (p < 1): with W
 * the sum of what is left and limit = trunc((1 - p) W), at most W - 1, c(v) the sum of the weights
 * of tokens with z <= v: tokens with c(z[t]) <= limit lose their weight. That is Hugging Face's
 * rule but for equal scores on the border, which stay together. the draw: with W the sum of what is
 * left and r = philox_draw(seed, sequence, position), target = floor(r W / 2^64); the token is the
 * first, in the order of ids, at which the running sum of weights exceeds target. Scores are
 * compared by sampling_key(), whose order is that of the floats (-inf lowest, no NaN). Pure
 * functions, any thread.
 */
#ifndef PGPT_KERNELS_SEARCH_SAMPLING_H
#define PGPT_KERNELS_SEARCH_SAMPLING_H

#include <stdint.h>
#include <string.h>

#include "kernels/search/device.h"
#include "kernels/search/philox.h"

/* Repetition penalty of a score whose token occurred: Keskar et al. 2019, as Hugging Face has it.
 */
PGPT_DEVICE static inline float sampling_penalise(float score, float penalty)
{
    return score < 0.0f ? score * penalty : score / penalty;
}

/* Floats as unsigned integers of the same order. */
PGPT_DEVICE static inline uint32_t sampling_key(float value)
{
    uint32_t bits;

    memcpy(&bits, &value, sizeof bits);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

/* exp_value = e^(z - m), in 0..1. */
PGPT_DEVICE static inline uint64_t sampling_weight(float exp_value)
{
    return (uint64_t)(exp_value * 4294967296.0f);
}

/* Below total (>= 1): the best token always stays. */
PGPT_DEVICE static inline uint64_t sampling_limit(float top_p, uint64_t total)
{
    uint64_t limit = (uint64_t)((1.0 - (double)top_p) * (double)total);

    return limit < total ? limit : total - 1;
}

/* floor(r total / 2^64); r: 64 random bits, total >= 1. */
PGPT_DEVICE static inline uint64_t sampling_scale(uint64_t r, uint64_t total)
{
    uint64_t low = (r & 0xffffffffu) * (total & 0xffffffffu);
    uint64_t mid1 = (r >> 32) * (total & 0xffffffffu) + (low >> 32);
    uint64_t mid2 = (r & 0xffffffffu) * (total >> 32) + (mid1 & 0xffffffffu);

    return (r >> 32) * (total >> 32) + (mid1 >> 32) + (mid2 >> 32);
}

/* total >= 1. */
PGPT_DEVICE static inline uint64_t sampling_target(uint64_t seed, uint32_t sequence,
                                                   uint32_t position, uint64_t total)
{
    return sampling_scale(philox_draw(seed, sequence, position), total);
}

#endif
