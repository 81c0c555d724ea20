/* SPDX-License-Identifier: MIT */
#include "kernels/cuda/product_stream.cuh"

#include "kernels/cuda/check.h"
#include "kernels/cuda/product_shape.h"

enum { TILE_THREADS = 256 };

static const product_kernel kernels[2][2] = {
    {product_stream<format_f16, PRODUCT_QKV>, product_stream<format_f16, PRODUCT_LOGITS>},
    {product_stream<format_bf16, PRODUCT_QKV>, product_stream<format_bf16, PRODUCT_LOGITS>},
};

static int multiprocessors[PRODUCT_DEVICES]; /* 0: not a device for it */

cudaError_t stream_prepare(int capability)
{
    int *count = &multiprocessors[product_device()];

#if !PGPT_CUDA_HOPPER
    capability = 0;
#endif
    *count = 0;
    if (capability != 90)
        return cudaSuccess;
    for (int bf16 = 0; bf16 < 2; bf16++)
        for (int logits = 0; logits < 2; logits++)
            CUDA_PASS(cudaFuncSetAttribute((const void *)kernels[bf16][logits],
                                           cudaFuncAttributeMaxDynamicSharedMemorySize,
                                           STREAM_SHARED));
    return cudaDeviceGetAttribute(count, cudaDevAttrMultiProcessorCount, product_device());
}

size_t stream_tiled_bytes(const struct cuda_weight *weight)
{
    if (!multiprocessors[product_device()] ||
        (weight->format != CUDA_F16 && weight->format != CUDA_BF16) || weight->K != STREAM_INPUTS)
        return 0;
    return (size_t)product_padded(weight->N) * weight->K * 2;
}

cudaError_t stream_tile(const struct cuda_weight *weight)
{
    const int64_t words = (int64_t)(stream_tiled_bytes(weight) / 16);

    return launch(stream_tile_words, dim3((unsigned)((words + TILE_THREADS - 1) / TILE_THREADS)),
                  TILE_THREADS, 0, false, (cudaStream_t)0, *weight, words);
}

static int32_t tiles_of(const struct product *p)
{
    return (p->weight.N + STREAM_COLUMNS - 1) / STREAM_COLUMNS;
}

/* At least two tiles a multiprocessor: a block wants all of one to itself, so it begins when
 * everything else there has ended, and has to make up for that. */
bool stream_takes(const struct product *product, int32_t n_most)
{
    const int32_t rows = (n_most + STREAM_ROWS - 1) / STREAM_ROWS;

    return product->weight.tiled && n_most >= STREAM_ROWS_LEAST &&
           (product->output == PRODUCT_LOGITS ||
            (product->output == PRODUCT_QKV && !product->scales_k)) &&
           rows * tiles_of(product) >= 2 * multiprocessors[product_device()];
}

/* Each block has as many tiles of columns as any other, or one less. */
cudaError_t stream_enqueue(const struct product *product, int32_t n_most, bool pdl,
                           cudaStream_t stream)
{
    const int32_t rows = (n_most + STREAM_ROWS - 1) / STREAM_ROWS, tiles = tiles_of(product);
    const int32_t cluster = rows % STREAM_BLOCKS ? 1 : STREAM_BLOCKS;
    const int32_t most = multiprocessors[product_device()] / rows;
    const int32_t turns = most < 1 ? tiles : (tiles + most - 1) / most;

    return launch_cluster(
        kernels[product->weight.format == CUDA_BF16][product->output == PRODUCT_LOGITS], cluster,
        dim3(rows, (tiles + turns - 1) / turns), STREAM_THREADS, (size_t)STREAM_SHARED, pdl, stream,
        *product);
}
