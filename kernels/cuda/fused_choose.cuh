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

#include "kernels/cuda/choose_draw.cuh"
#include "kernels/cuda/choose_plain.cuh"

enum {
    DRAW_WARPS = BLOCK_GROUP / 32,
    DRAW_VALUES = draw_shape<DRAW_WARPS>::VALUES,
    DRAW_STEPS = 64, /* of a launch, at most */
};

/* In shared memory, while a row is chosen. */
struct draw_scratch {
    struct block_shared block;
    struct draw_few<DRAW_WARPS> few;
};

/* What the launch begins with of a row, in shared memory. */
struct draw_asked {
    struct few_draw draw; /* but for random */
    int32_t sample;
    uint64_t random[DRAW_STEPS];  /* of the launch's steps */
    uint32_t banned[BLOCK_GROUP]; /* which of a thread's values may never be chosen */
};

/* All threads of the group, once a launch; a barrier follows. */
static __device__ __forceinline__ void draw_ask(struct draw_asked *asked,
                                                const struct cuda_rules &rules,
                                                const struct cuda_row *of, int32_t steps)
{
    const int each = draw_each<DRAW_WARPS>(rules.vocabulary);
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
static __device__ __forceinline__ draw_row<DRAW_WARPS>
draw_begin(const struct draw_asked *asked, const struct cuda_rules &rules, int32_t step,
           int32_t position, int32_t min_new, int32_t max_new, int thread)
{
    struct draw_row<DRAW_WARPS> row;

    row.thread = thread;
    row.sample = asked->sample;
    row.draw = asked->draw;
    row.draw.random = asked->random[step];
    row.position = position;
    row.max_new = max_new;
    row.forced = draw_forced(rules, row);
    row.each = draw_each<DRAW_WARPS>(rules.vocabulary);
    row.off = asked->banned[thread] | draw_no_eos(rules, row, position < min_new);
    return row;
}

/* The thread's share of the row, -inf behind the vocabulary and for what may not be chosen. */
static __device__ __forceinline__ void draw_load(float (&v)[DRAW_VALUES], const float *logits,
                                                 int units, const struct draw_row<DRAW_WARPS> &row)
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
                                                    const struct draw_row<DRAW_WARPS> &row)
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

/* The row's next token, of whose logits no thread but these knows more than that they have come; in
 * the first warp alone, others do not wait for it and get -1. scores: room for V of them. Uses
 * barrier `barrier`; what lies in scratch may be read until the token is known. */
static __device__ __forceinline__ int32_t draw_run(struct draw_scratch *scratch,
                                                   struct draw_kept *kept, int barrier,
                                                   const float *logits, float *scores,
                                                   const struct cuda_rules &rules,
                                                   const struct draw_asked *asked,
                                                   const struct draw_row<DRAW_WARPS> &row)
{
    struct block b = {&scratch->block, row.thread & 31, row.thread >> 5, DRAW_WARPS, 0, barrier};
    const int32_t V = rules.vocabulary;
    float v[DRAW_VALUES];
    int32_t token;

    if (row.forced >= 0)
        return row.forced;
    draw_load(v, logits, product_units(V), row);
    if (!row.sample)
        return draw_best(&b, v, row);
    if (few_allowed(row.draw.top_k, row.draw.temperature, V) &&
        draw_short(&b, &scratch->few, kept, v, row, &token))
        return token;
#pragma unroll
    for (int i = 0; i < DRAW_VALUES; i++)
        if (i < row.each && draw_token(row.thread, row.each, i) < (uint32_t)V)
            scores[draw_token(row.thread, row.each, i)] = v[i];
    block_sync(&b);
    return draw_long(scratch, barrier, scores, asked, row.draw.random, V);
}

#endif
