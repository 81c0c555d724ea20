/* SPDX-License-Identifier: MIT
 *
 * fused_attention: attention in the kernel of fused.h: a block has a head, or every other row of
 * one; its warps share out rows and chunks of keys. For fused.cu alone.
 */
#ifndef PGPT_KERNELS_CUDA_FUSED_ATTENTION_CUH
#define PGPT_KERNELS_CUDA_FUSED_ATTENTION_CUH

#include "kernels/cuda/fused_shared.cuh"

#if __CUDA_ARCH__ >= 900 && PGPT_CUDA_HOPPER

/* Bytes from a cache's begin to a place in a layer. */
template <class T>
static __device__ __forceinline__ size_t cache_bytes(const struct network_cache &cache, int layer,
                                                     uint32_t place)
{
    return (uint32_t)layer * cache.layer_stride + (uint64_t)place * (uint32_t)(HEAD * sizeof(T));
}

/* Keys and values of chunk c of a row of beams, whose positions lie in the rows that wrote them. */
template <class S, class T>
static __device__ __forceinline__ void
chunk_fetch_beam(const S *s, struct chunk_half<T> *chunk, const struct fused_params &p, int layer,
                 const struct fused_place &at, int c, int end)
{
    const size_t first = (size_t)layer * p.self.layer_stride;
    const struct chunk_cache<T> cache = {
        (const T *)(p.self.k + first),
            (const T *)(p.self.v + first), NULL, NULL, at.head, HEADS, p.self.chunk_places
    };
    const struct chunk_row from = {s->row[at.row], end, end,
                                   p.rows.source_row + (size_t)s->row[at.row] * p.rows.P};

    chunk_load<true>(chunk, cache, from, c, at.lane);
}

/* Are chunks read whole? With few rows a cluster their bytes are not what is waited for; kernels of
 * sampled rows, whose memory is that of many, have no registers for it. */
template <class S> static constexpr __device__ bool chunks_whole(void)
{
    return S::ROOM < FUSED_ROWS;
}

/* Half of a chunk, or both. Of a row of beams both come with the keys. */
enum chunk_what { CHUNK_KEYS = 1, CHUNK_VALUES = 2, CHUNK_BOTH = 3 };

/* Chunk c of the warp's row below position `end`. */
template <enum fused_end END, enum chunk_what WHAT, class S, class T>
static __device__ __forceinline__ void
chunk_fetch(const S *s, struct chunk_half<T> *chunk, const struct fused_params &p, int layer,
            const struct fused_place &at, bool cross, int c, int end)
{
    const struct network_cache &cache = cross ? p.cross : p.self;
    const uint32_t head = (uint32_t)(cross ? at.cross_head : at.self_head);
    const size_t first =
        cache_bytes<T>(cache, layer, cache_chunk_place(head, (uint32_t)c, cache.chunk_places));

    if (END == FUSED_STEP && !cross && s->beam[at.row]) {
        if (WHAT & CHUNK_KEYS)
            chunk_fetch_beam(s, chunk, p, layer, at, c, end);
        return;
    }
    if (WHAT & CHUNK_KEYS)
        chunk_load_keys<chunks_whole<S>()>(chunk, cache.k + first, end - c * CHUNK, at.lane);
    if (WHAT & CHUNK_VALUES)
        chunk_load_values<chunks_whole<S>()>(chunk, cache.v + first, end - c * CHUNK, at.lane);
}

/* The first chunk of the row's share; of its own keys those in front of the newest, `more` steps
 * from now. */
template <enum fused_end END, enum chunk_what WHAT, class S, class T>
static __device__ __forceinline__ void
attend_fetch(const S *s, struct chunk_half<T> *chunk, const struct fused_params &p, int layer,
             const struct fused_place &at, bool cross, int more)
{
    if (at.row < 0)
        return;
    const int end = cross ? at.source_len : s->state[at.now][at.row].position + more;

    /* of itself also the chunk that the newest is the first of, for values behind that shall be
     * numbers; but none behind the last position there can be: the row will have ended */
    if (chunks_whole<S>() && at.share * CHUNK >= (cross ? end : min(end + 1, p.rows.P)))
        return;
    chunk_fetch<END, WHAT>(s, chunk, p, layer, at, cross, at.share, end);
}

/* The newest position's key and value, fresh from this step's product, into the cache. This block
 * alone reads the row's cache of this head in later steps of this launch. */
template <class S>
static __device__ __forceinline__ void newest_keep(const S *s, const struct network_cache &cache,
                                                   int layer, const struct fused_place &at,
                                                   int position)
{
    const bool key = at.lane < 8;
    const int i = at.lane & 7; /* 16 bytes */
    const uint32_t place =
        cache_place((uint32_t)at.self_head, (uint32_t)position, cache.chunk_places);
    const size_t to = cache_bytes<typename S::element>(cache, layer, place) + i * 16;

    if (at.lane < 16)
        *(uint4 *)((key ? cache.k : cache.v) + to) =
            *(const uint4 *)&(key ? s->key : s->value)[at.row][i * 8];
}

/* A row's output to every block's o. */
template <class S>
static __device__ __forceinline__ void attend_send(S *s, const struct attention_part &part,
                                                   const struct fused_place &at)
{
    const uint4 out = part_words<typename S::element>(part, at.lane);

#pragma unroll
    for (int r = 0; r < S::BLOCKS / 4; r++)
        cluster_send16(s->o + at.row * X_STRIDE + (at.head * HEAD + (at.lane >> 2) * 8) * 2,
                       &s->box[LETTER_O], (at.lane & 3) * (S::BLOCKS / 4) + r, out);
}

/* What a warp is to look at. */
struct attend_task {
    int position, length; /* of its row; 0: nothing */
    int longest;          /* of all of the block */
    bool apart;           /* parts of a row are merged across warps */
};

/* Before the query comes. */
template <class S>
static __device__ __forceinline__ struct attend_task
attend_begin(const S *s, const struct fused_place &at, bool cross)
{
    const struct fused_row &row = s->state[at.now][max(at.row, 0)];
    struct attend_task task;

    task.position = row.position;
    /* a finished row looks at nothing and sends what comes of it: letters have one size */
    task.length = at.row < 0 || row.finished ? 0 : cross ? at.source_len : row.position + 1;
    task.longest = cross ? at.cross_longest : at.self_longest;
    task.apart = at.shares > 1 && task.longest > CHUNK;
    return task;
}

/* A round: a chunk a warp, of which the first of the row is chunk `from`. Those of the first round
 * are in registers, others are asked for here: where their keys lie is not to be known before.
 * Parts are merged in the order of the chunks: by the warp that has all of a row's, or here. */
template <enum fused_end END, class S, class T>
static __device__ __forceinline__ void
attend_round(S *s, struct chunk_half<T> *chunk, const struct chunk_query &query,
             const struct fused_params &p, int layer, const struct fused_place &at, bool cross,
             const struct attend_task &task, int from, struct attention_part *all)
{
    const int position = task.position, length = task.length, c = from + at.share;
    struct attention_part part;

    if (c * CHUNK < length) {
        if (from)
            chunk_fetch<END, CHUNK_BOTH>(s, chunk, p, here(layer), at, cross, c,
                                         cross ? length : position);
        if (!cross && position / CHUNK == c)
            chunk_newest<true>(chunk, s->key[at.row], s->value[at.row], position % CHUNK, at.lane);
        chunk_attend<T>(*chunk, query, length - c * CHUNK, at.lane, &part);
        if (task.apart)
            part_keep(&s->parts[at.warp], part, at.lane);
        if (c == 0)
            *all = part;
        else if (!task.apart)
            part_merge<T>(all, part);
    }
    if (!task.apart)
        return;
    workers_sync();
    if (at.share == 0)
#pragma unroll 1
        for (int i = from ? 0 : 1; i < at.shares && (from + i) * CHUNK < length; i++)
            part_merge<T>(all, part_get(&s->parts[at.warp + i], at.lane));
    if ((from + at.shares) * CHUNK < task.longest)
        workers_sync();
}

/* Attention of this block's rows and head; chunk: what attend_fetch() got. */
template <enum fused_end END, class S, class T>
static __device__ __forceinline__ void
attend(S *s, struct chunk_half<T> *chunk, const struct fused_params &p, int layer,
       const struct fused_place &at, bool cross, const struct attend_task &task)
{
    /* where rows are shared out among warps, the first round is mostly all: straight code for it */
    constexpr bool STRAIGHT = S::BLOCKS > HEADS;
    const struct chunk_query query = query_get(chunk, s->q[max(at.row, 0)], at.lane);
    struct attention_part all = {0.0f, 1.0f, {0.0f, 0.0f, 0.0f, 0.0f}};

    if (STRAIGHT)
        attend_round<END>(s, chunk, query, p, layer, at, cross, task, 0, &all);
#pragma unroll 1
    for (int from = STRAIGHT ? at.shares : 0; from * CHUNK < task.longest; from += at.shares)
        attend_round<END>(s, chunk, query, p, layer, at, cross, task, from, &all);
    if (at.row >= 0 && at.share == 0)
        attend_send(s, all, at);
    /* behind the letter, for nobody in this step looks there again */
    if (!cross && task.length && (task.position / CHUNK & (at.shares - 1)) == at.share)
        newest_keep(s, p.self, layer, at, task.position);
}

#endif

#endif
