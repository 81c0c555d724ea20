/* SPDX-License-Identifier: MIT
 *
 * AVX2 with FMA. float32 tiles are up to 6 rows by one panel (two registers wide). int8 widens to
 * 16 bits and uses vpmaddwd, whose pair sums fit 32 bits: vpmaddubsw would saturate.
 */
#include <immintrin.h>

#include "kernels/cpu/product_kernel.h"
#include "kernels/cpu/product_tail.h"

#define INLINE static inline __attribute__((always_inline))

enum { TILE_ROWS = 6 };

INLINE float eight_top(__m256 values)
{
    float lanes[8], top = 0.0f;

    _mm256_storeu_ps(lanes, values);
    for (int i = 0; i < 8; i++)
        top = lanes[i] > top ? lanes[i] : top;
    return top;
}

/* One group of PRODUCT_GROUP values. */
INLINE void group_quantise(const __m256 *values, struct product_input *out)
{
    enum { PARTS = PRODUCT_GROUP / 8 };
    __m256 lows = _mm256_setzero_ps(), highs = _mm256_setzero_ps();
    __m256i total = _mm256_setzero_si256();
    int32_t lanes[8], sum = 0, zero;
    float low, range, factor;

#pragma GCC unroll 8
    for (int i = 0; i < PARTS; i++) {
        lows = _mm256_min_ps(lows, values[i]);
        highs = _mm256_max_ps(highs, values[i]);
    }
    low = -eight_top(_mm256_xor_ps(lows, _mm256_set1_ps(-0.0f)));
    range = eight_top(highs) - low;
    factor = range < PRODUCT_TINY ? 0.0f : PRODUCT_Q_MAX / range;
    zero = _mm_cvtss_si32(_mm_set_ss(-low * factor)) - 128;
#pragma GCC unroll 8
    for (int i = 0; i < PARTS; i++) {
        __m256i whole = _mm256_cvtps_epi32(_mm256_mul_ps(values[i], _mm256_set1_ps(factor)));
        __m128i words;

        whole = _mm256_min_epi32(_mm256_add_epi32(whole, _mm256_set1_epi32(zero)),
                                 _mm256_set1_epi32(127));
        words = _mm_packs_epi32(_mm256_castsi256_si128(whole), _mm256_extracti128_si256(whole, 1));
        _mm_storel_epi64((__m128i *)(out->q + 8 * i), _mm_packs_epi16(words, words));
        total = _mm256_add_epi32(total, whole);
    }
    _mm256_storeu_si256((__m256i *)lanes, total);
    for (int i = 0; i < 8; i++)
        sum += lanes[i];
    out->scale = factor > 0.0f ? range / PRODUCT_Q_MAX : 0.0f;
    out->pair = (struct product_pair){{(int16_t)zero, (int16_t)sum}};
}

static void avx2_quantise(int32_t K, const float *row, const float *factors,
                          struct product_input *inputs)
{
    float copies[2][PRODUCT_GROUP] = {0}; /* of the last group when it is short */

    for (int32_t at = 0; at < K; at += PRODUCT_GROUP) {
        const float *x = row + at, *f = factors + at;
        __m256 values[PRODUCT_GROUP / 8];

        if (K - at < PRODUCT_GROUP) {
            x = memcpy(copies[0], x, (size_t)(K - at) * sizeof *x);
            f = memcpy(copies[1], f, (size_t)(K - at) * sizeof *f);
        }
#pragma GCC unroll 8
        for (int i = 0; i < PRODUCT_GROUP / 8; i++)
            values[i] = _mm256_mul_ps(_mm256_loadu_ps(x + 8 * i), _mm256_loadu_ps(f + 8 * i));
        group_quantise(values, inputs++);
    }
}

static void panel_store(const struct product_block *b, int32_t row, int32_t panel, __m256 low,
                        __m256 high)
{
    int32_t first = panel * PRODUCT_PANEL;
    int32_t count = b->N - first < PRODUCT_PANEL ? b->N - first : PRODUCT_PANEL;
    int64_t at = (int64_t)row * b->N + first;
    float y[PRODUCT_PANEL];

    _mm256_storeu_ps(y, low);
    _mm256_storeu_ps(y + 8, high);
    product_tail(b->activation, count, b->add ? b->add + at : NULL, y);
    memcpy(b->y + at, y, (size_t)count * sizeof *y);
}

INLINE void tile_f32(const struct product_block *b, int32_t m, int32_t p, const int R)
{
    const int64_t K = b->K;
    const float *x = b->x + m * K;
    const float *w = b->f32 + p * K * PRODUCT_PANEL;
    const float *bias = b->bias + p * PRODUCT_PANEL;
    __m256 sum[TILE_ROWS][2];

#pragma GCC unroll 8
    for (int r = 0; r < R; r++)
        sum[r][0] = sum[r][1] = _mm256_setzero_ps();
    for (int64_t k = 0; k < K; k++) {
        __m256 low = _mm256_load_ps(w + k * PRODUCT_PANEL);
        __m256 high = _mm256_load_ps(w + k * PRODUCT_PANEL + 8);

#pragma GCC unroll 8
        for (int r = 0; r < R; r++) {
            __m256 value = _mm256_broadcast_ss(x + r * K + k);

            sum[r][0] = _mm256_fmadd_ps(value, low, sum[r][0]);
            sum[r][1] = _mm256_fmadd_ps(value, high, sum[r][1]);
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; r++)
        panel_store(b, m + r, p, _mm256_add_ps(sum[r][0], _mm256_load_ps(bias)),
                    _mm256_add_ps(sum[r][1], _mm256_load_ps(bias + 8)));
}

/* One row by four panels: eight sums in flight where there is no second row to share weights with.
 */
static void row_f32(const struct product_block *b, int32_t m, int32_t p)
{
    const int64_t K = b->K;
    const float *x = b->x + m * K;
    const float *w = b->f32 + p * K * PRODUCT_PANEL;
    __m256 sum[4][2];

#pragma GCC unroll 8
    for (int j = 0; j < 4; j++)
        sum[j][0] = sum[j][1] = _mm256_setzero_ps();
    for (int64_t k = 0; k < K; k++) {
        __m256 value = _mm256_broadcast_ss(x + k);

#pragma GCC unroll 8
        for (int j = 0; j < 4; j++) {
            const float *at = w + (j * K + k) * PRODUCT_PANEL;

            sum[j][0] = _mm256_fmadd_ps(value, _mm256_load_ps(at), sum[j][0]);
            sum[j][1] = _mm256_fmadd_ps(value, _mm256_load_ps(at + 8), sum[j][1]);
        }
    }
    for (int j = 0; j < 4; j++) {
        const float *bias = b->bias + (p + j) * PRODUCT_PANEL;

        panel_store(b, m, p + j, _mm256_add_ps(sum[j][0], _mm256_load_ps(bias)),
                    _mm256_add_ps(sum[j][1], _mm256_load_ps(bias + 8)));
    }
}

static void avx2_run_f32(const struct product_block *b)
{
    int32_t tiles = (b->rows + TILE_ROWS - 1) / TILE_ROWS;
    int32_t p = b->first;

    for (; b->rows == 1 && p + 4 <= b->end; p += 4)
        row_f32(b, 0, p);
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

/* start plus the sums of 8 columns from two registers with two partial sums a column, as floats. */
INLINE __m256 sums_join(__m256i first, __m256i second, __m256i start)
{
    __m256i pairs = _mm256_hadd_epi32(first, second);

    pairs = _mm256_permute4x64_epi64(pairs, 0xd8); /* hadd works in lanes */
    return _mm256_cvtepi32_ps(_mm256_add_epi32(pairs, start));
}

/* sum (R, 16) += one group: R rows by 16 columns from `first` on, two partial sums a column. */
INLINE void group_add(const struct product_input *x, int64_t row, const struct product_group *w,
                      int32_t first, const int R, __m256 (*sum)[2])
{
    __m256i d[2][4];

#pragma GCC unroll 2
    for (int r = 0; r < R; r++)
#pragma GCC unroll 4
        for (int j = 0; j < 4; j++)
            d[r][j] = _mm256_setzero_si256();
    for (int k = 0; k < PRODUCT_QUADS; k++) {
        __m256i columns[4];

#pragma GCC unroll 4
        for (int j = 0; j < 4; j++)
            columns[j] = _mm256_cvtepu8_epi16(
                _mm_load_si128((const __m128i *)w->q[k][first + j * PRODUCT_QUAD]));
#pragma GCC unroll 2
        for (int r = 0; r < R; r++) {
            int32_t four;
            __m256i value;

            memcpy(&four, x[r * row].q + k * PRODUCT_QUAD, sizeof four);
            value = _mm256_cvtepi8_epi16(_mm_set1_epi32(four));
#pragma GCC unroll 4
            for (int j = 0; j < 4; j++)
                d[r][j] = _mm256_add_epi32(d[r][j], _mm256_madd_epi16(value, columns[j]));
        }
    }
#pragma GCC unroll 2
    for (int r = 0; r < R; r++) {
        int32_t pair;

        memcpy(&pair, &x[r * row].pair, sizeof pair);
#pragma GCC unroll 2
        for (int half = 0; half < 2; half++) {
            const int32_t at = first + half * 8;
            __m256i start = _mm256_madd_epi16(_mm256_load_si256((const __m256i *)(w->pair + at)),
                                              _mm256_set1_epi32(pair));
            __m256 scale =
                _mm256_mul_ps(_mm256_set1_ps(x[r * row].scale), _mm256_load_ps(w->scale + at));

            sum[r][half] = _mm256_fmadd_ps(sums_join(d[r][2 * half], d[r][2 * half + 1], start),
                                           scale, sum[r][half]);
        }
    }
}

/* R rows by one panel of 16 columns. */
INLINE void tile_int8(const struct product_block *b, int64_t m, int32_t panel, const int R)
{
    const int64_t G = b->groups;
    const int32_t column = panel * PRODUCT_PANEL;
    const struct product_group *w = b->i8 + column / PRODUCT_STRIP * G;
    const float *bias = b->bias + column;
    __m256 sum[2][2];

#pragma GCC unroll 2
    for (int r = 0; r < R; r++)
        sum[r][0] = sum[r][1] = _mm256_setzero_ps();
    for (int64_t g = 0; g < G; g++)
        group_add(b->inputs + m * G + g, G, w + g, column % PRODUCT_STRIP, R, sum);
#pragma GCC unroll 2
    for (int r = 0; r < R; r++)
        panel_store(b, (int32_t)m + r, panel, _mm256_add_ps(sum[r][0], _mm256_load_ps(bias)),
                    _mm256_add_ps(sum[r][1], _mm256_load_ps(bias + 8)));
}

static void avx2_run_int8(const struct product_block *b)
{
    enum { PARTS = PRODUCT_STRIP / PRODUCT_PANEL };

    for (int32_t p = b->first * PARTS; p < b->end * PARTS && p * PRODUCT_PANEL < b->N; p++) {
        int32_t m = 0;

        for (; m + 2 <= b->rows; m += 2)
            tile_int8(b, m, p, 2);
        if (m < b->rows)
            tile_int8(b, m, p, 1);
    }
}

const struct product_kernel product_kernel_avx2 = {"avx2", avx2_quantise, avx2_run_f32,
                                                   avx2_run_int8};
