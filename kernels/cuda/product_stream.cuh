/* SPDX-License-Identifier: MIT
 *
 * product_stream: products of many rows. A block keeps 128 rows in shared memory and lets a share
 * of the weights pass by: they come by bulk copies into a ring, and two neighbouring blocks with
 * other rows get them by one read of L2. The rows are the matrix instruction's first operand, and
 * both operands lie in shared memory, so that a warpgroup does nothing but multiply, and what four
 * lanes hold of a row needs not be put down and picked up again (product_stream_output.cuh). While
 * one warpgroup ends a tile, the other multiplies. Bits are those of the kernels that have the
 * operands the other way round.
 */
#ifndef PGPT_KERNELS_CUDA_PRODUCT_STREAM_CUH
#define PGPT_KERNELS_CUDA_PRODUCT_STREAM_CUH

#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/product_input.cuh"
#include "kernels/cuda/product_stream_output.cuh"
#include "kernels/cuda/warpgroup.cuh"
#include "kernels/cuda/weights_ring.cuh"

enum {
    STREAM_WORKERS = 256,
    STREAM_PART = STREAM_PIECES / FORMAT_PARTS, /* pieces of a part of the inputs */
    STREAM_SUMS = STREAM_COLUMNS / 2, /* of a thread: two rows, a quarter of the columns */
    STREAM_LAG = 2,                   /* pieces that may be under way behind one that has ended */
};

#if PGPT_CUDA_HOPPER && __CUDA_ARCH__ >= 900

/* Registers of a whole warpgroup. */
static __device__ __forceinline__ void stream_registers_give(void)
{
    asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
}
static __device__ __forceinline__ void stream_registers_take(void)
{
    asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
}

/* The warpgroups multiply in turn, so that one ends its tile meanwhile. */
static __device__ __forceinline__ void stream_turn_wait(int group)
{
    asm volatile("bar.sync %0, 256;" ::"r"(4 + group) : "memory");
}
static __device__ __forceinline__ void stream_turn_pass(int group)
{
    asm volatile("bar.arrive %0, 256;" ::"r"(5 - group) : "memory");
}

/* Loads that stay where they are, in front of a tile, to be there behind it: what is said to be
 * constant moves to where it is used. */
static __device__ __forceinline__ float2 stream_bias(const float *bias)
{
    float2 v;

    asm volatile("ld.global.v2.f32 {%0, %1}, [%2];" : "=f"(v.x), "=f"(v.y) : "l"(bias) : "memory");
    return v;
}
static __device__ __forceinline__ float stream_mask(const float *mask)
{
    float v;

    asm volatile("ld.global.f32 %0, [%1];" : "=f"(v) : "l"(mask) : "memory");
    return v;
}

/* A part of the inputs of a warpgroup's rows: a committed group of copies. A thread has the same 16
 * bytes of every eighth row, so its places are constants apart. */
static __device__ __forceinline__ void stream_rows_load(const struct product &p, int m0, int n,
                                                        int part, char *rows)
{
    constexpr int WORDS = STREAM_INPUTS / FORMAT_PARTS / 8; /* of a row */
    static_assert(WORDS == 16, "8 rows a turn of 128 threads");
    const int first = (threadIdx.x >> 7) * 64 + (threadIdx.x >> 4 & 7), r = m0 + first;
    const int word = part * WORDS + threadIdx.x % WORDS;
    const char *from = (const char *)p.x + ((size_t)r * STREAM_INPUTS + word * 8) * 2;
    char *to = rows + (word >> 3) * STREAM_ROWS * 128 + warpgroup_at(first, word & 7);

#pragma unroll
    for (int i = 0; i < 64; i += 8) /* nothing is read of rows past n */
        copy_16(to + i * 128, from + i * STREAM_INPUTS * 2, r + i < n);
    copy_commit();
}

/* The ring's place of a worker, or of the thread that fetches. */
struct stream_place_of {
    int slot;
    uint32_t turn;
};
static __device__ __forceinline__ void stream_step(struct stream_place_of *at)
{
    if (++at->slot == STREAM_SLOTS) {
        at->slot = 0;
        at->turn ^= 1;
    }
}

/* The next slot, when all have used what they read of it; used: the ring has gone round. */
static __device__ __forceinline__ void stream_claim(uint64_t *empty, struct stream_place_of at,
                                                    bool *used)
{
    if (*used)
        ring_wait(empty + at.slot, at.turn ^ 1);
    *used = *used || at.slot + 1 == STREAM_SLOTS;
}

/* One thread: all pieces of the block's tiles, in order; each of a cluster's blocks fetches its
 * share of a piece for all of them. Ends when all slots are released, so that nobody says so to a
 * block that is gone. */
static __device__ __forceinline__ void stream_fetch(const struct product &p, char *ring,
                                                    uint64_t *full, uint64_t *empty, int tiles,
                                                    int blocks)
{
    const int bytes = STREAM_SLOT / blocks, own = (int)cluster_rank() * bytes;
    struct stream_place_of at = {0, 0};
    bool used = false;

    for (int tile = blockIdx.y; tile < tiles; tile += gridDim.y) {
        const char *from =
            (const char *)p.weight.tiled +
            (size_t)(tile / (STREAM_TILED / STREAM_COLUMNS)) * STREAM_PIECES * STREAM_PIECE +
            tile % (STREAM_TILED / STREAM_COLUMNS) * STREAM_SLOT + own;

#pragma unroll 1
        for (int i = 0; i < STREAM_PIECES; i++, from += STREAM_PIECE) {
            char *to = ring + at.slot * STREAM_SLOT + own;

            stream_claim(empty, at, &used);
            ring_expect(full + at.slot, STREAM_SLOT);
            if (blocks > 1)
                ring_copy_all(to, from, bytes, full + at.slot, blocks);
            else
                ring_copy(to, from, bytes, full + at.slot);
            stream_step(&at);
        }
    }
#pragma unroll 1
    for (int i = 0; i < STREAM_SLOTS; i++) {
        stream_claim(empty, at, &used);
        stream_step(&at);
    }
}

/* A warp has used what it read of a slot, which all blocks of the cluster fill. */
static __device__ __forceinline__ void stream_release(uint64_t *empty, int blocks, int lane)
{
    if (lane < blocks)
        ring_release_at(empty, lane);
}

/* total += a part whose instructions have ended; 0 + part 0 is part 0. */
static __device__ __forceinline__ void stream_add(float (&total)[STREAM_SUMS],
                                                  float (&part)[STREAM_SUMS])
{
    warpgroup_ended<STREAM_SUMS>(part);
#pragma unroll
    for (int i = 0; i < STREAM_SUMS; i++)
        total[i] += part[i];
}

/* The part has arrived for all of the warpgroup. */
static __device__ __forceinline__ void stream_rows_wait(int part, int group)
{
    static_assert(FORMAT_PARTS == 4, "groups of copies");
    if (part == 0)
        copy_wait<3>();
    else if (part == 1)
        copy_wait<2>();
    else if (part == 2)
        copy_wait<1>();
    else
        copy_wait<0>();
    warpgroup_publish();
    warpgroup_barrier(group);
}

/* What of global memory a thread needs to end a tile. */
template <enum product_output OUTPUT> struct stream_ahead {
    float2 bias[STREAM_COLUMNS / 8];
    float mask[OUTPUT == PRODUCT_LOGITS ? STREAM_COLUMNS / 32 : 1];

    __device__ __forceinline__ void fetch(const struct product &p, const struct stream_tile &tile)
    {
#pragma unroll
        for (int j = 0; j < STREAM_COLUMNS / 8; j++)
            bias[j] = stream_bias(p.weight.bias + tile.c0 + 8 * j + 2 * tile.q);
        if constexpr (OUTPUT == PRODUCT_LOGITS)
#pragma unroll
            for (int i = 0; i < STREAM_COLUMNS / 32; i++) {
                const int c = tile.c0 + 32 * i + (threadIdx.x & 31);

                mask[i] = stream_mask(p.rules.mask + (c < p.rules.vocabulary ? c : 0));
            }
    }
};

/* Each of the two warpgroups: its 64 rows, over all tiles of the block. A part of the inputs is
 * added when the instructions of the next one are under way. */
template <class F, enum product_output OUTPUT>
static __device__ __forceinline__ void stream_work(const struct product &p, char *shared,
                                                   uint64_t *full, uint64_t *empty, int m0, int n,
                                                   int tiles, int blocks)
{
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5 & 3;
    const int group = __shfl_sync(0xffffffffu, threadIdx.x >> 7, 0);
    const uint64_t rows = warpgroup_rows(shared_address(shared) + group * 64 * 128);
    const uint64_t ring = warpgroup_rows(shared_address(shared + STREAM_RING_AT));
    struct tile_rows *info = (struct tile_rows *)(shared + STREAM_INFO_AT);
    struct stream_tile to = {info, m0, n, group * 64 + warp * 16 + (lane >> 2), 0, lane & 3};
    struct stream_place_of at = {0, 0}, done = {0, 0};
    bool first = true;

    tile_rows_load<OUTPUT, STREAM_ROWS>(p, m0, n, info); /* by group 0, which goes first */
    launch_wait();
    launch_next();
#pragma unroll 1
    for (int part = 0; part < FORMAT_PARTS; part++)
        stream_rows_load(p, m0, n, part, shared);
    if (group == 1)
        stream_turn_pass(group);
#pragma unroll 1
    for (int tile = blockIdx.y; tile < tiles; tile += gridDim.y) {
        float total[STREAM_SUMS], odd[STREAM_SUMS], even[STREAM_SUMS]; /* parts 0; 1, 3; 2 */
        struct stream_ahead<OUTPUT> end;

        to.c0 = tile * STREAM_COLUMNS;
        end.fetch(p, to);
        stream_turn_wait(group);
#pragma unroll
        for (int piece = 0; piece < STREAM_PIECES; piece++) {
            const int part = piece / STREAM_PART;
            const uint64_t weights = ring + (uint64_t)(at.slot * (STREAM_SLOT >> 4));
            float(&sums)[STREAM_SUMS] = part == 0 ? total : part == 2 ? even : odd;

            if (first && piece % STREAM_PART == 0)
                stream_rows_wait(part, group);
            ring_wait(full + at.slot, at.turn);
            warpgroup_fence();
#pragma unroll
            for (int k = 0; k < 4; k++) /* 16 inputs are 32 bytes, and addresses count by 16 */
                warpgroup_multiply_shared<F, STREAM_COLUMNS>(
                    sums, rows + piece * (STREAM_ROWS * 128 >> 4) + k * 2, weights + k * 2,
                    piece % STREAM_PART + k > 0);
            warpgroup_commit();
            if (piece == STREAM_PIECES - 2 && (group == 0 || tile + (int)gridDim.y < tiles))
                stream_turn_pass(group); /* what is left is soon said */
            if (piece >= STREAM_LAG) {
                warpgroup_wait<STREAM_LAG>();
                stream_release(empty + done.slot, blocks, lane);
                stream_step(&done);
                if ((piece - STREAM_LAG) / STREAM_PART > 0 &&
                    (piece - STREAM_LAG) % STREAM_PART == STREAM_PART - 1)
                    stream_add(total, (piece - STREAM_LAG) / STREAM_PART == 2 ? even : odd);
            }
            stream_step(&at);
        }
        warpgroup_wait<0>();
#pragma unroll
        for (int i = 0; i < STREAM_LAG; i++) {
            stream_release(empty + done.slot, blocks, lane);
            stream_step(&done);
        }
        stream_add(total, odd);
        first = false;
#pragma unroll
        for (int i = 0; i < STREAM_SUMS; i++)
            total[i] = output_value<F>(total[i], 1.0f, 1.0f,
                                       i & 1 ? end.bias[i >> 2].y : end.bias[i >> 2].x);
        if constexpr (OUTPUT == PRODUCT_LOGITS)
            stream_units(p, to, end.mask, total);
        else
            stream_qkv<F>(p, to, total);
    }
}

#endif

/* 128 rows by 64 columns a turn. Blocks: rows in x, those of a cluster side by side; columns
 * in y. */
template <class F, enum product_output OUTPUT>
static __global__ void __launch_bounds__(STREAM_THREADS, 1) product_stream(const struct product p)
{
#if PGPT_CUDA_HOPPER && __CUDA_ARCH__ >= 900
    extern __shared__ __align__(1024) char shared[];
    uint64_t *full = (uint64_t *)(shared + STREAM_BARRIERS_AT), *empty = full + STREAM_SLOTS;
    const int tiles = (p.weight.N + STREAM_COLUMNS - 1) / STREAM_COLUMNS, blocks = cluster_blocks();
    const int m0 = blockIdx.x * STREAM_ROWS, n = *p.n;

    if ((int)blockIdx.x / blocks * blocks * STREAM_ROWS >= n) { /* all of the cluster */
        launch_wait();
        launch_next();
        return;
    }
    if (threadIdx.x == 0)
        for (int i = 0; i < STREAM_SLOTS; i++) {
            ring_open_shared(full + i, 1);
            ring_open_shared(empty + i, blocks * STREAM_WORKERS / 32);
        }
    __syncthreads();
    cluster_meet(); /* their barriers are open */
    if (threadIdx.x >= STREAM_WORKERS) {
        stream_registers_give();
        if (threadIdx.x == STREAM_WORKERS)
            stream_fetch(p, shared + STREAM_RING_AT, full, empty, tiles, blocks);
    } else {
        stream_registers_take();
        stream_work<F, OUTPUT>(p, shared, full, empty, m0, n, tiles, blocks);
    }
#else
    (void)p;
#endif
}

/* Word `i` of 16 bytes of the tiled weights: (N / 128, K / 64, 128 columns of 128 bytes, whose
 * words are swizzled as warpgroup.cuh has rows). */
static __global__ void stream_tile_words(const struct cuda_weight weight, int64_t words)
{
    const int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    const int64_t piece = i / (STREAM_PIECE / 16);
    const int column = (int)(i % (STREAM_PIECE / 16) / 8), pieces = weight.K / 64;
    const int word = ((int)i & 7) ^ (column & 7);
    const int64_t n = piece / pieces * STREAM_TILED + column;
    const int k = (int)(piece % pieces) * 64 + word * 8;
    const char *block = (const char *)weight.packed + ((n / 16) * (weight.K / 32) + k / 32) * 1024 +
                        (k >> 4 & 1) * 512 + (n & 7) * 64 + ((k >> 3 & 1) * 2 + (n >> 3 & 1)) * 4;

    if (i < words)
        ((uint4 *)weight.tiled)[i] =
            make_uint4(*(const uint32_t *)block, *(const uint32_t *)(block + 16),
                       *(const uint32_t *)(block + 32), *(const uint32_t *)(block + 48));
}

#endif
