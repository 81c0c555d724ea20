/* SPDX-License-Identifier: MIT
 *
 * fused_choose: the next token of a row that may be sampled, inside a fused kernel: the row's
 * logits lie in the shared memory of one block, of whose threads 256 choose, by what choose.h
 * defines. With a small top-k each warp finds by itself a floor that not many scores reach, all
 * weigh those above it, and the first warp cuts, draws and says the token. The same bits as
 * choose.h's kernels. For fused.cu.
 */
#ifndef PGPT_KERNELS_CUDA_FUSED_CHOOSE_CUH
#define PGPT_KERNELS_CUDA_FUSED_CHOOSE_CUH

#define BLOCK_GROUP 256

#include "kernels/cuda/choose_few.cuh"
#include "kernels/cuda/choose_plain.cuh"
#include "kernels/search/rules.h"

enum {
    DRAW_WARPS = BLOCK_GROUP / 32,
    DRAW_VALUES = 16, /* units a warp has at most, of which a lane has a column each */
    DRAW_VOCABULARY = DRAW_WARPS * DRAW_VALUES * PRODUCT_UNIT,
    DRAW_STEPS = 64,            /* of a launch, at most */
    DRAW_GUESSES = 6,           /* floors that are interpolated; then bisection */
    DRAW_LIFT = 1 << (40 - 32), /* a token, in the upper word of a sum of up to 2^40 */
};

/* Of a guess: from where it takes few rounds to get anywhere. */
#define DRAW_WIDTH_LEAST 1.0f
#define DRAW_WIDTH_MOST 64.0f

/* Candidates of the short way, by rising token. */
struct draw_few {
    float most[BLOCK_GROUP]; /* of each thread's scores */
    /* the score, and the token; then the key of the score divided by the temperature, and the
     * weight, UINT32_MAX for 2^32 */
    alignas(16) uint2 found[FEW_MOST];
    int32_t token[FEW_MOST];
    /* sums over those of greater keys: of weights as they lie in `found`, and DRAW_LIFT each */
    alignas(16) uint64_t above[FEW_MOST];
};

/* In shared memory, while a row is chosen. */
struct draw_scratch {
    struct block_shared block;
    struct draw_few few;
};

/* What is left of a row from one of its choices to the next, in shared memory. */
struct draw_kept {
    float width; /* of draw_floor(): a guess */
};

/* What the launch begins with of a row, in shared memory. */
struct draw_asked {
    struct few_draw draw; /* but for random */
    int32_t sample;
    uint64_t random[DRAW_STEPS];  /* of the launch's steps */
    uint32_t banned[BLOCK_GROUP]; /* which of a thread's values may never be chosen */
};

/* What is known of a row before its logits come. */
struct draw_row {
    struct few_draw draw;
    int32_t position, max_new;
    int32_t forced; /* the one token there is, or -1 */
    bool sample;
    int thread;   /* which this is */
    int each;     /* units of a warp */
    uint32_t off; /* which of the thread's values may not be chosen */
};

static __device__ __forceinline__ int draw_each(int32_t vocabulary)
{
    return (product_units(vocabulary) + DRAW_WARPS - 1) / DRAW_WARPS;
}

/* The token of a thread's i-th value, or one past the vocabulary. */
static __device__ __forceinline__ uint32_t draw_token(int thread, int each, int i)
{
    return ((thread >> 5) * each + i) * PRODUCT_UNIT + (thread & 31);
}

static __device__ __forceinline__ int32_t draw_forced(const struct cuda_rules &rules,
                                                      const struct draw_row &row)
{
    const int32_t token = rules.forced_eos >= 0 && row.position + 1 == row.max_new
                              ? rules.forced_eos
                          : rules.forced_bos >= 0 && row.position == 0 ? rules.forced_bos
                                                                       : -1;

    /* nothing may be chosen then: the first, as an argmax has it */
    return token >= 0 && row.sample && rules_has(rules.suppressed, token) ? 0 : token;
}

/* All threads of the group, once a launch; a barrier follows. */
static __device__ __forceinline__ void draw_ask(struct draw_asked *asked,
                                                const struct cuda_rules &rules,
                                                const struct cuda_row *of, int32_t steps)
{
    const int each = draw_each(rules.vocabulary);
    uint32_t banned = 0;

    for (int i = block_thread(); i < steps; i += BLOCK_GROUP)
        asked->random[i] =
            philox_draw(of->seed, (uint32_t)of->sequence, (uint32_t)(of->position + i));
    for (int i = 0; i < each && rules.banned; i++) {
        const uint32_t token = draw_token(block_thread(), each, i);

        if (token < (uint32_t)rules.vocabulary)
            banned |= (rules.banned[token >> 5] >> (token & 31) & 1) << i;
    }
    asked->banned[block_thread()] = banned;
    if (block_thread() == 0) {
        asked->draw.top_k = of->top_k;
        asked->draw.top_p = of->top_p;
        asked->draw.temperature = of->temperature;
        asked->sample = of->flags & CUDA_ROW_SAMPLE;
    }
}

/* The row at `position`, in a step of the launch that it has not finished before. thread:
 * block_thread(), which the caller may hide from the compiler: what is computed from it shall not
 * be kept in registers from one step to the next. */
static __device__ __forceinline__ struct draw_row
draw_begin(const struct draw_asked *asked, const struct cuda_rules &rules, int32_t step,
           int32_t position, int32_t min_new, int32_t max_new, int thread)
{
    struct draw_row row;

    row.thread = thread;
    row.sample = asked->sample;
    row.draw = asked->draw;
    row.draw.random = asked->random[step];
    row.position = position;
    row.max_new = max_new;
    row.forced = draw_forced(rules, row);
    row.each = draw_each(rules.vocabulary);
    row.off = asked->banned[thread];
    if (position < min_new) {
        const int32_t i = rules.eos_token / PRODUCT_UNIT - (thread >> 5) * row.each;

        if (i >= 0 && i < row.each && rules.eos_token % PRODUCT_UNIT == (thread & 31))
            row.off |= 1u << i;
    }
    return row;
}

/* The thread's share of the row, -inf behind the vocabulary and for what may not be chosen. */
static __device__ __forceinline__ void draw_load(float (&v)[DRAW_VALUES], const float *logits,
                                                 int units, const struct draw_row &row)
{
    const int first = (row.thread >> 5) * row.each;
    const float *from = logits + first * PRODUCT_UNIT + (row.thread & 31);

#pragma unroll
    for (int i = 0; i < DRAW_VALUES; i++) {
        v[i] = -INFINITY;
        if (i < row.each && first + i < units)
            v[i] = from[i * PRODUCT_UNIT];
    }
    if (row.off)
#pragma unroll
        for (int i = 0; i < DRAW_VALUES; i++)
            v[i] = row.off >> i & 1 ? -INFINITY : v[i];
}

/* Sampling's long way, by scores (V) in shared memory, which all have written. The token, in all
 * threads. Not inlined: it is seldom gone, and the way past it is to stay short. */
static __device__ __noinline__ int32_t draw_long(struct draw_scratch *scratch, int barrier,
                                                 const float *scores,
                                                 const struct draw_asked *asked, uint64_t random,
                                                 int32_t V)
{
    struct block b = block_start(&scratch->block, barrier);
    const struct few_draw draw = asked->draw;
    struct block_read read = {scores, V, draw.temperature, 0.0f};
    struct block_best best = {0, UINT32_MAX};
    uint32_t greatest = 0, threshold;

    read.each([&](uint32_t score, uint32_t token, auto) {
        const uint32_t key = sampling_key(__fdiv_rn(scores[token], draw.temperature));

        greatest = max(greatest, score);
        if (best.token == UINT32_MAX || key > best.key)
            best = {key, token};
    });
    best = block_find_best(&b, best);
    read.max = block_value(best.key);
    if (!isfinite(read.max))
        return (int32_t)best.token;
    greatest = block_greatest_key(&b, greatest);
    threshold = read.with_equals(
        block_threshold(&b, read, V, draw.top_k, draw.top_p, read.lowest(), greatest));
    return block_draw(&b, read, threshold, random);
}

/* The greatest score's token, the first of equal ones; and its score. */
static __device__ __forceinline__ int32_t draw_best(struct block *b, const float (&v)[DRAW_VALUES],
                                                    const struct draw_row &row)
{
    struct block_best best = {0, UINT32_MAX};
    float most = -INFINITY;

#pragma unroll
    for (int i = 0; i < DRAW_VALUES; i++)
        if (v[i] > most) {
            most = v[i];
            best.token = draw_token(row.thread, row.each, i);
        }
    best.key = plain_key(most);
    best = block_find_best(b, best);
    return plain_value(best.key) == -INFINITY ? 0 : (int32_t)best.token;
}

/* A floor below which the search goes on, and what is known of those tried. */
struct draw_search {
    float m[DRAW_WARPS];  /* the lane's share of the threads' greatest scores */
    float greatest;       /* of all */
    float floor;          /* the last that was tried */
    float low, low_log;   /* how far below the greatest too many reach it, 0: nowhere yet */
    float high, high_log; /* and too few; logarithms of how many */
    int least, most, round;
    float want; /* the logarithm of how many there should be */
};

/* Begins it: one barrier. mine: the thread's greatest score. False when no score is finite. */
static __device__ __forceinline__ bool draw_search_begin(struct block *b, struct draw_few *few,
                                                         float mine, int top_k,
                                                         struct draw_search *search)
{
    few->most[b->warp * 32 + b->lane] = mine;
    block_sync(b);
#pragma unroll
    for (int i = 0; i < DRAW_WARPS; i++) {
        search->m[i] = few->most[i * 32 + b->lane];
        mine = fmaxf(mine, search->m[i]);
    }
    search->greatest = block_value(__reduce_max_sync(BLOCK_ALL, sampling_key(mine)));
    search->low = search->high = search->low_log = search->high_log = 0.0f;
    search->round = 0;
    /* threads are counted, of which some have several scores above the floor */
    search->least = top_k - top_k / 16;
    search->most = top_k + top_k / 8 + 4;
    search->want = __log2f((float)(search->least + search->most) * 0.5f);
    return isfinite(search->greatest);
}

/* Counts have come out wrong, too many or too few: where next, below the greatest. False: nowhere.
 */
static __device__ __forceinline__ bool draw_search_next(struct draw_search *search, int threads,
                                                        bool enough, float *width)
{
    const float count = __log2f((float)threads);
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

/* Each warp by itself, all the same: a floor that `least` to `most` threads reach, from *width
 * below the greatest score on. */
static __device__ __forceinline__ bool draw_floor(struct draw_search *search, float *width,
                                                  int *threads)
{
#pragma unroll 1
    for (;;) {
        uint32_t mine = 0;

        search->floor = search->greatest - *width;
#pragma unroll
        for (int i = 0; i < DRAW_WARPS; i++)
            mine += search->m[i] >= search->floor;
        *threads = (int)__reduce_add_sync(BLOCK_ALL, mine);
        if (*threads >= search->least && *threads <= search->most)
            return true;
        if (!draw_search_next(search, *threads, *threads > search->most, width))
            return false;
    }
}

/* The scores above a floor that top_k to FEW_MOST of them reach, into few->found, with their
 * tokens; how many, or 0: there is no such floor. width: how far below the greatest score to look
 * first; becomes how far it was found. Ends with a barrier. */
static __device__ __forceinline__ uint32_t draw_find(struct block *b, struct draw_few *few,
                                                     const float (&v)[DRAW_VALUES],
                                                     const struct draw_row &row, float *width,
                                                     float *greatest)
{
    struct draw_search search;
    uint32_t reach[DRAW_VALUES], place, total;
    float mine = v[0];
    int threads;

#pragma unroll
    for (int i = 1; i < DRAW_VALUES; i++)
        mine = fmaxf(mine, v[i]);
    if (!draw_search_begin(b, few, mine, row.draw.top_k, &search))
        return 0;
    *greatest = search.greatest;
#pragma unroll 1
    for (;;) {
        if (!draw_floor(&search, width, &threads))
            return 0;
        const float floor = few_guard(search.floor);
        uint32_t own = 0;

#pragma unroll
        for (int i = 0; i < DRAW_VALUES; i++) {
            reach[i] = __ballot_sync(BLOCK_ALL, v[i] >= floor);
            own += __popc(reach[i]);
        }
        const uint32_t warps = block_gather(b, make_uint4(own, 0, 0, 0)).x;

        total = __reduce_add_sync(BLOCK_ALL, warps);
        place = __reduce_add_sync(BLOCK_ALL, b->lane < b->warp ? warps : 0);
        if (total >= (uint32_t)row.draw.top_k && total <= FEW_MOST)
            break;
        if (!draw_search_next(&search, threads, total > FEW_MOST, width))
            return 0;
    }
#pragma unroll
    for (int i = 0; i < DRAW_VALUES; i++) {
        const uint32_t at = place + __popc(reach[i] & ((1u << b->lane) - 1));

        if (reach[i] >> b->lane & 1) {
            few->found[at].x = __float_as_uint(v[i]);
            few->token[at] = (int32_t)draw_token(row.thread, row.each, i);
        }
        place += __popc(reach[i]);
    }
    block_sync(b);
    return total;
}

/* few->above, from what was found; barriers before and after. Two threads share a token, four of
 * few, and look at a part of the others each. */
static __device__ __forceinline__ void draw_compare(struct block *b, struct draw_few *few,
                                                    uint32_t count, float greatest,
                                                    const struct few_draw &draw)
{
    const uint32_t share = count <= BLOCK_GROUP / 4 ? 4 : 2, thread = b->warp * 32 + b->lane;
    const uint32_t i = thread / share, part = thread & (share - 1);
    const uint32_t padded = (count + 15) / 16 * 16; /* by what is greater than nothing */
    uint64_t above = 0;

    if (thread < padded) {
        const float z = __fdiv_rn(__uint_as_float(few->found[thread].x), draw.temperature);
        const uint32_t weight = block_weight(z, __fdiv_rn(greatest, draw.temperature));

        few->found[thread] =
            thread < count ? make_uint2(sampling_key(z), weight) : make_uint2(0, 0);
    }
    block_sync(b);
    if (b->warp * 32 < (int)(count * share)) {
        const uint32_t mine = few->found[min(i, count - 1)].x;

#pragma unroll 1
        for (uint32_t j = part * 4; j < padded; j += share * 4)
#pragma unroll
            for (uint32_t k = 0; k < 4; k += 2) {
                const uint4 two = *(const uint4 *)&few->found[j + k];

                above += two.x > mine ? two.y + ((uint64_t)DRAW_LIFT << 32) : 0;
                above += two.z > mine ? two.w + ((uint64_t)DRAW_LIFT << 32) : 0;
            }
        above += __shfl_xor_sync(BLOCK_ALL, above, 1);
        if (share == 4)
            above += __shfl_xor_sync(BLOCK_ALL, above, 2);
        if (!part && i < count)
            few->above[i] = above;
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
static __device__ __forceinline__ int32_t draw_cut(const struct draw_few *few, uint32_t count,
                                                   const struct few_draw &draw, int lane)
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

/* The row's next token, of whose logits no thread but these knows more than that they have come; in
 * the first warp alone, others do not wait for it and get -1. scores: room for V of them. Uses
 * barrier `barrier`; what lies in scratch may be read until the token is known. */
static __device__ __forceinline__ int32_t draw_run(struct draw_scratch *scratch,
                                                   struct draw_kept *kept, int barrier,
                                                   const float *logits, float *scores,
                                                   const struct cuda_rules &rules,
                                                   const struct draw_asked *asked,
                                                   const struct draw_row &row)
{
    struct block b = {&scratch->block, row.thread & 31, row.thread >> 5, DRAW_WARPS, 0, barrier};
    const int32_t V = rules.vocabulary;
    float v[DRAW_VALUES], width = kept->width, greatest = 0.0f;
    uint32_t count = 0;

    if (row.forced >= 0)
        return row.forced;
    draw_load(v, logits, product_units(V), row);
    if (!row.sample)
        return draw_best(&b, v, row);
    if (few_allowed(row.draw.top_k, row.draw.temperature, V))
        count = draw_find(&b, &scratch->few, v, row, &width, &greatest);
    if (count) {
        draw_compare(&b, &scratch->few, count, greatest, row.draw);
        if (b.warp)
            return -1;
        if (b.lane == 0)
            kept->width = fminf(fmaxf(width, DRAW_WIDTH_LEAST), DRAW_WIDTH_MOST);
        return draw_cut(&scratch->few, count, row.draw, b.lane);
    }
#pragma unroll
    for (int i = 0; i < DRAW_VALUES; i++)
        if (i < row.each && draw_token(row.thread, row.each, i) < (uint32_t)V)
            scores[draw_token(row.thread, row.each, i)] = v[i];
    block_sync(&b);
    return draw_long(scratch, barrier, scores, asked, row.draw.random, V);
}

#endif
