/* SPDX-License-Identifier: MIT
 *
 * product_hopper: products of many rows by warpgroup instructions. A block's rows lie in shared
 * memory, 256 inputs (a window) twice: up to 512 inputs stay while the block walks over its
 * columns, longer rows pass through. Weights come from L2 straight into the registers that the
 * instruction reads, three blocks ahead and the first before the kernel in front has finished, so a
 * warpgroup meets no barrier on its way through a tile. Two kinds of tile: 32 or 64 rows, SPLIT 2:
 * the two warpgroups take two of the four parts of the inputs each, of the same 64 columns: a short
 * chain, as long as all tiles fit at once; 64 rows, SPLIT 1: each takes all parts of 64 columns of
 * its own. Long rows of few columns go by product_parts.cuh. (Tried and
 * no faster: 128 rows with 64 KB of weights on the way through shared memory.)
 *
 * Rows come normed (product_embed, product_norm), so that a norm is taken once and not by every
 * block that needs the row.
 */
#ifndef PGPT_KERNELS_CUDA_PRODUCT_HOPPER_CUH
#define PGPT_KERNELS_CUDA_PRODUCT_HOPPER_CUH

#include "kernels/cuda/cluster.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/product_hopper.h"
#include "kernels/cuda/product_input.cuh"
#include "kernels/cuda/product_norm.cuh"
#include "kernels/cuda/product_output.cuh"
#include "kernels/cuda/product_parts.cuh"
#include "kernels/cuda/warpgroup.cuh"

enum {
    HOPPER_THREADS = 256,
    HOPPER_WARPS = HOPPER_THREADS / 32, /* 8 rows, after which words are swizzled anew */
    HOPPER_RING = 4,                    /* blocks of weights in a warp's registers, */
    HOPPER_RING_32 = 6,                 /* where few sums leave room and a tile ends soon */
    HOPPER_LONG = 8,                    /* blocks of a part that are whole windows */
};

#if PGPT_CUDA_HOPPER && __CUDA_ARCH__ >= 900

/* Inputs of a row, at compile time where PART says it. */
template <int PART> static __device__ __forceinline__ int inputs_of(const struct product &p)
{
    return PART == 2 || PART == 4 ? PART * FORMAT_PARTS * 32 : p.weight.K;
}

/* A window of the rows' K inputs to `tile`: a committed group of copies. With SPLIT 2 a window is
 * half a window of either half of the inputs. A thread has the same 16 bytes of every eighth row,
 * so its places are a constant apart. */
template <int BM, int SPLIT>
static __device__ __forceinline__ void window_load(const struct product &p, int K, int m0, int n,
                                                   int window, char *tile)
{
    const int r = m0 + (threadIdx.x >> 5), piece = threadIdx.x >> 3 & 3, word = threadIdx.x & 7;
    const int input = SPLIT == 1 ? window * HOPPER_WINDOW + piece * WARPGROUP_PIECE
                                 : (piece >> 1) * (K / 2) + window * (HOPPER_WINDOW / 2) +
                                       (piece & 1) * WARPGROUP_PIECE;
    const char *from = (const char *)p.x + ((size_t)r * K + input) * 2 + word * 16;
    char *to = tile + piece * BM * 128 + warpgroup_at(threadIdx.x >> 5, word);

#pragma unroll
    for (int i = 0; i < BM / HOPPER_WARPS; i++, from += HOPPER_WARPS * 2 * K) /* none past n */
        copy_16(to + i * HOPPER_WARPS * 128, from, r + i * HOPPER_WARPS < n);
    copy_commit();
}

/*
 * A tile's sums over all inputs, of which a part is PART blocks: straight code, in which the
 * compiler waits for each load of weights on its own. (Around a branch it waits for all that are
 * under way, which takes as long as a load.) The lane's weights begin at `ahead`, the first
 * HOPPER_RING - 1 blocks are in w or on their way; where there is `more`, it goes on at `next`.
 * block_at(b): how far behind `rows` the inputs of block b are. between(b): called in front of it.
 * With SPLIT 2 a group has two parts, the first one in total from the start (with SPLIT 1 registers
 * would spill), the second one (group 1) in acc.
 */
template <class F, int BM, int SPLIT, int PART, int RING, class At, class Between>
static __device__ __forceinline__ void
tile_multiply(struct format_weights (&w)[RING], const char *ahead, const char *next, bool more,
              int group, uint64_t rows, float (&total)[BM / 2], float (&acc)[BM / 2], At block_at,
              Between between)
{
    constexpr int BLOCKS = PART * FORMAT_PARTS / SPLIT;
    constexpr int FIRST = SPLIT == 1 ? 0 : PART; /* blocks that are summed up in total itself */

#pragma unroll
    for (int i = 0; i < BM / 2; i++)
        total[i] = 0.0f;
#pragma unroll
    for (int b = 0; b < BLOCKS; b++) {
        const uint32_t at = block_at(b);
        float(&sums)[BM / 2] = b < FIRST ? total : acc;
        const int later = b + RING - 1;

        between(b);
        warpgroup_fence();
        warpgroup_multiply<F, BM>(sums, w[b % RING].half[0], warpgroup_rows_behind(rows, at),
                                  b % PART > 0);
        warpgroup_multiply<F, BM>(sums, w[b % RING].half[1], warpgroup_rows_behind(rows, at + 32),
                                  1);
        warpgroup_commit();
        warpgroup_wait<1>();
        weights_stream_if(&w[later % RING],
                          later < BLOCKS ? ahead + later * 1024 : next + (later - BLOCKS) * 1024, 0,
                          later < BLOCKS || more);
        if (b % PART == PART - 1) {
            warpgroup_wait<0>();
#pragma unroll
            for (int i = 0; i < BM / 2; i++)
                if (b >= FIRST && (SPLIT == 1 || group == 0))
                    total[i] += acc[i]; /* 0 + part 0 is part 0 */
        }
    }
}

/* A unit's 8 columns of one lane, as unit_summary() has them, with what the columns have in common
 * for all rows looked up once. */
struct unit_columns {
    float bias[8];
    uint32_t inside, allowed; /* bit a column: of the vocabulary, and may be chosen */
    uint32_t eos;
    bool plain; /* all of the warp's columns may be chosen, and none is EOS */
};

static __device__ __forceinline__ int unit_column(int unit, int q, int t)
{
    return unit * PRODUCT_UNIT + 8 * (t >> 1) + 2 * q + (t & 1);
}

static __device__ __forceinline__ struct unit_columns unit_columns_get(const struct product &p,
                                                                       int unit, int q)
{
    struct unit_columns columns = {};

#pragma unroll
    for (int t = 0; t < 8; t++) {
        int c = unit_column(unit, q, t);

        columns.bias[t] = p.weight.bias[c];
        if (c >= p.rules.vocabulary)
            continue;
        columns.inside |= 1u << t;
        if (p.rules.mask[c] == 0.0f)
            columns.allowed |= 1u << t;
        if (c == p.rules.eos_token)
            columns.eos = 1u << t;
    }
    columns.plain = __all_sync(0xffffffffu, columns.allowed == 0xff && !columns.eos);
    return columns;
}

/* Where all columns may be chosen, the greatest is the best: the first that equals it. */
static __device__ __forceinline__ void unit_plain_put(const struct product &p, int row, bool here,
                                                      int unit, int q, const float (&v)[8])
{
    const int units = (p.weight.N + PRODUCT_UNIT - 1) / PRODUCT_UNIT;
    const struct logsum sums = logsum_unit(v);
    int32_t token = INT32_MAX; /* stays where they are NaN */

#pragma unroll
    for (int t = 7; t >= 0; t--)
        if (v[t] == sums.max)
            token = unit_column(unit, q, t);
#pragma unroll
    for (int mask = 1; mask <= 2; mask <<= 1)
        token = min(token, __shfl_xor_sync(0xffffffffu, token, mask));
    if (q == 0 && here && unit < units)
        *(float4 *)(p.units + (size_t)row * units + unit) =
            make_float4(sums.max, sums.sum, token == INT32_MAX ? -INFINITY : sums.max + 0.0f,
                        __int_as_float(token == INT32_MAX ? unit * PRODUCT_UNIT : token));
}

/* The same bits as output_unit(). */
static __device__ __forceinline__ void unit_put(const struct product &p,
                                                const struct unit_columns &columns, int row,
                                                bool here, bool no_eos, int unit, int q,
                                                float (&v)[8])
{
    const int units = (p.weight.N + PRODUCT_UNIT - 1) / PRODUCT_UNIT;
    const uint32_t allowed = columns.allowed & (no_eos ? ~columns.eos : ~0u);
    float best = -INFINITY;
    int32_t token = unit * PRODUCT_UNIT;
    struct logsum sums;

    if (here && (p.logits || p.rules.forced_eos / PRODUCT_UNIT == unit ||
                 p.rules.forced_bos / PRODUCT_UNIT == unit))
#pragma unroll
        for (int t = 0; t < 8; t++) {
            int c = unit_column(unit, q, t);

            if (c >= p.weight.N)
                continue;
            if (p.logits)
                p.logits[(size_t)row * p.weight.N + c] = v[t];
            if (c == p.rules.forced_eos)
                p.special[2 * row] = v[t];
            if (c == p.rules.forced_bos)
                p.special[2 * row + 1] = v[t];
        }
    if (columns.plain) {
        unit_plain_put(p, row, here, unit, q, v);
        return;
    }
#pragma unroll
    for (int t = 0; t < 8; t++) {
        float masked = allowed & 1u << t ? v[t] + 0.0f : -INFINITY;

        if (!(columns.inside & 1u << t))
            v[t] = -INFINITY;
        if (masked > best) {
            best = masked;
            token = unit_column(unit, q, t);
        }
    }
    sums = logsum_unit(v);
#pragma unroll
    for (int mask = 1; mask <= 2; mask <<= 1) {
        float other = __shfl_xor_sync(0xffffffffu, best, mask);
        int32_t other_token = __shfl_xor_sync(0xffffffffu, token, mask);

        if (other > best || (other == best && other_token < token)) {
            best = other;
            token = other_token;
        }
    }
    if (q == 0 && here && unit < units)
        *(float4 *)(p.units + (size_t)row * units + unit) =
            make_float4(sums.max, sums.sum, best, __int_as_float(token));
}

/* What a thread needs from global memory to finish 64 columns of ROWS rows, for which `THREADS`
 * threads take 4 columns each of every THREADS / 16 th row; fetched early, while it is not waited
 * for. */
template <enum product_output OUTPUT, int ROWS, int THREADS> struct tile_ahead {
    enum { EACH = OUTPUT == PRODUCT_RESIDUAL ? ROWS * 16 / THREADS : 1 };
    float4 bias, residual[EACH];

    __device__ __forceinline__ void fetch(const struct product &p, int m0, int n, int c0, int t)
    {
        const int c = c0 + t % 16 * 4, r = m0 + t / 16, N = p.weight.N;
        const float *from = p.residual + (size_t)r * N + c;

        bias = *(const float4 *)(p.weight.bias + c);
        if (OUTPUT == PRODUCT_RESIDUAL)
#pragma unroll
            for (int i = 0; i < EACH; i++, from += THREADS / 16 * N)
                residual[i] = c < N && r + i * (THREADS / 16) < n
                                  ? __ldcg((const float4 *)from)
                                  : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    }
};
template <int ROWS, int THREADS> struct tile_ahead<PRODUCT_LOGITS, ROWS, THREADS> {
    struct unit_columns columns;

    __device__ __forceinline__ void fetch(const struct product &p, int, int, int c0, int t)
    {
        columns = unit_columns_get(p, c0 / PRODUCT_UNIT + (t >> 2 & 1), t & 3);
    }
};

/* A row's four sums: SPLIT 2: of three arrays, in order; with bias. */
template <class F, int ARRAY, int SPLIT>
static __device__ __forceinline__ float4 tile_values(const float *s, const float4 &bias)
{
    float4 v = *(const float4 *)s;

    if (SPLIT == 2) {
        float4 two = *(const float4 *)(s + ARRAY), three = *(const float4 *)(s + 2 * ARRAY);

        v.x = (v.x + two.x) + three.x;
        v.y = (v.y + two.y) + three.y;
        v.z = (v.z + two.z) + three.z;
        v.w = (v.w + two.w) + three.w;
    }
    v.x = output_value<F>(v.x, 1.0f, 1.0f, bias.x);
    v.y = output_value<F>(v.y, 1.0f, 1.0f, bias.y);
    v.z = output_value<F>(v.z, 1.0f, 1.0f, bias.z);
    v.w = output_value<F>(v.w, 1.0f, 1.0f, bias.w);
    return v;
}

/* Sums of ROWS rows by 64 columns from m0 and c0 on, out of `stage`, by THREADS threads of which
 * this is t. SPLIT 2: three arrays of sums. Kept short: a block runs through it a few times only,
 * and fetching it would take longer than running it. */
template <class F, enum product_output OUTPUT, bool ACTIVE, int ROWS, int SPLIT, int THREADS>
static __device__ __forceinline__ void
tile_output(const struct product &p, const struct tile_rows *info, const float *stage, int m0,
            int n, int c0, int t, const struct tile_ahead<OUTPUT, ROWS, THREADS> &ahead)
{
    constexpr int ARRAY = ROWS * HOPPER_STAGE;

    if constexpr (OUTPUT == PRODUCT_LOGITS) {
        const int q = t & 3, u = t >> 2 & 1, unit = c0 / PRODUCT_UNIT + u;
        const struct unit_columns &columns = ahead.columns;

#pragma unroll 1
        for (int r = t >> 3; r < ROWS; r += THREADS / 8) {
            const float *s = stage + r * HOPPER_STAGE + u * 32 + 2 * q;
            float v[8];

#pragma unroll
            for (int i = 0; i < 8; i += 2) {
                float2 sum = *(const float2 *)(s + 4 * i);

                if (SPLIT == 2) {
                    float2 two = *(const float2 *)(s + 4 * i + ARRAY);
                    float2 three = *(const float2 *)(s + 4 * i + 2 * ARRAY);

                    sum.x = (sum.x + two.x) + three.x;
                    sum.y = (sum.y + two.y) + three.y;
                }
                v[i] = output_value<F>(sum.x, 1.0f, 1.0f, columns.bias[i]);
                v[i + 1] = output_value<F>(sum.y, 1.0f, 1.0f, columns.bias[i + 1]);
            }
            unit_put(p, columns, m0 + r, m0 + r < n, info[r].no_eos, unit, q, v);
        }
    } else {
        constexpr int STEP = THREADS / 16;
        const int c = c0 + t % 16 * 4, N = p.weight.N, rows = n - m0;
        const size_t at = (size_t)(m0 + t / 16) * N + c;

        stage += t % 16 * 4;
        if (c >= N)
            return;
        if constexpr (OUTPUT == PRODUCT_RESIDUAL) {
            float4 *out = (float4 *)((float *)p.out + at);

#pragma unroll
            for (int i = 0; i < ROWS / STEP; i++, out += STEP * (N / 4)) {
                const int r = t / 16 + i * STEP;
                float4 v = tile_values<F, ARRAY, SPLIT>(stage + r * HOPPER_STAGE, ahead.bias);

                v.x += ahead.residual[i].x;
                v.y += ahead.residual[i].y;
                v.z += ahead.residual[i].z;
                v.w += ahead.residual[i].w;
                if (r < rows)
                    *out = v;
            }
        } else if constexpr (OUTPUT == PRODUCT_PLAIN) {
            typename F::element *out = (typename F::element *)p.out + at;

#pragma unroll(ACTIVE ? 1 : 2)
            for (int r = t / 16; r < min(rows, ROWS); r += STEP, out += STEP * N) {
                float4 v = tile_values<F, ARRAY, SPLIT>(stage + r * HOPPER_STAGE, ahead.bias);

                if (ACTIVE) {
                    v.x = activate(p.activation, v.x);
                    v.y = activate(p.activation, v.y);
                    v.z = activate(p.activation, v.z);
                    v.w = activate(p.activation, v.w);
                }
                output_put4(out, v);
            }
        } else {
            const struct output_heads heads = output_heads_of<OUTPUT>(p, c);

#pragma unroll 1
            for (int r = t / 16; r < min(rows, ROWS); r += STEP)
                output_heads_put<typename F::element>(
                    heads, info[r], m0 + r,
                    tile_values<F, ARRAY, SPLIT>(stage + r * HOPPER_STAGE, ahead.bias));
        }
    }
}

#endif

/* out (BM rows, 128 / SPLIT columns) a turn. ACTIVE: there is an activation. PART: blocks of a part
 * of the inputs; HOPPER_LONG: a multiple of it; 0: any number. */
template <class F, enum product_output OUTPUT, bool ACTIVE, int BM, int SPLIT, int PART>
static __global__ void __launch_bounds__(HOPPER_THREADS, 2) product_hopper(const struct product p)
{
#if PGPT_CUDA_HOPPER && __CUDA_ARCH__ >= 900
    constexpr int BN = 128 / SPLIT, EACH = HOPPER_WINDOW / 32 / SPLIT, ARRAY = BM * HOPPER_STAGE;
    constexpr int WINDOW = BM * HOPPER_WINDOW * 2; /* bytes */
    /* a tile of a quarter of 256 inputs has no more than 4 blocks a warp */
    constexpr int RING = BM == 32 && PART == 4 ? HOPPER_RING_32 : HOPPER_RING;
    extern __shared__ __align__(1024) char shared[];
    float *stage = (float *)(shared + hopper_stage_at(BM, SPLIT));
    struct tile_rows *info = (struct tile_rows *)(shared + hopper_info_at(BM, SPLIT));
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5 & 3;
    const int group = __shfl_sync(0xffffffffu, threadIdx.x >> 7, 0);
    const int K = inputs_of<PART>(p), blocks = K / 32, part = blocks / FORMAT_PARTS;
    const int windows = K / HOPPER_WINDOW, tiles = (p.weight.N + BN - 1) / BN;
    const int m0 = blockIdx.y * BM, n = *p.n;
    struct format_weights w[RING];
    float total[BM / 2], acc[BM / 2]; /* SPLIT 2, group 1: parts 2 and 3 */
    int turn = 0;                     /* windows so far */
    /* what the warpgroup reads of them */
    const uint64_t rows =
        warpgroup_rows(shared_address(shared) + (SPLIT == 1 ? 0 : group * 2 * BM * 128));
    struct tile_ahead<OUTPUT, BM, HOPPER_THREADS / (3 - SPLIT)> end;

    /* the lane's share of the weights of the warp's 16 columns; the block's next tile of columns */
    const char *ahead =
        (const char *)p.weight.packed + lane * 16 +
        (size_t)((blockIdx.x * (BN / 16) + (SPLIT == 1 ? group * 4 : 0) + warp) * blocks +
                 (SPLIT == 1 ? 0 : group * (blocks / 2))) *
            1024;
    const size_t tile_bytes = (size_t)(gridDim.x * (BN / 16) * blocks) * 1024;

    if (m0 < n) {
#pragma unroll
        for (int i = 0; i < RING - 1; i++)
            w[i] = weights_stream(ahead + i * 1024, 0);
        if (OUTPUT != PRODUCT_PLAIN && OUTPUT != PRODUCT_RESIDUAL)
            tile_rows_load<OUTPUT, BM>(p, m0, n, info);
    }
    launch_wait();
    launch_next();
    if (m0 >= n)
        return;
#pragma unroll
    for (int i = 0; i < 2; i++)
        if (i < windows)
            window_load<BM, SPLIT>(p, K, m0, n, i, shared + i * WINDOW);
        else
            copy_commit();

    if (SPLIT == 2) /* a block has one tile */
        end.fetch(p, m0, n, blockIdx.x * BN, threadIdx.x);

    auto windows_multiply = [&](int column, const char *next, bool more) {
        int in_part = 0, parts = 0;
        auto part_end = [&] {
            if (in_part < part)
                return;
            warpgroup_wait<0>();
#pragma unroll
            for (int i = 0; i < BM / 2; i++)
                if (SPLIT == 1 || group == 0 || parts == 0)
                    total[i] += acc[i]; /* 0 + part 0 is part 0 */
            in_part = 0;
            parts++;
        };

#pragma unroll
        for (int i = 0; i < BM / 2; i++)
            total[i] = 0.0f;
#pragma unroll 1
        for (int window = 0; window < windows; window++, turn++) {
            const int place = windows > 2 ? turn & 1 : window;
            const uint64_t here = warpgroup_rows_behind(rows, place * WINDOW);

            if (turn < windows || windows > 2) {
                if (turn == 0)
                    copy_wait<1>();
                else
                    copy_wait<0>();
                warpgroup_publish();
                __syncthreads();
                /* all have left the window before: its place takes the one after this. None after
                 * the last, for the stage may lie there */
                if (windows > 2 && turn > 0 && (window + 1 < windows || more))
                    window_load<BM, SPLIT>(p, K, m0, n, window + 1 < windows ? window + 1 : 0,
                                           shared + (1 - place) * WINDOW);
            }
            const bool last = window + 1 == windows;
            const char *later = last ? next : ahead + EACH * 1024;

#pragma unroll
            for (int b = 0; b < EACH; b++) {
                const int then = b + RING - 1;
                const uint32_t at = (b >> 1) * BM * 128 + (b & 1) * 64;
                const struct format_weights &now = w[b % RING];

                warpgroup_fence();
                warpgroup_multiply<F, BM>(acc, now.half[0], warpgroup_rows_behind(here, at),
                                          in_part > 0);
                warpgroup_multiply<F, BM>(acc, now.half[1], warpgroup_rows_behind(here, at + 32),
                                          1);
                warpgroup_commit();
                warpgroup_wait<1>();
                weights_stream_if(&w[then % RING],
                                  then < EACH ? ahead + then * 1024 : later + (then - EACH) * 1024,
                                  0, then < EACH || !last || more);
                in_part++;
                if (PART == 0 && (b & 1))
                    part_end();
            }
            if (PART == HOPPER_LONG)
                part_end();
            ahead = later;
            if (windows > 2)
                warpgroup_wait<0>();
        }
        warpgroup_wait<0>();
    };

#pragma unroll 1
    for (int column = blockIdx.x; column < tiles; column += gridDim.x) {
        const bool more = SPLIT == 1 && column + (int)gridDim.x < tiles;
        const char *next = ahead + tile_bytes;

        if constexpr (PART == 2 || PART == 4) {
            if (turn++ == 0) {
                copy_wait<1>();
                warpgroup_publish();
                __syncthreads();
            }
            tile_multiply<F, BM, SPLIT, PART, RING>(
                w, ahead, next, more, group, rows, total, acc,
                [](int b) {
                    constexpr int HALF = 4; /* blocks of a window and half of the inputs */
                    const int piece = SPLIT == 1 ? b >> 1 : b % HALF >> 1;

                    return (SPLIT == 1 ? 0 : b / HALF * WINDOW) + piece * BM * 128 + (b & 1) * 64;
                },
                [&](int b) {
                    if (b != EACH)
                        return;
                    copy_wait<0>(); /* the second window */
                    warpgroup_publish();
                    __syncthreads();
                });
            ahead = next;
        } else {
            windows_multiply(column, next, more);
        }
        if (SPLIT == 1) {
            float *own = stage + group * ARRAY;
            const int t = threadIdx.x & 127, c0 = column * BN + group * 64;

            if (OUTPUT != PRODUCT_RESIDUAL)
                end.fetch(p, m0, n, c0, t);
            warpgroup_barrier(group);
#pragma unroll
            for (int u = 0; u < BM / 8; u++)
                sums_put(own + u * 8 * HOPPER_STAGE + warp * 16, HOPPER_STAGE, total + u * 4, lane);
            if (OUTPUT == PRODUCT_RESIDUAL) /* more registers than are free while sums are */
                end.fetch(p, m0, n, c0, t);
            warpgroup_barrier(group);
            tile_output<F, OUTPUT, ACTIVE, BM, SPLIT>(p, info, own, m0, n, c0, t, end);
        } else {
            __syncthreads(); /* the stage is where the rows were */
#pragma unroll
            for (int u = 0; u < BM / 8; u++) {
                float *to = stage + group * ARRAY + u * 8 * HOPPER_STAGE + warp * 16;

                sums_put(to, HOPPER_STAGE, total + 4 * u, lane);
                if (group == 1)
                    sums_put(to + ARRAY, HOPPER_STAGE, acc + 4 * u, lane);
            }
            __syncthreads();
            tile_output<F, OUTPUT, ACTIVE, BM, SPLIT>(p, info, stage, m0, n, column * BN,
                                                      threadIdx.x, end);
            return;
        }
    }
#else
    (void)p;
#endif
}

/* By hopper_inputs: what has no kernel of its own takes that for any. */
#define HOPPER_PARTS(F, OUTPUT, ACTIVE, BM, SPLIT, SHORT, LONG)                                    \
    {                                                                                              \
        product_hopper<F, OUTPUT, ACTIVE, BM, SPLIT, 0>,                                           \
            product_hopper<F, OUTPUT, ACTIVE, BM, SPLIT, 4>,                                       \
            product_hopper<F, OUTPUT, ACTIVE, BM, SPLIT, SHORT>,                                   \
            product_hopper<F, OUTPUT, ACTIVE, BM, SPLIT, LONG>                                     \
    }
#define HOPPER_KERNELS(F, OUTPUT, ACTIVE, SHORT, LONG)                                             \
    {                                                                                              \
        HOPPER_PARTS(F, OUTPUT, ACTIVE, 32, 2, SHORT, LONG),                                       \
            HOPPER_PARTS(F, OUTPUT, ACTIVE, 64, 1, SHORT, LONG),                                   \
            HOPPER_PARTS(F, OUTPUT, ACTIVE, 64, 2, SHORT, LONG)                                    \
    }
#define HOPPER_FORMAT(F)                                                                           \
    {                                                                                              \
        {HOPPER_KERNELS(F, PRODUCT_PLAIN, false, 0, 0),                                            \
         HOPPER_KERNELS(F, PRODUCT_PLAIN, true, 0, 0),                                             \
         HOPPER_KERNELS(F, PRODUCT_RESIDUAL, false, 2, HOPPER_LONG),                               \
         HOPPER_KERNELS(F, PRODUCT_QKV, false, 0, 0),                                              \
         HOPPER_KERNELS(F, PRODUCT_CROSS, false, 0, 0),                                            \
         HOPPER_KERNELS(F, PRODUCT_LOGITS, false, 0, 0)},                                          \
            {{product_parts<F, 32, 1>, product_parts<F, 32, 2>, product_parts<F, 32, 4>},          \
             {product_parts<F, 64, 1>, product_parts<F, 64, 2>, NULL}},                            \
            {product_embed<F, 2>, product_embed<F, 4>, product_embed<F, 6>, product_embed<F, 8>},  \
        {                                                                                          \
            product_norm<F, 2>, product_norm<F, 4>, product_norm<F, 6>, product_norm<F, 8>         \
        }                                                                                          \
    }

#endif
