/* SPDX-License-Identifier: MIT
 *
 * fused_rows_parts: what a block of the kernel of fused_rows.h does beside products: norms and
 * embeddings of its own rows and the choice of their tokens, attention, summaries of logits, and
 * the beginning of a launch. For fused_rows_kernel.cuh alone.
 */
#ifndef PGPT_KERNELS_CUDA_FUSED_ROWS_PARTS_CUH
#define PGPT_KERNELS_CUDA_FUSED_ROWS_PARTS_CUH

#include "kernels/cuda/call_tell.cuh"
#include "kernels/cuda/choose_plain.cuh"
#include "kernels/cuda/fused_rows_product.cuh"
#include "kernels/cuda/layer_norm.cuh"

#if __CUDA_ARCH__ >= 900 && PGPT_CUDA_HOPPER

/* Each mailbox's phase, a bit of one register. */
enum { LETTER_X, LETTER_O, LETTER_H, LETTER_Y, LETTER_UNIT, LETTER_STATE };
static __device__ __forceinline__ void letter_receive(struct cluster_mailbox *box, int which,
                                                      uint32_t *phases, uint32_t bytes,
                                                      const struct fused_rows_place &place)
{
    uint32_t phase = *phases >> which;

    mailbox_receive(box, bytes, &phase, place_thread(place) == 0);
    *phases ^= 1u << which;
}

/* Own rows */

/* A row held by its warp, inputs j * 128 + 4 lane .. of it in lane's v[j]: the residual stream
 * stays here, the elements go to every block. */
template <class T, class S>
static __device__ __forceinline__ void row_send(S *s, int own, const float4 (&v)[4],
                                                const struct fused_rows_place &place)
{
    constexpr int LINES = S::ROWS * 128;
    const uint32_t lane = here(place.lane), odd = lane & 1;
    const int row = own * BLOCKS + place.rank;
    const char *to = s->x + (4 * odd + lane / 16) * LINES + warpgroup_at(row, lane / 2 % 8);
    uint2 e[4], give[2], words[2][2];

#pragma unroll
    for (int j = 0; j < 4; j++) {
        *(float4 *)(s->kept[own] + (j * 128 + lane * 4) * 4) = v[j];
        e[j] = elements4<T>(v[j]);
    }
    /* neighbours join their halves of 16 bytes: even lanes of j = 0, 1, odd ones of 2, 3 */
#pragma unroll
    for (int j = 0; j < 2; j++) {
        give[j].x = __shfl_xor_sync(0xffffffffu, odd ? e[j].x : e[j + 2].x, 1);
        give[j].y = __shfl_xor_sync(0xffffffffu, odd ? e[j].y : e[j + 2].y, 1);
        words[j][0] = odd ? give[j] : e[j];
        words[j][1] = odd ? e[j + 2] : give[j];
    }
#pragma unroll
    for (int j = 0; j < 2; j++)
#pragma unroll
        for (int r = 0; r < BLOCKS; r++)
            cluster_send16(to + j * 2 * LINES, &s->x_box, r,
                           make_uint4(words[j][0].x, words[j][0].y, words[j][1].x, words[j][1].y));
}

/* Layer norm of y and the residual stream. Warps with a row of this block's. */
template <class T, class S>
static __device__ __forceinline__ void row_norm(S *s, const struct network_norm &norm,
                                                uint32_t *phases,
                                                const struct fused_rows_place &place)
{
    const int own = place.warp, lane = here(place.lane);
    float4 v[4], gamma[4], beta[4];
    struct norm_sums sums = {0.0f, 0.0f};
    struct norm_of of;

    if (own >= place.own)
        return;
#pragma unroll
    for (int j = 0; j < 4; j++) {
        gamma[j] = *(const float4 *)(norm.gamma + j * 128 + lane * 4);
        beta[j] = *(const float4 *)(norm.beta + j * 128 + lane * 4);
    }
    letter_receive(&s->y_box, LETTER_Y, phases, here(place.own) * D * 4, place);
#pragma unroll
    for (int j = 0; j < 4; j++) {
        const float4 x = *(const float4 *)(s->kept[own] + (j * 128 + lane * 4) * 4);

        v[j] = *(const float4 *)&s->y[own][j * 128 + lane * 4];
        v[j].x += x.x;
        v[j].y += x.y;
        v[j].z += x.z;
        v[j].w += x.w;
        norm_add4(&sums, v[j]);
    }
    of = norm_measure(sums, D);
#pragma unroll
    for (int j = 0; j < 4; j++)
        norm_apply4(&v[j], of, gamma[j], beta[j]);
    row_send<T>(s, own, v, place);
}

/* The embedding of this warp's row. */
template <class F, class S>
static __device__ __forceinline__ void row_embed(S *s, const struct fused_rows_params &p,
                                                 const struct fused_rows_place &place)
{
    const int own = place.warp, k = here(place.lane) * 4;
    const int32_t token = s->token[own];
    const int32_t position = max(s->state[own * BLOCKS + place.rank], 0);
    struct cuda_weight embedding = p.embedding;
    float4 v[4];

#pragma unroll
    for (int j = 0; j < 4; j++) {
        const float4 e = embedding_plain4<F>(embedding, token, k);
        const float4 q = *(const float4 *)(p.positions + (size_t)position * D + j * 128 + k);

        /* the token's next 128 inputs, in four blocks of 32: one address with constants */
        embedding.packed = (char *)embedding.packed + 4 * 1024;
        v[j].x = __fadd_rn(__fmul_rn(e.x, p.embedding_factor), q.x);
        v[j].y = __fadd_rn(__fmul_rn(e.y, p.embedding_factor), q.y);
        v[j].z = __fadd_rn(__fmul_rn(e.z, p.embedding_factor), q.z);
        v[j].w = __fadd_rn(__fmul_rn(e.w, p.embedding_factor), q.w);
    }
    row_send<typename F::element>(s, own, v, place);
}

/* All blocks learn where a row stands. */
template <class S>
static __device__ __forceinline__ void state_send(S *s, int row, int32_t state, int lane)
{
    if (lane == 0)
        s->state[row] = state; /* for the embedding; the letter brings the same */
    if (lane < BLOCKS)
        cluster_send4(&s->state[row], &s->state_box, lane, (uint32_t)state);
    __syncwarp();
}

/* What becomes known of a plain row's step: told when the next one has begun. */
struct row_chosen {
    int32_t position, token, finished; /* position: FINISHED if the row was */
    float logit;                       /* the token's */
    struct plain_units look;
};

/* This warp's row gets its token; all blocks learn its position when another step follows. */
template <class S>
static __device__ __forceinline__ void row_choose(S *s, const struct fused_rows_params &p,
                                                  struct row_chosen *chosen, bool more,
                                                  const struct fused_rows_place &place)
{
    const int own = place.warp, row = own * BLOCKS + place.rank, lane = here(place.lane);
    int32_t state = s->state[row];

    chosen->position = state;
    if (state != FINISHED) {
        const int32_t max_new = s->max_new[row];
        const struct plain_best best = plain_look(&chosen->look, (const float4 *)s->kept[own],
                                                  product_units(p.rules.vocabulary), lane);

        chosen->token = plain_token(p.rules, best, s->special[own][0], s->special[own][1], state,
                                    max_new, &chosen->logit);
        chosen->finished = chosen->token == p.rules.eos_token || state + 1 >= max_new;
        state = chosen->finished ? FINISHED : state + 1;
        if (lane == 0)
            s->token[own] = chosen->token;
    }
    __syncwarp();
    if (more)
        state_send(s, row, state, lane);
}

/* The same warp tells what it has chosen. first: the cluster's first row. */
template <class S>
static __device__ __forceinline__ void row_tell(S *s, const struct fused_rows_params &p,
                                                const struct row_chosen &chosen, int step,
                                                int first, const struct fused_rows_place &place)
{
    const int row = place.warp * BLOCKS + place.rank;
    float logprob;

    if (chosen.position == FINISHED)
        return;
    logprob = chosen.logit - plain_logsum(&chosen.look);
    if (here(place.lane) == 0)
        call_tell_token(p.rows, p.out, s->row[row], first + row, step, p.steps, chosen.position + 1,
                        chosen.token, chosen.finished, logprob);
}

/* Attention */

/* 32 keys of a row, that a warp looks at. */
struct attend_task {
    int row, left; /* the row's keys from the chunk's first on: may be none, or more than 32 */
    int first;     /* is it the row's first? */
    uint32_t at;   /* the chunk's first place in head 0 */
};

/* The first task of a row. A finished row looks at nothing and sends what comes of it: letters have
 * one size. There is none behind the last row. */
template <class S>
static __device__ __forceinline__ struct attend_task
attend_row(const S *s, int row, bool cross, const struct fused_rows_place &place)
{
    struct attend_task task = {row, 0, 1, 0};

    static_assert(FINISHED == -1, "no keys are left");
    if (row < place.rows) {
        task.left = s->state[row] + 1;
        if (cross && task.left)
            task.left = s->source_len[row];
        task.at = (uint32_t)(cross ? s->cross[row] : s->row[row]) * (HEADS * CHUNK);
    }
    return task;
}

/* The warp's next task: its row's next chunk, else its next row. */
template <class S>
static __device__ __forceinline__ struct attend_task
attend_next(const S *s, const struct attend_task &task, bool cross, uint32_t chunk_places,
            const struct fused_rows_place &place)
{
    if (task.left > CHUNK)
        return {task.row, task.left - CHUNK, 0, task.at + chunk_places};
    return attend_row(s, task.row + WARPS, cross, place);
}

/* What a lane looks at of the keys and values of a layer and head: its 16 bytes of the first
 * position. */
struct attend_cache {
    const char *keys, *values;
};

template <class T>
static __device__ __forceinline__ void keys_fetch(struct chunk_half<T> *chunk,
                                                  const struct attend_cache &cache,
                                                  const struct attend_task &task, int lane)
{
    chunk_load_from<T, ABSENT_ZERO>(chunk->key, cache.keys + (size_t)task.at * (HEAD * sizeof(T)),
                                    task.left - (lane >> 3));
}
template <enum chunk_absent ABSENT, class T>
static __device__ __forceinline__ void values_fetch(struct chunk_half<T> *chunk,
                                                    const struct attend_cache &cache,
                                                    const struct attend_task &task, int lane)
{
    chunk_load_from<T, ABSENT>(chunk->value, cache.values + (size_t)task.at * (HEAD * sizeof(T)),
                               task.left - (lane & 3));
}

/* The lane's share of a query: of its 16 bytes query_words() chooses two words, which alone are
 * loaded, as either choice. */
template <class T>
static __device__ __forceinline__ struct chunk_query attend_query(const T *q, int lane)
{
    const uint32_t *from = (const uint32_t *)(q + 32 * (lane >> 3 & 1) + 8 * (lane & 3));
    const uint32_t a = from[lane >> 2 & 1], b = from[2 + (lane >> 2 & 1)];

    return {{make_uint4(a, a, b, b)}};
}

/* A row's result to every block's o. */
template <class T, class S>
static __device__ __forceinline__ void attend_send(S *s, const struct attention_part &all, int row,
                                                   const struct fused_rows_place &place, int lane)
{
    const uint4 out = part_words<T>(all, lane);

#pragma unroll
    for (int r = 0; r < BLOCKS / 4; r++)
        cluster_send16(s->o + place.rank * (S::ROWS * 128) + warpgroup_at(row, lane >> 2),
                       &s->o_box, (lane & 3) * (BLOCKS / 4) + r, out);
}

/* All rows' attention of this block's head, a warp a row; the result goes to every block's o. What
 * a warp looks at next is on its way as soon as its registers are free. Values that are not there
 * are zeros, or later what the last row's were: keys would want registers for that. */
template <class T, class S>
static __device__ __forceinline__ void attend(S *s, const struct network_cache &cache, int layer,
                                              bool cross, const struct fused_rows_place &place)
{
    const uint32_t chunk_places = cache.chunk_places, lane = here(place.lane);
    const size_t first = (size_t)layer * cache.layer_stride +
                         (size_t)(uint32_t)(place.rank * CHUNK) * (HEAD * sizeof(T));
    struct attend_task task = attend_row(s, place.warp, cross, place);
    struct attention_part before = {}; /* of the row's chunks */
    struct attend_cache caches;
    struct chunk_half<T> chunk;

    if (task.row >= place.rows)
        return;
    caches.keys = base_here(cache.k + first + lane * 16);
    caches.values = base_here(cache.v + first + (lane & 3) * (HEAD * sizeof(T)) + (lane >> 2) * 16);
    keys_fetch<T>(&chunk, caches, task, lane);
    values_fetch<ABSENT_ZERO>(&chunk, caches, task, lane);
#pragma unroll 1
    while (task.row < place.rows) {
        const struct attend_task next = attend_next(s, task, cross, chunk_places, place);
        const struct chunk_query query = attend_query(s->q[task.row], lane);
        struct attention_part part;
        float half[8];

        chunk_halves<T>(half, chunk, query, lane);
        keys_fetch<T>(&chunk, caches, next, lane);
        chunk_finish<T>(&part, half, chunk, task.left, lane);
        values_fetch<ABSENT_KEEP>(&chunk, caches, next, lane);
        if (!task.first) {
            part_merge<T>(&before, part);
            part = before;
        }
        if (next.first)
            attend_send<T>(s, part, task.row, place, lane);
        else
            before = part;
        task = next;
    }
}

/* Logits */

/* Of a row, as a letter. */
static __device__ __forceinline__ uint32_t units_bytes(const struct cuda_rules &rules)
{
    const int forced = (rules.forced_eos >= 0) + (rules.forced_bos >= 0);

    return product_units(rules.vocabulary) * 16 + forced * 4;
}

/* A block's rounds of 64 columns. */
static __device__ __forceinline__ int rounds_of(const struct cuda_rules &rules, int rank)
{
    return (product_padded(rules.vocabulary) / COLUMNS - rank + BLOCKS - 1) / BLOCKS;
}

/* Is the token, which may be -1, one of the unit's? */
static __device__ __forceinline__ bool unit_has(int unit, int token)
{
    return (uint32_t)token / PRODUCT_UNIT == (uint32_t)unit;
}

/* Which of lane q's 8 columns of a unit the token's is; -1: another lane's. */
static __device__ __forceinline__ int unit_place(int token, int q)
{
    const int column = token & (PRODUCT_UNIT - 1);

    return q == (column & 7) >> 1 ? (column >> 3) * 2 + (column & 1) : -1;
}

/* The unit's token may not be chosen. add: what the rules add to lane q's columns. */
static __device__ __forceinline__ void unit_forbid(float (&add)[8], int token, int q)
{
    const int place = unit_place(token, q);

#pragma unroll
    for (int t = 0; t < 8; t++)
        add[t] = t == place ? -INFINITY : add[t];
}

/* The logit of a token that the rules may force (which 0: EOS, 1: BOS), out of a unit whose columns
 * four lanes share, to the row's owner. */
template <class S>
static __device__ __forceinline__ void special_send(S *s, int which, int token, int row, int q,
                                                    const float (&v)[8])
{
    const int place = unit_place(token, q);
    float logit = v[0];

    if (place < 0)
        return;
#pragma unroll
    for (int t = 1; t < 8; t++)
        logit = t == place ? v[t] : logit;
    cluster_send4(&s->special[row / BLOCKS][which], &s->unit_box, row % BLOCKS,
                  __float_as_uint(logit));
}

/* Where a row's logits lie between blocks. */
static __device__ __forceinline__ float *logits_of(const struct fused_rows_sampled_params &p,
                                                   int row)
{
    const int first = (int)(blockIdx.x / BLOCKS) * p.rows_each;

    return p.logits + (size_t)(first + row) * product_units(p.rules.vocabulary) * PRODUCT_UNIT;
}

/* Lane q's 8 logits of a unit, to who draws from the row: -inf for what may never be chosen, but
 * for the first token, which a choice comes to when there is none. add: what the rules add. */
static __device__ __forceinline__ void logits_put(const struct fused_rows_sampled_params &p,
                                                  int row, int unit, int q, const float (&v)[8],
                                                  const float (&add)[8])
{
    const int column = unit * PRODUCT_UNIT + 2 * q;
    float *to = logits_of(p, row) + column;

#pragma unroll
    for (int t = 0; t < 8; t += 2)
        cluster_put8(to + 4 * t, make_float2(add[t] == 0.0f || column + t == 0 ? v[t] : -INFINITY,
                                             add[t + 1] == 0.0f ? v[t + 1] : -INFINITY));
}

/* The two units of the warpgroup's round of this block's logits, four lanes a row and unit. */
template <class S, class P>
static __device__ __forceinline__ void units_send(S *s, const P &p, int round,
                                                  const struct fused_rows_place &place)
{
    const int units = product_units(p.rules.vocabulary);
    const int thread = here(place_in_part(place));

#pragma unroll 1
    for (int i = thread; i < S::ROWS * 8; i += 128) {
        const int q = i & 3, row = i >> 2 & 7 | i >> 6 << 3, u = i >> 5 & 1;
        const int own = round * (COLUMNS / PRODUCT_UNIT) + u;
        const int unit = (place.rank + round * BLOCKS) * (COLUMNS / PRODUCT_UNIT) + u;
        const float *sum = &s->partial[place_part(place)][row][u * PRODUCT_UNIT + 2 * q];
        const float *bias = &s->unit_bias[own][2 * q], *rules = &s->unit_rules[own][2 * q];
        float v[8], add[8];
        float4 summary;

#pragma unroll
        for (int t = 0; t < 8; t += 2) {
            const float2 a = *(const float2 *)(sum + 4 * t);
            const float2 b = *(const float2 *)(bias + 4 * t), c = *(const float2 *)(rules + 4 * t);

            v[t] = __fadd_rn(a.x, b.x);
            v[t + 1] = __fadd_rn(a.y, b.y);
            add[t] = c.x;
            add[t + 1] = c.y;
        }
        if constexpr (S::SAMPLED)
            if (row < place.rows && unit < units && s->draw.sampled[row])
                logits_put(p, row, unit, q, v, add);
        if (unit_has(unit, p.rules.eos_token) && s->state[row] < s->min_new[row])
            unit_forbid(add, p.rules.eos_token, q);
        summary = unit_summary(p.rules, unit, q, false, v, add);
        if (row >= place.rows || unit >= units)
            continue;
        if (unit_has(unit, p.rules.forced_eos))
            special_send(s, 0, p.rules.forced_eos, row, q, v);
        if (unit_has(unit, p.rules.forced_bos))
            special_send(s, 1, p.rules.forced_bos, row, q, v);
        if (q == 0)
            cluster_send16(s->kept[row / BLOCKS] + unit * 16, &s->unit_box, row % BLOCKS,
                           make_uint4(__float_as_uint(summary.x), __float_as_uint(summary.y),
                                      __float_as_uint(summary.z), __float_as_uint(summary.w)));
    }
}

/* The beginning of a launch */

static __device__ __forceinline__ void floats_copy(float *to, const float *from, int count,
                                                   int groups, int step)
{
    for (int i = threadIdx.x * 4; i < count * groups; i += THREADS * 4)
        copy_16(to + i, from + i / count * step + i % count, true);
}

/* A barrier follows. */
template <class S>
static __device__ __forceinline__ void biases_begin(S *s, const struct fused_rows_params &p,
                                                    int rank)
{
    const int column = rank * COLUMNS;

    for (int l = 0; l < p.layers; l++) {
        const struct fused_layer &from = p.layer[l];
        struct fused_rows_biases *to = &s->layer[l];

        floats_copy(to->qkv, from.qkv.bias + column, COLUMNS, 3, D);
        floats_copy(to->out, from.out.bias + column, COLUMNS, 1, 0);
        floats_copy(to->cross_q, from.cross_q.bias + column, COLUMNS, 1, 0);
        floats_copy(to->cross_out, from.cross_out.bias + column, COLUMNS, 1, 0);
        floats_copy(to->fc2, from.fc2.bias + column, COLUMNS, 1, 0);
        floats_copy(to->fc1, from.fc1.bias + rank * HIDDEN, HIDDEN, 1, 0);
    }
    copy_commit();
    for (int i = threadIdx.x; i < UNITS / BLOCKS * PRODUCT_UNIT; i += THREADS) {
        const int c = (rank + i / COLUMNS * BLOCKS) * COLUMNS + i % COLUMNS;
        const bool in = c < p.rules.vocabulary;

        (&s->unit_bias[0][0])[i] = in ? p.output.bias[c] : -INFINITY;
        (&s->unit_rules[0][0])[i] = in ? p.rules.mask[c] : 0.0f;
    }
    copy_wait<0>();
}

template <class S>
static __device__ __forceinline__ void rows_begin(S *s, const struct fused_rows_params &p,
                                                  int first, const struct fused_rows_place &place)
{
    const int r = threadIdx.x;

    if (r >= S::ROWS)
        return;
    s->row[r] = -1;
    s->state[r] = FINISHED;
    s->min_new[r] = s->max_new[r] = s->source_len[r] = s->cross[r] = 0;
    if (r < place.rows) {
        const struct cuda_row *row = p.rows.row + p.active[first + r];

        s->row[r] = p.active[first + r];
        s->state[r] = row->finished ? FINISHED : row->position;
        s->min_new[r] = row->min_new;
        s->max_new[r] = row->max_new;
        s->source_len[r] = row->source_len;
        s->cross[r] = row->cross;
        if (r % BLOCKS == place.rank)
            s->token[r / BLOCKS] = row->token;
        if (row->finished && place.rank == 0)
            call_tell_end(p.rows, p.out, s->row[r], first + r, row->position, 1);
    }
}

#endif

#endif
