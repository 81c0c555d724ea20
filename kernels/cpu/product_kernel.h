/* SPDX-License-Identifier: MIT
 *
 * product_kernel: what one instruction set contributes to product.c. Every set reads the same
 * packed panels and must produce the bits that product.h defines; product_plain.c is the reference.
 * Pure functions over the caller's memory, any thread.
 */
#ifndef PGPT_KERNELS_CPU_PRODUCT_KERNEL_H
#define PGPT_KERNELS_CPU_PRODUCT_KERNEL_H

#include <stdint.h>

#include "kernels/cpu/product.h"

/* Panels of PRODUCT_PANEL output columns. float32: (panels, K, 16). int8: (panels, K4, 16, 4), four
 * consecutive k of a column side by side, K4 = ceil(K / 4), filled up with zeros. */
enum { PRODUCT_PANEL = 16, PRODUCT_GROUP = 4 };

#define PRODUCT_Q_MAX 16256.0f /* 128 * 127 */

/* The high digit of q = 128 high + low. */
static inline int32_t product_high(int32_t q)
{
    return (q + 64) >> 7;
}

static inline int32_t product_groups(int32_t K)
{
    return (K + PRODUCT_GROUP - 1) / PRODUCT_GROUP;
}

/* Rows 0..rows-1 times panels first..end-1. */
struct product_block {
    int32_t K, N, rows;
    int32_t first, end;   /* panels */
    const float *x;       /* (rows, K), float32 only */
    const int8_t *q;      /* (rows, 2, K4 * 4) as quantise() of the set leaves them, int8 only */
    const float *x_scale; /* (rows), int8 only */
    const float *f32;     /* packed panels, one of the two */
    const int8_t *i8;
    const float *scale; /* (panels * 16), int8 only */
    const int32_t *sum; /* (panels * 16) 128 times each column's sum, int8 only */
    const float *bias;  /* (panels * 16) */
    enum product_activation activation;
    const float *add; /* (rows, N) or NULL */
    float *y;         /* (rows, N) */
};

struct product_kernel {
    const char *name;
    /* out (2, K4 * 4): high digits, then low ones, zeros (as the set writes them) past K; returns
     * the row's scale. */
    float (*quantise)(int32_t K, const float *row, int8_t *out);
    void (*run_f32)(const struct product_block *block);
    void (*run_int8)(const struct product_block *block);
};

extern const struct product_kernel product_kernel_plain;
#if defined(__x86_64__)
extern const struct product_kernel product_kernel_avx2;   /* AVX2, FMA */
extern const struct product_kernel product_kernel_avx512; /* AVX-512 F, BW, DQ, VL, VNNI */
#endif

#endif
