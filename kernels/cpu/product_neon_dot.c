/* SPDX-License-Identifier: MIT
 *
 * NEON with SDOT (the dot product of ARMv8.2, in every core from ARMv8.4 on): four products of
 * bytes a lane straight into 32 bits. A tile is up to 6 rows by 16 columns of a strip: 24
 * accumulators, 4 registers of weights and a broadcast; a group of 64 columns stays in the nearest
 * cache while its four tiles pass. USDOT of the later i8mm would save one exclusive-or a register
 * of weights, and its SMMLA wants them in another order; neither pays for a third packing.
 */
#include "kernels/cpu/product_neon.h"

enum { TILE_ROWS = 6 };

/* sum (R,64) += one group of R rows; inputs of a row are b->groups apart. */
NEON_INLINE void group_dot(const struct product_block *b, const struct product_input *x,
                           const struct product_group *w, float (*sum)[PRODUCT_STRIP], const int R)
{
    for (int32_t at = 0; at < PRODUCT_STRIP; at += 16) {
        int32x4_t dot[TILE_ROWS][4];

#pragma GCC unroll 8
        for (int r = 0; r < R; r++)
#pragma GCC unroll 4
            for (int j = 0; j < 4; j++)
                dot[r][j] = vdupq_n_s32(0);
        for (int32_t i = 0; i < PRODUCT_QUADS; i++) {
            int8x16_t column[4];

#pragma GCC unroll 4
            for (int j = 0; j < 4; j++)
                column[j] = neon_weights(w->q[i][at + 4 * j]);
#pragma GCC unroll 8
            for (int r = 0; r < R; r++) {
                int8x16_t value = neon_inputs(x[r * b->groups].q + i * PRODUCT_QUAD);

#pragma GCC unroll 4
                for (int j = 0; j < 4; j++)
                    dot[r][j] = vdotq_s32(dot[r][j], column[j], value);
            }
        }
#pragma GCC unroll 8
        for (int r = 0; r < R; r++)
            neon_group_add(x + r * b->groups, w, at, dot[r], sum[r] + at);
    }
}

NEON_INLINE void tile_int8(const struct product_block *b, int32_t m, int32_t p, const int R)
{
    const struct product_input *x = b->inputs + (int64_t)m * b->groups;
    const struct product_group *w = b->i8 + (int64_t)p * b->groups;
    float sum[TILE_ROWS][PRODUCT_STRIP] = {{0}};

    for (int32_t g = 0; g < b->groups; g++)
        group_dot(b, x + g, w + g, sum, R);
    for (int r = 0; r < R; r++)
        neon_panel_store(b, m + r, p, PRODUCT_STRIP, sum[r]);
}

/* Rows in tiles of nearly equal height. */
static void dot_run_int8(const struct product_block *b)
{
    int32_t tiles = (b->rows + TILE_ROWS - 1) / TILE_ROWS;

    for (int32_t p = b->first; p < b->end; p++)
        for (int32_t t = 0; t < tiles; t++) {
            int32_t m = b->rows * t / tiles;

            switch (b->rows * (t + 1) / tiles - m) {
            case 1:
                tile_int8(b, m, p, 1);
                break;
            case 2:
                tile_int8(b, m, p, 2);
                break;
            case 3:
                tile_int8(b, m, p, 3);
                break;
            case 4:
                tile_int8(b, m, p, 4);
                break;
            case 5:
                tile_int8(b, m, p, 5);
                break;
            default:
                tile_int8(b, m, p, 6);
                break;
            }
        }
}

const struct product_kernel product_kernel_neon_dot = {"neon_dot", product_neon_quantise,
                                                       product_neon_run_f32, dot_run_int8};
