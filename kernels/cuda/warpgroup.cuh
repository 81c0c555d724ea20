/* SPDX-License-Identifier: MIT
 *
 * warpgroup: Hopper's matrix instruction of 128 threads (wgmma), as far as it is used here: 64
 * output columns (weights, in registers, packed as format.cuh has them) times N rows (activations,
 * in shared memory, in 64-input pieces of 128 bytes a row, 16-byte words swizzled by the row). Its
 * chains of sums give the same bits as those of mma.sync. Compute capability 9.0a alone.
 */
#ifndef PGPT_KERNELS_CUDA_WARPGROUP_CUH
#define PGPT_KERNELS_CUDA_WARPGROUP_CUH

#include "kernels/cuda/format.cuh"

enum { WARPGROUP_PIECE = 64 }; /* inputs of a row that lie together: 128 bytes */

/* Where 16-byte word `word` (0..7) of a row's piece lies behind the start of the pieces, all of
 * whose rows are side by side. */
static __device__ __forceinline__ uint32_t warpgroup_at(int row, int word)
{
    return (uint32_t)(row * 128 + ((word ^ (row & 7)) << 4));
}

/* Describes 16 inputs of rows that begin at `shared`; pieces begin at multiples of 1,024 bytes. */
static __device__ __forceinline__ uint64_t warpgroup_rows(uint32_t shared)
{
    return (uint64_t)((shared & 0x3ffffu) >> 4) | (uint64_t)1 << 16 | (uint64_t)(1024 >> 4) << 32 |
           (uint64_t)1 << 62; /* 8 rows are 1,024 bytes; swizzle of 128 bytes */
}
/* What lies `bytes` (a multiple of 16) behind what `rows` describes: an addition in its low word,
 * so that all instructions of a product come from one description. */
static __device__ __forceinline__ uint64_t warpgroup_rows_behind(uint64_t rows, uint32_t bytes)
{
    uint32_t low = (uint32_t)rows;

    asm("" : "+r"(low)); /* else what it was made of is looked at for each sum */
    return (rows >> 32) << 32 | (low + (bytes >> 4));
}

/* Registers that instructions in flight read or write may be touched after this. */
static __device__ __forceinline__ void warpgroup_fence(void)
{
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
static __device__ __forceinline__ void warpgroup_commit(void)
{
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
/* All but the last PENDING committed groups have ended. */
template <int PENDING> static __device__ __forceinline__ void warpgroup_wait(void)
{
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
}
/* The compiler shall not read them earlier. */
template <int COUNT> static __device__ __forceinline__ void warpgroup_ended(float (&sums)[COUNT])
{
#pragma unroll
    for (int i = 0; i < COUNT; i++)
        asm volatile("" : "+f"(sums[i])::"memory");
}
/* What was written to shared memory by ordinary stores or cp.async is seen by the instruction after
 * this and a barrier. */
static __device__ __forceinline__ void warpgroup_publish(void)
{
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

/* The 128 threads of warpgroup `group`, the others not. */
static __device__ __forceinline__ void warpgroup_barrier(int group)
{
    asm volatile("bar.sync %0, 128;" ::"r"(group + 1) : "memory");
}

/* The sums of a thread as operands of the assembler. */
#define WARPGROUP_SUMS_32(c)                                                                       \
    "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]), "+f"(c[4]), "+f"(c[5]), "+f"(c[6]),            \
        "+f"(c[7]), "+f"(c[8]), "+f"(c[9]), "+f"(c[10]), "+f"(c[11]), "+f"(c[12]), "+f"(c[13]),    \
        "+f"(c[14]), "+f"(c[15]), "+f"(c[16]), "+f"(c[17]), "+f"(c[18]), "+f"(c[19]), "+f"(c[20]), \
        "+f"(c[21]), "+f"(c[22]), "+f"(c[23]), "+f"(c[24]), "+f"(c[25]), "+f"(c[26]), "+f"(c[27]), \
        "+f"(c[28]), "+f"(c[29]), "+f"(c[30]), "+f"(c[31])
#define WARPGROUP_SUMS_64(c)                                                                       \
    WARPGROUP_SUMS_32(c), "+f"(c[32]), "+f"(c[33]), "+f"(c[34]), "+f"(c[35]), "+f"(c[36]),         \
        "+f"(c[37]), "+f"(c[38]), "+f"(c[39]), "+f"(c[40]), "+f"(c[41]), "+f"(c[42]), "+f"(c[43]), \
        "+f"(c[44]), "+f"(c[45]), "+f"(c[46]), "+f"(c[47]), "+f"(c[48]), "+f"(c[49]), "+f"(c[50]), \
        "+f"(c[51]), "+f"(c[52]), "+f"(c[53]), "+f"(c[54]), "+f"(c[55]), "+f"(c[56]), "+f"(c[57]), \
        "+f"(c[58]), "+f"(c[59]), "+f"(c[60]), "+f"(c[61]), "+f"(c[62]), "+f"(c[63])

#define WARPGROUP_MULTIPLY_8(TYPE, c, w, rows, add)                                                \
    asm volatile("{\n\t.reg .pred p;\n\tsetp.ne.b32 p, %9, 0;\n\t"                                 \
                 "wgmma.mma_async.sync.aligned.m64n8k16.f32." TYPE "." TYPE " {"                   \
                 "%0, %1, %2, %3"                                                                  \
                 "}, {%4, %5, %6, %7}, %8, p, 1, 1, 0;\n\t}"                                       \
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])                                  \
                 : "r"(w.x), "r"(w.y), "r"(w.z), "r"(w.w), "l"(rows), "r"(add))

#define WARPGROUP_MULTIPLY_16(TYPE, c, w, rows, add)                                               \
    asm volatile("{\n\t.reg .pred p;\n\tsetp.ne.b32 p, %13, 0;\n\t"                                \
                 "wgmma.mma_async.sync.aligned.m64n16k16.f32." TYPE "." TYPE " {"                  \
                 "%0, %1, %2, %3, %4, %5, %6, %7"                                                  \
                 "}, {%8, %9, %10, %11}, %12, p, 1, 1, 0;\n\t}"                                    \
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]), "+f"(c[4]), "+f"(c[5]),         \
                   "+f"(c[6]), "+f"(c[7])                                                          \
                 : "r"(w.x), "r"(w.y), "r"(w.z), "r"(w.w), "l"(rows), "r"(add))

#define WARPGROUP_MULTIPLY_24(TYPE, c, w, rows, add)                                               \
    asm volatile("{\n\t.reg .pred p;\n\tsetp.ne.b32 p, %17, 0;\n\t"                                \
                 "wgmma.mma_async.sync.aligned.m64n24k16.f32." TYPE "." TYPE " {"                  \
                 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11"                                \
                 "}, {%12, %13, %14, %15}, %16, p, 1, 1, 0;\n\t}"                                  \
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]), "+f"(c[4]), "+f"(c[5]),         \
                   "+f"(c[6]), "+f"(c[7]), "+f"(c[8]), "+f"(c[9]), "+f"(c[10]), "+f"(c[11])        \
                 : "r"(w.x), "r"(w.y), "r"(w.z), "r"(w.w), "l"(rows), "r"(add))

#define WARPGROUP_MULTIPLY_32(TYPE, c, w, rows, add)                                               \
    asm volatile("{\n\t.reg .pred p;\n\tsetp.ne.b32 p, %21, 0;\n\t"                                \
                 "wgmma.mma_async.sync.aligned.m64n32k16.f32." TYPE "." TYPE " {"                  \
                 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15"            \
                 "}, {%16, %17, %18, %19}, %20, p, 1, 1, 0;\n\t}"                                  \
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]), "+f"(c[4]), "+f"(c[5]),         \
                   "+f"(c[6]), "+f"(c[7]), "+f"(c[8]), "+f"(c[9]), "+f"(c[10]), "+f"(c[11]),       \
                   "+f"(c[12]), "+f"(c[13]), "+f"(c[14]), "+f"(c[15])                              \
                 : "r"(w.x), "r"(w.y), "r"(w.z), "r"(w.w), "l"(rows), "r"(add))

#define WARPGROUP_MULTIPLY_40(TYPE, c, w, rows, add)                                               \
    asm volatile("{\n\t.reg .pred p;\n\tsetp.ne.b32 p, %25, 0;\n\t"                                \
                 "wgmma.mma_async.sync.aligned.m64n40k16.f32." TYPE "." TYPE " {"                  \
                 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, "                              \
                 "%12, %13, %14, %15, %16, %17, %18, %19"                                          \
                 "}, {%20, %21, %22, %23}, %24, p, 1, 1, 0;\n\t}"                                  \
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]), "+f"(c[4]), "+f"(c[5]),         \
                   "+f"(c[6]), "+f"(c[7]), "+f"(c[8]), "+f"(c[9]), "+f"(c[10]), "+f"(c[11]),       \
                   "+f"(c[12]), "+f"(c[13]), "+f"(c[14]), "+f"(c[15]), "+f"(c[16]), "+f"(c[17]),   \
                   "+f"(c[18]), "+f"(c[19])                                                        \
                 : "r"(w.x), "r"(w.y), "r"(w.z), "r"(w.w), "l"(rows), "r"(add))

#define WARPGROUP_MULTIPLY_64(TYPE, c, w, rows, add)                                               \
    asm volatile("{\n\t.reg .pred p;\n\tsetp.ne.b32 p, %37, 0;\n\t"                                \
                 "wgmma.mma_async.sync.aligned.m64n64k16.f32." TYPE "." TYPE " {"                  \
                 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "          \
                 "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"  \
                 "}, {%32, %33, %34, %35}, %36, p, 1, 1, 0;\n\t}"                                  \
                 : WARPGROUP_SUMS_32(c)                                                            \
                 : "r"(w.x), "r"(w.y), "r"(w.z), "r"(w.w), "l"(rows), "r"(add))

#define WARPGROUP_MULTIPLY_128(TYPE, c, w, rows, add)                                              \
    asm volatile(                                                                                  \
        "{\n\t.reg .pred p;\n\tsetp.ne.b32 p, %69, 0;\n\t"                                         \
        "wgmma.mma_async.sync.aligned.m64n128k16.f32." TYPE "." TYPE " {"                          \
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "                   \
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "         \
        "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "         \
        "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"           \
        "}, {%64, %65, %66, %67}, %68, p, 1, 1, 0;\n\t}"                                           \
        : WARPGROUP_SUMS_64(c)                                                                     \
        : "r"(w.x), "r"(w.y), "r"(w.z), "r"(w.w), "l"(rows), "r"(add))

/* The same with both operands in shared memory. */
#define WARPGROUP_MULTIPLY_SHARED_64(TYPE, c, first, rows, add)                                    \
    asm volatile("{\n\t.reg .pred p;\n\tsetp.ne.b32 p, %34, 0;\n\t"                                \
                 "wgmma.mma_async.sync.aligned.m64n64k16.f32." TYPE "." TYPE " {"                  \
                 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "          \
                 "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"  \
                 "}, %32, %33, p, 1, 1, 0, 0;\n\t}"                                                \
                 : WARPGROUP_SUMS_32(c)                                                            \
                 : "l"(first), "l"(rows), "r"(add))

#define WARPGROUP_MULTIPLY_SHARED_128(TYPE, c, first, rows, add)                                   \
    asm volatile(                                                                                  \
        "{\n\t.reg .pred p;\n\tsetp.ne.b32 p, %66, 0;\n\t"                                         \
        "wgmma.mma_async.sync.aligned.m64n128k16.f32." TYPE "." TYPE " {"                          \
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "                   \
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "         \
        "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "         \
        "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"           \
        "}, %64, %65, p, 1, 1, 0, 0;\n\t}"                                                         \
        : WARPGROUP_SUMS_64(c)                                                                     \
        : "l"(first), "l"(rows), "r"(add))

template <class F> inline constexpr bool WARPGROUP_IS_BF16 = false;
template <> inline constexpr bool WARPGROUP_IS_BF16<format_bf16> = true;

/* c = 64 columns times N rows over 16 inputs, plus c when `add`. Of the 64 columns warp i of the
 * four has 16 i .., and c is N / 8 tiles as mma.sync has them (format.cuh). Asynchronous. */
template <class F, int N>
static __device__ __forceinline__ void warpgroup_multiply(float (&c)[N / 2], const uint4 &w,
                                                          uint64_t rows, int add)
{
    constexpr bool BF16 = WARPGROUP_IS_BF16<F>;

    static_assert(N == 8 || N == 16 || N == 24 || N == 32 || N == 40 || N == 64 || N == 128,
                  "rows");
    if constexpr (N == 8 && BF16)
        WARPGROUP_MULTIPLY_8("bf16", c, w, rows, add);
    else if constexpr (N == 8)
        WARPGROUP_MULTIPLY_8("f16", c, w, rows, add);
    else if constexpr (N == 16 && BF16)
        WARPGROUP_MULTIPLY_16("bf16", c, w, rows, add);
    else if constexpr (N == 16)
        WARPGROUP_MULTIPLY_16("f16", c, w, rows, add);
    else if constexpr (N == 24 && BF16)
        WARPGROUP_MULTIPLY_24("bf16", c, w, rows, add);
    else if constexpr (N == 24)
        WARPGROUP_MULTIPLY_24("f16", c, w, rows, add);
    else if constexpr (N == 32 && BF16)
        WARPGROUP_MULTIPLY_32("bf16", c, w, rows, add);
    else if constexpr (N == 32)
        WARPGROUP_MULTIPLY_32("f16", c, w, rows, add);
    else if constexpr (N == 40 && BF16)
        WARPGROUP_MULTIPLY_40("bf16", c, w, rows, add);
    else if constexpr (N == 40)
        WARPGROUP_MULTIPLY_40("f16", c, w, rows, add);
    else if constexpr (N == 64 && BF16)
        WARPGROUP_MULTIPLY_64("bf16", c, w, rows, add);
    else if constexpr (N == 64)
        WARPGROUP_MULTIPLY_64("f16", c, w, rows, add);
    else if constexpr (BF16)
        WARPGROUP_MULTIPLY_128("bf16", c, w, rows, add);
    else
        WARPGROUP_MULTIPLY_128("f16", c, w, rows, add);
}

/* c = 64 rows of `first` times N rows of `second`, both in shared memory, over 16 inputs, plus c
 * when `add`: warp i of the four has rows 16 i .., and c is N / 8 tiles of 16 by 8 of which lane
 * 4g + q has (g, 2q), (g, 2q + 1), (g + 8, 2q), (g + 8, 2q + 1). Asynchronous. */
template <class F, int N>
static __device__ __forceinline__ void warpgroup_multiply_shared(float (&c)[N / 2], uint64_t first,
                                                                 uint64_t second, int add)
{
    static_assert(N == 64 || N == 128, "rows");
    if constexpr (N == 64 && WARPGROUP_IS_BF16<F>)
        WARPGROUP_MULTIPLY_SHARED_64("bf16", c, first, second, add);
    else if constexpr (N == 64)
        WARPGROUP_MULTIPLY_SHARED_64("f16", c, first, second, add);
    else if constexpr (WARPGROUP_IS_BF16<F>)
        WARPGROUP_MULTIPLY_SHARED_128("bf16", c, first, second, add);
    else
        WARPGROUP_MULTIPLY_SHARED_128("f16", c, first, second, add);
}

#endif
