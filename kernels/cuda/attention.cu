/* SPDX-License-Identifier: MIT */
#include "kernels/cuda/attention.h"

#include "kernels/cuda/attention_chunk.cuh"
#include "kernels/cuda/check.h"
#include "kernels/cuda/launch.cuh"

/* A chunk's keys and values. Beams' positions lie in several rows; whoever is none of them gets
 * straight code, for around a branch in front of a load the compiler waits for the load before. */
template <class C>
static __device__ __forceinline__ void
caches_load(const struct attention &a, vector8<C> (&keys)[LOADS], vector8<C> (&values)[LOADS],
            int head, int from, const int32_t *source_row, int c, int end, int beam_end, int lane)
{
    const size_t stride = (size_t)a.heads * a.cache_positions * HEAD;
    const size_t first = (size_t)head * a.cache_positions; /* of the head's positions in row 0 */
    const C *k = (const C *)a.cache_k + first * HEAD, *v = (const C *)a.cache_v + first * HEAD;
    const __nv_bfloat16 *scales_k = a.scales_k + first * 2, *scales_v = a.scales_v + first * 2;

    if (beam_end > 0) {
        chunk_load<C>(keys, k, stride, from, source_row, c, end, beam_end, lane, scales_k);
        chunk_load<C>(values, v, stride, from, source_row, c, end, beam_end, lane, scales_v);
    } else {
        chunk_load<C>(keys, k, stride, from, NULL, c, end, INT32_MIN, lane, scales_k);
        chunk_load<C>(values, v, stride, from, NULL, c, end, INT32_MIN, lane, scales_v);
    }
}

/*
 * A block serves one row and HEADS heads of it; WARPS warps share a head's chunks. Keys and values
 * that are older than the kernel in front are fetched before it ends: all of a source's, and of its
 * own cache all but the newest position. T: elements; C: what the caches hold.
 */
template <class T, class C, int HEADS, int WARPS>
static __global__ void __launch_bounds__(HEADS *WARPS * 32)
    attention_decode(const struct attention a)
{
    __shared__ struct attention_part parts[HEADS][WARPS > 1 ? ATTENTION_POSITIONS / CHUNK : 1][8];
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    const int head = blockIdx.y * HEADS + warp / WARPS, share = warp % WARPS;
    const int32_t *source_row = NULL;
    vector8<C> keys[LOADS], values[LOADS];
    struct attention_part all, part;
    float q[8];
    int row = -1, length = 0, old = 0, from = 0, beam_end = 0;

    /* active and the rows were written at least two kernels ago, but for a step's first kernels:
     * those are products */
    {
        /* All that there is to know in three loads, one after the other: branches between them
         * would each cost the block a trip to L2, and there are many short blocks. active has a row
         * at any place, from an earlier step behind n. */
        const int n = __ldcg(a.n), index = __ldcg(a.active + blockIdx.x);
        const struct cuda_row *r = a.rows.row + index;
        const int finished = __ldcg(&r->finished), position = __ldcg(&r->position);
        const int cross = __ldcg(&r->cross), source_len = __ldcg(&r->source_len);
        const int flags = __ldcg(&r->flags);

        if ((int)blockIdx.x < n && !finished)
            row = index;
        from = a.cross ? cross : index;
        length = a.cross ? source_len : position + 1;
        old = a.cross ? length : position;
        beam_end = !a.cross && (flags & CUDA_ROW_BEAM) ? old : 0;
    }
    if (row >= 0) {
        source_row = a.rows.source_row + (size_t)row * a.rows.P;
        caches_load<C>(a, keys, values, head, from, source_row, share, old, beam_end, lane);
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
            vector8<C> k = cache_load8<C>((const C *)a.cache_k + at, a.scales_k, at);
            vector8<C> v = cache_load8<C>((const C *)a.cache_v + at, a.scales_v, at);

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
            caches_load<C>(a, keys, values, head, from, source_row, c, length, beam_end, lane);
        }
        chunk_attend<C>(keys, values, q, length - c * CHUNK, lane, &part);
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

template <class T, class C>
static cudaError_t decode_enqueue(const struct attention *a, int32_t n_most, bool pdl,
                                  cudaStream_t stream)
{
    /* few rows: spread a head over warps and the heads over blocks */
    if (n_most <= 64)
        return launch(attention_decode<T, C, 1, 4>, dim3(n_most, a->heads), 128, 0, pdl, stream,
                      *a);
    return launch(attention_decode<T, C, 4, 1>, dim3(n_most, a->heads / 4), 128, 0, pdl, stream,
                  *a);
}

cudaError_t attention_enqueue(const struct attention *a, enum cuda_format format, int32_t n_most,
                              bool pdl, cudaStream_t stream)
{
    if (format == CUDA_F32)
        return a->scales_k ? decode_enqueue<float, int8_t>(a, n_most, pdl, stream)
                           : decode_enqueue<float, float>(a, n_most, pdl, stream);
    if (format == CUDA_BF16)
        return a->scales_k ? decode_enqueue<__nv_bfloat16, int8_t>(a, n_most, pdl, stream)
                           : decode_enqueue<__nv_bfloat16, __nv_bfloat16>(a, n_most, pdl, stream);
    return a->scales_k ? decode_enqueue<__half, int8_t>(a, n_most, pdl, stream)
                       : decode_enqueue<__half, __half>(a, n_most, pdl, stream);
}
