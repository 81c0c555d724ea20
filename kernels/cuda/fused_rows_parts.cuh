/* SPDX-License-Identifier: MIT
 *
 * fused_rows_parts: what a block of the kernel of fused_rows.h does, phase by phase: its shared
 * memory, products, norms, attention, choice, and what it sends to the other blocks of its cluster.
 * For fused_rows.cu alone.
 */
#ifndef PGPT_KERNELS_CUDA_FUSED_ROWS_PARTS_CUH
#define PGPT_KERNELS_CUDA_FUSED_ROWS_PARTS_CUH

#include "kernels/cuda/attention_chunk.cuh"
#include "kernels/cuda/choose_plain.cuh"
#include "kernels/cuda/fused_rows.h"
#include "kernels/cuda/product_output.cuh"
#include "kernels/cuda/warpgroup.cuh"
#include "kernels/cuda/weights_ring.cuh"

enum {
    D = 512,
    HEADS = 8,
    FFN = 256,
    BLOCKS = 8,            /* of a cluster: one a head */
    COLUMNS = D / BLOCKS,  /* that a block has of a product of D columns */
    HIDDEN = FFN / BLOCKS, /* and of the feed-forward's first */
    TILES = COLUMNS / 16,
    WARPS = 16, /* four warpgroups, one a part of the inputs */
    THREADS = WARPS * 32,
    UNITS = 128,              /* most units of logits: vocabularies up to 4,096 */
    SLOT = 32 * D * 2,        /* bytes: a piece of weights */
    SHARED_MOST = 227 * 1024, /* bytes of a block */
    SLOTS_MOST = 5,
    PLAN_MOST = FUSED_ROWS_LAYERS * 14 + UNITS / BLOCKS, /* pieces: plan_make() */
    PARTIAL_STRIDE = COLUMNS + 4,
    FINISHED = -1, /* in place of a row's position */
};

struct fused_rows_weight {
    const char *packed;
    const float *bias;
};

struct fused_rows_layer {
    struct fused_rows_weight qkv, out, cross_q, cross_out, fc1, fc2;
    struct network_norm self_norm, cross_norm, norm;
};

struct fused_rows_params {
    struct fused_rows_layer layer[FUSED_ROWS_LAYERS];
    struct fused_rows_weight output;
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

/* Biases of this block's columns of a layer. */
struct fused_rows_biases {
    float qkv[3 * COLUMNS], out[COLUMNS], cross_q[COLUMNS], cross_out[COLUMNS], fc2[COLUMNS];
    float fc1[HIDDEN];
};

/*
 * A block's shared memory, but for the ring's slots behind it. Row i of the cluster belongs to
 * block i % 8, as its row i / 8: that block holds its residual stream, norms it, and chooses its
 * tokens, in warp i / 8. Every block has a copy of all rows' inputs of the next product.
 *
 * Letters (cluster.cuh), each of one size, in the order of a step:
 *   x      all rows' inputs, each row from its owner to all blocks
 *   o      attention's output, each head from its block to all; h, the hidden values, likewise.
 * They share memory y      a product's columns with bias, from all blocks to the row's owner units
 * summaries of logits (and special ones), from all blocks to the row's owner state  the rows'
 * positions, from their owners to all blocks
 *
 * Nothing is overwritten that somebody still reads, and no letter arrives before the one before it
 * is complete: a block sends y (units) behind a barrier that follows its product, and an owner
 * sends x when it has y (units) of its rows from all blocks. So who has x from all owners may write
 * to whatever was read before: o, h, y, units. x itself is written by owners that have y (units)
 * from all blocks, which have all read the x before. Within a block `partial` is read in front of
 * what is sent, so the next letter x (o, h) comes behind all reading, and a barrier is needed only
 * between rounds of one product.
 */
template <class T, int NT> struct fused_rows_shared {
    static constexpr int ROWS = 8 * NT;
    /* of logits, before they are looked at: with few rows a look leaves most threads idle */
    static constexpr int ROUNDS = NT <= 2 ? 2 : 1;

    alignas(1024) char x[ROWS * D * 2]; /* (D / 64, ROWS, 128 bytes), as warpgroup.cuh wants it */
    alignas(1024) char o[ROWS * D * 2]; /* the same; h: (FFN / 64, ROWS, 128 bytes) */
    alignas(16) float y[NT][D];         /* of own rows */
    /* of own rows: the residual stream, (D) float; between a step's last norm and the next
     * embedding, whose residual stream nobody wants, the units of logits, (UNITS) float4 */
    alignas(16) char kept[NT][D * 4];
    alignas(16) float partial[ROUNDS][FORMAT_PARTS][ROWS][PARTIAL_STRIDE];
    alignas(16) T q[ROWS][HEAD];
    alignas(16) struct fused_rows_biases layer[FUSED_ROWS_LAYERS];
    /* what this block adds to its logits: -inf past the vocabulary; what the rules add */
    alignas(8) float unit_bias[UNITS / BLOCKS][PRODUCT_UNIT],
        unit_rules[UNITS / BLOCKS][PRODUCT_UNIT];
    float special[NT][2];
    struct cluster_mailbox x_box, o_box, h_box, y_box, unit_box, state_box;
    uint64_t full[SLOTS_MOST];
    int32_t pieces;
    struct ring_piece plan[PLAN_MOST]; /* of weights, as a step multiplies them */
    int32_t row[ROWS];                 /* -1: none */
    int32_t state[ROWS];               /* position, or FINISHED */
    int32_t min_new[ROWS], max_new[ROWS], source_len[ROWS], cross[ROWS];
    int32_t token[NT]; /* of own rows */
};

template <class Shared> struct fused_rows_ring {
    static constexpr int BEHIND = (sizeof(Shared) + 127) / 128 * 128;
    static constexpr int FIT = (SHARED_MOST - BEHIND) / SLOT;
    static constexpr int SLOTS = FIT < SLOTS_MOST ? FIT : SLOTS_MOST;
    static constexpr int BYTES = BEHIND + SLOTS * SLOT; /* of shared memory in all */

    static_assert(SLOTS >= 2, "64 columns lie there together");
    /* the weights of two products in a row may lie there */
    static constexpr bool TWO = SLOTS >= 4;
    static __device__ __forceinline__ char *slot(Shared *s, int i)
    {
        return (char *)s + BEHIND + i * SLOT;
    }
};

/* One block's place in the cluster, and one warp's in it. */
struct fused_rows_place {
    int rank, warp, lane;
    int part, tile;       /* its part of the inputs, and its 16 columns of 64 */
    int first, rows, own; /* rows of the cluster: the first, how many, how many are this block's */
    int pieces;           /* of weights, a step */
};

#if __CUDA_ARCH__ >= 900 && PGPT_CUDA_HOPPER

/* The same number, of which the compiler shall not know that: what is computed from it is computed
 * here, not kept in registers from one phase of a step to the next. */
static __device__ __forceinline__ int here(int value)
{
    asm volatile("" : "+r"(value));
    return value;
}

/* Weights */

/* What this block multiplies in a step, one thread: 32 columns by D inputs a piece, or 64 by FFN.
 * Their number. */
static __device__ __forceinline__ int plan_make(struct ring_piece *plan,
                                                const struct fused_rows_params &p, int rank)
{
    const int groups = product_padded(p.rules.vocabulary) / COLUMNS;
    int pieces = 0;

    auto add = [&](const char *packed, int first, int count) {
        for (int i = 0; i < count; i++) {
            plan[pieces].bytes = SLOT;
            plan[pieces++].from = packed + (size_t)(first + i) * SLOT;
        }
    };

    for (int l = 0; l < p.layers; l++) {
        const struct fused_rows_layer &layer = p.layer[l];

        for (int which = 0; which < 3; which++)
            add(layer.qkv.packed, which * (D / 32) + rank * 2, 2);
        add(layer.out.packed, rank * 2, 2);
        add(layer.cross_q.packed, rank * 2, 2);
        add(layer.cross_out.packed, rank * 2, 2);
        add(layer.fc1.packed, rank, 1);
        add(layer.fc2.packed, rank, 1);
    }
    for (int group = rank; group < groups; group += BLOCKS)
        add(p.output.packed, group * 2, 2);
    return pieces;
}

/* Products: weights to registers as soon as there is time, then, when the rows are here, the
 * matrix instructions, then sums to shared memory. */

/* This warp's share of the next product's weights. */
template <class F, int K, int COUNT, class S>
static __device__ __forceinline__ void product_take(S *s, struct format_weights (&w)[4],
                                                    struct ring_place *at,
                                                    const struct fused_rows_place &place)
{
    typedef fused_rows_ring<S> ring;
    constexpr int BLK = K / 32 / FORMAT_PARTS, TILE = 16 * K * 2, EACH = SLOT / TILE;

    if (place.tile < COUNT) {
        const struct ring_place piece =
            ring_ahead<ring::SLOTS>(*at, place.tile / EACH, place.pieces);
        const char *from =
            ring::slot(s, piece.slot) + place.tile % EACH * TILE + place.part * BLK * 1024;

        ring_wait(&s->full[piece.slot], piece.turn);
#pragma unroll
        for (int b = 0; b < BLK; b++)
            w[b] = weights_get<F>(from + b * 1024, place.lane);
    } else {
#pragma unroll
        for (int b = 0; b < BLK; b++)
            w[b].half[0] = w[b].half[1] = make_uint4(0, 0, 0, 0);
    }
    *at = ring_ahead<ring::SLOTS>(*at, COUNT / EACH, place.pieces);
}

/* Begins to multiply: this warpgroup's part of K inputs times all rows. rows: x, o or h, received.
 */
template <class F, int K, class S, int N>
static __device__ __forceinline__ void
product_begin(float (&sums)[N], const struct format_weights (&w)[4], const char *rows,
              const struct fused_rows_place &place)
{
    constexpr int BLK = K / 32 / FORMAT_PARTS, LINES = S::ROWS * 128;
    const uint32_t from =
        shared_address(rows) + place.part * BLK / 2 * LINES + place.part * BLK % 2 * 64;

    warpgroup_publish();
    __syncwarp();
    warpgroup_fence();
#pragma unroll
    for (int b = 0; b < BLK; b++) {
        const uint32_t x = from + b / 2 * LINES + b % 2 * 64;

        warpgroup_multiply<F, 2 * N>(sums, w[b].half[0], warpgroup_rows(x), b > 0);
        warpgroup_multiply<F, 2 * N>(sums, w[b].half[1], warpgroup_rows(x + 32), 1);
    }
    warpgroup_commit();
}

/* Behind a barrier that follows the end of a product: its slots get their next pieces. used: the
 * product's first. */
template <int K, int COUNT, class S>
static __device__ __forceinline__ void product_refill(S *s, struct ring_place *used,
                                                      const struct fused_rows_place &place)
{
    typedef fused_rows_ring<S> ring;
    constexpr int PIECES = COUNT * 16 * K * 2 / SLOT;
    const int i = WARPS - 1 - place.warp;

    if (i < PIECES && place.lane == 0) {
        const struct ring_place piece = ring_ahead<ring::SLOTS>(*used, i, place.pieces);

        if (piece.left > ring::SLOTS)
            ring_fetch(ring::slot(s, piece.slot),
                       s->plan[ring_ahead<ring::SLOTS>(piece, ring::SLOTS, place.pieces).piece],
                       &s->full[piece.slot]);
    }
    *used = ring_ahead<ring::SLOTS>(*used, PIECES, place.pieces);
}

/* The sums of the part, behind warpgroup_wait(). */
template <class S, int N>
static __device__ __forceinline__ void product_put(S *s, const float (&sums)[N], int round,
                                                   const struct fused_rows_place &place)
{
#pragma unroll
    for (int u = 0; u < N / 4; u++)
        sums_put(&s->partial[round][place.part][u * 8][place.tile * 16], PARTIAL_STRIDE,
                 sums + u * 4, place.lane);
}

/* A product that is one round: ends with all sums in `partial`. */
template <class F, int K, int COUNT, class S>
static __device__ __forceinline__ void product_run(S *s, const struct format_weights (&w)[4],
                                                   struct ring_place *used, const char *rows,
                                                   const struct fused_rows_place &place)
{
    float sums[S::ROWS / 2];

    product_begin<F, K, S>(sums, w, rows, place);
    warpgroup_wait<0>();
    product_put(s, sums, 0, place);
    __syncthreads();
    product_refill<K, COUNT>(s, used, place);
}

/* Four columns of a row, parts added up, with bias. */
template <class S>
static __device__ __forceinline__ float4 partial_get4(const S *s, int row, int column,
                                                      const float *bias)
{
    float4 a = *(const float4 *)&s->partial[0][0][row][column],
           b = *(const float4 *)&s->partial[0][1][row][column];
    float4 c = *(const float4 *)&s->partial[0][2][row][column],
           d = *(const float4 *)&s->partial[0][3][row][column];
    float4 e = *(const float4 *)(bias + column);

    return make_float4((((a.x + b.x) + c.x) + d.x) + e.x, (((a.y + b.y) + c.y) + d.y) + e.y,
                       (((a.z + b.z) + c.z) + d.z) + e.z, (((a.w + b.w) + c.w) + d.w) + e.w);
}

template <class T> static __device__ __forceinline__ uint32_t elements2(float a, float b)
{
    alignas(4) T e[2];

    format_set2(e, a, b);
    return *(const uint32_t *)e;
}

template <class T> static __device__ __forceinline__ uint2 elements4(const float4 &v)
{
    alignas(8) T e[4];

    format_set2(e, v.x, v.y);
    format_set2(e + 2, v.z, v.w);
    return *(const uint2 *)e;
}

/* Queries stay here; a new key or value (which: 0, 1, 2) goes into its cache, of which this block
 * alone reads this head in later steps. */
template <class T, class S>
static __device__ __forceinline__ void head_put(S *s, const struct fused_rows_params &p, int layer,
                                                int which, const float *bias,
                                                const struct fused_rows_place &place)
{
    const struct network_cache &cache = p.self;

    for (int i = here(threadIdx.x); i < place.rows * (COLUMNS / 4); i += THREADS) {
        const int row = i / (COLUMNS / 4), c = i % (COLUMNS / 4) * 4, position = s->state[row];
        const uint2 e = elements4<T>(partial_get4(s, row, c, bias));

        if (which == 0)
            *(uint2 *)&s->q[row][c] = e;
        else if (position != FINISHED)
            *(uint2 *)((which == 1 ? cache.k : cache.v) + (size_t)layer * cache.layer_stride +
                       ((((size_t)s->row[row] * HEADS + place.rank) * cache.positions + position) *
                            HEAD +
                        c) *
                           sizeof(T)) = e;
    }
}

/* This block's columns of y, but for the residual stream, to each row's owner. */
template <class S>
static __device__ __forceinline__ void residual_send(S *s, const float *bias,
                                                     const struct fused_rows_place &place)
{
    for (int i = here(threadIdx.x); i < place.rows * (COLUMNS / 4); i += THREADS) {
        const int row = i / (COLUMNS / 4), c = i % (COLUMNS / 4) * 4;
        const float4 v = partial_get4(s, row, c, bias);

        cluster_send16(&s->y[row / BLOCKS][place.rank * COLUMNS + c], &s->y_box, row % BLOCKS,
                       make_uint4(__float_as_uint(v.x), __float_as_uint(v.y), __float_as_uint(v.z),
                                  __float_as_uint(v.w)));
    }
}

/* This block's hidden values to all blocks. Four neighbouring lanes work out two each of eight
 * columns, and each sends all eight to two blocks. */
template <class T, class S>
static __device__ __forceinline__ void hidden_send(S *s, const struct fused_rows_params &p,
                                                   const float *bias,
                                                   const struct fused_rows_place &place)
{
    constexpr int PART = S::ROWS * PARTIAL_STRIDE, EACH = HIDDEN / 2;

    for (int i = here(threadIdx.x); i < S::ROWS * EACH; i += THREADS) {
        const int quarter = i % 4, row = i / EACH, c = i % EACH * 2;
        const int column = place.rank * HIDDEN + (c & ~7);
        const float *sum = &s->partial[0][0][row][c];
        uint32_t own, words[4];
        float v[2];

#pragma unroll
        for (int e = 0; e < 2; e++)
            v[e] = activate(p.activation,
                            (((sum[e] + sum[e + PART]) + sum[e + 2 * PART]) + sum[e + 3 * PART]) +
                                bias[c + e]);
        own = elements2<T>(v[0], v[1]);
#pragma unroll
        for (int w = 0; w < 4; w++)
            words[w] = __shfl_sync(0xffffffffu, own, w, 4);
        if (row >= place.rows)
            continue;
#pragma unroll
        for (int r = 0; r < BLOCKS / 4; r++)
            cluster_send16(s->o + column / WARPGROUP_PIECE * (S::ROWS * 128) +
                               warpgroup_at(row, column % WARPGROUP_PIECE / 8),
                           &s->h_box, quarter * (BLOCKS / 4) + r,
                           make_uint4(words[0], words[1], words[2], words[3]));
    }
}

/* Own rows */

/* A row held by its warp, inputs j * 128 + 4 lane .. of it in lane's v[j]: the residual stream
 * stays here, the elements go to every block. */
template <class T, class S>
static __device__ __forceinline__ void row_send(S *s, int own, const float4 (&v)[4],
                                                const struct fused_rows_place &place)
{
    const int lane = here(place.lane), odd = lane & 1, row = own * BLOCKS + place.rank;
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
    for (int j = 0; j < 2; j++) {
        const int word = (j + 2 * odd) * 16 + lane / 2;
        const char *to = s->x + word / 8 * (S::ROWS * 128) + warpgroup_at(row, word % 8);

#pragma unroll
        for (int r = 0; r < BLOCKS; r++)
            cluster_send16(to, &s->x_box, r,
                           make_uint4(words[j][0].x, words[j][0].y, words[j][1].x, words[j][1].y));
    }
}

/* Layer norm of y and the residual stream; the order of sums is that of tile_fill_float(). Warps
 * with a row of this block's. */
template <class T, class S>
static __device__ __forceinline__ void row_norm(S *s, const struct network_norm &norm,
                                                uint32_t bytes, uint32_t *phase,
                                                const struct fused_rows_place &place)
{
    const int own = place.warp, lane = here(place.lane);
    float4 v[4], gamma[4], beta[4];
    float mean = 0.0f, square = 0.0f;

    if (own >= place.own)
        return;
#pragma unroll
    for (int j = 0; j < 4; j++) {
        gamma[j] = *(const float4 *)(norm.gamma + j * 128 + lane * 4);
        beta[j] = *(const float4 *)(norm.beta + j * 128 + lane * 4);
    }
    mailbox_receive(&s->y_box, bytes, phase);
#pragma unroll
    for (int j = 0; j < 4; j++) {
        const float4 x = *(const float4 *)(s->kept[own] + (j * 128 + lane * 4) * 4);

        v[j] = *(const float4 *)&s->y[own][j * 128 + lane * 4];
        v[j].x += x.x;
        v[j].y += x.y;
        v[j].z += x.z;
        v[j].w += x.w;
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
        v[j].x = __fmaf_rn(v[j].x * square, gamma[j].x, beta[j].x);
        v[j].y = __fmaf_rn(v[j].y * square, gamma[j].y, beta[j].y);
        v[j].z = __fmaf_rn(v[j].z * square, gamma[j].z, beta[j].z);
        v[j].w = __fmaf_rn(v[j].w * square, gamma[j].w, beta[j].w);
    }
    row_send<T>(s, own, v, place);
}

/* The embedding of this warp's row. */
template <class F, class S>
static __device__ __forceinline__ void row_embed(S *s, const struct fused_rows_params &p,
                                                 const struct fused_rows_place &place)
{
    const int own = place.warp, lane = here(place.lane);
    const int32_t token = s->token[own];
    const int32_t position = max(s->state[own * BLOCKS + place.rank], 0);
    float4 v[4];

#pragma unroll
    for (int j = 0; j < 4; j++) {
        const int k = j * 128 + lane * 4;
        const float4 e = embedding_plain4<F>(p.embedding, token, k);
        const float4 q = *(const float4 *)(p.positions + (size_t)position * D + k);

        v[j].x = __fadd_rn(__fmul_rn(e.x, p.embedding_factor), q.x);
        v[j].y = __fadd_rn(__fmul_rn(e.y, p.embedding_factor), q.y);
        v[j].z = __fadd_rn(__fmul_rn(e.z, p.embedding_factor), q.z);
        v[j].w = __fadd_rn(__fmul_rn(e.w, p.embedding_factor), q.w);
    }
    row_send<typename F::element>(s, own, v, place);
}

/* This warp's row gets its token, and the world is told; all blocks learn its position when
 * another step follows. */
template <class S>
static __device__ __forceinline__ void row_choose(S *s, const struct fused_rows_params &p,
                                                  bool more, const struct fused_rows_place &place)
{
    const int own = place.warp, row = own * BLOCKS + place.rank, lane = here(place.lane);
    int32_t state = s->state[row];

    if (state != FINISHED) {
        const struct plain_choice choice =
            choose_plain(p.rules, (const float4 *)s->kept[own], product_units(p.rules.vocabulary),
                         s->special[own][0], s->special[own][1], state, s->max_new[row], lane);

        const int32_t position = state;
        const bool finished = choice.token == p.rules.eos_token || position + 1 >= s->max_new[row];

        state = finished ? FINISHED : position + 1;
        if (lane == 0) {
            struct cuda_row *out = p.rows.row + s->row[row];
            const size_t to = (size_t)s->row[row] * p.rows.P + position;

            s->token[own] = choice.token;
            p.rows.tokens[to] = choice.token;
            p.rows.logprobs[to] = choice.logprob;
            out->token = choice.token;
            out->position = position + 1;
            out->finished = finished;
        }
    }
    __syncwarp();
    if (!more)
        return;
    if (lane == 0)
        s->state[row] = state; /* for the embedding; the letter brings the same */
    if (lane < BLOCKS)
        cluster_send4(&s->state[row], &s->state_box, lane, (uint32_t)state);
    __syncwarp();
}

/* Attention */

/* All rows' attention of this block's head, a warp a row; the result goes to every block's o. */
template <class T, class S>
static __device__ __forceinline__ void attend(S *s, const struct network_cache &cache, int layer,
                                              bool cross, const struct fused_rows_place &place)
{
    const size_t stride = (size_t)HEADS * cache.positions * HEAD;
    const size_t head = (size_t)place.rank * cache.positions * HEAD;
    const T *k = (const T *)(cache.k + (size_t)layer * cache.layer_stride) + head;
    const T *v = (const T *)(cache.v + (size_t)layer * cache.layer_stride) + head;
    const int lane = here(place.lane);

#pragma unroll 1
    for (int row = place.warp; row < place.rows; row += WARPS) {
        const int state = s->state[row], from = cross ? s->cross[row] : s->row[row];
        /* a finished row looks at nothing and sends what comes of it: letters have one size */
        const int length = state == FINISHED ? 0 : cross ? s->source_len[row] : state + 1;
        struct attention_part all = {-INFINITY, 0.0f, {}};
        vector8<T> keys[LOADS], values[LOADS];
        float q[8];

#pragma unroll 1
        for (int c = 0; c * CHUNK < length; c++) {
            struct attention_part part;

            chunk_load<T>(keys, k, stride, from, NULL, c, length, 0, lane);
            chunk_load<T>(values, v, stride, from, NULL, c, length, 0, lane);
            format_unpack8(*(const uint4 *)&s->q[row][(lane & 7) * 8], (const T *)NULL, q);
#pragma unroll
            for (int d = 0; d < 8; d++)
                q[d] *= 0.125f; /* 1 / sqrt(64) */
            chunk_attend<T>(keys, values, q, length - c * CHUNK, lane, &part);
            if (c)
                part_merge(&all, part);
            else
                all = part;
        }
        {
            alignas(16) T out[8];
            const float scale = 1.0f / all.sum;

#pragma unroll
            for (int d = 0; d < 8; d += 2)
                format_set2(out + d, all.value[d] * scale, all.value[d + 1] * scale);
#pragma unroll
            for (int r = 0; r < BLOCKS / 4; r++)
                cluster_send16(s->o + place.rank * (S::ROWS * 128) + warpgroup_at(row, lane & 7),
                               &s->o_box, (lane >> 3) * (BLOCKS / 4) + r, *(const uint4 *)out);
        }
    }
}

/* Logits */

/* The logit of a token that the rules may force (which 0: EOS, 1: BOS), out of a unit whose columns
 * four lanes share, to the row's owner. */
template <class S>
static __device__ __forceinline__ void special_send(S *s, int which, int token, int row, int q,
                                                    const float (&v)[8])
{
    const int column = token % PRODUCT_UNIT, place = (column >> 3) * 2 + (column & 1);
    float logit = v[0];

    if (q != (column & 7) >> 1)
        return;
#pragma unroll
    for (int t = 1; t < 8; t++)
        logit = t == place ? v[t] : logit;
    cluster_send4(&s->special[row / BLOCKS][which], &s->unit_box, row % BLOCKS,
                  __float_as_uint(logit));
}

/* The units, two a round, of `count` rounds of this block's logits from `first` on, eight lanes a
 * row and round. */
template <class S>
static __device__ __forceinline__ void units_send(S *s, const struct fused_rows_params &p,
                                                  int first, int count,
                                                  const struct fused_rows_place &place)
{
    const int thread = here(threadIdx.x), q = thread & 3, u = thread >> 2 & 1;
    const int row = (thread >> 3) % S::ROWS, at = (thread >> 3) / S::ROWS, round = first + at;
    const int unit = (place.rank + round * BLOCKS) * (COLUMNS / PRODUCT_UNIT) + u;
    const int own = round * (COLUMNS / PRODUCT_UNIT) + u;
    const float *sum = &s->partial[at % S::ROUNDS][0][row][u * PRODUCT_UNIT + 2 * q];
    const float *bias = &s->unit_bias[own][2 * q], *rules = &s->unit_rules[own][2 * q];
    constexpr int PART = S::ROWS * PARTIAL_STRIDE;
    float v[8], add[8];
    float4 summary;

    static_assert(S::ROUNDS * S::ROWS * 8 <= THREADS, "eight lanes a row");
    if (at >= count)
        return;
#pragma unroll
    for (int t = 0; t < 8; t += 2) {
        const float2 a = *(const float2 *)(sum + 4 * t), b = *(const float2 *)(sum + 4 * t + PART);
        const float2 c = *(const float2 *)(sum + 4 * t + 2 * PART),
                     d = *(const float2 *)(sum + 4 * t + 3 * PART);
        const float2 e = *(const float2 *)(bias + 4 * t), f = *(const float2 *)(rules + 4 * t);

        v[t] = __fadd_rn(((a.x + b.x) + c.x) + d.x, e.x);
        v[t + 1] = __fadd_rn(((a.y + b.y) + c.y) + d.y, e.y);
        add[t] = f.x;
        add[t + 1] = f.y;
    }
    summary = unit_summary(p.rules, unit, q, s->state[row] < s->min_new[row], v, add);
    if (row >= place.rows || unit >= product_units(p.rules.vocabulary))
        return;
    if (p.rules.forced_eos >= 0 && p.rules.forced_eos / PRODUCT_UNIT == unit)
        special_send(s, 0, p.rules.forced_eos, row, q, v);
    if (p.rules.forced_bos >= 0 && p.rules.forced_bos / PRODUCT_UNIT == unit)
        special_send(s, 1, p.rules.forced_bos, row, q, v);
    if (q == 0)
        cluster_send16(s->kept[row / BLOCKS] + unit * 16, &s->unit_box, row % BLOCKS,
                       make_uint4(__float_as_uint(summary.x), __float_as_uint(summary.y),
                                  __float_as_uint(summary.z), __float_as_uint(summary.w)));
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
        const struct fused_rows_layer &from = p.layer[l];
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
                                                  const struct fused_rows_place &place)
{
    const int r = threadIdx.x;

    if (r >= S::ROWS)
        return;
    s->row[r] = -1;
    s->state[r] = FINISHED;
    s->min_new[r] = s->max_new[r] = s->source_len[r] = s->cross[r] = 0;
    if (r < place.rows) {
        const struct cuda_row *row = p.rows.row + p.active[place.first + r];

        s->row[r] = p.active[place.first + r];
        s->state[r] = row->finished ? FINISHED : row->position;
        s->min_new[r] = row->min_new;
        s->max_new[r] = row->max_new;
        s->source_len[r] = row->source_len;
        s->cross[r] = row->cross;
        if (r % BLOCKS == place.rank)
            s->token[r / BLOCKS] = row->token;
    }
}

#endif

#endif
