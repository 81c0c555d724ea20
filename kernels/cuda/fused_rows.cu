/* SPDX-License-Identifier: MIT */
#include "kernels/cuda/fused_rows.h"

#include "kernels/cuda/check.h"
#include "kernels/cuda/fused_rows_parts.cuh"
#include "kernels/cuda/launch.cuh"

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
    const int first = (int)(blockIdx.x / BLOCKS) * p.rows_each;
    at.rows = min(p.rows_each, p.n - first);
    at.own = (at.rows - at.rank + BLOCKS - 1) / BLOCKS;

    for (int i = threadIdx.x; i < (int)(sizeof *s / 16); i += THREADS)
        ((uint4 *)shared)[i] = make_uint4(0, 0, 0, 0);
    __syncthreads();
    biases_begin(s, p, at.rank);
    if (threadIdx.x == 0) {
        s->pieces = plan_make(s->plan, p, at.rank);
        s->all = s->pieces * p.steps;
    }
    if (threadIdx.x == 0) {
        mailbox_open(&s->x_box, at.rows * D * sizeof(T));
        mailbox_open(&s->o_box, at.rows * D * sizeof(T));
        mailbox_open(&s->h_box, at.rows * FFN * sizeof(T));
        mailbox_open(&s->y_box, at.own * D * 4);
        mailbox_open(&s->unit_box, at.own * units_bytes(p.rules));
        mailbox_open(&s->state_box, at.rows * 4);
    }
    if (threadIdx.x < 2 * FULLS)
        ring_open(&s->full[0][threadIdx.x]);
    cluster_sync(); /* everybody's memory is ready to be written to */
    if (threadIdx.x < 2 * fused_rows_ring<S>::SLOTS && (int)threadIdx.x < 2 * s->all) {
        const struct fused_rows_piece none = {0, 0};

        piece_fetch(s, piece_ahead(s, none, threadIdx.x / 2), threadIdx.x % 2);
    }
    launch_wait();
    launch_next();
    rows_begin(s, p, first, at);
    __syncthreads();
    begin_apart((int)blockIdx.x / BLOCKS, p.apart);
    struct fused_rows_piece next = {0, 0}; /* weights */
    uint32_t phases = 0;
    struct format_weights w[4];

    if (at.warp < at.own)
        row_embed<F>(s, p, at);
#pragma unroll 1
    for (int step = 0; step < p.steps; step++) {
        if (step)
            letter_receive(&s->state_box, LETTER_STATE, &phases, here(at.rows) * 4);
#pragma unroll 1
        for (int l = 0; l < p.layers; l++) {
            const struct fused_layer &layer = p.layer[l];
            const struct fused_rows_biases &bias = s->layer[l];

            /* self-attention: x -> q, k, v -> o */
            letter_receive(&s->x_box, LETTER_X, &phases, here(at.rows) * D * sizeof(T));
            if (place_part(at) < 3) {
                round_run<F>(s, piece_ahead(s, next, place_part(at) * TILES), at);
                head_put<T>(s, p, l, bias.qkv, at);
            }
            next = piece_ahead(s, next, 3 * TILES);
            __syncthreads();
            attend<T>(s, p.self, l, false, at);
            /* out: o -> y -> norm -> x */
            product_take<F, D, TILES>(s, w, &next, at);
            letter_receive(&s->o_box, LETTER_O, &phases, here(at.rows) * D * sizeof(T));
            product_run<F, D, TILES>(s, w, s->o, at);
            residual_send(s, bias.out, at);
            product_refill<D, TILES>(s, next, at);
            row_norm<T>(s, layer.self_norm, &phases, at);
            product_take<F, D, TILES>(s, w, &next, at);
            letter_receive(&s->x_box, LETTER_X, &phases, here(at.rows) * D * sizeof(T));
            /* cross-attention: x -> q -> o */
            product_run<F, D, TILES>(s, w, s->x, at);
            query_put<T>(s, bias.cross_q, at);
            product_refill<D, TILES>(s, next, at);
            __syncthreads();
            attend<T>(s, p.cross, l, true, at);
            product_take<F, D, TILES>(s, w, &next, at);
            letter_receive(&s->o_box, LETTER_O, &phases, here(at.rows) * D * sizeof(T));
            product_run<F, D, TILES>(s, w, s->o, at);
            residual_send(s, bias.cross_out, at);
            product_refill<D, TILES>(s, next, at);
            row_norm<T>(s, layer.cross_norm, &phases, at);
            product_take<F, D, HIDDEN / 16>(s, w, &next, at);
            letter_receive(&s->x_box, LETTER_X, &phases, here(at.rows) * D * sizeof(T));
            /* feed-forward: x -> h -> y -> norm -> x */
            product_run<F, D, HIDDEN / 16>(s, w, s->x, at);
            hidden_send<T>(s, p, bias.fc1, at);
            product_refill<D, HIDDEN / 16>(s, next, at);
            product_take<F, FFN, TILES>(s, w, &next, at);
            letter_receive(&s->h_box, LETTER_H, &phases, here(at.rows) * FFN * sizeof(T));
            product_run<F, FFN, TILES>(s, w, s->o, at);
            residual_send(s, bias.fc2, at);
            product_refill<FFN, TILES>(s, next, at);
            row_norm<T>(s, layer.norm, &phases, at);
        }
        /* logits: x -> units -> tokens -> x */
        letter_receive(&s->x_box, LETTER_X, &phases, here(at.rows) * D * sizeof(T));
        const int rounds = rounds_of(p.rules, here(at.rank));

#pragma unroll 1
        for (int round = place_part(at); round < rounds; round += FORMAT_PARTS) {
            round_run<F>(s, piece_ahead(s, next, round * TILES), at);
            units_send(s, p, round, at);
        }
        next = piece_ahead(s, next, rounds * TILES);
        if (at.warp < at.own) {
            letter_receive(&s->unit_box, LETTER_UNIT, &phases, here(at.own) * units_bytes(p.rules));
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

static void launch_config(cudaLaunchConfig_t *config, cudaLaunchAttribute *attributes,
                          int32_t clusters, size_t shared_bytes, bool pdl, cudaStream_t stream)
{
    *config = cudaLaunchConfig_t();
    config->gridDim = dim3(BLOCKS * clusters);
    config->blockDim = dim3(THREADS);
    config->dynamicSmemBytes = shared_bytes;
    config->stream = stream;
    attributes[0].id = cudaLaunchAttributeClusterDimension;
    attributes[0].val.clusterDim.x = BLOCKS;
    attributes[0].val.clusterDim.y = 1;
    attributes[0].val.clusterDim.z = 1;
    attributes[1].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes[1].val.programmaticStreamSerializationAllowed = 1;
    config->attrs = attributes;
    config->numAttrs = pdl ? 2 : 1;
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
        cudaLaunchAttribute attributes[2];
        cudaLaunchConfig_t launch;
        size_t bytes;
        const void *kernel = (const void *)kernel_of(network->format, tiles, &bytes);
        int fit = 0;

        CUDA_PASS(
            cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)bytes));
        launch_config(&launch, attributes, 1, bytes, false, NULL);
        CUDA_PASS(cudaOccupancyMaxActiveClusters(&fit, kernel, &launch));
        if (tiles == 1 || fit < *clusters)
            *clusters = fit;
    }
    return cudaSuccess;
}

/* Of n rows at `active`. */
static cudaError_t share_enqueue(const struct network *network, struct fused_rows_params *p,
                                 const int32_t *active, int32_t n, int32_t clusters, bool pdl,
                                 cudaStream_t stream)
{
    cudaLaunchAttribute attributes[2];
    cudaLaunchConfig_t config;
    fused_rows_kernel kernel;
    size_t bytes;

    p->active = active;
    p->n = n;
    p->rows_each = (n + clusters - 1) / clusters;
    p->apart = p->rows_each > 16 && p->steps >= APART_STEPS ? APART : 0;
    kernel = kernel_of(network->format, (p->rows_each + 7) / 8, &bytes);
    launch_config(&config, attributes, (n + p->rows_each - 1) / p->rows_each, bytes, pdl, stream);
    return cudaLaunchKernelEx(&config, kernel, *p);
}

cudaError_t fused_rows_enqueue(const struct network *network, const struct network_step *step,
                               int32_t n, int32_t steps, int32_t clusters, bool pdl,
                               cudaStream_t stream)
{
    const int32_t shares = (n + fused_rows_most(clusters) - 1) / fused_rows_most(clusters);
    const int32_t each = (n + shares - 1) / shares;
    struct fused_rows_params p;

    fused_params_fill(network, step, &p);
    p.steps = steps;
    for (int32_t first = 0; first < n; first += each)
        CUDA_PASS(share_enqueue(network, &p, step->active + first,
                                n - first < each ? n - first : each, clusters, pdl, stream));
    return cudaSuccess;
}
