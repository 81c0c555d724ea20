/* SPDX-License-Identifier: MIT
 *
 * AVX-512 with VNNI. A tile is up to 6 rows by 64 columns: 24 accumulators, 4 registers of weights
 * and one broadcast, so that each weight loaded serves 6 rows and each input 64 columns. int8 adds
 * a group's integer sums to float ones that lie in memory when there are more than 3 rows: less
 * traffic than weights that serve half as many. One row of float32 alone takes 128 columns to have
 * enough independent sums in flight.
 */
#include <immintrin.h>

#include "kernels/cpu/product_kernel.h"
#include "kernels/cpu/product_tail.h"

#define INLINE static inline __attribute__((always_inline))

enum { LANES = 16, TILE_ROWS_F32 = 6, TILE_ROWS_INT8 = 6, TILE_ROWS_KEPT = 3 };
enum { GROUP_REGISTERS = PRODUCT_GROUP / LANES, STRIP_REGISTERS = PRODUCT_STRIP / LANES };

/* The first `count` lanes, all of them from 16 up, none below 1. */
INLINE __mmask16 first_lanes(int32_t count)
{
    return count >= LANES ? (__mmask16)0xffff : (__mmask16)((1u << (count < 0 ? 0 : count)) - 1);
}

/* (64) values to one input. */
INLINE void group_quantise(const __m512 *values, struct product_input *out)
{
    __m512 lows = _mm512_setzero_ps(), highs = _mm512_setzero_ps();
    __m512i total = _mm512_setzero_si512();
    float low, range, factor;
    int32_t zero;

#pragma GCC unroll 4
    for (int i = 0; i < GROUP_REGISTERS; i++) {
        lows = _mm512_min_ps(lows, values[i]);
        highs = _mm512_max_ps(highs, values[i]);
    }
    low = _mm512_reduce_min_ps(lows);
    range = _mm512_reduce_max_ps(highs) - low;
    factor = range < PRODUCT_TINY ? 0.0f : PRODUCT_Q_MAX / range;
    zero = _mm_cvtss_si32(_mm_set_ss(-low * factor)) - 128;
#pragma GCC unroll 4
    for (int i = 0; i < GROUP_REGISTERS; i++) {
        __m512i q = _mm512_cvtps_epi32(_mm512_mul_ps(values[i], _mm512_set1_ps(factor)));

        q = _mm512_min_epi32(_mm512_add_epi32(q, _mm512_set1_epi32(zero)), _mm512_set1_epi32(127));
        _mm_storeu_si128((__m128i *)(out->q + i * LANES), _mm512_cvtepi32_epi8(q));
        total = _mm512_add_epi32(total, q);
    }
    out->scale = factor > 0.0f ? range / PRODUCT_Q_MAX : 0.0f;
    out->pair = (struct product_pair){{(int16_t)zero, (int16_t)_mm512_reduce_add_epi32(total)}};
}

static void avx512_quantise(int32_t K, const float *row, const float *factors,
                            struct product_input *inputs)
{
    for (int32_t at = 0; at < K; at += PRODUCT_GROUP) {
        __m512 values[GROUP_REGISTERS];

#pragma GCC unroll 4
        for (int i = 0; i < GROUP_REGISTERS; i++) {
            const int32_t k = at + i * LANES;
            const __mmask16 mask = first_lanes(K - k);

            values[i] = _mm512_mul_ps(_mm512_maskz_loadu_ps(mask, row + k),
                                      _mm512_maskz_loadu_ps(mask, factors + k));
        }
        group_quantise(values, inputs++);
    }
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

/* d = the sums of one group: R rows by 64 columns. */
INLINE void group_int8(const struct product_input *x, int64_t row, const struct product_group *w,
                       const int R, __m512i (*d)[STRIP_REGISTERS])
{
#pragma GCC unroll 6
    for (int r = 0; r < R; r++) {
        int32_t pair;

        memcpy(&pair, &x[r * row].pair, sizeof pair);
#pragma GCC unroll 4
        for (int j = 0; j < STRIP_REGISTERS; j++)
            d[r][j] =
                _mm512_madd_epi16(_mm512_load_si512(w->pair + j * LANES), _mm512_set1_epi32(pair));
    }
    for (int k = 0; k < PRODUCT_QUADS; k++) {
        __m512i columns[STRIP_REGISTERS];

#pragma GCC unroll 4
        for (int j = 0; j < STRIP_REGISTERS; j++)
            columns[j] = _mm512_load_si512(w->q[k][j * LANES]);
#pragma GCC unroll 6
        for (int r = 0; r < R; r++) {
            int32_t four;
            __m512i value;

            memcpy(&four, x[r * row].q + k * PRODUCT_QUAD, sizeof four);
            value = _mm512_set1_epi32(four);
#pragma GCC unroll 4
            for (int j = 0; j < STRIP_REGISTERS; j++)
                dot_add(&d[r][j], columns[j], value);
        }
    }
}

INLINE void tile_int8(const struct product_block *b, int32_t m, int32_t p, const int R)
{
    const int64_t G = b->groups;
    const struct product_input *x = b->inputs + m * G;
    const struct product_group *w = b->i8 + p * G;
    __m512 sum[TILE_ROWS_INT8][STRIP_REGISTERS];

#pragma GCC unroll 6
    for (int r = 0; r < R; r++)
#pragma GCC unroll 4
        for (int j = 0; j < STRIP_REGISTERS; j++)
            sum[r][j] = _mm512_setzero_ps();
    for (const struct product_group *end = w + G; w < end; w++, x++) {
        __m512i d[TILE_ROWS_INT8][STRIP_REGISTERS];

        if (R > TILE_ROWS_KEPT) /* or GCC spills in the inner loop */
            __asm__ volatile("" : "+m"(sum));
        group_int8(x, G, w, R, d);
#pragma GCC unroll 6
        for (int r = 0; r < R; r++) {
            __m512 x_scale = _mm512_set1_ps(x[r * G].scale);

#pragma GCC unroll 4
            for (int j = 0; j < STRIP_REGISTERS; j++)
                sum[r][j] = _mm512_fmadd_ps(
                    _mm512_cvtepi32_ps(d[r][j]),
                    _mm512_mul_ps(x_scale, _mm512_load_ps(w->scale + j * LANES)), sum[r][j]);
        }
        if (R > TILE_ROWS_KEPT)
            __asm__ volatile("" : "+m"(sum));
    }
#pragma GCC unroll 6
    for (int r = 0; r < R; r++)
#pragma GCC unroll 4
        for (int j = 0; j < STRIP_REGISTERS; j++) {
            const int32_t panel = p * STRIP_REGISTERS + j;

            if (panel * PRODUCT_PANEL < b->N)
                panel_store(
                    b, m + r, panel,
                    _mm512_add_ps(sum[r][j], _mm512_load_ps(b->bias + panel * PRODUCT_PANEL)));
        }
}

/* Activations that panel_store() leaves out, for panels of `width` columns. */
static void rows_finish(const struct product_block *b, int32_t width)
{
    int32_t from = b->first * width, to = b->end * width;

    if (product_simple(b->activation))
        return;
    to = to < b->N ? to : b->N;
    for (int64_t m = 0; m < b->rows; m++)
        product_tail(b->activation, to - from, b->add ? b->add + m * b->N + from : NULL,
                     b->y + m * b->N + from);
}

#define TILE_CASE(R, tile)                                                                         \
    case R:                                                                                        \
        tile;                                                                                      \
        break;

#define TILE_F32_ROWS(P)                                                                           \
    switch (rows) {                                                                                \
        TILE_CASE(1, tile_f32(b, m, p, 1, P))                                                      \
        TILE_CASE(2, tile_f32(b, m, p, 2, P))                                                      \
        TILE_CASE(3, tile_f32(b, m, p, 3, P))                                                      \
        TILE_CASE(4, tile_f32(b, m, p, 4, P))                                                      \
        TILE_CASE(5, tile_f32(b, m, p, 5, P))                                                      \
        TILE_CASE(6, tile_f32(b, m, p, 6, P))                                                      \
    }

/* The rows of a block in tiles of nearly equal height, for `count` panels at p. */
static void panels_f32(const struct product_block *b, int32_t p, int32_t count)
{
    int32_t tiles = (b->rows + TILE_ROWS_F32 - 1) / TILE_ROWS_F32;

    for (int32_t t = 0; t < tiles; t++) {
        int32_t m = b->rows * t / tiles;
        int32_t rows = b->rows * (t + 1) / tiles - m;

        if (count == 8)
            tile_f32(b, m, p, 1, 8);
        else if (count == 4)
            TILE_F32_ROWS(4)
        else if (count == 2)
            TILE_F32_ROWS(2)
        else
            TILE_F32_ROWS(1)
    }
}

static void avx512_run_f32(const struct product_block *b)
{
    for (int32_t p = b->first, count; p < b->end; p += count) {
        int32_t left = b->end - p;

        count = left >= 8 && b->rows == 1 ? 8 : left >= 4 ? 4 : left >= 2 ? 2 : 1;
        panels_f32(b, p, count);
    }
    rows_finish(b, PRODUCT_PANEL);
}

static void avx512_run_int8(const struct product_block *b)
{
    int32_t tiles = (b->rows + TILE_ROWS_INT8 - 1) / TILE_ROWS_INT8;

    for (int32_t p = b->first; p < b->end; p++)
        for (int32_t t = 0; t < tiles; t++) {
            int32_t m = b->rows * t / tiles;

            switch (b->rows * (t + 1) / tiles - m) {
                TILE_CASE(1, tile_int8(b, m, p, 1))
                TILE_CASE(2, tile_int8(b, m, p, 2))
                TILE_CASE(3, tile_int8(b, m, p, 3))
                TILE_CASE(4, tile_int8(b, m, p, 4))
                TILE_CASE(5, tile_int8(b, m, p, 5))
                TILE_CASE(6, tile_int8(b, m, p, 6))
            }
        }
    rows_finish(b, PRODUCT_STRIP);
}

const struct product_kernel product_kernel_avx512 = {"avx512_vnni", avx512_quantise, avx512_run_f32,
                                                     avx512_run_int8};
