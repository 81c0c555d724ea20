/* SPDX-License-Identifier: MIT
 *
 * format: what a compute format means to the kernels: the type of activations and weights, the
 * matrix instruction, and the layout that lets a lane load its share of a weight tile in one
 * 16-byte access.
 *
 * A weight (N,K) is the instruction's first operand, the rows that are multiplied its second: then
 * both load without a move, and rows come by eights. It is packed in blocks of 16 output columns by
 * KB inputs, 1,024 bytes each, in the order (N/16, K/KB): for each half of a block (the KB/2 inputs
 * of one instruction), lane 4g + q has 16 bytes: 4 bytes of column g, 4 of column g + 8, inputs
 * from KB/16 q on, and the same KB/4 inputs later. So activations lie row-major as they are, which
 * suits both ldmatrix and the wgmma of many rows (product_hopper.cuh).
 *
 * The order of sums is part of the definition, so that tiles may differ while bits agree: the K
 * inputs are cut into 4 equal parts; each part is one chain of instructions from its first block to
 * its last, from zero; the output is ((part 0 + part 1) + part 2) + part 3.
 */
#ifndef PGPT_KERNELS_CUDA_FORMAT_CUH
#define PGPT_KERNELS_CUDA_FORMAT_CUH

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <stdint.h>

enum cuda_format { CUDA_F32, CUDA_F16, CUDA_BF16, CUDA_INT8 };

enum {
    FORMAT_PARTS = 4,
    FORMAT_INT8_INPUTS = 4096, /* most inputs whose part of 128 high + low fits 32 bits */
};

/* A lane's share of a block of weights. */
struct format_weights {
    uint4 half[2];
};

/* Sums of a tile of 16 columns by 8 rows: lane 4g + q has (column g, row 2q), (g, 2q + 1), (g + 8,
 * 2q), (g + 8, 2q + 1). */

struct format_f16 {
    typedef __half element; /* activations between kernels */
    typedef float sum;      /* of a chain of instructions */
    typedef float part;     /* of a part of the inputs, between warps */
    typedef uint4 rows;     /* a lane's share of 8 rows by KB inputs: row g */
    enum { KB = 32, QUANTISED = 0, TILE_BYTES = 2 };

    static __device__ __forceinline__ void mma(float *c, const uint4 &w, uint32_t x, uint32_t y)
    {
        asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, "
            "{%8,%9}, "
            "{%0,%1,%2,%3};"
            : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
            : "r"(w.x), "r"(w.y), "r"(w.z), "r"(w.w), "r"(x), "r"(y));
    }
};

struct format_bf16 {
    typedef __nv_bfloat16 element;
    typedef float sum;
    typedef float part;
    typedef uint4 rows;
    enum { KB = 32, QUANTISED = 0, TILE_BYTES = 2 };

    static __device__ __forceinline__ void mma(float *c, const uint4 &w, uint32_t x, uint32_t y)
    {
        asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, "
            "{%8,%9}, {%0,%1,%2,%3};"
            : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
            : "r"(w.x), "r"(w.y), "r"(w.z), "r"(w.w), "r"(x), "r"(y));
    }
};

/* int8 weights with a scale per output column. Activations travel as float16 and are cut by row,
 * where a product reads them, into two digits of 8 bits: q = rint(x * (16256 / max)) = 128 high +
 * low, high = floor((q + 64) / 128). (cpu/product.h does without the second digit by a scale for
 * each 64 inputs; here that would break every chain of instructions.) Sums are exact integers, so
 * they add up in any order; they become float once. */
struct format_digits {
    int32_t high, low;
};
struct format_rows_int8 {
    uint4 high, low;
};
#define FORMAT_INT8_MOST 16256.0f

struct format_int8 {
    typedef __half element;
    typedef struct format_digits sum;
    typedef int32_t part;
    typedef format_rows_int8 rows;
    enum { KB = 64, QUANTISED = 1, TILE_BYTES = 2 };

    static __device__ __forceinline__ void mma(int32_t *c, const uint4 &w, uint32_t x, uint32_t y)
    {
        asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, "
            "{%8,%9}, "
            "{%0,%1,%2,%3};"
            : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
            : "r"(w.x), "r"(w.y), "r"(w.z), "r"(w.w), "r"(x), "r"(y));
    }
};

/* float32 in plain multiply-adds, for checking the others and for those who ask for it. A block is
 * 16 columns by 16 inputs: four groups of 4 inputs, 16 columns of 16 bytes each. */
struct format_rows_f32 {
    float4 even[4], odd[4]; /* rows 2q and 2q + 1 */
};

struct format_f32 {
    typedef float element;
    typedef float sum;
    typedef float part;
    typedef format_rows_f32 rows;
    enum { KB = 16, QUANTISED = 0, TILE_BYTES = 4 };

    static __device__ __forceinline__ float dot(float c, const float4 &a, const float4 &w)
    {
        c = __fmaf_rn(a.x, w.x, c);
        c = __fmaf_rn(a.y, w.y, c);
        c = __fmaf_rn(a.z, w.z, c);
        return __fmaf_rn(a.w, w.w, c);
    }
};

/* block: 1,024 bytes, in global or shared memory. float32 reads its weights where it uses them. */
template <class F>
static __device__ __forceinline__ struct format_weights weights_get(const char *block, int lane)
{
    struct format_weights w;

    if constexpr (sizeof(typename F::element) == 4) {
        w.half[0] = make_uint4(0, 0, 0, 0);
        w.half[1] = w.half[0];
    } else {
        w.half[0] = *(const uint4 *)(block + lane * 16);
        w.half[1] = *(const uint4 *)(block + 512 + lane * 16);
    }
    return w;
}

/* The same from global memory, past L1: a step streams more weights than L1 holds, and what else
 * lies there is wanted again. */
static __device__ __forceinline__ struct format_weights weights_stream(const char *block, int lane)
{
    struct format_weights w;

#pragma unroll
    for (int h = 0; h < 2; h++)
        asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
                     : "=r"(w.half[h].x), "=r"(w.half[h].y), "=r"(w.half[h].z), "=r"(w.half[h].w)
                     : "l"(block + h * 512 + lane * 16));
    return w;
}

/* weights_stream() where `in`; else `to` stays as it is. No branch: the compiler can tell such
 * loads apart and wait for each on its own. They may stay in L1, for the other block of a
 * multiprocessor is often at the same columns. */
static __device__ __forceinline__ void weights_stream_if(struct format_weights *to,
                                                         const char *block, int lane, bool in)
{
#pragma unroll
    for (int h = 0; h < 2; h++)
        asm volatile("{\n\t.reg .pred p;\n\tsetp.ne.b32 p, %5, 0;\n\t"
                     "@p ld.global.nc.v4.u32 {%0, %1, %2, %3}, [%4];\n\t}"
                     : "+r"(to->half[h].x), "+r"(to->half[h].y), "+r"(to->half[h].z),
                       "+r"(to->half[h].w)
                     : "l"(block + h * 512 + lane * 16), "r"((int)in));
}

/* The lane's share of the b-th 64 bytes of 8 rows in shared memory, `stride` bytes apart. */
static __device__ __forceinline__ uint4 rows_load(const char *rows, int stride, int b, int lane)
{
    uint4 x;

    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w)
                 : "r"((uint32_t)__cvta_generic_to_shared(rows) + (lane & 7) * stride + b * 64 +
                       (lane >> 3) * 16)
                 : "memory");
    return x;
}

/* The lane's share of 8 rows of block b; int8: its high digits, then its low ones. */
template <class F>
static __device__ __forceinline__ typename F::rows rows_get(const char *rows, int stride, int b,
                                                            int lane)
{
    if constexpr (sizeof(typename F::element) == 4) {
        struct format_rows_f32 x;
        const char *even = rows + (size_t)(lane & 3) * 2 * stride + b * 64;

#pragma unroll
        for (int i = 0; i < 4; i++) {
            x.even[i] = *(const float4 *)(even + i * 16);
            x.odd[i] = *(const float4 *)(even + stride + i * 16);
        }
        return x;
    } else if constexpr (F::QUANTISED) {
        struct format_rows_int8 x;

        x.high = rows_load(rows, stride, 2 * b, lane);
        x.low = rows_load(rows, stride, 2 * b + 1, lane);
        return x;
    } else {
        return rows_load(rows, stride, b, lane);
    }
}

/* c += 16 columns times 8 rows over a block of inputs. block: for float32 alone. */
template <class F>
static __device__ __forceinline__ void
block_multiply(typename F::sum *c, const struct format_weights &w, const typename F::rows &x,
               const char *block, int lane)
{
    if constexpr (sizeof(typename F::element) == 4) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            float4 low = *(const float4 *)(block + i * 256 + (lane >> 2) * 16);
            float4 high = *(const float4 *)(block + i * 256 + 128 + (lane >> 2) * 16);

            c[0] = F::dot(c[0], x.even[i], low);
            c[1] = F::dot(c[1], x.odd[i], low);
            c[2] = F::dot(c[2], x.even[i], high);
            c[3] = F::dot(c[3], x.odd[i], high);
        }
    } else if constexpr (F::QUANTISED) {
        int32_t high[4] = {c[0].high, c[1].high, c[2].high, c[3].high};
        int32_t low[4] = {c[0].low, c[1].low, c[2].low, c[3].low};

        F::mma(high, w.half[0], x.high.x, x.high.y);
        F::mma(low, w.half[0], x.low.x, x.low.y);
        F::mma(high, w.half[1], x.high.z, x.high.w);
        F::mma(low, w.half[1], x.low.z, x.low.w);
        for (int i = 0; i < 4; i++)
            c[i] = {high[i], low[i]};
    } else {
        F::mma(c, w.half[0], x.x, x.y);
        F::mma(c, w.half[1], x.z, x.w);
    }
    (void)block;
    (void)lane;
}

/* A chain's sum as one part of the inputs; all four parts; a chain's sum as it is. */
static __device__ __forceinline__ float part_of(float sum)
{
    return sum;
}
static __device__ __forceinline__ int32_t part_of(const struct format_digits &sum)
{
    return sum.high * 128 + sum.low;
}
static __device__ __forceinline__ float parts_add(float a, float b, float c, float d)
{
    return ((a + b) + c) + d;
}
static __device__ __forceinline__ float parts_add(int32_t a, int32_t b, int32_t c, int32_t d)
{
    return (float)((int64_t)a + b + c + d);
}
static __device__ __forceinline__ float sum_of(float sum)
{
    return sum;
}
static __device__ __forceinline__ float sum_of(const struct format_digits &sum)
{
    return (float)((int64_t)sum.high * 128 + sum.low);
}

static __device__ __forceinline__ float format_float(float value)
{
    return value;
}
static __device__ __forceinline__ float format_float(__half value)
{
    return __half2float(value);
}
static __device__ __forceinline__ float format_float(__nv_bfloat16 value)
{
    return __bfloat162float(value);
}
static __device__ __forceinline__ void format_set(float *out, float value)
{
    *out = value;
}
static __device__ __forceinline__ void format_set(__half *out, float value)
{
    *out = __float2half_rn(value);
}
static __device__ __forceinline__ void format_set(__nv_bfloat16 *out, float value)
{
    *out = __float2bfloat16_rn(value);
}
/* Two neighbours in one store; out is aligned for it. */
static __device__ __forceinline__ void format_set2(float *out, float a, float b)
{
    *(float2 *)out = make_float2(a, b);
}
static __device__ __forceinline__ void format_set2(__half *out, float a, float b)
{
    *(__half2 *)out = __floats2half2_rn(a, b);
}
static __device__ __forceinline__ void format_set2(__nv_bfloat16 *out, float a, float b)
{
    *(__nv_bfloat162 *)out = __floats2bfloat162_rn(a, b);
}

/* 8 consecutive elements as floats. */
static __device__ __forceinline__ void format_load8(const float *p, float *out)
{
    float4 a = ((const float4 *)p)[0], b = ((const float4 *)p)[1];

    out[0] = a.x, out[1] = a.y, out[2] = a.z, out[3] = a.w;
    out[4] = b.x, out[5] = b.y, out[6] = b.z, out[7] = b.w;
}
static __device__ __forceinline__ void format_unpack8(const uint4 &v, const __half *, float *out)
{
    const __half2 *h = (const __half2 *)&v;

#pragma unroll
    for (int i = 0; i < 4; i++) {
        float2 f = __half22float2(h[i]);

        out[2 * i] = f.x;
        out[2 * i + 1] = f.y;
    }
}
static __device__ __forceinline__ void format_unpack8(const uint4 &v, const __nv_bfloat16 *,
                                                      float *out)
{
    const __nv_bfloat162 *h = (const __nv_bfloat162 *)&v;

#pragma unroll
    for (int i = 0; i < 4; i++) {
        float2 f = __bfloat1622float2(h[i]);

        out[2 * i] = f.x;
        out[2 * i + 1] = f.y;
    }
}

#endif
