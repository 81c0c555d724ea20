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

static void eight_store(int8_t *out, __m256i q)
{
    __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(q), _mm256_extracti128_si256(q, 1));

    _mm_storel_epi64((__m128i *)out, _mm_packs_epi16(words, words));
}

static float avx2_quantise(int32_t K, const float *row, int8_t *out)
{
    const __m256 sign = _mm256_set1_ps(-0.0f);
    int32_t whole = K & ~7, length = product_groups(K) * PRODUCT_GROUP, k;
    __m256 most = _mm256_setzero_ps(), factors;
    float lanes[8], top = 0.0f, factor;

    for (k = 0; k < whole; k += 8)
        most = _mm256_max_ps(most, _mm256_andnot_ps(sign, _mm256_loadu_ps(row + k)));
    _mm256_storeu_ps(lanes, most);
    for (int i = 0; i < 8; i++)
        top = lanes[i] > top ? lanes[i] : top;
    for (k = whole; k < K; k++)
        top = fabsf(row[k]) > top ? fabsf(row[k]) : top;
    factor = top > 0.0f ? PRODUCT_Q_MAX / top : 0.0f;
    factors = _mm256_set1_ps(factor);
    for (k = 0; k < whole; k += 8) {
        __m256i q = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(row + k), factors));
        __m256i high = _mm256_srai_epi32(_mm256_add_epi32(q, _mm256_set1_epi32(64)), 7);

        eight_store(out + k, high);
        eight_store(out + length + k, _mm256_sub_epi32(q, _mm256_slli_epi32(high, 7)));
    }
    for (k = whole; k < length; k++) {
        int32_t q = k < K ? (int32_t)rintf(row[k] * factor) : 0;

        out[k] = (int8_t)product_high(q);
        out[length + k] = (int8_t)(q - 128 * product_high(q));
    }
    return top / PRODUCT_Q_MAX;
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

/* The sums of 8 columns from two registers with two partial sums a column, as floats. */
INLINE __m256 sums_join(__m256i first, __m256i second)
{
    __m256i pairs = _mm256_hadd_epi32(first, second);

    return _mm256_cvtepi32_ps(_mm256_permute4x64_epi64(pairs, 0xd8)); /* hadd works in lanes */
}

/* One row by one panel: its two digits share the weights. */
static void row_int8(const struct product_block *b, int32_t m, int32_t p)
{
    const int64_t groups = product_groups(b->K);
    const int64_t length = groups * PRODUCT_GROUP;
    const int8_t *q = b->q + 2 * m * length;
    const int8_t *w = b->i8 + p * length * PRODUCT_PANEL;
    __m256i sum[2][4]; /* digits, 4 columns each */
    __m256 y[2];

#pragma GCC unroll 8
    for (int j = 0; j < 4; j++)
        sum[0][j] = sum[1][j] = _mm256_setzero_si256();
    for (int64_t g = 0; g < groups; g++) {
        __m256i column[4];

#pragma GCC unroll 8
        for (int j = 0; j < 4; j++)
            column[j] = _mm256_cvtepi8_epi16(
                _mm_load_si128((const __m128i *)(w + (g * 4 + j) * PRODUCT_PANEL)));
#pragma GCC unroll 2
        for (int digit = 0; digit < 2; digit++) {
            int32_t four;
            __m256i value;

            memcpy(&four, q + digit * length + g * PRODUCT_GROUP, sizeof four);
            value = _mm256_cvtepi8_epi16(_mm_set1_epi32(four));
#pragma GCC unroll 8
            for (int j = 0; j < 4; j++)
                sum[digit][j] =
                    _mm256_add_epi32(sum[digit][j], _mm256_madd_epi16(value, column[j]));
        }
    }
#pragma GCC unroll 2
    for (int half = 0; half < 2; half++) {
        int32_t at = p * PRODUCT_PANEL + half * 8;
        __m256 high = sums_join(sum[0][2 * half], sum[0][2 * half + 1]);
        __m256 low = sums_join(sum[1][2 * half], sum[1][2 * half + 1]);

        y[half] = _mm256_fmadd_ps(
            _mm256_fmadd_ps(_mm256_set1_ps(128.0f), high, low),
            _mm256_mul_ps(_mm256_set1_ps(b->x_scale[m]), _mm256_load_ps(b->scale + at)),
            _mm256_load_ps(b->bias + at));
    }
    panel_store(b, m, p, y[0], y[1]);
}

static void avx2_run_int8(const struct product_block *b)
{
    for (int32_t p = b->first; p < b->end; p++)
        for (int32_t m = 0; m < b->rows; m++)
            row_int8(b, m, p);
}

const struct product_kernel product_kernel_avx2 = {"avx2", avx2_quantise, avx2_run_f32,
                                                   avx2_run_int8};
