/* SPDX-License-Identifier: MIT
 *
 * ops: everything of the CPU back end that is not a product, one row at a time: layer norm,
 * attention over paged caches, embedding, scans over a row of logits. ops_body.h writes them once
 * over lanes.h; ops_plain.c, ops_neon.c, ops_avx2.c and ops_avx512.c compile it for each
 * instruction set, with the same bits. Pure functions over the caller's memory, any thread.
 *
 * A page holds the keys and values of 16 positions: layer by layer, head by head the keys (dh, 16),
 * so that one register is one dimension of 16 positions, then the values (16, dh). Elements are
 * float, or half precision when the cache is half.
 */
#ifndef PGPT_KERNELS_CPU_OPS_H
#define PGPT_KERNELS_CPU_OPS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { OPS_PAGE = 16 };

struct ops_cache { /* the shape of a page */
    int32_t heads, dh;
    bool half;
};

static inline size_t ops_head_bytes(const struct ops_cache *cache)
{
    return (size_t)2 * OPS_PAGE * (size_t)cache->dh * (cache->half ? 2 : 4);
}

static inline size_t ops_layer_bytes(const struct ops_cache *cache)
{
    return (size_t)cache->heads * ops_head_bytes(cache);
}

/* softmax(q K^T) V for one query row, heads first..end-1. */
struct ops_attend {
    struct ops_cache cache;
    const float *q;          /* (heads, dh), scaled by 1 / sqrt(dh) already */
    char *const *pages;      /* (ceil(count / 16)) */
    size_t offset;           /* of the layer in a page */
    int32_t count;           /* positions to look at, >= 1 */
    int32_t first, end;      /* heads */
    char *const *next_pages; /* what the call after this one looks at, from head 0 on, or NULL: */
    int32_t next_count;      /* fetched meanwhile; results do not depend on it */
    float *scores;           /* work (count rounded up to 16) */
    float *out;              /* (heads, dh) */
};

struct ops {
    /* y (D) = (x - mean) / sqrt(variance + eps) gain + bias; y may be x. */
    void (*norm)(int32_t D, const float *x, const float *gain, const float *bias, float eps,
                 float *y);
    /* y (D) = x scale + add; y may be x. */
    void (*scale_add)(int32_t D, const float *x, float scale, const float *add, float *y);
    /* Writes keys and values (heads, dh) of position `at` (0..15) into a page's layer. */
    void (*keep)(const struct ops_cache *cache, const float *k, const float *v, char *layer,
                 int32_t at);
    void (*attend)(const struct ops_attend *a);
    /* The greatest of x (V) and the lowest index that has it. */
    float (*top)(int32_t V, const float *x, int32_t *index);
    /* sum e^(x - most); with weights != NULL they get each e^(x - most). */
    float (*sum_exp)(int32_t V, const float *x, float most, float *weights);
};

const struct ops *ops_current(void); /* of isa_current() */

extern const struct ops ops_plain;
#if defined(__x86_64__)
extern const struct ops ops_avx2;
extern const struct ops ops_avx512;
#elif defined(__aarch64__)
extern const struct ops ops_neon;
#endif

#endif
