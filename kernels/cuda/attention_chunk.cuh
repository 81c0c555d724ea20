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
template <class T>
static __device__ __forceinline__ void vector8_floats(const vector8<T> &v, float *out)
{
    format_unpack8(v.raw, (const T *)NULL, out);
}
static __device__ __forceinline__ void vector8_floats(const vector8<float> &v, float *out)
{
    format_load8((const float *)&v, out);
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
        float v[8], p = 4 * i + (lane >> 3) < count ? expf(score[i] - out->max) : 0.0f;

        out->sum += p;
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
 * position; stride: elements from one row's cache to the next). */
template <class T>
static __device__ __forceinline__ void chunk_load(vector8<T> (&to)[LOADS], const T *cache,
                                                  size_t stride, int row, const int32_t *source_row,
                                                  int c, int end, int beam_end, int lane)
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
        to[i] = vector8_load<T>(cache + (size_t)from * stride + at * HEAD + (lane & 7) * 8);
    }
}

#endif
