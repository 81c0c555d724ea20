/* SPDX-License-Identifier: MIT
 *
 * fused_shared: what the kernel of fused.h is given, a block's shared memory with the letters that
 * blocks of a cluster send one another, and who does what: eight warps work, one fetches weights
 * into a ring behind that memory, one fetches biases and norms, one tells the world of tokens, and
 * all four that do not work lend the others their registers. For fused.cu alone.
 */
#ifndef PGPT_KERNELS_CUDA_FUSED_SHARED_CUH
#define PGPT_KERNELS_CUDA_FUSED_SHARED_CUH

#include "kernels/cuda/attention_chunk.cuh"
#include "kernels/cuda/fused.h"
#include "kernels/cuda/fused_choose.cuh"
#include "kernels/cuda/fused_model.cuh"
#include "kernels/cuda/product_output.cuh"
#include "kernels/cuda/weights_ring.cuh"

enum {
    D = 512,
    HEADS = 8,
    ROWS = FUSED_ROWS,
    WARPS = 8, /* that work */
    WORKERS = WARPS * 32,
    THREADS = WORKERS + 128,
    UNITS = FUSED_VOCABULARY / PRODUCT_UNIT,
    X_STRIDE = D * 2 + PRODUCT_TILE_PAD,
    ROUND_TILES = 6,             /* of 16 columns, that a block multiplies at once at most */
    SUM_TILES = 2 * ROUND_TILES, /* and keeps sums of */
    PARTIAL_STRIDE = SUM_TILES * 16 + 4,
    SLOT = 16 * D * 2,        /* bytes: a piece of weights */
    SHARED_MOST = 227 * 1024, /* bytes of a block */
    SLOTS_MOST = 12,
    CONSTANTS_KEPT = 2, /* layers whose biases and norms lie in shared memory */
};

/* What a launch leaves. */
enum fused_end {
    FUSED_TOKENS,  /* of plain rows, step after step */
    FUSED_SAMPLED, /* the same of rows that may be sampled */
    FUSED_STEP,    /* one step's logits and their units, or the last layer's output */
};

struct fused_params {
    struct fused_layer layer[FUSED_LAYERS];
    struct fused_weight output;
    struct cuda_weight embedding;
    const float *positions;
    float embedding_factor;
    enum product_act activation;
    int32_t layers, steps;
    /* The device has room for the next launch beside this one, which then begins before this one
     * ends; else its rows would have to wait behind all blocks' first weights. */
    bool early;
    uint32_t nothing; /* 0, which no compiler knows */
    /* how many rows: n in FUSED_STEP, else count, since the kernel in front may have to write n */
    const int32_t *n, *active;
    int32_t count;
    struct cuda_rows rows;
    struct step_output out; /* but in FUSED_STEP */
    struct cuda_rules rules;
    struct network_cache self, cross;
    /* FUSED_STEP: the last layer's output before its norm, or what the logits leave */
    float *y;                   /* (n, D); or NULL and */
    struct product_unit *units; /* (n, units) */
    float *special;             /* (n, 2) */
    float *logits;              /* (n, V) or NULL */
};

/* What steps change of a row. */
struct fused_row {
    int32_t token, position, finished;
};

enum fused_letter {
    LETTER_HEAD,
    LETTER_QUERY,
    LETTER_O,
    LETTER_Y,
    LETTER_H,
    LETTER_UNIT,
    LETTER_LOGITS,
    LETTER_TOKEN,
    LETTERS
};

/* What a warp that does nothing else is to tell the world of a row, when it has added up the row's
 * exponentials. */
struct fused_told {
    struct fused_row row; /* behind its token */
    int32_t news;         /* there is something to tell: the row had not finished before */
    int32_t full;         /* ln p as rows have it of which all logits are kept */
    float logit;          /* the token's */
};

/* Of the row that this block chooses for, where rows may be sampled. */
template <bool DRAWN> struct fused_draw {
    alignas(8) struct draw_asked asked;
    struct draw_kept kept;
};
template <> struct fused_draw<false> {
};

/* Of a layer: this block's columns' biases, and the norms behind self-attention, cross-attention
 * and feed-forward. */
template <int CL, int FFN> struct fused_constants {
    float qkv[3][D / CL], out[D / CL], cross_q[D / CL], cross_out[D / CL], fc2[D / CL];
    float fc1[FFN / CL];
    float gamma[3][D], beta[3][D];
};

/*
 * A block's shared memory, but for the ring's slots behind it. What the cluster sends about is o,
 * y, h, q, key, value, unit and special, in letters with a mailbox each: head (q, key, value),
 * query (q), o, y, h, unit (unit, special). Every block receives every letter, also one that it has
 * no use for, and letters have the rows of the cluster alone. In a layer they come in the order
 * head o y query o y h y; behind the last layer comes unit. All but head and query, which stay
 * within the blocks of a head, go from every block to every block (o from those that attend to
 * rows). Where rows may be sampled, logits go in place of unit, each row's to the one block that
 * chooses its token, and token follows, from these to every block.
 *
 * Nothing is overwritten that somebody still reads, and no letter arrives before the one before it
 * is complete, though no fence or barrier says so to a tool that looks at stores alone (racecheck
 * reports the second letter as a write after a write):
 * - A block sends behind a product's barrier, and all its workers have waited for the letters
 *   before, and read them, when they come there. So who has y from every block may write to all
 *   that was received earlier. Between two letters of head, query, o, h and unit lies a y; so o and
 *   h share their memory.
 * - y itself is read by the norm, and a product's barrier stands before the block's next columns of
 *   q or h (or of q, k and v, be there logits between or not). The next y needs, from every block,
 *   h; or o from those that attend, and each of them needs the columns of q of all blocks of its
 *   head, thus of every block: each belongs to a head whose rows somebody attends to.
 * - unit or logits, and told, are read by the warp that tells the world, for which all wait
 *   (told_read) in the last layer of the next step before they send an attention's output there;
 *   who sends them again has y of that layer.
 * - Who chooses a row works in y and partial: the block's own share of that row has come with the
 *   letter, and a barrier of the workers says so of the other rows' sums; y was read before; the
 *   next y is not sent before this block has sent its columns of q, nor does it multiply before the
 *   row is chosen.
 * - Bytes that come before the receiver has announced their letter count below zero meanwhile; the
 *   phase cannot end before the announcement, which is its only arrival.
 * - partial is read in front of what is sent of it, and the letter comes with the block's own share
 *   before the next product writes there.
 *
 * MOST: rows that there is memory for. A product reads eight all the same: the others are whatever
 * lies behind, and nobody puts their sums down.
 */
template <class T, int CL, int FORWARD, int MOST, bool DRAWN> struct fused_shared {
    typedef T element;
    enum {
        BLOCKS = CL,                               /* of the cluster */
        ROOM = MOST,                               /* for rows */
        SUMS = MOST == 1 ? 1 : (MOST + 1) / 2 * 2, /* of rows: a lane has those of two */
        FFN = FORWARD,
        COLUMNS = D / CL,  /* of this block, of a product of D columns */
        HIDDEN = FFN / CL, /* of the feed-forward's first */
        TILES = COLUMNS / 16,
        WIDE = FFN > D, /* the feed-forward */
        H_STRIDE = FFN * 2 + PRODUCT_TILE_PAD,
    };
    alignas(16) char x[ROOM * X_STRIDE]; /* (ROOM, D) elements: the next product's input */
    union {
        alignas(16) char o[ROOM * X_STRIDE]; /* (ROOM, D) elements: attention's output */
        alignas(16) char h[ROOM * H_STRIDE]; /* (ROOM, FFN) elements */
    };
    alignas(16) float y[ROOM][D];           /* residual stream, before the norm */
    alignas(16) float x_own[ROOM][COLUMNS]; /* and after it, this block's columns */
    alignas(16) float partial[FORMAT_PARTS][SUMS][PARTIAL_STRIDE];
    alignas(16) T q[ROOM][HEAD];
    alignas(16) T key[ROOM][HEAD];
    alignas(16) T value[ROOM][HEAD];
    alignas(16) struct attention_kept parts[WARPS];
    union { /* wide ones have no FUSED_TOKENS */
        alignas(16) float4 unit[FORWARD > D ? 1 : ROOM][UNITS];
        alignas(16) float logits[DRAWN ? UNITS * PRODUCT_UNIT : 4];
    };
    struct logsum sums[DRAWN ? UNITS : 1]; /* of the units of logits */
    struct fused_told told;
    float special[ROOM][2];
    /* what this block adds to its units of logits: -inf past the vocabulary; what the rules add */
    alignas(16) float unit_bias[UNITS / CL][PRODUCT_UNIT];
    alignas(16) float unit_rules[UNITS / CL][PRODUCT_UNIT];
    struct cluster_mailbox box[LETTERS];
    uint64_t told_full, told_read;
    alignas(16) struct fused_constants<CL, FORWARD> layer[CONSTANTS_KEPT]; /* in turn */
    uint64_t full[SLOTS_MOST], empty[SLOTS_MOST], layer_full[CONSTANTS_KEPT],
        layer_empty[CONSTANTS_KEPT];
    struct fused_row state[2][ROOM]; /* by steps, in turn */
    int32_t row[ROOM];               /* of the caches */
    int32_t min_new[ROOM], max_new[ROOM], source_len[ROOM], cross[ROOM], beam[ROOM];
    int32_t token[ROOM]; /* that sampled rows' choices gave */
    struct fused_draw<DRAWN> draw;
};

template <class S> struct fused_ring {
    static constexpr int BEHIND = (sizeof(S) + 127) / 128 * 128;
    static constexpr int FIT = (SHARED_MOST - BEHIND) / SLOT;
    static constexpr int SLOTS = FIT < SLOTS_MOST ? FIT : SLOTS_MOST;
    static constexpr int BYTES = BEHIND + SLOTS * SLOT; /* of shared memory in all */

    static_assert(SLOTS >= ROUND_TILES, "what is multiplied at once lies there together");
    static __device__ __forceinline__ char *slot(S *s, int i)
    {
        return (char *)s + BEHIND + i * SLOT;
    }
};

/* Where in the ring somebody is. */
struct fused_turn {
    int slot;
    uint32_t turn; /* how often it went round, modulo 2 */
};

/* ROUNDS: how often that may lead past the last slot. */
template <class S, int ROUNDS = 1>
static __device__ __forceinline__ struct fused_turn turn_ahead(struct fused_turn at, int count)
{
    at.slot += count;
#pragma unroll
    for (int i = 0; i < ROUNDS; i++)
        if (at.slot >= fused_ring<S>::SLOTS) {
            at.slot -= fused_ring<S>::SLOTS;
            at.turn ^= 1;
        }
    return at;
}

/* One block's place in the cluster, and a warp's in it. */
struct fused_place {
    int rank, head, half;
    int thread, warp, lane;    /* read once: the register that says so is slow to answer */
    int part, first;           /* products: the warp's part of the inputs, its first tile */
    int row0, rows;            /* of this cluster: its first among n, and how many */
    bool alone;                /* one, as the compiler knows */
    int row, share, shares;    /* attention: this warp's row (-1: none), its share of chunks */
    int self_head, cross_head; /* its head of that row in the caches, of all heads of all rows */
    int source_len;            /* of the row */
    int self_longest, cross_longest; /* at least the most keys that a row has */
    int now;                         /* the step's place in s->state */
    struct fused_turn ring;          /* the next product's weights */
    uint32_t nothing;                /* 0: product_take() */
};

/* How many of each letter have come, modulo 2: a bit each. */
struct fused_letters {
    uint32_t phases;
};

#if __CUDA_ARCH__ >= 900 && PGPT_CUDA_HOPPER

/* A barrier of those who work. */
static __device__ __forceinline__ void workers_sync(void)
{
    asm volatile("bar.sync 1, %0;" ::"n"((int)WORKERS) : "memory");
}

/* How long a letter is to a cluster of `rows`. */
template <class S>
static __device__ __forceinline__ uint32_t letter_bytes(enum fused_letter letter,
                                                        const struct fused_params &p, int rows)
{
    enum { ELEMENT = sizeof(typename S::element) };
    const int forced = (p.rules.forced_eos >= 0) + (p.rules.forced_bos >= 0);
    const int units = product_units(p.rules.vocabulary);

    return letter == LETTER_HEAD     ? rows * (HEAD * 3 * ELEMENT)
           : letter == LETTER_QUERY  ? rows * (HEAD * ELEMENT)
           : letter == LETTER_O      ? rows * (D * ELEMENT)
           : letter == LETTER_Y      ? rows * (D * 4)
           : letter == LETTER_H      ? rows * (S::FFN * ELEMENT)
           : letter == LETTER_UNIT   ? rows * (units * (int)sizeof(float4) + forced * 4)
           : letter == LETTER_LOGITS ? units * PRODUCT_UNIT * 4 /* of one row */
                                     : rows * 4;
}

/* The next of its kind. */
template <class S>
static __device__ __forceinline__ void
letter_receive(S *s, const struct fused_params &p, enum fused_letter letter,
               const struct fused_place &at, struct fused_letters *l)
{
    uint32_t phase = l->phases >> letter & 1;

    mailbox_receive(&s->box[letter], letter_bytes<S>(letter, p, at.rows), &phase, at.thread == 0);
    l->phases ^= 1u << letter;
}

/* Whole warpgroups: registers that the workers take are those that the others give. */
static __device__ __forceinline__ void registers_give(void)
{
    asm volatile("setmaxnreg.dec.sync.aligned.u32 24;");
}
static __device__ __forceinline__ void registers_take(void)
{
    asm volatile("setmaxnreg.inc.sync.aligned.u32 240;");
}

/* The same number, of which the compiler shall not know that: what is computed from it is computed
 * here, not kept in registers from one phase of a step to the next. */
static __device__ __forceinline__ int here(int value)
{
    asm volatile("" : "+r"(value));
    return value;
}

template <class T> static __device__ __forceinline__ uint2 elements4(const float4 &v)
{
    alignas(8) T e[4];

    format_set2(e, v.x, v.y);
    format_set2(e + 2, v.z, v.w);
    return *(const uint2 *)e;
}

#endif

#endif
