/* SPDX-License-Identifier: MIT */
#include "kernels/cuda/fused.h"

#include "kernels/cuda/check.h"
#include "kernels/cuda/fused_parts.cuh"

template <class F, int CL>
static __global__ void __launch_bounds__(THREADS, 1)
    fused_steps(const __grid_constant__ struct fused_params p)
{
#if __CUDA_ARCH__ >= 900
    typedef typename F::element T;
    constexpr int NC = D / CL, TN = NC / 16, J = TN / 2; /* columns, tiles, tiles a warp */
    constexpr int QKV_ROUNDS = 3 * TN / ROUND_TILES, TF = FFN / CL / 16;
    extern __shared__ __align__(128) char shared[];
    struct fused_shared<T> *s = (struct fused_shared<T> *)shared;
    struct fused_place<CL> at;
    struct format_weights wide[3][4], slim[J][4];
    struct chunk_half<T> chunk;
    uint32_t head_phase = 0, query_phase = 0, o_phase = 0, y_phase = 0, h_phase = 0;
    uint32_t unit_phase = 0;
    const int units = product_units(p.rules.vocabulary);
    const int unit_rounds = (units + 3 * CL - 1) / (3 * CL);
    const int unit_last = product_padded(p.rules.vocabulary) / PRODUCT_UNIT - 1;

    const int forced = (p.rules.forced_eos >= 0) + (p.rules.forced_bos >= 0);
    at.rows = min(p.rows_each, p.n - (int)(blockIdx.x / CL) * p.rows_each);
    const uint32_t head_bytes = at.rows * 3 * HEAD * sizeof(T);
    const uint32_t query_bytes = at.rows * HEAD * sizeof(T);
    const uint32_t o_bytes = at.rows * D * sizeof(T), y_bytes = at.rows * D * 4;
    const uint32_t h_bytes = at.rows * FFN * sizeof(T);
    const uint32_t unit_bytes = at.rows * (units * 16 + forced * 4);

    at.rank = (int)cluster_rank();
    at.head = at.rank / (CL / HEADS);
    at.half = at.rank % (CL / HEADS);
    at.warp = threadIdx.x >> 5;
    at.lane = threadIdx.x & 31;
    at.part = at.warp & 3;
    at.first = at.warp >> 2;
    {
        /* rows that this block attends to: all, or every other one; its warps share them out */
        int here = CL == HEADS ? p.rows_each : (p.rows_each - at.half + 1) / 2;
        int each = here <= 1 ? 8 : here <= 2 ? 4 : here <= 4 ? 2 : 1;
        int index = at.warp / each;

        at.shares = each;
        at.share = at.warp % each;
        at.row = index < here ? (CL == HEADS ? index : 2 * index + at.half) : -1;
    }
    /* tiles of the block's column list in the packed weights */
    auto tile_qkv = [&](int t) { return t / TN * (D / 16) + at.rank * TN + t % TN; };
    auto tile_slim = [&](int t) { return at.rank * TN + t; };
    auto tile_ffn = [&](int t) { return at.rank * TF + t; };

    for (int i = threadIdx.x; i < (int)(sizeof *s / 16); i += THREADS)
        ((uint4 *)shared)[i] = make_uint4(0, 0, 0, 0);
    __syncthreads();
    rows_begin(s, p, (int)(blockIdx.x / CL) * p.rows_each);
    constants_begin<T, CL>(s, p, at.rank);
    __syncthreads();
    if (at.row >= 0 && s->row[at.row] < 0)
        at.row = -1;
    weights_fetch<F, 3, BLOCKS>(wide, p.layer[0].qkv.packed, at.part, at.first, tile_qkv, at.lane);
    row_embed<F>(s, p, at.warp, at.lane);
    if (threadIdx.x == 0) {
        mailbox_open(&s->head_box, head_bytes);
        mailbox_open(&s->query_box, query_bytes);
        mailbox_open(&s->o_box, o_bytes);
        mailbox_open(&s->y_box, y_bytes);
        mailbox_open(&s->h_box, h_bytes);
        mailbox_open(&s->unit_box, unit_bytes);
    }
    cluster_sync(); /* everybody's memory is ready to be written to */

#pragma unroll 1
    for (int step = 0; step < p.steps; step++) {
#pragma unroll 1
        for (int l = 0; l < p.layers; l++) {
            const struct fused_layer &layer = p.layer[l];
            const struct fused_constants &own = s->layer[l];

            /* self-attention: x -> q, k, v -> o */
            __syncthreads();
            if (at.row >= 0)
                chunk_fetch<T, CL>(s, &chunk, p.self, l, at, false, at.share, s->position[at.row]);
#pragma unroll
            for (int round = 0; round < QKV_ROUNDS; round++) {
                weights_multiply<F, 3, BLOCKS>(s, wide, s->x, X_STRIDE, at.part, at.first, 0,
                                               at.lane);
                if (round + 1 < QKV_ROUNDS)
                    weights_fetch<F, 3, BLOCKS>(wide, layer.qkv.packed, at.part,
                                                (round + 1) * ROUND_TILES + at.first, tile_qkv,
                                                at.lane);
                else
                    weights_fetch<F, J, BLOCKS>(slim, layer.out.packed, at.part, at.first,
                                                tile_slim, at.lane);
                __syncthreads();
                for (int i = threadIdx.x; i < at.rows * ROUND_TILES * 4; i += THREADS) {
                    int row = i / (ROUND_TILES * 4), c = i % (ROUND_TILES * 4) * 4;
                    int column = round * ROUND_TILES * 16 + c;

                    head_put4<T, CL>(s, &s->head_box, at, row, column,
                                     partial_get4(s, row, c, own.qkv + column));
                }
                if (round + 1 < QKV_ROUNDS)
                    __syncthreads();
            }
            mailbox_receive(&s->head_box, head_bytes, &head_phase);
            attend<T, CL>(s, &chunk, p.self, l, at, false);
            mailbox_receive(&s->o_box, o_bytes, &o_phase);
            /* out: o -> y -> norm -> x */
            weights_multiply<F, J, BLOCKS>(s, slim, s->o, X_STRIDE, at.part, at.first, 0, at.lane);
            weights_fetch<F, J, BLOCKS>(slim, layer.cross_q.packed, at.part, at.first, tile_slim,
                                        at.lane);
            __syncthreads();
            residual_exchange<T, CL>(s, at, own.out);
            if (at.row >= 0)
                chunk_fetch<T, CL>(s, &chunk, p.cross, l, at, true, at.share,
                                   s->source_len[at.row]);
            mailbox_receive(&s->y_box, y_bytes, &y_phase);
            row_norm(s, at.warp, own.gamma[0], own.beta[0], at.lane);
            __syncthreads();
            /* cross-attention: x -> q -> o */
            weights_multiply<F, J, BLOCKS>(s, slim, s->x, X_STRIDE, at.part, at.first, 0, at.lane);
            weights_fetch<F, J, BLOCKS>(slim, layer.cross_out.packed, at.part, at.first, tile_slim,
                                        at.lane);
            __syncthreads();
            if ((int)threadIdx.x < at.rows * NC / 4) {
                int row = threadIdx.x / (NC / 4), c = threadIdx.x % (NC / 4) * 4;

                head_put4<T, CL>(s, &s->query_box, at, row, c,
                                 partial_get4(s, row, c, own.cross_q + c));
            }
            mailbox_receive(&s->query_box, query_bytes, &query_phase);
            attend<T, CL>(s, &chunk, p.cross, l, at, true);
            mailbox_receive(&s->o_box, o_bytes, &o_phase);
            weights_multiply<F, J, BLOCKS>(s, slim, s->o, X_STRIDE, at.part, at.first, 0, at.lane);
            if (at.first < TF)
                weights_fetch<F, 1, BLOCKS>(*(struct format_weights(*)[1][4]) & slim,
                                            layer.fc1.packed, at.part, at.first, tile_ffn, at.lane);
            __syncthreads();
            residual_exchange<T, CL>(s, at, own.cross_out);
            mailbox_receive(&s->y_box, y_bytes, &y_phase);
            row_norm(s, at.warp, own.gamma[1], own.beta[1], at.lane);
            __syncthreads();
            /* feed-forward: x -> h -> y -> norm -> x */
            if (at.first < TF)
                weights_multiply<F, 1, BLOCKS>(s, *(struct format_weights(*)[1][4]) & slim, s->x,
                                               X_STRIDE, at.part, at.first, 0, at.lane);
            weights_fetch<F, J, BLOCKS_FFN>(slim, layer.fc2.packed, at.part, at.first, tile_slim,
                                            at.lane);
            __syncthreads();
            if ((int)threadIdx.x < at.rows * TF * 4 * 4) {
                constexpr int FOURS = TF * 4;
                int item = threadIdx.x / 4, row = item / FOURS, c = item % FOURS * 4;
                int column = at.rank * TF * 16 + c;
                float4 v = partial_get4(s, row, c, own.fc1 + c);

                v = make_float4(activate(p.activation, v.x), activate(p.activation, v.y),
                                activate(p.activation, v.z), activate(p.activation, v.w));
#pragma unroll
                for (int r = 0; r < CL / 4; r++)
                    cluster_send8(s->h + row * H_STRIDE + column * 2, &s->h_box,
                                  (int)(threadIdx.x & 3) * (CL / 4) + r, elements4<T>(v));
            }
            mailbox_receive(&s->h_box, h_bytes, &h_phase);
            weights_multiply<F, J, BLOCKS_FFN>(s, slim, s->h, H_STRIDE, at.part, at.first, 0,
                                               at.lane);
            if (l + 1 < p.layers)
                weights_fetch<F, 3, BLOCKS>(wide, p.layer[l + 1].qkv.packed, at.part, at.first,
                                            tile_qkv, at.lane);
            else
                weights_fetch<F, 3, BLOCKS>(
                    wide, p.output.packed, at.part, at.first,
                    [&](int t) { return min(at.rank + t / 2 * CL, unit_last) * 2 + t % 2; },
                    at.lane);
            __syncthreads();
            residual_exchange<T, CL>(s, at, own.fc2);
            mailbox_receive(&s->y_box, y_bytes, &y_phase);
            row_norm(s, at.warp, own.gamma[2], own.beta[2], at.lane);
        }
        __syncthreads();
        /* logits: x -> units -> tokens */
#pragma unroll 1
        for (int round = 0; round < unit_rounds; round++) {
            int first = at.rank + (round + 1) * 3 * CL, half = round % LOGIT_ROUNDS;

            weights_multiply<F, 3, BLOCKS>(s, wide, s->x, X_STRIDE, at.part, at.first,
                                           half * ROUND_TILES, at.lane);
            if (round + 1 < unit_rounds)
                weights_fetch<F, 3, BLOCKS>(
                    wide, p.output.packed, at.part, at.first,
                    [&](int t) { return min(first + t / 2 * CL, unit_last) * 2 + t % 2; }, at.lane);
            else
                weights_fetch<F, 3, BLOCKS>(wide, p.layer[0].qkv.packed, at.part, at.first,
                                            tile_qkv, at.lane);
            if (half + 1 < LOGIT_ROUNDS && round + 1 < unit_rounds)
                continue;
            __syncthreads();
            units_exchange<T, CL>(s, p, at, at.rank + (round - half) * 3 * CL);
            if (round + 1 < unit_rounds)
                __syncthreads();
        }
        mailbox_receive(&s->unit_box, unit_bytes, &unit_phase);
        row_choose<T, CL>(s, p, at);
        row_embed<F>(s, p, at.warp, at.lane);
    }
    /* nobody leaves while another may still write into its memory */
    cluster_sync();
#endif
}

typedef void (*fused_kernel)(struct fused_params);

static fused_kernel kernel_of(enum cuda_format format, int cluster)
{
    if (format == CUDA_BF16)
        return cluster == 16 ? fused_steps<format_bf16, 16> : fused_steps<format_bf16, 8>;
    return cluster == 16 ? fused_steps<format_f16, 16> : fused_steps<format_f16, 8>;
}

static size_t shared_bytes(int32_t layers)
{
    return sizeof(struct fused_shared<__half>) + (size_t)layers * sizeof(struct fused_constants);
}

static void launch_config(cudaLaunchConfig_t *config, cudaLaunchAttribute *attribute, int cluster,
                          int clusters, int32_t layers, cudaStream_t stream)
{
    *config = cudaLaunchConfig_t();
    config->gridDim = dim3(cluster * clusters);
    config->blockDim = dim3(THREADS);
    config->dynamicSmemBytes = shared_bytes(layers);
    config->stream = stream;
    attribute->id = cudaLaunchAttributeClusterDimension;
    attribute->val.clusterDim.x = cluster;
    attribute->val.clusterDim.y = 1;
    attribute->val.clusterDim.z = 1;
    config->attrs = attribute;
    config->numAttrs = 1;
}

static cudaError_t cluster_limit(enum cuda_format format, int cluster, int32_t layers,
                                 int32_t *most)
{
    const void *kernel = (const void *)kernel_of(format, cluster);
    cudaLaunchAttribute attribute;
    cudaLaunchConfig_t config;
    int clusters = 0;

    CUDA_PASS(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                   (int)shared_bytes(layers)));
    if (cluster > 8)
        CUDA_PASS(cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1));
    launch_config(&config, &attribute, cluster, 1, layers, NULL);
    CUDA_PASS(cudaOccupancyMaxActiveClusters(&clusters, kernel, &config));
    *most = clusters;
    return cudaSuccess;
}

cudaError_t fused_prepare(const struct network *network, int capability,
                          struct fused_limits *limits)
{
    const struct model_config *config = &network->config;

    limits->clusters16 = limits->clusters8 = 0;
    if (capability != 90 || (network->format != CUDA_F16 && network->format != CUDA_BF16) ||
        config->d_model != D || config->decoder_heads != HEADS || config->decoder_ffn != FFN ||
        config->decoder_layers > FUSED_LAYERS || config->positions > POSITIONS ||
        product_units(config->vocabulary) > UNITS)
        return cudaSuccess;
    CUDA_PASS(cluster_limit(network->format, 16, config->decoder_layers, &limits->clusters16));
    return cluster_limit(network->format, 8, config->decoder_layers, &limits->clusters8);
}

int32_t fused_rows_most(const struct fused_limits *limits)
{
    int32_t most = limits->clusters16 > limits->clusters8 ? limits->clusters16 : limits->clusters8;

    return most * FUSED_ROWS;
}

cudaError_t fused_enqueue(const struct network *network, const struct network_step *step, int32_t n,
                          int32_t steps, const struct fused_limits *limits, cudaStream_t stream)
{
    int cluster = n <= limits->clusters16 * FUSED_ROWS ? 16 : 8;
    int32_t most = cluster == 16 ? limits->clusters16 : limits->clusters8;
    cudaLaunchAttribute attribute;
    cudaLaunchConfig_t config;
    struct fused_params p;

    fused_params_fill(network, step, &p);
    p.steps = steps;
    p.n = n;
    p.rows_each = (n + most - 1) / most;
    launch_config(&config, &attribute, cluster, (n + p.rows_each - 1) / p.rows_each, p.layers,
                  stream);
    return cudaLaunchKernelEx(&config, kernel_of(network->format, cluster), p);
}
