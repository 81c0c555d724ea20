/* SPDX-License-Identifier: MIT */
#include "kernels/cpu/product_kernel.h"
#include "kernels/cpu/product_tail.h"

static float plain_quantise(int32_t K, const float *row, int8_t *out)
{
    int32_t length = product_groups(K) * PRODUCT_GROUP;
    float most = 0.0f;
    float factor;

    for (int32_t k = 0; k < K; k++)
        most = fabsf(row[k]) > most ? fabsf(row[k]) : most;
    factor = most > 0.0f ? PRODUCT_Q_MAX / most : 0.0f;
    for (int32_t k = 0; k < length; k++) {
        int32_t q = k < K ? (int32_t)rintf(row[k] * factor) : 0;

        out[k] = (int8_t)product_high(q);
        out[length + k] = (int8_t)(q - 128 * product_high(q));
    }
    return most / PRODUCT_Q_MAX;
}

static void panel_f32(int32_t K, const float *restrict x, const float *restrict w,
                      const float *restrict bias, float *restrict y)
{
    float sum[PRODUCT_PANEL] = {0};

    for (int32_t k = 0; k < K; k++)
        for (int32_t j = 0; j < PRODUCT_PANEL; j++)
            sum[j] = fmaf(x[k], w[(int64_t)k * PRODUCT_PANEL + j], sum[j]);
    for (int32_t j = 0; j < PRODUCT_PANEL; j++)
        y[j] = sum[j] + bias[j];
}

static void panel_int8(int32_t groups, const int8_t *restrict q, float x_scale,
                       const int8_t *restrict w, const float *restrict scale,
                       const float *restrict bias, float *restrict y)
{
    int32_t high[PRODUCT_PANEL] = {0}, low[PRODUCT_PANEL] = {0};

    for (int32_t k = 0; k < groups * PRODUCT_GROUP; k++)
        for (int32_t j = 0; j < PRODUCT_PANEL; j++) {
            int32_t weight = w[((int64_t)(k / PRODUCT_GROUP) * PRODUCT_PANEL + j) * PRODUCT_GROUP +
                               k % PRODUCT_GROUP];

            high[j] += (int32_t)q[k] * weight;
            low[j] += (int32_t)q[groups * PRODUCT_GROUP + k] * weight;
        }
    for (int32_t j = 0; j < PRODUCT_PANEL; j++)
        y[j] = fmaf(fmaf(128.0f, (float)high[j], (float)low[j]), x_scale * scale[j], bias[j]);
}

static void plain_store(const struct product_block *b, int32_t row, int32_t panel, float *y)
{
    int32_t first = panel * PRODUCT_PANEL;
    int32_t count = b->N - first < PRODUCT_PANEL ? b->N - first : PRODUCT_PANEL;
    int64_t at = (int64_t)row * b->N + first;

    product_tail(b->activation, count, b->add ? b->add + at : NULL, y);
    memcpy(b->y + at, y, (size_t)count * sizeof *y);
}

static void plain_run_f32(const struct product_block *b)
{
    float y[PRODUCT_PANEL];

    for (int32_t p = b->first; p < b->end; p++)
        for (int32_t m = 0; m < b->rows; m++) {
            panel_f32(b->K, b->x + (int64_t)m * b->K, b->f32 + (int64_t)p * b->K * PRODUCT_PANEL,
                      b->bias + p * PRODUCT_PANEL, y);
            plain_store(b, m, p, y);
        }
}

static void plain_run_int8(const struct product_block *b)
{
    int32_t groups = product_groups(b->K);
    int64_t length = (int64_t)groups * PRODUCT_GROUP;
    float y[PRODUCT_PANEL];

    for (int32_t p = b->first; p < b->end; p++)
        for (int32_t m = 0; m < b->rows; m++) {
            panel_int8(groups, b->q + 2 * m * length, b->x_scale[m],
                       b->i8 + p * length * PRODUCT_PANEL, b->scale + p * PRODUCT_PANEL,
                       b->bias + p * PRODUCT_PANEL, y);
            plain_store(b, m, p, y);
        }
}

const struct product_kernel product_kernel_plain = {"plain", plain_quantise, plain_run_f32,
                                                    plain_run_int8};
