/* SPDX-License-Identifier: MIT
 *
 * fused_rows_product: a block's products in the kernel of fused_rows.h, from the plan of weights to
 * what is sent of the sums. For fused_rows_kernel.cuh alone.
 */
#ifndef PGPT_KERNELS_CUDA_FUSED_ROWS_PRODUCT_CUH
#define PGPT_KERNELS_CUDA_FUSED_ROWS_PRODUCT_CUH

#include "kernels/cuda/fused_rows_shared.cuh"
#include "kernels/cuda/product_output.cuh"
#include "kernels/cuda/warpgroup.cuh"

#if __CUDA_ARCH__ >= 900 && PGPT_CUDA_HOPPER

/* What this block multiplies in a step, one thread: 16 columns by D inputs a piece, or 32 by FFN.
 * Their number. */
static __device__ __forceinline__ int plan_make(const char **plan,
                                                const struct fused_rows_params &p, int rank)
{
    const int groups = product_padded(p.rules.vocabulary) / COLUMNS;
    int pieces = 0;

    auto add = [&](const char *packed, int first, int count) {
        for (int i = 0; i < count; i++)
            plan[pieces++] = packed + (size_t)(first + i) * SLOT;
    };

    for (int l = 0; l < p.layers; l++) {
        const struct fused_layer &layer = p.layer[l];

        for (int which = 0; which < 3; which++)
            add(layer.qkv.packed, which * (D / 16) + rank * TILES, TILES);
        add(layer.out.packed, rank * TILES, TILES);
        add(layer.cross_q.packed, rank * TILES, TILES);
        add(layer.cross_out.packed, rank * TILES, TILES);
        add(layer.fc1.packed, rank * (HIDDEN / 16), HIDDEN / 16);
        add(layer.fc2.packed, rank * (TILES / 2), TILES / 2);
    }
    for (int group = rank; group < groups; group += BLOCKS)
        add(p.output.packed, group * TILES, TILES);
    return pieces;
}

/* `count` pieces (at most a step's) further. */
template <class S>
static __device__ __forceinline__ struct fused_rows_piece
piece_ahead(const S *s, struct fused_rows_piece at, uint32_t count)
{
    at.count += count;
    at.piece += count;
    if (at.piece >= s->pieces)
        at.piece -= s->pieces;
    return at;
}

template <class S>
static __device__ __forceinline__ char *piece_slot(S *s, const struct fused_rows_piece &at)
{
    return fused_rows_ring<S>::slot(s, at.count % fused_rows_ring<S>::SLOTS);
}

/* One thread: a half of a piece that is in the plan. */
template <class S>
static __device__ __forceinline__ void piece_fetch(S *s, const struct fused_rows_piece &at,
                                                   int half)
{
    const struct ring_piece from = {s->plan[at.piece] + half * HALF, HALF};

    ring_fetch(piece_slot(s, at) + half * HALF, from, &s->full[at.count % FULLS][half]);
}

/* One thread: what comes next where a half of a piece lies that everybody has used. */
template <class S>
static __device__ __forceinline__ void piece_refill(S *s, const struct fused_rows_piece &at,
                                                    int half)
{
    constexpr int SLOTS = fused_rows_ring<S>::SLOTS;

    if (at.count + SLOTS < s->all)
        piece_fetch(s, piece_ahead(s, at, SLOTS), half);
}

/* Until it is here; where it lies. */
template <class S>
static __device__ __forceinline__ const char *piece_wait(S *s, const struct fused_rows_piece &at,
                                                         int half)
{
    ring_wait(&s->full[at.count % FULLS][half], at.count / FULLS);
    return piece_slot(s, at) + half * HALF;
}

/* Products of one round: weights to registers as soon as there is time, then, when the rows are
 * here, the matrix instructions, then sums to shared memory. A warpgroup has a part of the inputs.
 */

/* This warp's share of the next product's weights. */
template <class F, int K, int COUNT, class S>
static __device__ __forceinline__ void product_take(S *s, struct format_weights (&w)[4],
                                                    struct fused_rows_piece *at,
                                                    const struct fused_rows_place &place)
{
    constexpr int BLK = K / 32 / FORMAT_PARTS, EACH = D / K; /* columns' tiles of a piece */
    constexpr int PARTS = K == D ? 2 : 4;                    /* of the inputs in a half */

    if (place_tile(place) < COUNT) {
        const int half = K == D ? place_part(place) / PARTS : place_tile(place) % EACH;
        const char *from = piece_wait(s, piece_ahead(s, *at, place_tile(place) / EACH), half);

#pragma unroll
        for (int b = 0; b < BLK; b++)
            w[b] = weights_get<F>(from + (place_part(place) % PARTS * BLK + b) * 1024, place.lane);
    } else {
#pragma unroll
        for (int b = 0; b < BLK; b++)
            w[b].half[0] = w[b].half[1] = make_uint4(0, 0, 0, 0);
    }
    *at = piece_ahead(s, *at, COUNT / EACH);
}

/* Sums of a chain of instructions from zero over the inputs of w, in flight. first: where these
 * lie, of all rows. */
template <class F, class S, int BLK, int N>
static __device__ __forceinline__ void
product_multiply(float (&sums)[N], const struct format_weights (&w)[4], uint32_t first)
{
    const uint64_t rows = warpgroup_rows(first);

    __syncwarp();
    warpgroup_fence();
#pragma unroll
    for (int b = 0; b < BLK; b++) {
        const uint32_t x = b / 2 * (S::ROWS * 128) + b % 2 * 64;

        warpgroup_multiply<F, 2 * N>(sums, w[b].half[0], warpgroup_rows_behind(rows, x), b > 0);
        warpgroup_multiply<F, 2 * N>(sums, w[b].half[1], warpgroup_rows_behind(rows, x + 32), 1);
    }
    warpgroup_commit();
}

/* Behind a barrier that follows the end of a product: its slots get their next pieces. next: behind
 * the product's. */
template <int K, int COUNT, class S>
static __device__ __forceinline__ void product_refill(S *s, const struct fused_rows_piece &next,
                                                      const struct fused_rows_place &place)
{
    constexpr int PIECES = COUNT * K / D, SLOTS = fused_rows_ring<S>::SLOTS;
    const int i = WARPS - 1 - place.warp, behind = i / 2 - PIECES;

    if (i >= 2 * PIECES || place.lane)
        return;
    if (next.count + behind + SLOTS < s->all)
        piece_fetch(s, piece_ahead(s, next, behind + SLOTS), i % 2);
}

/* The sums of the part, behind warpgroup_wait(). */
template <class S, int N>
static __device__ __forceinline__ void product_put(S *s, const float (&sums)[N],
                                                   const struct fused_rows_place &place)
{
    const int lane = here(place.lane);

#pragma unroll
    for (int u = 0; u < N / 4; u++)
        sums_put(&s->partial[place_part(place)][u * 8][place_tile(place) * 16], PARTIAL_STRIDE,
                 sums + u * 4, lane);
}

/* A product that is one round: ends with all sums in `partial`. */
template <class F, int K, int COUNT, class S>
static __device__ __forceinline__ void product_run(S *s, const struct format_weights (&w)[4],
                                                   const char *rows,
                                                   const struct fused_rows_place &place)
{
    constexpr int BLK = K / 32 / FORMAT_PARTS, LINES = S::ROWS * 128;
    float sums[S::ROWS / 2];

    warpgroup_publish();
    product_multiply<F, S, BLK>(sums, w,
                                shared_address(rows) + place_part(place) * BLK / 2 * LINES +
                                    place_part(place) * BLK % 2 * 64);
    warpgroup_wait<0>();
    product_put(s, sums, place);
    __syncthreads();
}

/* Products of several rounds: a warpgroup has 64 columns and all inputs, and waits for no other. A
 * warp's piece is its own, so it lets the next one come as soon as it has multiplied. at: the
 * round's first piece. Ends with the sums in the warpgroup's `partial`, seen by all of it. */
template <class F, class S>
static __device__ __forceinline__ void round_run(S *s, const struct fused_rows_piece &first,
                                                 const struct fused_rows_place &place)
{
    constexpr int N = S::ROWS / 2, BLK = D / 32 / FORMAT_PARTS;
    constexpr int EACH = BLK / 2; /* blocks of a part in registers at once */
    const struct fused_rows_piece at = piece_ahead(s, first, place_tile(place));
    const uint64_t rows = warpgroup_rows(shared_address(s->x));
    float sums[N], part[2][N];

    warpgroup_publish();
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const char *from = piece_wait(s, at, half);

        /* two parts side by side */
#pragma unroll
        for (int b = 0; b < BLK; b += EACH) {
            struct format_weights w[2][EACH];

#pragma unroll
            for (int i = 0; i < 2 * EACH; i++)
                w[i / EACH][i % EACH] =
                    weights_get<F>(from + (i / EACH * BLK + b + i % EACH) * 1024, place.lane);
            __syncwarp();
            warpgroup_fence();
#pragma unroll
            for (int i = 0; i < 2 * EACH; i++) {
                const int block = half * 2 * BLK + i % 2 * BLK + b + i / 2;
                const uint32_t x = block / 2 * (S::ROWS * 128) + block % 2 * 64;

                warpgroup_multiply<F, 2 * N>(part[i % 2], w[i % 2][i / 2].half[0],
                                             warpgroup_rows_behind(rows, x), b + i / 2 > 0);
                warpgroup_multiply<F, 2 * N>(part[i % 2], w[i % 2][i / 2].half[1],
                                             warpgroup_rows_behind(rows, x + 32), 1);
            }
            warpgroup_commit();
            warpgroup_wait<0>();
        }
        if (place.lane == 0)
            piece_refill(s, at, half);
#pragma unroll
        for (int n = 0; n < N; n++)
            sums[n] = half ? (sums[n] + part[0][n]) + part[1][n] : part[0][n] + part[1][n];
    }
    warpgroup_barrier(place_part(place)); /* what lies there has been looked at */
    product_put(s, sums, place);
    warpgroup_barrier(place_part(place));
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

/* Queries out of a product of one round. */
template <class T, class S>
static __device__ __forceinline__ void query_put(S *s, const float *bias,
                                                 const struct fused_rows_place &place)
{
    const uint32_t thread = here(place_thread(place)), c = thread % 16 * 4;

#pragma unroll
    for (int i = 0; i < S::ROWS; i += THREADS / 16) {
        const int row = i + thread / 16;

        if (row >= place.rows)
            break;
        *(uint2 *)&s->q[row][c] = elements4<T>(partial_get4(s, row, c, bias));
    }
}

/* The warpgroup's queries, keys or values (0, 1, 2). Queries stay here; a new key or value goes
 * into its cache, of which this block alone reads this head in later steps. */
template <class T, class S>
static __device__ __forceinline__ void head_put(S *s, const struct fused_rows_params &p, int layer,
                                                const float *bias,
                                                const struct fused_rows_place &place)
{
    const struct network_cache &cache = p.self;
    const int which = place_part(place);
    const uint32_t thread = here(place_in_part(place)), c = thread % 16 * 4;
    const float4 add = *(const float4 *)(bias + which * COLUMNS + c);
    uint2 *const to =
        (uint2 *)((which == 1 ? cache.k : cache.v) + (size_t)layer * cache.layer_stride) +
        place.rank * (CHUNK * HEAD / 4) + c / 4;
    auto get = [&](int row) {
        const float4 v = *(const float4 *)&s->partial[which][row][c];

        return elements4<T>(make_float4(v.x + add.x, v.y + add.y, v.z + add.z, v.w + add.w));
    };

    if (which == 0) {
#pragma unroll
        for (int i = 0; i < S::ROWS; i += 8)
            *(uint2 *)&s->q[i + thread / 16][c] = get(i + thread / 16);
        return;
    }
#pragma unroll
    for (int i = 0; i < S::ROWS; i += 8) {
        const int row = i + thread / 16, position = s->state[row];
        const uint32_t at =
            cache_place((uint32_t)s->row[row] * HEADS, (uint32_t)position, cache.chunk_places);
        const uint2 e = which == 2 ? cache_value4<T>(get(row)) : get(row);

        if (position != FINISHED)
            to[(size_t)at * (HEAD / 4)] = e;
    }
}

/* This block's columns of y, but for the residual stream, to each row's owner. */
template <class S>
static __device__ __forceinline__ void residual_send(S *s, const float *bias,
                                                     const struct fused_rows_place &place)
{
    const uint32_t thread = here(place_thread(place)), c = thread % 16 * 4;

#pragma unroll
    for (int i = 0; i < S::ROWS; i += THREADS / 16) {
        const int row = i + thread / 16;

        if (row >= place.rows)
            break;
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
    constexpr int EACH = HIDDEN / 2;

    const uint32_t thread = here(place_thread(place)), quarter = thread % 4, c = thread % EACH * 2;

#pragma unroll
    for (int i = 0; i < S::ROWS; i += THREADS / EACH) {
        if (i + place.warp * (32 / EACH) >= place.rows)
            break; /* whole warps */
        const int row = i + thread / EACH;
        const int column = place.rank * HIDDEN + (c & ~7);
        const float2 add = *(const float2 *)(bias + c);
        float2 v = *(const float2 *)&s->partial[0][row][c];
        uint32_t own, words[4];

#pragma unroll
        for (int part = 1; part < FORMAT_PARTS; part++) {
            const float2 next = *(const float2 *)&s->partial[part][row][c];

            v.x += next.x;
            v.y += next.y;
        }
        own =
            elements2<T>(activate(p.activation, v.x + add.x), activate(p.activation, v.y + add.y));
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
