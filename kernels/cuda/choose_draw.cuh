/* SPDX-License-Identifier: MIT
 *
 * choose_draw: the choice of a sampled row inside a fused kernel, as far as it does not matter
 * where the row's logits lie: a group of 3 to 8 of the block's warps has them in registers, each
 * warp some units, a lane a column of each. With a small top-k each warp finds by itself a floor
 * that not many scores reach, all weigh those above it, and the first warp cuts, draws and says the
 * token. By what choose.h defines; the same bits as choose.h's kernels, however many warps there
 * are. For fused_choose.cuh and fused_rows_choose.cuh.
 */
#ifndef PGPT_KERNELS_CUDA_CHOOSE_DRAW_CUH
#define PGPT_KERNELS_CUDA_CHOOSE_DRAW_CUH

#define BLOCK_GROUP 256 /* but for functions that are told of another number */

#include <type_traits>

#include "kernels/cuda/choose_few.cuh"
#include "kernels/cuda/product.h"
#include "kernels/search/rules.h"

enum {
    DRAW_UNITS = 128, /* of a row, at most */
    DRAW_VOCABULARY = DRAW_UNITS * PRODUCT_UNIT,
    DRAW_PARTS = 256,           /* of a row's scores, whose greatest ones a search looks at */
    DRAW_GUESSES = 6,           /* floors that are interpolated; then bisection */
    DRAW_LIFT = 1 << (40 - 32), /* a token, in the upper word of a sum of up to 2^40 */
};

/* Of a guess: from where it takes few rounds to get anywhere. */
#define DRAW_WIDTH_LEAST 1.0f
#define DRAW_WIDTH_MOST 64.0f

/* How WARPS warps share a row out. */
template <int WARPS> struct draw_shape {
    static constexpr int THREADS = WARPS * 32;
    static constexpr int VALUES = (DRAW_UNITS + WARPS - 1) / WARPS;    /* of a thread, at most */
    static constexpr int PARTS = (DRAW_PARTS + THREADS - 1) / THREADS; /* of a thread's values */

    /* a bit a value */
    typedef typename std::conditional<VALUES <= 32, uint32_t, uint64_t>::type values;
};

/* Candidates of the short way, by rising token. */
template <int WARPS> struct draw_few {
    float most[draw_shape<WARPS>::PARTS * draw_shape<WARPS>::THREADS]; /* of each part's scores */
    /* the score, and the token; then the key of the score divided by the temperature, and the
     * weight, UINT32_MAX for 2^32 */
    alignas(16) uint2 found[FEW_MOST];
    int32_t token[FEW_MOST];
    /* sums over those of greater keys: of weights as they lie in `found`, and DRAW_LIFT each */
    alignas(16) uint64_t above[FEW_MOST];
};

/* What is left of a row from one of its choices to the next, in shared memory. */
struct draw_kept {
    float width; /* of draw_floor(): a guess */
};

/* What is known of a row before its logits come. */
template <int WARPS> struct draw_row {
    struct few_draw draw;
    int32_t position, max_new;
    int32_t forced; /* the one token there is, or -1 */
    bool sample;
    int thread;                             /* which this is, of the group */
    int each;                               /* units of a warp */
    typename draw_shape<WARPS>::values off; /* which of the thread's may not be chosen */
};

template <int WARPS> static __device__ __forceinline__ int draw_each(int32_t vocabulary)
{
    return (product_units(vocabulary) + WARPS - 1) / WARPS;
}

/* The token of a thread's i-th value, or one past the vocabulary. */
static __device__ __forceinline__ uint32_t draw_token(int thread, int each, int i)
{
    return ((thread >> 5) * each + i) * PRODUCT_UNIT + (thread & 31);
}

template <int WARPS>
static __device__ __forceinline__ int32_t draw_forced(const struct cuda_rules &rules,
                                                      const struct draw_row<WARPS> &row)
{
    const int32_t token = rules.forced_eos >= 0 && row.position + 1 == row.max_new
                              ? rules.forced_eos
                          : rules.forced_bos >= 0 && row.position == 0 ? rules.forced_bos
                                                                       : -1;

    /* nothing may be chosen then: the first, as an argmax has it */
    return token >= 0 && row.sample && rules_has(rules.suppressed, token) ? 0 : token;
}

/* Which of a thread's values is EOS, where it may not be chosen yet. */
template <int WARPS>
static __device__ __forceinline__ typename draw_shape<WARPS>::values
draw_no_eos(const struct cuda_rules &rules, const struct draw_row<WARPS> &row, bool no_eos)
{
    const int32_t i = rules.eos_token / PRODUCT_UNIT - (row.thread >> 5) * row.each;
    const bool mine = i >= 0 && i < row.each && rules.eos_token % PRODUCT_UNIT == (row.thread & 31);

    return no_eos && mine ? (typename draw_shape<WARPS>::values)1 << i : 0;
}

/* A floor below which the search goes on, and what is known of those tried. */
template <int WARPS> struct draw_search {
    /* the lane's share of the greatest scores of all parts */
    float m[WARPS * draw_shape<WARPS>::PARTS];
    float greatest;       /* of all */
    float floor;          /* the last that was tried */
    float low, low_log;   /* how far below the greatest too many reach it, 0: nowhere yet */
    float high, high_log; /* and too few; logarithms of how many */
    int least, most, round;
    float want; /* the logarithm of how many there should be */
};

/* Begins it: one barrier. v: the thread's scores. False when no score is finite. */
template <int WARPS>
static __device__ __forceinline__ bool
draw_search_begin(struct block *b, struct draw_few<WARPS> *few,
                  const float (&v)[draw_shape<WARPS>::VALUES], int top_k,
                  struct draw_search<WARPS> *search)
{
    constexpr int PARTS = draw_shape<WARPS>::PARTS;
    float mine;

#pragma unroll
    for (int p = 0; p < PARTS; p++) {
        mine = v[p];
#pragma unroll
        for (int i = p + PARTS; i < draw_shape<WARPS>::VALUES; i += PARTS)
            mine = fmaxf(mine, v[i]);
        few->most[(p * WARPS + b->warp) * 32 + b->lane] = mine;
    }
    block_sync(b);
#pragma unroll
    for (int i = 0; i < WARPS * PARTS; i++) {
        search->m[i] = few->most[i * 32 + b->lane];
        mine = fmaxf(mine, search->m[i]);
    }
    search->greatest = block_value(__reduce_max_sync(BLOCK_ALL, sampling_key(mine)));
    search->low = search->high = search->low_log = search->high_log = 0.0f;
    search->round = 0;
    /* parts are counted, of which some have several scores above the floor */
    search->least = top_k - top_k / 16;
    search->most = top_k + top_k / 8 + 4;
    search->want = __log2f((float)(search->least + search->most) * 0.5f);
    return isfinite(search->greatest);
}

/* Counts have come out wrong, too many or too few: where next, below the greatest. False: nowhere.
 */
template <int WARPS>
static __device__ __forceinline__ bool draw_search_next(struct draw_search<WARPS> *search,
                                                        int parts, bool enough, float *width)
{
    const float count = __log2f((float)parts);
    float part = 0.5f;

    if (enough) {
        search->low = *width;
        search->low_log = count;
    } else {
        search->high = *width;
        search->high_log = count;
    }
    if (++search->round > FEW_ROUNDS)
        return false;
    if (search->low == 0.0f) {
        part = search->round > DRAW_GUESSES ? 2.0f : __fdividef(search->want, fmaxf(count, 0.5f));
        *width *= fminf(fmaxf(part, 1.125f), 2.0f);
        return isfinite(*width);
    }
    if (search->round <= DRAW_GUESSES)
        part = __fdividef(search->want - search->high_log, search->low_log - search->high_log);
    part = fminf(fmaxf(part, 0.0625f), 0.9375f);
    *width = search->high + part * (search->low - search->high);
    return *width > search->high && *width < search->low;
}

/* Each warp by itself, all the same: a floor that `least` to `most` parts reach, from *width
 * below the greatest score on. */
template <int WARPS>
static __device__ __forceinline__ bool draw_floor(struct draw_search<WARPS> *search, float *width,
                                                  int *parts)
{
#pragma unroll 1
    for (;;) {
        uint32_t mine = 0;

        search->floor = search->greatest - *width;
#pragma unroll
        for (int i = 0; i < WARPS * draw_shape<WARPS>::PARTS; i++)
            mine += search->m[i] >= search->floor;
        *parts = (int)__reduce_add_sync(BLOCK_ALL, mine);
        if (*parts >= search->least && *parts <= search->most)
            return true;
        if (!draw_search_next(search, *parts, *parts > search->most, width))
            return false;
    }
}

/* Two words into shared memory, without a branch. */
static __device__ __forceinline__ void draw_put_if(uint2 *shared, bool in, uint32_t x, uint32_t y)
{
    asm volatile("{\n\t.reg .pred p;\n\tsetp.ne.b32 p, %0, 0;\n\t"
                 "@p st.shared.v2.b32 [%1], {%2, %3};\n\t}" ::"r"((int)in),
                 "r"((uint32_t)__cvta_generic_to_shared(shared)), "r"(x), "r"(y)
                 : "memory");
}

/* The scores above a floor that top_k to FEW_MOST of them reach, into few->found, with their
 * tokens; how many, or 0: there is no such floor. width: how far below the greatest score to look
 * first; becomes how far it was found. Ends with a barrier. */
template <int WARPS>
static __device__ __forceinline__ uint32_t draw_find(struct block *b, struct draw_few<WARPS> *few,
                                                     const float (&v)[draw_shape<WARPS>::VALUES],
                                                     const struct draw_row<WARPS> &row,
                                                     float *width, float *greatest)
{
    struct draw_search<WARPS> search;
    uint32_t place, total;
    float floor;
    int parts;

    if (!draw_search_begin(b, few, v, row.draw.top_k, &search))
        return 0;
    *greatest = search.greatest;
#pragma unroll 1
    for (;;) {
        if (!draw_floor(&search, width, &parts))
            return 0;
        uint32_t own = 0, warps;

        floor = few_guard(search.floor);
#pragma unroll
        for (int i = 0; i < draw_shape<WARPS>::VALUES; i++)
            own += v[i] >= floor;
        warps = block_gather(b, make_uint4(__reduce_add_sync(BLOCK_ALL, own), 0, 0, 0)).x;
        total = __reduce_add_sync(BLOCK_ALL, warps);
        place = __reduce_add_sync(BLOCK_ALL, b->lane < b->warp ? warps : 0);
        if (total >= (uint32_t)row.draw.top_k && total <= FEW_MOST)
            break;
        if (!draw_search_next(&search, parts, total > FEW_MOST, width))
            return 0;
    }
#pragma unroll
    for (int i = 0; i < draw_shape<WARPS>::VALUES; i++) {
        const bool in = v[i] >= floor;
        const uint32_t who = __ballot_sync(BLOCK_ALL, in);

        draw_put_if(&few->found[place + __popc(who & ((1u << b->lane) - 1))], in,
                    __float_as_uint(v[i]), draw_token(row.thread, row.each, i));
        place += __popc(who);
    }
    block_sync(b);
    return total;
}

/* How many threads share a token, of `count`. */
template <int WARPS> static __device__ __forceinline__ uint32_t draw_share(uint32_t count)
{
    constexpr int THREADS = draw_shape<WARPS>::THREADS;

    return count <= THREADS / 4 ? 4 : THREADS >= 2 * FEW_MOST || count <= THREADS / 2 ? 2 : 1;
}

/* few->above, from what was found; barriers before and after. Threads that share a token look at a
 * part of the others each. */
template <int WARPS>
static __device__ __forceinline__ void draw_compare(struct block *b, struct draw_few<WARPS> *few,
                                                    uint32_t count, float greatest,
                                                    const struct few_draw &draw)
{
    constexpr int THREADS = draw_shape<WARPS>::THREADS;
    constexpr bool ONCE = THREADS >= FEW_MOST; /* a thread has no more than one token */
    const uint32_t share = draw_share<WARPS>(count), thread = b->warp * 32 + b->lane;
    const uint32_t part = thread & (share - 1);
    const uint32_t padded = (count + 15) / 16 * 16; /* by what is greater than nothing */

    for (uint32_t i = thread; i < padded; i += THREADS) {
        const uint2 mine = few->found[i];
        const float z = __fdiv_rn(__uint_as_float(mine.x), draw.temperature);
        const uint32_t weight = block_weight(z, __fdiv_rn(greatest, draw.temperature));

        few->token[i] = (int32_t)mine.y;
        few->found[i] = i < count ? make_uint2(sampling_key(z), weight) : make_uint2(0, 0);
        if (ONCE)
            break;
    }
    block_sync(b);
    for (uint32_t first = 0; b->warp * 32 < (int)((count - first) * share);
         first += THREADS / share) {
        const uint32_t i = first + thread / share, mine = few->found[min(i, count - 1)].x;
        uint64_t above = 0;

#pragma unroll 1
        for (uint32_t j = part * 4; j < padded; j += share * 4)
#pragma unroll
            for (uint32_t k = 0; k < 4; k += 2) {
                const uint4 two = *(const uint4 *)&few->found[j + k];

                above += two.x > mine ? two.y + ((uint64_t)DRAW_LIFT << 32) : 0;
                above += two.z > mine ? two.w + ((uint64_t)DRAW_LIFT << 32) : 0;
            }
        if (share > 1)
            above += __shfl_xor_sync(BLOCK_ALL, above, 1);
        if (share == 4)
            above += __shfl_xor_sync(BLOCK_ALL, above, 2);
        if (!part && i < count)
            few->above[i] = above;
        if (ONCE)
            break;
    }
    block_sync(b);
}

/* A sum over the warp of a number whose lower 16 bits and others are apart. */
static __device__ __forceinline__ uint64_t draw_sum(uint32_t low, uint32_t high)
{
    return __reduce_add_sync(BLOCK_ALL, low) + ((uint64_t)__reduce_add_sync(BLOCK_ALL, high) << 16);
}

/* One warp: top-k, top-p and the draw among the tokens that were compared, in the order of ids; the
 * token, in all lanes. */
template <int WARPS>
static __device__ __forceinline__ int32_t draw_cut(const struct draw_few<WARPS> *few,
                                                   uint32_t count, const struct few_draw &draw,
                                                   int lane)
{
    uint32_t weight[4], full = 0, low = 0, high = 0;
    uint64_t above[4], total, target, sum;
    int32_t token = -1;
    bool in[4];

#pragma unroll
    for (int i = 0; i < 4; i += 2) {
        const uint4 two = *(const uint4 *)&few->found[lane * 4 + i];
        const uint4 over = *(const uint4 *)&few->above[lane * 4 + i];

        weight[i] = two.y;
        weight[i + 1] = two.w;
        above[i] = over.x | (uint64_t)over.y << 32;
        above[i + 1] = over.z | (uint64_t)over.w << 32;
    }
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const uint32_t rank = (uint32_t)(above[i] >> 40);
        const bool whole = weight[i] == UINT32_MAX; /* 2^32 */

        in[i] = lane * 4 + i < (int)count && rank < (uint32_t)draw.top_k;
        full += lane * 4 + i < (int)count && whole;
        low += in[i] ? (weight[i] & 0xffffu) + whole : 0;
        high += in[i] ? weight[i] >> 16 : 0;
    }
    full = __reduce_add_sync(BLOCK_ALL, full);
    total = draw_sum(low, high);
    if (draw.top_p < 1.0f) { /* what is not above a token is as great at most */
        const uint64_t limit = sampling_limit(draw.top_p, total);

        low = high = 0;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const uint32_t rank = (uint32_t)(above[i] >> 40);
            const bool whole = weight[i] == UINT32_MAX;
            const uint64_t over = (above[i] & (((uint64_t)1 << 40) - 1)) + (whole ? rank : full);

            in[i] = in[i] && total - over > limit;
            low += in[i] ? (weight[i] & 0xffffu) + whole : 0;
            high += in[i] ? weight[i] >> 16 : 0;
        }
        total = draw_sum(low, high);
    }
    target = sampling_scale(draw.random, total);
    sum = low + ((uint64_t)high << 16);
#pragma unroll
    for (int step = 1; step < 32; step *= 2) {
        const uint32_t other_low = __shfl_up_sync(BLOCK_ALL, low, step);
        const uint32_t other_high = __shfl_up_sync(BLOCK_ALL, high, step);

        low += lane >= step ? other_low : 0;
        high += lane >= step ? other_high : 0;
    }
    sum = low + ((uint64_t)high << 16) - sum; /* of the lanes before */
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const uint64_t before = sum;

        sum += in[i] ? (uint64_t)weight[i] + (weight[i] == UINT32_MAX) : 0;
        if (before <= target && target < sum)
            token = lane * 4 + i;
    }
    token = (int32_t)__reduce_max_sync(BLOCK_ALL, (uint32_t)(token + 1)) - 1;
    return token < 0 ? token : few->token[token];
}

/* The short way, where few_allowed() says so: the row's next token, in the first warp alone, others
 * do not wait for it and get -1. False: it leads nowhere. What lies in `few` may be read until the
 * token is known. */
template <int WARPS>
static __device__ __forceinline__ bool draw_short(struct block *b, struct draw_few<WARPS> *few,
                                                  struct draw_kept *kept,
                                                  const float (&v)[draw_shape<WARPS>::VALUES],
                                                  const struct draw_row<WARPS> &row, int32_t *token)
{
    float width = kept->width, greatest = 0.0f;
    const uint32_t count = draw_find(b, few, v, row, &width, &greatest);

    if (!count)
        return false;
    draw_compare(b, few, count, greatest, row.draw);
    *token = -1;
    if (b->warp)
        return true;
    if (b->lane == 0)
        kept->width = fminf(fmaxf(width, DRAW_WIDTH_LEAST), DRAW_WIDTH_MOST);
    *token = draw_cut(few, count, row.draw, b->lane);
    return true;
}

#endif
