/* SPDX-License-Identifier: MIT
 *
 * choose_few: sampling's short way when few tokens of a row can stay, by a small top-k: each of
 * those above a floor that not many reach counts and weighs those above itself, then one warp does
 * the rest. The result is the same as choose_block.cuh's; where no such floor is found (many equal
 * scores) the caller goes the long way. Every function is called by all threads of the block unless
 * it says otherwise.
 */
#ifndef PGPT_KERNELS_CUDA_CHOOSE_FEW_CUH
#define PGPT_KERNELS_CUDA_CHOOSE_FEW_CUH

#include "kernels/cuda/choose_block.cuh"

enum {
    FEW_MOST = 128, /* tokens above the floor; 4 a lane */
    FEW_TOP_K = 64, /* largest top-k that goes this way */
    FEW_ROUNDS = 24,
    FEW_ONE = 1 << 24, /* a token, in front of the upper part of its weight */
};
#define FEW_WIDTH 8.0f /* below the greatest score: where the search for a floor begins */

struct few_shared {
    /* by rising token: the score; then x: the key of the score divided by the temperature, y: the
     * lower 16 bits of its weight, z: the upper ones and FEW_ONE; w: the token */
    alignas(16) uint4 found[FEW_MOST];
    /* sums of y and z over the tokens of greater keys */
    alignas(8) uint2 above[FEW_MOST];
    uint32_t count; /* zeroed when the kernel starts */
};

/* What a draw goes by. */
struct few_draw {
    uint64_t random; /* 64 bits: philox_draw() */
    int32_t top_k;
    float top_p, temperature;
};

static __device__ __forceinline__ bool few_allowed(int32_t top_k, float temperature,
                                                   int32_t vocabulary)
{
    return top_k > 0 && top_k <= FEW_TOP_K && top_k < vocabulary &&
           temperature > 1e-6f; /* quotients stay finite */
}

/* Scores a little below the floor, whose quotients by the temperature may round to the same as
 * those above it. */
static __device__ __forceinline__ float few_guard(float floor)
{
    return floor - fabsf(floor) * 1e-6f - 1e-30f;
}

static __device__ __forceinline__ void few_put(struct few_shared *few, uint32_t at, float score,
                                               uint32_t token)
{
    if (at < FEW_MOST)
        few->found[at] = make_uint4(__float_as_uint(score), 0, 0, token);
}

/* Tokens that were found in any order, by rising token. Barriers before and after. */
static __device__ __forceinline__ void few_order(struct block *b, struct few_shared *few,
                                                 uint32_t count)
{
    const uint32_t i = block_thread();
    uint4 mine = {};
    uint32_t before = 0;

    if (i < count) {
        mine = few->found[i];
        for (uint32_t j = 0; j < count; j++)
            before += few->found[j].w < mine.w;
    }
    block_sync(b);
    if (i < count)
        few->found[before] = mine;
    block_sync(b);
}

/* above, from found. greatest: of the scores. Barriers before and after. Two threads share a token
 * and look at half of the others each. */
static __device__ __forceinline__ void few_compare(struct block *b, struct few_shared *few,
                                                   uint32_t count, float greatest,
                                                   const struct few_draw &draw)
{
    const uint32_t half = block_thread() & 1, at_once = block_threads() >> 1;
    const uint32_t padded = (count + 7) / 8 * 8; /* by what is greater than nothing */

    for (uint32_t i = block_thread(); i < padded; i += block_threads()) {
        const float z = __fdiv_rn(__uint_as_float(few->found[i].x), draw.temperature);
        const uint64_t weight =
            block_weight_long(block_weight(z, __fdiv_rn(greatest, draw.temperature)));
        const bool in = i < count;

        few->found[i].x = in ? sampling_key(z) : 0;
        few->found[i].y = in ? (uint32_t)weight & 0xffffu : 0;
        few->found[i].z = in ? (uint32_t)(weight >> 16) + FEW_ONE : 0;
    }
    block_sync(b);
    for (uint32_t first = 0; first + b->warp * 16 < count; first += at_once) {
        const uint32_t i = first + (block_thread() >> 1), mine = few->found[min(i, count - 1)].x;
        uint2 above = {0, 0};

#pragma unroll 1
        for (uint32_t j = half * 4; j < padded; j += 8)
#pragma unroll
            for (uint32_t k = 0; k < 4; k++) {
                const uint4 other = few->found[j + k];

                above.x += other.x > mine ? other.y : 0;
                above.y += other.x > mine ? other.z : 0;
            }
        above.x += __shfl_xor_sync(BLOCK_ALL, above.x, 1);
        above.y += __shfl_xor_sync(BLOCK_ALL, above.y, 1);
        if (!half && i < count)
            few->above[i] = above;
    }
    block_sync(b);
}

/* Which of the thread's scores, 8 of each of UNITS units in logsum.cuh's order, reach `least`, as
 * columns of their units. */
template <int UNITS>
static __device__ __forceinline__ void few_columns(const float (&v)[UNITS * 8], float least,
                                                   uint32_t (&own)[UNITS])
{
#pragma unroll
    for (int u = 0; u < UNITS; u++) {
        own[u] = 0;
#pragma unroll
        for (int i = 0; i < 8; i++)
            own[u] |= (v[u * 8 + i] >= least) << (8 * (i >> 1) + (i & 1));
        own[u] <<= 2 * (block_thread() & 3);
    }
}

/* Where tokens go that are found: of UNITS units that the thread has columns of. */
template <int UNITS> struct few_places {
    uint32_t own[UNITS], unit[UNITS]; /* columns: the thread's, and of the unit */
    uint32_t first[UNITS];            /* place of the unit's first */
};

/* How many scores reach `least`, in all threads; one barrier. Units of a thread lie block_threads()
 * / 4 apart. */
template <int UNITS>
static __device__ __forceinline__ uint32_t few_count(struct block *b, const float (&v)[UNITS * 8],
                                                     float least, struct few_places<UNITS> *places)
{
    uint32_t count[UNITS], mine = 0, upto, all, before, total = 0;
    uint4 warps;

    static_assert(UNITS <= 2, "counts of two fit in a word");
    few_columns<UNITS>(v, least, places->own);
#pragma unroll
    for (int u = 0; u < UNITS; u++) {
        uint32_t columns = places->own[u];

        columns |= __shfl_xor_sync(BLOCK_ALL, columns, 1);
        columns |= __shfl_xor_sync(BLOCK_ALL, columns, 2);
        places->unit[u] = columns;
        count[u] = (uint32_t)__popc(columns);
        mine |= count[u] << 16 * u;
    }
    upto = mine;
#pragma unroll
    for (int step = 4; step < 32; step *= 2) {
        const uint32_t other = __shfl_up_sync(BLOCK_ALL, upto, step);

        upto += b->lane >= step ? other : 0;
    }
    warps = block_gather(b, make_uint4(__shfl_sync(BLOCK_ALL, upto, 31), 0, 0, 0));
    all = __reduce_add_sync(BLOCK_ALL, warps.x);
    before = __reduce_add_sync(BLOCK_ALL, b->lane < b->warp ? warps.x : 0) + upto;
#pragma unroll
    for (int u = 0; u < UNITS; u++) {
        places->first[u] = total + (before >> 16 * u & 0xffffu) - count[u];
        total += all >> 16 * u & 0xffffu;
    }
    return total;
}

/* The scores above a floor that top_k to FEW_MOST of them reach, compared; v: the thread's own;
 * score(i): the i-th of them again. False when there is no such floor. width: how far below the
 * greatest score to look first; becomes how far it was found. */
template <int UNITS, int N, typename Score>
static __device__ __forceinline__ bool few_find(struct block *b, struct few_shared *few,
                                                const float (&v)[N], const struct few_draw &draw,
                                                float *width, Score score)
{
    const int most = draw.top_k + draw.top_k / 8 + 8;
    float mine = v[0], greatest, low, high, floor;
    bool bracketed = false, found = false;
    struct few_places<UNITS> places;
    uint32_t count = 0;

    static_assert(N == UNITS * 8, "8 columns of a unit");
#pragma unroll
    for (int i = 1; i < N; i++)
        mine = fmaxf(mine, v[i]);
    greatest = block_value(block_greatest_key(b, sampling_key(mine)));
    if (!isfinite(greatest))
        return false;
    low = high = greatest;
    /* threads are counted, not scores: that is cheap, and says that there are as many scores */
#pragma unroll 1
    for (int round = 0; round < FEW_ROUNDS && !found; round++) {
        int threads;

        floor = bracketed ? 0.5f * low + 0.5f * high : greatest - *width;
        if (bracketed && !(floor > low && floor < high))
            return false;
        threads = block_sync_count(b, mine >= floor);
        if (threads >= draw.top_k && threads <= most) {
            count = few_count<UNITS>(b, v, few_guard(floor), &places);
            found = count <= FEW_MOST;
        }
        if (threads >= draw.top_k) {
            low = floor;
            bracketed = true;
        } else {
            high = floor;
            *width *= 2.0f;
        }
    }
    if (!found)
        return false;
    *width = greatest - floor;
#pragma unroll
    for (int u = 0; u < UNITS; u++)
#pragma unroll 1
        for (uint32_t set = places.own[u]; set; set &= set - 1) {
            const int c = __ffs(set) - 1;

            few_put(few, places.first[u] + __popc(places.unit[u] & ((1u << c) - 1)),
                    score(u * 8 + 2 * (c >> 3) + (c & 1)),
                    ((block_thread() >> 2) + u * (block_threads() >> 2)) * 32 + c);
        }
    if (block_thread() == 0)
        few->count = count;
    block_sync(b);
    few_compare(b, few, count, greatest, draw);
    return true;
}

/* One warp: top-k, top-p and the draw among the tokens that were compared, in the order of ids. The
 * lane that finds the token returns it, all others -1. */
static __device__ __forceinline__ int32_t few_choose(const struct few_shared *few,
                                                     const struct few_draw &draw, int lane)
{
    const uint32_t count = few->count;
    uint64_t weight[4], above[4], total, sum = 0, target;
    uint32_t low = 0, high = 0;
    bool in[4];

#pragma unroll
    for (int i = 0; i < 4; i++) {
        const uint4 mine = few->found[lane * 4 + i];
        const uint2 over = few->above[lane * 4 + i];

        in[i] = lane * 4 + i < (int)count && over.y / FEW_ONE < (uint32_t)draw.top_k;
        weight[i] = ((uint64_t)(mine.z % FEW_ONE) << 16) + mine.y;
        above[i] = ((uint64_t)(over.y % FEW_ONE) << 16) + over.x;
        low += in[i] ? mine.y : 0;
        high += in[i] ? mine.z % FEW_ONE : 0;
    }
    total =
        __reduce_add_sync(BLOCK_ALL, low) + ((uint64_t)__reduce_add_sync(BLOCK_ALL, high) << 16);
    if (draw.top_p < 1.0f) { /* what is not above a token is as great at most */
        const uint64_t limit = sampling_limit(draw.top_p, total);

#pragma unroll
        for (int i = 0; i < 4; i++)
            in[i] = in[i] && total - above[i] > limit;
    }
#pragma unroll
    for (int i = 0; i < 4; i++)
        sum += in[i] ? weight[i] : 0;
    total = block_scan(sum, lane);
    target = sampling_scale(draw.random, __shfl_sync(BLOCK_ALL, total, 31));
    total -= sum; /* of the lanes before */
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const uint64_t before = total;

        total += in[i] ? weight[i] : 0;
        if (before <= target && target < total)
            return (int32_t)few->found[lane * 4 + i].w;
    }
    return -1;
}

#endif
