/* SPDX-License-Identifier: MIT
 *
 * product_neon: what the two paths of aarch64 share: float32 products, quantised rows, and what
 * stands around the dot products of a group. Pure functions over the caller's memory, any thread.
 */
#ifndef PGPT_KERNELS_CPU_PRODUCT_NEON_H
#define PGPT_KERNELS_CPU_PRODUCT_NEON_H

#include <arm_neon.h>

#include "kernels/cpu/product_kernel.h"
#include "kernels/cpu/product_tail.h"

#define NEON_INLINE static inline __attribute__((always_inline))

void product_neon_quantise(int32_t K, const float *row, const float *factors,
                           struct product_input *inputs);
void product_neon_run_f32(const struct product_block *block);

/* 16 weights as signed bytes, 128 less than they are. */
NEON_INLINE int8x16_t neon_weights(const uint8_t *q)
{
    return vreinterpretq_s8_u8(veorq_u8(vld1q_u8(q), vdupq_n_u8(128)));
}

/* Four inputs of a quad in every lane. */
NEON_INLINE int8x16_t neon_inputs(const int8_t *q)
{
    int32_t four;

    memcpy(&four, q, sizeof four);
    return vreinterpretq_s8_s32(vdupq_n_s32(four));
}

/* sum (16) += one group of one row for columns at..at+15, dot (16) being sum_k q_x (q_w - 128):
 * x.pair.part[1], the sum of q_x, gives the 128 back. */
NEON_INLINE void neon_group_add(const struct product_input *x, const struct product_group *w,
                                int32_t at, const int32x4_t dot[4], float *sum)
{
    const int16_t first = x->pair.part[0], second = x->pair.part[1];

#pragma GCC unroll 4
    for (int j = 0; j < 4; j++) {
        int16x4x2_t pair = vld2_s16((const int16_t *)(w->pair + at + 4 * j));
        int32x4_t d = vmlal_n_s16(dot[j], pair.val[0], first);
        float32x4_t scale = vmulq_n_f32(vld1q_f32(w->scale + at + 4 * j), x->scale);

        d = vmlal_n_s16(d, vadd_s16(pair.val[1], vdup_n_s16(128)), second);
        vst1q_f32(sum + 4 * j, vfmaq_f32(vld1q_f32(sum + 4 * j), vcvtq_f32_s32(d), scale));
    }
}

/* The end of one row's outputs of a panel `width` columns wide; y (width) lacks the bias yet. */
NEON_INLINE void neon_panel_store(const struct product_block *b, int32_t row, int32_t panel,
                                  const int32_t width, float *y)
{
    int32_t first = panel * width;
    int32_t count = b->N - first < width ? b->N - first : width;
    int64_t at = (int64_t)row * b->N + first;

    for (int32_t j = 0; j < width; j += 4)
        vst1q_f32(y + j, vaddq_f32(vld1q_f32(y + j), vld1q_f32(b->bias + first + j)));
    product_tail(b->activation, count, b->add ? b->add + at : NULL, y);
    memcpy(b->y + at, y, (size_t)count * sizeof *y);
}

#endif
