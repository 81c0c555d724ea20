/* SPDX-License-Identifier: MIT
 *
 * Beam searches: one block a beam finds its best continuations, then one block a group merges them,
 * takes the step of kernels/search/beam.h and moves the histories to the beams that go on.
 */
#include "kernels/cuda/check.h"
#include "kernels/cuda/choose.h"
#include "kernels/cuda/choose_greatest.cuh"
#include "kernels/cuda/choose_row.cuh"
#include "kernels/cuda/launch.cuh"

enum { CHOOSE_MERGE_THREADS = 128 };

struct choose_beams_args {
    struct cuda_rows rows;
    struct choose_rules rules;
    float *logits; /* (n, V) */
    const int32_t *groups, *count, *place;
    struct beam_candidate *work; /* (count, BEAM_MAX, BEAM_CANDIDATES) the best of each row */
};

/* The block's beam and what it needs of its group. */
struct choose_beam {
    int32_t beam, want;
    float running;
    float *logits;              /* (V) */
    struct beam_candidate *out; /* (want) */
};

/* False: this block has no beam to look at. */
static __device__ bool choose_beam_start(const struct choose_beams_args &a, struct choose_beam *me,
                                         struct choose_row *row)
{
    const struct cuda_beam_group *group;
    int32_t r;

    if ((int32_t)blockIdx.y >= *a.count)
        return false;
    group = &a.rows.groups[a.groups[blockIdx.y]];
    if (group->finished || (int32_t)blockIdx.x >= group->num_beams)
        return false;
    me->beam = blockIdx.x;
    me->want = 2 * group->num_beams;
    me->running = group->state.running[me->beam];
    r = group->rows[me->beam];
    me->logits = a.logits + (int64_t)a.place[r] * a.rules.rules.vocabulary;
    me->out = a.work + (blockIdx.y * BEAM_MAX + me->beam) * BEAM_CANDIDATES;
    *row = choose_row_start(a.rows, a.rules, r);
    return true;
}

/* The best `want` of the list, in beam_before()'s order. */
static __device__ void choose_beam_write(struct block *b, const struct choose_beam &me)
{
    const struct block_list *list = &b->shared->top_k;
    struct beam_candidate candidate = {-INFINITY, me.beam, 0};
    int32_t rank = b->lane, count = (int32_t)list->count;

    if (b->warp)
        return;
    if (b->lane < count) {
        uint32_t key = list->key[b->lane], token = list->other[b->lane];

        rank = 0;
        for (int32_t i = 0; i < count; i++)
            rank += list->key[i] > key || (list->key[i] == key && list->other[i] < token);
        candidate.score = block_value(key);
        candidate.token = (int32_t)token;
    }
    if (rank < me.want)
        me.out[rank] = candidate;
}

template <int THREADS, int BLOCKS>
static __global__ void __launch_bounds__(THREADS, BLOCKS)
    choose_beams_kept(const __grid_constant__ struct choose_beams_args a)
{
    __shared__ struct block_shared shared;
    const int32_t V = a.rules.rules.vocabulary;
    struct block b = block_start(&shared);
    struct block_kept scores;
    struct block_best best;
    struct choose_beam me;
    struct choose_row c;
    struct logsum sum;
    float v[8], log_sum;
    uint32_t mine = 0;

    launch_wait();
    launch_next();
    if (!choose_beam_start(a, &me, &c))
        return;
    choose_load(me.logits, V, threadIdx.x >> 2, v);
    choose_kept_sets(&b, c);
    sum = logsum_unit(v);
    if ((threadIdx.x & 3) == 0)
        shared.units[threadIdx.x >> 2] = sum;
    __syncthreads();
    if (b.warp == 0)
        choose_kept_total(&b, c);
    __syncthreads();
    sum = shared.total;
    log_sum = logf(sum.sum);
#pragma unroll
    for (int i = 0; i < 8; i++)
        v[i] = __fsub_rn(__fsub_rn(v[i], sum.max), log_sum);
    choose_kept_rules(&b, c, v);
#pragma unroll
    for (int i = 0; i < 8; i++) /* + 0: no -0, which has a key of its own */
        v[i] = __fadd_rn(__fadd_rn(v[i], me.running), 0.0f);
    best = choose_kept_keys(&b, v, V, &scores);
#pragma unroll
    for (int i = 0; i < 8; i++)
        mine = max(mine, scores.key[i]);
    block_greatest(&b, scores, (uint32_t)me.want, (uint32_t)V, best.key, mine);
    choose_beam_write(&b, me);
}

static __global__ void __launch_bounds__(CHOOSE_READ_THREADS, 1)
    choose_beams_read(const __grid_constant__ struct choose_beams_args a)
{
    __shared__ struct block_shared shared;
    const int32_t V = a.rules.rules.vocabulary;
    struct block b = block_start(&shared);
    struct block_read scores;
    struct block_best best = {0, UINT32_MAX};
    struct choose_beam me;
    struct choose_row c;
    struct logsum sum;
    float log_sum;
    uint32_t mine;

    launch_wait();
    launch_next();
    if (!choose_beam_start(a, &me, &c))
        return;
    sum = choose_read_logsum(&b, me.logits, V);
    log_sum = logf(sum.sum);
    choose_read_keep(c, me.logits);
    for (int32_t t = threadIdx.x; t < V; t += blockDim.x) {
        float score = __fsub_rn(__fsub_rn(me.logits[t], sum.max), log_sum);

        if (c.forced >= 0)
            score = rules_score(&c.rules, &c.at, c.forced, t, score);
        me.logits[t] = __fadd_rn(__fadd_rn(score, me.running), 0.0f);
    }
    __syncthreads();
    if (c.forced < 0)
        choose_read_rules(c, me.logits, [&](float logit) {
            float score = __fsub_rn(__fsub_rn(logit, sum.max), log_sum);

            score = sampling_penalise(score, c.row.repetition_penalty);
            return __fadd_rn(__fadd_rn(score, me.running), 0.0f);
        });
    scores.score = me.logits;
    scores.V = V;
    scores.temperature = 1.0f;
    scores.each([&](uint32_t key, uint32_t token, auto) {
        if (best.token == UINT32_MAX || key > best.key) {
            best.key = key;
            best.token = token;
        }
    });
    mine = best.key;
    best = block_find_best(&b, best);
    block_greatest(&b, scores, (uint32_t)me.want, (uint32_t)V, best.key, mine);
    choose_beam_write(&b, me);
}

/* One group's step, in shared memory. */
struct choose_merge {
    struct beam_state state;
    struct beam_candidate rows[BEAM_MAX][BEAM_CANDIDATES];
    struct beam_candidate best[BEAM_CANDIDATES];
    int32_t parents[BEAM_MAX], tokens[BEAM_MAX];
    bool over;
};

/* First warp: the best 2 num_beams of all rows, in beam_before()'s order; lane b looks at the head
 * of row b. */
static __device__ void choose_merge_rows(struct choose_merge *m, int32_t beams, int lane)
{
    int32_t head = 0;

    for (int32_t i = 0; i < 2 * beams; i++) {
        bool open = lane < beams && head < 2 * beams;
        uint32_t key = open ? sampling_key(m->rows[lane][head].score) : 0;
        uint32_t most = __reduce_max_sync(BLOCK_ALL, key);
        uint32_t from = __ballot_sync(BLOCK_ALL, open && key == most);

        if (lane == __ffs(from) - 1)
            m->best[i] = m->rows[lane][head++];
    }
}

/* source_row and, when wanted, tokens of the group's rows follow their parents. */
static __device__ void choose_merge_histories(const struct choose_merge *m,
                                              const struct choose_beams_args &a,
                                              const struct cuda_beam_group *group, int32_t length,
                                              bool want_tokens)
{
    const int32_t P = a.rows.P, beams = group->num_beams;

    for (int32_t p = threadIdx.x; p <= length; p += blockDim.x) {
        int32_t source[BEAM_MAX], token[BEAM_MAX];

#pragma unroll
        for (int32_t i = 0; i < BEAM_MAX; i++) {
            int32_t parent = i < beams ? group->rows[m->parents[i]] : 0;

            if (i >= beams)
                continue;
            source[i] = p == length ? parent : a.rows.source_row[(int64_t)parent * P + p];
            token[i] =
                p == length || !want_tokens ? m->tokens[i] : a.rows.tokens[(int64_t)parent * P + p];
        }
#pragma unroll
        for (int32_t i = 0; i < BEAM_MAX; i++) { /* only now: rows are parents of each other */
            int64_t row = i < beams ? (int64_t)group->rows[i] * P : 0;

            if (i >= beams)
                continue;
            a.rows.source_row[row + p] = source[i];
            if (want_tokens)
                a.rows.tokens[row + p] = token[i];
            if (p == length && p + 1 < P)
                a.rows.source_row[row + p + 1] = group->rows[i];
        }
    }
}

static __global__ void __launch_bounds__(CHOOSE_MERGE_THREADS)
    choose_beams_merge(const __grid_constant__ struct choose_beams_args a)
{
    __shared__ struct choose_merge m;
    struct cuda_beam_group *group;
    int32_t g, beams, length, words = sizeof(struct beam_state) / sizeof(int32_t);

    launch_wait();
    launch_next();
    for (int32_t i = threadIdx.x; i < BEAM_MAX * BEAM_CANDIDATES; i += blockDim.x)
        m.rows[i / BEAM_CANDIDATES][i % BEAM_CANDIDATES] =
            a.work[blockIdx.x * BEAM_MAX * BEAM_CANDIDATES + i];
    g = a.groups[blockIdx.x];
    if ((int32_t)blockIdx.x >= *a.count)
        return;
    group = &a.rows.groups[g];
    if (group->finished)
        return;
    beams = group->num_beams;
    for (int32_t i = threadIdx.x; i < words; i += blockDim.x)
        ((int32_t *)&m.state)[i] = ((const int32_t *)&group->state)[i];
    if (threadIdx.x < BEAM_MAX) { /* what a search that ends may leave unsaid */
        m.parents[threadIdx.x] = threadIdx.x;
        m.tokens[threadIdx.x] = a.rules.rules.eos_token;
    }
    __syncthreads();
    length = m.state.length;
    if (threadIdx.x < 32)
        choose_merge_rows(&m, beams, threadIdx.x);
    __syncthreads();
    if (threadIdx.x == 0)
        m.over = beam_advance(&m.state, m.best, m.parents, m.tokens);
    __syncthreads();
    for (int32_t i = threadIdx.x; i < words; i += blockDim.x)
        ((int32_t *)&group->state)[i] = ((const int32_t *)&m.state)[i];
    choose_merge_histories(&m, a, group, length,
                           a.rules.rules.phrase_count > 0 ||
                               a.rows.row[group->rows[0]].repetition_penalty != 1.0f);
    if ((int32_t)threadIdx.x < beams) {
        struct cuda_row *row = &a.rows.row[group->rows[threadIdx.x]];
        int64_t at = ((int64_t)g * a.rows.P + length) * BEAM_MAX + threadIdx.x;

        a.rows.beam_tokens[at] = m.tokens[threadIdx.x];
        a.rows.beam_parents[at] = m.parents[threadIdx.x];
        row->token = m.tokens[threadIdx.x];
        row->position = length + 1;
        row->finished = m.over;
    }
    if (threadIdx.x == 0)
        group->finished = m.over;
}

size_t choose_beams_work(int32_t count_most)
{
    return (size_t)count_most * BEAM_MAX * BEAM_CANDIDATES * sizeof(struct beam_candidate);
}

cudaError_t choose_beams(struct cuda_rows rows, struct choose_rules rules, float *logits,
                         const int32_t *groups, const int32_t *count, int32_t count_most,
                         const int32_t *place, void *work, bool pdl, cudaStream_t stream)
{
    struct choose_beams_args args = {
        rows, rules, logits, groups, count, place, (struct beam_candidate *)work};
    int32_t V = rules.rules.vocabulary;
    size_t shared = choose_history_bytes(rows.P);
    dim3 grid(BEAM_MAX, count_most);

    if (count_most <= 0)
        return cudaSuccess;
    if (V < BEAM_CANDIDATES)
        return cudaErrorInvalidValue;
    if (choose_kept_threads(V) <= 512)
        CUDA_PASS(launch(choose_beams_kept<512, 3>, grid, choose_kept_threads(V), shared, pdl,
                         stream, args));
    else if (V <= CHOOSE_KEPT)
        CUDA_PASS(launch(choose_beams_kept<1024, 1>, grid, choose_kept_threads(V), shared, pdl,
                         stream, args));
    else
        CUDA_PASS(launch(choose_beams_read, grid, CHOOSE_READ_THREADS, shared, pdl, stream, args));
    return launch(choose_beams_merge, dim3(count_most), CHOOSE_MERGE_THREADS, 0, pdl, stream, args);
}

/* One block a group, one thread a hypothesis. */
static __global__ void choose_collect(struct cuda_rows rows, const int32_t *groups,
                                      int32_t *out_length, float *out_score, int32_t *out_tokens)
{
    int32_t g = groups[blockIdx.x], h = threadIdx.x;
    int64_t at = (int64_t)g * BEAM_MAX + h, trail = (int64_t)g * rows.P * BEAM_MAX;
    const struct cuda_beam_group *group = &rows.groups[g];

    launch_wait();
    out_length[at] = h < group->num_beams ? group->state.best[h].length : 0;
    out_score[at] = group->state.best[h].score;
    if (h < group->num_beams)
        beam_read(&group->state.best[h], rows.beam_tokens + trail, rows.beam_parents + trail,
                  BEAM_MAX, out_tokens + at * rows.P);
}

cudaError_t choose_beams_collect(struct cuda_rows rows, const int32_t *groups, int32_t count,
                                 int32_t *out_length, float *out_score, int32_t *out_tokens,
                                 cudaStream_t stream)
{
    if (count <= 0)
        return cudaSuccess;
    return launch(choose_collect, dim3(count), BEAM_MAX, 0, false, stream, rows, groups, out_length,
                  out_score, out_tokens);
}
