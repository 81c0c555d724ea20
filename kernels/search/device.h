/* SPDX-License-Identifier: MIT
 *
 * device: PGPT_DEVICE marks the small pure functions of kernels/search that both the host and CUDA
 * kernels compile, so that every back end chooses tokens by one definition.
 */
#ifndef PGPT_KERNELS_SEARCH_DEVICE_H
#define PGPT_KERNELS_SEARCH_DEVICE_H

#ifdef __CUDACC__
#define PGPT_DEVICE __host__ __device__
#else
#define PGPT_DEVICE
#endif

#endif
