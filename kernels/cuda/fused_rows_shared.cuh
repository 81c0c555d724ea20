/* SPDX-License-Identifier: MIT
 *
 * fused_rows_shared: what the kernel of fused_rows.h is given, and a block's shared memory with the
 * letters that blocks of a cluster send one another. For fused_rows_kernel.cuh alone.
 */
#ifndef PGPT_KERNELS_CUDA_FUSED_ROWS_SHARED_CUH
#define PGPT_KERNELS_CUDA_FUSED_ROWS_SHARED_CUH

#include "kernels/cuda/attention_chunk.cuh"
#include "kernels/cuda/fused_model.cuh"
#include "kernels/cuda/fused_rows.h"
#include "kernels/cuda/fused_rows_choose.cuh"
#include "kernels/cuda/weights_ring.cuh"

enum {
    D = 512,
    HEADS = 8,
    FFN = 256,
    BLOCKS = 8,            /* of a cluster: one a head */
    COLUMNS = D / BLOCKS,  /* that a block has of a product of D columns */
    HIDDEN = FFN / BLOCKS, /* and of the feed-forward's first */
    TILES = COLUMNS / 16,
    WARPS = 16, /* four warpgroups, one a part of the inputs */
    THREADS = WARPS * 32,
    UNITS = 128,              /* most units of logits: vocabularies up to 4,096 */
    SLOT = 16 * D * 2,        /* bytes: a piece of weights */
    HALF = SLOT / 2,          /* of it, which is waited for and fetched on its own */
    SHARED_MOST = 227 * 1024, /* bytes of a block */
    SLOTS_MOST = 10,
    ROUNDS_MOST = UNITS * PRODUCT_UNIT / COLUMNS / BLOCKS, /* of logits, 64 columns each */
    PLAN_MOST = FUSED_ROWS_LAYERS * 28 + ROUNDS_MOST * 4,  /* pieces: plan_make() */
    FULLS = 64,                                            /* struct fused_rows_piece */
    PARTIAL_STRIDE = COLUMNS + 4,
    /* Clusters of many rows begin so many cycles apart, for then they do not all attend, and draw
     * on the device's memory, at once; a launch of few steps would lose by it. */
    APART = 1800,
    APART_STEPS = 4,
    FINISHED = -1, /* in place of a row's position */
};

struct fused_rows_params {
    struct fused_layer layer[FUSED_ROWS_LAYERS];
    struct fused_weight output;
    struct cuda_weight embedding;
    const float *positions;
    float embedding_factor;
    enum product_act activation;
    int32_t layers, steps, n, rows_each;
    int32_t apart; /* cycles between the beginnings of two clusters */
    const int32_t *active;
    struct cuda_rows rows;
    struct step_output out;
    struct cuda_rules rules;
    struct network_cache self, cross;
};

/* Where rows may be sampled. */
struct fused_rows_sampled_params : fused_rows_params {
    float *logits; /* (n, units, PRODUCT_UNIT) of sampled rows: logits_put() */
};
template <bool SAMPLED>
using fused_rows_given =
    typename std::conditional<SAMPLED, fused_rows_sampled_params, fused_rows_params>::type;

/* Biases of this block's columns of a layer. */
struct fused_rows_biases {
    float qkv[3 * COLUMNS], out[COLUMNS], cross_q[COLUMNS], cross_out[COLUMNS], fc2[COLUMNS];
    float fc1[HIDDEN];
};

/* What there is more of where rows may be sampled. */
template <int NT> struct fused_rows_draws {
    uint64_t full; /* logits of all warpgroups of all blocks are there */
    struct rows_asked asked[NT];
    struct draw_kept kept[NT];
    bool sampled[8 * NT]; /* rows of the cluster */
};
struct fused_rows_none {
};

/*
 * A block's shared memory, but for the ring's slots behind it. Row i of the cluster belongs to
 * block i % 8, as its row i / 8: that block holds its residual stream, norms it, and chooses its
 * tokens, in warp i / 8 (where rows may be sampled, in the CHOOSERS warps from CHOOSERS times that
 * on). Every block has a copy of all rows' inputs of the next product.
 *
 * Letters (cluster.cuh), each of one size, in the order of a step:
 *   x      all rows' inputs, each row from its owner to all blocks
 *   o      attention's output, each head from its block to all; h, the hidden values, likewise.
 *          They share memory
 *   y      a product's columns with bias, from all blocks to the row's owner
 *   units  summaries of logits (and special ones), from all blocks to the row's owner. A sampled
 *          row's logits go beside them, through global memory: fused_rows_sampled.cuh
 *   state  the rows' positions, from their owners to all blocks
 *
 * Nothing is overwritten that somebody still reads, and no letter arrives before the one before it
 * is complete: a block sends y (units) behind what it multiplied, and an owner sends x when it has
 * y (units) of its rows from all blocks. So who has x from all owners may write to whatever was
 * read before: o, h, y, units. x itself is written by owners that have y (units) from all blocks,
 * which have all read the x before. Within a block `partial` is read in front of what is sent, so
 * the next letter x (o, h) comes behind all reading; a warpgroup that has its part of `partial` to
 * itself (queries, keys, values, logits) needs a barrier of its own between two rounds, and the
 * block one in front of the next product of one round: attention's, or the letter x.
 */
template <class T, int NT, bool MAY_SAMPLE> struct fused_rows_shared {
    static constexpr int ROWS = 8 * NT;
    static constexpr bool SAMPLED = MAY_SAMPLE;
    static constexpr int CHOOSERS = NT <= 2 ? 8 : WARPS / NT; /* warps that draw for an own row */

    alignas(1024) char x[ROWS * D * 2]; /* (D / 64, ROWS, 128 bytes), as warpgroup.cuh wants it */
    alignas(1024) char o[ROWS * D * 2]; /* the same; h: (FFN / 64, ROWS, 128 bytes) */
    alignas(16) float y[NT][D];         /* of own rows */
    /* of own rows: the residual stream, (D) float; between a step's last norm and the next
     * embedding, whose residual stream nobody wants, the units of logits, (UNITS) float4 */
    alignas(16) char kept[NT][D * 4];
    /* of a product's parts of the inputs, or of a warpgroup's columns of it */
    alignas(16) float partial[FORMAT_PARTS][ROWS][PARTIAL_STRIDE];
    alignas(16) T q[ROWS][HEAD];
    alignas(16) struct fused_rows_biases layer[FUSED_ROWS_LAYERS];
    /* what this block adds to its logits: -inf past the vocabulary; what the rules add */
    alignas(8) float unit_bias[UNITS / BLOCKS][PRODUCT_UNIT],
        unit_rules[UNITS / BLOCKS][PRODUCT_UNIT];
    float special[NT][2];
    struct cluster_mailbox x_box, o_box, h_box, y_box, unit_box, state_box;
    uint64_t full[FULLS][2];
    uint32_t pieces, all;        /* of weights: a step's, and the launch's */
    const char *plan[PLAN_MOST]; /* as a step multiplies them */
    int32_t row[ROWS];           /* -1: none */
    int32_t state[ROWS];         /* position, or FINISHED */
    int32_t min_new[ROWS], max_new[ROWS], source_len[ROWS], cross[ROWS];
    int32_t token[NT]; /* of own rows */
    typename std::conditional<SAMPLED, struct fused_rows_draws<NT>, struct fused_rows_none>::type
        draw;
};

template <class Shared> struct fused_rows_ring {
    static constexpr int BEHIND = (sizeof(Shared) + 127) / 128 * 128;
    static constexpr int FIT = (SHARED_MOST - BEHIND) / SLOT;
    static constexpr int SLOTS = FIT < SLOTS_MOST ? FIT : SLOTS_MOST;
    static constexpr int BYTES = BEHIND + SLOTS * SLOT; /* of shared memory in all */

    static_assert(SLOTS >= TILES, "64 columns lie there together");
    static __device__ __forceinline__ char *slot(Shared *s, int i)
    {
        return (char *)s + BEHIND + i * SLOT;
    }
};

/* A piece of weights: in a step's plan, and among all of the launch. It lies in slot count % SLOTS,
 * and its halves arrive at full[count % FULLS]: the piece that came there before is so old that
 * everybody has waited for it, though warpgroups may be some rounds of logits apart. */
struct fused_rows_piece {
    uint32_t piece, count;
};

/* One block's place in the cluster, and one warp's in it. */
struct fused_rows_place {
    int rank, warp, lane;
    int rows, own; /* rows of the cluster, and how many of them are this block's */
};
/* Which thread of the block, and of its warpgroup, this is. */
static __device__ __forceinline__ uint32_t place_thread(const struct fused_rows_place &place)
{
    return (uint32_t)(place.warp * 32 + place.lane);
}
static __device__ __forceinline__ uint32_t place_in_part(const struct fused_rows_place &place)
{
    return place_thread(place) & 127;
}
/* A warp's warpgroup, or part of the inputs; its 16 columns of 64. */
static __device__ __forceinline__ int place_part(const struct fused_rows_place &place)
{
    return place.warp >> 2;
}
static __device__ __forceinline__ int place_tile(const struct fused_rows_place &place)
{
    return place.warp & 3;
}

#if __CUDA_ARCH__ >= 900 && PGPT_CUDA_HOPPER

/* A cluster waits until it is its turn to begin. */
static __device__ __forceinline__ void begin_apart(int cluster, int cycles)
{
    const long long until = clock64() + (long long)cluster * cycles;

    while (clock64() < until)
        ;
}

/* The same number, of which the compiler shall not know that: what is computed from it is computed
 * here, not kept in registers from one phase of a step to the next. */
static __device__ __forceinline__ int here(int value)
{
    asm volatile("" : "+r"(value));
    return value;
}
/* The same shared memory, of which the assembler shall not know where it lies: it would compute
 * that anew wherever it is used. */
static __device__ __forceinline__ char *shared_here(char *shared)
{
    return (char *)__cvta_shared_to_generic(__shfl_sync(0xffffffffu, shared_address(shared), 0));
}
/* The same address, from which others are computed as they stand in the source: the compiler would
 * rather keep its summands in registers. */
static __device__ __forceinline__ const char *base_here(const void *base)
{
    asm volatile("" : "+l"(base));
    return (const char *)base;
}

#endif

#endif
