/* SPDX-License-Identifier: MIT
 *
 * The logits of few rows over a large vocabulary: bound by the bytes of its weights. A warp takes
 * whole units of 32 columns with all their inputs, so that nothing of a unit leaves the warp; its
 * weights go from memory straight into registers, DEPTH blocks of inputs ahead and on into the next
 * unit, the first of them before the kernel in front has finished. A block norms its rows once.
 */
#include "kernels/cuda/check.h"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/product_input.cuh"
#include "kernels/cuda/product_output.cuh"
#include "kernels/cuda/product_shape.h"

enum {
    LOGITS_K = 512,
    LOGITS_THREADS = 256,
    LOGITS_STAGE = PRODUCT_UNIT + 4, /* floats from one row's sums to the next */
    LOGITS_STRIDE = LOGITS_K * 2 + PRODUCT_TILE_PAD,
    LOGITS_ROWS = 64,
};

/* RT tiles of 8 rows. */
template <class F, int RT, int DEPTH>
static __global__ void __launch_bounds__(LOGITS_THREADS, 1) product_logits(const struct product p)
{
    constexpr int BM = 8 * RT, BLOCKS = LOGITS_K / F::KB, EACH = BLOCKS / FORMAT_PARTS;
    extern __shared__ __align__(128) char shared[];
    __shared__ struct tile_rows info[BM];
    __shared__ float scales[BM];
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, q = lane & 3;
    float *norm = (float *)(shared + BM * LOGITS_STRIDE);         /* (2, K) */
    float *stage = norm + 2 * LOGITS_K + warp * 8 * LOGITS_STAGE; /* (8, 32) of this warp */
    const int n = *p.n, units = product_units(p.weight.N);
    const char *packed = (const char *)p.weight.packed;
    struct format_weights w[2][DEPTH];

    /* block `b` of the DEPTH that a unit's weights pass through the registers in */
    auto fetch = [&](int unit, int first, int b) {
        if (unit < units)
#pragma unroll
            for (int t = 0; t < 2; t++)
                w[t][b] = weights_stream(
                    packed + ((size_t)(unit * 2 + t) * BLOCKS + first + b) * 1024, lane);
    };

    int unit = warp * gridDim.x + blockIdx.x;

#pragma unroll
    for (int b = 0; b < DEPTH; b++)
        fetch(unit, 0, b);
    tile_prefetch<PRODUCT_NORM, PRODUCT_LOGITS, BM>(p, 0, n, norm, info);
    launch_wait();
    launch_next();
    tile_fill<F, PRODUCT_NORM, PRODUCT_LOGITS, BM, LOGITS_THREADS, 0>(
        p, 0, n, shared, LOGITS_STRIDE, scales, info, norm);

#pragma unroll 1
    for (; unit < units; unit += LOGITS_THREADS / 32 * gridDim.x) {
        const int next = unit + LOGITS_THREADS / 32 * gridDim.x;
        float total[2][RT][4] = {}, acc[2][RT][4] = {}, bias[8];

#pragma unroll
        for (int t = 0; t < 8; t++)
            bias[t] = p.weight.bias[unit * PRODUCT_UNIT + 8 * (t >> 1) + 2 * q + (t & 1)];
#pragma unroll 1
        for (int first = 0; first < BLOCKS; first += DEPTH) {
            const bool last = first + DEPTH == BLOCKS;

#pragma unroll
            for (int b = 0; b < DEPTH; b++) {
#pragma unroll
                for (int r = 0; r < RT; r++) {
                    typename F::rows x =
                        rows_get<F>(shared + r * 8 * LOGITS_STRIDE, LOGITS_STRIDE, first + b, lane);

#pragma unroll
                    for (int t = 0; t < 2; t++)
                        block_multiply<F>(acc[t][r], w[t][b], x, NULL, lane);
                }
                fetch(last ? next : unit, last ? 0 : first + DEPTH, b);
                if (b % EACH == EACH - 1)
#pragma unroll
                    for (int t = 0; t < 2; t++)
#pragma unroll
                        for (int r = 0; r < RT; r++)
#pragma unroll
                            for (int e = 0; e < 4; e++) {
                                total[t][r][e] += acc[t][r][e];
                                acc[t][r][e] = 0.0f;
                            }
            }
        }
#pragma unroll
        for (int r = 0; r < RT; r++) {
            const int row = r * 8 + (lane >> 2);
            float v[8];

            if (r * 8 >= n)
                break;
            __syncwarp();
#pragma unroll
            for (int t = 0; t < 2; t++)
                sums_put(stage + t * 16, LOGITS_STAGE, total[t][r], lane);
            __syncwarp();
#pragma unroll
            for (int t = 0; t < 8; t++)
                v[t] = __fadd_rn(stage[(lane >> 2) * LOGITS_STAGE + 8 * (t >> 1) + 2 * q + (t & 1)],
                                 bias[t]);
            output_unit(p, info[row], row, n, unit, q, v);
        }
    }
}

/* Kernels for 8, 16, 32 and 64 rows. */
template <class F> static product_kernel kernel_of(int tiles)
{
    return tiles == 1   ? product_logits<F, 1, 8>
           : tiles == 2 ? product_logits<F, 2, 8>
           : tiles == 4 ? product_logits<F, 4, 8>
                        : product_logits<F, 8, 4>;
}

static int tiles_of(int32_t n_most)
{
    return n_most <= 8 ? 1 : n_most <= 16 ? 2 : n_most <= 32 ? 4 : 8;
}

static product_kernel kernel_for(enum cuda_format format, int tiles)
{
    return format == CUDA_BF16 ? kernel_of<format_bf16>(tiles) : kernel_of<format_f16>(tiles);
}

static size_t shared_bytes(int tiles)
{
    return (size_t)tiles * 8 * LOGITS_STRIDE +
           (2 * LOGITS_K + LOGITS_THREADS / 32 * 8 * LOGITS_STAGE) * sizeof(float);
}

cudaError_t product_logits_prepare(void)
{
    for (int tiles = 1; tiles <= LOGITS_ROWS / 8; tiles *= 2)
        for (int format = CUDA_F16; format <= CUDA_BF16; format++)
            CUDA_PASS(cudaFuncSetAttribute(
                (const void *)kernel_for((enum cuda_format)format, tiles),
                cudaFuncAttributeMaxDynamicSharedMemorySize, (int)shared_bytes(tiles)));
    return cudaSuccess;
}

bool product_logits_takes(const struct product *product, int32_t n_most, int multiprocessors)
{
    return (product->weight.format == CUDA_F16 || product->weight.format == CUDA_BF16) &&
           product->weight.K == LOGITS_K && n_most <= LOGITS_ROWS &&
           product_units(product->weight.N) >= 2 * multiprocessors;
}

cudaError_t product_logits_enqueue(const struct product *product, int32_t n_most,
                                   int multiprocessors, bool pdl, cudaStream_t stream)
{
    int tiles = tiles_of(n_most);

    return launch(kernel_for(product->weight.format, tiles), dim3(multiprocessors), LOGITS_THREADS,
                  shared_bytes(tiles), pdl, stream, *product);
}
