/* SPDX-License-Identifier: MIT
 *
 * attention: the attentions of a Marian model over caches (cache.cuh) and over packed sources. Keys
 * are looked at in chunks of 32 positions counted from 0; a chunk's maximum, sum and weighted
 * values are merged in the order of the chunks, whoever computes them, so bits depend on a row's
 * own length alone. Enqueues only.
 */
#ifndef PGPT_KERNELS_CUDA_ATTENTION_H
#define PGPT_KERNELS_CUDA_ATTENTION_H

#include <cuda_runtime.h>
#include <stdint.h>

#include "kernels/cuda/format.cuh"
#include "kernels/cuda/rows.h"

enum { ATTENTION_POSITIONS = 1024 }; /* of a cache, at most */

struct attention {
    const int32_t *n;      /* device: active rows */
    const int32_t *active; /* (n) */
    struct cuda_rows rows;
    bool beside; /* other kernels run beside it, for which there shall be room */
    bool cross;  /* over the source's cache; else over the row's own, 0..position */
    int32_t heads;
    uint32_t chunk_places;                    /* of the caches */
    const void *q;                            /* (n, heads * 64) elements, not yet scaled */
    const void *cache_k, *cache_v;            /* this layer's: elements or int8 */
    const __nv_bfloat16 *scales_k, *scales_v; /* int8: two a place, a scale for each half of a head;
                                                 else NULL */
    void *out;                                /* (n, heads * 64) elements */
};

/* One decode step's attention. */
cudaError_t attention_enqueue(const struct attention *attention, enum cuda_format format,
                              int32_t n_most, bool pdl, cudaStream_t stream);

/* An encoder's self-attention: sequences side by side, none padded. qkv (tokens, 3 * heads * 64)
 * elements, out (tokens, heads * 64); starts (count + 1): where each sequence begins; longest: of
 * these. */
cudaError_t attention_encoder_enqueue(const void *qkv, void *out, const int32_t *starts,
                                      int32_t count, int32_t longest, int32_t heads,
                                      enum cuda_format format, cudaStream_t stream);

#endif
