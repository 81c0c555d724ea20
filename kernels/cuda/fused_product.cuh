/* SPDX-License-Identifier: MIT
 *
 * fused_product: a block's products in the kernel of fused.h: weights on their way through the
 * ring, the multiplication, and what is sent of the sums. For fused.cu alone.
 */
#ifndef PGPT_KERNELS_CUDA_FUSED_PRODUCT_CUH
#define PGPT_KERNELS_CUDA_FUSED_PRODUCT_CUH

#include "kernels/cuda/fused_shared.cuh"

#if __CUDA_ARCH__ >= 900 && PGPT_CUDA_HOPPER

/* How a piece of weights of K inputs is shared: a warp has a tile of 16 columns and a part of the
 * inputs, a piece is a tile of D inputs, two of fewer, a part of one of more. */
template <int K> struct fused_piece {
    enum {
        ROUNDS = K > D ? 2 : 1, /* of the ring that what is multiplied at once may reach over */
        BLK = K / 32 / FORMAT_PARTS, /* blocks of a part */
        USERS = K == D  ? 4
                : K < D ? 8
                        : 1,
    };
    static_assert(K == D || K * 2 == D || K == D * 4, "pieces are cut otherwise");

    /* Which piece, of those multiplied at once, has the warp's j-th tile, and where in it. */
    static __device__ __forceinline__ int index(const struct fused_place &at, int j)
    {
        return K == D ? at.first + 2 * j : K < D ? j : at.first * FORMAT_PARTS + at.part;
    }
    static __device__ __forceinline__ int offset(const struct fused_place &at)
    {
        return K == D  ? at.part * (BLK * 1024)
               : K < D ? (at.first * FORMAT_PARTS + at.part) * (BLK * 1024)
                       : 0;
    }
    static __device__ __forceinline__ int count(int tiles)
    {
        return tiles * K / D;
    }
};

enum { LAYER_GROUPS = 8 };

/* A layer's weights that this block multiplies, in that order: send(from, pieces) for the groups
 * from `first` to `last` of its eight, a product's columns each: six of S::TILES pieces, then fc1,
 * fc2. */
template <class S, class Send>
static __device__ __forceinline__ void layer_weights(const struct fused_layer &layer, int rank,
                                                     int first, int last, Send send)
{
    enum { TILES = S::TILES, GROUPS = TILES * S::FFN * 32 / SLOT };

#pragma unroll 1
    for (int which = first; which < min(last, 3); which++)
        send(layer.qkv.packed + (size_t)(which * (D / 16) + rank * TILES) * SLOT, TILES);
    if (first <= 3 && last > 3)
        send(layer.out.packed + (size_t)rank * TILES * SLOT, TILES);
    if (first <= 4 && last > 4)
        send(layer.cross_q.packed + (size_t)rank * TILES * SLOT, TILES);
    if (last < LAYER_GROUPS)
        return;
    send(layer.cross_out.packed + (size_t)rank * TILES * SLOT, TILES);
    send(layer.fc1.packed + (size_t)rank * (S::HIDDEN / 16) * SLOT, S::HIDDEN / 16);
    send(layer.fc2.packed + (size_t)rank * GROUPS * SLOT, GROUPS);
}

/* How many of a launch's first groups fill the ring, or nearly so. */
template <class S> static constexpr __device__ int groups_begun(void)
{
    constexpr int FIT = fused_ring<S>::SLOTS / S::TILES,
                  MOST = 5; /* behind them weights_send() can go on */

    return FIT < MOST ? FIT : MOST;
}

/* One thread: these, for which nothing has to be known of rows. */
template <class S>
static __device__ __forceinline__ void weights_begin(S *s, const struct fused_params &p, int rank)
{
    int slot = 0;

    layer_weights<S>(p.layer[0], rank, 0, groups_begun<S>(), [&](const char *from, int count) {
#pragma unroll 1
        for (int i = 0; i < count; i++, slot++)
            ring_fetch(fused_ring<S>::slot(s, slot), {from + (size_t)i * SLOT, SLOT},
                       &s->full[slot]);
    });
}

/* The same thread: all the weights that this block multiplies in a launch, but those. */
template <class S, enum fused_end END>
static __device__ __forceinline__ void weights_send(S *s, const struct fused_params &p, int rank)
{
    const int begun = p.early ? groups_begun<S>() : 0;
    struct fused_turn next = turn_ahead<S>({0, 1}, begun * S::TILES);

    auto send = [&](const char *from, int count) {
#pragma unroll 1
        for (int i = 0; i < count; i++) {
            const struct ring_piece piece = {from + (size_t)i * SLOT, SLOT};

            ring_wait(&s->empty[next.slot], next.turn);
            ring_fetch(fused_ring<S>::slot(s, next.slot), piece, &s->full[next.slot]);
            next = turn_ahead<S>(next, 1);
        }
    };

#pragma unroll 1
    for (int step = 0; step < (END == FUSED_STEP ? 1 : p.steps); step++) {
#pragma unroll 1
        for (int l = 0; l < p.layers; l++)
            layer_weights<S>(p.layer[l], rank, step | l ? 0 : begun, LAYER_GROUPS, send);
        if (END == FUSED_STEP && p.y)
            return;
#pragma unroll 1
        for (int unit = rank; unit < product_units(p.rules.vocabulary); unit += S::BLOCKS)
            send(p.output.packed + (size_t)unit * 2 * SLOT, 2);
    }
}

/* One warp: a layer's biases and norms, the i-th of a launch. */
template <class S>
static __device__ __forceinline__ void constants_fetch(S *s, const struct fused_params &p, int i,
                                                       int rank, int lane)
{
    constexpr int COPIES = 14;
    const struct fused_layer &layer = p.layer[i % p.layers];
    auto *to = &s->layer[i & 1];
    uint64_t *full = &s->layer_full[i & 1];

    auto copy = [&](int which, float *at, const float *from, int floats) {
        if (lane == which)
            ring_copy(at, from, floats * 4, full);
    };

    if (lane == COPIES)
        ring_expect(full, sizeof *to);
    __syncwarp();
#pragma unroll
    for (int which = 0; which < 3; which++)
        copy(which, to->qkv[which], layer.qkv.bias + which * D + rank * S::COLUMNS, S::COLUMNS);
    copy(3, to->out, layer.out.bias + rank * S::COLUMNS, S::COLUMNS);
    copy(4, to->cross_q, layer.cross_q.bias + rank * S::COLUMNS, S::COLUMNS);
    copy(5, to->cross_out, layer.cross_out.bias + rank * S::COLUMNS, S::COLUMNS);
    copy(6, to->fc1, layer.fc1.bias + rank * S::HIDDEN, S::HIDDEN);
    copy(7, to->fc2, layer.fc2.bias + rank * S::COLUMNS, S::COLUMNS);
    copy(8, to->gamma[0], layer.self_norm.gamma, D);
    copy(9, to->beta[0], layer.self_norm.beta, D);
    copy(10, to->gamma[1], layer.cross_norm.gamma, D);
    copy(11, to->beta[1], layer.cross_norm.beta, D);
    copy(12, to->gamma[2], layer.norm.gamma, D);
    copy(13, to->beta[2], layer.norm.beta, D);
}

/* How many layers' constants a launch takes: of two layers each once. */
template <enum fused_end END>
static __device__ __forceinline__ int constants_count(const struct fused_params &p)
{
    return p.layers == 2 || END == FUSED_STEP ? p.layers : p.layers * p.steps;
}

/* Those of them that may come before a layer is done with. */
template <enum fused_end END>
static __device__ __forceinline__ int constants_first(const struct fused_params &p)
{
    return min(constants_count<END>(p), (int)CONSTANTS_KEPT);
}

/* One warp: all of them, but for the first if those have begun; each when the last but one is
 * done with. */
template <class S, enum fused_end END>
static __device__ __forceinline__ void constants_send(S *s, const struct fused_params &p, int rank,
                                                      int lane)
{
#pragma unroll 1
    for (int i = p.early ? CONSTANTS_KEPT : 0; i < constants_count<END>(p); i++) {
        if (i >= CONSTANTS_KEPT)
            ring_wait(&s->layer_empty[i & 1], (i >> 1 & 1) ^ 1);
        constants_fetch(s, p, i, rank, lane);
    }
}

/* A block's first weights and constants, for which nothing has to be known of rows. Not inlined:
 * what it works out would be kept in registers for what comes behind. */
template <class S, enum fused_end END>
static __device__ __noinline__ void ring_begin(const struct fused_params &p)
{
    extern __shared__ __align__(128) char shared[];
    const int rank = (int)cluster_rank();

    if (threadIdx.x == WORKERS)
        weights_begin((S *)shared, p, rank);
    if (threadIdx.x / 32 == WARPS + 1)
#pragma unroll 1
        for (int i = 0; i < constants_first<END>(p); i++)
            constants_fetch((S *)shared, p, i, rank, (int)threadIdx.x & 31);
}

/* One thread of a block that leaves at once: what ring_begin() asked for has come. */
template <class S, enum fused_end END>
static __device__ __noinline__ void ring_await(const struct fused_params &p)
{
    extern __shared__ __align__(128) char shared[];
    S *s = (S *)shared;

#pragma unroll 1
    for (int i = 0; i < groups_begun<S>() * S::TILES; i++)
        ring_wait(&s->full[i], 0);
#pragma unroll 1
    for (int i = 0; i < constants_first<END>(p); i++)
        ring_wait(&s->layer_full[i], 0);
}

/* Lane j says of the warp's j-th piece, of a round of `tiles`, that it may be fetched over. */
template <int K, int J, class S>
static __device__ __forceinline__ void pieces_release(S *s, int tiles, const struct fused_place &at,
                                                      uint32_t nothing)
{
    typedef fused_piece<K> piece;

    if (at.lane < J && at.first + 2 * at.lane < tiles) {
        const int index = piece::index(at, at.lane);
        const bool seen = K > D && index + fused_ring<S>::SLOTS < piece::count(tiles);

        ring_release(&s->empty[turn_ahead<S, piece::ROUNDS>(at.ring, index).slot],
                     WARPS / piece::USERS - (seen ? 1 : 0) + nothing);
    }
}

/* 16 bytes of a slot, OFFSET bytes behind an address: said so that the offset is the instruction's
 * own, where the compiler would keep or add up an address for each. */
template <int OFFSET> static __device__ __forceinline__ void slot_get16(uint4 *to, uint32_t from)
{
    asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4 + %5];"
                 : "=r"(to->x), "=r"(to->y), "=r"(to->z), "=r"(to->w)
                 : "r"(from), "n"(OFFSET)
                 : "memory");
}

/* A lane's weights of a part from block B on. */
template <int B, int BLK>
static __device__ __forceinline__ void piece_get(struct format_weights (&w)[BLK], uint32_t from)
{
    slot_get16<B * 1024>(&w[B].half[0], from);
    slot_get16<B * 1024 + 512>(&w[B].half[1], from);
    if constexpr (B + 1 < BLK)
        piece_get<B + 1>(w, from);
}

/* Weights to registers as soon as there is time: this warp's tiles of a round of `tiles`. Returns
 * nothing, 0, but only when they are there: for pieces_release(), since what is fetched next has
 * been seen to overtake loads. A number out of each of them is masked by one that is zero, though
 * the compiler cannot know. */
template <class F, int K, int J, class S>
static __device__ __forceinline__ uint32_t
product_load(S *s, struct format_weights (&w)[J][fused_piece<K>::BLK], int tiles,
             const struct fused_place &at)
{
    typedef fused_piece<K> piece;
    uint32_t any = 0;

#pragma unroll
    for (int j = 0; j < J; j++) {
        const struct fused_turn from = turn_ahead<S, piece::ROUNDS>(at.ring, piece::index(at, j));
        const char *slot = fused_ring<S>::slot(s, from.slot) + piece::offset(at) + at.lane * 16;

        if (tiles < 2 * J && at.first + 2 * j >= tiles) { /* whose sums nobody puts down */
            if (S::ROOM > 1 || S::WIDE) /* or old ones would be kept: registers are too few */
                memset(w[j], 0, sizeof w[j]);
            continue;
        }
        if constexpr (K > D)
            if (piece::index(at, j) >= fused_ring<S>::SLOTS) {
                /* the slot has another warp's piece first: it is not refilled unseen */
                ring_wait(&s->full[from.slot], from.turn ^ 1);
                __syncwarp();
                if (at.lane == 0)
                    ring_release(&s->empty[from.slot], 1);
            }
        ring_wait(&s->full[from.slot], from.turn);
        piece_get<0>(w[j], shared_address(slot));
#pragma unroll
        for (int b = 0; b < piece::BLK; b++)
            any |= w[j][b].half[0].x | w[j][b].half[1].x;
    }
    return any & at.nothing;
}

/* The same; what they were read from may be fetched over at once (of long products, which have more
 * pieces than slots, when they have been multiplied). */
template <class F, int K, int J, class S>
static __device__ __forceinline__ void
product_take(S *s, struct format_weights (&w)[J][fused_piece<K>::BLK], int tiles,
             const struct fused_place &at)
{
    const uint32_t nothing = product_load<F, K>(s, w, tiles, at);

    if (K <= D)
        pieces_release<K, J>(s, tiles, at, nothing);
}

/* A tile's sums of the warp's part, of the columns from `column` on. */
template <class S>
static __device__ __forceinline__ void sums_keep(S *s, const float *sums, int column,
                                                 const struct fused_place &at)
{
    float *to = &s->partial[at.part][0][column];

    if (S::ROOM > 1) {
        if ((at.lane & 3) * 2 < S::SUMS)
            sums_put(to, (int)PARTIAL_STRIDE, sums, at.lane);
    } else if ((at.lane & 3) == 0) {
        to[at.lane >> 2] = sums[0];
        to[(at.lane >> 2) + 8] = sums[2];
    }
}

/* When the rows are here: this warp's part of its tiles into the block's sums from tile `to` on. */
template <class F, int K, int J, class S>
static __device__ __forceinline__ void
product_run(S *s, const struct format_weights (&w)[J][fused_piece<K>::BLK], const char *rows,
            int stride, int to, int tiles, struct fused_place *at)
{
    typedef fused_piece<K> piece;
    float acc[J][4] = {};

#pragma unroll
    for (int b = 0; b < piece::BLK; b++) {
        /* of a row that is alone all eight are the same, and but one's sums are put down */
        typename F::rows x =
            rows_get<F>(rows, S::ROOM == 1 ? 0 : stride, at->part * piece::BLK + b, at->lane);

#pragma unroll
        for (int j = 0; j < J; j++)
            block_multiply<F>(acc[j], w[j][b], x, NULL, at->lane);
    }
#pragma unroll
    for (int j = 0; j < J; j++)
        if (tiles == 2 * J || at->first + 2 * j < tiles)
            sums_keep(s, acc[j], (to + at->first + 2 * j) * 16, *at);
    if (K > D) { /* behind the stores, which have seen the multiplication's end */
        __syncwarp();
        pieces_release<K, J>(s, tiles, *at, 0);
    }
    at->ring = turn_ahead<S, piece::ROUNDS>(at->ring, piece::count(tiles));
}

/* Rounds of `EACH` tiles, of which the first has been taken. */
template <class F, int K, int EACH, int J, class S>
static __device__ __forceinline__ void
product_rounds(S *s, struct format_weights (&w)[J][fused_piece<K>::BLK], const char *rows,
               int stride, int tiles, struct fused_place *at)
{
    product_run<F, K>(s, w, rows, stride, 0, min(tiles, (int)EACH), at);
#pragma unroll 1
    for (int done = EACH; done < tiles; done += EACH) {
        const int count = min(tiles - done, (int)EACH);

        /* who waits for a slot's next piece must not take the one before, if that has yet to come,
         * for it: pieces may come out of turn */
        workers_sync();
        product_take<F, K>(s, w, count, *at);
        product_run<F, K>(s, w, rows, stride, done, count, at);
    }
}

/* Four columns of a row, parts added up, with bias. */
template <class S>
static __device__ __forceinline__ float4 partial_get4(const S *s, int row, int column,
                                                      const float *bias)
{
    float4 a = *(const float4 *)&s->partial[0][row][column],
           b = *(const float4 *)&s->partial[1][row][column];
    float4 c = *(const float4 *)&s->partial[2][row][column],
           d = *(const float4 *)&s->partial[3][row][column];
    float4 e = *(const float4 *)bias;

    return make_float4((((a.x + b.x) + c.x) + d.x) + e.x, (((a.y + b.y) + c.y) + d.y) + e.y,
                       (((a.z + b.z) + c.z) + d.z) + e.z, (((a.w + b.w) + c.w) + d.w) + e.w);
}

/* y of this block's columns: product + bias + x; to every block, or into y_out (n, D) when that is
 * not NULL. A row a warp: who has none need not come along. */
template <class S>
static __device__ __forceinline__ void residual_send(S *s, const float *bias, float *y_out,
                                                     const struct fused_place &at)
{
    constexpr int FOURS = S::COLUMNS / 4, GROUPS = 32 / FOURS;
    const int row = at.warp, group = at.lane / FOURS, c = at.lane % FOURS * 4;
    const int column = at.rank * S::COLUMNS + c;
    float4 v, x;
    uint4 bits;

    if (row >= at.rows)
        return;
    v = partial_get4(s, row, c, bias + c);
    x = *(const float4 *)&s->x_own[row][c];
    v.x += x.x;
    v.y += x.y;
    v.z += x.z;
    v.w += x.w;
    if (y_out) {
        if (group == 0)
            *(float4 *)(y_out + (size_t)(at.row0 + row) * D + column) = v;
        return;
    }
    bits = make_uint4(__float_as_uint(v.x), __float_as_uint(v.y), __float_as_uint(v.z),
                      __float_as_uint(v.w));
#pragma unroll
    for (int r = 0; r < S::BLOCKS / GROUPS; r++)
        cluster_send16(&s->y[row][column], &s->box[LETTER_Y], group * (S::BLOCKS / GROUPS) + r,
                       bits);
}

/* The query (and, of self-attention, the new key and value) of this block's columns, to the blocks
 * of its head. PARTS: of q, k, v. */
template <int PARTS, class S>
static __device__ __forceinline__ void head_send(S *s, struct cluster_mailbox *box,
                                                 const float *bias, const struct fused_place &at)
{
    constexpr int FOURS = PARTS * S::COLUMNS / 4, HALVES = S::BLOCKS / HEADS;

#pragma unroll
    for (int i = 0; i < (S::ROOM * FOURS + WORKERS - 1) / WORKERS; i++) {
        const unsigned item = at.thread + i * WORKERS;
        const int row = item / FOURS, c = item % FOURS * 4;
        const int which = c / S::COLUMNS, to = at.half * S::COLUMNS + c % S::COLUMNS;
        typename S::element(*place)[HEAD] = which == 0 ? s->q : which == 1 ? s->key : s->value;

        if (row >= at.rows)
            break;
        uint2 e = elements4<typename S::element>(partial_get4(s, row, c, bias + c));

        if (which == 2)
            e = cache_value4<typename S::element>(e);
#pragma unroll
        for (int h = 0; h < HALVES; h++)
            cluster_send8(&place[row][to], box, at.head * HALVES + h, e);
    }
}

/* COUNT columns of the feed-forward's first product from the block's `from` on: activated, to every
 * block. Four neighbouring threads work out one each of four columns, and each sends them to a
 * quarter of the blocks. */
template <int COUNT, class S>
static __device__ __forceinline__ void hidden_send(S *s, enum product_act activation,
                                                   const float *bias, int from,
                                                   const struct fused_place &at)
{
    constexpr int FOURS = COUNT / 4, PART = S::SUMS * PARTIAL_STRIDE;
    constexpr int ROUNDS = (S::ROOM * COUNT + WORKERS - 1) / WORKERS;
    const unsigned quarter = at.thread & 3, count = at.rows * FOURS;

#pragma unroll 1
    for (int round = 0; round < ROUNDS; round++) {
        const unsigned i = (round * WORKERS + (unsigned)at.thread) / 4;
        const unsigned row = min(i, count - 1) / FOURS;

        if ((round * WARPS + at.warp) * 8u >= count)
            return; /* nothing for this warp */
        const int c = i % FOURS * 4, column = at.rank * S::HIDDEN + from + c;
        const float *sum = &s->partial[0][row][c + quarter];
        const float own =
            activate(activation, (((sum[0] + sum[PART]) + sum[2 * PART]) + sum[3 * PART]) +
                                     bias[from + c + quarter]);
        float4 v;

        v.x = __shfl_sync(0xffffffffu, own, 0, 4);
        v.y = __shfl_sync(0xffffffffu, own, 1, 4);
        v.z = __shfl_sync(0xffffffffu, own, 2, 4);
        v.w = __shfl_sync(0xffffffffu, own, 3, 4);
        if (i >= count)
            continue;
#pragma unroll
        for (int r = 0; r < S::BLOCKS / 4; r++)
            cluster_send8(s->h + row * S::H_STRIDE + column * 2, &s->box[LETTER_H],
                          quarter * (S::BLOCKS / 4) + r, elements4<typename S::element>(v));
    }
}

#endif

#endif
