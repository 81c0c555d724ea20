/* SPDX-License-Identifier: MIT
 *
 * An encoder's self-attention over packed sources. A query's sums run over the keys of its own
 * source in a fixed order, so its bits depend on that source alone.
 */
#include "kernels/cuda/attention.h"
#include "kernels/cuda/attention_chunk.cuh"
#include "kernels/cuda/check.h"
#include "kernels/cuda/launch.cuh"

/*
 * By matrix instructions: a block takes 64 queries of one source and head, a warp 16 of them; keys
 * and values come by 64 through shared memory, the next while the last are used. Scores of 64 keys
 * stay in registers, where exponentials turn them into the first operand of the product with the
 * values. Max and sum run along (online softmax).
 */
enum { TILE_WARPS = 4, TILE_QUERIES = 64, TILE_KEYS = 64, TILE_STRIDE = HEAD * 2 + 16 };

static __device__ __forceinline__ void tile_copy(char *shared, const void *global, bool in)
{
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(
                     (uint32_t)__cvta_generic_to_shared(shared)),
                 "l"(global), "r"(in ? 16 : 0)
                 : "memory");
}

/* keys, values (TILE_KEYS, 64) from key `first` on of a source of `length`; zeros behind its end.
 */
template <class T>
static __device__ __forceinline__ void tile_load(char *keys, char *values, const T *source, int D,
                                                 int first, int length)
{
    for (int i = threadIdx.x; i < TILE_KEYS * 8; i += TILE_WARPS * 32) {
        const int key = i >> 3, word = i & 7;
        const bool in = first + key < length;
        const T *from = source + (size_t)(in ? first + key : 0) * 3 * D + word * 8;

        tile_copy(keys + key * TILE_STRIDE + word * 16, from + D, in);
        tile_copy(values + key * TILE_STRIDE + word * 16, from + 2 * D, in);
    }
    asm volatile("cp.async.commit_group;" ::: "memory");
}

/* The second operand of a product over 16 keys, two tiles of 8 dimensions. */
static __device__ __forceinline__ uint4 values_get(const char *values, int key, int dimension,
                                                   int lane)
{
    uint4 v;

    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "r"((uint32_t)__cvta_generic_to_shared(values) +
                       (key + (lane & 15)) * TILE_STRIDE + (dimension + (lane >> 4) * 8) * 2)
                 : "memory");
    return v;
}

/* A lane's two queries: g and g + 8 of the warp's 16. */
struct tile_sums {
    float max[2], sum[2];
    float value[8][4]; /* dimensions 8 t + 2 q, + 1 of the first query, then of the second */
};

/* TILE_KEYS more keys, of which `count` are the source's. */
template <class F>
static __device__ __forceinline__ void tile_attend(const char *keys, const char *values,
                                                   const uint4 (&query)[4], int count, int lane,
                                                   struct tile_sums *sums)
{
    typedef typename F::element T;
    float score[8][4], max[2] = {sums->max[0], sums->max[1]};

#pragma unroll
    for (int t = 0; t < 8; t++) {
#pragma unroll
        for (int e = 0; e < 4; e++)
            score[t][e] = 0.0f;
        if (8 * t >= count)
            continue;
#pragma unroll
        for (int b = 0; b < 2; b++) {
            uint4 k = rows_get<F>(keys + t * 8 * TILE_STRIDE, TILE_STRIDE, b, lane);

            F::mma(score[t], query[2 * b], k.x, k.y);
            F::mma(score[t], query[2 * b + 1], k.z, k.w);
        }
    }
#pragma unroll
    for (int t = 0; t < 8; t++)
#pragma unroll
        for (int e = 0; e < 4; e++) {
            score[t][e] = 8 * t + 2 * (lane & 3) + (e & 1) < count ? score[t][e] * ATTENTION_SCALE
                                                                   : -INFINITY;
            max[e >> 1] = fmaxf(max[e >> 1], score[t][e]);
        }
#pragma unroll
    for (int i = 0; i < 2; i++) {
        float factor;

        max[i] = fmaxf(max[i], __shfl_xor_sync(0xffffffffu, max[i], 1));
        max[i] = fmaxf(max[i], __shfl_xor_sync(0xffffffffu, max[i], 2));
        factor = exp2f(sums->max[i] - max[i]); /* 0 the first time */
        sums->max[i] = max[i];
        sums->sum[i] *= factor;
#pragma unroll
        for (int t = 0; t < 8; t++) {
            sums->value[t][2 * i] *= factor;
            sums->value[t][2 * i + 1] *= factor;
        }
    }
#pragma unroll
    for (int t = 0; t < 8; t++)
#pragma unroll
        for (int e = 0; e < 4; e++) {
            score[t][e] = exp2f(score[t][e] - max[e >> 1]);
            sums->sum[e >> 1] += score[t][e];
        }
#pragma unroll
    for (int k = 0; k < 4; k++) {
        const uint4 p = make_uint4(pair_of<T>(score[2 * k][0], score[2 * k][1]),
                                   pair_of<T>(score[2 * k][2], score[2 * k][3]),
                                   pair_of<T>(score[2 * k + 1][0], score[2 * k + 1][1]),
                                   pair_of<T>(score[2 * k + 1][2], score[2 * k + 1][3]));

        if (16 * k >= count)
            continue;
#pragma unroll
        for (int t = 0; t < 8; t += 2) {
            uint4 v = values_get(values, 16 * k, 8 * t, lane);

            F::mma(sums->value[t], p, v.x, v.y);
            F::mma(sums->value[t + 1], p, v.z, v.w);
        }
    }
}

template <class F>
static __global__ void __launch_bounds__(TILE_WARPS * 32)
    attention_encoder(const typename F::element *qkv, typename F::element *out,
                      const int32_t *starts, int32_t heads)
{
    typedef typename F::element T;
    __shared__ __align__(16) char keys[2][TILE_KEYS * TILE_STRIDE];
    __shared__ __align__(16) char values[2][TILE_KEYS * TILE_STRIDE];
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, g = lane >> 2, q = lane & 3;
    const int D = heads * HEAD, begin = starts[blockIdx.x];
    const int length = starts[blockIdx.x + 1] - begin;
    const int first = blockIdx.z * TILE_QUERIES + warp * 16;
    const T *source = qkv + (size_t)begin * 3 * D + blockIdx.y * HEAD;
    struct tile_sums sums;
    uint4 query[4];

    if ((int)blockIdx.z * TILE_QUERIES >= length)
        return;
    tile_load(keys[0], values[0], source, D, 0, length);
    {
        const T *low = source + (size_t)min(first + g, length - 1) * 3 * D + 2 * q;
        const T *high = source + (size_t)min(first + g + 8, length - 1) * 3 * D + 2 * q;

#pragma unroll
        for (int k = 0; k < 4; k++)
            query[k] = make_uint4(
                *(const uint32_t *)(low + 16 * k), *(const uint32_t *)(high + 16 * k),
                *(const uint32_t *)(low + 16 * k + 8), *(const uint32_t *)(high + 16 * k + 8));
    }
    memset(&sums, 0, sizeof sums);
    sums.max[0] = sums.max[1] = -INFINITY;
#pragma unroll 1
    for (int c = 0; c * TILE_KEYS < length; c++) {
        if ((c + 1) * TILE_KEYS < length)
            tile_load(keys[(c + 1) & 1], values[(c + 1) & 1], source, D, (c + 1) * TILE_KEYS,
                      length);
        else
            asm volatile("cp.async.commit_group;" ::: "memory");
        asm volatile("cp.async.wait_group 1;" ::: "memory");
        __syncthreads();
        if (first < length)
            tile_attend<F>(keys[c & 1], values[c & 1], query, length - c * TILE_KEYS, lane, &sums);
        __syncthreads(); /* before they are overwritten */
    }
#pragma unroll
    for (int i = 0; i < 2; i++) {
        T *to = out + (size_t)(begin + first + g + 8 * i) * D + blockIdx.y * HEAD + 2 * q;
        float scale;

        sums.sum[i] += __shfl_xor_sync(0xffffffffu, sums.sum[i], 1);
        sums.sum[i] += __shfl_xor_sync(0xffffffffu, sums.sum[i], 2);
        scale = 1.0f / sums.sum[i];
        if (first + g + 8 * i >= length)
            continue;
#pragma unroll
        for (int t = 0; t < 8; t++)
            format_set2(to + 8 * t, sums.value[t][2 * i] * scale, sums.value[t][2 * i + 1] * scale);
    }
}

template <class F>
static cudaError_t tiles_enqueue(const void *qkv, void *out, const int32_t *starts, int32_t count,
                                 int32_t longest, int32_t heads, cudaStream_t stream)
{
    typedef typename F::element T;

    return launch(attention_encoder<F>,
                  dim3(count, heads, (longest + TILE_QUERIES - 1) / TILE_QUERIES), TILE_WARPS * 32,
                  0, false, stream, (const T *)qkv, (T *)out, starts, heads);
}

/*
 * float32, in plain multiply-adds: a block takes 32 queries of one sequence and head, a warp 4 of
 * them; keys and values come by PLAIN_KEYS through shared memory (keys padded by a word, so that
 * lanes of different keys meet different banks). Lane = key for the scores, lane = two dimensions
 * for the values.
 */
enum {
    PLAIN_WARPS = 8,
    PLAIN_EACH = 4, /* queries a warp */
    PLAIN_QUERIES = PLAIN_WARPS * PLAIN_EACH,
    PLAIN_KEYS = 64,
    PLAIN_STRIDE = HEAD + 1,
};

/* A query's sums; the lane's two dimensions. */
struct plain_sums {
    float max, sum, x, y;
};

/* 32 more keys, of which `count` are the source's. query (64). */
static __device__ __forceinline__ void plain_attend(const float *keys, const float *values,
                                                    const float *query, int count, int lane,
                                                    bool first, struct plain_sums *sums)
{
    const float *k = keys + min(lane, count - 1) * PLAIN_STRIDE;
    struct plain_sums chunk = {0.0f, 0.0f, 0.0f, 0.0f};
    float s = 0.0f, p, max, old_factor, factor;

#pragma unroll 16
    for (int d = 0; d < HEAD; d++)
        s = __fmaf_rn(query[d], k[d], s);
    if (lane >= count)
        s = -INFINITY;
    chunk.max = s;
    for (int mask = 16; mask; mask >>= 1)
        chunk.max = fmaxf(chunk.max, __shfl_xor_sync(0xffffffffu, chunk.max, mask));
    p = lane < count ? expf(s - chunk.max) : 0.0f;
    chunk.sum = p;
    for (int mask = 16; mask; mask >>= 1)
        chunk.sum += __shfl_xor_sync(0xffffffffu, chunk.sum, mask);
    for (int j = 0; j < count; j++) {
        float w = __shfl_sync(0xffffffffu, p, j);
        float2 v = *(const float2 *)(values + j * HEAD + 2 * lane);

        chunk.x = __fmaf_rn(w, v.x, chunk.x);
        chunk.y = __fmaf_rn(w, v.y, chunk.y);
    }
    if (first) {
        *sums = chunk;
        return;
    }
    max = fmaxf(sums->max, chunk.max);
    factor = expf(chunk.max - max);
    old_factor = expf(sums->max - max);
    sums->max = max;
    sums->sum = __fadd_rn(__fmul_rn(sums->sum, old_factor), __fmul_rn(chunk.sum, factor));
    sums->x = __fadd_rn(__fmul_rn(sums->x, old_factor), __fmul_rn(chunk.x, factor));
    sums->y = __fadd_rn(__fmul_rn(sums->y, old_factor), __fmul_rn(chunk.y, factor));
}

static __global__ void __launch_bounds__(PLAIN_WARPS * 32)
    attention_encoder_plain(const float *qkv, float *out, const int32_t *starts, int32_t heads)
{
    __shared__ float keys[PLAIN_KEYS * PLAIN_STRIDE];
    __shared__ __align__(8) float values[PLAIN_KEYS * HEAD], queries[PLAIN_QUERIES * HEAD];
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    const int head = blockIdx.y, D = heads * HEAD;
    const int begin = starts[blockIdx.x], length = starts[blockIdx.x + 1] - begin;
    const int first = blockIdx.z * PLAIN_QUERIES;
    const float *source = qkv + (size_t)begin * 3 * D + head * HEAD;
    struct plain_sums sums[PLAIN_EACH];

    if (first >= length)
        return;
    for (int i = threadIdx.x; i < PLAIN_QUERIES * HEAD; i += blockDim.x) {
        const int query = first + i / HEAD;

        queries[i] = query < length ? source[(size_t)query * 3 * D + i % HEAD] * 0.125f : 0.0f;
    }
#pragma unroll 1
    for (int at = 0; at < length; at += PLAIN_KEYS) {
        const int here = min(PLAIN_KEYS, length - at);

        __syncthreads(); /* all have left the keys before */
        for (int i = threadIdx.x; i < here * HEAD; i += blockDim.x) {
            const float *from = source + (size_t)(at + i / HEAD) * 3 * D + i % HEAD;

            keys[i / HEAD * PLAIN_STRIDE + i % HEAD] = from[D];
            values[i] = from[2 * D];
        }
        __syncthreads();
#pragma unroll 1
        for (int c = 0; c < here; c += 32)
#pragma unroll
            for (int i = 0; i < PLAIN_EACH; i++) /* also those past the end: zeros */
                plain_attend(keys + c * PLAIN_STRIDE, values + c * HEAD,
                             queries + (i * PLAIN_WARPS + warp) * HEAD, min(32, here - c), lane,
                             at + c == 0, &sums[i]);
    }
#pragma unroll
    for (int i = 0; i < PLAIN_EACH; i++) {
        const int query = first + i * PLAIN_WARPS + warp;

        if (query < length)
            format_set2(out + (size_t)(begin + query) * D + head * HEAD + 2 * lane,
                        sums[i].x / sums[i].sum, sums[i].y / sums[i].sum);
    }
}

cudaError_t attention_encoder_enqueue(const void *qkv, void *out, const int32_t *starts,
                                      int32_t count, int32_t longest, int32_t heads,
                                      enum cuda_format format, cudaStream_t stream)
{
    if (format == CUDA_F16)
        return tiles_enqueue<format_f16>(qkv, out, starts, count, longest, heads, stream);
    if (format == CUDA_BF16)
        return tiles_enqueue<format_bf16>(qkv, out, starts, count, longest, heads, stream);
    return launch(
        attention_encoder_plain, dim3(count, heads, (longest + PLAIN_QUERIES - 1) / PLAIN_QUERIES),
        PLAIN_WARPS * 32, 0, false, stream, (const float *)qkv, (float *)out, starts, heads);
}
