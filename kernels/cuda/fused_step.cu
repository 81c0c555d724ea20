/* SPDX-License-Identifier: MIT */
#include "kernels/cuda/fused_step.h"

#include <string.h>

#include "kernels/cuda/check.h"
#include "kernels/cuda/fused_step_parts.cuh"
#include "kernels/cuda/launch.cuh"

/* The feed-forward's first product takes up to three rounds of tiles, its second the weights'
 * blocks in up to four pieces: as many as the registers hold, each fetched as soon as they are
 * free. */
template <int CL, int FFN> struct forward_shape {
    enum {
        J = D / CL / 16 / 2,                  /* tiles a warp of a product of D columns */
        TILES = FFN / CL / 16,                /* of fc1, a block */
        BIG = TILES > 2 * J,                  /* more than the slim registers hold */
        EACH = FFN / 32 / FORMAT_PARTS,       /* blocks of a part of fc2 */
        SLIM = EACH < BLOCKS ? EACH : BLOCKS, /* of them in the slim registers */
        WIDE = EACH - SLIM < 12 / J ? EACH - SLIM : 12 / J, /* in the wide ones */
        SLIM2 = EACH - SLIM - WIDE < BLOCKS ? EACH - SLIM - WIDE : BLOCKS,
        WIDE2 = EACH - SLIM - WIDE - SLIM2,
        LAST = TILES - ROUND_TILES - 2 * J, /* tiles of the third round */
    };
};

/* The same registers, cut otherwise. */
template <int J, int N, int A>
static __device__
    __forceinline__ struct format_weights (&weights_as(struct format_weights (&w)[A][4]))[J][N]
{
    static_assert(J * N <= A * 4, "more weights than registers");
    return *(struct format_weights(*)[J][N]) & w;
}

template <class F, int CL, int FFN>
static __global__ void __launch_bounds__(THREADS, 1)
    fused_step(const __grid_constant__ struct fused_step_params p)
{
#if __CUDA_ARCH__ >= 900
    typedef typename F::element T;
    typedef struct fused_step_shared<T, FFN> shared_t;
    typedef forward_shape<CL, FFN> forward;
    constexpr int NC = D / CL, TN = NC / 16, J = TN / 2; /* columns, tiles, tiles a warp */
    constexpr int QKV_ROUNDS = 3 * TN / ROUND_TILES, EACH = forward::EACH;
    extern __shared__ __align__(128) char shared[];
    shared_t *s = (shared_t *)shared;
    struct fused_step_place<CL> at;
    struct format_weights wide[3][4], slim[J][4];
    struct chunk_half<T> chunk;
    uint32_t head_phase = 0, query_phase = 0, o_phase = 0, y_phase = 0, h_phase = 0;
    const int units = product_units(p.rules.vocabulary);
    const int unit_rounds = (units + 3 * CL - 1) / (3 * CL);
    const int unit_last = product_padded(p.rules.vocabulary) / PRODUCT_UNIT - 1;
    /* rows are shared out evenly */
    const int n = *p.n, clusters = gridDim.x / CL, rows_each = (n + clusters - 1) / clusters;
    const int first_row = (int)(blockIdx.x / CL) * rows_each;

    at.rows = min(rows_each, n - first_row);
    if (at.rows <= 0) {
        launch_wait();
        launch_next();
        return;
    }
    const uint32_t head_bytes = at.rows * 3 * HEAD * sizeof(T);
    const uint32_t query_bytes = at.rows * HEAD * sizeof(T);
    const uint32_t o_bytes = at.rows * D * sizeof(T), y_bytes = at.rows * D * 4;
    const uint32_t h_bytes = at.rows * FFN * sizeof(T);

    at.rank = (int)cluster_rank();
    at.head = at.rank / (CL / HEADS);
    at.half = at.rank % (CL / HEADS);
    at.warp = threadIdx.x >> 5;
    at.lane = threadIdx.x & 31;
    at.part = at.warp & 3;
    at.first = at.warp >> 2;
    {
        /* rows that this block attends to: all, or every other one; its warps share them out */
        int here = CL == HEADS ? at.rows : (at.rows - at.half + 1) / 2;

        at.shares = here <= 1 ? 8 : here <= 2 ? 4 : here <= 4 ? 2 : 1;
        at.share = at.warp % at.shares;
        at.row = at.warp / at.shares;
        if (at.row >= here)
            at.row = -1;
        else if (CL > HEADS)
            at.row = 2 * at.row + at.half;
    }
    /* tiles of the block's column list in the packed weights */
    auto tile_qkv = [&](int t) { return t / TN * (D / 16) + at.rank * TN + t % TN; };
    auto tile_slim = [&](int t) { return at.rank * TN + t; };
    auto tile_ffn = [&](int t) { return at.rank * forward::TILES + t; };
    auto multiply = [&](auto &w, const char *rows, int to) {
        weights_multiply<F>(s, w, rows, X_STRIDE, here(at.part), at.first, to, here(at.lane));
    };
    auto fetch = [&](auto &w, const struct fused_weight &weight, int first, auto tile_of) {
        weights_fetch(w, weight.packed, BLOCKS, here(at.part), 0, first + here(at.first), tile_of,
                      here(at.lane));
    };
    /* fc2: N blocks of its part of K from block `from` on */
    auto fetch_forward = [&](auto &w, const struct fused_weight &weight, int from) {
        weights_fetch(w, weight.packed, EACH, at.part, from, at.first, tile_slim, at.lane);
    };

    for (int i = threadIdx.x; i < (int)(sizeof *s / 16); i += THREADS)
        ((uint4 *)shared)[i] = make_uint4(0, 0, 0, 0);
    __syncthreads();
    constants_fetch<CL>(&s->layer[0], p.layer[0], at.rank);
    constants_fetch<CL>(&s->layer[1], p.layer[1 % p.layers], at.rank);
    fetch(wide, p.layer[0].qkv, 0, tile_qkv);
    if (threadIdx.x == 0) {
        mailbox_open(&s->head_box, head_bytes);
        mailbox_open(&s->query_box, query_bytes);
        mailbox_open(&s->o_box, o_bytes);
        mailbox_open(&s->y_box, y_bytes);
        mailbox_open(&s->h_box, h_bytes);
    }
    cluster_sync(); /* everybody's memory is ready to be written to */
    launch_wait();
    launch_next();
    rows_begin(s, p, first_row, at.rows);
    __syncthreads();
    row_embed<F>(s, p, at);

#pragma unroll 1
    for (int l = 0; l < p.layers; l++) {
        const struct fused_layer &layer = p.layer[l];
        const struct fused_step_constants<FFN> &own = s->layer[l & 1];
        const bool last = l + 1 == p.layers;

        /* self-attention: x -> q, k, v -> o */
        at.lane = here(at.lane);
        at.rank = here(at.rank);
        copy_wait<0>(); /* own */
        __syncthreads();
        if (l > 0 && !last)
            constants_fetch<CL>(&s->layer[(l + 1) & 1], p.layer[l + 1], at.rank);
        attend_fetch<CL>(s, &chunk, p, l, at, false, at.row);
#pragma unroll
        for (int round = 0; round < QKV_ROUNDS; round++) {
            multiply(wide, s->x, 0);
            if (round + 1 < QKV_ROUNDS)
                fetch(wide, layer.qkv, (round + 1) * ROUND_TILES, tile_qkv);
            else
                fetch(slim, layer.out, 0, tile_slim);
            __syncthreads();
            for (int i = threadIdx.x; i < at.rows * ROUND_TILES * 4; i += THREADS) {
                int row = i / (ROUND_TILES * 4), c = i % (ROUND_TILES * 4) * 4;
                int column = round * ROUND_TILES * 16 + c;

                head_put4<CL>(s, &s->head_box, at, row, column,
                              partial_get4(s, row, c, own.qkv + column));
            }
            if (round + 1 < QKV_ROUNDS)
                __syncthreads();
        }
        mailbox_receive(&s->head_box, head_bytes, &head_phase);
        attend<CL>(s, &chunk, p, l, at, false);
        mailbox_receive(&s->o_box, o_bytes, &o_phase);
        /* out: o -> y -> norm -> x */
        multiply(slim, s->o, 0);
        fetch(slim, layer.cross_q, 0, tile_slim);
        __syncthreads();
        residual_exchange<CL>(s, at, own.out, NULL, 0);
        attend_fetch<CL>(s, &chunk, p, l, at, true, at.row);
        mailbox_receive(&s->y_box, y_bytes, &y_phase);
        row_norm(s, at, own.gamma[0], own.beta[0]);
        __syncthreads();
        /* cross-attention: x -> q -> o */
        multiply(slim, s->x, 0);
        fetch(slim, layer.cross_out, 0, tile_slim);
        __syncthreads();
        for (int i = threadIdx.x; i < at.rows * NC / 4; i += THREADS) {
            int row = i / (NC / 4), c = i % (NC / 4) * 4;

            head_put4<CL>(s, &s->query_box, at, row, c, partial_get4(s, row, c, own.cross_q + c));
        }
        mailbox_receive(&s->query_box, query_bytes, &query_phase);
        attend<CL>(s, &chunk, p, l, at, true);
        if (forward::BIG)
            fetch(wide, layer.fc1, 0, tile_ffn);
        mailbox_receive(&s->o_box, o_bytes, &o_phase);
        multiply(slim, s->o, 0);
        if (forward::BIG)
            fetch(slim, layer.fc1, ROUND_TILES, tile_ffn);
        else if (at.first < forward::TILES)
            fetch(weights_as<1, BLOCKS>(slim), layer.fc1, 0, tile_ffn);
        __syncthreads();
        residual_exchange<CL>(s, at, own.cross_out, NULL, 0);
        mailbox_receive(&s->y_box, y_bytes, &y_phase);
        row_norm(s, at, own.gamma[1], own.beta[1]);
        __syncthreads();
        /* feed-forward: x -> h -> y -> norm -> x */
        if constexpr (forward::BIG) {
            auto &rest = weights_as<J, forward::WIDE>(wide);

            multiply(wide, s->x, 0);
            if (forward::LAST > 0)
                fetch(wide, layer.fc1, ROUND_TILES + 2 * J, tile_ffn);
            else
                fetch_forward(rest, layer.fc2, forward::SLIM);
            __syncthreads();
            forward_exchange(s, at, p.activation, own.fc1, 0, ROUND_TILES * 16);
            __syncthreads();
            multiply(slim, s->x, 0);
            fetch_forward(slim, layer.fc2, 0);
            __syncthreads();
            forward_exchange(s, at, p.activation, own.fc1, ROUND_TILES * 16, 2 * J * 16);
            if constexpr (forward::LAST > 0) {
                static_assert(forward::LAST == ROUND_TILES, "a third round of whole tiles");
                __syncthreads();
                multiply(wide, s->x, 0);
                fetch_forward(rest, layer.fc2, forward::SLIM);
                __syncthreads();
                forward_exchange(s, at, p.activation, own.fc1, (ROUND_TILES + 2 * J) * 16,
                                 forward::LAST * 16);
            }
        } else {
            if (at.first < forward::TILES)
                multiply(weights_as<1, BLOCKS>(slim), s->x, 0);
            fetch_forward(weights_as<J, EACH>(slim), layer.fc2, 0);
            __syncthreads();
            forward_exchange(s, at, p.activation, own.fc1, 0, forward::TILES * 16);
        }
        mailbox_receive(&s->h_box, h_bytes, &h_phase);
        {
            float acc[J][4] = {};
            int block = at.part * EACH;
            auto add = [&](auto &w) {
                weights_add<F>(acc, w, s->h, shared_t::H_STRIDE, block, at.lane);
                block += sizeof w[0] / sizeof w[0][0];
            };

            add(weights_as<J, forward::SLIM>(slim));
            if constexpr (forward::SLIM2 > 0)
                fetch_forward(weights_as<J, forward::SLIM2>(slim), layer.fc2,
                              forward::SLIM + forward::WIDE);
            if constexpr (forward::WIDE > 0)
                add(weights_as<J, forward::WIDE>(wide));
            if constexpr (forward::WIDE2 > 0)
                fetch_forward(weights_as<J, forward::WIDE2>(wide), layer.fc2,
                              EACH - forward::WIDE2);
            if constexpr (forward::SLIM2 > 0)
                add(weights_as<J, forward::SLIM2>(slim));
            if constexpr (forward::WIDE2 > 0)
                add(weights_as<J, forward::WIDE2>(wide));
            sums_keep(s, acc, at.part, at.first, 0, at.lane);
        }
        if (!last)
            fetch(wide, p.layer[l + 1].qkv, 0, tile_qkv);
        else if (!p.y)
            fetch(wide, p.output, 0,
                  [&](int t) { return min(at.rank + t / 2 * CL, unit_last) * 2 + t % 2; });
        else
            memset(wide, 0, sizeof wide); /* or the old ones would be kept all the layer long */
        __syncthreads();
        residual_exchange<CL>(s, at, own.fc2, last ? p.y : NULL, first_row);
        if (last && p.y)
            break;
        mailbox_receive(&s->y_box, y_bytes, &y_phase);
        row_norm(s, at, own.gamma[2], own.beta[2]);
    }
    __syncthreads();
    /* logits: x -> units */
#pragma unroll 1
    for (int round = 0; !p.y && round < unit_rounds; round++) {
        int next = at.rank + (round + 1) * 3 * CL, half = round % LOGIT_ROUNDS;

        multiply(wide, s->x, half * ROUND_TILES);
        if (round + 1 < unit_rounds)
            fetch(wide, p.output, 0,
                  [&](int t) { return min(next + t / 2 * CL, unit_last) * 2 + t % 2; });
        if (half + 1 < LOGIT_ROUNDS && round + 1 < unit_rounds)
            continue;
        __syncthreads();
        units_keep<CL>(s, p, at, at.rank + (round - half) * 3 * CL, first_row);
        __syncthreads();
    }
    /* nobody leaves while another may still write into its memory */
    cluster_sync();
#endif
}

typedef void (*fused_step_kernel)(struct fused_step_params);

/* Blocks a cluster. */
static const int32_t shapes[FUSED_STEP_SHAPES] = {16, 8};

struct fused_step_variant {
    fused_step_kernel kernel;
    size_t shared;
};

template <class F, int FFN> static struct fused_step_variant variant_of(int shape)
{
    const struct fused_step_variant variant = {
        shapes[shape] == 16 ? fused_step<F, 16, FFN> : fused_step<F, 8, FFN>,
        sizeof(struct fused_step_shared<typename F::element, FFN>)};

    return variant;
}

/* kernel NULL: none for such a model. */
static struct fused_step_variant variant_for(const struct network *network, int shape)
{
    const struct fused_step_variant none = {NULL, 0};

    if (network->config.decoder_ffn == 256)
        return network->format == CUDA_BF16 ? variant_of<format_bf16, 256>(shape)
                                            : variant_of<format_f16, 256>(shape);
    if (network->config.decoder_ffn == 2048)
        return network->format == CUDA_BF16 ? variant_of<format_bf16, 2048>(shape)
                                            : variant_of<format_f16, 2048>(shape);
    return none;
}

static void launch_config(cudaLaunchConfig_t *config, cudaLaunchAttribute *attributes, int blocks,
                          int clusters, size_t shared, bool pdl, cudaStream_t stream)
{
    *config = cudaLaunchConfig_t();
    config->gridDim = dim3(blocks * clusters);
    config->blockDim = dim3(THREADS);
    config->dynamicSmemBytes = shared;
    config->stream = stream;
    attributes[0].id = cudaLaunchAttributeClusterDimension;
    attributes[0].val.clusterDim.x = blocks;
    attributes[0].val.clusterDim.y = 1;
    attributes[0].val.clusterDim.z = 1;
    attributes[1].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes[1].val.programmaticStreamSerializationAllowed = 1;
    config->attrs = attributes;
    config->numAttrs = pdl ? 2 : 1;
}

static cudaError_t cluster_limit(const struct network *network, int shape, int32_t *most)
{
    struct fused_step_variant variant = variant_for(network, shape);
    const void *kernel = (const void *)variant.kernel;
    cudaLaunchAttribute attributes[2];
    cudaLaunchConfig_t config;
    int clusters = 0;

    CUDA_PASS(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                   (int)variant.shared));
    if (shapes[shape] > 8)
        CUDA_PASS(cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1));
    launch_config(&config, attributes, shapes[shape], 1, variant.shared, false, NULL);
    CUDA_PASS(cudaOccupancyMaxActiveClusters(&clusters, kernel, &config));
    *most = clusters;
    return cudaSuccess;
}

cudaError_t fused_step_prepare(const struct network *network, int capability,
                               struct fused_step_limits *limits)
{
    const struct model_config *config = &network->config;

    memset(limits, 0, sizeof *limits);
    if (capability != 90 || (network->format != CUDA_F16 && network->format != CUDA_BF16) ||
        network->output.format != network->format || config->d_model != D ||
        config->decoder_heads != HEADS || config->decoder_layers > FUSED_STEP_LAYERS ||
        config->positions > POSITIONS || !variant_for(network, 0).kernel)
        return cudaSuccess;
    for (int shape = 0; shape < FUSED_STEP_SHAPES; shape++)
        CUDA_PASS(cluster_limit(network, shape, &limits->clusters[shape]));
    limits->logits = config->vocabulary <= FUSED_STEP_LOGITS;
    return cudaSuccess;
}

int32_t fused_step_rows_most(const struct fused_step_limits *limits)
{
    int32_t most = 0;

    for (int shape = 0; shape < FUSED_STEP_SHAPES; shape++)
        if (limits->clusters[shape] * FUSED_STEP_ROWS > most)
            most = limits->clusters[shape] * FUSED_STEP_ROWS;
    return most;
}

/* The first that has room: more blocks a cluster are faster. */
static int shape_choose(const struct fused_step_limits *limits, int32_t n)
{
    int shape = 0;

    while (shape + 1 < FUSED_STEP_SHAPES && limits->clusters[shape] * FUSED_STEP_ROWS < n)
        shape++;
    return shape;
}

static cudaError_t params_launch(const struct network *network, const struct fused_step_params &p,
                                 int32_t n, const struct fused_step_limits *limits, bool pdl,
                                 cudaStream_t stream)
{
    int shape = shape_choose(limits, n);
    struct fused_step_variant variant = variant_for(network, shape);
    int32_t most = limits->clusters[shape], each = (n + most - 1) / most;
    cudaLaunchAttribute attributes[2];
    cudaLaunchConfig_t config;

    launch_config(&config, attributes, shapes[shape], (n + each - 1) / each, variant.shared, pdl,
                  stream);
    return cudaLaunchKernelEx(&config, variant.kernel, p);
}

cudaError_t fused_step_enqueue(const struct network *network, const struct network_step *step,
                               const struct fused_step_limits *limits, bool pdl, bool chained,
                               cudaStream_t stream)
{
    struct fused_step_params p;

    fused_params_fill(network, step, &p);
    p.n = step->n;
    if (limits->logits) {
        p.units = step->units;
        p.special = step->special;
        p.logits = step->logits;
        return params_launch(network, p, step->n_most, limits, pdl && chained, stream);
    }
    p.y = step->space.y;
    CUDA_PASS(params_launch(network, p, step->n_most, limits, pdl && chained, stream));
    return network_logits(network, step, pdl, stream);
}
