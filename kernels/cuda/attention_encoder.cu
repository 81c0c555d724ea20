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
#define TILE_SCALE (0.125f * 1.44269504088896341f) /* 1 / sqrt(64), and to powers of 2 */

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

template <class T> static __device__ __forceinline__ uint32_t pair_of(float a, float b);
template <> __device__ __forceinline__ uint32_t pair_of<__half>(float a, float b)
{
    __half2 h = __floats2half2_rn(a, b);

    return *(uint32_t *)&h;
}
template <> __device__ __forceinline__ uint32_t pair_of<__nv_bfloat16>(float a, float b)
{
    __nv_bfloat162 h = __floats2bfloat162_rn(a, b);

    return *(uint32_t *)&h;
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
            score[t][e] =
                8 * t + 2 * (lane & 3) + (e & 1) < count ? score[t][e] * TILE_SCALE : -INFINITY;
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
 * float32, in plain multiply-adds: a block takes 32 queries of one sequence and head; its keys and
 * values lie in shared memory (keys padded by one 8-byte word, so that lanes of different keys meet
 * different banks). A warp takes a query at a time: lane = key for the scores, lane = two
 * dimensions for the values.
 */
enum { ENCODER_WARPS = 8, ENCODER_QUERIES = 32, ENCODER_KEY_PAD = 1 };

static __global__ void __launch_bounds__(ENCODER_WARPS * 32)
    attention_encoder_plain(const float *qkv, float *out, const int32_t *starts, int32_t heads)
{
    extern __shared__ __align__(16) float encoder_shared[];
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    const int head = blockIdx.y, D = heads * HEAD;
    const int begin = starts[blockIdx.x], length = starts[blockIdx.x + 1] - begin;
    const int first = blockIdx.z * ENCODER_QUERIES;
    const int key_stride = HEAD + ENCODER_KEY_PAD;
    float *keys = encoder_shared, *values = keys + ((size_t)length * key_stride + 3) / 4 * 4;
    float *queries = values + (size_t)length * HEAD; /* (warps, 64) */

    if (first >= length)
        return;
    for (int i = threadIdx.x; i < length * (HEAD / 2); i += blockDim.x) {
        int t = i >> 5, d = (i & 31) * 2;
        const float *from = qkv + (size_t)(begin + t) * 3 * D + head * HEAD + d;

        keys[t * key_stride + d] = from[D];
        keys[t * key_stride + d + 1] = from[D + 1];
        values[t * HEAD + d] = from[2 * D];
        values[t * HEAD + d + 1] = from[2 * D + 1];
    }
    __syncthreads();
    for (int query = first + warp; query < length && query < first + ENCODER_QUERIES;
         query += ENCODER_WARPS) {
        const float *from = qkv + (size_t)(begin + query) * 3 * D + head * HEAD;
        float max = -INFINITY, sum = 0.0f, x = 0.0f, y = 0.0f;
        float *mine = queries + warp * HEAD;

        __syncwarp();
        mine[2 * lane] = from[2 * lane] * 0.125f;
        mine[2 * lane + 1] = from[2 * lane + 1] * 0.125f;
        __syncwarp();
        for (int c = 0; c * 32 < length; c++) {
            const float *k = keys + (size_t)min(c * 32 + lane, length - 1) * key_stride;
            int count = min(32, length - c * 32);
            float s = 0.0f, chunk_max, p, chunk_sum, factor, chunk_factor, cx = 0.0f, cy = 0.0f;

#pragma unroll 16
            for (int d = 0; d < HEAD; d++)
                s = __fmaf_rn(mine[d], k[d], s);
            if (lane >= count)
                s = -INFINITY;
            chunk_max = s;
            for (int mask = 16; mask; mask >>= 1)
                chunk_max = fmaxf(chunk_max, __shfl_xor_sync(0xffffffffu, chunk_max, mask));
            p = lane < count ? expf(s - chunk_max) : 0.0f;
            chunk_sum = p;
            for (int mask = 16; mask; mask >>= 1)
                chunk_sum += __shfl_xor_sync(0xffffffffu, chunk_sum, mask);
            for (int j = 0; j < count; j++) {
                float w = __shfl_sync(0xffffffffu, p, j);
                float2 v = *(const float2 *)(values + (size_t)(c * 32 + j) * HEAD + 2 * lane);

                cx = __fmaf_rn(w, v.x, cx);
                cy = __fmaf_rn(w, v.y, cy);
            }
            if (c == 0) {
                max = chunk_max, sum = chunk_sum, x = cx, y = cy;
                continue;
            }
            factor = fmaxf(max, chunk_max);
            chunk_factor = expf(chunk_max - factor);
            max = expf(max - factor);
            sum = __fadd_rn(__fmul_rn(sum, max), __fmul_rn(chunk_sum, chunk_factor));
            x = __fadd_rn(__fmul_rn(x, max), __fmul_rn(cx, chunk_factor));
            y = __fadd_rn(__fmul_rn(y, max), __fmul_rn(cy, chunk_factor));
            max = factor;
        }
        format_set2(out + (size_t)(begin + query) * D + head * HEAD + 2 * lane, x / sum, y / sum);
    }
}

static size_t encoder_shared_bytes(int32_t longest)
{
    return sizeof(float) * (((size_t)longest * (HEAD + ENCODER_KEY_PAD) + 3) / 4 * 4 +
                            (size_t)longest * HEAD + ENCODER_WARPS * HEAD);
}

cudaError_t attention_encoder_enqueue(const void *qkv, void *out, const int32_t *starts,
                                      int32_t count, int32_t longest, int32_t heads,
                                      enum cuda_format format, cudaStream_t stream)
{
    if (format == CUDA_F16)
        return tiles_enqueue<format_f16>(qkv, out, starts, count, longest, heads, stream);
    if (format == CUDA_BF16)
        return tiles_enqueue<format_bf16>(qkv, out, starts, count, longest, heads, stream);
    return launch(attention_encoder_plain,
                  dim3(count, heads, (longest + ENCODER_QUERIES - 1) / ENCODER_QUERIES),
                  ENCODER_WARPS * 32, encoder_shared_bytes(longest), false, stream,
                  (const float *)qkv, (float *)out, starts, heads);
}

cudaError_t attention_prepare(int shared_bytes_most)
{
    return cudaFuncSetAttribute((const void *)attention_encoder_plain,
                                cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes_most);
}

int32_t attention_source_most(enum cuda_format format, int shared_bytes_most)
{
    int32_t most = 32;

    if (format != CUDA_F32)
        return ATTENTION_POSITIONS;
    while (encoder_shared_bytes(most + 32) <= (size_t)shared_bytes_most)
        most += 32;
    return most;
}
