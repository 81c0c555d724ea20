/* SPDX-License-Identifier: MIT */
#include "kernels/cuda/check.h"

#include <stdio.h>

#include "kernels/cuda/launch.cuh"

static thread_local cudaError_t failed_status;
static thread_local char failed_launch[320];

cudaError_t launch_note(cudaError_t status, const void *kernel, dim3 grid, int threads,
                        size_t shared)
{
    const char *name = "?";

    if (status == cudaSuccess)
        return status;
    failed_status = status;
    if (cudaFuncGetName(&name, kernel) != cudaSuccess)
        name = "?";
    snprintf(failed_launch, sizeof failed_launch,
             "; kernel %.200s, %u x %u x %u blocks of %d threads, %zu bytes of shared memory", name,
             grid.x, grid.y, grid.z, threads, shared);
    return status;
}

const char *launch_failure(cudaError_t status)
{
    return status != cudaSuccess && status == failed_status ? failed_launch : "";
}
