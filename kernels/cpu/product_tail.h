/* SPDX-License-Identifier: MIT
 *
 * product_tail: the end of an output row, written once and compiled for each instruction set: the
 * activations that are not a plain maximum, then the addition. Pure, any thread.
 */
#ifndef PGPT_KERNELS_CPU_PRODUCT_TAIL_H
#define PGPT_KERNELS_CPU_PRODUCT_TAIL_H

#include "kernels/cpu/math.h"
#include "kernels/cpu/product_kernel.h"

static inline int product_simple(enum product_activation activation)
{
    return activation == PRODUCT_NONE || activation == PRODUCT_RELU;
}

/* y (count): activation, then add (count) or NULL. */
static inline void product_tail(enum product_activation activation, int32_t count, const float *add,
                                float *y)
{
    if (activation == PRODUCT_RELU)
        for (int32_t i = 0; i < count; i++)
            y[i] = y[i] > 0.0f ? y[i] : 0.0f;
    else if (activation == PRODUCT_SWISH)
        for (int32_t i = 0; i < count; i++)
            y[i] = math_swish(y[i]);
    else if (activation == PRODUCT_GELU)
        for (int32_t i = 0; i < count; i++)
            y[i] = math_gelu(y[i]);
    for (int32_t i = 0; add && i < count; i++)
        y[i] += add[i];
}

#endif
