/* SPDX-License-Identifier: MIT
 *
 * simt: runs a block of a CUDA kernel's threads on a CPU, each as a fiber that goes on until a
 * barrier or an instruction of its whole warp, so that a kernel's indexing, layouts and waits can
 * be tested without a GPU. Blocks run one after the other, those of a cluster together. Matrix
 * instructions add in double precision, so results are compared within rounding; bits are for
 * `pgpt-engine verify` on a device.
 *
 * Asynchronous copies, and what blocks of a cluster send one another, land when simt_copies says. A
 * kernel must not depend on when: what it reads too early, or overwrites while a copy is still to
 * land, shows.
 *
 * It is included before everything else and stands in for the device side of CUDA's own headers.
 * Addresses in shared memory are 32 bits, so a program is linked without -pie.
 */
#ifndef PGPT_TESTS_KERNELS_SIMT_H
#define PGPT_TESTS_KERNELS_SIMT_H

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <functional>

#undef __device__
#undef __global__
#undef __shared__
#undef __forceinline__
#undef __launch_bounds__
#undef __noinline__
#undef __cluster_dims__
#undef __align__
#undef __grid_constant__
#define __device__
#define __global__
#define __shared__ static
#define __forceinline__ inline
#define __noinline__
#define __launch_bounds__(...)
#define __cluster_dims__(...)
#define __grid_constant__
#define __align__(n) __attribute__((aligned(n)))

enum simt_copies {
    SIMT_AT_ONCE,
    SIMT_LATE,       /* when a thread waits for them */
    SIMT_IN_BETWEEN, /* there, or before, at a barrier */
    SIMT_COPIES
};

struct simt_place {
    int x, y, z;
};
struct simt_barrier {
    int arrived, phase;
};

enum { SIMT_WARPS = 192, SIMT_BLOCKS = 16 }; /* of a cluster */

extern struct simt_place simt_block, simt_grid;
extern int simt_thread;  /* of all of a cluster's */
extern int simt_threads; /* of a block */
extern int simt_cluster; /* blocks that run together */
extern enum simt_copies simt_copies;
extern char *simt_memory; /* of all blocks, 256 KiB each */
extern struct simt_barrier simt_all[SIMT_BLOCKS], simt_workers[SIMT_BLOCKS], simt_everybody,
    simt_named[SIMT_BLOCKS][16], simt_warps[SIMT_WARPS], simt_groups[SIMT_WARPS / 4],
    simt_group_steps[SIMT_WARPS / 4], simt_lanes[SIMT_WARPS][32];

static inline int simt_rank(void)
{
    return simt_thread / simt_threads;
}
/* dynamic shared memory of the block */
#define simt_shared (simt_memory + ((size_t)simt_rank() << 18))

#define threadIdx (simt_place{simt_thread % simt_threads, 0, 0})
#define blockIdx (simt_place{simt_block.x + simt_rank(), simt_block.y, simt_block.z})
#define gridDim simt_grid
#define blockDim (simt_place{simt_threads, 1, 1})

/* Runs kernel() once for each thread of each block. */
void simt_launch(struct simt_place grid, int threads, std::function<void()> kernel,
                 int cluster = 1);
void simt_wait(struct simt_barrier *barrier, int count);
void simt_copy(void *shared, const void *global, bool in);
void simt_copy_commit(void);
void simt_copy_wait(int pending);
void simt_copies_between(void);
/* Mailboxes of cluster.cuh. */
void simt_box_open(void *box);
void simt_box_expect(void *box, uint32_t bytes);
void simt_box_receive(void *box, uint32_t phase);
void simt_box_send(const void *to, void *box, int rank, const void *data, int bytes);

/* What is put into global memory is there for others when a thread of its warpgroup has published.
 */
void simt_put8(void *global, const void *data);
void simt_publish(void);

/* Slots of weights_ring.cuh. */
void simt_ring_open(void *barrier, uint32_t shares = 0);
void simt_ring_release(void *barrier, uint32_t shares);
void simt_ring_wait(const void *barrier, uint32_t phase);
void simt_ring_expect(void *full, uint32_t bytes);
void simt_ring_copy(char *to, const char *from, uint32_t bytes, void *full);
void simt_ring_copy_all(char *to, const char *from, uint32_t bytes, void *full, int blocks);
void simt_ring_release_at(void *barrier, int rank);
void simt_ring_fetch(char *slot, const char *from, uint32_t bytes, void *full);

static inline int simt_warp(void)
{
    return simt_thread >> 5;
}
static inline int simt_lane(void)
{
    return simt_thread & 31;
}

static inline void __syncthreads(void)
{
    simt_copies_between();
    simt_wait(&simt_all[simt_rank()], simt_threads);
}
/* Those of a block's threads that work. */
static inline void simt_workers_wait(int count)
{
    simt_copies_between();
    simt_wait(&simt_workers[simt_rank()], count);
}
/* Those that meet at a barrier with a number. */
static inline void simt_named_wait(int barrier, int count)
{
    simt_copies_between();
    simt_wait(&simt_named[simt_rank()][barrier], count);
}
/* The same; of how many of them it is true. */
static inline int simt_named_count(int barrier, int count, bool mine)
{
    static int sums[SIMT_BLOCKS][16];
    int *sum = &sums[simt_rank()][barrier], result;

    *sum += mine;
    simt_named_wait(barrier, count);
    result = *sum;
    simt_named_wait(barrier, count);
    *sum = 0;
    simt_named_wait(barrier, count);
    return result;
}
static inline void __syncwarp(void)
{
    simt_wait(&simt_warps[simt_warp()], 32);
}
static inline void simt_warpgroup_barrier(int)
{
    simt_copies_between();
    simt_wait(&simt_groups[simt_thread >> 7], 128);
}

/* Two warpgroups of a block that take turns at something. */
void simt_turn_wait(int group);
void simt_turn_pass(int group);

/* lanes: those that take part, which know each other by the lowest. */
template <class T> static inline T simt_from_lane(uint32_t lanes, T value, int lane)
{
    static T values[SIMT_WARPS][32];
    struct simt_barrier *barrier = &simt_lanes[simt_warp()][__builtin_ctz(lanes)];
    const int count = __builtin_popcount(lanes);
    T result;

    values[simt_warp()][simt_lane()] = value;
    simt_wait(barrier, count);
    result = values[simt_warp()][lane];
    simt_wait(barrier, count);
    return result;
}
template <class T> static inline T __shfl_xor_sync(uint32_t lanes, T value, int mask)
{
    return simt_from_lane(lanes, value, simt_lane() ^ mask);
}
template <class T> static inline T __shfl_sync(uint32_t lanes, T value, int lane, int width = 32)
{
    return simt_from_lane(lanes, value, (simt_lane() & ~(width - 1)) + lane);
}

template <class T> static inline T __shfl_up_sync(uint32_t lanes, T value, int step)
{
    return simt_from_lane(lanes, value, simt_lane() < step ? simt_lane() : simt_lane() - step);
}
static inline uint32_t __reduce_add_sync(uint32_t lanes, uint32_t value)
{
    for (int mask = 16; mask; mask >>= 1)
        value += __shfl_xor_sync(lanes, value, mask);
    return value;
}
static inline uint32_t __ballot_sync(uint32_t lanes, bool value)
{
    return __reduce_add_sync(lanes, (uint32_t)value << simt_lane());
}

static inline uint32_t __reduce_max_sync(uint32_t lanes, uint32_t value)
{
    uint32_t most = 0;

    for (int lane = 0; lane < 32; lane++) {
        const uint32_t other = simt_from_lane(lanes, value, lane);

        most = other > most ? other : most;
    }
    return most;
}
static inline uint32_t __reduce_min_sync(uint32_t lanes, uint32_t value)
{
    return ~__reduce_max_sync(lanes, ~value);
}
static inline bool __all_sync(uint32_t lanes, bool value)
{
    for (int mask = 16; mask; mask >>= 1)
        value = __shfl_xor_sync(lanes, value, mask) && value;
    return value;
}

static inline float __fadd_rn(float a, float b)
{
    return a + b;
}
static inline float __fmul_rn(float a, float b)
{
    volatile float product = a * b; /* not to be contracted */

    return product;
}
static inline float __fsub_rn(float a, float b)
{
    return a - b;
}
static inline float __fdiv_rn(float a, float b)
{
    return a / b;
}
static inline float __fdividef(float a, float b)
{
    return a / b;
}
#define __log2f log2f
/* Rounds towards zero; what is too large becomes the largest. */
static inline uint32_t __float2uint_rz(float f)
{
    return !(f > 0.0f) ? 0 : f >= 4294967296.0f ? UINT32_MAX : (uint32_t)f;
}
static inline int __ffs(uint32_t bits)
{
    return __builtin_ffs((int)bits);
}
static inline int __popc(uint32_t bits)
{
    return __builtin_popcount(bits);
}
/* A thread goes on until it waits. */
static inline uint32_t atomicAdd(uint32_t *at, uint32_t value)
{
    *at += value;
    return *at - value;
}
static inline float __fmaf_rn(float a, float b, float c)
{
    return fmaf(a, b, c);
}
template <class T> static inline T __ldcg(const T *p)
{
    return *p;
}
static inline int __float2int_rn(float f)
{
    return (int)rintf(f);
}
static inline float __int_as_float(int i)
{
    float f;

    memcpy(&f, &i, sizeof f);
    return f;
}
static inline float __uint_as_float(uint32_t i)
{
    return __int_as_float((int)i);
}
/* Four of the eight bytes of a and b. */
static inline uint32_t __byte_perm(uint32_t a, uint32_t b, uint32_t selector)
{
    const uint64_t bytes = (uint64_t)b << 32 | a;
    uint32_t result = 0;

    for (int i = 0; i < 4; i++)
        result |= (uint32_t)(bytes >> (selector >> 4 * i & 7) * 8 & 255) << 8 * i;
    return result;
}
static inline int __float_as_int(float f)
{
    int i;

    memcpy(&i, &f, sizeof i);
    return i;
}
static inline uint32_t __float_as_uint(float f)
{
    return (uint32_t)__float_as_int(f);
}
static inline int min(int a, int b)
{
    return a < b ? a : b;
}
static inline int max(int a, int b)
{
    return a > b ? a : b;
}
static inline uint32_t min(uint32_t a, uint32_t b)
{
    return a < b ? a : b;
}
static inline uint32_t max(uint32_t a, uint32_t b)
{
    return a > b ? a : b;
}
static inline uint32_t shared_address(const void *shared)
{
    return (uint32_t)(uintptr_t)shared;
}

/* Half `high` of a register, as T. */
template <class T> static inline float simt_half(uint32_t word, int high)
{
    uint16_t bits = (uint16_t)(word >> 16 * high);
    T value;

    memcpy(&value, &bits, sizeof value);
    return (float)value;
}

/* Four tiles of 8 by 8 halves; lanes 8i .. 8i + 7 say where the rows of tile i begin. */
static inline uint4 simt_ldmatrix(const char *row, bool transposed)
{
    static const char *rows[SIMT_WARPS][32];
    const int w = simt_warp(), g = simt_lane() >> 2, q = simt_lane() & 3;
    uint32_t words[4];

    rows[w][simt_lane()] = row;
    __syncwarp();
    for (int i = 0; i < 4; i++) {
        uint16_t two[2];

        for (int e = 0; e < 2; e++)
            memcpy(&two[e],
                   transposed ? rows[w][8 * i + 2 * q + e] + 2 * g
                              : rows[w][8 * i + g] + 2 * (2 * q + e),
                   2);
        words[i] = two[0] | (uint32_t)two[1] << 16;
    }
    __syncwarp();
    return uint4{words[0], words[1], words[2], words[3]};
}

/* The first operand (16, 16) of the matrix instructions, of which every lane has four registers. */
template <class T> struct simt_operand {
    float at[16][16];

    void fill(const uint4 *lanes)
    {
        for (int lane = 0; lane < 32; lane++) {
            const uint32_t words[4] = {lanes[lane].x, lanes[lane].y, lanes[lane].z, lanes[lane].w};

            for (int i = 0; i < 4; i++)
                for (int e = 0; e < 2; e++)
                    at[(lane >> 2) + (i & 1) * 8][2 * (lane & 3) + e + (i >> 1) * 8] =
                        simt_half<T>(words[i], e);
        }
    }
};

/* mma.m16n8k16: c (16 columns, 8 rows) += w (16, 16) x (8, 16)^T. */
template <class T> static inline void simt_mma(float *c, const uint4 &w, uint32_t x, uint32_t y)
{
    static simt_operand<T> operands[SIMT_WARPS];
    static uint4 first[SIMT_WARPS][32];
    static uint32_t second[2][SIMT_WARPS][32];
    const int warp = simt_warp(), g = simt_lane() >> 2, q = simt_lane() & 3;

    first[warp][simt_lane()] = w;
    second[0][warp][simt_lane()] = x;
    second[1][warp][simt_lane()] = y;
    __syncwarp();
    if (simt_lane() == 0)
        operands[warp].fill(first[warp]);
    __syncwarp();
    {
        const simt_operand<T> &a = operands[warp];

        for (int i = 0; i < 4; i++) {
            double sum = c[i];

            for (int k = 0; k < 16; k++)
                sum +=
                    (double)a.at[g + (i >> 1) * 8][k] *
                    simt_half<T>(second[k >> 3][warp][(2 * q + (i & 1)) * 4 + (k & 7) / 2], k & 1);
            c[i] = (float)sum;
        }
    }
    __syncwarp();
}

/* wgmma.m64nNk16 with its second operand in shared memory, 128-byte rows, swizzled. */
template <class T, int N>
static inline void simt_wgmma(float (&c)[N / 2], const uint4 &w, uint64_t rows, int add)
{
    static uint4 first[SIMT_WARPS][32];
    const int warp = simt_warp(), g = simt_lane() >> 2, q = simt_lane() & 3;
    const uintptr_t base = ((uintptr_t)simt_shared & ~(uintptr_t)0x3ffff) | (rows & 0x3fff) << 4;

    if ((rows >> 32 & 0x3fff) << 4 != 1024 || rows >> 62 != 1)
        abort(); /* another layout than this one knows */
    first[warp][simt_lane()] = w;
    simt_wait(&simt_group_steps[warp >> 2], 128);
    {
        simt_operand<T> a;

        a.fill(first[warp]);

        for (int i = 0; i < N / 2; i++) {
            const int row = 8 * (i >> 2) + 2 * q + (i & 1);
            double sum = add ? c[i] : 0.0;

            for (int k = 0; k < 16; k++) {
                uintptr_t at = base + (uintptr_t)(row * 128 + k * 2);
                uint16_t bits;

                at ^= (at >> 7 & 7) << 4;
                memcpy(&bits, (const void *)at, 2);
                sum += (double)a.at[g + (i >> 1 & 1) * 8][k] * simt_half<T>(bits, 0);
            }
            c[i] = (float)sum;
        }
    }
    simt_wait(&simt_group_steps[warp >> 2], 128);
}

/* The same with both operands in shared memory: c is of 64 rows of `first` and N of `second`. */
template <class T, int N>
static inline void simt_wgmma_shared(float (&c)[N / 2], uint64_t first, uint64_t second, int add)
{
    const int warp = simt_warp() & 3, g = simt_lane() >> 2, q = simt_lane() & 3;
    const uintptr_t block = (uintptr_t)simt_shared & ~(uintptr_t)0x3ffff;
    auto element = [&](uint64_t rows, int row, int k) {
        uintptr_t at = block + ((rows & 0x3fff) << 4) + (uintptr_t)(row * 128 + k * 2);
        uint16_t bits;

        at ^= (at >> 7 & 7) << 4;
        memcpy(&bits, (const void *)at, 2);
        return simt_half<T>(bits, 0);
    };

    for (uint64_t rows : {first, second})
        if ((rows >> 32 & 0x3fff) << 4 != 1024 || rows >> 62 != 1)
            abort();
    for (int i = 0; i < N / 2; i++) {
        const int row = 16 * warp + g + (i >> 1 & 1) * 8, column = 8 * (i >> 2) + 2 * q + (i & 1);
        double sum = add ? c[i] : 0.0;

        for (int k = 0; k < 16; k++)
            sum += (double)element(first, row, k) * element(second, column, k);
        c[i] = (float)sum;
    }
    simt_wait(&simt_group_steps[simt_warp() >> 2], 128);
}

#endif
