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

/* Columns of one panel. float32 panels are (K, 16), int8 ones (groups) of struct product_group. */
enum { PRODUCT_PANEL = 16, PRODUCT_STRIP = 64 };
enum { PRODUCT_GROUP = 64, PRODUCT_QUAD = 4, PRODUCT_QUADS = PRODUCT_GROUP / PRODUCT_QUAD };

#define PRODUCT_Q_MAX 255.0f
#define PRODUCT_TINY 1e-30f

/* What brings sum_k q_x q_w of a group to sum_k (q_x - zero_x) (q_w - zero_w): add
 * input[0] weight[0] + input[1] weight[1] of these. All fit 16 bits. */
struct product_pair {
    int16_t part[2]; /* input: zero, sum of q; weight: -sum of (q - zero), -zero */
};

/* 64 inputs by 64 columns; past K and N all q are the zero point. */
struct product_group {
    _Alignas(64) float scale[PRODUCT_STRIP];
    struct product_pair pair[PRODUCT_STRIP];
    uint8_t q[PRODUCT_QUADS][PRODUCT_STRIP][PRODUCT_QUAD];
};

/* 64 values of a row of x: q and zero are 128 less than product.h says, to be signed as vpdpbusd
 * wants one side to be. */
struct product_input {
    float scale;
    struct product_pair pair;
    int8_t q[PRODUCT_GROUP];
};

static inline int32_t product_groups(int32_t K)
{
    return (K + PRODUCT_GROUP - 1) / PRODUCT_GROUP;
}

/* Rows 0..rows-1 times panels first..end-1. */
struct product_block {
    int32_t K, N, rows, groups;
    int32_t first, end;                 /* panels */
    const float *x;                     /* (rows, K), float32 only */
    const struct product_input *inputs; /* (rows, groups), int8 only */
    const float *f32;                   /* packed panels, one of the two */
    const struct product_group *i8;
    const float *bias; /* (N rounded up to panels) */
    enum product_activation activation;
    const float *add; /* (rows, N) or NULL */
    float *y;         /* (rows, N) */
};

struct product_kernel {
    const char *name;
    /* One row times factors (K) to inputs (groups). */
    void (*quantise)(int32_t K, const float *row, const float *factors,
                     struct product_input *inputs);
    void (*run_f32)(const struct product_block *block);
    void (*run_int8)(const struct product_block *block);
};

extern const struct product_kernel product_kernel_plain;
#if defined(__x86_64__)
extern const struct product_kernel product_kernel_avx2;   /* AVX2, FMA */
extern const struct product_kernel product_kernel_avx512; /* AVX-512 F, BW, DQ, VL, VNNI */
#elif defined(__aarch64__)
extern const struct product_kernel product_kernel_neon;     /* what every aarch64 has */
extern const struct product_kernel product_kernel_neon_dot; /* and SDOT */
#endif

#endif
