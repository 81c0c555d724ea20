/* SPDX-License-Identifier: MIT
 *
 * choose_block: what a block of threads does with one row of scores: exact sums and maxima over the
 * block, the thresholds of top-k and top-p, and the draw. A threshold is bracketed by bisection
 * until few scores lie between; those go into a list that one warp resolves exactly. Scores are
 * sampling_key()s, weights are whole numbers, so nothing here depends on the number of threads.
 * Every function is called by all threads of the block. A file that defines BLOCK_GROUP before it
 * includes this has groups of so many threads do it, a row each: "the block" is then such a group,
 * with a barrier of its own. A struct block may have fewer warps than that where nothing but
 * block_sync() and block_sync_count() is asked of it.
 */
#ifndef PGPT_KERNELS_CUDA_CHOOSE_BLOCK_CUH
#define PGPT_KERNELS_CUDA_CHOOSE_BLOCK_CUH

#include <float.h>
#include <stdint.h>

#include "kernels/cuda/logsum.cuh"
#include "kernels/search/sampling.h"

enum {
    BLOCK_WARPS = 32,       /* most warps */
    BLOCK_UNITS = 256,      /* units of 32 columns that a block of 1024 threads holds at once */
    BLOCK_LIST = 32,        /* scores left when a bisection ends */
    BLOCK_FLOAT_ROUNDS = 20 /* halvings between values; then between keys, at most 32 more */
};
#define BLOCK_ALL 0xffffffffu /* every lane */
/* e^-23 2^32 < 1: scores this far below the largest weigh nothing. */
#define BLOCK_WEIGHTLESS 23.0f

struct block_list {
    uint32_t key[BLOCK_LIST];
    uint32_t other[BLOCK_LIST]; /* the weight or the token */
    uint32_t count;             /* zeroed when the kernel starts */
    uint32_t result;
};

struct block_shared {
    uint4 partial[2][BLOCK_WARPS];
    struct logsum units[BLOCK_UNITS]; /* of a row that stays in registers */
    float scaled[2][BLOCK_UNITS];     /* and of one that is read again */
    struct logsum total;
    struct block_list top_k, top_p;
    uint64_t sums[BLOCK_UNITS]; /* weights of units */
    uint64_t rest;              /* of the draw's target, within the unit found */
    uint32_t unit;
    uint32_t seen[BLOCK_UNITS], phrases[BLOCK_UNITS]; /* bitmaps of rows that stay in registers */
    uint32_t weights[32];
};

struct block {
    struct block_shared *shared;
    int lane, warp, warps, turn;
    int barrier; /* of a group: its number */
};

#ifdef BLOCK_GROUP
static __device__ __forceinline__ int block_thread(void)
{
    return threadIdx.x % BLOCK_GROUP;
}
static __device__ __forceinline__ int block_threads(void)
{
    return BLOCK_GROUP;
}
static __device__ __forceinline__ void block_sync(const struct block *b)
{
    asm volatile("bar.sync %0, %1;" ::"r"(b->barrier), "r"(b->warps * 32) : "memory");
}
/* Of how many threads it is true. */
static __device__ __forceinline__ int block_sync_count(const struct block *b, bool mine)
{
    int count;

    asm volatile("{\n\t.reg .pred p;\n\tsetp.ne.b32 p, %3, 0;\n\t"
                 "bar.red.popc.u32 %0, %1, %2, p;\n\t}"
                 : "=r"(count)
                 : "r"(b->barrier), "r"(b->warps * 32), "r"((int)mine)
                 : "memory");
    return count;
}
#else
static __device__ __forceinline__ int block_thread(void)
{
    return threadIdx.x;
}
static __device__ __forceinline__ int block_threads(void)
{
    return blockDim.x;
}
static __device__ __forceinline__ void block_sync(const struct block *)
{
    __syncthreads();
}
static __device__ __forceinline__ int block_sync_count(const struct block *, bool mine)
{
    return __syncthreads_count(mine);
}
#endif

/* Two sums over the block: a up to 2^32, b up to 2^53. */
struct block_sums {
    uint32_t a;
    uint64_t b;
};

/* The greatest key and the lowest token that has it. */
struct block_best {
    uint32_t key;
    uint32_t token;
};

/* The caller synchronises before it uses the lists. */
static __device__ __forceinline__ struct block block_start(struct block_shared *shared,
                                                           int barrier = 0)
{
    struct block b;

    b.shared = shared;
    b.lane = threadIdx.x & 31;
    b.warp = block_thread() >> 5;
    b.warps = block_threads() >> 5;
    b.turn = 0;
    b.barrier = barrier;
    if (block_thread() == 0) {
        shared->top_k.count = 0;
        shared->top_p.count = 0;
    }
    return b;
}

/* Lane l gets what lane 0 of warp l gave, zeros past the last warp. One barrier: two sets of places
 * take turns. */
static __device__ __forceinline__ uint4 block_gather(struct block *b, uint4 mine)
{
    uint4 *places = b->shared->partial[b->turn];

    b->turn ^= 1;
    if (b->lane == 0)
        places[b->warp] = mine;
    block_sync(b);
    return b->lane < b->warps ? places[b->lane] : make_uint4(0, 0, 0, 0);
}

/* b of one thread at most 2^42. 64 bits travel as 16 low ones and the rest. */
static __device__ __forceinline__ struct block_sums block_add(struct block *b, uint32_t count,
                                                              uint64_t weight)
{
    struct block_sums r;
    uint4 mine, all;

    mine.x = __reduce_add_sync(BLOCK_ALL, count);
    mine.y = __reduce_add_sync(BLOCK_ALL, (uint32_t)weight & 0xffffu);
    mine.z = __reduce_add_sync(BLOCK_ALL, (uint32_t)(weight >> 16));
    mine.w = 0;
    all = block_gather(b, mine);
    r.a = __reduce_add_sync(BLOCK_ALL, all.x);
    r.b = __reduce_add_sync(BLOCK_ALL, all.y);
    r.b += (uint64_t)__reduce_add_sync(BLOCK_ALL, all.z & 0xffffu) << 16;
    r.b += (uint64_t)__reduce_add_sync(BLOCK_ALL, all.z >> 16) << 32;
    return r;
}

static __device__ __forceinline__ uint32_t block_count(struct block *b, uint32_t count)
{
    uint4 all = block_gather(b, make_uint4(__reduce_add_sync(BLOCK_ALL, count), 0, 0, 0));

    return __reduce_add_sync(BLOCK_ALL, all.x);
}

static __device__ __forceinline__ struct block_best block_find_best(struct block *b,
                                                                    struct block_best mine)
{
    uint32_t key = __reduce_max_sync(BLOCK_ALL, mine.key);
    uint32_t token = __reduce_min_sync(BLOCK_ALL, mine.key == key ? mine.token : UINT32_MAX);
    uint4 all = block_gather(b, make_uint4(key, token, 0, 0));
    struct block_best r;

    r.key = __reduce_max_sync(BLOCK_ALL, all.x);
    r.token =
        __reduce_min_sync(BLOCK_ALL, b->lane < b->warps && all.x == r.key ? all.y : UINT32_MAX);
    return r;
}

static __device__ __forceinline__ uint32_t block_greatest_key(struct block *b, uint32_t key)
{
    uint4 all = block_gather(b, make_uint4(__reduce_max_sync(BLOCK_ALL, key), 0, 0, 0));

    return __reduce_max_sync(BLOCK_ALL, all.x);
}

/* The inverse of sampling_key(). */
static __device__ __forceinline__ float block_value(uint32_t key)
{
    return __uint_as_float(key & 0x80000000u ? key ^ 0x80000000u : ~key);
}

/* sampling_weight() of math_exp(z - max), bit by bit, in 32 bits: 2^32 - 1 stands for 2^32, which
 * no other float comes to. z <= max, or z is NaN: 0. Rounding to a whole n by a large addend is
 * rintf(). */
static __device__ __forceinline__ uint32_t block_weight(float z, float max)
{
    const float big = 12582912.0f; /* 1.5 2^23 */
    float x = fmaxf(__fsub_rn(z, max), -87.0f);
    float t = __fadd_rn(__fmul_rn(x, 1.44269504088896341f), big);
    float n = __fsub_rn(t, big);
    float r = __fmaf_rn(n, 2.12194440e-4f, __fmaf_rn(n, -0.693359375f, x));
    float p = 1.9875691500e-4f;

    p = __fmaf_rn(p, r, 1.3981999507e-3f);
    p = __fmaf_rn(p, r, 8.3334519073e-3f);
    p = __fmaf_rn(p, r, 4.1665795894e-2f);
    p = __fmaf_rn(p, r, 1.6666665459e-1f);
    p = __fmaf_rn(p, r, 5.0000001201e-1f);
    p = __fadd_rn(__fmaf_rn(p, __fmul_rn(r, r), r), 1.0f);
    /* times 2^(n + 32) */
    return __float2uint_rz(
        __fmul_rn(p, __uint_as_float((__float_as_uint(t) - 0x4b400000u + 127u + 32u) << 23)));
}
static __device__ __forceinline__ uint64_t block_weight_long(uint32_t weight)
{
    return (uint64_t)weight + (weight == UINT32_MAX);
}

/* Inside (low, high), which are at least 2 apart. */
static __device__ __forceinline__ uint32_t block_middle(uint32_t low, uint32_t high, int round)
{
    uint32_t middle = sampling_key(0.5f * block_value(low) + 0.5f * block_value(high));

    if (round < BLOCK_FLOAT_ROUNDS && middle > low && middle < high)
        return middle;
    return low + (high - low) / 2;
}

/* Scores that stay in registers: thread t holds 8 columns of unit t / 4 (see logsum.cuh). Columns
 * past the vocabulary have key 0, below every score's, and no weight. */
struct block_kept {
    uint32_t key[8];
    uint32_t weight[8];

    static __device__ __forceinline__ uint32_t token(int i)
    {
        return (threadIdx.x >> 2) * 32 + (threadIdx.x & 3) * 2 + (i >> 1) * 8 + (i & 1);
    }
    /* Nothing below this score weighs anything. */
    static __device__ __forceinline__ uint32_t lowest(float max)
    {
        return sampling_key(max - BLOCK_WEIGHTLESS);
    }
    /* f(key, token, weight()) for each of the thread's scores. */
    template <typename F> __device__ __forceinline__ void each(F f) const
    {
#pragma unroll
        for (int i = 0; i < 8; i++)
            f(key[i], token(i), [&] { return weight[i]; });
    }
};

/* Scores read again from memory each time: score (V). Keys are the scores' own; their quotients by
 * the temperature, of which max is the greatest, have the same order but for scores that come to be
 * equal: see with_equals(). */
struct block_read {
    const float *score;
    int32_t V;
    float temperature, max;

    template <typename F> __device__ __forceinline__ void each(F f) const
    {
#pragma unroll 4
        for (int32_t t = block_thread(); t < V; t += block_threads()) {
            float s = score[t];

            f(sampling_key(s), (uint32_t)t,
              [&] { return block_weight(__fdiv_rn(s, temperature), max); });
        }
    }
    /* Nothing below this score weighs anything. */
    __device__ __forceinline__ uint32_t lowest() const
    {
        float guess = (max - BLOCK_WEIGHTLESS - 1.0f) * temperature;

        return sampling_key(__fdiv_rn(guess, temperature) < max - BLOCK_WEIGHTLESS ? guess
                                                                                   : -FLT_MAX);
    }
    /* The lowest key whose score divides to the same as key's: equal quotients stay together. */
    __device__ __forceinline__ uint32_t with_equals(uint32_t key) const
    {
        float z = __fdiv_rn(block_value(key), temperature);

        while (sampling_key(__fdiv_rn(block_value(key - 1), temperature)) == sampling_key(z))
            key--;
        return key;
    }
};

/* The scores from low to below high, at most BLOCK_LIST of them, into the list. */
template <typename Scores, typename Other>
static __device__ __forceinline__ void block_fill(struct block *b, const Scores &scores,
                                                  struct block_list *list, uint32_t low,
                                                  uint32_t high, Other other)
{
    scores.each([&](uint32_t key, uint32_t token, auto weight) {
        if (key >= low && key < high) {
            uint32_t at = atomicAdd(&list->count, 1u);

            list->key[at % BLOCK_LIST] = key;
            list->other[at % BLOCK_LIST] = other(token, weight);
        }
    });
    block_sync(b);
}

/* Top-k: tokens with at least the key returned stay. lowest: nothing below it matters. */
template <typename Scores>
static __device__ uint32_t block_top_k(struct block *b, const Scores &scores, uint32_t k,
                                       uint32_t lowest, uint32_t greatest)
{
    struct block_list *list = &b->shared->top_k;
    uint32_t low = lowest, high = greatest, n_low = 0, n_high = 0;
    struct block_sums both;

    scores.each([&](uint32_t key, uint32_t, auto) {
        n_low += key >= low;
        n_high += key >= high;
    });
    both = block_add(b, n_low, n_high);
    n_low = both.a;
    n_high = (uint32_t)both.b;
    if (n_low <= k)
        return lowest;
    if (n_high >= k)
        return greatest;
    for (int round = 0; high - low > 1; round++) { /* n_high < k < n_low */
        uint32_t middle = block_middle(low, high, round), n = 0;

        if (n_low - n_high <= BLOCK_LIST)
            break;
        scores.each([&](uint32_t key, uint32_t, auto) { n += key >= middle; });
        n = block_count(b, n);
        if (n == k)
            return middle;
        if (n > k) {
            low = middle;
            n_low = n;
        } else {
            high = middle;
            n_high = n;
        }
    }
    if (high - low <= 1)
        return low;
    block_fill(b, scores, list, low, high, [](uint32_t, auto) { return 0u; });
    if (b->warp == 0) { /* the (k - n_high)-th greatest of the list */
        uint32_t mine = b->lane < (int)list->count ? list->key[b->lane] : 0;
        uint32_t above = n_high, from = n_high;

        for (uint32_t i = 0; i < list->count; i++) {
            above += list->key[i] > mine;
            from += list->key[i] >= mine;
        }
        if (mine && above < k && k <= from)
            list->result = mine;
    }
    block_sync(b);
    return list->result;
}

/* Top-p: tokens with at least the key returned stay; low: top-k's answer. The greatest stays in any
 * case. */
template <typename Scores>
static __device__ uint32_t block_top_p(struct block *b, const Scores &scores, float top_p,
                                       uint32_t low, uint32_t greatest)
{
    struct block_list *list = &b->shared->top_p;
    uint32_t high = greatest + 1, n_low = 0, n_high = 0;
    uint64_t limit, below = 0; /* the weight of what is below low */
    struct block_sums both;

    scores.each([&](uint32_t key, uint32_t, auto weight) {
        if (key >= low) {
            n_low++;
            below += block_weight_long(weight());
        }
    });
    both = block_add(b, n_low, below);
    limit = sampling_limit(top_p, both.b);
    n_low = both.a;
    below = 0;
    for (int round = 0; high - low > 1; round++) {
        uint32_t middle = block_middle(low, high, round), n = 0;
        uint64_t weights = 0;

        if (n_low - n_high <= BLOCK_LIST)
            break;
        scores.each([&](uint32_t key, uint32_t, auto weight) {
            n += key >= middle;
            if (key >= low && key < middle)
                weights += block_weight_long(weight());
        });
        both = block_add(b, n, weights);
        if (below + both.b > limit) {
            high = middle;
            n_high = both.a;
        } else {
            low = middle;
            n_low = both.a;
            below += both.b;
        }
    }
    if (high - low <= 1)
        return low;
    block_fill(b, scores, list, low, high, [](uint32_t, auto weight) { return weight(); });
    if (b->warp == 0) { /* the lowest whose weights up to it exceed the limit */
        uint32_t mine = b->lane < (int)list->count ? list->key[b->lane] : 0;

        for (uint32_t i = 0; i < list->count; i++)
            below += list->key[i] <= mine ? block_weight_long(list->other[i]) : 0;
        mine = __reduce_min_sync(BLOCK_ALL, mine && below > limit ? mine : greatest);
        if (b->lane == 0)
            list->result = mine;
    }
    block_sync(b);
    return list->result;
}

/* The key from which scores may be drawn. lowest: nothing below it weighs anything. */
template <typename Scores>
static __device__ uint32_t block_threshold(struct block *b, const Scores &scores, int32_t V,
                                           int32_t top_k, float top_p, uint32_t lowest,
                                           uint32_t greatest)
{
    uint32_t threshold = lowest;

    if (top_k > 0 && top_k < V)
        threshold = block_top_k(b, scores, (uint32_t)top_k, threshold, greatest);
    if (top_p < 1.0f)
        threshold = block_top_p(b, scores, top_p, threshold, greatest);
    return threshold;
}

static __device__ __forceinline__ uint64_t block_scan(uint64_t mine, int lane)
{
#pragma unroll
    for (int step = 1; step < 32; step *= 2) {
        uint64_t other = __shfl_up_sync(BLOCK_ALL, mine, step);

        mine += lane >= step ? other : 0;
    }
    return mine;
}

/* The draw in the order of ids, by 64 random bits: each round a part of the range is left, by the
 * sums of the warps. */
static __device__ int32_t block_draw(struct block *b, const struct block_read &scores,
                                     uint32_t threshold, uint64_t random)
{
    int32_t from = 0, to = scores.V;
    uint64_t target = 0, mine;
    bool first = true;

    for (;;) {
        int32_t part = (to - from + b->warps - 1) / b->warps;
        int32_t start = from + b->warp * part, stop = start + part < to ? start + part : to;
        uint32_t hit;
        uint4 all;

        mine = 0;
        for (int32_t t = start + b->lane; t < stop; t += 32) {
            float s = scores.score[t];

            if (sampling_key(s) >= threshold)
                mine +=
                    block_weight_long(block_weight(__fdiv_rn(s, scores.temperature), scores.max));
        }
        for (int mask = 16; mask; mask >>= 1)
            mine += __shfl_xor_sync(BLOCK_ALL, mine, mask);
        all = block_gather(b, make_uint4((uint32_t)mine, (uint32_t)(mine >> 32), 0, 0));
        mine = (uint64_t)all.y << 32 | all.x;
        mine = block_scan(mine, b->lane);
        if (first)
            target = sampling_scale(random, __shfl_sync(BLOCK_ALL, mine, 31));
        first = false;
        hit = __ballot_sync(BLOCK_ALL, mine > target);
        hit = hit ? __ffs(hit) - 1 : 0;
        if (hit)
            target -= __shfl_sync(BLOCK_ALL, mine, hit - 1);
        from += (int32_t)hit * part;
        to = from + part < to ? from + part : to;
        if (part <= 1)
            return from;
    }
}

#endif
