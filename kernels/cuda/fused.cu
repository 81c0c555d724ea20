/* SPDX-License-Identifier: MIT */
#include "kernels/cuda/fused.h"

#include <string.h>

#include "kernels/cuda/check.h"
#include "kernels/cuda/fused_attention.cuh"
#include "kernels/cuda/fused_parts.cuh"
#include "kernels/cuda/fused_product.cuh"
#include "kernels/cuda/launch.cuh"

#if __CUDA_ARCH__ >= 900 && PGPT_CUDA_HOPPER

/* Rows are shared out evenly; a cluster may have none. */
template <class S, bool ALONE>
static __device__ __forceinline__ struct fused_place place_find(const struct fused_params &p, int n)
{
    const int clusters = gridDim.x / S::BLOCKS, each = (n + clusters - 1) / clusters;
    struct fused_place at;

    at.rank = (int)cluster_rank();
    at.head = at.rank / (S::BLOCKS / HEADS);
    at.half = at.rank % (S::BLOCKS / HEADS);
    at.thread = value_once((int)threadIdx.x);
    at.warp = __shfl_sync(0xffffffffu, at.thread >> 5, 0);
    at.lane = at.thread & 31;
    at.part = at.warp & 3;
    at.first = at.warp >> 2;
    at.row0 = (int)(blockIdx.x / S::BLOCKS) * each;
    at.rows = ALONE ? 1 : min(each, n - at.row0);
    at.alone = ALONE;
    at.now = 0;
    at.nothing = p.nothing;
    at.ring = {0, 0};
    {
        /* rows that this block attends to: all, or every other one; its warps share them out */
        const int count = S::BLOCKS == HEADS ? at.rows : (at.rows - at.half + 1) / 2;

        at.shares = count <= 1 ? 8 : count <= 2 ? 4 : count <= 4 ? 2 : 1;
        at.share = at.warp % at.shares;
        at.row = at.warp / at.shares;
        if (at.row >= count)
            at.row = -1;
        else if (S::BLOCKS > HEADS)
            at.row = 2 * at.row + at.half;
    }
    at.self_head = at.cross_head = at.source_len = 0;
    return at;
}

/* One thread. */
template <class S>
static __device__ __forceinline__ void letters_open(S *s, const struct fused_params &p, int rows)
{
    for (int i = 0; i < LETTERS; i++)
        mailbox_open(&s->box[i], letter_bytes<S>((enum fused_letter)i, p, rows));
    ring_open_shared(&s->told_full, 1);
    ring_open_shared(&s->told_read, 1);
    for (int i = 0; i < fused_ring<S>::SLOTS; i++) {
        ring_open(&s->full[i]);
        ring_open_shared(&s->empty[i], WARPS);
    }
    for (int i = 0; i < 2; i++) {
        ring_open(&s->layer_full[i]);
        ring_open_shared(&s->layer_empty[i], WARPS);
    }
}

/* Weights of a product of many columns, and keys: each from where there is time to where they are
 * used. */
template <class F> struct fused_ahead {
    struct format_weights wide[ROUND_TILES / 2][fused_piece<D>::BLK];
    struct chunk_half<typename F::element> chunk;
};

/* The feed-forward of 2,048 multiplies by x in rounds of so many columns. */
enum { FORWARD_COLUMNS = 128, FORWARD_TILES = 4 };

/* A wide round's registers for one of fewer columns. */
template <class F, int J>
static __device__ __forceinline__ struct format_weights (
    &narrow(struct fused_ahead<F> *ahead))[J][fused_piece<D>::BLK]
{
    return *(struct format_weights(*)[J][fused_piece<D>::BLK]) & ahead->wide;
}

/* x -> h -> y, of which the last layer's may go into y_out. narrow: the first weights. */
template <class F, class S, class Constants>
static __device__ __forceinline__ void
forward(S *s, const struct fused_params &p, const Constants &own, float *y_out,
        struct fused_ahead<F> *ahead, struct fused_letters *l, struct fused_place *at)
{
    constexpr int FFN = S::FFN, EACH = FFN > D ? 2 : S::TILES;
    struct format_weights w[EACH / 2][fused_piece<FFN>::BLK];

    if constexpr (S::WIDE) {
#pragma unroll 1
        for (int from = 0; from < S::HIDDEN; from += FORWARD_COLUMNS) {
            auto &first = narrow<F, FORWARD_TILES / 2>(ahead);

            if (from) {
                product_take<F, D>(s, first, FORWARD_TILES, *at);
                workers_sync();
            }
            product_rounds<F, D, FORWARD_TILES>(s, first, s->x, X_STRIDE, FORWARD_COLUMNS / 16, at);
            workers_sync();
            hidden_send<FORWARD_COLUMNS>(s, p.activation, own.fc1, from, *at);
        }
    } else {
        product_run<F, D>(s, narrow<F, 1>(ahead), s->x, X_STRIDE, 0, S::HIDDEN / 16, at);
        workers_sync();
        hidden_send<S::HIDDEN>(s, p.activation, own.fc1, 0, *at);
    }
    product_take<F, FFN>(s, w, EACH, *at);
    letter_receive(s, p, LETTER_H, *at, l);
    product_rounds<F, FFN, EACH>(s, w, s->h, S::H_STRIDE, S::TILES, at);
    workers_sync();
    residual_send(s, own.fc2, y_out, *at);
}

/* A layer, from x to y. ahead: its queries', keys' and values' first weights, and the first chunk
 * of what its self-attention looks at, then of what the next one does (`more`: there is one). */
template <class F, enum fused_end END, class S, class Constants>
static __device__ __forceinline__ void
layer_run(S *s, const struct fused_params &p, int index, int step, const Constants &own, bool more,
          struct fused_ahead<F> *ahead, struct fused_letters *l, struct fused_place *at)
{
    constexpr int J = S::TILES / 2;
    const bool last = index + 1 == p.layers;
    struct attend_task task;

    product_rounds<F, D, ROUND_TILES>(s, ahead->wide, s->x, X_STRIDE, 3 * S::TILES, at);
    workers_sync();
    head_send<3>(s, &s->box[LETTER_HEAD], own.qkv[0], *at);
    task = attend_begin(s, *at, false);
    if (END != FUSED_STEP && last && step && row_chosen_here<S>(*at) >= 0)
        ring_wait(&s->told_read, step - 1); /* the next letter of what is told may come */
    letter_receive(s, p, LETTER_HEAD, *at, l);
    /* self-attention, then cross-attention: q -> o -> y -> x */
#pragma unroll
    for (int cross = 0; cross < 2; cross++) {
        if (cross) {
            product_run<F, D>(s, narrow<F, J>(ahead), s->x, X_STRIDE, 0, S::TILES, at);
            workers_sync();
            head_send<1>(s, &s->box[LETTER_QUERY], own.cross_q, *at);
            task = attend_begin(s, *at, true);
            letter_receive(s, p, LETTER_QUERY, *at, l);
        }
        attend<END>(s, &ahead->chunk, p, index, *at, cross, task);
        /* Keys of what is attended to next as soon as registers are free, values behind the letter:
         * all at once are more than a multiprocessor asks L2 for without waiting, and weights are
         * taken behind them. A row that is drawn needs the registers: work() fetches what comes
         * behind it. */
        const bool fetch = !cross || !last || (more && END != FUSED_SAMPLED);
        const int next = !cross ? index : last ? 0 : index + 1;

        if (fetch)
            attend_fetch<END, CHUNK_KEYS>(s, &ahead->chunk, p, next, *at, !cross, last);
        product_take<F, D>(s, narrow<F, J>(ahead), S::TILES, *at);
        letter_receive(s, p, LETTER_O, *at, l);
        product_run<F, D>(s, narrow<F, J>(ahead), s->o, X_STRIDE, 0, S::TILES, at);
        workers_sync();
        residual_send(s, cross ? own.cross_out : own.out, NULL, *at);
        if (fetch)
            attend_fetch<END, CHUNK_VALUES>(s, &ahead->chunk, p, next, *at, !cross, last);
        if (!cross)
            product_take<F, D>(s, narrow<F, J>(ahead), S::TILES, *at);
        else if (S::WIDE)
            product_take<F, D>(s, narrow<F, FORWARD_TILES / 2>(ahead), FORWARD_TILES, *at);
        else
            product_take<F, D>(s, narrow<F, 1>(ahead), S::HIDDEN / 16, *at);
        rows_norm(s, p, own.gamma[cross], own.beta[cross], *at, l);
    }
    forward<F>(s, p, own, last ? p.y : NULL, ahead, l, at);
}

/* x -> units. ahead: the first weights. */
template <class F, enum fused_end END, class S>
static __device__ __forceinline__ void logits_run(S *s, const struct fused_params &p,
                                                  struct fused_ahead<F> *ahead,
                                                  struct fused_place *at, int tiles)
{
#pragma unroll 1
    for (int done = 0; done < tiles; done += SUM_TILES) {
        const int count = min(tiles - done, (int)SUM_TILES);

        if (done) {
            product_take<F, D>(s, ahead->wide, min(count, (int)ROUND_TILES), *at);
            workers_sync();
        }
        product_rounds<F, D, ROUND_TILES>(s, ahead->wide, s->x, X_STRIDE, count, at);
        workers_sync();
        if (END == FUSED_SAMPLED)
            logits_send(s, p, done / 2, *at);
        else if (END == FUSED_TOKENS && rows_alone(*at))
            units_send_alone(s, p, done / 2, *at);
        else
            units_send<END>(s, p, done / 2, *at);
    }
}

/* Has every row of the cluster ended? Then there is nothing to do: the host tells the device of a
 * call before it knows who ended in the one before. */
template <class S>
static __device__ __forceinline__ bool rows_ended(const S *s, const struct fused_place &at)
{
    bool ended = true;

    for (int r = 0; r < at.rows; r++)
        ended = ended && s->state[0][r].finished;
    return ended;
}

/* What the warps that work do. */
template <class F, enum fused_end END, class S>
static __device__ __forceinline__ void work(S *s, const struct fused_params &p,
                                            struct fused_letters *l, struct fused_place *at)
{
    const int steps = END == FUSED_STEP ? 1 : p.steps, own = rows_alone(*at) ? 0 : at->warp;
    const int units = product_units(p.rules.vocabulary);
    const int logit_tiles = 2 * ((units - at->rank + S::BLOCKS - 1) / S::BLOCKS);
    struct fused_ahead<F> ahead;

    at->self_longest = at->cross_longest = 0;
    for (int r = 0; r < at->rows; r++) {
        at->self_longest = max(at->self_longest, s->state[0][r].position + 1);
        at->cross_longest = max(at->cross_longest, s->source_len[r]);
    }
    at->self_head = s->row[max(at->row, 0)] * HEADS + at->head;
    at->cross_head = s->cross[max(at->row, 0)] * HEADS + at->head;
    at->source_len = s->source_len[max(at->row, 0)];
    if (own < at->rows)
        row_embed<F>(s, p, s->state[0][own].token,
                     embed_ahead(p, s->state[0][own].finished ? 0 : s->state[0][own].position, *at),
                     *at);
    attend_fetch<END, CHUNK_BOTH>(s, &ahead.chunk, p, 0, *at, false, 0);
    product_take<F, D>(s, ahead.wide, ROUND_TILES, *at);
    workers_sync();
#pragma unroll 1
    for (int step = 0; step < steps; step++) {
#pragma unroll 1
        for (int i = 0; i < p.layers; i++) {
            const bool last = i + 1 == p.layers;
            const int index = p.layers == 2 ? i : step * p.layers + i; /* constants_send() */
            const bool sent = p.layers != 2 || step == 0;
            const auto &own = s->layer[index & 1];

            if (sent && i == 0)
                ring_wait(&s->layer_full[index & 1], index >> 1);
            layer_run<F, END>(s, p, i, step, own, step + 1 < steps, &ahead, l, at);
            if (END == FUSED_STEP && p.y && last)
                return;
            product_take<F, D>(s, ahead.wide,
                               last ? min(logit_tiles, (int)ROUND_TILES) : (int)ROUND_TILES, *at);
            if (sent && !last)
                ring_wait(&s->layer_full[(index + 1) & 1], (index + 1) >> 1);
            rows_norm(s, p, own.gamma[2], own.beta[2], *at, l);
            if (at->lane == 0)
                ring_release(&s->layer_empty[index & 1], 1);
        }
        logits_run<F, END>(s, p, &ahead, at, logit_tiles);
        if (END == FUSED_STEP)
            return;
        const bool more = step + 1 < steps;
        uint32_t nothing = 0;
        auto take = [&] {
            if (more)
                nothing = product_load<F, D>(s, ahead.wide, ROUND_TILES, *at);
            else /* or the old ones would be kept */
                memset(ahead.wide, 0, sizeof ahead.wide);
        };

        if constexpr (END == FUSED_SAMPLED) {
            row_draw(s, p, step, *at, l);
            const struct embed_place place = embed_ahead(p, row_next(s, *at), *at);

            attend_fetch<END, CHUNK_BOTH>(s, &ahead.chunk, p, 0, *at, false, 1);
            take();
            if (own < at->rows)
                row_embed<F>(s, p, row_drawn(s, p, *at, l).token, place, *at);
        } else {
            const struct embed_place place = embed_ahead(p, row_next(s, *at), *at);

            take();
            letter_receive(s, p, LETTER_UNIT, *at, l);
            if (own < at->rows)
                row_embed<F>(s, p, row_choose(s, p, *at).token, place, *at);
        }
        /* now: what is fetched then would have delayed the embedding */
        if (more)
            pieces_release<D, ROUND_TILES / 2>(s, ROUND_TILES, *at, nothing);
        at->now ^= 1;
        at->self_longest++;
        if (rows_alone(*at))
            __syncwarp();
        else
            workers_sync();
    }
}

#endif

/* How many rows of a cluster a kernel is made for: the memory that it does not keep for more is the
 * ring's. */
enum fused_room { ROOM_ALONE, ROOM_FEW, ROOM_ALL };
enum { ROWS_FEW = 5 };

/* For how many rows there is memory; a choice by logits works in that of eight. */
static constexpr __host__ __device__ int room_rows(enum fused_end end, enum fused_room room)
{
    return end == FUSED_SAMPLED || room == ROOM_ALL ? (int)FUSED_ROWS
           : room == ROOM_ALONE                     ? 1
                                                    : (int)ROWS_FEW;
}

template <class F, int CL, int FFN, enum fused_end END, enum fused_room ROOM>
using fused_memory =
    struct fused_shared<typename F::element, CL, FFN, room_rows(END, ROOM), END == FUSED_SAMPLED>;

template <class F, int CL, int FFN, enum fused_end END, enum fused_room ROOM>
static __global__ void __launch_bounds__(THREADS, 1)
    fused(const __grid_constant__ struct fused_params p)
{
#if __CUDA_ARCH__ >= 900 && PGPT_CUDA_HOPPER
    typedef fused_memory<F, CL, FFN, END, ROOM> S;
    extern __shared__ __align__(128) char shared[];
    S *s = (S *)shared;
    const int n = END == FUSED_STEP ? *p.n : p.count;
    struct fused_place at = place_find<S, ROOM == ROOM_ALONE>(p, n);
    struct fused_letters letters = {0};

    if (at.row0 >= n) {
        launch_wait();
        launch_next();
        return;
    }
    if (threadIdx.x == 0)
        letters_open(s, p, at.rows);
    if (!(END == FUSED_STEP && p.y))
        units_begin(s, p, at.rank);
    __syncthreads(); /* the ring is open */
    if (p.early)
        ring_begin<S, END>(p);
    if (END != FUSED_STEP) {
        launch_wait();
        launch_next();
        rows_begin(s, p, at);
    }
    cluster_sync(); /* everybody's mailboxes are open, and rows are known */
    const bool ended = END != FUSED_STEP && rows_ended(s, at);

    if (at.warp >= WARPS) {
        registers_give();
        if (END != FUSED_STEP && at.warp == WARPS + 2)
            ended_tell(s, p, at);
        if (ended) { /* here and not in front: the workers would keep other things in memory */
            if (p.early && threadIdx.x == WORKERS)
                ring_await<S, END>(p); /* memory is written to until then */
            return;
        }
        if (threadIdx.x == WORKERS)
            weights_send<S, END>(s, p, at.rank);
        if (at.warp == WARPS + 1)
            constants_send<S, END>(s, p, at.rank,
                                   (int)threadIdx.x & 31); /* at.lane would be spilled */
        if (END != FUSED_STEP && at.warp == WARPS + 2)
            rows_tell<END>(s, p, at);
    } else {
        if (ended)
            return;
        registers_take();
        if (END == FUSED_STEP) {
            launch_wait();
            launch_next();
            rows_begin(s, p, at);
        }
        if constexpr (END == FUSED_SAMPLED)
            row_ask(s, p, at);
        workers_sync();
        work<F, END>(s, p, &letters, &at);
    }
    /* nobody leaves while another may still write into its memory */
    cluster_sync();
#else
    (void)p;
#endif
}

typedef void (*fused_kernel)(struct fused_params);

/* Blocks a cluster. */
static const int32_t shapes[FUSED_SHAPES] = {16, 8};

struct fused_variant {
    fused_kernel kernel; /* NULL: none for such a model */
    size_t shared;
};

template <class F, int CL, int FFN, enum fused_end END, enum fused_room ROOM>
static struct fused_variant variant_get(void)
{
    typedef fused_memory<F, CL, FFN, END, ROOM> S;
    const struct fused_variant variant = {fused<F, CL, FFN, END, ROOM>, fused_ring<S>::BYTES};

    return variant;
}

template <class F, int CL, enum fused_room ROOM>
static struct fused_variant variant_of(const struct model_config *config, enum fused_end end)
{
    constexpr enum fused_room SAMPLED = ROOM == ROOM_FEW ? ROOM_ALL : ROOM;
    const struct fused_variant none = {NULL, 0};

    if (end != FUSED_STEP && (config->decoder_ffn != 256 || config->vocabulary > FUSED_VOCABULARY))
        return none;
    if (end == FUSED_TOKENS)
        return variant_get<F, CL, 256, FUSED_TOKENS, ROOM>();
    if (end == FUSED_SAMPLED)
        return variant_get<F, CL, 256, FUSED_SAMPLED, SAMPLED>();
    return config->decoder_ffn == 256    ? variant_get<F, CL, 256, FUSED_STEP, ROOM>()
           : config->decoder_ffn == 2048 ? variant_get<F, CL, 2048, FUSED_STEP, ROOM>()
                                         : none;
}

/* each: rows of a cluster, at most. The second shape has one kernel. */
template <class F>
static struct fused_variant variant_in(const struct model_config *config, enum fused_end end,
                                       int shape, int32_t each)
{
    return shapes[shape] != 16 ? variant_of<F, 8, ROOM_ALL>(config, end)
           : each == 1         ? variant_of<F, 16, ROOM_ALONE>(config, end)
           : each <= ROWS_FEW  ? variant_of<F, 16, ROOM_FEW>(config, end)
                               : variant_of<F, 16, ROOM_ALL>(config, end);
}

static struct fused_variant variant_for(const struct network *network, enum fused_end end,
                                        int shape, int32_t each)
{
    return network->format == CUDA_BF16
               ? variant_in<format_bf16>(&network->config, end, shape, each)
               : variant_in<format_f16>(&network->config, end, shape, each);
}

static cudaError_t variant_limit(const struct fused_variant &variant, int shape, int32_t *most)
{
    const void *kernel = (const void *)variant.kernel;
    cudaLaunchAttribute attributes[2] = {};
    cudaLaunchConfig_t config;
    int clusters = 0;

    *most = 0;
    if (!kernel)
        return cudaSuccess;
    CUDA_PASS(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                   (int)variant.shared));
    if (shapes[shape] > 8)
        CUDA_PASS(cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1));
    launch_config(&config, attributes, shapes[shape], dim3(shapes[shape]), THREADS, variant.shared,
                  false, NULL);
    CUDA_PASS(cudaOccupancyMaxActiveClusters(&clusters, kernel, &config));
    *most = clusters;
    return cudaSuccess;
}

static cudaError_t cluster_limit(const struct network *network, enum fused_end end, int shape,
                                 int32_t *most)
{
    *most = INT32_MAX;
    for (int32_t each = 1; each <= FUSED_ROWS; each++) {
        int32_t clusters;

        CUDA_PASS(variant_limit(variant_for(network, end, shape, each), shape, &clusters));
        if (clusters < *most)
            *most = clusters;
    }
    return cudaSuccess;
}

static int32_t rows_most(const int32_t *clusters)
{
    int32_t most = 0;

    for (int shape = 0; shape < FUSED_SHAPES; shape++)
        if (clusters[shape] * FUSED_ROWS > most)
            most = clusters[shape] * FUSED_ROWS;
    return most;
}

cudaError_t fused_prepare(const struct network *network, int capability,
                          struct fused_limits *limits)
{
    const struct model_config *config = &network->config;

#if !PGPT_CUDA_HOPPER
    capability = 0;
#endif
    memset(limits, 0, sizeof *limits);
    if (capability != 90 || (network->format != CUDA_F16 && network->format != CUDA_BF16) ||
        network->output.format != network->format || config->d_model != D ||
        config->decoder_heads != HEADS || config->decoder_layers > FUSED_LAYERS)
        return cudaSuccess;
    for (int shape = 0; shape < FUSED_SHAPES; shape++) {
        int32_t sampled;

        CUDA_PASS(cluster_limit(network, FUSED_TOKENS, shape, &limits->clusters[shape]));
        CUDA_PASS(cluster_limit(network, FUSED_SAMPLED, shape, &sampled));
        if (sampled < limits->clusters[shape])
            limits->clusters[shape] = sampled;
        CUDA_PASS(cluster_limit(network, FUSED_STEP, shape, &limits->step_clusters[shape]));
    }
    limits->rows = rows_most(limits->clusters);
    limits->step_rows = rows_most(limits->step_clusters);
    return cudaSuccess;
}

/* In the first shape that has room: more blocks a cluster are faster. */
static cudaError_t params_launch(const struct network *network, struct fused_params *p,
                                 enum fused_end end, const int32_t *clusters, int32_t n, bool pdl,
                                 cudaStream_t stream)
{
    const int shape = n <= clusters[0] * FUSED_ROWS ? 0 : 1;
    const int32_t each = (n + clusters[shape] - 1) / clusters[shape];
    const int32_t count = (n + each - 1) / each;
    const struct fused_variant variant = variant_for(network, end, shape, each);

    p->early = end != FUSED_STEP && 2 * count <= clusters[shape];
    return launch_cluster(variant.kernel, shapes[shape], dim3(shapes[shape] * count), THREADS,
                          variant.shared, pdl, stream, *p);
}

cudaError_t fused_enqueue(const struct network *network, const struct network_step *step, int32_t n,
                          int32_t steps, bool sampled, struct step_output out,
                          const struct fused_limits *limits, bool pdl, cudaStream_t stream)
{
    struct fused_params p;

    fused_params_fill(network, step, &p);
    p.count = n;
    p.steps = steps;
    p.out = out;
    return params_launch(network, &p, sampled ? FUSED_SAMPLED : FUSED_TOKENS, limits->clusters, n,
                         pdl, stream);
}

cudaError_t fused_step_enqueue(const struct network *network, const struct network_step *step,
                               const struct fused_limits *limits, bool pdl, bool chained,
                               cudaStream_t stream)
{
    const bool logits = network->config.vocabulary <= FUSED_VOCABULARY;
    struct fused_params p;

    fused_params_fill(network, step, &p);
    p.n = step->n;
    p.steps = 1;
    if (logits) {
        p.units = step->units;
        p.special = step->special;
        p.logits = step->logits;
    } else {
        p.y = step->space.y;
    }
    CUDA_PASS(params_launch(network, &p, FUSED_STEP, limits->step_clusters, step->n_most,
                            pdl && chained, stream));
    return logits ? cudaSuccess : network_logits(network, step, pdl, stream);
}
