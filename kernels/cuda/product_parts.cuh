/* SPDX-License-Identifier: MIT
 *
 * product_parts: a product of few columns and long rows, whose four parts of the inputs are four
 * blocks of a cluster: a chain of a quarter of the length, and four times the multiprocessors to
 * fetch weights. A block has all of its part's rows in shared memory at once; weights come from L2
 * straight into registers, seven blocks ahead. Then each block gets a quarter of the rows' sums
 * from the others, adds them in the order of the parts and ends those rows. Capability 9.0a alone.
 */
#ifndef PGPT_KERNELS_CUDA_PRODUCT_PARTS_CUH
#define PGPT_KERNELS_CUDA_PRODUCT_PARTS_CUH

#include "kernels/cuda/cluster.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/product_hopper.h"
#include "kernels/cuda/product_input.cuh"
#include "kernels/cuda/product_output.cuh"
#include "kernels/cuda/warpgroup.cuh"

enum { PARTS_RING = PARTS_INPUTS / 32 }; /* blocks of weights in a warp's registers */

#if PGPT_CUDA_HOPPER && __CUDA_ARCH__ >= 900

/* PARTS_INPUTS of the rows, from `input` on, to `tile`: a committed group of copies. A thread has
 * the same 16 bytes of every fourth row, so its places are constants apart. K: a row's inputs. */
template <int BM, int K>
static __device__ __forceinline__ void parts_load(const struct product &p, int m0, int n, int input,
                                                  char *tile)
{
    constexpr int WARPS = PARTS_THREADS / 32;
    const int warp = threadIdx.x >> 5, word = threadIdx.x & 31;
    const char *from = (const char *)p.x + ((size_t)(m0 + warp) * K + input) * 2 + word * 16;

#pragma unroll
    for (int r = 0; r < BM; r += WARPS) /* nothing is read of rows past n */
        copy_16(tile + (word >> 3) * BM * 128 + (r & ~7) * 128 +
                    warpgroup_at(warp + (r & 7), word & 7),
                from + r * K * 2, m0 + warp + r < n);
    copy_commit();
}

/* Sums of the block's part, straight code (product_hopper.cuh says why); w holds the first
 * PARTS_RING - 1 blocks of the lane's weights. */
template <class F, int BM, int WINDOWS>
static __device__ __forceinline__ void parts_multiply(struct format_weights (&w)[PARTS_RING],
                                                      const char *weights, uint64_t rows,
                                                      float (&acc)[BM / 2])
{
    constexpr int BLOCKS = WINDOWS * PARTS_RING;

#pragma unroll
    for (int b = 0; b < BLOCKS; b++) {
        const uint32_t at = (b >> 1) * BM * 128 + (b & 1) * 64;
        const int later = b + PARTS_RING - 1;

        if (b % PARTS_RING == 0) {
            if (b == 0)
                copy_wait<WINDOWS - 1>();
            else if (b == PARTS_RING)
                copy_wait<0>();
            if (b <= PARTS_RING) {
                warpgroup_publish();
                __syncthreads();
            }
        }
        warpgroup_fence();
        warpgroup_multiply<F, BM>(acc, w[b % PARTS_RING].half[0], warpgroup_rows_behind(rows, at),
                                  b > 0);
        warpgroup_multiply<F, BM>(acc, w[b % PARTS_RING].half[1],
                                  warpgroup_rows_behind(rows, at + 32), 1);
        warpgroup_commit();
        warpgroup_wait<1>();
        if (later < BLOCKS)
            w[later % PARTS_RING] = weights_stream(weights + later * 1024, 0);
    }
    warpgroup_wait<0>();
}

/* A quarter of the block's rows to each of the others, and theirs here. letter: (FORMAT_PARTS, BM /
 * FORMAT_PARTS, PARTS_COLUMNS) floats; its own quarter stays in sums. */
template <int BM>
static __device__ __forceinline__ void parts_exchange(const float *sums, float *letter,
                                                      struct cluster_mailbox *box, int part)
{
    constexpr int QUARTER = BM / FORMAT_PARTS, BYTES = (BM - QUARTER) * PARTS_COLUMNS * 4;
    uint32_t phase = 0;

#pragma unroll
    for (int first = 0; first < BM; first += PARTS_THREADS / 16) {
        const int to = first / QUARTER, r = first % QUARTER + threadIdx.x / 16;
        const int c = threadIdx.x % 16 * 4;

        if (to != part)
            cluster_send16(letter + (part * QUARTER + r) * PARTS_COLUMNS + c, box, to,
                           *(const uint4 *)(sums + (to * QUARTER + r) * HOPPER_STAGE + c));
    }
    mailbox_receive(box, BYTES, &phase, threadIdx.x == 0);
}

#endif

/* The other architectures that a kernel is compiled for, and never runs on, know no clusters. */
#if defined __CUDA_ARCH__ && __CUDA_ARCH__ < 900
#define PARTS_CLUSTER
#else
#define PARTS_CLUSTER __cluster_dims__(FORMAT_PARTS, 1, 1)
#endif

/* y (BM rows, 64 columns) a cluster: product + residual. */
template <class F, int BM, int WINDOWS>
static __global__ void PARTS_CLUSTER __launch_bounds__(PARTS_THREADS, BM == 32 ? 4 : 2)
    product_parts(const struct product p)
{
#if PGPT_CUDA_HOPPER && __CUDA_ARCH__ >= 900
    constexpr int QUARTER = BM / FORMAT_PARTS, EACH = QUARTER * 16 / PARTS_THREADS;
    extern __shared__ __align__(1024) char shared[];
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, part = (int)cluster_rank();
    constexpr int inputs = WINDOWS * PARTS_INPUTS, K = FORMAT_PARTS * inputs;
    const int m0 = blockIdx.y * BM, c0 = blockIdx.x / FORMAT_PARTS * PARTS_COLUMNS, n = *p.n;
    const int c = c0 + threadIdx.x % 16 * 4;
    float *sums = (float *)(shared + parts_sums_at(BM, inputs));
    float *letter = (float *)(shared + parts_letter_at(BM, inputs));
    struct cluster_mailbox *box = (struct cluster_mailbox *)(shared + parts_box_at(BM, inputs));
    const char *weights = (const char *)p.weight.packed + lane * 16 +
                          (size_t)((c0 / 16 + warp) * (K / 32) + part * (inputs / 32)) * 1024;
    struct format_weights w[PARTS_RING];
    float acc[BM / 2];
    float4 bias, residual[EACH];

    if (m0 < n) {
#pragma unroll
        for (int i = 0; i < PARTS_RING - 1; i++)
            w[i] = weights_stream(weights + i * 1024, 0);
        bias = *(const float4 *)(p.weight.bias + c);
        if (threadIdx.x == 0)
            mailbox_open(box, (BM - QUARTER) * PARTS_COLUMNS * 4);
        __syncthreads();
        cluster_sync(); /* boxes are open everywhere */
    }
    launch_wait();
    launch_next();
    if (m0 >= n) /* all of the cluster */
        return;
#pragma unroll
    for (int i = 0; i < WINDOWS; i++)
        parts_load<BM, K>(p, m0, n, part * inputs + i * PARTS_INPUTS,
                          shared + i * BM * PARTS_INPUTS * 2);
#pragma unroll
    for (int i = 0; i < EACH; i++)
        residual[i] =
            residual_get(p, m0 + part * QUARTER + threadIdx.x / 16 + i * PARTS_THREADS / 16, n, c);
    parts_multiply<F, BM, WINDOWS>(w, weights, warpgroup_rows(shared_address(shared)), acc);
#pragma unroll
    for (int u = 0; u < BM / 8; u++)
        sums_put(sums + u * 8 * HOPPER_STAGE + warp * 16, HOPPER_STAGE, acc + 4 * u, lane);
    __syncthreads();
    parts_exchange<BM>(sums, letter, box, part);
#pragma unroll
    for (int i = 0; i < EACH; i++) {
        const int r = threadIdx.x / 16 + i * PARTS_THREADS / 16;
        const float *own = sums + (part * QUARTER + r) * HOPPER_STAGE + threadIdx.x % 16 * 4;
        const float *others = letter + r * PARTS_COLUMNS + threadIdx.x % 16 * 4;
        const struct tile_rows unused = {};
        float4 v = make_float4(0.0f, 0.0f, 0.0f, 0.0f);

        if (m0 + part * QUARTER + r >= n)
            break;
#pragma unroll
        for (int j = 0; j < FORMAT_PARTS; j++) {
            const float4 more =
                *(const float4 *)(j == part ? own : others + j * QUARTER * PARTS_COLUMNS);

            v.x = j ? v.x + more.x : more.x;
            v.y = j ? v.y + more.y : more.y;
            v.z = j ? v.z + more.z : more.z;
            v.w = j ? v.w + more.w : more.w;
        }
        v.x = output_value<F>(v.x, 1.0f, 1.0f, bias.x);
        v.y = output_value<F>(v.y, 1.0f, 1.0f, bias.y);
        v.z = output_value<F>(v.z, 1.0f, 1.0f, bias.z);
        v.w = output_value<F>(v.w, 1.0f, 1.0f, bias.w);
        output_four<F, PRODUCT_RESIDUAL>(p, unused, m0 + part * QUARTER + r, c, v, residual[i]);
    }
#else
    (void)p;
#endif
}

#endif
