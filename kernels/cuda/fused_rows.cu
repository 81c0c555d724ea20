/* SPDX-License-Identifier: MIT */
#include "kernels/cuda/fused_rows.h"

#include "kernels/cuda/check.h"
#include "kernels/cuda/fused_rows_parts.cuh"

template <class F, int NT>
static __global__ void __launch_bounds__(THREADS, 1)
    fused_rows(const __grid_constant__ struct fused_rows_params p)
{
#if __CUDA_ARCH__ >= 900 && PGPT_CUDA_HOPPER
    typedef typename F::element T;
    typedef struct fused_rows_shared<T, NT> S;
    extern __shared__ __align__(1024) char shared[];
    S *s = (S *)shared;
    struct fused_rows_place at;

    at.rank = (int)cluster_rank();
    at.warp = __shfl_sync(0xffffffffu, (int)threadIdx.x >> 5, 0);
    at.lane = threadIdx.x & 31;
    at.part = at.warp >> 2;
    at.tile = at.warp & 3;
    at.first = (int)(blockIdx.x / BLOCKS) * p.rows_each;
    at.rows = min(p.rows_each, p.n - at.first);
    at.own = (at.rows - at.rank + BLOCKS - 1) / BLOCKS;

    for (int i = threadIdx.x; i < (int)(sizeof *s / 16); i += THREADS)
        ((uint4 *)shared)[i] = make_uint4(0, 0, 0, 0);
    __syncthreads();
    rows_begin(s, p, at);
    biases_begin(s, p, at.rank);
    if (threadIdx.x == 0)
        s->pieces = plan_make(s->plan, p, at.rank);
    const int forced = (p.rules.forced_eos >= 0) + (p.rules.forced_bos >= 0);
    const uint32_t x_bytes = at.rows * D * sizeof(T), h_bytes = at.rows * FFN * sizeof(T);
    const uint32_t y_bytes = at.own * D * 4, state_bytes = at.rows * 4;
    const uint32_t unit_bytes = at.own * (product_units(p.rules.vocabulary) * 16 + forced * 4);

    if (threadIdx.x == 0) {
        mailbox_open(&s->x_box, x_bytes);
        mailbox_open(&s->o_box, x_bytes);
        mailbox_open(&s->h_box, h_bytes);
        mailbox_open(&s->y_box, y_bytes);
        mailbox_open(&s->unit_box, unit_bytes);
        mailbox_open(&s->state_box, state_bytes);
        for (int i = 0; i < fused_rows_ring<S>::SLOTS; i++)
            ring_open(&s->full[i]);
    }
    cluster_sync(); /* everybody's memory is ready to be written to */
    at.pieces = s->pieces;
    if (threadIdx.x < fused_rows_ring<S>::SLOTS)
        ring_fetch(fused_rows_ring<S>::slot(s, threadIdx.x), s->plan[threadIdx.x],
                   &s->full[threadIdx.x]);
    const int rounds =
        (product_padded(p.rules.vocabulary) / COLUMNS - at.rank + BLOCKS - 1) / BLOCKS;
    uint32_t x_phase = 0, o_phase = 0, h_phase = 0, y_phase = 0, unit_phase = 0;
    uint32_t state_phase = 0;
    struct ring_place next = {0, 0, 0, at.pieces * p.steps}, used = next; /* weights */
    struct format_weights w[4];
    float sums[S::ROWS / 2];

    if (at.warp < at.own)
        row_embed<F>(s, p, at);
#pragma unroll 1
    for (int step = 0; step < p.steps; step++) {
        if (step)
            mailbox_receive(&s->state_box, state_bytes, &state_phase);
#pragma unroll 1
        for (int l = 0; l < p.layers; l++) {
            const struct fused_layer &layer = p.layer[l];
            const struct fused_rows_biases &bias = s->layer[l];

            /* self-attention: x -> q, k, v -> o */
            product_take<F, D, TILES>(s, w, &next, at);
            mailbox_receive(&s->x_box, x_bytes, &x_phase);
#pragma unroll 1
            for (int which = 0; which < 3; which++) {
                product_begin<F, D, S>(sums, w, s->x, at);
                if (which)
                    head_put<T>(s, p, l, which - 1, bias.qkv + (which - 1) * COLUMNS, at);
                warpgroup_wait<0>();
                if (fused_rows_ring<S>::TWO && which < 2)
                    product_take<F, D, TILES>(s, w, &next, at);
                __syncthreads();
                product_refill<D, TILES>(s, &used, at);
                product_put(s, sums, 0, at);
                __syncthreads();
                if (!fused_rows_ring<S>::TWO && which < 2)
                    product_take<F, D, TILES>(s, w, &next, at);
            }
            head_put<T>(s, p, l, 2, bias.qkv + 2 * COLUMNS, at);
            __syncthreads();
            attend<T>(s, p.self, l, false, at);
            /* out: o -> y -> norm -> x */
            product_take<F, D, TILES>(s, w, &next, at);
            mailbox_receive(&s->o_box, x_bytes, &o_phase);
            product_run<F, D, TILES>(s, w, &used, s->o, at);
            residual_send(s, bias.out, at);
            product_take<F, D, TILES>(s, w, &next, at);
            row_norm<T>(s, layer.self_norm, y_bytes, &y_phase, at);
            mailbox_receive(&s->x_box, x_bytes, &x_phase);
            /* cross-attention: x -> q -> o */
            product_run<F, D, TILES>(s, w, &used, s->x, at);
            head_put<T>(s, p, l, 0, bias.cross_q, at);
            __syncthreads();
            attend<T>(s, p.cross, l, true, at);
            product_take<F, D, TILES>(s, w, &next, at);
            mailbox_receive(&s->o_box, x_bytes, &o_phase);
            product_run<F, D, TILES>(s, w, &used, s->o, at);
            residual_send(s, bias.cross_out, at);
            product_take<F, D, HIDDEN / 16>(s, w, &next, at);
            row_norm<T>(s, layer.cross_norm, y_bytes, &y_phase, at);
            mailbox_receive(&s->x_box, x_bytes, &x_phase);
            /* feed-forward: x -> h -> y -> norm -> x */
            product_run<F, D, HIDDEN / 16>(s, w, &used, s->x, at);
            hidden_send<T>(s, p, bias.fc1, at);
            product_take<F, FFN, TILES>(s, w, &next, at);
            mailbox_receive(&s->h_box, h_bytes, &h_phase);
            product_run<F, FFN, TILES>(s, w, &used, s->o, at);
            residual_send(s, bias.fc2, at);
            row_norm<T>(s, layer.norm, y_bytes, &y_phase, at);
        }
        /* logits: x -> units -> tokens -> x */
        product_take<F, D, TILES>(s, w, &next, at);
        mailbox_receive(&s->x_box, x_bytes, &x_phase);
#pragma unroll 1
        for (int round = 0; round < rounds; round++) {
            product_begin<F, D, S>(sums, w, s->x, at);
            if (round && round % S::ROUNDS == 0)
                units_send(s, p, round - S::ROUNDS, S::ROUNDS, at);
            warpgroup_wait<0>();
            if (fused_rows_ring<S>::TWO && round + 1 < rounds)
                product_take<F, D, TILES>(s, w, &next, at);
            __syncthreads();
            product_refill<D, TILES>(s, &used, at);
            product_put(s, sums, round % S::ROUNDS, at);
            __syncthreads();
            if (!fused_rows_ring<S>::TWO && round + 1 < rounds)
                product_take<F, D, TILES>(s, w, &next, at);
        }
        {
            const int first = (rounds - 1) / S::ROUNDS * S::ROUNDS;

            units_send(s, p, first, rounds - first, at);
        }
        if (at.warp < at.own) {
            mailbox_receive(&s->unit_box, unit_bytes, &unit_phase);
            row_choose(s, p, step + 1 < p.steps, at);
            if (step + 1 < p.steps)
                row_embed<F>(s, p, at);
        }
    }
    /* nobody leaves while another may still write into its memory */
    cluster_sync();
#else
    (void)p;
#endif
}

typedef void (*fused_rows_kernel)(struct fused_rows_params);

template <class F, int NT> static fused_rows_kernel kernel_get(size_t *shared_bytes)
{
    *shared_bytes = fused_rows_ring<fused_rows_shared<typename F::element, NT>>::BYTES;
    return fused_rows<F, NT>;
}

/* tiles: of 8 rows, in a cluster. */
template <class F> static fused_rows_kernel kernel_for(int32_t tiles, size_t *shared_bytes)
{
    switch (tiles) {
    case 1:
        return kernel_get<F, 1>(shared_bytes);
    case 2:
        return kernel_get<F, 2>(shared_bytes);
    case 3:
        return kernel_get<F, 3>(shared_bytes);
    case 4:
        return kernel_get<F, 4>(shared_bytes);
    default:
        return kernel_get<F, FUSED_ROWS_TILES>(shared_bytes);
    }
}

static fused_rows_kernel kernel_of(enum cuda_format format, int32_t tiles, size_t *shared_bytes)
{
    return format == CUDA_BF16 ? kernel_for<format_bf16>(tiles, shared_bytes)
                               : kernel_for<format_f16>(tiles, shared_bytes);
}

static void launch_config(cudaLaunchConfig_t *config, cudaLaunchAttribute *attribute,
                          int32_t clusters, size_t shared_bytes, cudaStream_t stream)
{
    *config = cudaLaunchConfig_t();
    config->gridDim = dim3(BLOCKS * clusters);
    config->blockDim = dim3(THREADS);
    config->dynamicSmemBytes = shared_bytes;
    config->stream = stream;
    attribute->id = cudaLaunchAttributeClusterDimension;
    attribute->val.clusterDim.x = BLOCKS;
    attribute->val.clusterDim.y = 1;
    attribute->val.clusterDim.z = 1;
    config->attrs = attribute;
    config->numAttrs = 1;
}

cudaError_t fused_rows_prepare(const struct network *network, int capability, int32_t *clusters)
{
    const struct model_config *config = &network->config;

#if !PGPT_CUDA_HOPPER
    capability = 0;
#endif
    *clusters = 0;
    if (capability != 90 || (network->format != CUDA_F16 && network->format != CUDA_BF16) ||
        config->d_model != D || config->decoder_heads != HEADS || config->decoder_ffn != FFN ||
        config->decoder_layers > FUSED_ROWS_LAYERS || product_units(config->vocabulary) > UNITS)
        return cudaSuccess;
    for (int32_t tiles = 1; tiles <= FUSED_ROWS_TILES; tiles++) {
        cudaLaunchAttribute attribute;
        cudaLaunchConfig_t launch;
        size_t bytes;
        const void *kernel = (const void *)kernel_of(network->format, tiles, &bytes);
        int fit = 0;

        CUDA_PASS(
            cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)bytes));
        launch_config(&launch, &attribute, 1, bytes, NULL);
        CUDA_PASS(cudaOccupancyMaxActiveClusters(&fit, kernel, &launch));
        if (tiles == 1 || fit < *clusters)
            *clusters = fit;
    }
    return cudaSuccess;
}

cudaError_t fused_rows_enqueue(const struct network *network, const struct network_step *step,
                               int32_t n, int32_t steps, int32_t clusters, cudaStream_t stream)
{
    cudaLaunchAttribute attribute;
    cudaLaunchConfig_t config;
    struct fused_rows_params p;
    fused_rows_kernel kernel;
    size_t bytes;

    fused_params_fill(network, step, &p);
    p.steps = steps;
    p.n = n;
    p.rows_each = (n + clusters - 1) / clusters;
    kernel = kernel_of(network->format, (p.rows_each + 7) / 8, &bytes);
    launch_config(&config, &attribute, (n + p.rows_each - 1) / p.rows_each, bytes, stream);
    return cudaLaunchKernelEx(&config, kernel, p);
}
