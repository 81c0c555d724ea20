/* SPDX-License-Identifier: MIT
 *
 * choose_greatest: the greatest scores of a row, for beams: a floor that few reach, found by
 * counting threads, and those above it as a list. Every function is called by all threads of the
 * block.
 */
#ifndef PGPT_KERNELS_CUDA_CHOOSE_GREATEST_CUH
#define PGPT_KERNELS_CUDA_CHOOSE_GREATEST_CUH

#include "kernels/cuda/choose_block.cuh"

enum { BLOCK_FLOOR_ROUNDS = 16 };
#define BLOCK_NEAR 32.0f /* where a search for a few greatest scores starts */

/* A floor that the greatest scores of `least` to `most` threads reach; false when none is found.
 * mine: key of the thread's greatest score. */
static __device__ __forceinline__ bool block_floor(uint32_t mine, uint32_t greatest, int least,
                                                   int most, uint32_t *floor)
{
    float top = block_value(greatest), low = top, high = top, width = 4.0f;
    bool bracketed = false;

    if (!isfinite(top))
        return false;
#pragma unroll 1
    for (int round = 0; round < BLOCK_FLOOR_ROUNDS; round++) {
        float middle = bracketed ? 0.5f * low + 0.5f * high : top - width;
        int n;

        if (bracketed && !(middle > low && middle < high))
            return false;
        n = __syncthreads_count(mine >= sampling_key(middle));

        *floor = sampling_key(middle);
        if (n >= least && n <= most)
            return true;
        if (n > most) {
            low = middle;
            bracketed = true;
        } else {
            high = middle;
            width *= 4.0f;
        }
    }
    return false;
}
/* Every score from `low` on and below a bound on tokens, at low itself, into the list. */
template <typename Scores>
static __device__ __forceinline__ void
block_list_tokens(const Scores &scores, struct block_list *list, uint32_t low, uint32_t bound)
{
    scores.each([&](uint32_t key, uint32_t token, auto) {
        if (key > low || (key == low && token < bound)) {
            uint32_t at = atomicAdd(&list->count, 1u);

            if (at < BLOCK_LIST) {
                list->key[at] = key;
                list->other[at] = token;
            }
        }
    });
    __syncthreads();
}

/* The `want` greatest scores, of equal ones the lower tokens, into the list top_k with their
 * tokens; up to BLOCK_LIST come out, in no order, fewer than `want` only when there are no more.
 * mine: the thread's greatest. */
template <typename Scores>
static __device__ void block_greatest(struct block *b, const Scores &scores, uint32_t want,
                                      uint32_t V, uint32_t greatest, uint32_t mine)
{
    const uint32_t never = sampling_key(-INFINITY);
    struct block_list *list = &b->shared->top_k;
    uint32_t low = sampling_key(block_value(greatest) - BLOCK_NEAR), high = greatest + 1;
    uint32_t n_low = 0, n_high = 0, bound = V;
    struct block_sums both;

    if (block_floor(mine, greatest, (int)want, (int)want + 8, &both.a)) {
        block_list_tokens(scores, list, both.a, V);
        if (list->count <= BLOCK_LIST)
            return;
        __syncthreads();
        if (threadIdx.x == 0)
            list->count = 0;
    }
    scores.each([&](uint32_t key, uint32_t, auto) {
        n_low += key >= low;
        n_high += key > never;
    });
    both = block_add(b, n_low, n_high);
    n_low = both.a;
    n_high = 0;
    if (both.b < want) { /* the rest of them are -inf */
        low = never;
        high = never + 1;
        n_low = V;
        n_high = (uint32_t)both.b;
    } else if (n_low < want) {
        high = low;
        low = never + 1;
        n_high = n_low;
        n_low = (uint32_t)both.b;
    }
    for (int round = 0; n_low > BLOCK_LIST && high - low > 1;
         round++) { /* n_high < want <= n_low */
        uint32_t middle = block_middle(low, high, round), n = 0;

        scores.each([&](uint32_t key, uint32_t, auto) { n += key >= middle; });
        n = block_count(b, n);
        if (n >= want) {
            low = middle;
            n_low = n;
        } else {
            high = middle;
            n_high = n;
        }
    }
    if (n_low > BLOCK_LIST) /* many equal ones: as many tokens as are missing */
        for (uint32_t from = 0; bound - from > 1;) {
            uint32_t middle = from + (bound - from) / 2, n = 0;

            scores.each(
                [&](uint32_t key, uint32_t token, auto) { n += key == low && token < middle; });
            if (n_high + block_count(b, n) >= want)
                bound = middle;
            else
                from = middle;
        }
    block_list_tokens(scores, list, low, bound);
}

#endif
