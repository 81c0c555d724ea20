/* SPDX-License-Identifier: MIT */
#include "kernels/cuda/product_hopper.h"

#include "kernels/cuda/check.h"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/product_stream.h"

enum { ROW_WARPS = 4 }; /* of the kernels that take a row a warp */

enum { BLOCKS = 2 }; /* that fit a multiprocessor */

static const struct {
    int32_t rows, columns, split;
} shapes[HOPPER_SHAPES] = {{32, 64, 2}, {64, 128, 1}, {64, 64, 2}};

static int multiprocessors[PRODUCT_DEVICES]; /* 0: not a device for it */

static const struct hopper_format *format_of(enum cuda_format format)
{
    return format == CUDA_F16 ? &hopper_f16 : format == CUDA_BF16 ? &hopper_bf16 : NULL;
}

static int shared_bytes(int shape)
{
    return hopper_info_at(shapes[shape].rows, shapes[shape].split) + shapes[shape].rows * 16;
}

static int32_t turns_of(int32_t count, int32_t each)
{
    return (count + each - 1) / each;
}

/* ---- long rows: product_parts.cuh ---- */

/* Which kernel of parts a product's inputs want; -1: none. */
static int parts_kind(const struct product *p)
{
    for (int kind = 0; kind < PARTS_KINDS; kind++)
        if (p->output == PRODUCT_RESIDUAL && p->weight.K == FORMAT_PARTS * PARTS_INPUTS << kind)
            return kind;
    return -1;
}

static int parts_shared(int32_t rows, int kind)
{
    return parts_box_at(rows, PARTS_INPUTS << kind) + 16;
}

/* Rows of a tile; 0: there are so many that other tiles are better. */
static int32_t parts_rows(const struct product *p, int kind, int32_t n)
{
    const int32_t most = BLOCKS * multiprocessors[product_device()];
    const int32_t columns = FORMAT_PARTS * turns_of(p->weight.N, PARTS_COLUMNS);

    if (kind < 0 || turns_of(n, 64) * columns > most)
        return 0;
    return turns_of(n, 32) * columns <= most || kind == PARTS_KINDS - 1 ? 32 : 64;
}

/* A cluster of FORMAT_PARTS blocks a tile. */
static cudaError_t parts_enqueue(const struct product *product, int kind, int32_t rows,
                                 int32_t n_most, bool pdl, cudaStream_t stream)
{
    return launch(
        format_of(product->weight.format)->parts[rows == 64][kind],
        dim3(FORMAT_PARTS * turns_of(product->weight.N, PARTS_COLUMNS), turns_of(n_most, rows)),
        PARTS_THREADS, (size_t)parts_shared(rows, kind), pdl, stream, *product);
}

static cudaError_t parts_prepare(const struct hopper_format *format)
{
    for (int wide = 0; wide < 2; wide++)
        for (int kind = 0; kind < PARTS_KINDS; kind++)
            if (format->parts[wide][kind])
                CUDA_PASS(cudaFuncSetAttribute((const void *)format->parts[wide][kind],
                                               cudaFuncAttributeMaxDynamicSharedMemorySize,
                                               parts_shared(wide ? 64 : 32, kind)));
    return cudaSuccess;
}

cudaError_t hopper_prepare(int capability)
{
    int *count = &multiprocessors[product_device()];

#if !PGPT_CUDA_HOPPER
    capability = 0;
#endif
    *count = 0;
    CUDA_PASS(stream_prepare(capability));
    if (capability != 90)
        return cudaSuccess;
    for (int format = CUDA_F16; format <= CUDA_BF16; format++) {
        CUDA_PASS(parts_prepare(format_of((enum cuda_format)format)));
        for (int output = 0; output < HOPPER_OUTPUTS; output++)
            for (int shape = 0; shape < HOPPER_SHAPES; shape++)
                for (int inputs = 0; inputs < HOPPER_INPUTS; inputs++)
                    CUDA_PASS(cudaFuncSetAttribute((const void *)format_of((enum cuda_format)format)
                                                       ->product[output][shape][inputs],
                                                   cudaFuncAttributeMaxDynamicSharedMemorySize,
                                                   shared_bytes(shape)));
    }
    return cudaDeviceGetAttribute(count, cudaDevAttrMultiProcessorCount, product_device());
}

bool hopper_takes(enum cuda_format format, int32_t n_most)
{
    return multiprocessors[product_device()] && format_of(format) && n_most >= HOPPER_ROWS_LEAST;
}

static enum hopper_output output_of(const struct product *p)
{
    switch (p->output) {
    case PRODUCT_QKV:
        return HOPPER_QKV;
    case PRODUCT_CROSS:
        return HOPPER_CROSS;
    case PRODUCT_LOGITS:
        return HOPPER_LOGITS;
    case PRODUCT_RESIDUAL:
        return HOPPER_RESIDUAL;
    default:
        return p->activation == PRODUCT_ACT_NONE ? HOPPER_PLAIN : HOPPER_ACTIVE;
    }
}

static enum hopper_inputs inputs_of(int32_t K)
{
    return K == 512 ? HOPPER_512 : K == 256 ? HOPPER_256 : K % 1024 ? HOPPER_ANY : HOPPER_1024;
}

static int32_t tiles_of(enum hopper_shape shape, int32_t N, int32_t n)
{
    return turns_of(n, shapes[shape].rows) * turns_of(N, shapes[shape].columns);
}

/* Small tiles as long as all of them fit at once; beside other kernels those that read least for
 * each of their results. */
static enum hopper_shape shape_choose(const struct product *p, int32_t n)
{
    const int32_t most = BLOCKS * multiprocessors[product_device()], N = p->weight.N;

    return p->beside                                ? HOPPER_64
           : tiles_of(HOPPER_32, N, n) <= most      ? HOPPER_32
           : tiles_of(HOPPER_64_SLIM, N, n) <= most ? HOPPER_64_SLIM
                                                    : HOPPER_64;
}

/* Over how many blocks the tiles of columns are shared out, each with several in turn, so that the
 * multiprocessor with most to do has least. A block's rows cost half of what a tile does; blocks
 * that are alone on a multiprocessor have nobody to fill their waits. */
static int32_t columns_choose(int32_t rows, int32_t tiles)
{
    const int32_t count = multiprocessors[product_device()];
    int32_t best = tiles, least = INT32_MAX;

    for (int32_t turns = 1; turns <= tiles; turns++) {
        const int32_t columns = turns_of(tiles, turns);
        const int32_t cost = turns_of(rows * columns, count) * (2 * turns + 1);

        if (turns > 1 && rows * columns <= count)
            break;
        if (cost <= least) {
            least = cost;
            best = columns;
        }
    }
    return best;
}

static cudaError_t rows_enqueue(product_kernel kernel, const struct product *product,
                                int32_t n_most, bool pdl, cudaStream_t stream)
{
    return launch(kernel, dim3((n_most + ROW_WARPS - 1) / ROW_WARPS), ROW_WARPS * 32, 0, pdl,
                  stream, *product);
}

/* Its residual sum lies where the norm will lie. */
static cudaError_t normed_enqueue(const struct product *product, int32_t n_most, bool pdl,
                                  cudaStream_t stream)
{
    struct product p = *product;

    p.output = PRODUCT_RESIDUAL;
    p.out = product->x_out;
    CUDA_PASS(hopper_enqueue(&p, n_most, pdl, stream));
    return rows_enqueue(
        format_of(product->weight.format)->norm[product->weight.N / PRODUCT_INPUTS - 1], product,
        n_most, pdl, stream);
}

cudaError_t hopper_enqueue(const struct product *product, int32_t n_most, bool pdl,
                           cudaStream_t stream)
{
    enum hopper_shape shape = shape_choose(product, n_most);
    enum hopper_inputs inputs = inputs_of(product->weight.K);
    int32_t rows = turns_of(n_most, shapes[shape].rows);
    int32_t columns = turns_of(product->weight.N, shapes[shape].columns);
    const int kind = parts_kind(product);
    const int32_t parts = parts_rows(product, kind, n_most);

    if (product->output == PRODUCT_NORMED)
        return normed_enqueue(product, n_most, pdl, stream);
    if (stream_takes(product, n_most))
        return stream_enqueue(product, n_most, pdl, stream);
    if (parts)
        return parts_enqueue(product, kind, parts, n_most, pdl, stream);
    if (shapes[shape].split == 1)
        columns = columns_choose(rows, columns);
    return launch(format_of(product->weight.format)->product[output_of(product)][shape][inputs],
                  dim3(columns, rows), 256, (size_t)shared_bytes(shape), pdl, stream, *product);
}

cudaError_t hopper_embed_enqueue(const struct product *product, int32_t n_most, bool pdl,
                                 cudaStream_t stream)
{
    return rows_enqueue(
        format_of(product->weight.format)->embed[product->weight.K / PRODUCT_INPUTS - 1], product,
        n_most, pdl, stream);
}
