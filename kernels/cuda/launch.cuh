/* SPDX-License-Identifier: MIT
 *
 * launch: how every kernel of this back end starts. With pdl a kernel may begin while the one
 * before it drains: it prefetches what does not depend on that one, then calls launch_wait(). A
 * kernel calls launch_next() only after its own launch_wait(), so whatever was written two kernels
 * ago is visible even before launch_wait().
 */
#ifndef PGPT_KERNELS_CUDA_LAUNCH_CUH
#define PGPT_KERNELS_CUDA_LAUNCH_CUH

#include <cuda_runtime.h>

static __device__ __forceinline__ void launch_wait(void)
{
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

static __device__ __forceinline__ void launch_next(void)
{
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

/* Keeps which launch of this thread failed and how, for launch_failure(); returns status. */
cudaError_t launch_note(cudaError_t status, const void *kernel, dim3 grid, int threads,
                        size_t shared);

/* attributes: two, which stay with config. cluster: blocks in x that form one; 0: as the kernel has
 * it. */
static inline void launch_config(cudaLaunchConfig_t *config, cudaLaunchAttribute *attributes,
                                 int cluster, dim3 grid, int threads, size_t shared, bool pdl,
                                 cudaStream_t stream)
{
    *config = cudaLaunchConfig_t();
    config->gridDim = grid;
    config->blockDim = dim3(threads);
    config->dynamicSmemBytes = shared;
    config->stream = stream;
    config->attrs = attributes;
    if (pdl) {
        attributes[config->numAttrs].id = cudaLaunchAttributeProgrammaticStreamSerialization;
        attributes[config->numAttrs++].val.programmaticStreamSerializationAllowed = 1;
    }
    if (cluster) {
        attributes[config->numAttrs].id = cudaLaunchAttributeClusterDimension;
        attributes[config->numAttrs].val.clusterDim.x = (unsigned)cluster;
        attributes[config->numAttrs].val.clusterDim.y = 1;
        attributes[config->numAttrs++].val.clusterDim.z = 1;
    }
}

/* cluster: as launch_config() has it. */
template <typename... Params, typename... Args>
static cudaError_t launch_cluster(void (*kernel)(Params...), int cluster, dim3 grid, int threads,
                                  size_t shared, bool pdl, cudaStream_t stream, Args... args)
{
    cudaLaunchConfig_t config;
    cudaLaunchAttribute attributes[2] = {};

    launch_config(&config, attributes, cluster, grid, threads, shared, pdl, stream);
    return launch_note(cudaLaunchKernelEx(&config, kernel, Params(args)...), (const void *)kernel,
                       grid, threads, shared);
}

template <typename... Params, typename... Args>
static cudaError_t launch(void (*kernel)(Params...), dim3 grid, int threads, size_t shared,
                          bool pdl, cudaStream_t stream, Args... args)
{
    return launch_cluster(kernel, 0, grid, threads, shared, pdl, stream, args...);
}

#endif
