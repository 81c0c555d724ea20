/* SPDX-License-Identifier: MIT
 *
 * Sampled and greedy rows, one block a row. Kept rows hold their scores in registers: 8 a thread.
 */
#include "kernels/cuda/choose.h"

#include "kernels/cuda/check.h"
#include "kernels/cuda/choose_few.cuh"
#include "kernels/cuda/choose_greatest.cuh"
#include "kernels/cuda/choose_plain.cuh"
#include "kernels/cuda/choose_row.cuh"
#include "kernels/cuda/launch.cuh"

enum { CHOOSE_SHARED_PLAIN = 24 * 1024 }; /* dynamic shared memory that needs no asking */

struct choose_full_args {
    struct cuda_rows rows;
    struct choose_rules rules;
    struct choose_plain_rows plain; /* units NULL: plain rows are another's */
    float *logits;                  /* (n, V) */
    const int32_t *active, *n;
    float *probabilities; /* (V) wanted of row r instead of a step; NULL = a step */
    int32_t r;
};

/* One thread: the row has its next token. */
static __device__ void choose_advance(const struct cuda_rows &rows, const struct choose_row &c,
                                      int32_t token, float logprob)
{
    struct cuda_row *row = &rows.row[c.r];
    int64_t at = (int64_t)c.r * rows.P + c.at.length;

    rows.tokens[at] = token;
    rows.logprobs[at] = logprob;
    row->token = token;
    row->position = c.at.length + 1;
    if (rules_after(&c.rules, &c.at, token) != RULES_RUNNING)
        row->finished = 1;
}

/* A plain row. */
static __device__ void choose_plain_row(const struct choose_full_args &a,
                                        const struct choose_row &c)
{
    int32_t count = product_units(a.plain.rules.vocabulary), i = blockIdx.x;
    const float4 *units = (const float4 *)a.plain.units + (size_t)i * count;
    const float eos = a.plain.special[2 * i], bos = a.plain.special[2 * i + 1];
    struct plain_choice choice;

    if (count > PLAIN_FEW)
        choice = choose_plain_block(a.plain.rules, units, count, (float *)choose_history, eos, bos,
                                    c.row.position, c.row.max_new);
    else if (threadIdx.x < 32)
        choice = choose_plain(a.plain.rules, units, count, eos, bos, c.row.position, c.row.max_new,
                              threadIdx.x);
    if (threadIdx.x == 0)
        plain_advance(a.rows, a.plain.rules, c.r, choice);
}

/* First warp: the unit in which the running sum of weights passes the target. */
static __device__ void choose_kept_unit(struct block *b, const struct choose_row &c)
{
    struct block_shared *shared = b->shared;
    int units = b->warps * 8, part = (units + 31) / 32, first = b->lane * part;
    uint64_t sum = 0, before, target;

    for (int u = first; u < first + part && u < units; u++)
        sum += shared->sums[u];
    before = block_scan(sum, b->lane);
    target = sampling_target(c.row.seed, (uint32_t)c.row.sequence, (uint32_t)c.at.length,
                             __shfl_sync(BLOCK_ALL, before, 31));
    if (target >= before || target < before - sum)
        return;
    before -= sum;
    for (int u = first; u < first + part && u < units; u++) {
        if (before + shared->sums[u] > target) {
            shared->unit = u;
            shared->rest = target - before;
            return;
        }
        before += shared->sums[u];
    }
}

/* The draw, in the order of ids; the thread that finds the token returns it, others -1. Merges the
 * units of the row on the way. */
static __device__ int32_t choose_kept_draw(struct block *b, const struct choose_row &c,
                                           const struct block_kept &scores, uint32_t threshold)
{
    struct block_shared *shared = b->shared;
    int32_t unit = threadIdx.x >> 2;
    uint64_t sum = 0;
    uint32_t hit;

#pragma unroll
    for (int i = 0; i < 8; i++)
        sum += scores.key[i] >= threshold ? block_weight_long(scores.weight[i]) : 0;
    sum += __shfl_xor_sync(BLOCK_ALL, sum, 1);
    sum += __shfl_xor_sync(BLOCK_ALL, sum, 2);
    if ((threadIdx.x & 3) == 0)
        shared->sums[unit] = sum;
    __syncthreads();
    if (b->warp == 0)
        choose_kept_unit(b, c);
    if (b->warp == 1)
        choose_kept_total(b, c);
    __syncthreads();
    if (b->warp != (int)shared->unit >> 3)
        return -1;
    if (unit == (int32_t)shared->unit)
#pragma unroll
        for (int i = 0; i < 8; i++)
            shared->weights[block_kept::token(i) & 31] =
                scores.key[i] >= threshold ? scores.weight[i] : 0;
    __syncwarp();
    sum = block_scan(block_weight_long(shared->weights[b->lane]), b->lane);
    hit = __ballot_sync(BLOCK_ALL, sum > shared->rest);
    return b->lane == __ffs(hit) - 1 ? (int32_t)shared->unit * 32 + b->lane : -1;
}

/* Greedy: the best token, in one thread. */
static __device__ int32_t choose_kept_best(struct block *b, const struct choose_row &c,
                                           struct block_best best)
{
    if (b->warp == 0)
        choose_kept_total(b, c);
    return threadIdx.x == 0 ? (int32_t)best.token : -1;
}

/* What the row's draw goes by. */
static __device__ __forceinline__ struct few_draw choose_few_of(const struct choose_row &c)
{
    struct few_draw draw;

    draw.random = philox_draw(c.row.seed, (uint32_t)c.row.sequence, (uint32_t)c.at.length);
    draw.top_k = c.row.top_k;
    draw.top_p = c.row.top_p;
    draw.temperature = c.row.temperature;
    return draw;
}

/* The short way's last part: the lane that finds the token returns it, all others -1. total():
 * called by the second warp, for work of its own. */
template <typename Total>
static __device__ __forceinline__ int32_t choose_few_draw(struct block *b, struct few_shared *few,
                                                          const struct few_draw &draw, Total total)
{
    int32_t token = -1;

    if (b->warp == 0)
        token = few_choose(few, draw, b->lane);
    if (b->warp == 1)
        total();
    __syncthreads();
    return token;
}

static __device__ __forceinline__ bool choose_few_allowed(const struct choose_row &c)
{
    return few_allowed(c.row.top_k, c.row.temperature, c.rules.vocabulary);
}

/* The key from which scores may be drawn. lowest: nothing below it weighs anything. */
template <typename Scores>
static __device__ uint32_t choose_threshold(struct block *b, const struct choose_row &c,
                                            const Scores &scores, uint32_t lowest,
                                            uint32_t greatest)
{
    return block_threshold(b, scores, c.rules.vocabulary, c.row.top_k, c.row.top_p, lowest,
                           greatest);
}

template <typename Scores>
static __device__ void choose_write_probabilities(struct block *b, const Scores &scores,
                                                  uint32_t threshold, uint32_t V, float *out)
{
    uint64_t total = 0;

    scores.each([&](uint32_t key, uint32_t, auto weight) {
        total += key >= threshold ? block_weight_long(weight()) : 0;
    });
    total = block_add(b, 0, total).b;
    scores.each([&](uint32_t key, uint32_t token, auto weight) {
        if (token < V)
            out[token] = key >= threshold
                             ? (float)((double)block_weight_long(weight()) / (double)total)
                             : 0.0f;
    });
}

/* No weights to draw by: one token alone. out may be NULL. */
static __device__ void choose_write_certain(uint32_t token, uint32_t V, float *out)
{
    for (uint32_t t = threadIdx.x; out && t < V; t += blockDim.x)
        out[t] = t == token ? 1.0f : 0.0f;
}

template <int THREADS, int BLOCKS>
static __global__ void __launch_bounds__(THREADS, BLOCKS)
    choose_full_kept(const __grid_constant__ struct choose_full_args a)
{
    __shared__ struct block_shared shared;
    __shared__ struct few_shared few;
    const int32_t V = a.rules.rules.vocabulary;
    const float *logits = a.logits + (int64_t)blockIdx.x * V;
    struct block b = block_start(&shared);
    struct block_kept scores;
    struct block_best best;
    struct choose_row c;
    struct few_draw draw;
    struct logsum sum;
    bool sample, found = false;
    int32_t r, token;
    float v[8];

    if (threadIdx.x == 0)
        few.count = 0;
    launch_wait();
    launch_next();
    choose_load(logits, V, threadIdx.x >> 2, v); /* before anything says that the row exists */
    r = a.probabilities ? a.r : a.active[blockIdx.x];
    if (!a.probabilities && blockIdx.x >= *a.n)
        return;
    c = choose_row_start(a.rows, a.rules, r);
    sample = a.probabilities || c.row.flags & CUDA_ROW_SAMPLE;
    if (!a.probabilities && (c.row.finished || c.row.flags & CUDA_ROW_BEAM))
        return;
    if (!a.probabilities && !(c.row.flags & CUDA_ROW_FULL)) {
        if (a.plain.units)
            choose_plain_row(a, c);
        return;
    }
    choose_kept_sets(&b, c);
    sum = logsum_unit(v);
    if ((threadIdx.x & 3) == 0)
        shared.units[threadIdx.x >> 2] = sum;
    if (sample && !a.probabilities && choose_few_allowed(c)) {
        float width = FEW_WIDTH;

        choose_kept_rules(&b, c, v);
        draw = choose_few_of(c);
        found = few_find<1>(&b, &few, v, draw, &width, [&](int i) {
            float score = v[0];

#pragma unroll
            for (int j = 1; j < 8; j++)
                score = i == j ? v[j] : score;
            return score;
        });
    }
    if (found) {
        token = choose_few_draw(&b, &few, draw, [&] { choose_kept_total(&b, c); });
    } else {
        choose_load(logits, V, threadIdx.x >> 2, v); /* not kept: that would cost registers */
        choose_kept_rules(&b, c, v);
#pragma unroll
        for (int i = 0; i < 8; i++)
            v[i] = sample ? __fdiv_rn(v[i], c.row.temperature) : v[i] + 0.0f;
        best = choose_kept_keys(&b, v, V, &scores);
        if (sample && isfinite(block_value(best.key))) {
            uint32_t threshold;

#pragma unroll
            for (int i = 0; i < 8; i++)
                scores.weight[i] = scores.key[i] ? block_weight(v[i], block_value(best.key)) : 0;
            threshold = choose_threshold(&b, c, scores, block_kept::lowest(block_value(best.key)),
                                         best.key);
            if (a.probabilities) {
                choose_write_probabilities(&b, scores, threshold, V, a.probabilities);
                return;
            }
            token = choose_kept_draw(&b, c, scores, threshold);
        } else {
            choose_write_certain(best.token, V, a.probabilities);
            token = choose_kept_best(&b, c, best);
        }
    }
    if (token >= 0 && !a.probabilities)
        choose_advance(a.rows, c, token, logsum_logprob(shared.total, logits[token]));
}

/* The best score; *mine: the key of the thread's own. */
static __device__ struct block_best choose_read_best(struct block *b, const float *scores,
                                                     int32_t V, bool sample, uint32_t *mine)
{
    struct block_best best = {0, UINT32_MAX};

#pragma unroll 4
    for (int32_t t = threadIdx.x; t < V; t += blockDim.x) {
        uint32_t key = sampling_key(sample ? scores[t] : scores[t] + 0.0f);

        if (best.token == UINT32_MAX || key > best.key) {
            best.key = key;
            best.token = (uint32_t)t;
        }
    }
    *mine = best.key;
    return block_find_best(b, best);
}

/* False: nothing was found, take the long way. */
static __device__ bool choose_read_few(struct block *b, const struct choose_row &c,
                                       struct few_shared *few, const struct few_draw &draw,
                                       const float *scores, uint32_t mine, uint32_t greatest)
{
    int k = draw.top_k;
    uint32_t floor;
    float guard;

    if (!block_floor(mine, greatest, k, k + k / 4 + 16, &floor))
        return false;
    guard = few_guard(block_value(floor));
#pragma unroll 4
    for (int32_t t = threadIdx.x; t < c.rules.vocabulary; t += blockDim.x)
        if (scores[t] >= guard)
            few_put(few, atomicAdd(&few->count, 1u), scores[t], (uint32_t)t);
    __syncthreads();
    if (few->count > FEW_MOST)
        return false;
    few_order(b, few, few->count);
    few_compare(b, few, few->count, block_value(greatest), draw);
    return true;
}

static __global__ void __launch_bounds__(CHOOSE_READ_THREADS, 1)
    choose_full_read(const __grid_constant__ struct choose_full_args a)
{
    __shared__ struct block_shared shared;
    __shared__ struct few_shared few;
    const int32_t V = a.rules.rules.vocabulary;
    float *logits = a.logits + (int64_t)blockIdx.x * V;
    struct block b = block_start(&shared);
    struct block_read scores;
    struct block_best best;
    struct choose_row c;
    struct few_draw draw;
    bool sample, writer = threadIdx.x == 0;
    struct logsum sum;
    int32_t token;
    uint32_t mine;
    float logit;

    if (threadIdx.x == 0)
        few.count = 0;
    launch_wait();
    launch_next();
    if (!a.probabilities && blockIdx.x >= *a.n)
        return;
    c = choose_row_start(a.rows, a.rules, a.probabilities ? a.r : a.active[blockIdx.x]);
    sample = a.probabilities || c.row.flags & CUDA_ROW_SAMPLE;
    if (!a.probabilities && (c.row.finished || c.row.flags & CUDA_ROW_BEAM))
        return;
    if (!a.probabilities && !(c.row.flags & CUDA_ROW_FULL)) {
        if (a.plain.units)
            choose_plain_row(a, c);
        return;
    }
    sum = choose_read_logsum(&b, logits, V);
    choose_read_keep(c, logits);
    scores.score = logits;
    scores.V = V;
    scores.temperature = sample ? c.row.temperature : 1.0f;
    if (c.forced >= 0) {
        token = rules_has(c.rules.suppressed, c.forced) ? 0 : c.forced;
        choose_write_certain((uint32_t)token, V, a.probabilities);
        logit = logits[token];
    } else {
        choose_read_rules(c, logits,
                          [&](float x) { return sampling_penalise(x, c.row.repetition_penalty); });
        best = choose_read_best(&b, logits, V, sample, &mine);
        scores.max = __fdiv_rn(block_value(best.key), scores.temperature);
        token = (int32_t)best.token;
        draw = choose_few_of(c);
        if (sample && !a.probabilities && choose_few_allowed(c) &&
            choose_read_few(&b, c, &few, draw, logits, mine, best.key)) {
            token = choose_few_draw(&b, &few, draw, [] {});
            writer = token >= 0;
        } else if (sample && isfinite(scores.max)) {
            uint32_t threshold =
                scores.with_equals(choose_threshold(&b, c, scores, scores.lowest(), best.key));

            if (a.probabilities) {
                choose_write_probabilities(&b, scores, threshold, V, a.probabilities);
                return;
            }
            token = block_draw(&b, scores, threshold, draw.random);
        } else {
            choose_write_certain(best.token, V, a.probabilities);
        }
        logit = writer ? logits[token] : 0.0f;
        for (int32_t i = 0; writer && c.penalty && i <= c.at.length; i++)
            if (choose_history[i] == token)
                logit = c.raw[i];
    }
    if (writer && !a.probabilities)
        choose_advance(a.rows, c, token, logsum_logprob(sum, logit));
}

static cudaError_t choose_launch(struct choose_full_args args, int32_t n_most, bool pdl,
                                 cudaStream_t stream)
{
    /* a kernel and its block by the vocabulary alone: a row's bits do not depend on how many there
     * are */
    int32_t V = args.rules.rules.vocabulary;
    size_t shared = choose_history_bytes(args.rows.P), terms = product_units(V) * sizeof(float);
    void (*kernel)(struct choose_full_args) = choose_full_read;
    int threads = CHOOSE_READ_THREADS;

    if (n_most <= 0)
        return cudaSuccess;
    if (V <= CHOOSE_KEPT) {
        threads = choose_kept_threads(V);
        kernel = threads <= 512 ? choose_full_kept<512, 3> : choose_full_kept<1024, 1>;
    }
    if (args.plain.units && terms > shared)
        shared = terms;
    if (shared > CHOOSE_SHARED_PLAIN)
        CUDA_PASS(cudaFuncSetAttribute((const void *)kernel,
                                       cudaFuncAttributeMaxDynamicSharedMemorySize, (int)shared));
    return launch(kernel, dim3(n_most), threads, shared, pdl, stream, args);
}

cudaError_t choose_full(struct cuda_rows rows, struct choose_rules rules,
                        const struct choose_plain_rows *plain, float *logits, const int32_t *active,
                        const int32_t *n, int32_t n_most, bool pdl, cudaStream_t stream)
{
    struct choose_full_args args = {rows, rules, {}, logits, active, n, NULL, 0};

    if (plain)
        args.plain = *plain;
    return choose_launch(args, n_most, pdl, stream);
}

cudaError_t choose_probabilities(struct cuda_rows rows, struct choose_rules rules, int32_t r,
                                 float *logits, float *probabilities, cudaStream_t stream)
{
    struct choose_full_args args = {rows, rules, {}, logits, NULL, NULL, probabilities, r};

    return choose_launch(args, 1, false, stream);
}
