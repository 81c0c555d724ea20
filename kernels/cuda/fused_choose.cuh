/* SPDX-License-Identifier: MIT
 *
 * fused_choose: the next token of a row that may be sampled, inside a fused kernel: the row's
 * logits lie in the shared memory of one block, of whose threads 256 choose, by what choose.h
 * defines. The first warp says the token as soon as it is known; the others add up exponentials
 * meanwhile. The same bits as choose.h's kernels. For fused.cu and fused_rows.cu.
 */
#ifndef PGPT_KERNELS_CUDA_FUSED_CHOOSE_CUH
#define PGPT_KERNELS_CUDA_FUSED_CHOOSE_CUH

#define BLOCK_GROUP 256

#include "kernels/cuda/choose_few.cuh"
#include "kernels/cuda/choose_plain.cuh"
#include "kernels/search/rules.h"

enum {
    DRAW_UNITS = 2, /* units of logits a thread has 8 columns of each */
    DRAW_VALUES = DRAW_UNITS * 8,
    DRAW_STRIDE = BLOCK_GROUP / 4, /* units between them */
    DRAW_VOCABULARY = DRAW_UNITS * DRAW_STRIDE * PRODUCT_UNIT,
    DRAW_STEPS = 64, /* of a launch, at most */
};

/* Of a guess: from where it takes few rounds to get anywhere. */
#define DRAW_WIDTH_LEAST 1.0f
#define DRAW_WIDTH_MOST 64.0f

/* In shared memory, while a row is chosen. */
struct draw_scratch {
    struct block_shared block;
    struct few_shared few;
};

/* What is left of a row from one of its choices to the next, in shared memory. */
struct draw_kept {
    float width; /* of few_find(): a guess */
    struct logsum total;
};

/* What the launch begins with of a row, in shared memory. */
struct draw_asked {
    struct few_draw draw; /* but for random */
    int32_t sample;
    uint64_t random[DRAW_STEPS];                     /* of the launch's steps */
    uint32_t banned[DRAW_VOCABULARY / PRODUCT_UNIT]; /* a unit's columns that may never be chosen */
};

/* What is known of a row before its logits come. */
struct draw_row {
    struct few_draw draw;
    int32_t position, max_new;
    int32_t forced; /* the one token there is, or -1 */
    bool sample;
    uint32_t off[DRAW_UNITS]; /* which columns of the thread's units may not be chosen */
};

/* Where a token's logit lies: a unit's columns in logsum.cuh's order, lane q's 8 side by side. */
static __device__ __forceinline__ int draw_at(int32_t token)
{
    return (token & ~31) | (token >> 1 & 3) * 8 | (token >> 3 & 3) * 2 | (token & 1);
}

/* The token of the thread's i-th value. */
static __device__ __forceinline__ uint32_t draw_token(int i)
{
    return ((block_thread() >> 2) + (i >> 3) * DRAW_STRIDE) * PRODUCT_UNIT +
           (block_thread() & 3) * 2 + (i >> 1 & 3) * 8 + (i & 1);
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
    for (int i = block_thread(); i < steps; i += BLOCK_GROUP)
        asked->random[i] =
            philox_draw(of->seed, (uint32_t)of->sequence, (uint32_t)(of->position + i));
    for (int i = block_thread(); i < product_units(rules.vocabulary); i += BLOCK_GROUP)
        asked->banned[i] = rules.banned ? rules.banned[i] : 0;
    if (block_thread() == 0) {
        asked->draw.top_k = of->top_k;
        asked->draw.top_p = of->top_p;
        asked->draw.temperature = of->temperature;
        asked->sample = of->flags & CUDA_ROW_SAMPLE;
    }
}

/* The row at `position`, in a step of the launch that it has not finished before. */
static __device__ __forceinline__ struct draw_row draw_begin(const struct draw_asked *asked,
                                                             const struct cuda_rules &rules,
                                                             int32_t step, int32_t position,
                                                             int32_t min_new, int32_t max_new)
{
    struct draw_row row;

    row.sample = asked->sample;
    row.draw = asked->draw;
    row.draw.random = asked->random[step];
    row.position = position;
    row.max_new = max_new;
    row.forced = draw_forced(rules, row);
#pragma unroll
    for (int i = 0; i < DRAW_UNITS; i++) {
        const int unit = (block_thread() >> 2) + i * DRAW_STRIDE;
        const bool eos = position < min_new && rules.eos_token >> 5 == unit;

        row.off[i] = unit < product_units(rules.vocabulary) ? asked->banned[unit] : 0;
        row.off[i] |= eos ? 1u << (rules.eos_token & 31) : 0;
    }
    return row;
}

/* The thread's share of the row, -inf behind the vocabulary; then what may not be chosen, too. */
static __device__ __forceinline__ void draw_load(float (&v)[DRAW_VALUES], const float *logits,
                                                 int units)
{
#pragma unroll
    for (int i = 0; i < DRAW_VALUES; i += 4) {
        const int unit = (block_thread() >> 2) + (i >> 3) * DRAW_STRIDE;
        const float4 four =
            unit < units
                ? *(const float4 *)(logits + unit * PRODUCT_UNIT + (block_thread() & 3) * 8 + i % 8)
                : make_float4(-INFINITY, -INFINITY, -INFINITY, -INFINITY);

        v[i] = four.x;
        v[i + 1] = four.y;
        v[i + 2] = four.z;
        v[i + 3] = four.w;
    }
}
static __device__ __forceinline__ void draw_rules(float (&v)[DRAW_VALUES],
                                                  const struct draw_row &row)
{
    if (!(row.off[0] | row.off[1]))
        return;
#pragma unroll
    for (int i = 0; i < DRAW_VALUES; i++)
        if (row.off[i >> 3] >> (draw_token(i) & 31) & 1)
            v[i] = -INFINITY;
}

/* Sampling's long way, by scores (V) in shared memory, which all have written. The token, in all
 * threads. Not inlined: it is seldom gone, and the way past it is to stay short. */
static __device__ __noinline__ int32_t draw_long(struct block b, const float *scores,
                                                 struct few_draw draw, int32_t V)
{
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
    return block_draw(&b, read, threshold, draw.random);
}

/* The greatest score's token, the first of equal ones. */
static __device__ __forceinline__ struct block_best draw_best(struct block *b,
                                                              const float (&v)[DRAW_VALUES])
{
    struct block_best best = {0, UINT32_MAX};
    float most = -INFINITY;

#pragma unroll
    for (int i = 0; i < DRAW_VALUES; i++)
        if (v[i] > most) {
            most = v[i];
            best.token = draw_token(i);
        }
    best.key = plain_key(most);
    return block_find_best(b, best);
}

/* All warps but the first. */
static __device__ __forceinline__ void draw_rest_sync(const struct block *b)
{
    asm volatile("bar.sync %0, %1;" ::"r"(b->barrier + 1), "n"(BLOCK_GROUP - 32) : "memory");
}

/* All warps but the first: the row's sum of exponentials. */
static __device__ __forceinline__ void draw_total(struct block *b, const float *logits, int units,
                                                  struct logsum *total)
{
    struct logsum *sums = b->shared->units;

#pragma unroll 1
    for (int first = (b->warp - 1) * 8; first < units; first += (b->warps - 1) * 8) {
        const int unit = first + (b->lane >> 2);
        alignas(16) float v[8];
        struct logsum sum;

#pragma unroll
        for (int i = 0; i < 8; i += 4)
            *(float4 *)&v[i] = *(const float4 *)(logits + min(unit, units - 1) * PRODUCT_UNIT +
                                                 (b->lane & 3) * 8 + i);
        sum = logsum_unit(v);
        if ((b->lane & 3) == 0 && unit < units)
            sums[unit] = sum;
    }
    draw_rest_sync(b);
    if (b->warp == 1) {
        const struct logsum sum = logsum_units(sums, units, b->lane);

        if (b->lane == 0)
            *total = sum;
    }
}

/* The row's next token, of whose logits no thread but these knows more than that they have come.
 * tell(token): the whole first warp, as soon as it is known; meanwhile(): all warps, what others
 * need not wait for; end(token, logprob): one thread, at the end. scores: room for V of them. Uses
 * barriers `barrier` and the next. */
template <typename Tell, typename Meanwhile, typename End>
static __device__ __forceinline__ void
draw_run(struct draw_scratch *scratch, struct draw_kept *kept, int barrier, const float *logits,
         float *scores, const struct cuda_rules &rules, const struct draw_row &row, Tell tell,
         Meanwhile meanwhile, End end)
{
    struct block b = block_start(&scratch->block, barrier);
    const int32_t V = rules.vocabulary, units = product_units(V);
    float v[DRAW_VALUES], width = kept->width, raw = 0.0f;
    int32_t token = row.forced;
    bool few = false;

    if (row.forced < 0) {
        draw_load(v, logits, units);
        draw_rules(v, row);
        if (!row.sample) {
            const struct block_best best = draw_best(&b, v);

            raw = plain_value(best.key);
            token = raw == -INFINITY ? 0 : (int32_t)best.token;
        } else {
            few = few_allowed(row.draw.top_k, row.draw.temperature, V) &&
                  few_find<DRAW_UNITS>(&b, &scratch->few, v, row.draw, &width,
                                       [&](int i) { return logits[draw_at(draw_token(i))]; });
            if (!few) {
#pragma unroll
                for (int i = 0; i < DRAW_VALUES; i++)
                    if (draw_token(i) < (uint32_t)V)
                        scores[draw_token(i)] = v[i];
                block_sync(&b);
                token = draw_long(b, scores, row.draw, V);
            }
        }
    }
    if (b.warp == 0) {
        if (few)
            token = few_choose(&scratch->few, row.draw, b.lane);
        token = (int32_t)__reduce_max_sync(BLOCK_ALL, (uint32_t)(token + 1)) - 1;
        tell(token);
    } else {
        draw_total(&b, logits, units, &kept->total);
    }
    meanwhile();
    block_sync(&b);
    if (b.warp == 0 && b.lane == 0) {
        const struct logsum total = kept->total;

        if (row.sample || row.forced >= 0)
            raw = logits[draw_at(token)];
        kept->width = fminf(fmaxf(width, DRAW_WIDTH_LEAST), DRAW_WIDTH_MOST);
        end(token, row.sample ? logsum_logprob(total, raw) : raw - (total.max + logf(total.sum)));
    }
}

#endif
