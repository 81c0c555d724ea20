/* SPDX-License-Identifier: MIT
 *
 * attention_plain: attention_chunk.cuh for float32, whose caches hold floats or bytes: plain
 * multiply-adds, 8 lanes a key. For attention.cu alone.
 */
#ifndef PGPT_KERNELS_CUDA_ATTENTION_PLAIN_CUH
#define PGPT_KERNELS_CUDA_ATTENTION_PLAIN_CUH

#include "kernels/cuda/attention_chunk.cuh"

enum { PLAIN_PASSES = 8 }; /* of a warp over a chunk: 4 keys each */

/* 8 elements of a key or value, as loaded. */
template <class C> struct plain_eight;
template <> struct plain_eight<float> {
    float4 a, b;
};
template <> struct plain_eight<int8_t> {
    uint2 raw;
    float scale;
};
/* Dimensions 8g .. of key 4 i + t. */
template <class C> struct chunk_plain {
    enum { QUERY = 2 };
    struct plain_eight<C> key[PLAIN_PASSES], value[PLAIN_PASSES];
};

/* at: how far into the cache. */
static __device__ __forceinline__ void plain_load(struct plain_eight<float> *to, const float *cache,
                                                  const __nv_bfloat16 *, size_t at)
{
    to->a = __ldcg((const float4 *)(cache + at));
    to->b = __ldcg((const float4 *)(cache + at) + 1);
}
static __device__ __forceinline__ void plain_load(struct plain_eight<int8_t> *to,
                                                  const int8_t *cache, const __nv_bfloat16 *scales,
                                                  size_t at)
{
    to->raw = __ldcg((const uint2 *)(cache + at));
    to->scale = __bfloat162float(
        __ushort_as_bfloat16(__ldcg((const unsigned short *)scales + at / (HEAD / 2))));
}

static __device__ __forceinline__ float plain_scale(const struct plain_eight<float> &)
{
    return 1.0f;
}
static __device__ __forceinline__ float plain_scale(const struct plain_eight<int8_t> &v)
{
    return v.scale;
}
static __device__ __forceinline__ void plain_floats(const struct plain_eight<float> &v, float *out)
{
    format_load8((const float *)&v, out);
}
/* Without their scale. Each byte, made positive, becomes the low one of 2^23 + byte. */
static __device__ __forceinline__ void plain_floats(const struct plain_eight<int8_t> &v, float *out)
{
    const uint32_t low = v.raw.x ^ 0x80808080u, high = v.raw.y ^ 0x80808080u;

#pragma unroll
    for (int i = 0; i < 4; i++) {
        out[i] = __uint_as_float(__byte_perm(low, 0x4b000000u, 0x7440 + i)) - 8388736.0f;
        out[4 + i] = __uint_as_float(__byte_perm(high, 0x4b000000u, 0x7440 + i)) - 8388736.0f;
    }
}

template <bool BEAM, class C>
static __device__ __forceinline__ void chunk_load(struct chunk_plain<C> *chunk,
                                                  const struct chunk_cache<C> &cache,
                                                  const struct chunk_row &row, int c, int lane)
{
#pragma unroll
    for (int i = 0; i < PLAIN_PASSES; i++) {
        const int position = c * CHUNK + 4 * i + (lane & 3);
        const size_t at = chunk_at<BEAM>(cache, row, position) + 8 * (lane >> 2);

        memset(&chunk->key[i], 0, sizeof chunk->key[i]);
        memset(&chunk->value[i], 0, sizeof chunk->value[i]);
        if (position >= row.end)
            continue;
        plain_load(&chunk->key[i], cache.keys, cache.key_scales, at);
        plain_load(&chunk->value[i], cache.values, cache.value_scales, at);
    }
}

/* The newest position, the chunk's i-th, which lies in the cache's row at `at`. */
template <class C>
static __device__ __forceinline__ void chunk_newest(struct chunk_plain<C> *chunk,
                                                    const struct chunk_cache<C> &cache, size_t at,
                                                    int i, int lane)
{
    struct plain_eight<C> key, value;

    plain_load(&key, cache.keys, cache.key_scales, at + 8 * (lane >> 2));
    plain_load(&value, cache.values, cache.value_scales, at + 8 * (lane >> 2));
#pragma unroll
    for (int j = 0; j < PLAIN_PASSES; j++)
        if (4 * j + (lane & 3) == i) {
            chunk->key[j] = key;
            chunk->value[j] = value;
        }
}

/* The i-th 16 bytes of the lane's part of a query. */
template <class C>
static __device__ __forceinline__ int query_at(const struct chunk_plain<C> *, int i, int lane)
{
    return 8 * (lane >> 2) + 4 * i;
}

template <class T, class C>
static __device__ __forceinline__ void chunk_attend(const struct chunk_plain<C> &chunk,
                                                    const struct chunk_query &query, int count,
                                                    int lane, struct attention_part *out)
{
    float score[PLAIN_PASSES], q[8], value[8] = {};

    format_load8((const float *)&query, q);
    out->max = -INFINITY;
#pragma unroll
    for (int i = 0; i < PLAIN_PASSES; i++) {
        float k[8], s = 0.0f;

        plain_floats(chunk.key[i], k);
#pragma unroll
        for (int d = 0; d < 8; d++)
            s = __fmaf_rn(q[d], k[d], s);
        s *= plain_scale(chunk.key[i]);
#pragma unroll
        for (int mask = 4; mask <= 16; mask <<= 1)
            s += __shfl_xor_sync(0xffffffffu, s, mask);
        score[i] = 4 * i + (lane & 3) < count ? s : -INFINITY;
        out->max = fmaxf(out->max, score[i]);
    }
    out->max = fmaxf(out->max, __shfl_xor_sync(0xffffffffu, out->max, 1));
    out->max = fmaxf(out->max, __shfl_xor_sync(0xffffffffu, out->max, 2));
    out->sum = 0.0f;
#pragma unroll
    for (int i = 0; i < PLAIN_PASSES; i++) {
        float v[8], p = chunk_factor<float>(score[i] - out->max);

        out->sum += p;
        p *= plain_scale(chunk.value[i]);
        plain_floats(chunk.value[i], v);
#pragma unroll
        for (int d = 0; d < 8; d++)
            value[d] = __fmaf_rn(p, v[d], value[d]);
    }
    out->sum += __shfl_xor_sync(0xffffffffu, out->sum, 1);
    out->sum += __shfl_xor_sync(0xffffffffu, out->sum, 2);
#pragma unroll
    for (int d = 0; d < 8; d++) {
        value[d] += __shfl_xor_sync(0xffffffffu, value[d], 1);
        value[d] += __shfl_xor_sync(0xffffffffu, value[d], 2);
    }
#pragma unroll
    for (int d = 0; d < 4; d++)
        out->value[d] = lane & 1 ? value[4 + d] : value[d];
}

#endif
