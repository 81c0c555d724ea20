/* SPDX-License-Identifier: MIT
 *
 * choose_row: what sampling and beam searches share of one row: its logits, their logsum, and the
 * rules of kernels/search/rules.h, once for rows that stay in registers (V <= CHOOSE_KEPT) and once
 * for rows that are read from memory again, where the scores are written over the logits.
 * Every function is called by all threads of the row's block unless it says otherwise.
 */
#ifndef PGPT_KERNELS_CUDA_CHOOSE_ROW_CUH
#define PGPT_KERNELS_CUDA_CHOOSE_ROW_CUH

#include "kernels/cuda/choose.h"
#include "kernels/cuda/choose_block.cuh"

/* One row under the rules. */
struct choose_row {
    int32_t r;
    struct cuda_row row;
    struct rules rules;
    struct rules_row at;
    int32_t forced;
    bool penalty, phrases; /* there are such that matter now */
    float *raw; /* (P + 1) shared: for the tokens of the history, their logits as they were */
};

enum { CHOOSE_READ_THREADS = 1024 };

/* Threads for a row that stays in registers: 4 for each 32 columns, whole warps, two at least. */
static inline int choose_kept_threads(int32_t V)
{
    int threads = (rules_words(V) * 4 + 31) / 32 * 32;

    return threads < 64 ? 64 : threads;
}

/* In shared memory: input_ids (P + 1), then choose_row.raw (P + 1). */
extern __shared__ int32_t choose_history[];

static size_t choose_history_bytes(int32_t P)
{
    return (size_t)(P + 1) * (sizeof(int32_t) + sizeof(float));
}

/* All threads; ends with a barrier when there is a history. */
static __device__ __forceinline__ struct choose_row
choose_row_start(const struct cuda_rows &rows, const struct choose_rules &rules, int32_t r)
{
    struct choose_row c;

    c.r = r;
    c.row = rows.row[r];
    c.rules = rules.rules;
    c.at.length = c.row.position;
    c.at.min_new = c.row.min_new;
    c.at.max_new = c.row.max_new;
    c.at.repetition_penalty = c.row.repetition_penalty;
    c.at.seen = NULL;
    c.at.history = choose_history;
    c.forced = rules_forced(&c.rules, &c.at);
    c.penalty = c.forced < 0 && c.row.repetition_penalty != 1.0f;
    c.phrases = c.forced < 0 && c.rules.phrase_count > 0;
    c.raw = (float *)(choose_history + rows.P + 1);
    if (c.penalty || c.phrases) {
        const int32_t *tokens = rows.tokens + (int64_t)r * rows.P;

        for (int32_t i = threadIdx.x; i <= c.at.length; i += blockDim.x)
            choose_history[i] = i ? tokens[i - 1] : rules.start_token;
        __syncthreads();
    }
    return c;
}

/* f(token) for each token that would complete a bad phrase; the threads share the phrases. */
template <typename F>
static __device__ __forceinline__ void choose_each_phrase(const struct choose_row &c, F f)
{
    int32_t first = 0;

    for (int32_t p = 0; p < c.rules.phrase_count; p++) {
        if (p % (int32_t)blockDim.x == (int32_t)threadIdx.x) {
            int32_t token = rules_phrase(&c.rules, &c.at, p, first);

            if (token >= 0)
                f(token);
        }
        first += c.rules.phrase_sizes[p];
    }
}

/* Columns of the thread's part of a unit, in logsum_unit()'s order; -inf past the vocabulary. */
static __device__ __forceinline__ void choose_load(const float *logits, int32_t V, int32_t unit,
                                                   float v[8])
{
#pragma unroll
    for (int i = 0; i < 8; i += 2) {
        int32_t column = unit * 32 + (threadIdx.x & 3) * 2 + i * 4;

        v[i] = v[i + 1] = -INFINITY;
        if (V % 2 == 0 && column < V) { /* rows start at multiples of 8 bytes */
            float2 pair = *(const float2 *)(logits + column);

            v[i] = pair.x;
            v[i + 1] = pair.y;
        } else {
            if (column < V)
                v[i] = logits[column];
            if (column + 1 < V)
                v[i + 1] = logits[column + 1];
        }
    }
}

/* ---- rows that stay in registers --------------------------------------------------------------
 */

/* Bitmaps of what the history says, when it matters. */
static __device__ void choose_kept_sets(struct block *b, const struct choose_row &c)
{
    if (!c.penalty && !c.phrases)
        return;
    for (int u = threadIdx.x; u < BLOCK_UNITS; u += blockDim.x)
        b->shared->seen[u] = b->shared->phrases[u] = 0;
    __syncthreads();
    if (c.penalty)
        for (int32_t i = threadIdx.x; i <= c.at.length; i += blockDim.x)
            if ((uint32_t)choose_history[i] < (uint32_t)c.rules.vocabulary)
                atomicOr(&b->shared->seen[choose_history[i] >> 5], 1u << (choose_history[i] & 31));
    if (c.phrases)
        choose_each_phrase(c, [&](int32_t token) {
            atomicOr(&b->shared->phrases[token >> 5], 1u << (token & 31));
        });
    __syncthreads();
}

/* v: the thread's scores, processed in place. */
static __device__ __forceinline__ void choose_kept_rules(struct block *b,
                                                         const struct choose_row &c, float v[8])
{
    int32_t unit = threadIdx.x >> 2;
    uint32_t banned = 0, seen = 0, phrases = 0;
    struct rules rules = c.rules;
    struct rules_row at = c.at;

    if (c.forced >= 0) {
#pragma unroll
        for (int i = 0; i < 8; i++)
            if (block_kept::token(i) < (uint32_t)c.rules.vocabulary)
                v[i] = rules_score(&c.rules, &c.at, c.forced, block_kept::token(i), v[i]);
        return;
    }
    if (c.rules.banned && unit < rules_words(c.rules.vocabulary))
        banned = c.rules.banned[unit];
    if (c.penalty)
        seen = b->shared->seen[unit];
    if (c.phrases)
        phrases = b->shared->phrases[unit];
    rules.eos_token -= unit * 32; /* the unit's columns are called 0..31 */
    if (!(banned | seen | phrases) && ((uint32_t)rules.eos_token >= 32 || at.length >= at.min_new))
        return; /* no rule speaks of this unit */
    rules.banned = &banned;
    at.seen = &seen;
#pragma unroll
    for (int i = 0; i < 8; i++) {
        int32_t column = (threadIdx.x & 3) * 2 + (i >> 1) * 8 + (i & 1);

        v[i] = rules_score(&rules, &at, -1, column, v[i]);
        if (phrases >> column & 1)
            v[i] = -INFINITY;
    }
}

/* One warp: max and sum of the row, from its units, into shared->total. */
static __device__ void choose_kept_total(struct block *b, const struct choose_row &c)
{
    struct logsum total = logsum_units(b->shared->units, rules_words(c.rules.vocabulary), b->lane);

    if (b->lane == 0)
        b->shared->total = total;
}

/* scores.key from processed scores; returns the best. */
static __device__ __forceinline__ struct block_best
choose_kept_keys(struct block *b, const float v[8], int32_t V, struct block_kept *scores)
{
    struct block_best best = {0, UINT32_MAX};

#pragma unroll
    for (int i = 0; i < 8; i++) {
        uint32_t token = block_kept::token(i);

        scores->key[i] = token < (uint32_t)V ? sampling_key(v[i]) : 0;
        if (token < (uint32_t)V && (best.token == UINT32_MAX || scores->key[i] > best.key)) {
            best.key = scores->key[i];
            best.token = token;
        }
    }
    return block_find_best(b, best);
}

/* ---- rows that are read again ------------------------------------------------------------------
 */

/* Max and sum of a row of any length, in every thread. */
static __device__ struct logsum choose_read_logsum(struct block *b, const float *logits, int32_t V)
{
    struct block_shared *shared = b->shared;
    int32_t units = rules_words(V), mine = threadIdx.x >> 2;
    struct logsum total = {-INFINITY, 0.0f};
    float v[8];

#pragma unroll 8
    for (int32_t t = threadIdx.x; t < V; t += CHOOSE_READ_THREADS)
        total.max = fmaxf(total.max, logits[t]);
    choose_load(logits, V, mine, v);
    total.max = block_value(block_greatest_key(b, sampling_key(total.max)));
    for (int32_t first = 0, turn = 0; first < units; first += BLOCK_UNITS, turn ^= 1) {
        struct logsum unit = logsum_unit(v);

        if ((threadIdx.x & 3) == 0)
            shared->scaled[turn][mine] = logsum_scaled(unit, total.max);
        choose_load(logits, V, first + BLOCK_UNITS + mine, v);
        __syncthreads();
        if (b->warp == 0)
            for (int32_t u = b->lane; u < BLOCK_UNITS && first + u < units; u += 32)
                total.sum = __fadd_rn(total.sum, shared->scaled[turn][u]);
    }
    if (b->warp == 0) {
        total.sum = logsum_warp_add(total.sum);
        if (b->lane == 0)
            shared->total = total;
    }
    __syncthreads();
    return shared->total;
}

/* The history's logits before anything is written over them. Ends with a barrier. */
static __device__ void choose_read_keep(const struct choose_row &c, const float *logits)
{
    if (c.penalty)
        for (int32_t i = threadIdx.x; i <= c.at.length; i += blockDim.x)
            if ((uint32_t)choose_history[i] < (uint32_t)c.rules.vocabulary)
                c.raw[i] = logits[choose_history[i]];
    __syncthreads();
}

/* scores (V): those of the history become f(their logit); then what may not be chosen
 * becomes -inf. No token is forced. Ends with a barrier. */
template <typename F>
static __device__ void choose_read_rules(const struct choose_row &c, float *scores, F f)
{
    if (c.penalty)
        for (int32_t i = threadIdx.x; i <= c.at.length; i += blockDim.x) {
            uint32_t token = (uint32_t)choose_history[i]; /* met twice, it gets the same again */

            if (token < (uint32_t)c.rules.vocabulary)
                scores[token] = f(c.raw[i]);
        }
    __syncthreads();
    if (c.rules.banned)
        for (int32_t u = threadIdx.x; u < rules_words(c.rules.vocabulary); u += blockDim.x)
            for (uint32_t set = c.rules.banned[u]; set; set &= set - 1)
                scores[u * 32 + __ffs(set) - 1] = -INFINITY;
    if (c.at.length < c.at.min_new && threadIdx.x == 0)
        scores[c.rules.eos_token] = -INFINITY;
    if (c.phrases)
        choose_each_phrase(c, [&](int32_t token) { scores[token] = -INFINITY; });
    __syncthreads();
}

#endif
