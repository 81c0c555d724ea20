/* SPDX-License-Identifier: MIT */
#include "kernels/cuda/fused_rows.h"

#include "kernels/cuda/check.h"
#include "kernels/cuda/fused_rows_kernel.cuh"

/* tiles: of 8 rows, in a cluster. */
template <class F> static struct fused_rows_variant variant_in(int32_t tiles)
{
    switch (tiles) {
    case 1:
        return fused_rows_get<F, 1, false>();
    case 2:
        return fused_rows_get<F, 2, false>();
    case 3:
        return fused_rows_get<F, 3, false>();
    case 4:
        return fused_rows_get<F, 4, false>();
    default:
        return fused_rows_get<F, FUSED_ROWS_TILES, false>();
    }
}

static struct fused_rows_variant variant_of(enum cuda_format format, int32_t tiles, bool sampled)
{
    return sampled               ? fused_rows_sampled_variant(format, tiles)
           : format == CUDA_BF16 ? variant_in<format_bf16>(tiles)
                                 : variant_in<format_f16>(tiles);
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
    for (int32_t i = 0; i < 2 * FUSED_ROWS_TILES; i++) {
        const struct fused_rows_variant variant =
            variant_of(network->format, i / 2 + 1, i % 2 != 0);
        cudaLaunchAttribute attributes[2] = {};
        cudaLaunchConfig_t launch;
        int fit = 0;

        CUDA_PASS(cudaFuncSetAttribute(variant.kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                       (int)variant.shared));
        launch_config(&launch, attributes, BLOCKS, dim3(BLOCKS), THREADS, variant.shared, false,
                      NULL);
        CUDA_PASS(cudaOccupancyMaxActiveClusters(&fit, variant.kernel, &launch));
        if (i == 0 || fit < *clusters)
            *clusters = fit;
    }
    return cudaSuccess;
}

/* Of n rows at `active`. */
static cudaError_t share_enqueue(const struct network *network, struct fused_rows_sampled_params *p,
                                 bool sampled, const int32_t *active, int32_t n, int32_t clusters,
                                 bool pdl, cudaStream_t stream)
{
    cudaLaunchAttribute attributes[2] = {};
    cudaLaunchConfig_t config;
    struct fused_rows_variant variant;
    void *args[] = {p}; /* what plain rows take stands in front */

    p->active = active;
    p->n = n;
    p->rows_each = (n + clusters - 1) / clusters;
    p->apart = p->rows_each > 16 && p->steps >= APART_STEPS ? APART : 0;
    variant = variant_of(network->format, (p->rows_each + 7) / 8, sampled);
    launch_config(&config, attributes, BLOCKS,
                  dim3(BLOCKS * ((n + p->rows_each - 1) / p->rows_each)), THREADS, variant.shared,
                  pdl, stream);
    return launch_note(cudaLaunchKernelExC(&config, variant.kernel, args), variant.kernel,
                       config.gridDim, THREADS, variant.shared);
}

cudaError_t fused_rows_enqueue(const struct network *network, const struct network_step *step,
                               int32_t n, int32_t steps, bool sampled, struct step_output out,
                               int32_t clusters, bool pdl, cudaStream_t stream)
{
    const int32_t shares = (n + fused_rows_most(clusters) - 1) / fused_rows_most(clusters);
    const int32_t each = (n + shares - 1) / shares;
    struct fused_rows_sampled_params p;

    fused_params_fill(network, step, (struct fused_rows_params *)&p);
    p.steps = steps;
    p.logits = step->logits;
    for (int32_t first = 0; first < n; first += each) {
        p.out = {out.position + first, out.finished + first, out.tokens + (size_t)first * steps,
                 out.logprobs + (size_t)first * steps};
        CUDA_PASS(share_enqueue(network, &p, sampled, step->active + first,
                                n - first < each ? n - first : each, clusters, pdl, stream));
    }
    return cudaSuccess;
}
