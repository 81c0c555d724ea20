/* SPDX-License-Identifier: MIT
 *
 * fused_parts: what a block of the fused kernel does, phase by phase: its shared memory, products
 * from registers, norms, attention, choice, and what it sends to the other blocks of its cluster.
 * For fused.cu alone.
 */
#ifndef PGPT_KERNELS_CUDA_FUSED_PARTS_CUH
#define PGPT_KERNELS_CUDA_FUSED_PARTS_CUH

#include "kernels/cuda/attention_chunk.cuh"
#include "kernels/cuda/choose_plain.cuh"
#include "kernels/cuda/cluster.cuh"
#include "kernels/cuda/fused.h"
#include "kernels/cuda/fused_model.cuh"
#include "kernels/cuda/product_output.cuh"

enum {
    D = 512,
    HEADS = 8,
    FFN = 256,
    ROWS = FUSED_ROWS,
    THREADS = 256,
    POSITIONS = 256,
    CHUNKS = POSITIONS / CHUNK,
    UNITS = 128, /* most units of logits: vocabularies up to 4,096 */
    X_STRIDE = D * 2 + PRODUCT_TILE_PAD,
    H_STRIDE = FFN * 2 + PRODUCT_TILE_PAD,
    ROUND_TILES = 6,  /* tiles of 16 columns that a block multiplies at once */
    LOGIT_ROUNDS = 2, /* of them before logits are looked at */
    PARTIAL_STRIDE = LOGIT_ROUNDS * ROUND_TILES * 16 + 4,
    BLOCKS = D / 32 / FORMAT_PARTS, /* of a part of K = D */
    BLOCKS_FFN = FFN / 32 / FORMAT_PARTS,
};

struct fused_params {
    struct fused_layer layer[FUSED_LAYERS];
    struct fused_weight output;
    struct cuda_weight embedding;
    const float *positions;
    float embedding_factor;
    enum product_act activation;
    int32_t layers, steps, n, rows_each;
    const int32_t *active;
    struct cuda_rows rows;
    struct cuda_rules rules;
    struct network_cache self, cross;
};

/* What a block keeps of a layer for the whole launch: its columns' biases and the layer norms. */
struct fused_constants {
    float qkv[3 * D / HEADS], out[D / HEADS], cross_q[D / HEADS], cross_out[D / HEADS],
        fc2[D / HEADS];
    float fc1[FFN / HEADS];
    float gamma[3][D], beta[3][D]; /* after self-attention, cross-attention, feed-forward */
};

/*
 * A block's shared memory. What the cluster sends about is o, y, h, q, key, value, unit and
 * special, in letters with a mailbox each: head (q, key, value), query (q), o, y, h, unit (unit,
 * special). Every block receives every letter, also one that it has no use for, and letters have
 * the rows of the cluster alone. In a layer they come in the order head o y query o y h y; behind
 * the last layer comes unit. All but head and query, which stay within the blocks of a head, go
 * from every block to every block (o from those that attend to rows).
 *
 * Nothing is overwritten that somebody still reads, and no letter arrives before the one before it
 * is complete, though no fence or barrier says so to a tool that looks at stores alone (racecheck
 * reports the second letter as a write after a write):
 * - A block sends y behind a barrier that follows whatever it did with the letters before: all its
 *   threads have waited for them, and read them. So who has y from every block may write to all
 *   that was received earlier. Between two letters of head, query, o, h and unit lies a y.
 * - y itself is read by the norm, and the norm's barrier stands before the block's next columns of
 *   q or h (or of q, k and v, be there logits between or not). The next y needs, from every block,
 *   h; or o from those that attend, and each of them needs the columns of q of all blocks of its
 *   head, thus of every block: each belongs to a head whose rows somebody attends to.
 * - Bytes that come before the receiver has announced their letter count below zero meanwhile; the
 *   phase cannot end before the announcement, which is its only arrival.
 */
template <class T> struct fused_shared {
    alignas(16) char x[ROWS * X_STRIDE]; /* (ROWS, D) elements: the next product's input */
    alignas(16) char o[ROWS * X_STRIDE]; /* (ROWS, D) elements: attention's output */
    alignas(16) char h[ROWS * H_STRIDE]; /* (ROWS, FFN) elements */
    alignas(16) float y[ROWS][D];        /* residual stream, before the norm */
    alignas(16) float x_float[ROWS][D];  /* and after it */
    alignas(16) float partial[FORMAT_PARTS][ROWS][PARTIAL_STRIDE];
    alignas(16) T q[ROWS][HEAD];
    alignas(16) T key[ROWS][HEAD];
    alignas(16) T value[ROWS][HEAD];
    struct attention_kept parts[ROWS][CHUNKS];
    alignas(16) float4 unit[ROWS][UNITS];
    float special[ROWS][2];
    /* what this block adds to its units of logits: -inf past the vocabulary; what the rules add */
    float unit_bias[UNITS / HEADS][PRODUCT_UNIT];
    float unit_rules[UNITS / HEADS][PRODUCT_UNIT];
    struct cluster_mailbox head_box, query_box, o_box, y_box, h_box, unit_box;
    int32_t row[ROWS]; /* -1: none */
    int32_t token[ROWS], position[ROWS], finished[ROWS], min_new[ROWS], max_new[ROWS];
    int32_t source_len[ROWS], cross[ROWS];
    alignas(16) struct fused_constants layer[]; /* (layers) */
};

#if __CUDA_ARCH__ >= 900

/* J tiles of weights by BLK blocks of this warp's part, tile t of the block's list by tile_of(t).
 */
template <class F, int J, int BLK, class Tile>
static __device__ __forceinline__ void weights_fetch(struct format_weights (&w)[J][4],
                                                     const char *packed, int part, int first,
                                                     Tile tile_of, int lane)
{
#pragma unroll
    for (int j = 0; j < J; j++) {
        const char *from =
            packed + ((size_t)tile_of(first + 2 * j) * (BLK * FORMAT_PARTS) + part * BLK) * 1024;

#pragma unroll
        for (int b = 0; b < BLK; b++)
            w[j][b] = weights_stream(from + b * 1024, lane);
    }
}

/* This warp's part of J tiles times the 8 rows, into the block's partial sums from tile `to` on. */
template <class F, int J, int BLK, class Shared>
static __device__ __forceinline__ void
weights_multiply(Shared *s, const struct format_weights (&w)[J][4], const char *rows, int stride,
                 int part, int first, int to, int lane)
{
    float acc[J][4] = {};

#pragma unroll
    for (int b = 0; b < BLK; b++) {
        typename F::rows x = rows_get<F>(rows, stride, part * BLK + b, lane);

#pragma unroll
        for (int j = 0; j < J; j++)
            block_multiply<F>(acc[j], w[j][b], x, NULL, lane);
    }
#pragma unroll
    for (int j = 0; j < J; j++)
        sums_put(&s->partial[part][0][(to + first + 2 * j) * 16], PARTIAL_STRIDE, acc[j], lane);
}

/* Four columns of a row, parts added up, with bias. */
template <class Shared>
static __device__ __forceinline__ float4 partial_get4(const Shared *s, int row, int column,
                                                      const float *bias)
{
    float4 a = *(const float4 *)&s->partial[0][row][column],
           b = *(const float4 *)&s->partial[1][row][column];
    float4 c = *(const float4 *)&s->partial[2][row][column],
           d = *(const float4 *)&s->partial[3][row][column];
    float4 e = *(const float4 *)bias;

    return make_float4((((a.x + b.x) + c.x) + d.x) + e.x, (((a.y + b.y) + c.y) + d.y) + e.y,
                       (((a.z + b.z) + c.z) + d.z) + e.z, (((a.w + b.w) + c.w) + d.w) + e.w);
}

template <class T> static __device__ __forceinline__ uint2 elements4(const float4 &v)
{
    alignas(8) T e[4];

    format_set2(e, v.x, v.y);
    format_set2(e + 2, v.z, v.w);
    return *(const uint2 *)e;
}

/* Row `row`, held by its warp, into x and x_float. */
template <class T>
static __device__ __forceinline__ void row_put(struct fused_shared<T> *s, int row,
                                               const float4 (&v)[4], int lane)
{
#pragma unroll
    for (int j = 0; j < 4; j++) {
        int k = j * 128 + lane * 4;

        *(float4 *)&s->x_float[row][k] = v[j];
        *(uint2 *)(s->x + row * X_STRIDE + k * 2) = elements4<T>(v[j]);
    }
}

/* The warp's row: layer norm of y; the order of sums is that of tile_fill_float(). */
template <class T>
static __device__ __forceinline__ void row_norm(struct fused_shared<T> *s, int row,
                                                const float *gamma, const float *beta, int lane)
{
    float4 v[4];
    float mean = 0.0f, square = 0.0f;

    if (s->row[row] < 0)
        return;
#pragma unroll
    for (int j = 0; j < 4; j++) {
        v[j] = *(const float4 *)&s->y[row][j * 128 + lane * 4];
        mean += (v[j].x + v[j].y) + (v[j].z + v[j].w);
    }
    mean = warp_sum(mean) / (float)D;
#pragma unroll
    for (int j = 0; j < 4; j++) {
        v[j].x -= mean;
        v[j].y -= mean;
        v[j].z -= mean;
        v[j].w -= mean;
        square = __fmaf_rn(v[j].x, v[j].x, square);
        square = __fmaf_rn(v[j].y, v[j].y, square);
        square = __fmaf_rn(v[j].z, v[j].z, square);
        square = __fmaf_rn(v[j].w, v[j].w, square);
    }
    square = 1.0f / sqrtf(warp_sum(square) / (float)D + PRODUCT_NORM_EPSILON);
#pragma unroll
    for (int j = 0; j < 4; j++) {
        int k = j * 128 + lane * 4;
        float4 g = *(const float4 *)(gamma + k), b = *(const float4 *)(beta + k);

        v[j].x = __fmaf_rn(v[j].x * square, g.x, b.x);
        v[j].y = __fmaf_rn(v[j].y * square, g.y, b.y);
        v[j].z = __fmaf_rn(v[j].z * square, g.z, b.z);
        v[j].w = __fmaf_rn(v[j].w * square, g.w, b.w);
    }
    row_put(s, row, v, lane);
}

template <class F, class T>
static __device__ __forceinline__ void row_embed(struct fused_shared<T> *s,
                                                 const struct fused_params &p, int row, int lane)
{
    int32_t token = s->token[row];
    int32_t position = s->finished[row] ? 0 : s->position[row];
    float4 v[4];

#pragma unroll
    for (int j = 0; j < 4; j++) {
        int k = j * 128 + lane * 4;
        float4 e = embedding_plain4<F>(p.embedding, token, k);
        float4 q = *(const float4 *)(p.positions + (size_t)position * D + k);

        v[j].x = __fadd_rn(__fmul_rn(e.x, p.embedding_factor), q.x);
        v[j].y = __fadd_rn(__fmul_rn(e.y, p.embedding_factor), q.y);
        v[j].z = __fadd_rn(__fmul_rn(e.z, p.embedding_factor), q.z);
        v[j].w = __fadd_rn(__fmul_rn(e.w, p.embedding_factor), q.w);
    }
    row_put(s, row, v, lane);
}

/* One block's place in the cluster and one warp's in attention. */
template <int CL> struct fused_place {
    int rank, head, half, warp, lane, part, first;
    int rows;               /* of this cluster: letters have no others */
    int row, share, shares; /* attention: this warp's row (-1: none) and its share of the chunks */
};

/* y of this block's columns (row, 64 or 32): product + bias + x; to every block. */
template <class T, int CL>
static __device__ __forceinline__ void
residual_exchange(struct fused_shared<T> *s, const struct fused_place<CL> &at, const float *bias)
{
    constexpr int NC = D / CL, ITEMS = ROWS * NC / 4, GROUPS = THREADS / ITEMS;
    const int item = threadIdx.x % ITEMS, group = threadIdx.x / ITEMS;
    const int row = item / (NC / 4), c = item % (NC / 4) * 4, column = at.rank * NC + c;
    float4 v, x;
    uint4 bits;

    if (row >= at.rows)
        return;
    v = partial_get4(s, row, c, bias + c);
    x = *(const float4 *)&s->x_float[row][column];
    v.x += x.x;
    v.y += x.y;
    v.z += x.z;
    v.w += x.w;
    bits = make_uint4(__float_as_uint(v.x), __float_as_uint(v.y), __float_as_uint(v.z),
                      __float_as_uint(v.w));
#pragma unroll
    for (int r = 0; r < CL / GROUPS; r++)
        cluster_send16(&s->y[row][column], &s->y_box, group * (CL / GROUPS) + r, bits);
}

/* The query (and, of self-attention, the new key and value) of this block's columns, to the blocks
 * of its head. column: of the block's list, q then k then v. */
template <class T, int CL>
static __device__ __forceinline__ void
head_put4(struct fused_shared<T> *s, struct cluster_mailbox *box, const struct fused_place<CL> &at,
          int row, int column, const float4 &v)
{
    constexpr int NC = D / CL, HALVES = CL / HEADS;
    const int which = column / NC, rest = at.half * NC + column % NC; /* dimension of the head */
    uint2 e = elements4<T>(v);

    T *to = which == 0 ? s->q[row] : which == 1 ? s->key[row] : s->value[row];

#pragma unroll
    for (int h = 0; h < HALVES; h++)
        cluster_send8(to + rest, box, at.head * HALVES + h, e);
}

template <class T, int CL>
static __device__ __forceinline__ void
chunk_fetch(const struct fused_shared<T> *s, struct chunk_half<T> *chunk,
            const struct network_cache &cache, int layer, const struct fused_place<CL> &at,
            bool cross, int c, int end)
{
    const size_t head = (size_t)at.head * cache.positions * HEAD;
    struct chunk_cache<T> caches;
    const struct chunk_row row = {cross ? s->cross[at.row] : s->row[at.row], end, 0, NULL};

    caches.keys = (const T *)(cache.k + (size_t)layer * cache.layer_stride) + head;
    caches.values = (const T *)(cache.v + (size_t)layer * cache.layer_stride) + head;
    caches.stride = (size_t)HEADS * cache.positions * HEAD;
    chunk_load<false>(chunk, caches, row, c, at.lane);
}

/* The newest position's key and value, fresh from this step's product, into the cache. This block
 * alone reads the row's cache of this head in later steps. */
template <class T, int CL>
static __device__ __forceinline__ void newest_keep(const struct fused_shared<T> *s,
                                                   const struct network_cache &cache, int layer,
                                                   const struct fused_place<CL> &at, int position)
{
    const int i = at.lane & 7; /* 16 bytes */
    const size_t to =
        (size_t)layer * cache.layer_stride +
        ((((size_t)s->row[at.row] * HEADS + at.head) * cache.positions + position) * HEAD + i * 8) *
            sizeof(T);

    if (at.lane < 8)
        *(uint4 *)(cache.k + to) = *(const uint4 *)&s->key[at.row][i * 8];
    else if (at.lane < 16)
        *(uint4 *)(cache.v + to) = *(const uint4 *)&s->value[at.row][i * 8];
}

/* Attention of this block's rows and head; chunk: share's first, already here but for the newest
 * position. The result goes to every block's o. */
template <class T, int CL>
static __device__ __forceinline__ void
attend(struct fused_shared<T> *s, struct chunk_half<T> *chunk, const struct network_cache &cache,
       int layer, const struct fused_place<CL> &at, bool cross)
{
    const int row = at.row;
    const int position = row < 0 ? 0 : s->position[row];
    /* a finished row looks at nothing and sends what comes of it: letters have one size */
    const int length = row < 0 || s->finished[row] ? 0 : cross ? s->source_len[row] : position + 1;
    struct attention_part part;
    struct chunk_query query;

    if (row >= 0) {
#pragma unroll
        for (int i = 0; i < 2; i++)
            query.part[i] = *(const uint4 *)&s->q[row][query_at(chunk, i, at.lane)];
#pragma unroll 1
        for (int c = at.share; c * CHUNK < length; c += at.shares) {
            if (c != at.share)
                chunk_fetch<T, CL>(s, chunk, cache, layer, at, cross, c, cross ? length : position);
            if (!cross && position / CHUNK == c) {
                newest_keep<T, CL>(s, cache, layer, at, position);
                chunk_newest<true>(chunk, s->key[row], s->value[row], position % CHUNK, at.lane);
            }
            chunk_attend<T>(*chunk, query, length - c * CHUNK, at.lane, &part);
            part_keep(&s->parts[row][c], part, at.lane);
        }
    }
    __syncthreads();
    if (row < 0 || at.share)
        return;
    part = part_get(&s->parts[row][0], at.lane);
#pragma unroll 1
    for (int c = 1; c * CHUNK < length; c++)
        part_merge<T>(&part, part_get(&s->parts[row][c], at.lane));
    {
        const uint4 out = part_words<T>(part, at.lane);

#pragma unroll
        for (int r = 0; r < CL / 4; r++)
            cluster_send16(s->o + row * X_STRIDE + (at.head * HEAD + (at.lane >> 2) * 8) * 2,
                           &s->o_box, (at.lane & 3) * (CL / 4) + r, out);
    }
}

/* count floats (a multiple of 4) of each of `groups` runs, `step` apart, on their way from global
 * memory. */
static __device__ __forceinline__ void constants_copy(float *to, const float *from, int count,
                                                      int groups, int step)
{
    for (int i = threadIdx.x * 4; i < count * groups; i += THREADS * 4)
        copy_16(to + i, from + i / count * step + i % count, true);
}

/* A barrier follows. */
template <class T, int CL>
static __device__ __forceinline__ void constants_begin(struct fused_shared<T> *s,
                                                       const struct fused_params &p, int rank)
{
    constexpr int NC = D / CL, NF = FFN / CL;

    for (int l = 0; l < p.layers; l++) {
        const struct fused_layer &from = p.layer[l];
        struct fused_constants *to = &s->layer[l];

        constants_copy(to->qkv, from.qkv.bias + rank * NC, NC, 3, D);
        constants_copy(to->out, from.out.bias + rank * NC, NC, 1, 0);
        constants_copy(to->cross_q, from.cross_q.bias + rank * NC, NC, 1, 0);
        constants_copy(to->cross_out, from.cross_out.bias + rank * NC, NC, 1, 0);
        constants_copy(to->fc2, from.fc2.bias + rank * NC, NC, 1, 0);
        constants_copy(to->fc1, from.fc1.bias + rank * NF, NF, 1, 0);
        constants_copy(to->gamma[0], from.self_norm.gamma, D, 1, 0);
        constants_copy(to->beta[0], from.self_norm.beta, D, 1, 0);
        constants_copy(to->gamma[1], from.cross_norm.gamma, D, 1, 0);
        constants_copy(to->beta[1], from.cross_norm.beta, D, 1, 0);
        constants_copy(to->gamma[2], from.norm.gamma, D, 1, 0);
        constants_copy(to->beta[2], from.norm.beta, D, 1, 0);
    }
    copy_commit();
    for (int i = threadIdx.x; i < UNITS / CL * PRODUCT_UNIT; i += THREADS) {
        const int own = i / PRODUCT_UNIT, c = (rank + own * CL) * PRODUCT_UNIT + i % PRODUCT_UNIT;
        const bool in = c < p.rules.vocabulary;

        s->unit_bias[own][i % PRODUCT_UNIT] = in ? p.output.bias[c] : -INFINITY;
        s->unit_rules[own][i % PRODUCT_UNIT] = in ? p.rules.mask[c] : 0.0f;
    }
    copy_wait<0>();
}

template <class T>
static __device__ __forceinline__ void rows_begin(struct fused_shared<T> *s,
                                                  const struct fused_params &p, int first)
{
    int r = threadIdx.x;

    if (r >= ROWS)
        return;
    s->row[r] = -1;
    s->finished[r] = 1;
    s->token[r] = s->position[r] = s->min_new[r] = s->max_new[r] = s->source_len[r] = s->cross[r] =
        0;
    if (r < p.rows_each && first + r < p.n) {
        const struct cuda_row *row = p.rows.row + p.active[first + r];

        s->row[r] = p.active[first + r];
        s->token[r] = row->token;
        s->position[r] = row->position;
        s->finished[r] = row->finished;
        s->min_new[r] = row->min_new;
        s->max_new[r] = row->max_new;
        s->source_len[r] = row->source_len;
        s->cross[r] = row->cross;
    }
}

/* The warp's row gets its token; block 0 tells the world. */
template <class T, int CL>
static __device__ __forceinline__ void row_choose(struct fused_shared<T> *s,
                                                  const struct fused_params &p,
                                                  const struct fused_place<CL> &at)
{
    const int row = at.warp;
    struct plain_choice choice;

    if (s->row[row] < 0 || s->finished[row])
        return;
    choice =
        choose_plain(p.rules, s->unit[row], product_units(p.rules.vocabulary), s->special[row][0],
                     s->special[row][1], s->position[row], s->max_new[row], at.lane);
    if (at.lane == 0) {
        int position = s->position[row];

        s->token[row] = choice.token;
        s->finished[row] = choice.token == p.rules.eos_token || position + 1 >= s->max_new[row];
        s->position[row] = position + 1;
        if (at.rank == 0) {
            struct cuda_row *out = p.rows.row + s->row[row];
            size_t to = (size_t)s->row[row] * p.rows.P + position;

            p.rows.tokens[to] = choice.token;
            p.rows.logprobs[to] = choice.logprob;
            out->token = choice.token;
            out->position = position + 1;
            out->finished = s->finished[row];
        }
    }
    __syncwarp();
}

/* The logit of a token that the rules may force (which 0: EOS, 1: BOS), out of a unit whose columns
 * four lanes share: one has it, all four send it. Whole warps call. */
template <class T, int CL>
static __device__ __forceinline__ void special_send(struct fused_shared<T> *s,
                                                    const struct fused_place<CL> &at, int which,
                                                    int token, int row, int q, const float (&v)[8])
{
    const int column = token % PRODUCT_UNIT, place = (column >> 3) * 2 + (column & 1);
    float logit = v[0];

#pragma unroll
    for (int t = 1; t < 8; t++)
        logit = t == place ? v[t] : logit;
    logit = __shfl_sync(0xffffffffu, logit, (column & 7) >> 1, 4);
    if (row >= at.rows)
        return;
#pragma unroll
    for (int r = 0; r < CL / 4; r++)
        cluster_send4(&s->special[row][which], &s->unit_box, q * (CL / 4) + r,
                      __float_as_uint(logit));
}

/* Units of logits of this block: units first, first + CL, ..., six at most, a warp each. */
template <class T, int CL>
static __device__ __forceinline__ void units_exchange(struct fused_shared<T> *s,
                                                      const struct fused_params &p,
                                                      const struct fused_place<CL> &at, int first)
{
    const int i = threadIdx.x >> 5, row = threadIdx.x >> 2 & 7, q = threadIdx.x & 3;
    const int unit = first + i * CL, own = unit / CL;
    float v[8], add[8];
    float4 summary;

    if (i >= LOGIT_ROUNDS * ROUND_TILES / 2 || unit >= product_units(p.rules.vocabulary))
        return;
#pragma unroll
    for (int t = 0; t < 8; t++) {
        int column = 8 * (t >> 1) + 2 * q + (t & 1);
        const float *sum = &s->partial[0][row][i * PRODUCT_UNIT + column];

        v[t] = __fadd_rn(((sum[0] + sum[ROWS * PARTIAL_STRIDE]) + sum[2 * ROWS * PARTIAL_STRIDE]) +
                             sum[3 * ROWS * PARTIAL_STRIDE],
                         s->unit_bias[own][column]);
        add[t] = s->unit_rules[own][column];
    }
    if (p.rules.forced_eos >= 0 && p.rules.forced_eos / PRODUCT_UNIT == unit)
        special_send(s, at, 0, p.rules.forced_eos, row, q, v);
    if (p.rules.forced_bos >= 0 && p.rules.forced_bos / PRODUCT_UNIT == unit)
        special_send(s, at, 1, p.rules.forced_bos, row, q, v);
    summary = unit_summary(p.rules, unit, q, s->position[row] < s->min_new[row], v, add);
    if (row >= at.rows)
        return;
#pragma unroll
    for (int r = 0; r < CL / 4; r++)
        cluster_send16(&s->unit[row][unit], &s->unit_box, q * (CL / 4) + r,
                       make_uint4(__float_as_uint(summary.x), __float_as_uint(summary.y),
                                  __float_as_uint(summary.z), __float_as_uint(summary.w)));
}

#endif

#endif
