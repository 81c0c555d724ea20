/* SPDX-License-Identifier: MIT */
#include "kernels/cpu/product_kernel.h"
#include "kernels/cpu/product_tail.h"

static void group_quantise(const float *values, struct product_input *out)
{
    float low = 0.0f, high = 0.0f, factor;
    int32_t zero, total = 0;

    for (int32_t k = 0; k < PRODUCT_GROUP; k++) {
        low = values[k] < low ? values[k] : low;
        high = values[k] > high ? values[k] : high;
    }
    factor = high - low < PRODUCT_TINY ? 0.0f : PRODUCT_Q_MAX / (high - low);
    zero = (int32_t)lrintf(-low * factor) - 128;
    for (int32_t k = 0; k < PRODUCT_GROUP; k++) {
        int32_t q = zero + (int32_t)lrintf(values[k] * factor);

        out->q[k] = (int8_t)(q > 127 ? 127 : q);
        total += out->q[k];
    }
    out->scale = factor > 0.0f ? (high - low) / PRODUCT_Q_MAX : 0.0f;
    out->pair = (struct product_pair){{(int16_t)zero, (int16_t)total}};
}

static void plain_quantise(int32_t K, const float *row, const float *factors,
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

/* sum (64) += one group of one row */
static void group_add(const struct product_input *restrict x,
                      const struct product_group *restrict w, float *restrict sum)
{
    for (int32_t j = 0; j < PRODUCT_STRIP; j++) {
        int32_t d = x->pair.part[0] * w->pair[j].part[0] + x->pair.part[1] * w->pair[j].part[1];

        for (int32_t k = 0; k < PRODUCT_GROUP; k++)
            d += x->q[k] * w->q[k / PRODUCT_QUAD][j][k % PRODUCT_QUAD];
        sum[j] = fmaf((float)d, x->scale * w->scale[j], sum[j]);
    }
}

static void plain_store(const struct product_block *b, int32_t row, int32_t panel, int32_t width,
                        float *y)
{
    int32_t first = panel * width;
    int32_t count = b->N - first < width ? b->N - first : width;
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
            plain_store(b, m, p, PRODUCT_PANEL, y);
        }
}

static void plain_run_int8(const struct product_block *b)
{
    for (int32_t p = b->first; p < b->end; p++)
        for (int32_t m = 0; m < b->rows; m++) {
            float y[PRODUCT_STRIP] = {0};

            for (int64_t g = 0; g < b->groups; g++)
                group_add(b->inputs + (int64_t)m * b->groups + g,
                          b->i8 + (int64_t)p * b->groups + g, y);
            for (int32_t j = 0; j < PRODUCT_STRIP; j++)
                y[j] += b->bias[p * PRODUCT_STRIP + j];
            plain_store(b, m, p, PRODUCT_STRIP, y);
        }
}

const struct product_kernel product_kernel_plain = {"plain", plain_quantise, plain_run_f32,
                                                    plain_run_int8};
