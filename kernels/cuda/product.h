/* SPDX-License-Identifier: MIT
 *
 * product: the only place of the CUDA back end where matrices are multiplied, with what stands
 * around a product in a Marian layer fused into it: the layer norm or embedding in front, bias,
 * activation, residual, the write into attention caches or the partial maxima of the logits behind.
 * A product reads its rows' count from device memory, so that one captured launch serves any count
 * up to n_most. Bits of a row depend on the row alone (see format.cuh for the order of sums).
 * Enqueues only.
 */
#ifndef PGPT_KERNELS_CUDA_PRODUCT_H
#define PGPT_KERNELS_CUDA_PRODUCT_H

#include <cuda_runtime.h>
#include <stddef.h>
#include <stdint.h>

#include "kernels/cuda/format.cuh"
#include "kernels/cuda/rows.h"

enum {
    PRODUCT_COLUMNS = 128, /* weights are padded to whole multiples with zeros */
    PRODUCT_INPUTS = 256,  /* inputs come in whole multiples */
    PRODUCT_WIDTH = 1024,  /* most inputs of a product with a norm or an embedding in front */
    PRODUCT_UNIT = 32,     /* columns of logits that leave one partial result */
};

/* Packed weights in device memory. */
struct cuda_weight {
    enum cuda_format format;
    int32_t N, K;
    void *packed; /* (N padded / 16, K / KB, 1,024 bytes) */
    void *tiled;  /* the same for product_stream.cuh; NULL where it does not multiply by it */
    float *scale; /* (N padded) int8 only */
    float *bias;  /* (N padded), zeros when the model has none */
};

/* What a unit of PRODUCT_UNIT logits leaves for the choice of a plain row's token. */
struct product_unit {
    float max, sum; /* max of the unprocessed logits, sum of e^(logit - max) */
    float best;     /* largest logit that may be chosen, -inf when none */
    int32_t token;  /* its id, the lowest of equal ones */
};

enum product_input {
    PRODUCT_ROWS,  /* x (n,K) elements */
    PRODUCT_NORM,  /* layer norm of y (n,K) float */
    PRODUCT_EMBED, /* token embeddings plus positions */
};

enum product_output {
    PRODUCT_PLAIN,    /* out (n,N) elements */
    PRODUCT_RESIDUAL, /* y (n,N) float = product + residual (n,N) */
    PRODUCT_QKV, /* q into out (n,heads * 64), k and v into the self cache at the row's position */
    PRODUCT_CROSS,  /* k and v of source tokens into the cross cache */
    PRODUCT_NORMED, /* out (n,N) elements and x_out (n,N) = norm(product + residual) */
    PRODUCT_LOGITS, /* units (n, N/32) and, when wanted, logits (n,N) float */
};

enum product_act { PRODUCT_ACT_NONE, PRODUCT_ACT_RELU, PRODUCT_ACT_SWISH, PRODUCT_ACT_GELU };

struct product {
    const int32_t *n; /* device: rows */
    struct cuda_weight weight;
    enum product_input input;
    enum product_output output;
    enum product_act activation;
    bool beside; /* other kernels run beside it: what it reads from L2 counts, not when it ends */

    const void *x;             /* ROWS: elements; NORM: float; (n,K) */
    const float *gamma, *beta; /* NORM, NORMED: (K), (N); zeros behind `width` */
    int32_t width;             /* of these, how many the model has: zeros fill up the rest */
    float *x_out; /* NORM, EMBED: (n,K) the product's input as float; NULL = not wanted */

    struct cuda_weight embedding; /* EMBED: (V,K) packed */
    const float *position_table;  /* (positions, K) */
    float embedding_factor;
    const int32_t *tokens, *positions; /* EMBED of packed sources: (n); NULL: the rows' own */

    const int32_t *active; /* (n) rows */
    struct cuda_rows rows;

    const float *residual;              /* (n,N) */
    void *out;                          /* elements, or float for RESIDUAL */
    void *cache_k, *cache_v;            /* this layer's (cache.cuh) */
    __nv_bfloat16 *scales_k, *scales_v; /* two a place where the caches are int8, else NULL */
    int32_t cache_heads;
    uint32_t chunk_places;     /* of the caches */
    const int32_t *cache_rows; /* CROSS: (n) row of each packed token */

    struct cuda_rules rules;    /* LOGITS */
    struct product_unit *units; /* (n, N/32 rounded up) */
    float *special;             /* (n,2) logits of the forced EOS and BOS */
    float *logits;              /* (n,N) or NULL */
};

#ifdef __CUDACC__
#define PRODUCT_BOTH __host__ __device__
#else
#define PRODUCT_BOTH
#endif

/* Columns of a weight after padding. */
PRODUCT_BOTH static inline int32_t product_padded(int32_t N)
{
    return (N + PRODUCT_COLUMNS - 1) / PRODUCT_COLUMNS * PRODUCT_COLUMNS;
}
PRODUCT_BOTH static inline int32_t product_units(int32_t N)
{
    return (N + PRODUCT_UNIT - 1) / PRODUCT_UNIT;
}

/* Raises the kernels' shared memory limits; once a device, of which `capability` is 90 for 9.0. */
cudaError_t product_prepare(int capability, int shared_bytes_most);
/* Are products of so many rows at their best when rows come normed (PRODUCT_ROWS), by
 * product_embed_enqueue() and PRODUCT_NORMED? Where not, there is no PRODUCT_NORMED, and rows are
 * normed on the way in (PRODUCT_NORM, PRODUCT_EMBED). */
bool product_many(enum cuda_format format, int32_t n_most);
/* The embedding alone: x_out (n,K) and out (n,K) elements. */
cudaError_t product_embed_enqueue(const struct product *product, int32_t n_most, bool pdl,
                                  cudaStream_t stream);
/* n_most bounds *n. pdl: may start while the kernel before it drains. */
cudaError_t product_enqueue(const struct product *product, int32_t n_most, bool pdl,
                            cudaStream_t stream);

#endif
