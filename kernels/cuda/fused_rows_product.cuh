/* SPDX-License-Identifier: MIT
 *
 * fused_rows_product: a block's products in the kernel of fused_rows.h, from the plan of weights to
 * what is sent of the sums. For fused_rows.cu alone.
 */
#ifndef PGPT_KERNELS_CUDA_FUSED_ROWS_PRODUCT_CUH
#define PGPT_KERNELS_CUDA_FUSED_ROWS_PRODUCT_CUH

#include "kernels/cuda/fused_rows_shared.cuh"
#include "kernels/cuda/product_output.cuh"
#include "kernels/cuda/warpgroup.cuh"

#if __CUDA_ARCH__ >= 900 && PGPT_CUDA_HOPPER

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
        const struct fused_layer &layer = p.layer[l];

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

#endif

#endif
