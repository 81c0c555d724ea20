/* SPDX-License-Identifier: MIT
 *
 * product_kernel: the two kernels that multiply, one for few rows and one for many, compiled for
 * what stands in front and behind (a kernel runs but a few microseconds, so its code must stay
 * short: at first one kernel did everything by switches, and half of its time was spent fetching
 * instructions). A file per format instantiates them; product.cu chooses.
 */
#ifndef PGPT_KERNELS_CUDA_PRODUCT_KERNEL_CUH
#define PGPT_KERNELS_CUDA_PRODUCT_KERNEL_CUH

#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/product_input.cuh"
#include "kernels/cuda/product_output.cuh"
#include "kernels/cuda/product_shape.h"

template <class F>
static __device__ __forceinline__ float4 output_values(const float *sums, float x_scale,
                                                       const struct output_column &column)
{
    return make_float4(output_value<F>(sums[0], x_scale, column.scale.x, column.bias.x),
                       output_value<F>(sums[1], x_scale, column.scale.y, column.bias.y),
                       output_value<F>(sums[2], x_scale, column.scale.z, column.bias.z),
                       output_value<F>(sums[3], x_scale, column.scale.w, column.bias.w));
}

/* The 8 columns that lane q has of a unit (logsum.cuh). */
template <class F>
static __device__ __forceinline__ void unit_values(const struct product &p, const float *sums,
                                                   int c0, int q, float x_scale, float (&v)[8])
{
#pragma unroll
    for (int t = 0; t < 4; t++)
#pragma unroll
        for (int e = 0; e < 2; e++) {
            int c = 8 * t + 2 * q + e;
            float scale = 1.0f;

            if constexpr (F::QUANTISED)
                scale = p.weight.scale[c0 + c];
            v[2 * t + e] = output_value<F>(sums[c], x_scale, scale, p.weight.bias[c0 + c]);
        }
}

/*
 * narrow: few rows. A warp takes one of 4 parts of K and one of CT tiles of 16 columns; its weights
 * go to registers before the kernel in front has finished. out (16 rows, 16 CT columns) a block.
 * WINDOWS: of the rows (PRODUCT_ROWS), only what the next NARROW_BLOCKS blocks of each part want
 * lies in shared memory.
 */
template <class F, enum product_input INPUT, enum product_output OUTPUT, int CT,
          bool WINDOWS = false>
static __global__ void __launch_bounds__(CT * 128) product_narrow(const struct product p)
{
    constexpr int BM = 16, BN = 16 * CT, FOURS = BN / 4, GROUP = NARROW_BLOCKS;
    constexpr int THREADS = CT * 128, WINDOW = FORMAT_PARTS * GROUP * F::KB;
    constexpr int STRIDE = BN + NARROW_PAD;
    typedef typename F::part part_t;
    extern __shared__ __align__(128) char shared[];
    __shared__ struct tile_rows info[BM];
    __shared__ float scales[BM], inverses[BM];
    const int K = p.weight.K;
    const int stride = (WINDOWS ? WINDOW : K) * F::TILE_BYTES + PRODUCT_TILE_PAD;
    char *tile = shared;
    part_t *partial = (part_t *)(shared + (size_t)BM * stride); /* (4, BM, STRIDE) */
    float *norm = (float *)(partial + 4 * BM * STRIDE);         /* (2, K) */
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, q = lane & 3;
    const int part = warp & 3, half = warp >> 2;
    const int blocks = K / F::KB, each = blocks / FORMAT_PARTS;
    const int m0 = blockIdx.y * BM, c0 = blockIdx.x * BN;
    const int n = *p.n;
    const int r = OUTPUT == PRODUCT_LOGITS ? threadIdx.x >> 2 : threadIdx.x / FOURS;
    const int c = OUTPUT == PRODUCT_LOGITS ? 0 : threadIdx.x % FOURS * 4;
    const char *packed = (const char *)p.weight.packed +
                         ((size_t)(blockIdx.x * CT + half) * blocks + part * each) * 1024;
    struct format_weights w[GROUP];
    typename F::sum acc[2][4] = {};
    struct output_column column;
    float4 residual = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    float unit_bias[8]; /* LOGITS: of this lane's columns of the unit */

#pragma unroll
    for (int b = 0; b < GROUP; b++)
        if (b < each)
            w[b] = weights_get<F>(packed + b * 1024, lane);
    if (OUTPUT != PRODUCT_LOGITS)
        column = output_columns<F>(p, c0 + c);
    else
#pragma unroll
        for (int t = 0; t < 8; t++)
            unit_bias[t] = p.weight.bias[c0 + 8 * (t >> 1) + 2 * q + (t & 1)];
    tile_prefetch<INPUT, OUTPUT, BM>(p, m0, n, norm, info);
    launch_wait();
    launch_next();
    if (m0 >= n)
        return;
    if (OUTPUT == PRODUCT_RESIDUAL && r < BM)
        residual = residual_get(p, m0 + r, n, c0 + c);
    if constexpr (WINDOWS)
        rows_measure<F, BM>(p, m0, n, scales, inverses);
    else
        tile_fill<F, INPUT, OUTPUT, BM, THREADS, 0>(p, m0, n, tile, stride, scales, info, norm);

#pragma unroll 1
    for (int b0 = 0; b0 < each; b0 += GROUP) {
        const int at = WINDOWS ? part * GROUP : part * each + b0; /* in the tile */

        if constexpr (WINDOWS)
            window_fill<F, BM, GROUP>(p, m0, n, b0, tile, stride, inverses);
#pragma unroll
        for (int b = 0; b < GROUP; b++) {
            if (b0 + b >= each)
                break;
#pragma unroll
            for (int t = 0; t < 2; t++)
                block_multiply<F>(acc[t], w[b],
                                  rows_get<F>(tile + t * 8 * stride, stride, at + b, lane),
                                  packed + (b0 + b) * 1024, lane);
        }
        if (b0 + GROUP < each)
#pragma unroll
            for (int b = 0; b < GROUP; b++)
                if (b0 + GROUP + b < each)
                    w[b] = weights_get<F>(packed + (b0 + GROUP + b) * 1024, lane);
    }
#pragma unroll
    for (int t = 0; t < 2; t++) {
        const part_t parts[4] = {part_of(acc[t][0]), part_of(acc[t][1]), part_of(acc[t][2]),
                                 part_of(acc[t][3])};

        sums_put(partial + (part * BM + t * 8) * STRIDE + half * 16, STRIDE, parts, lane);
    }
    __syncthreads();
    if (r >= BM)
        return;
    if constexpr (OUTPUT == PRODUCT_LOGITS) {
        /* whole warps are here: BM * 4 is a multiple of 32 */
        float v[8];

#pragma unroll
        for (int t = 0; t < 8; t++) {
            int at = 8 * (t >> 1) + 2 * q + (t & 1);
            const part_t *s = partial + r * STRIDE + at;
            float scale = 1.0f;

            if constexpr (F::QUANTISED)
                scale = p.weight.scale[c0 + at];
            v[t] = output_value<F>(
                parts_add(s[0], s[BM * STRIDE], s[2 * BM * STRIDE], s[3 * BM * STRIDE]), scales[r],
                scale, unit_bias[t]);
        }
        output_unit(p, info[r], m0 + r, n, blockIdx.x, q, v);
    } else if (m0 + r < n) {
        float sums[4];

#pragma unroll
        for (int e = 0; e < 4; e++) {
            const part_t *s = partial + r * STRIDE + c + e;

            sums[e] = parts_add(s[0], s[BM * STRIDE], s[2 * BM * STRIDE], s[3 * BM * STRIDE]);
        }
        output_four<F, OUTPUT>(p, info[r], m0 + r, c0 + c,
                               output_values<F>(sums, scales[r], column), residual);
    }
}

/* What a warp summed of its tiles goes into their totals; the sums start anew. */
template <class F, int CT, int RT>
static __device__ __forceinline__ void sums_take(float (&total)[CT][RT][4],
                                                 typename F::sum (&acc)[CT][RT][4])
{
#pragma unroll
    for (int t = 0; t < CT; t++)
#pragma unroll
        for (int u = 0; u < RT; u++)
#pragma unroll
            for (int e = 0; e < 4; e++) {
                total[t][u][e] += sum_of(acc[t][u][e]); /* 0 + part 0 is part 0 */
                acc[t][u][e] = {};
            }
}

/*
 * wide: many rows. WC x WR warps, a warp 16 CT columns by 8 RT rows, 64 columns a block. The rows
 * stay in shared memory while the block walks over its column tiles; weights come through a ring of
 * pieces (64 columns by 2 blocks), the first of them before the kernel in front has finished. Sums
 * leave through the ring's memory, so that rows are written whole. Two blocks fit a multiprocessor,
 * so that one works while the other waits, and the next kernel's blocks find room early.
 */
template <class F, enum product_input INPUT, enum product_output OUTPUT, int WC, int WR, int RT>
static __global__ void __launch_bounds__(WC *WR * 32) product_wide(const struct product p)
{
    constexpr int BM = WR * RT * 8, CT = WIDE_COLUMNS / 16 / WC, THREADS = WC * WR * 32;
    constexpr int PIECE = WIDE_PIECE, STAGE = WIDE_COLUMNS + WIDE_STAGE_PAD;
    extern __shared__ __align__(128) char shared[];
    __shared__ struct tile_rows info[BM];
    __shared__ float scales[BM];
    const int K = p.weight.K, stride = K * F::TILE_BYTES + PRODUCT_TILE_PAD;
    char *tile = shared, *ring = shared + (size_t)BM * stride;
    float *stage = (float *)ring;                        /* (BM, STAGE), between tiles */
    float *norm = (float *)(ring + wide_ring_bytes(BM)); /* (2, K) */
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, q = lane & 3;
    const int wc = warp % WC, wr = warp / WC;
    const int blocks = K / F::KB, pieces = blocks / 2;
    const int each = blocks / FORMAT_PARTS;
    const int tiles = (p.weight.N + WIDE_COLUMNS - 1) / WIDE_COLUMNS;
    const int m0 = blockIdx.y * BM;
    const int n = *p.n;

    /* piece: 4 tiles of 16 columns, 2 blocks each */
    auto piece_fetch = [&](int column, int piece) {
        if (piece < pieces) {
            char *to = ring + piece % WIDE_PIECES * PIECE;

#pragma unroll
            for (int i = threadIdx.x; i < PIECE / 16; i += THREADS)
                copy_16(to + i * 16,
                        (const char *)p.weight.packed +
                            ((size_t)(column * 4 + (i >> 7)) * blocks + piece * 2) * 1024 +
                            (i & 127) * 16,
                        true);
        }
        copy_commit();
    };

    if (m0 < n) {
        tile_prefetch<INPUT, OUTPUT, BM>(p, m0, n, norm, info);
#pragma unroll
        for (int i = 0; i < WIDE_PIECES - 1; i++)
            piece_fetch(blockIdx.x, i);
    }
    launch_wait();
    launch_next();
    if (m0 >= n)
        return;
    tile_fill<F, INPUT, OUTPUT, BM, THREADS, WIDE_PIECES - 1>(p, m0, n, tile, stride, scales, info,
                                                              norm);

#pragma unroll 1
    for (int column = blockIdx.x; column < tiles; column += gridDim.x) {
        const int c0 = column * WIDE_COLUMNS;
        const char *rows = tile + (size_t)wr * RT * 8 * stride;
        typename F::sum acc[CT][RT][4] = {};
        float total[CT][RT][4] = {};
        int in_part = 0;

        if (column != (int)blockIdx.x)
#pragma unroll
            for (int i = 0; i < WIDE_PIECES - 1; i++)
                piece_fetch(column, i);
#pragma unroll 1
        for (int i = 0; i < pieces; i++) {
            const char *weights = ring + i % WIDE_PIECES * PIECE + wc * CT * 2048;

            copy_wait<WIDE_PIECES - 2>();
            __syncthreads();
            piece_fetch(column, i + WIDE_PIECES - 1); /* into what all have left */
#pragma unroll
            for (int b = 0; b < 2; b++) {
                typename F::rows x[RT];

#pragma unroll
                for (int t = 0; t < RT; t++)
                    x[t] = rows_get<F>(rows + t * 8 * stride, stride, i * 2 + b, lane);
#pragma unroll
                for (int t = 0; t < CT; t++) {
                    const char *block = weights + t * 2048 + b * 1024;
                    struct format_weights w = weights_get<F>(block, lane);

#pragma unroll
                    for (int u = 0; u < RT; u++)
                        block_multiply<F>(acc[t][u], w, x[u], block, lane);
                }
            }
            in_part += 2;
            if (F::QUANTISED || in_part < each)
                continue; /* integers add up in any order */
            in_part = 0;
            sums_take<F>(total, acc);
        }
        if (F::QUANTISED)
            sums_take<F>(total, acc);
        __syncthreads();
#pragma unroll
        for (int t = 0; t < CT; t++)
#pragma unroll
            for (int u = 0; u < RT; u++)
                sums_put(stage + (wr * RT + u) * 8 * STAGE + (wc * CT + t) * 16, STAGE, total[t][u],
                         lane);
        __syncthreads();
        if constexpr (OUTPUT == PRODUCT_LOGITS) {
#pragma unroll 1
            for (int j = threadIdx.x >> 2; j < BM * 2; j += THREADS / 4) {
                int r = j >> 1, u = j & 1;
                float v[8];

                unit_values<F>(p, stage + r * STAGE + u * 32, c0 + u * 32, q, scales[r], v);
                output_unit(p, info[r], m0 + r, n, c0 / PRODUCT_UNIT + u, q, v);
            }
        } else {
            const int c = threadIdx.x % 16 * 4;
            struct output_column column4 = output_columns<F>(p, c0 + c);

#pragma unroll 2
            for (int r = threadIdx.x / 16; r < BM; r += THREADS / 16) {
                float4 residual = make_float4(0.0f, 0.0f, 0.0f, 0.0f);

                if (m0 + r >= n)
                    break;
                if (OUTPUT == PRODUCT_RESIDUAL)
                    residual = residual_get(p, m0 + r, n, c0 + c);
                output_four<F, OUTPUT>(p, info[r], m0 + r, c0 + c,
                                       output_values<F>(stage + r * STAGE + c, scales[r], column4),
                                       residual);
            }
        }
        __syncthreads(); /* the ring is a ring again */
    }
}

/* The kernels of a format; NULL where a shape has none for a combination. */
#define PRODUCT_WIDES(F, INPUT, OUTPUT)                                                            \
    product_wide<F, INPUT, OUTPUT, 4, 2, 2>, product_wide<F, INPUT, OUTPUT, 2, 4, 2>
#define PRODUCT_BROAD(F, INPUT, OUTPUT)                                                            \
    {                                                                                              \
        NULL, product_narrow<F, INPUT, OUTPUT, 2>, PRODUCT_WIDES(F, INPUT, OUTPUT), NULL           \
    }
#define PRODUCT_SLIM(F, INPUT, OUTPUT, WINDOWS)                                                    \
    {                                                                                              \
        product_narrow<F, INPUT, OUTPUT, 1>, NULL, PRODUCT_WIDES(F, INPUT, OUTPUT), WINDOWS        \
    }

#define PRODUCT_KERNELS(F)                                                                         \
    {                                                                                              \
        PRODUCT_BROAD(F, PRODUCT_EMBED, PRODUCT_QKV), PRODUCT_BROAD(F, PRODUCT_NORM, PRODUCT_QKV), \
            PRODUCT_SLIM(F, PRODUCT_ROWS, PRODUCT_RESIDUAL,                                        \
                         (product_narrow<F, PRODUCT_ROWS, PRODUCT_RESIDUAL, 1, true>)),            \
            PRODUCT_SLIM(F, PRODUCT_NORM, PRODUCT_PLAIN, NULL),                                    \
            PRODUCT_BROAD(F, PRODUCT_NORM, PRODUCT_LOGITS),                                        \
            PRODUCT_BROAD(F, PRODUCT_EMBED, PRODUCT_PLAIN),                                        \
            PRODUCT_BROAD(F, PRODUCT_NORM, PRODUCT_CROSS),                                         \
    }

#endif
