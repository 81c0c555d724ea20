/* SPDX-License-Identifier: MIT */
#include <stdlib.h>
#include <string.h>

#include "kernels/cuda/check.h"
#include "kernels/cuda/format.cuh"
#include "kernels/tool/floor.h"

enum { THREADS = 256, REPEATS = 7, MMA_ROUNDS = 4096, BARRIERS = 2000, CLUSTER = 8 };

/* Every byte of data (16 count) once. */
static __global__ void floor_read(const uint4 *data, size_t count, uint32_t *out)
{
    size_t stride = (size_t)gridDim.x * blockDim.x;
    uint32_t all = 0;

    for (size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x; i < count; i += 4 * stride) {
        uint4 v[4];

#pragma unroll
        for (int j = 0; j < 4; j++)
            v[j] = i + j * stride < count ? __ldcg(data + i + j * stride) : make_uint4(0, 0, 0, 0);
#pragma unroll
        for (int j = 0; j < 4; j++)
            all ^= v[j].x ^ v[j].y ^ v[j].z ^ v[j].w;
    }
    if (all == 0xdeadbeef) /* keeps the loads */
        *out = all;
}

/* 8 independent chains of the format's matrix instruction a warp. */
template <class F> static __global__ void floor_multiply(typename F::part *out)
{
    typename F::part acc[8][4] = {};
    struct format_weights w;

    w.half[0] = make_uint4(threadIdx.x, 1, 2, 3);
    w.half[1] = make_uint4(3, 2, 1, threadIdx.x);
    for (int i = 0; i < MMA_ROUNDS / 8; i++)
#pragma unroll
        for (int j = 0; j < 8; j++)
            F::mma(acc[j], w.half[j & 1], 0x3c003c00u, threadIdx.x);
    for (int j = 0; j < 8; j++)
        if (acc[j][0] == (typename F::part)123456789)
            *out = acc[j][0];
}

static __global__ void floor_fma(float *out)
{
    float acc[8] = {}, x = (float)threadIdx.x, y = 1.0f / (x + 1.0f);

    for (int i = 0; i < MMA_ROUNDS; i++)
#pragma unroll
        for (int j = 0; j < 8; j++)
            acc[j] = __fmaf_rn(acc[j], y, x);
    for (int j = 0; j < 8; j++)
        if (acc[j] == 123456789.0f)
            *out = acc[j];
}

/* Barriers of a cluster of 8 blocks, the cheapest way for blocks to meet; without clusters, an
 * empty kernel: then a launch in a row of them is the barrier. */
static __global__ void floor_barrier(void)
{
#if __CUDA_ARCH__ >= 900
    for (int i = 0; i < BARRIERS; i++)
        asm volatile(
            "barrier.cluster.arrive.release.aligned;\n\tbarrier.cluster.wait.acquire.aligned;" ::
                : "memory");
#endif
}

static int compare(const void *a, const void *b)
{
    float x = *(const float *)a, y = *(const float *)b;

    return x < y ? -1 : x > y;
}

enum floor_kind { FLOOR_READ, FLOOR_MULTIPLY, FLOOR_BARRIER };

struct floor_device {
    enum cuda_format format;
    int multiprocessors, capability;
    const uint4 *data;
    size_t count;
    uint32_t *out;
};

static cudaError_t barrier_enqueue(const struct floor_device *d)
{
    cudaLaunchConfig_t config = cudaLaunchConfig_t();
    cudaLaunchAttribute attribute;

    config.gridDim = dim3(CLUSTER);
    config.blockDim = dim3(THREADS);
    attribute.id = cudaLaunchAttributeClusterDimension;
    attribute.val.clusterDim.x = CLUSTER;
    attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
    config.attrs = &attribute;
    config.numAttrs = d->capability >= 90 ? 1 : 0;
    for (int i = 0; i < (d->capability >= 90 ? 1 : BARRIERS); i++)
        CUDA_PASS(cudaLaunchKernelEx(&config, floor_barrier));
    return cudaSuccess;
}

static cudaError_t kind_enqueue(const struct floor_device *d, enum floor_kind kind)
{
    int blocks = d->multiprocessors * 8;

    if (kind == FLOOR_BARRIER)
        return barrier_enqueue(d);
    if (kind == FLOOR_READ)
        floor_read<<<blocks, THREADS>>>(d->data, d->count, d->out);
    else if (d->format == CUDA_F32)
        floor_fma<<<blocks, THREADS>>>((float *)d->out);
    else if (d->format == CUDA_F16)
        floor_multiply<format_f16><<<blocks, THREADS>>>((float *)d->out);
    else if (d->format == CUDA_BF16)
        floor_multiply<format_bf16><<<blocks, THREADS>>>((float *)d->out);
    else
        floor_multiply<format_int8><<<blocks, THREADS>>>((int32_t *)d->out);
    return cudaGetLastError();
}

/* Median time of one run in microseconds, after a warm-up. */
static int kind_time(const struct floor_device *d, enum floor_kind kind, double *us,
                     struct error *error)
{
    float ms[REPEATS];
    cudaEvent_t begun = NULL, ended = NULL;
    int result = -1;

    CUDA_TRY(cudaEventCreate(&begun), error, out);
    CUDA_TRY(cudaEventCreate(&ended), error, out);
    for (int i = -2; i < REPEATS; i++) {
        CUDA_TRY(cudaEventRecord(begun), error, out);
        CUDA_TRY(kind_enqueue(d, kind), error, out);
        CUDA_TRY(cudaEventRecord(ended), error, out);
        CUDA_TRY(cudaEventSynchronize(ended), error, out);
        if (i >= 0)
            CUDA_TRY(cudaEventElapsedTime(&ms[i], begun, ended), error, out);
    }
    qsort(ms, REPEATS, sizeof ms[0], compare);
    *us = 1000.0 * ms[REPEATS / 2];
    result = 0;
out:
    if (begun)
        (void)cudaEventDestroy(begun);
    if (ended)
        (void)cudaEventDestroy(ended);
    return result;
}

static double multiply_operations(const struct floor_device *d)
{
    double warps = d->multiprocessors * 8.0 * THREADS / 32;

    if (d->format == CUDA_F32)
        return warps * 32 * 8 * MMA_ROUNDS * 2;
    return warps * MMA_ROUNDS * 2.0 * 16 * 8 * (d->format == CUDA_INT8 ? 32 : 16);
}

static enum cuda_format format_of(const char *compute)
{
    if (!strcmp(compute, "fp32"))
        return CUDA_F32;
    if (!strcmp(compute, "bf16"))
        return CUDA_BF16;
    return !strcmp(compute, "int8") || !strcmp(compute, "dynamic") ? CUDA_INT8 : CUDA_F16;
}

int engine_floor_cuda(const struct engine_floor_need *need, struct engine_floor *floor,
                      struct error *error)
{
    int device = need->device[4] == ':' ? atoi(need->device + 5) : 0, major = 0, minor = 0,
        result = -1;
    size_t bytes = ((size_t)need->bytes + 4095) / 4096 * 4096;
    double read_us, multiply_us, barrier_us;
    struct floor_device d;

    memset(&d, 0, sizeof d);
    d.format = format_of(need->compute);
    d.count = bytes / 16;
    CUDA_TRY(cudaSetDevice(device), error, out);
    CUDA_TRY(cudaDeviceGetAttribute(&d.multiprocessors, cudaDevAttrMultiProcessorCount, device),
             error, out);
    CUDA_TRY(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device), error, out);
    CUDA_TRY(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device), error, out);
    d.capability = major * 10 + minor;
    CUDA_TRY(cudaMalloc((void **)&d.data, bytes), error, out);
    CUDA_TRY(cudaMemset((void *)d.data, 1, bytes), error, out);
    CUDA_TRY(cudaMalloc((void **)&d.out, sizeof *d.out), error, out);
    if (kind_time(&d, FLOOR_READ, &read_us, error) ||
        kind_time(&d, FLOOR_MULTIPLY, &multiply_us, error) ||
        kind_time(&d, FLOOR_BARRIER, &barrier_us, error))
        goto out;
    floor->bytes_per_us = (double)bytes / read_us;
    floor->operations_per_us = multiply_operations(&d) / multiply_us;
    floor->barrier_us = barrier_us / BARRIERS;
    result = 0;
out:
    (void)cudaFree((void *)d.data);
    (void)cudaFree(d.out);
    return result;
}
