/* SPDX-License-Identifier: MIT
 *
 * attention_chunk: one query over 32 keys by a warp, and the merging of such parts: the arithmetic
 * that all decode attention shares, so that whoever runs it gets the same bits.
 */
#ifndef PGPT_KERNELS_CUDA_ATTENTION_CHUNK_CUH
#define PGPT_KERNELS_CUDA_ATTENTION_CHUNK_CUH

#include "kernels/cuda/format.cuh"

enum {
    CHUNK = 32, /* keys that give one partial result */
    LOADS = 8,  /* passes of a warp over a chunk: 4 keys each, 8 lanes a key */
    HEAD = 64,
};

/* 8 elements of a key or value, as loaded. */
template <class T> struct vector8 {
    uint4 raw;
};
template <> struct vector8<float> {
    float4 a, b;
};
/* of an int8 cache: all 8 have one scale */
template <> struct vector8<int8_t> {
    uint2 raw;
    float scale;
};

template <class T> static __device__ __forceinline__ vector8<T> vector8_load(const T *p)
{
    vector8<T> v;

    v.raw = __ldcg((const uint4 *)p);
    return v;
}
template <> __device__ __forceinline__ vector8<float> vector8_load<float>(const float *p)
{
    vector8<float> v;

    v.a = __ldcg((const float4 *)p);
    v.b = __ldcg((const float4 *)p + 1);
    return v;
}
template <> __device__ __forceinline__ vector8<int8_t> vector8_load<int8_t>(const int8_t *p)
{
    vector8<int8_t> v;

    v.raw = __ldcg((const uint2 *)p);
    v.scale = 1.0f;
    return v;
}
/* The same at p, with its scale: `at` is how far p lies into a cache that has these scales (int8
 * alone). */
template <class T>
static __device__ __forceinline__ vector8<T> cache_load8(const T *p, const __nv_bfloat16 *scales,
                                                         size_t at)
{
    vector8<T> v = vector8_load<T>(p);

    if constexpr (sizeof(T) == 1)
        v.scale = __bfloat162float(
            __ushort_as_bfloat16(__ldcg((const unsigned short *)scales + at / (HEAD / 2))));
    (void)scales;
    (void)at;
    return v;
}
template <class T>
static __device__ __forceinline__ void vector8_floats(const vector8<T> &v, float *out)
{
    format_unpack8(v.raw, (const T *)NULL, out);
}
static __device__ __forceinline__ void vector8_floats(const vector8<float> &v, float *out)
{
    format_load8((const float *)&v, out);
}
/* Without their scale. Each byte, made positive, becomes the low one of 2^23 + byte. */
static __device__ __forceinline__ void vector8_floats(const vector8<int8_t> &v, float *out)
{
    const uint32_t low = v.raw.x ^ 0x80808080u, high = v.raw.y ^ 0x80808080u;

#pragma unroll
    for (int i = 0; i < 4; i++) {
        out[i] = __uint_as_float(__byte_perm(low, 0x4b000000u, 0x7440 + i)) - 8388736.0f;
        out[4 + i] = __uint_as_float(__byte_perm(high, 0x4b000000u, 0x7440 + i)) - 8388736.0f;
    }
}
template <class T> static __device__ __forceinline__ vector8<T> vector8_zero(void)
{
    vector8<T> v;

    memset(&v, 0, sizeof v);
    return v;
}

/* A chunk's or several merged chunks' result: lane's 8 dimensions of 64 (the same in lanes l, l ^
 * 8, l ^ 16, l ^ 24). */
struct attention_part {
    float max, sum, value[8];
};

static __device__ __forceinline__ void part_merge(struct attention_part *a,
                                                  const struct attention_part &b)
{
    float max = fmaxf(a->max, b.max);
    float fa = expf(a->max - max), fb = expf(b.max - max);

    a->max = max;
    a->sum = __fadd_rn(__fmul_rn(a->sum, fa), __fmul_rn(b.sum, fb));
#pragma unroll
    for (int i = 0; i < 8; i++)
        a->value[i] = __fadd_rn(__fmul_rn(a->value[i], fa), __fmul_rn(b.value[i], fb));
}

/* keys, values: the chunk's as loaded, LOADS passes; key of pass i: 4 i + lane / 8. q (8), scaled.
 */
template <class T>
static __device__ __forceinline__ void
chunk_attend(const vector8<T> (&keys)[LOADS], const vector8<T> (&values)[LOADS],
             const float (&q)[8], int count, int lane, struct attention_part *out)
{
    float score[LOADS];

    out->max = -INFINITY;
#pragma unroll
    for (int i = 0; i < LOADS; i++) {
        float k[8], s = 0.0f;

        vector8_floats(keys[i], k);
#pragma unroll
        for (int d = 0; d < 8; d++)
            s = __fmaf_rn(q[d], k[d], s);
        if constexpr (sizeof(T) == 1)
            s *= keys[i].scale;
        s += __shfl_xor_sync(0xffffffffu, s, 1);
        s += __shfl_xor_sync(0xffffffffu, s, 2);
        s += __shfl_xor_sync(0xffffffffu, s, 4);
        score[i] = 4 * i + (lane >> 3) < count ? s : -INFINITY;
        out->max = fmaxf(out->max, score[i]);
    }
    out->max = fmaxf(out->max, __shfl_xor_sync(0xffffffffu, out->max, 8));
    out->max = fmaxf(out->max, __shfl_xor_sync(0xffffffffu, out->max, 16));
    out->sum = 0.0f;
#pragma unroll
    for (int d = 0; d < 8; d++)
        out->value[d] = 0.0f;
#pragma unroll
    for (int i = 0; i < LOADS; i++) {
        float v[8], p = expf(score[i] - out->max); /* 0 past the last key; a chunk has one */

        out->sum += p;
        if constexpr (sizeof(T) == 1)
            p *= values[i].scale;
        vector8_floats(values[i], v);
#pragma unroll
        for (int d = 0; d < 8; d++)
            out->value[d] = __fmaf_rn(p, v[d], out->value[d]);
    }
    out->sum += __shfl_xor_sync(0xffffffffu, out->sum, 8);
    out->sum += __shfl_xor_sync(0xffffffffu, out->sum, 16);
#pragma unroll
    for (int d = 0; d < 8; d++) {
        out->value[d] += __shfl_xor_sync(0xffffffffu, out->value[d], 8);
        out->value[d] += __shfl_xor_sync(0xffffffffu, out->value[d], 16);
    }
}

/* A chunk of keys or values into registers: positions 32 c + 4 i + lane / 8 below `end` of one
 * row's and head's cache; below `beam_end` of the row that wrote each position (source_row, by
 * position; stride: elements from one row's cache to the next). scales: of int8 caches alone. */
template <class T>
static __device__ __forceinline__ void chunk_load(vector8<T> (&to)[LOADS], const T *cache,
                                                  size_t stride, int row, const int32_t *source_row,
                                                  int c, int end, int beam_end, int lane,
                                                  const __nv_bfloat16 *scales = NULL)
{
#pragma unroll
    for (int i = 0; i < LOADS; i++) {
        int at = c * CHUNK + 4 * i + (lane >> 3), from = row;

        if (at >= end) {
            to[i] = vector8_zero<T>();
            continue;
        }
        if (at < beam_end)
            from = source_row[at];
        {
            const size_t offset = (size_t)from * stride + at * HEAD + (lane & 7) * 8;

            to[i] = cache_load8<T>(cache + offset, scales, offset);
        }
    }
}

#endif
