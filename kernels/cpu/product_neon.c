/* SPDX-License-Identifier: MIT
 *
 * NEON as every aarch64 has it. float32 tiles are up to 6 rows by one panel: 24 accumulators, 4
 * registers of weights and a broadcast. int8 multiplies bytes to 16 bits and adds pairs to 32.
 */
#include "kernels/cpu/product_neon.h"

enum { TILE_ROWS = 6, TILE_ROWS_INT8 = 2 };

NEON_INLINE void sums_store(const struct product_block *b, int32_t m, int32_t p,
                            const float32x4_t sum[4])
{
    float y[PRODUCT_PANEL];

    for (int j = 0; j < 4; j++)
        vst1q_f32(y + 4 * j, sum[j]);
    neon_panel_store(b, m, p, PRODUCT_PANEL, y);
}

NEON_INLINE void tile_f32(const struct product_block *b, int32_t m, int32_t p, const int R)
{
    const int64_t K = b->K;
    const float *x = b->x + m * K;
    const float *w = b->f32 + p * K * PRODUCT_PANEL;
    float32x4_t sum[TILE_ROWS][4];

#pragma GCC unroll 8
    for (int r = 0; r < R; r++)
#pragma GCC unroll 4
        for (int j = 0; j < 4; j++)
            sum[r][j] = vdupq_n_f32(0.0f);
    for (int64_t k = 0; k < K; k++) {
        float32x4_t column[4];

#pragma GCC unroll 4
        for (int j = 0; j < 4; j++)
            column[j] = vld1q_f32(w + k * PRODUCT_PANEL + 4 * j);
#pragma GCC unroll 8
        for (int r = 0; r < R; r++)
#pragma GCC unroll 4
            for (int j = 0; j < 4; j++)
                sum[r][j] = vfmaq_n_f32(sum[r][j], column[j], x[r * K + k]);
    }
    for (int r = 0; r < R; r++)
        sums_store(b, m + r, p, sum[r]);
}

/* One row by four panels: 16 sums in flight where there is no second row to share weights with. */
static void row_f32(const struct product_block *b, int32_t p)
{
    const int64_t K = b->K;
    const float *w = b->f32 + p * K * PRODUCT_PANEL;
    float32x4_t sum[4][4];

#pragma GCC unroll 4
    for (int i = 0; i < 4; i++)
#pragma GCC unroll 4
        for (int j = 0; j < 4; j++)
            sum[i][j] = vdupq_n_f32(0.0f);
    for (int64_t k = 0; k < K; k++)
#pragma GCC unroll 4
        for (int i = 0; i < 4; i++)
#pragma GCC unroll 4
            for (int j = 0; j < 4; j++)
                sum[i][j] = vfmaq_n_f32(
                    sum[i][j], vld1q_f32(w + (i * K + k) * PRODUCT_PANEL + 4 * j), b->x[k]);
    for (int i = 0; i < 4; i++)
        sums_store(b, 0, p + i, sum[i]);
}

void product_neon_run_f32(const struct product_block *b)
{
    int32_t tiles = (b->rows + TILE_ROWS - 1) / TILE_ROWS;
    int32_t p = b->first;

    for (; b->rows == 1 && p + 4 <= b->end; p += 4)
        row_f32(b, p);
    for (; p < b->end; p++)
        for (int32_t t = 0; t < tiles; t++) {
            int32_t m = b->rows * t / tiles;

            switch (b->rows * (t + 1) / tiles - m) {
            case 1:
                tile_f32(b, m, p, 1);
                break;
            case 2:
                tile_f32(b, m, p, 2);
                break;
            case 3:
                tile_f32(b, m, p, 3);
                break;
            case 4:
                tile_f32(b, m, p, 4);
                break;
            case 5:
                tile_f32(b, m, p, 5);
                break;
            default:
                tile_f32(b, m, p, 6);
                break;
            }
        }
}

/* One group of PRODUCT_GROUP values. */
static void group_quantise(const float *values, struct product_input *out)
{
    float32x4_t lows = vdupq_n_f32(0.0f), highs = lows;
    int32x4_t totals = vdupq_n_s32(0);
    float low, range, factor;
    int32_t zero;

    for (int32_t k = 0; k < PRODUCT_GROUP; k += 4) {
        lows = vminq_f32(lows, vld1q_f32(values + k));
        highs = vmaxq_f32(highs, vld1q_f32(values + k));
    }
    low = vminvq_f32(lows);
    range = vmaxvq_f32(highs) - low;
    factor = range < PRODUCT_TINY ? 0.0f : PRODUCT_Q_MAX / range;
    zero = vcvtns_s32_f32(-low * factor) - 128;
    for (int32_t k = 0; k < PRODUCT_GROUP; k += 8) {
        int32x4_t q[2];

        for (int i = 0; i < 2; i++) {
            q[i] = vcvtnq_s32_f32(vmulq_n_f32(vld1q_f32(values + k + 4 * i), factor));
            q[i] = vminq_s32(vaddq_s32(q[i], vdupq_n_s32(zero)), vdupq_n_s32(127));
            totals = vaddq_s32(totals, q[i]);
        }
        vst1_s8(out->q + k, vmovn_s16(vcombine_s16(vmovn_s32(q[0]), vmovn_s32(q[1]))));
    }
    out->scale = factor > 0.0f ? range / PRODUCT_Q_MAX : 0.0f;
    out->pair = (struct product_pair){{(int16_t)zero, (int16_t)vaddvq_s32(totals)}};
}

void product_neon_quantise(int32_t K, const float *row, const float *factors,
                           struct product_input *inputs)
{
    for (int32_t at = 0; at < K; at += PRODUCT_GROUP) {
        int32_t count = K - at < PRODUCT_GROUP ? K - at : PRODUCT_GROUP;
        float values[PRODUCT_GROUP] = {0};

        for (int32_t k = 0; k < count; k++)
            values[k] = row[at + k] * factors[at + k];
        group_quantise(values, inputs++);
    }
}

/* sum (R,64) += one group of R rows; inputs of a row are b->groups apart. */
NEON_INLINE void group_dot(const struct product_block *b, const struct product_input *x,
                           const struct product_group *w, float (*sum)[PRODUCT_STRIP], const int R)
{
    for (int32_t at = 0; at < PRODUCT_STRIP; at += 16) {
        int32x4_t partial[TILE_ROWS_INT8][8]; /* two partial sums of each column */

#pragma GCC unroll 2
        for (int r = 0; r < R; r++)
#pragma GCC unroll 8
            for (int j = 0; j < 8; j++)
                partial[r][j] = vdupq_n_s32(0);
        for (int32_t i = 0; i < PRODUCT_QUADS; i++)
#pragma GCC unroll 4
            for (int j = 0; j < 4; j++) {
                int8x16_t column = neon_weights(w->q[i][at + 4 * j]);

#pragma GCC unroll 2
                for (int r = 0; r < R; r++) {
                    int8x16_t value = neon_inputs(x[r * b->groups].q + i * PRODUCT_QUAD);
                    int16x8_t low = vmull_s8(vget_low_s8(column), vget_low_s8(value));

                    partial[r][2 * j] = vpadalq_s16(partial[r][2 * j], low);
                    partial[r][2 * j + 1] =
                        vpadalq_s16(partial[r][2 * j + 1], vmull_high_s8(column, value));
                }
            }
        for (int r = 0; r < R; r++) {
            int32x4_t dot[4];

            for (int j = 0; j < 4; j++)
                dot[j] = vpaddq_s32(partial[r][2 * j], partial[r][2 * j + 1]);
            neon_group_add(x + r * b->groups, w, at, dot, sum[r] + at);
        }
    }
}

NEON_INLINE void tile_int8(const struct product_block *b, int32_t m, int32_t p, const int R)
{
    const struct product_input *x = b->inputs + (int64_t)m * b->groups;
    const struct product_group *w = b->i8 + (int64_t)p * b->groups;
    float sum[TILE_ROWS_INT8][PRODUCT_STRIP] = {{0}};

    for (int32_t g = 0; g < b->groups; g++)
        group_dot(b, x + g, w + g, sum, R);
    for (int r = 0; r < R; r++)
        neon_panel_store(b, m + r, p, PRODUCT_STRIP, sum[r]);
}

static void neon_run_int8(const struct product_block *b)
{
    for (int32_t p = b->first; p < b->end; p++)
        for (int32_t m = 0; m < b->rows; m += TILE_ROWS_INT8)
            if (b->rows - m == 1)
                tile_int8(b, m, p, 1);
            else
                tile_int8(b, m, p, 2);
}

const struct product_kernel product_kernel_neon = {"neon", product_neon_quantise,
                                                   product_neon_run_f32, neon_run_int8};
