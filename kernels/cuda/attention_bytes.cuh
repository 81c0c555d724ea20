/* SPDX-License-Identifier: MIT
 *
 * attention_bytes: attention_chunk.cuh for int8 caches and queries of halves. Bytes become halves
 * exactly. A position has a scale for each half of its head's dimensions, so the two halves' scores
 * and values come apart, by more kinds of columns of the second operand: those where i / 2 is odd
 * hold the query's high dimensions alone, the others its low ones; columns 4 to 7 are
 * probabilities times the scale of the values' high dimensions, the others times that of the low
 * ones. For attention.cu alone.
 */
#ifndef PGPT_KERNELS_CUDA_ATTENTION_BYTES_CUH
#define PGPT_KERNELS_CUDA_ATTENTION_BYTES_CUH

#include "kernels/cuda/attention_chunk.cuh"

/* Keeps products of probabilities and scales away from the smallest halves; the largest scale of
 * halves' values, 516, still fits. */
#define BYTES_RAISE 64.0f

template <class T> struct chunk_bytes {
    enum { QUERY = 2 };
    uint4 key[4];                          /* key score_key(i), dimensions 16t .. */
    uint2 value[8];                        /* key 4 i + t, dimensions 8g .. */
    uint32_t key_scale[4], value_scale[4]; /* of key[i]'s key: low dimensions, high */
};

template <bool BEAM, class T>
static __device__ __forceinline__ void chunk_load(struct chunk_bytes<T> *chunk,
                                                  const struct chunk_cache<int8_t> &cache,
                                                  const struct chunk_row &row, int c, int lane)
{
    const int g = lane >> 2, t = lane & 3;

    memset(chunk, 0, sizeof *chunk);
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const int position = c * CHUNK + score_key(i, lane);
        const size_t at = chunk_at<BEAM>(cache, row, position);

        if (position >= row.end)
            continue;
        chunk->key[i] = __ldcg((const uint4 *)(cache.keys + at + 16 * t));
        chunk->key_scale[i] = __ldcg((const uint32_t *)cache.key_scales + at / HEAD);
        chunk->value_scale[i] = __ldcg((const uint32_t *)cache.value_scales + at / HEAD);
    }
#pragma unroll
    for (int i = 0; i < 8; i++) {
        const int position = c * CHUNK + 4 * i + t;

        if (position < row.end)
            chunk->value[i] = __ldcg(
                (const uint2 *)(cache.values + chunk_at<BEAM>(cache, row, position) + 8 * g));
    }
}

/* The newest position, the chunk's i-th, which lies in the cache's row at `at`. */
template <class T>
static __device__ __forceinline__ void chunk_newest(struct chunk_bytes<T> *chunk,
                                                    const struct chunk_cache<int8_t> &cache,
                                                    size_t at, int i, int lane)
{
    const int g = lane >> 2, t = lane & 3;
    const uint4 key = __ldcg((const uint4 *)(cache.keys + at + 16 * t));
    const uint2 value = __ldcg((const uint2 *)(cache.values + at + 8 * g));
    const uint32_t key_scale = __ldcg((const uint32_t *)cache.key_scales + at / HEAD);
    const uint32_t value_scale = __ldcg((const uint32_t *)cache.value_scales + at / HEAD);

#pragma unroll
    for (int j = 0; j < 4; j++)
        if (score_key(j, lane) == i) {
            chunk->key[j] = key;
            chunk->key_scale[j] = key_scale;
            chunk->value_scale[j] = value_scale;
        }
#pragma unroll
    for (int j = 0; j < 8; j++)
        if (4 * j + t == i)
            chunk->value[j] = value;
}

template <class T>
static __device__ __forceinline__ int query_at(const struct chunk_bytes<T> *, int i, int lane)
{
    return 16 * (lane & 3) + 8 * i;
}

/* Bytes 2 i and 2 i + 1 of a word whose bytes have 128 added to them. */
static __device__ __forceinline__ uint32_t bytes_pair(uint32_t word, int i, const __half *)
{
    const uint32_t bits = __byte_perm(word, 0x64646464u, i ? 0x4342 : 0x4140); /* 1024 + byte */
    const __half2 pair = __hsub2(*(const __half2 *)&bits, __floats2half2_rn(1152.0f, 1152.0f));

    return *(const uint32_t *)&pair;
}
static __device__ __forceinline__ uint32_t bytes_pair(uint32_t word, int i, const __nv_bfloat16 *)
{
    const float a = __uint_as_float(__byte_perm(word, 0x4b000000u, i ? 0x7442 : 0x7440));
    const float b = __uint_as_float(__byte_perm(word, 0x4b000000u, i ? 0x7443 : 0x7441));

    return pair_of<__nv_bfloat16>(a - 8388736.0f, b - 8388736.0f);
}

/* Scales of the low and high dimensions. */
static __device__ __forceinline__ float scale_low(uint32_t scales)
{
    return __uint_as_float(scales << 16);
}
static __device__ __forceinline__ float scale_high(uint32_t scales)
{
    return __uint_as_float(scales & 0xffff0000u);
}

/* 8 bytes as elements, in order. */
template <class T> static __device__ __forceinline__ uint4 bytes_words(uint32_t low, uint32_t high)
{
    const uint32_t a = low ^ 0x80808080u, b = high ^ 0x80808080u;
    const T *type = NULL;

    return make_uint4(bytes_pair(a, 0, type), bytes_pair(a, 1, type), bytes_pair(b, 0, type),
                      bytes_pair(b, 1, type));
}

template <class T>
static __device__ __forceinline__ void chunk_attend(const struct chunk_bytes<T> &chunk,
                                                    const struct chunk_query &query, int count,
                                                    int lane, struct attention_part *out)
{
    const bool mine = !(lane & 8) == ((lane & 3) < 2); /* the column's half of the dimensions */
    const uint2 none = make_uint2(0, 0);
    const uint2 low = mine ? query_words(query.part[0], lane & 4) : none;
    const uint2 high = mine ? query_words(query.part[1], lane & 4) : none;
    const bool odd = lane & 1;
    const int source = 8 * (lane & 3) + (lane >> 4); /* which has the scale of the column's half */
    uint32_t pairs[4];
    float p[4];

#pragma unroll
    for (int i = 0; i < 4; i++) {
        const uint4 &k = chunk.key[i];
        float score[4] = {}, half;

        pairs_multiply(score, bytes_words<T>(k.x, k.y), low.x, low.y, (const T *)NULL);
        pairs_multiply(score, bytes_words<T>(k.z, k.w), high.x, high.y, (const T *)NULL);
        half = __fmul_rn(__fadd_rn(score[0], score[3]),
                         odd ? scale_high(chunk.key_scale[i]) : scale_low(chunk.key_scale[i]));
        p[i] = __fadd_rn(half, __shfl_xor_sync(0xffffffffu, half, 1));
    }
    chunk_softmax<T>(p, count, lane, out);
#pragma unroll
    for (int i = 0; i < 4; i++)
        p[i] = __fmul_rn(__fmul_rn(p[i], BYTES_RAISE),
                         odd ? scale_high(chunk.value_scale[i]) : scale_low(chunk.value_scale[i]));
#pragma unroll
    for (int i = 0; i < 2; i++) {
        const uint32_t pair = pair_of<T>(p[2 * i], p[2 * i + 1]);

        pairs[i] = __shfl_sync(0xffffffffu, pair, source);
        pairs[i + 2] = __shfl_sync(0xffffffffu, pair, source + 4);
    }
    values_add<T>(
        out, pairs, [&](int j) { return bytes_words<T>(chunk.value[j].x, chunk.value[j].y); },
        lane);
#pragma unroll
    for (int j = 0; j < 4; j++) {
        const float own = __fmul_rn(out->value[j], 1.0f / BYTES_RAISE);
        const float other = __shfl_xor_sync(0xffffffffu, own, 2);

        /* lanes 4g, 4g + 1 have columns 0 to 3: what low dimensions want */
        out->value[j] = !(lane & 2) == (lane < 16) ? own : other;
    }
}

#endif
