/* SPDX-License-Identifier: MIT */
#include "kernels/cuda/product.h"

#include "kernels/cuda/check.h"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/product_hopper.h"
#include "kernels/cuda/product_shape.h"

enum { STATIC_SHARED = 4096, TILE_PAD = 16 };

static const struct {
    int32_t rows, columns, threads;
    bool wide;
} shapes[SHAPE_COUNT] = {
    {16, 16, 128, false},          {16, 32, 256, false}, {32, WIDE_COLUMNS, 256, true},
    {64, WIDE_COLUMNS, 256, true}, {16, 16, 128, false},
};

static const struct {
    const product_kernel (*kernels)[SHAPE_COUNT];
    int32_t element; /* bytes in a tile */
    int32_t block;   /* inputs of a block of weights */
} formats[] = {
    {product_kernels_f32, 4, 16},
    {product_kernels_f16, 2, 32},
    {product_kernels_bf16, 2, 32},
    {product_kernels_int8, 2, 64},
};

static struct {
    int shared_most, multiprocessors;
} devices[PRODUCT_DEVICES];

int product_device(void)
{
    int device = 0;

    (void)cudaGetDevice(&device); /* whoever calls has chosen it */
    return device;
}

static size_t shape_shared(int shape, enum cuda_format format, int32_t K)
{
    int32_t inputs =
        shape == SHAPE_WINDOWS ? FORMAT_PARTS * NARROW_BLOCKS * formats[format].block : K;
    size_t bytes =
        (size_t)shapes[shape].rows * ((size_t)inputs * formats[format].element + TILE_PAD);

    if (K <= PRODUCT_WIDTH)
        bytes += (size_t)2 * K * sizeof(float); /* a layer norm's weights */
    if (shapes[shape].wide)
        return bytes + (size_t)wide_ring_bytes(shapes[shape].rows);
    return bytes +
           (size_t)FORMAT_PARTS * 4 * shapes[shape].rows * (shapes[shape].columns + NARROW_PAD);
}

cudaError_t product_prepare(int capability, int shared_bytes_most)
{
    int device, shared_most = shared_bytes_most - STATIC_SHARED;

    CUDA_PASS(cudaGetDevice(&device));
    if (device >= PRODUCT_DEVICES)
        return cudaErrorInvalidDevice;
    CUDA_PASS(hopper_prepare(capability));
    devices[device].shared_most = shared_most;
    CUDA_PASS(cudaDeviceGetAttribute(&devices[device].multiprocessors,
                                     cudaDevAttrMultiProcessorCount, device));
    CUDA_PASS(product_logits_prepare());
    for (int format = 0; format < 4; format++)
        for (int c = 0; c < COMBINE_COUNT; c++)
            for (int s = 0; s < SHAPE_COUNT; s++)
                if (formats[format].kernels[c][s])
                    CUDA_PASS(cudaFuncSetAttribute((const void *)formats[format].kernels[c][s],
                                                   cudaFuncAttributeMaxDynamicSharedMemorySize,
                                                   shared_most));
    return cudaSuccess;
}

static enum product_combination combination(const struct product *p)
{
    switch (p->output) {
    case PRODUCT_QKV:
        return p->input == PRODUCT_EMBED ? COMBINE_EMBED_QKV : COMBINE_NORM_QKV;
    case PRODUCT_RESIDUAL:
        return COMBINE_ROWS_RESIDUAL;
    case PRODUCT_LOGITS:
        return COMBINE_NORM_LOGITS;
    case PRODUCT_CROSS:
        return COMBINE_NORM_CROSS;
    default:
        return p->input == PRODUCT_EMBED ? COMBINE_EMBED_PLAIN : COMBINE_NORM_PLAIN;
    }
}

/* Bits are the same in every shape; only the time differs. */
static int shape_choose(const struct product *p, enum product_combination combine, int32_t n)
{
    enum cuda_format format = p->weight.format;
    const product_kernel *kernels = formats[format].kernels[combine];
    int64_t tiles = (p->weight.N + WIDE_COLUMNS - 1) / WIDE_COLUMNS;
    bool broad = combine == COMBINE_EMBED_QKV || combine == COMBINE_NORM_QKV ||
                 combine == COMBINE_NORM_LOGITS;
    const int multiprocessors = devices[product_device()].multiprocessors;
    const size_t shared_most = (size_t)devices[product_device()].shared_most;
    int wanted;

    if (combine == COMBINE_NORM_LOGITS && tiles > 2 * multiprocessors && n > 16)
        wanted =
            n <= 32 ? SHAPE_WIDE_32 : SHAPE_WIDE_64; /* norm the rows once a block, not a tile */
    else if (n <= 128)
        wanted = broad ? SHAPE_NARROW_32 : SHAPE_NARROW_16;
    else if (tiles * ((n + 63) / 64) >= multiprocessors)
        wanted = SHAPE_WIDE_64;
    else
        wanted = SHAPE_WIDE_32;
    if (kernels[wanted] && shape_shared(wanted, format, p->weight.K) <= shared_most)
        return wanted;
    /* another that exists and fits: wide ones first, for many rows may have to share a launch */
    for (int s = SHAPE_WIDE_32; s >= 0; s--)
        if (kernels[s] && shape_shared(s, format, p->weight.K) <= shared_most)
            return s;
    return SHAPE_WINDOWS; /* what is not in front of a norm fits in no other */
}

bool product_many(enum cuda_format format, int32_t n_most)
{
    return hopper_takes(format, n_most);
}

cudaError_t product_embed_enqueue(const struct product *product, int32_t n_most, bool pdl,
                                  cudaStream_t stream)
{
    return hopper_embed_enqueue(product, n_most, pdl, stream);
}

cudaError_t product_enqueue(const struct product *product, int32_t n_most, bool pdl,
                            cudaStream_t stream)
{
    enum cuda_format format = product->weight.format;
    enum product_combination combine = combination(product);
    const int multiprocessors = devices[product_device()].multiprocessors;
    int32_t rows, columns;
    size_t shared;
    int shape;

    if (product->input == PRODUCT_ROWS && product->output != PRODUCT_RESIDUAL)
        return hopper_enqueue(product, n_most, pdl, stream);
    shape = shape_choose(product, combine, n_most);
    shared = shape_shared(shape, format, product->weight.K);
    rows = (n_most + shapes[shape].rows - 1) / shapes[shape].rows;
    columns = (product->weight.N + shapes[shape].columns - 1) / shapes[shape].columns;

    if (combine == COMBINE_NORM_LOGITS && product_logits_takes(product, n_most, multiprocessors))
        return product_logits_enqueue(product, n_most, multiprocessors, pdl, stream);
    /* more tiles than fit at once: a block walks over several columns, so that rows are read once
     */
    if (shapes[shape].wide) {
        size_t room = (size_t)(devices[product_device()].shared_most + STATIC_SHARED);
        int32_t each = (int32_t)(room / (shared + 3072));
        int32_t most = (each > 0 ? each : 1) * multiprocessors / rows;

        if (most < 1)
            most = 1;
        if (columns > most) {
            int32_t turns = (columns + most - 1) / most;

            columns = (columns + turns - 1) / turns;
        }
    }
    return launch(formats[format].kernels[combine][shape], dim3(columns, rows),
                  shapes[shape].threads, shared, pdl, stream, *product);
}
