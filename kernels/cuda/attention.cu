/* SPDX-License-Identifier: MIT */
#include "kernels/cuda/attention.h"

#include "kernels/cuda/attention_chunk.cuh"
#include "kernels/cuda/check.h"
#include "kernels/cuda/launch.cuh"

/*
 * A block serves one row and HEADS heads of it; WARPS warps share a head's chunks. Keys and values
 * that are older than the kernel in front are fetched before it ends: all of a source's, and of its
 * own cache all but the newest position.
 */
template <class T, int HEADS, int WARPS>
static __global__ void __launch_bounds__(HEADS *WARPS * 32)
    attention_decode(const struct attention a)
{
    __shared__ struct attention_part parts[HEADS][WARPS > 1 ? 32 : 1][8];
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    const int head = blockIdx.y * HEADS + warp / WARPS, share = warp % WARPS;
    const size_t stride = (size_t)a.heads * a.cache_positions * HEAD;
    const T *cache_k = (const T *)a.cache_k + (size_t)head * a.cache_positions * HEAD;
    const T *cache_v = (const T *)a.cache_v + (size_t)head * a.cache_positions * HEAD;
    const int32_t *source_row = NULL;
    vector8<T> keys[LOADS], values[LOADS];
    struct attention_part all, part;
    float q[8];
    int row = -1, length = 0, old = 0, from = 0, beam_end = 0;

    /* active and the rows were written at least two kernels ago, but for a step's first kernels:
     * those are products */
    if ((int)blockIdx.x < *a.n) {
        const struct cuda_row *r = a.rows.row + a.active[blockIdx.x];

        row = r->finished ? -1 : a.active[blockIdx.x];
        from = a.cross ? r->cross : row;
        length = a.cross ? r->source_len : r->position + 1;
        old = a.cross ? length : r->position;
        beam_end = !a.cross && (r->flags & CUDA_ROW_BEAM) ? old : 0;
    }
    if (row >= 0) {
        source_row = a.rows.source_row + (size_t)row * a.rows.P;
        chunk_load<T>(keys, cache_k, stride, from, source_row, share, old, beam_end, lane);
        chunk_load<T>(values, cache_v, stride, from, source_row, share, old, beam_end, lane);
    }
    launch_wait();
    launch_next();
    if (row < 0)
        return;
    {
        vector8<T> raw = vector8_load<T>(
            (const T *)a.q + ((size_t)blockIdx.x * a.heads + head) * HEAD + (lane & 7) * 8);

        vector8_floats(raw, q);
        for (int d = 0; d < 8; d++)
            q[d] *= 0.125f; /* 1 / sqrt(64) */
    }
    if (!a.cross && old / CHUNK == share) {
        /* the newest position lies in the chunk that is already here */
        int i = (old % CHUNK) >> 2;
        const size_t at =
            (((size_t)row * a.heads + head) * a.cache_positions + old) * HEAD + (lane & 7) * 8;

        if (lane >> 3 == (old & 3)) {
            vector8<T> k = vector8_load<T>((const T *)a.cache_k + at);
            vector8<T> v = vector8_load<T>((const T *)a.cache_v + at);

#pragma unroll
            for (int j = 0; j < LOADS; j++)
                if (j == i) {
                    keys[j] = k;
                    values[j] = v;
                }
        }
    }
    all.max = -INFINITY;
    for (int c = share; c * CHUNK < length; c += WARPS) {
        if (c != share) {
            chunk_load<T>(keys, cache_k, stride, from, source_row, c, length, beam_end, lane);
            chunk_load<T>(values, cache_v, stride, from, source_row, c, length, beam_end, lane);
        }
        chunk_attend<T>(keys, values, q, length - c * CHUNK, lane, &part);
        if (WARPS > 1) {
            if (lane < 8)
                parts[warp / WARPS][c][lane] = part;
        } else if (c == 0) {
            all = part;
        } else {
            part_merge(&all, part);
        }
    }
    if (WARPS > 1) {
        __syncthreads();
        if (share)
            return;
        all = parts[warp / WARPS][0][lane & 7];
        for (int c = 1; c * CHUNK < length; c++)
            part_merge(&all, parts[warp / WARPS][c][lane & 7]);
    }
    if (lane < 8) {
        T *out = (T *)a.out + ((size_t)blockIdx.x * a.heads + head) * HEAD + lane * 8;
        float scale = 1.0f / all.sum;

#pragma unroll
        for (int d = 0; d < 8; d += 2)
            format_set2(out + d, all.value[d] * scale, all.value[d + 1] * scale);
    }
}

template <class T>
static cudaError_t decode_enqueue(const struct attention *a, int32_t n_most, bool pdl,
                                  cudaStream_t stream)
{
    /* few rows: spread a head over warps and the heads over blocks */
    if (n_most <= 64)
        return launch(attention_decode<T, 1, 4>, dim3(n_most, a->heads), 128, 0, pdl, stream, *a);
    return launch(attention_decode<T, 4, 1>, dim3(n_most, a->heads / 4), 128, 0, pdl, stream, *a);
}

cudaError_t attention_enqueue(const struct attention *a, enum cuda_format format, int32_t n_most,
                              bool pdl, cudaStream_t stream)
{
    if (format == CUDA_F32)
        return decode_enqueue<float>(a, n_most, pdl, stream);
    if (format == CUDA_BF16)
        return decode_enqueue<__nv_bfloat16>(a, n_most, pdl, stream);
    return decode_enqueue<__half>(a, n_most, pdl, stream);
}

/*
 * Encoder: a block takes 32 queries of one sequence and head; its keys and values lie in shared
 * memory (keys padded by one 8-byte word, so that lanes of different keys meet different banks). A
 * warp takes a query at a time: lane = key for the scores, lane = two dimensions for the values.
 */
enum { ENCODER_WARPS = 8, ENCODER_QUERIES = 32, ENCODER_KEY_PAD = 1, ENCODER_CHUNKS_MAX = 32 };

template <class T>
static __global__ void __launch_bounds__(ENCODER_WARPS * 32)
    attention_encoder(const T *qkv, T *out, const int32_t *starts, int32_t heads)
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
        const T *from = qkv + (size_t)(begin + t) * 3 * D + head * HEAD + d;

        keys[t * key_stride + d] = format_float(from[D]);
        keys[t * key_stride + d + 1] = format_float(from[D + 1]);
        values[t * HEAD + d] = format_float(from[2 * D]);
        values[t * HEAD + d + 1] = format_float(from[2 * D + 1]);
    }
    __syncthreads();
    for (int query = first + warp; query < length && query < first + ENCODER_QUERIES;
         query += ENCODER_WARPS) {
        const T *from = qkv + (size_t)(begin + query) * 3 * D + head * HEAD;
        float max = -INFINITY, sum = 0.0f, x = 0.0f, y = 0.0f;
        float *mine = queries + warp * HEAD;

        __syncwarp();
        mine[2 * lane] = format_float(from[2 * lane]) * 0.125f;
        mine[2 * lane + 1] = format_float(from[2 * lane + 1]) * 0.125f;
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

template <class T>
static cudaError_t encoder_enqueue(const void *qkv, void *out, const int32_t *starts, int32_t count,
                                   int32_t longest, int32_t heads, cudaStream_t stream)
{
    return launch(attention_encoder<T>,
                  dim3(count, heads, (longest + ENCODER_QUERIES - 1) / ENCODER_QUERIES),
                  ENCODER_WARPS * 32, encoder_shared_bytes(longest), false, stream, (const T *)qkv,
                  (T *)out, starts, heads);
}

cudaError_t attention_encoder_enqueue(const void *qkv, void *out, const int32_t *starts,
                                      int32_t count, int32_t longest, int32_t heads,
                                      enum cuda_format format, cudaStream_t stream)
{
    if (format == CUDA_F32)
        return encoder_enqueue<float>(qkv, out, starts, count, longest, heads, stream);
    if (format == CUDA_BF16)
        return encoder_enqueue<__nv_bfloat16>(qkv, out, starts, count, longest, heads, stream);
    return encoder_enqueue<__half>(qkv, out, starts, count, longest, heads, stream);
}

cudaError_t attention_prepare(int shared_bytes_most)
{
    const void *kernels[] = {(const void *)attention_encoder<float>,
                             (const void *)attention_encoder<__half>,
                             (const void *)attention_encoder<__nv_bfloat16>};

    for (int i = 0; i < 3; i++)
        CUDA_PASS(cudaFuncSetAttribute(kernels[i], cudaFuncAttributeMaxDynamicSharedMemorySize,
                                       shared_bytes_most));
    return cudaSuccess;
}

int32_t attention_source_most(enum cuda_format format, int shared_bytes_most)
{
    int32_t most = 32;

    (void)format;
    while (encoder_shared_bytes(most + 32) <= (size_t)shared_bytes_most)
        most += 32;
    return most;
}
