/* SPDX-License-Identifier: MIT
 *
 * check: CUDA calls into errors. A failed call names what was being done, the statement, the
 * device's words and the place; launches are checked the same way (cuda_launch in launch.cuh
 * returns their status).
 */
#ifndef PGPT_KERNELS_CUDA_CHECK_H
#define PGPT_KERNELS_CUDA_CHECK_H

#include <cuda_runtime.h>

#include "kernels/base/error.h"

/* "; kernel NAME, GRID x THREADS ..." when this thread's last launch failed with that status, else
 * "" (check.cu). */
const char *launch_failure(cudaError_t status);

/* error_set() with the CUDA error's name and text; always -1. */
static inline int cuda_fail(struct error *error, cudaError_t status, const char *what,
                            const char *file, int line)
{
    return error_set(error, "CUDA: %s: %s (%s) at %s:%d%s", what, cudaGetErrorString(status),
                     cudaGetErrorName(status), file, line, launch_failure(status));
}

/* Evaluates a CUDA call; on failure fills `error` and goes to `label`. */
#define CUDA_TRY(call, error, label)                                                               \
    do {                                                                                           \
        cudaError_t cuda_try_status = (call);                                                      \
        if (cuda_try_status != cudaSuccess) {                                                      \
            cuda_fail(error, cuda_try_status, #call, __FILE__, __LINE__);                          \
            goto label;                                                                            \
        }                                                                                          \
    } while (0)

/* Inside functions that return cudaError_t. */
#define CUDA_PASS(call)                                                                            \
    do {                                                                                           \
        cudaError_t cuda_pass_status = (call);                                                     \
        if (cuda_pass_status != cudaSuccess)                                                       \
            return cuda_pass_status;                                                               \
    } while (0)

#endif
