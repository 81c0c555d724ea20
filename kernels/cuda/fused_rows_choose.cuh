/* SPDX-License-Identifier: MIT
 *
 * fused_rows_choose: the next token of a sampled row inside the kernel of fused_rows.h: the row's
 * logits lie in global memory, where other blocks have just put them, and a group of WARPS warps
 * chooses, by what choose.h defines: choose_draw.cuh, or by a long way with keys and weights in
 * registers. The same bits as choose.h's kernels. For fused_rows_sampled.cuh.
 */
#ifndef PGPT_KERNELS_CUDA_FUSED_ROWS_CHOOSE_CUH
#define PGPT_KERNELS_CUDA_FUSED_ROWS_CHOOSE_CUH

#include "kernels/cuda/choose_draw.cuh"

/* What the launch begins with of a sampled row, in shared memory. */
struct rows_asked {
    uint64_t seed;
    int32_t sequence, top_k;
    float top_p, temperature;
    bool no_first; /* the first token may never be chosen */
};

static __device__ __forceinline__ struct rows_asked rows_ask(const struct cuda_rules &rules,
                                                             const struct cuda_row &of)
{
    struct rows_asked asked;

    asked.seed = of.seed;
    asked.sequence = of.sequence;
    asked.top_k = of.top_k;
    asked.top_p = of.top_p;
    asked.temperature = of.temperature;
    asked.no_first = rules_has(rules.banned, 0);
    return asked;
}

/* The row at `position`, which it has not finished before. thread: which this is, of the group. */
template <int WARPS>
static __device__ __forceinline__ draw_row<WARPS>
rows_draw_begin(const struct rows_asked &asked, const struct cuda_rules &rules, int32_t position,
                int32_t min_new, int32_t max_new, int thread)
{
    struct draw_row<WARPS> row;

    row.thread = thread;
    row.sample = true;
    row.draw.random = philox_draw(asked.seed, (uint32_t)asked.sequence, (uint32_t)position);
    row.draw.top_k = asked.top_k;
    row.draw.top_p = asked.top_p;
    row.draw.temperature = asked.temperature;
    row.position = position;
    row.max_new = max_new;
    row.forced = draw_forced(rules, row);
    row.each = draw_each<WARPS>(rules.vocabulary);
    row.off = draw_no_eos(rules, row, position < min_new) | (asked.no_first && thread == 0);
    return row;
}

/* A float out of L2, without a branch. */
static __device__ __forceinline__ void rows_get_if(float *to, const float *from, bool in)
{
    asm volatile("{\n\t.reg .pred p;\n\tsetp.ne.b32 p, %2, 0;\n\t"
                 "@p ld.global.cg.f32 %0, [%1];\n\t}"
                 : "+f"(*to)
                 : "l"(from), "r"((int)in)
                 : "memory");
}

/* The thread's share of the row's logits (units, 32), which are -inf behind the vocabulary and for
 * what may never be chosen, but for the first token; -inf for what else may not be. They come from
 * L2: this block's L1 may have what lay there a step ago. */
template <int WARPS>
static __device__ __forceinline__ void rows_draw_load(float (&v)[draw_shape<WARPS>::VALUES],
                                                      const float *logits, int units,
                                                      const struct draw_row<WARPS> &row)
{
    const int first = (row.thread >> 5) * row.each, count = min(row.each, units - first);
    const float *from = logits + first * PRODUCT_UNIT + (row.thread & 31);

#pragma unroll
    for (int i = 0; i < draw_shape<WARPS>::VALUES; i++) {
        v[i] = -INFINITY;
        rows_get_if(&v[i], from + i * PRODUCT_UNIT, i < count);
    }
    if (row.off)
#pragma unroll
        for (int i = 0; i < draw_shape<WARPS>::VALUES; i++)
            v[i] = row.off >> i & 1 ? -INFINITY : v[i];
}

/* Scores by the temperature that stay in registers; key 0, below every score's, and no weight where
 * a thread has no token. */
template <int WARPS> struct rows_scores {
    uint32_t key[draw_shape<WARPS>::VALUES], weight[draw_shape<WARPS>::VALUES];
    int thread, units; /* of the group; of a warp */

    template <typename F> __device__ __forceinline__ void each(F f) const
    {
#pragma unroll
        for (int i = 0; i < draw_shape<WARPS>::VALUES; i++)
            f(key[i], draw_token(thread, units, i), [&] { return weight[i]; });
    }
};

/* The draw in the order of ids, by 64 random bits, among what reaches the threshold: the warp by
 * the sums of all, its unit, the lane. The token, in all threads. */
template <int WARPS>
static __device__ __forceinline__ int32_t rows_draw_pick(struct block *b,
                                                         const struct rows_scores<WARPS> &scores,
                                                         uint32_t threshold, uint64_t random)
{
    uint64_t mine = 0, left;
    uint4 all;
    int hit;

    scores.each([&](uint32_t key, uint32_t, auto weight) {
        mine += key >= threshold ? block_weight_long(weight()) : 0;
    });
    mine = draw_sum((uint32_t)mine & 0xffffu, (uint32_t)(mine >> 16));
    all = block_gather(b, make_uint4((uint32_t)mine, (uint32_t)(mine >> 32), 0, 0));
    mine = block_scan((uint64_t)all.y << 32 | all.x, b->lane);
    left = sampling_scale(random, __shfl_sync(BLOCK_ALL, mine, 31));
    hit = __ffs(__ballot_sync(BLOCK_ALL, mine > left)) - 1;
    if (b->warp == hit) {
        const uint64_t before = __shfl_sync(BLOCK_ALL, mine, hit ? hit - 1 : 0);
        int unit = 0;

        left -= hit ? before : 0;
#pragma unroll
        for (int i = 0; i < draw_shape<WARPS>::VALUES; i++) {
            uint64_t sum;

            mine = scores.key[i] >= threshold ? block_weight_long(scores.weight[i]) : 0;
            sum = draw_sum((uint32_t)mine & 0xffffu, (uint32_t)(mine >> 16));
            unit = i;
            if (left < sum)
                break;
            left -= sum;
        }
        mine = block_scan(mine, b->lane);
        hit = __ffs(__ballot_sync(BLOCK_ALL, mine > left)) - 1;
        if (b->lane == hit)
            b->shared->unit = draw_token(scores.thread, scores.units, unit);
    }
    block_sync(b);
    return (int32_t)b->shared->unit;
}

/* Sampling's long way; the token, in all threads. Not inlined: it is seldom gone, and the way past
 * it is to stay short; so it reads the row again. */
template <int WARPS>
static __device__ __noinline__ int32_t rows_draw_long(struct block_shared *shared, int barrier,
                                                      const float *logits,
                                                      struct draw_row<WARPS> row, int32_t V)
{
    struct block b = {shared, row.thread & 31, row.thread >> 5, WARPS, 0, barrier};
    struct block_best best = {0, UINT32_MAX};
    struct rows_scores<WARPS> scores;
    float z[draw_shape<WARPS>::VALUES], most;

    if (row.thread == 0)
        shared->top_k.count = shared->top_p.count = 0;
    rows_draw_load(z, logits, product_units(V), row);
    scores.thread = row.thread;
    scores.units = row.each;
#pragma unroll
    for (int i = 0; i < draw_shape<WARPS>::VALUES; i++) {
        const uint32_t token = draw_token(row.thread, row.each, i);

        z[i] = __fdiv_rn(z[i], row.draw.temperature);
        scores.key[i] = i < row.each && token < (uint32_t)V ? sampling_key(z[i]) : 0;
        if (scores.key[i] > best.key)
            best = {scores.key[i], token};
    }
    best = block_find_best(&b, best);
    most = block_value(best.key);
    if (!isfinite(most))
        return (int32_t)best.token;
#pragma unroll
    for (int i = 0; i < draw_shape<WARPS>::VALUES; i++)
        scores.weight[i] = scores.key[i] ? block_weight(z[i], most) : 0;
    return rows_draw_pick(&b, scores,
                          block_threshold(&b, scores, V, row.draw.top_k, row.draw.top_p,
                                          block_kept::lowest(most), best.key),
                          row.draw.random);
}

/* The row's next token, when its logits are there and none is forced; in the first warp alone,
 * others do not wait for it and get what does not matter. Uses barrier `barrier`; what lies in
 * shared and few may be read until the token is known. */
template <int WARPS>
static __device__ __forceinline__ int32_t rows_draw_run(struct block_shared *shared,
                                                        struct draw_few<WARPS> *few,
                                                        struct draw_kept *kept, int barrier,
                                                        const float *logits, int32_t V,
                                                        const struct draw_row<WARPS> &row)
{
    struct block b = {shared, row.thread & 31, row.thread >> 5, WARPS, 0, barrier};
    int32_t token;

    if (few_allowed(row.draw.top_k, row.draw.temperature, V)) {
        float v[draw_shape<WARPS>::VALUES];

        rows_draw_load(v, logits, product_units(V), row);
        if (draw_short(&b, few, kept, v, row, &token))
            return token;
        block_sync(&b); /* what the short way has gathered was read */
    }
    return rows_draw_long(shared, barrier, logits, row, V);
}

#endif
