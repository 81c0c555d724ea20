/* SPDX-License-Identifier: MIT
 *
 * AVX-512 with VNNI. A tile is up to 6 rows (int8: both digits of 3) by 4 panels: 24 accumulators,
 * 4 registers of weights and one broadcast, so that each weight loaded serves 6 rows and each input
 * 64 columns. One row alone takes 8 panels to have enough independent sums in flight. int8:
 * vpdpbusd multiplies unsigned by signed bytes, so inputs are stored plus 128 and each column
 * starts at minus 128 times its sum; both are exact.
 */
#include <immintrin.h>

#include "kernels/cpu/product_kernel.h"
#include "kernels/cpu/product_tail.h"

#define INLINE static inline __attribute__((always_inline))

enum { LANES = 16, TILE_ROWS_F32 = 6, TILE_ROWS_INT8 = 3 };

/* The first `count` lanes, all of them from 16 up, none below 1. */
INLINE __mmask16 first_lanes(int32_t count)
{
    return count >= LANES ? (__mmask16)0xffff : (__mmask16)((1u << (count < 0 ? 0 : count)) - 1);
}

/* Digits as unsigned bytes, plus 128. */
INLINE void bytes_store(int8_t *out, __mmask16 mask, __m512i digits)
{
    __m512i bytes = _mm512_add_epi32(digits, _mm512_set1_epi32(128));

    _mm_mask_storeu_epi8(out, mask, _mm512_cvtepi32_epi8(bytes));
}

static float avx512_quantise(int32_t K, const float *row, int8_t *out)
{
    int32_t length = product_groups(K) * PRODUCT_GROUP;
    __m512 most = _mm512_setzero_ps();
    __m512 factor;
    float top;

    for (int32_t k = 0; k < K; k += LANES) {
        __mmask16 mask = K - k < LANES ? (__mmask16)((1u << (K - k)) - 1) : (__mmask16)0xffff;

        most = _mm512_max_ps(most, _mm512_abs_ps(_mm512_maskz_loadu_ps(mask, row + k)));
    }
    top = _mm512_reduce_max_ps(most);
    factor = _mm512_set1_ps(top > 0.0f ? PRODUCT_Q_MAX / top : 0.0f);
    for (int32_t k = 0; k < length; k += LANES) {
        __mmask16 mask = first_lanes(K - k), store = first_lanes(length - k);
        __m512i q = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_maskz_loadu_ps(mask, row + k), factor));
        __m512i high = _mm512_srai_epi32(_mm512_add_epi32(q, _mm512_set1_epi32(64)), 7);

        bytes_store(out + k, store, high);
        bytes_store(out + length + k, store, _mm512_sub_epi32(q, _mm512_slli_epi32(high, 7)));
    }
    return top / PRODUCT_Q_MAX;
}

/* One row's 16 outputs of a panel. */
INLINE void panel_store(const struct product_block *b, int32_t row, int32_t panel, __m512 y)
{
    int32_t first = panel * PRODUCT_PANEL;
    int32_t count = b->N - first;
    int64_t at = (int64_t)row * b->N + first;
    __mmask16 mask = count < LANES ? (__mmask16)((1u << count) - 1) : (__mmask16)0xffff;

    if (b->activation == PRODUCT_RELU)
        y = _mm512_max_ps(y, _mm512_setzero_ps());
    if (b->add && product_simple(b->activation))
        y = _mm512_add_ps(y, _mm512_maskz_loadu_ps(mask, b->add + at));
    _mm512_mask_storeu_ps(b->y + at, mask, y);
}

INLINE void tile_f32(const struct product_block *b, int32_t m, int32_t p, const int R, const int P)
{
    const int64_t K = b->K;
    const float *x = b->x + m * K;
    const float *w = b->f32 + p * K * PRODUCT_PANEL;
    __m512 sum[TILE_ROWS_F32][8];

#pragma GCC unroll 8
    for (int r = 0; r < R; r++)
#pragma GCC unroll 8
        for (int j = 0; j < P; j++)
            sum[r][j] = _mm512_setzero_ps();
    for (int64_t k = 0; k < K; k++) {
        __m512 column[8];

#pragma GCC unroll 8
        for (int j = 0; j < P; j++)
            column[j] = _mm512_load_ps(w + (j * K + k) * PRODUCT_PANEL);
#pragma GCC unroll 8
        for (int r = 0; r < R; r++) {
            __m512 value = _mm512_set1_ps(x[r * K + k]);

#pragma GCC unroll 8
            for (int j = 0; j < P; j++)
                sum[r][j] = _mm512_fmadd_ps(value, column[j], sum[r][j]);
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; r++)
#pragma GCC unroll 8
        for (int j = 0; j < P; j++)
            panel_store(
                b, m + r, p + j,
                _mm512_add_ps(sum[r][j], _mm512_load_ps(b->bias + (p + j) * PRODUCT_PANEL)));
}

/* _mm512_dpbusd_epi32 in place: with the intrinsic GCC 12 copies every accumulator at every step.
 */
INLINE void dot_add(__m512i *sum, __m512i bytes_u8, __m512i bytes_s8)
{
    __asm__("vpdpbusd %2, %1, %0" : "+v"(*sum) : "v"(bytes_u8), "v"(bytes_s8));
}

INLINE void tile_int8(const struct product_block *b, int32_t m, int32_t p, const int R, const int P)
{
    const int64_t groups = product_groups(b->K);
    const int64_t length = groups * PRODUCT_GROUP;
    const int8_t *q = b->q + 2 * m * length;
    const int8_t *w = b->i8 + p * length * PRODUCT_PANEL;
    __m512i sum[2 * TILE_ROWS_INT8][8]; /* both digits of each row */

#pragma GCC unroll 8
    for (int j = 0; j < P; j++) {
        __m512i start = _mm512_sub_epi32(_mm512_setzero_si512(),
                                         _mm512_load_si512(b->sum + (p + j) * PRODUCT_PANEL));

#pragma GCC unroll 8
        for (int r = 0; r < 2 * R; r++)
            sum[r][j] = start;
    }
    for (int64_t g = 0; g < groups; g++) {
        __m512i column[8];

#pragma GCC unroll 8
        for (int j = 0; j < P; j++)
            column[j] = _mm512_load_si512(w + (j * groups + g) * PRODUCT_PANEL * PRODUCT_GROUP);
#pragma GCC unroll 8
        for (int r = 0; r < 2 * R; r++) {
            int32_t four;
            __m512i value;

            memcpy(&four, q + r * length + g * PRODUCT_GROUP, sizeof four);
            value = _mm512_set1_epi32(four);
#pragma GCC unroll 8
            for (int j = 0; j < P; j++)
                dot_add(&sum[r][j], value, column[j]);
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; r++) {
        __m512 x_scale = _mm512_set1_ps(b->x_scale[m + r]);

#pragma GCC unroll 8
        for (int j = 0; j < P; j++) {
            int32_t at = (p + j) * PRODUCT_PANEL;
            __m512 scale = _mm512_mul_ps(x_scale, _mm512_load_ps(b->scale + at));
            __m512 whole =
                _mm512_fmadd_ps(_mm512_set1_ps(128.0f), _mm512_cvtepi32_ps(sum[2 * r][j]),
                                _mm512_cvtepi32_ps(sum[2 * r + 1][j]));

            panel_store(b, m + r, p + j,
                        _mm512_fmadd_ps(whole, scale, _mm512_load_ps(b->bias + at)));
        }
    }
}

/* The rows of a block in tiles of nearly equal height, at most `most`, for `count` panels at p. */
#define DEFINE_PANELS(format, most, rows_cases)                                                    \
    static void panels_##format(const struct product_block *b, int32_t p, int32_t count)           \
    {                                                                                              \
        int32_t tiles = (b->rows + most - 1) / most;                                               \
                                                                                                   \
        for (int32_t t = 0; t < tiles; t++) {                                                      \
            int32_t m = b->rows * t / tiles;                                                       \
            int32_t rows = b->rows * (t + 1) / tiles - m;                                          \
                                                                                                   \
            if (count == 8)                                                                        \
                tile_##format(b, m, p, 1, 8);                                                      \
            else if (count == 4)                                                                   \
                rows_cases(4) else if (count == 2) rows_cases(2) else rows_cases(1)                \
        }                                                                                          \
    }                                                                                              \
                                                                                                   \
    static void avx512_run_##format(const struct product_block *b)                                 \
    {                                                                                              \
        for (int32_t p = b->first, count; p < b->end; p += count) {                                \
            int32_t left = b->end - p;                                                             \
                                                                                                   \
            count = left >= 8 && b->rows == 1 ? 8 : left >= 4 ? 4 : left >= 2 ? 2 : 1;             \
            panels_##format(b, p, count);                                                          \
        }                                                                                          \
        rows_finish(b);                                                                            \
    }

#define TILE_CASE(tile, R, P)                                                                      \
    case R:                                                                                        \
        tile(b, m, p, R, P);                                                                       \
        break;

#define ROWS_F32(P)                                                                                \
    switch (rows) {                                                                                \
        TILE_CASE(tile_f32, 1, P)                                                                  \
        TILE_CASE(tile_f32, 2, P)                                                                  \
        TILE_CASE(tile_f32, 3, P)                                                                  \
        TILE_CASE(tile_f32, 4, P)                                                                  \
        TILE_CASE(tile_f32, 5, P)                                                                  \
        TILE_CASE(tile_f32, 6, P)                                                                  \
    }

#define ROWS_INT8(P)                                                                               \
    switch (rows) {                                                                                \
        TILE_CASE(tile_int8, 1, P)                                                                 \
        TILE_CASE(tile_int8, 2, P)                                                                 \
        TILE_CASE(tile_int8, 3, P)                                                                 \
    }

/* Activations that panel_store() leaves out. */
static void rows_finish(const struct product_block *b)
{
    int32_t from = b->first * PRODUCT_PANEL, to = b->end * PRODUCT_PANEL;

    if (product_simple(b->activation))
        return;
    to = to < b->N ? to : b->N;
    for (int64_t m = 0; m < b->rows; m++)
        product_tail(b->activation, to - from, b->add ? b->add + m * b->N + from : NULL,
                     b->y + m * b->N + from);
}

DEFINE_PANELS(f32, TILE_ROWS_F32, ROWS_F32)
DEFINE_PANELS(int8, TILE_ROWS_INT8, ROWS_INT8)

const struct product_kernel product_kernel_avx512 = {"avx512_vnni", avx512_quantise, avx512_run_f32,
                                                     avx512_run_int8};
