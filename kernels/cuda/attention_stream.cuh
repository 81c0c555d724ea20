/* SPDX-License-Identifier: MIT
 *
 * attention_stream: one decode step's attention of many rows by blocks that stay, one a
 * multiprocessor, over caches of halves. A block has every so many-th pair of row and head (a
 * task); its warps take them in turn, longest first. Each warp has slots of its own in shared
 * memory, into which the copy engine fetches a chunk's keys and values (a piece) while it
 * multiplies another: so as many bytes are on their way whatever the lengths, in few registers, and
 * a block of the products' kernels finds room beside it. Who does what changes no bits
 * (attention_chunk.cuh). Compute capability 9.0.
 */
#ifndef PGPT_KERNELS_CUDA_ATTENTION_STREAM_CUH
#define PGPT_KERNELS_CUDA_ATTENTION_STREAM_CUH

#include "kernels/cuda/attention_chunk.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/weights_ring.cuh"

enum {
    ATTEND_WARPS = 3,
    ATTEND_SLOTS = 2,                 /* a warp */
    ATTEND_ROW = HEAD * 2,            /* bytes of a position's key or value */
    ATTEND_HALF = CHUNK * ATTEND_ROW, /* of a slot, keys or values */
    ATTEND_SLOT = 2 * ATTEND_HALF,
    ATTEND_BINS = ATTENTION_POSITIONS / CHUNK + 1,
};

/* A row's head. */
struct attend_task {
    int32_t first;  /* its first place */
    int32_t length; /* 0: nothing to do */
    int32_t place;  /* among queries and outputs */
    int32_t beam;   /* the row, if its older positions may lie in others; else -1 */
};
/* A chunk of it, in a slot. */
struct attend_piece {
    int32_t first; /* place */
    int32_t count; /* positions */
    int32_t place; /* -1: there are no more */
    int32_t ends;  /* enum attend_ends */
};
enum attend_ends { ATTEND_FIRST = 1, ATTEND_LAST = 2 }; /* of its task */
/* In shared memory; each thread knows where, for what is looked up there is not known to lie in it.
 */
struct attend_shared {
    struct attend_task *tasks; /* (count) */
    uint16_t *order, *rank;    /* (count) */
    uint32_t *bins;            /* (ATTEND_BINS) */
    uint32_t *taken, *live;
};

#if __CUDA_ARCH__ >= 900

/* One thread: bytes from a cache into a slot. */
static __device__ __forceinline__ void attend_copy(void *to, const void *from, uint32_t bytes,
                                                   uint64_t *full)
{
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint "
                 "[%0], [%1], %2, [%3], %4;" ::"r"(shared_address(to)),
                 "l"(from), "r"(bytes), "r"(shared_address(full)), "l"(CACHE_LEAVES_FIRST)
                 : "memory");
}
/* 16 bytes of a slot, if `in`, else zeros. */
static __device__ __forceinline__ uint4 attend_get16(const char *from, bool in)
{
    uint4 v = make_uint4(0, 0, 0, 0);

    asm volatile("{\n\t.reg .pred p;\n\tsetp.ne.b32 p, %5, 0;\n\t"
                 "@p ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];\n\t}"
                 : "+r"(v.x), "+r"(v.y), "+r"(v.z), "+r"(v.w)
                 : "r"(shared_address(from)), "r"((int)in)
                 : "memory");
    return v;
}
/* What the slot held is in the part: from here on it may be written over. */
static __device__ __forceinline__ void attend_used(struct attention_part *part)
{
    asm volatile(""
                 : "+f"(part->value[0]), "+f"(part->value[1]), "+f"(part->value[2]),
                   "+f"(part->value[3])::"memory");
}

static __device__ __forceinline__ struct attend_task attend_task_of(const struct attention &a,
                                                                    int k)
{
    /* three loads, one after the other: attention_decode() */
    const int i = k / a.heads, head = k - i * a.heads;
    const int n = __ldcg(a.n), index = __ldcg(a.active + i);
    const struct cuda_row *r = a.rows.row + index;
    const int finished = __ldcg(&r->finished), position = __ldcg(&r->position);
    const int cross = __ldcg(&r->cross), source_len = __ldcg(&r->source_len);
    const int flags = __ldcg(&r->flags);
    const int row = a.cross ? cross : index;
    struct attend_task task;

    task.first = (row * a.heads + head) * CHUNK;
    task.length = i >= n || finished ? 0 : a.cross ? source_len : position + 1;
    task.place = k;
    task.beam = !a.cross && (flags & CUDA_ROW_BEAM) ? index : -1;
    return task;
}

/* The block's tasks, and their order: by chunks, most first. */
static __device__ __forceinline__ void attend_tasks_load(const struct attention &a, int count,
                                                         const struct attend_shared *s)
{
    const int lane = threadIdx.x & 31;

    for (int i = threadIdx.x; i < ATTEND_BINS; i += blockDim.x)
        s->bins[i] = 0;
    __syncthreads();
    for (int j = threadIdx.x; j < count; j += blockDim.x) {
        const struct attend_task task = attend_task_of(a, blockIdx.x + j * gridDim.x);

        s->tasks[j] = task;
        s->rank[j] =
            (uint16_t)atomicAdd(&s->bins[ATTEND_BINS - 1 - (task.length + CHUNK - 1) / CHUNK], 1u);
    }
    __syncthreads();
    if (threadIdx.x < 32) {
        const uint32_t own = s->bins[lane];
        uint32_t sum = own;

#pragma unroll
        for (int step = 1; step < 32; step *= 2) {
            const uint32_t below = __shfl_up_sync(0xffffffffu, sum, step);

            sum += lane >= step ? below : 0;
        }
        s->bins[lane] = sum - own;
        if (lane == 31) {
            *s->live = sum;
            *s->taken = 0;
        }
    }
    __syncthreads();
    for (int j = threadIdx.x; j < count; j += blockDim.x) {
        const int chunks = (s->tasks[j].length + CHUNK - 1) / CHUNK;

        if (chunks)
            s->order[s->bins[ATTEND_BINS - 1 - chunks] + s->rank[j]] = (uint16_t)j;
    }
    __syncthreads();
}

/* A warp's way through its tasks. */
struct attend_walk {
    struct attend_task task;
    int chunk; /* the next */
};

/* The warp's next piece. */
static __device__ __forceinline__ struct attend_piece attend_next(const struct attention &a,
                                                                  struct attend_walk *walk,
                                                                  const struct attend_shared *s,
                                                                  int lane)
{
    if (walk->chunk * CHUNK >= walk->task.length) {
        uint32_t j = 0;

        if (lane == 0)
            j = atomicAdd(s->taken, 1u);
        j = __shfl_sync(0xffffffffu, j, 0);
        if (j >= *s->live)
            return {0, 0, -1, 0};
        walk->task = s->tasks[s->order[j]];
        walk->chunk = 0;
    }
    const int chunk = walk->chunk++, left = walk->task.length - chunk * CHUNK;

    return {walk->task.first + chunk * (int)a.chunk_places, left < CHUNK ? left : CHUNK,
            walk->task.place, (chunk ? 0 : ATTEND_FIRST) | (left <= CHUNK ? ATTEND_LAST : 0)};
}

/* A warp begins to copy positions from .. to of a piece of consecutive positions. */
static __device__ __forceinline__ void attend_copy_positions(const struct attention &a,
                                                             const struct attend_piece &piece,
                                                             int from, int to, char *slot,
                                                             uint64_t *full, int lane)
{
    if (lane < 2 && from < to)
        attend_copy(slot + lane * ATTEND_HALF + from * ATTEND_ROW,
                    (const char *)(lane ? a.cache_v : a.cache_k) +
                        (size_t)(piece.first + from) * ATTEND_ROW,
                    (uint32_t)((to - from) * ATTEND_ROW), full);
}

/* A warp begins to copy the first `to` positions of the piece that the walk has come to. */
static __device__ __forceinline__ void attend_copy_piece(const struct attention &a,
                                                         const struct attend_walk &walk,
                                                         const struct attend_piece &piece, int to,
                                                         char *slot, uint64_t *full, int lane)
{
    if (walk.task.beam < 0) {
        attend_copy_positions(a, piece, 0, to, slot, full, lane);
    } else if (lane < to) {
        const int at = (walk.chunk - 1) * CHUNK + lane;
        const int row = at + 1 < walk.task.length
                            ? __ldcg(a.rows.source_row + (size_t)walk.task.beam * a.rows.P + at)
                            : walk.task.beam;
        const size_t away = (size_t)cache_place((uint32_t)(row * a.heads + piece.place % a.heads),
                                                (uint32_t)at, a.chunk_places) *
                            ATTEND_ROW;

        attend_copy(slot + lane * ATTEND_ROW, (const char *)a.cache_k + away, ATTEND_ROW, full);
        attend_copy(slot + ATTEND_HALF + lane * ATTEND_ROW, (const char *)a.cache_v + away,
                    ATTEND_ROW, full);
    }
}

/* A slot into registers; zeros in place of values that are not there, for what lies there instead
 * may be no number. */
template <class T>
static __device__ __forceinline__ void attend_chunk_get(struct chunk_half<T> *chunk,
                                                        const char *slot, int count, int lane)
{
    const char *values = slot + ATTEND_HALF + (lane & 3) * ATTEND_ROW + (lane >> 2) * 16;

#pragma unroll
    for (int i = 0; i < 8; i++)
        chunk->key[i] = attend_get16(slot + i * 4 * ATTEND_ROW + lane * 16, true);
#pragma unroll
    for (int i = 0; i < 8; i++)
        chunk->value[i] = attend_get16(values + i * 4 * ATTEND_ROW, 4 * i + (lane & 3) < count);
}

/* A warp's own: SLOTS of each. */
struct attend_slots {
    char *at;
    struct attend_piece *pieces;
    uint64_t *full;
};

/* Fills the slots with what is older than the kernel in front: all but the newest position, which
 * that writes. A slot counts as full only when attend_newest() has been here. */
template <int SLOTS>
static __device__ __forceinline__ void
attend_begin(const struct attention &a, struct attend_walk *walk, const struct attend_shared *s,
             const struct attend_slots &own, int lane)
{
#pragma unroll 1
    for (int i = 0; i < SLOTS; i++) {
        const struct attend_piece piece = attend_next(a, walk, s, lane);

        if (lane == 0)
            own.pieces[i] = piece;
        if (piece.place >= 0)
            attend_copy_piece(a, *walk, piece,
                              piece.count - (!a.cross && piece.ends & ATTEND_LAST ? 1 : 0),
                              own.at + i * ATTEND_SLOT, own.full + i, lane);
    }
    __syncwarp();
}
template <int SLOTS>
static __device__ __forceinline__ void attend_newest(const struct attention &a,
                                                     const struct attend_slots &own, int lane)
{
#pragma unroll 1
    for (int i = 0; i < SLOTS; i++) {
        const struct attend_piece piece = own.pieces[i];

        if (piece.place < 0)
            break;
        if (lane == 0)
            ring_expect(own.full + i, (uint32_t)(2 * piece.count * ATTEND_ROW));
        if (!a.cross && piece.ends & ATTEND_LAST)
            attend_copy_positions(a, piece, piece.count - 1, piece.count, own.at + i * ATTEND_SLOT,
                                  own.full + i, lane);
    }
}

/* The warp's next piece to a slot that has been used; false when there are no more. */
static __device__ __forceinline__ bool
attend_refill(const struct attention &a, struct attend_walk *walk, const struct attend_shared *s,
              const struct attend_slots &own, int slot, int lane)
{
    const struct attend_piece piece = attend_next(a, walk, s, lane);

    if (lane == 0)
        own.pieces[slot] = piece;
    if (piece.place < 0)
        return false;
    if (lane == 0)
        ring_expect(own.full + slot, (uint32_t)(2 * piece.count * ATTEND_ROW));
    attend_copy_piece(a, *walk, piece, piece.count, own.at + slot * ATTEND_SLOT, own.full + slot,
                      lane);
    return true;
}

/* The lane's share of a task's query. */
template <class T>
static __device__ __forceinline__ uint4 attend_query(const struct attention &a,
                                                     const struct attend_piece &piece, int lane)
{
    const T *q = (const T *)a.q + (size_t)max(piece.place, 0) * HEAD;

    return __ldcg((const uint4 *)(q + query_at((const struct chunk_half<T> *)NULL, 0, lane)));
}

#endif

/* What a block needs that has so many tasks. */
static inline size_t attend_shared_bytes(int32_t tasks)
{
    return (size_t)ATTEND_WARPS * ATTEND_SLOTS *
               (ATTEND_SLOT + sizeof(struct attend_piece) + sizeof(uint64_t)) +
           (size_t)tasks * (sizeof(struct attend_task) + 2 * sizeof(uint16_t));
}

/* A grid of as many blocks as there are multiprocessors, or tasks. 80 registers leave room for
 * others beside it. */
template <class T, int WARPS, int SLOTS>
static __global__ void __launch_bounds__(WARPS * 32, 24 / WARPS)
    attention_stream(const __grid_constant__ struct attention a, int n_most)
{
#if __CUDA_ARCH__ >= 900
    extern __shared__ __align__(128) char shared[];
    __shared__ uint32_t counts[ATTEND_BINS + 2];
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    const int count = (n_most * a.heads - (int)blockIdx.x + (int)gridDim.x - 1) / (int)gridDim.x;
    struct attend_piece *pieces = (struct attend_piece *)(shared + WARPS * SLOTS * ATTEND_SLOT);
    struct attend_task *tasks = (struct attend_task *)(pieces + WARPS * SLOTS);
    uint64_t *full = (uint64_t *)(tasks + count);
    const struct attend_slots own = {shared + warp * SLOTS * ATTEND_SLOT, pieces + warp * SLOTS,
                                     full + warp * SLOTS};
    uint16_t *const order = (uint16_t *)(full + WARPS * SLOTS);
    const struct attend_shared s = {
        tasks, order, order + count, counts, counts + ATTEND_BINS, counts + ATTEND_BINS + 1};
    struct attend_walk walk = {{0, 0, 0, -1}, 0};
    struct attention_part all, part;
    struct chunk_query query;
    struct chunk_half<T> chunk;
    struct attend_piece piece;
    uint32_t turn = 0;
    int slot = 0;

    if (lane < SLOTS)
        ring_open(own.full + lane);
    attend_tasks_load(a, count, &s);
    attend_begin<SLOTS>(a, &walk, &s, own, lane);
    launch_wait();
    attend_newest<SLOTS>(a, own, lane);
    piece = own.pieces[0];
    query.part[0] = attend_query<T>(a, piece, lane);
    while (piece.place >= 0) {
        const int following = slot + 1 == SLOTS ? 0 : slot + 1;
        const struct attend_piece next = own.pieces[following];
        const uint4 coming = attend_query<T>(a, next, lane);

        ring_wait(own.full + slot, turn);
        attend_chunk_get(&chunk, own.at + slot * ATTEND_SLOT, piece.count, lane);
        chunk_attend<T>(chunk, query, piece.count, lane, &part);
        if (piece.ends & ATTEND_FIRST)
            all = part;
        else
            part_merge<T>(&all, part);
        attend_used(&all);
        if (piece.ends & ATTEND_LAST && !(lane & 2))
            part_elements(all, (T *)a.out + (size_t)piece.place * HEAD + part_place(lane));
        __syncwarp(); /* all lanes have used the slot */
        if (!attend_refill(a, &walk, &s, own, slot, lane))
            launch_next(); /* not before: its blocks would take room and wait */
        __syncwarp();
        piece = next;
        query.part[0] = coming;
        slot = following;
        turn ^= following == 0;
    }
#else
    (void)a;
    (void)n_most;
#endif
}

#endif
