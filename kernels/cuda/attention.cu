/* SPDX-License-Identifier: MIT */
#include "kernels/cuda/attention.h"

#include "kernels/cuda/attention_bytes.cuh"
#include "kernels/cuda/attention_plain.cuh"
#include "kernels/cuda/attention_stream.cuh"
#include "kernels/cuda/check.h"
#include "kernels/cuda/launch.cuh"

/* What a lane holds of a chunk: T elements, C what the caches hold. */
template <class T, class C> struct chunk_of {
    typedef struct chunk_half<T> type;
};
template <class T> struct chunk_of<T, int8_t> {
    typedef struct chunk_bytes<T> type;
};
template <> struct chunk_of<float, float> {
    typedef struct chunk_plain<float> type;
};
template <> struct chunk_of<float, int8_t> {
    typedef struct chunk_plain<int8_t> type;
};

template <class T>
static __device__ __forceinline__ void chunk_newest(struct chunk_half<T> *chunk,
                                                    const struct chunk_cache<T> &cache, size_t at,
                                                    int i, int lane)
{
    chunk_newest<false>(chunk, cache.keys + at, cache.values + at, i, lane);
}

template <class C>
static __device__ __forceinline__ struct chunk_cache<C> cache_of(const struct attention &a,
                                                                 int head) {
    return {(const C *)a.cache_k, (const C *)a.cache_v, a.scales_k, a.scales_v, head, a.heads,
            a.chunk_places};
}

/* Beams' positions lie in several rows; whoever is none of them gets straight code. */
template <class Chunk, class C>
static __device__ __forceinline__ void chunk_get(Chunk *chunk, const struct chunk_cache<C> &cache,
                                                 const struct chunk_row &row, int c, int lane)
{
    if (row.beam_end > 0)
        chunk_load<true>(chunk, cache, row, c, lane);
    else
        chunk_load<false>(chunk, cache, row, c, lane);
}

/*
 * A block serves one row and HEADS heads of it; WARPS warps share a head's chunks. Keys and values
 * that are older than the kernel in front are fetched before it ends: all of a source's, and of its
 * own cache all but the newest position.
 */
template <class T, class C, int HEADS, int WARPS>
static __global__ void __launch_bounds__(HEADS *WARPS * 32)
    attention_decode(const struct attention a)
{
    __shared__ struct attention_kept parts[HEADS][WARPS > 1 ? ATTENTION_POSITIONS / CHUNK : 1];
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    const int head = blockIdx.y * HEADS + warp / WARPS, share = warp % WARPS;
    const struct chunk_cache<C> cache = cache_of<C>(a, head);
    typename chunk_of<T, C>::type chunk;
    struct attention_part all, part;
    struct chunk_query query;
    struct chunk_row from;
    int row = -1, length = 0;

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
        from.row = a.cross ? cross : index;
        length = a.cross ? source_len : position + 1;
        from.end = a.cross ? length : position;
        from.beam_end = !a.cross && (flags & CUDA_ROW_BEAM) ? position : 0;
        from.source_row = a.rows.source_row + (size_t)index * a.rows.P;
    }
    if (row >= 0)
        chunk_get(&chunk, cache, from, share, lane);
    launch_wait();
    launch_next();
    if (row < 0)
        return;
    {
        const T *q = (const T *)a.q + ((size_t)blockIdx.x * a.heads + head) * HEAD;

#pragma unroll
        for (int i = 0; i < chunk.QUERY; i++)
            query.part[i] = __ldcg((const uint4 *)(q + query_at(&chunk, i, lane)));
    }
    if (!a.cross && from.end / CHUNK == share)
        /* the newest position lies in the chunk that is already here */
        chunk_newest(&chunk, cache, chunk_at<false>(cache, from, from.end), from.end % CHUNK, lane);
    from.end = length;
    all.max = -INFINITY;
    for (int c = share; c * CHUNK < length; c += WARPS) {
        if (c != share)
            chunk_get(&chunk, cache, from, c, lane);
        chunk_attend<T>(chunk, query, length - c * CHUNK, lane, &part);
        if (WARPS > 1) {
            part_keep(&parts[warp / WARPS][c], part, lane);
        } else if (c == 0) {
            all = part;
        } else {
            part_merge<T>(&all, part);
        }
    }
    if (WARPS > 1) {
        __syncthreads();
        if (share)
            return;
        all = part_get(&parts[warp / WARPS][0], lane);
        for (int c = 1; c * CHUNK < length; c++)
            part_merge<T>(&all, part_get(&parts[warp / WARPS][c], lane));
    }
    if (!(lane & 2))
        part_elements(all,
                      (T *)a.out + ((size_t)blockIdx.x * a.heads + head) * HEAD + part_place(lane));
}

template <class T>
static cudaError_t many_enqueue(const struct attention *a, int32_t n_most, bool pdl,
                                cudaStream_t stream)
{
    const int32_t tasks = n_most * a->heads;
    int device = 0, most = 0;
    int32_t blocks;
    size_t shared;

    CUDA_PASS(cudaGetDevice(&device));
    CUDA_PASS(cudaDeviceGetAttribute(&most, cudaDevAttrMultiProcessorCount, device));
    blocks = tasks < most ? tasks : most;
    shared = attend_shared_bytes((tasks + blocks - 1) / blocks);
    CUDA_PASS(cudaFuncSetAttribute((const void *)attention_stream<T, ATTEND_WARPS, ATTEND_SLOTS>,
                                   cudaFuncAttributeMaxDynamicSharedMemorySize, (int)shared));
    return launch(attention_stream<T, ATTEND_WARPS, ATTEND_SLOTS>, dim3(blocks), ATTEND_WARPS * 32,
                  shared, pdl, stream, *a, n_most);
}

template <class T, class C>
static cudaError_t decode_enqueue(const struct attention *a, int32_t n_most, bool pdl,
                                  cudaStream_t stream)
{
    if constexpr (sizeof(T) == 2 && sizeof(C) == 2)
        if (a->beside)
            return many_enqueue<T>(a, n_most, pdl, stream);
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
