/* SPDX-License-Identifier: MIT
 *
 * fused_step_parts: what a block of the fused step does, phase by phase: its shared memory,
 * products from registers, norms, attention, and what it sends to the other blocks of its cluster.
 * For fused_step.cu alone.
 */
#ifndef PGPT_KERNELS_CUDA_FUSED_STEP_PARTS_CUH
#define PGPT_KERNELS_CUDA_FUSED_STEP_PARTS_CUH

#include "kernels/cuda/attention_chunk.cuh"
#include "kernels/cuda/cluster.cuh"
#include "kernels/cuda/fused_model.cuh"
#include "kernels/cuda/fused_step.h"
#include "kernels/cuda/product_output.cuh"

enum {
    D = 512,
    HEADS = 8,
    ROWS = FUSED_STEP_ROWS,
    THREADS = 256,
    WARPS = THREADS / 32,
    POSITIONS = 512,
    CHUNKS = POSITIONS / CHUNK,
    X_STRIDE = D * 2 + PRODUCT_TILE_PAD,
    ROUND_TILES = 6,  /* tiles of 16 columns that a block multiplies at once */
    LOGIT_ROUNDS = 2, /* of them before logits are looked at */
    PARTIAL_STRIDE = LOGIT_ROUNDS * ROUND_TILES * 16 + 4,
    BLOCKS = D / 32 / FORMAT_PARTS, /* of a part of K = D */
};

struct fused_step_params {
    struct fused_layer layer[FUSED_STEP_LAYERS];
    struct fused_weight output;
    struct cuda_weight embedding;
    const float *positions;
    float embedding_factor;
    enum product_act activation;
    int32_t layers;
    const int32_t *n, *active;
    struct cuda_rows rows;
    struct cuda_rules rules;
    struct network_cache self, cross;
    /* what the step leaves: the last layer's output before its norm, or what its logits leave */
    float *y;                   /* (n, D); or NULL and */
    struct product_unit *units; /* (n, units) */
    float *special;             /* (n, 2) */
    float *logits;              /* (n, V) or NULL */
};

/* What a block keeps of a layer: its columns' biases and the layer norms. */
template <int FFN> struct fused_step_constants {
    float qkv[3 * D / HEADS], out[D / HEADS], cross_q[D / HEADS], cross_out[D / HEADS],
        fc2[D / HEADS];
    float fc1[FFN / HEADS];
    float gamma[3][D], beta[3][D]; /* after self-attention, cross-attention, feed-forward */
};

/* A block's shared memory. What the cluster sends about is o, y, h, q, key and value, each with a
 * mailbox of its own. A block sends the next letter to a mailbox only after another one has come
 * from every block, which each of them sends after it has read the letter before: so nothing is
 * overwritten that somebody still reads. By the same token o and h share their memory: between a
 * letter of one and one of the other lies one of y from every block. */
template <class T, int FFN> struct fused_step_shared {
    typedef T element;
    enum { FORWARD = FFN, H_STRIDE = FFN * 2 + PRODUCT_TILE_PAD };
    alignas(16) char x[ROWS * X_STRIDE]; /* (ROWS, D) elements: the next product's input */
    union {
        alignas(16) char o[ROWS * X_STRIDE]; /* (ROWS, D) elements: attention's output */
        alignas(16) char h[ROWS * H_STRIDE]; /* (ROWS, FFN) elements */
    };
    alignas(16) float y[ROWS][D];             /* residual stream, before the norm */
    alignas(16) float x_own[ROWS][D / HEADS]; /* and after it, this block's columns */
    alignas(16) float partial[FORMAT_PARTS][ROWS][PARTIAL_STRIDE];
    alignas(16) T q[ROWS][HEAD];
    alignas(16) T key[ROWS][HEAD];
    alignas(16) T value[ROWS][HEAD];
    struct attention_kept parts[ROWS][CHUNKS];
    struct cluster_mailbox head_box, query_box, o_box, y_box, h_box;
    int32_t row[ROWS]; /* -1: none */
    int32_t token[ROWS], position[ROWS], finished[ROWS], no_eos[ROWS], source_len[ROWS];
    int32_t cross[ROWS], beam[ROWS];
    alignas(16) struct fused_step_constants<FFN> layer[2]; /* this layer's and the next one's */
};

#if __CUDA_ARCH__ >= 900

/* The same number, of which the compiler shall not know that: what is computed from it is computed
 * here, not kept in registers, which are all taken, from one phase of a step to the next. */
static __device__ __forceinline__ int here(int value)
{
    asm volatile("" : "+r"(value));
    return value;
}

/* J tiles of weights by N blocks of this warp's part from its block `from` on; a part has `each`
 * blocks; tile t of the block's list by tile_of(t). */
template <int J, int N, class Tile>
static __device__ __forceinline__ void weights_fetch(struct format_weights (&w)[J][N],
                                                     const char *packed, int each, int part,
                                                     int from, int first, Tile tile_of, int lane)
{
#pragma unroll
    for (int j = 0; j < J; j++) {
        const char *at =
            packed +
            ((size_t)tile_of(first + 2 * j) * (each * FORMAT_PARTS) + part * each + from) * 1024;

#pragma unroll
        for (int b = 0; b < N; b++)
            w[j][b] = weights_stream(at + b * 1024, lane);
    }
}

/* J tiles times the rows, over N blocks of inputs from `block` on. */
template <class F, int J, int N>
static __device__ __forceinline__ void
weights_add(float (&acc)[J][4], const struct format_weights (&w)[J][N], const char *rows,
            int stride, int block, int lane)
{
#pragma unroll
    for (int b = 0; b < N; b++) {
        typename F::rows x = rows_get<F>(rows, stride, block + b, lane);

#pragma unroll
        for (int j = 0; j < J; j++)
            block_multiply<F>(acc[j], w[j][b], x, NULL, lane);
    }
}

/* A warp's sums into the block's partial sums from tile `to` on. */
template <class S, int J>
static __device__ __forceinline__ void sums_keep(S *s, const float (&acc)[J][4], int part,
                                                 int first, int to, int lane)
{
#pragma unroll
    for (int j = 0; j < J; j++)
        sums_put(&s->partial[part][0][(to + first + 2 * j) * 16], (int)PARTIAL_STRIDE, acc[j],
                 lane);
}

/* This warp's part, of N blocks, of J tiles times the rows into the partial sums. */
template <class F, class S, int J, int N>
static __device__ __forceinline__ void
weights_multiply(S *s, const struct format_weights (&w)[J][N], const char *rows, int stride,
                 int part, int first, int to, int lane)
{
    float acc[J][4] = {};

    weights_add<F>(acc, w, rows, stride, part * N, lane);
    sums_keep(s, acc, part, first, to, lane);
}

/* Four columns of a row, parts added up, with bias. */
template <class S>
static __device__ __forceinline__ float4 partial_get4(const S *s, int row, int column,
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

/* One block's place in the cluster and one warp's in attention. */
template <int CL> struct fused_step_place {
    int rank, head, half, warp, lane, part, first;
    int rows;               /* of this cluster */
    int row, share, shares; /* attention: this warp's row (-1: none) and its share of the chunks */
};

/* Row `row`, held by its warp, into x; its own columns into x_own. */
template <int CL, class S>
static __device__ __forceinline__ void row_put(S *s, const struct fused_step_place<CL> &at, int row,
                                               const float4 (&v)[4])
{
    constexpr int NC = D / CL;

#pragma unroll
    for (int j = 0; j < 4; j++) {
        int k = j * 128 + at.lane * 4, own = k - at.rank * NC;

        if (own >= 0 && own < NC)
            *(float4 *)&s->x_own[row][own] = v[j];
        *(uint2 *)(s->x + row * X_STRIDE + k * 2) = elements4<typename S::element>(v[j]);
    }
}

/* The warp's row: layer norm of y; the order of sums is that of tile_fill_float(). */
template <int CL, class S>
static __device__ __forceinline__ void row_norm(S *s, const struct fused_step_place<CL> &at,
                                                const float *gamma, const float *beta)
{
    const int row = at.warp;
    float4 v[4];
    float mean = 0.0f, square = 0.0f;

    if (row >= at.rows)
        return;
#pragma unroll
    for (int j = 0; j < 4; j++) {
        v[j] = *(const float4 *)&s->y[row][j * 128 + at.lane * 4];
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
        int k = j * 128 + at.lane * 4;
        float4 g = *(const float4 *)(gamma + k), b = *(const float4 *)(beta + k);

        v[j].x = __fmaf_rn(v[j].x * square, g.x, b.x);
        v[j].y = __fmaf_rn(v[j].y * square, g.y, b.y);
        v[j].z = __fmaf_rn(v[j].z * square, g.z, b.z);
        v[j].w = __fmaf_rn(v[j].w * square, g.w, b.w);
    }
    row_put(s, at, row, v);
}

template <class F, int CL, class S>
static __device__ __forceinline__ void row_embed(S *s, const struct fused_step_params &p,
                                                 const struct fused_step_place<CL> &at)
{
    const int row = at.warp;
    int32_t token, position;
    float4 v[4];

    if (row >= at.rows)
        return;
    token = s->token[row];
    position = s->finished[row] ? 0 : s->position[row];
#pragma unroll
    for (int j = 0; j < 4; j++) {
        int k = j * 128 + at.lane * 4;
        float4 e = embedding_plain4<F>(p.embedding, token, k);
        float4 q = *(const float4 *)(p.positions + (size_t)position * D + k);

        v[j].x = __fadd_rn(__fmul_rn(e.x, p.embedding_factor), q.x);
        v[j].y = __fadd_rn(__fmul_rn(e.y, p.embedding_factor), q.y);
        v[j].z = __fadd_rn(__fmul_rn(e.z, p.embedding_factor), q.z);
        v[j].w = __fadd_rn(__fmul_rn(e.w, p.embedding_factor), q.w);
    }
    row_put(s, at, row, v);
}

/* y of this block's columns (row, 64 or 32): product + bias + x; to every block, or into
 * y_out (n, D) when that is not NULL. first: the cluster's first row among n. */
template <int CL, class S>
static __device__ __forceinline__ void residual_exchange(S *s,
                                                         const struct fused_step_place<CL> &at,
                                                         const float *bias, float *y_out, int first)
{
    constexpr int NC = D / CL, ITEMS = ROWS * NC / 4, GROUPS = THREADS / ITEMS;
    const int thread = here(threadIdx.x), item = thread % ITEMS, group = thread / ITEMS;
    const int row = item / (NC / 4), c = item % (NC / 4) * 4, column = at.rank * NC + c;
    float4 v, x;
    uint4 bits;

    if (row >= at.rows)
        return;
    v = partial_get4(s, row, c, bias + c);
    x = *(const float4 *)&s->x_own[row][c];
    v.x += x.x;
    v.y += x.y;
    v.z += x.z;
    v.w += x.w;
    if (y_out) {
        if (group == 0)
            *(float4 *)(y_out + (size_t)(first + row) * D + column) = v;
        return;
    }
    bits = make_uint4(__float_as_uint(v.x), __float_as_uint(v.y), __float_as_uint(v.z),
                      __float_as_uint(v.w));
#pragma unroll
    for (int r = 0; r < CL / GROUPS; r++)
        cluster_send16(&s->y[row][column], &s->y_box, group * (CL / GROUPS) + r, bits);
}

/* Columns of the feed-forward's first product, `count` of them from the block's c0 on: activated,
 * to every block. */
template <int CL, class S>
static __device__ __forceinline__ void forward_exchange(S *s, const struct fused_step_place<CL> &at,
                                                        enum product_act activation,
                                                        const float *bias, int c0, int count)
{
    const int fours = count / 4, thread = here(threadIdx.x);

#pragma unroll 1
    for (int i = thread / 4; i < at.rows * fours; i += THREADS / 4) {
        int row = i / fours, c = i % fours * 4;
        int column = at.rank * (S::FORWARD / CL) + c0 + c;
        float4 v = partial_get4(s, row, c, bias + c0 + c);

        v = make_float4(activate(activation, v.x), activate(activation, v.y),
                        activate(activation, v.z), activate(activation, v.w));
#pragma unroll
        for (int r = 0; r < CL / 4; r++)
            cluster_send8(s->h + row * S::H_STRIDE + column * 2, &s->h_box,
                          (int)(threadIdx.x & 3) * (CL / 4) + r, elements4<typename S::element>(v));
    }
}

/* The query (and, of self-attention, the new key and value) of this block's columns, to the blocks
 * of its head. column: of the block's list, q then k then v. */
template <int CL, class S>
static __device__ __forceinline__ void head_put4(S *s, struct cluster_mailbox *box,
                                                 const struct fused_step_place<CL> &at, int row,
                                                 int column, const float4 &v)
{
    typedef typename S::element T;
    constexpr int NC = D / CL, HALVES = CL / HEADS;
    const int which = column / NC, rest = at.half * NC + column % NC; /* dimension of the head */
    uint2 e = elements4<T>(v);

    T *to = which == 0 ? s->q[row] : which == 1 ? s->key[row] : s->value[row];

#pragma unroll
    for (int h = 0; h < HALVES; h++)
        cluster_send8(to + rest, box, at.head * HALVES + h, e);
}

/* Chunk c of a row's keys and values below position `end`. */
template <int CL, class S, class T>
static __device__ __forceinline__ void
chunk_fetch(const S *s, struct chunk_half<T> *chunk, const struct fused_step_params &p, int layer,
            const struct fused_step_place<CL> &at, bool cross, int row, int c, int end)
{
    const struct network_cache &cache = cross ? p.cross : p.self;
    const size_t head = (size_t)at.head * cache.positions * HEAD;
    struct chunk_cache<T> caches;
    struct chunk_row from = {cross ? s->cross[row] : s->row[row], end, end, NULL};

    caches.keys = (const T *)(cache.k + (size_t)layer * cache.layer_stride) + head;
    caches.values = (const T *)(cache.v + (size_t)layer * cache.layer_stride) + head;
    caches.stride = (size_t)HEADS * cache.positions * HEAD;
    if (!cross && s->beam[row]) {
        from.source_row = p.rows.source_row + (size_t)from.row * p.rows.P;
        chunk_load<true>(chunk, caches, from, c, at.lane);
    } else {
        chunk_load<false>(chunk, caches, from, c, at.lane);
    }
}

/* The newest position's key and value, fresh from this step's product, into the cache. This block
 * alone reads the row's cache of this head in later steps of this launch. */
template <int CL, class S>
static __device__ __forceinline__ void newest_keep(const S *s, const struct network_cache &cache,
                                                   int layer, const struct fused_step_place<CL> &at,
                                                   int row, int position)
{
    const int i = at.lane & 7; /* 16 bytes */
    const size_t to =
        (size_t)layer * cache.layer_stride +
        ((((size_t)s->row[row] * HEADS + at.head) * cache.positions + position) * HEAD + i * 8) *
            sizeof(typename S::element);

    if (at.lane < 8)
        *(uint4 *)(cache.k + to) = *(const uint4 *)&s->key[row][i * 8];
    else if (at.lane < 16)
        *(uint4 *)(cache.v + to) = *(const uint4 *)&s->value[row][i * 8];
}

/* The first chunk of the row's share, but for the newest position. */
template <int CL, class S, class T>
static __device__ __forceinline__ void
attend_fetch(const S *s, struct chunk_half<T> *chunk, const struct fused_step_params &p, int layer,
             const struct fused_step_place<CL> &at, bool cross, int row)
{
    if (row >= 0)
        chunk_fetch<CL>(s, chunk, p, layer, at, cross, row, at.share,
                        cross ? s->source_len[row] : s->position[row]);
}

/* A row's output to every block's o. */
template <int CL, class S>
static __device__ __forceinline__ void attend_send(S *s, const struct fused_step_place<CL> &at,
                                                   int row, const struct attention_part &part)
{
    const uint4 out = part_words<typename S::element>(part, at.lane);

#pragma unroll
    for (int r = 0; r < CL / 4; r++)
        cluster_send16(s->o + row * X_STRIDE + (at.head * HEAD + (at.lane >> 2) * 8) * 2, &s->o_box,
                       (at.lane & 3) * (CL / 4) + r, out);
}

/* Attention of this block's rows and head; chunk: what attend_fetch() got. */
template <int CL, class S, class T>
static __device__ __forceinline__ void attend(S *s, struct chunk_half<T> *chunk,
                                              const struct fused_step_params &p, int layer,
                                              const struct fused_step_place<CL> &at, bool cross)
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
                chunk_fetch<CL>(s, chunk, p, layer, at, cross, row, c, cross ? length : position);
            if (!cross && position / CHUNK == c) {
                newest_keep<CL>(s, p.self, layer, at, row, position);
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
    attend_send(s, at, row, part);
}

/* count floats (a multiple of 4) of each of `groups` runs, `step` apart, on their way. */
static __device__ __forceinline__ void constants_copy(float *to, const float *from, int count,
                                                      int groups, int step)
{
    for (int i = here(threadIdx.x) * 4; i < count * groups; i += THREADS * 4)
        copy_16(to + i, from + i / count * step + i % count, true);
}

/* A layer's constants on their way into `to`; copy_wait<0>() and a barrier follow. */
template <int CL, int FFN>
static __device__ __forceinline__ void constants_fetch(struct fused_step_constants<FFN> *to,
                                                       const struct fused_layer &from, int rank)
{
    constexpr int NC = D / CL, NF = FFN / CL;

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
    copy_commit();
}

template <class S>
static __device__ __forceinline__ void rows_begin(S *s, const struct fused_step_params &p,
                                                  int first, int count)
{
    const int r = threadIdx.x;

    if (r >= ROWS)
        return;
    s->row[r] = -1;
    s->finished[r] = 1;
    s->token[r] = s->position[r] = s->no_eos[r] = s->source_len[r] = s->cross[r] = s->beam[r] = 0;
    if (r < count) {
        const struct cuda_row *row = p.rows.row + p.active[first + r];

        s->row[r] = p.active[first + r];
        s->token[r] = row->token;
        s->position[r] = row->position;
        s->finished[r] = row->finished;
        s->no_eos[r] = row->position < row->min_new;
        s->source_len[r] = row->source_len;
        s->cross[r] = row->cross;
        s->beam[r] = row->flags & CUDA_ROW_BEAM;
    }
}

/* Lane q's 8 logits of the i-th row's unit: what else is kept of them than its summary. */
static __device__ __forceinline__ void unit_keep(const struct fused_step_params &p, int i, int unit,
                                                 int q, const float (&v)[8])
{
#pragma unroll
    for (int t = 0; t < 8; t++) {
        const int c = unit * PRODUCT_UNIT + 8 * (t >> 1) + 2 * q + (t & 1);

        if (p.logits && c < p.rules.vocabulary)
            p.logits[(size_t)i * p.rules.vocabulary + c] = v[t];
        if (c == p.rules.forced_eos)
            p.special[2 * i] = v[t];
        if (c == p.rules.forced_bos)
            p.special[2 * i + 1] = v[t];
    }
}

/* Units of logits of this block, first, first + CL, ..., six at most, a warp each. first_row: the
 * cluster's first among n. */
template <int CL, class S>
static __device__ __forceinline__ void units_keep(S *s, const struct fused_step_params &p,
                                                  const struct fused_step_place<CL> &at, int first,
                                                  int first_row)
{
    const int thread = here(threadIdx.x), i = thread >> 5, row = thread >> 2 & 7, q = thread & 3;
    const int units = product_units(p.rules.vocabulary), unit = first + i * CL;
    float4 summary;
    float v[8], add[8];

    if (i >= LOGIT_ROUNDS * ROUND_TILES / 2 || unit >= units)
        return;
#pragma unroll
    for (int t = 0; t < 8; t++) {
        const int column = 8 * (t >> 1) + 2 * q + (t & 1);
        const float *sum = &s->partial[0][row][i * PRODUCT_UNIT + column];
        constexpr int PART = ROWS * PARTIAL_STRIDE;

        v[t] = __fadd_rn(((sum[0] + sum[PART]) + sum[2 * PART]) + sum[3 * PART],
                         p.output.bias[unit * PRODUCT_UNIT + column]);
    }
    if (row < at.rows)
        unit_keep(p, first_row + row, unit, q, v);
#pragma unroll
    for (int t = 0; t < 8; t++) {
        const int c = unit * PRODUCT_UNIT + 8 * (t >> 1) + 2 * q + (t & 1);

        add[t] = c < p.rules.vocabulary ? p.rules.mask[c] : 0.0f;
        v[t] = c < p.rules.vocabulary ? v[t] : -INFINITY;
    }
    summary = unit_summary(p.rules, unit, q, s->no_eos[row], v, add);
    if (row < at.rows && q == 0)
        *(float4 *)(p.units + (size_t)(first_row + row) * units + unit) = summary;
}

#endif

#endif
