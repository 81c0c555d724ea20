/* SPDX-License-Identifier: MIT */
#include "kernels/cpu/product.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/cpu/math.h"

/* Panels of PANEL output columns, stored k-major: the inner loop runs over columns, so that a vector
 * of any width keeps one accumulator for each output. */
enum { PANEL = 16 };

struct product_weight {
    enum product_format format;
    int32_t N, K, panels;
    float *f32;   /* (panels, K, PANEL) */
    int8_t *i8;   /* (panels, K, PANEL) */
    float *scale; /* (panels * PANEL), int8 only */
    float *bias;  /* (panels * PANEL) */
};

static float row_quantise(const float *row, int32_t K, int8_t *out, int64_t stride)
{
    float most = 0.0f;
    float factor;

    for (int32_t k = 0; k < K; k++)
        most = fabsf(row[k]) > most ? fabsf(row[k]) : most;
    factor = most > 0.0f ? 127.0f / most : 0.0f;
    for (int32_t k = 0; k < K; k++)
        out[k * stride] = (int8_t)rintf(row[k] * factor);
    return most / 127.0f;
}

static void panel_pack(struct product_weight *w, int32_t n, const float *row)
{
    int64_t at = (int64_t)(n / PANEL) * w->K * PANEL + n % PANEL;

    if (w->format == PRODUCT_INT8) {
        w->scale[n] = row_quantise(row, w->K, w->i8 + at, PANEL);
        return;
    }
    for (int32_t k = 0; k < w->K; k++)
        w->f32[at + (int64_t)k * PANEL] = row[k];
}

struct product_weight *product_pack(enum product_format format, int32_t N, int32_t K,
                                    const float *weight, const float *bias, struct error *error)
{
    struct product_weight *w;
    size_t cells;

    if (N < 1 || K < 1 || K > PRODUCT_K_MAX) {
        error_set(error, "product: %d x %d is outside the supported sizes (K up to %d)", (int)N,
                  (int)K, (int)PRODUCT_K_MAX);
        return NULL;
    }
    w = calloc(1, sizeof *w);
    if (!w)
        goto no_memory;
    w->format = format;
    w->N = N;
    w->K = K;
    w->panels = (N + PANEL - 1) / PANEL;
    cells = (size_t)w->panels * PANEL * (size_t)K;
    w->bias = calloc((size_t)w->panels * PANEL, sizeof *w->bias);
    w->scale = calloc((size_t)w->panels * PANEL, sizeof *w->scale);
    if (format == PRODUCT_INT8)
        w->i8 = calloc(cells, sizeof *w->i8);
    else
        w->f32 = aligned_alloc(64, cells * sizeof *w->f32);
    if (!w->bias || !w->scale || (!w->i8 && !w->f32))
        goto no_memory;
    if (w->f32)
        memset(w->f32, 0, cells * sizeof *w->f32);
    for (int32_t n = 0; n < N; n++)
        panel_pack(w, n, weight + (int64_t)n * K);
    if (bias)
        memcpy(w->bias, bias, (size_t)N * sizeof *bias);
    return w;
no_memory:
    error_set(error, "product: out of memory for a weight of %d x %d", (int)N, (int)K);
    product_free(w);
    return NULL;
}

void product_free(struct product_weight *w)
{
    if (!w)
        return;
    free(w->f32);
    free(w->i8);
    free(w->scale);
    free(w->bias);
    free(w);
}

size_t product_bytes(const struct product_weight *w)
{
    size_t columns = (size_t)w->panels * PANEL;
    size_t cell = w->format == PRODUCT_INT8 ? sizeof(int8_t) : sizeof(float);

    return sizeof *w + columns * ((size_t)w->K * cell + 2 * sizeof(float));
}

/* int8: (M,K) quantised rows, then (M) scales. */
static size_t scratch_rows(const struct product_weight *w, int32_t M)
{
    return ((size_t)M * (size_t)w->K + 63) & ~(size_t)63;
}

size_t product_scratch(const struct product_weight *w, int32_t M)
{
    return w->format == PRODUCT_INT8 ? scratch_rows(w, M) + (size_t)M * sizeof(float) : 0;
}

struct product_call {
    const struct product_weight *w;
    int32_t M;
    enum product_activation activation;
    const float *x;   /* (M,K) */
    const float *add; /* (M,N) or NULL */
    float *y;         /* (M,N) */
    int8_t *rows;     /* (M,K), int8 only */
    float *scales;    /* (M), int8 only */
};

static float activate(enum product_activation activation, float y)
{
    switch (activation) {
    case PRODUCT_RELU:
        return y > 0.0f ? y : 0.0f;
    case PRODUCT_SWISH:
        return math_swish(y);
    case PRODUCT_GELU:
        return math_gelu(y);
    case PRODUCT_NONE:
        break;
    }
    return y;
}

static void panel_store(const struct product_call *call, int32_t m, int32_t panel, const float *y)
{
    int32_t first = panel * PANEL;
    int32_t count = call->w->N - first < PANEL ? call->w->N - first : PANEL;
    int64_t at = (int64_t)m * call->w->N + first;

    for (int32_t j = 0; j < count; j++) {
        float value = activate(call->activation, y[j]);

        call->y[at + j] = call->add ? value + call->add[at + j] : value;
    }
}

MATH_CLONES static void panel_f32(int32_t K, const float *restrict x, const float *restrict w,
                                  const float *restrict bias, float *restrict y)
{
    float sum[PANEL] = {0};

    for (int32_t k = 0; k < K; k++)
        for (int32_t j = 0; j < PANEL; j++)
            sum[j] = fmaf(x[k], w[(int64_t)k * PANEL + j], sum[j]);
    for (int32_t j = 0; j < PANEL; j++)
        y[j] = sum[j] + bias[j];
}

MATH_CLONES static void panel_int8(int32_t K, const int8_t *restrict x, float scale_x,
                                   const int8_t *restrict w, const float *restrict scale,
                                   const float *restrict bias, float *restrict y)
{
    int32_t sum[PANEL] = {0};

    for (int32_t k = 0; k < K; k++)
        for (int32_t j = 0; j < PANEL; j++)
            sum[j] += (int32_t)x[k] * (int32_t)w[(int64_t)k * PANEL + j];
    for (int32_t j = 0; j < PANEL; j++)
        y[j] = fmaf((float)sum[j], scale_x * scale[j], bias[j]);
}

static void columns_run(void *arg, int32_t part, int32_t parts)
{
    const struct product_call *call = arg;
    const struct product_weight *w = call->w;
    struct threads_range range = threads_share(w->panels, 1, part, parts);
    float y[PANEL];

    for (int32_t p = (int32_t)range.begin; p < (int32_t)range.end; p++) {
        int64_t at = (int64_t)p * w->K * PANEL;

        for (int32_t m = 0; m < call->M; m++) {
            if (w->format == PRODUCT_INT8)
                panel_int8(w->K, call->rows + (int64_t)m * w->K, call->scales[m], w->i8 + at,
                           w->scale + p * PANEL, w->bias + p * PANEL, y);
            else
                panel_f32(w->K, call->x + (int64_t)m * w->K, w->f32 + at, w->bias + p * PANEL, y);
            panel_store(call, m, p, y);
        }
    }
}

static void rows_quantise(void *arg, int32_t part, int32_t parts)
{
    struct product_call *call = arg;
    int32_t K = call->w->K;
    struct threads_range range = threads_share(call->M, 1, part, parts);

    for (int64_t m = range.begin; m < range.end; m++)
        call->scales[m] = row_quantise(call->x + m * K, K, call->rows + m * K, 1);
}

void product_run(const struct product_weight *w, int32_t M, const float *x,
                 enum product_activation activation, const float *add, float *y, void *scratch,
                 struct threads *threads)
{
    struct product_call call = {w, M, activation, x, add, y, NULL, NULL};

    if (w->format == PRODUCT_INT8) {
        call.rows = scratch;
        call.scales = (float *)((char *)scratch + scratch_rows(w, M));
        threads_run(threads, rows_quantise, &call);
    }
    threads_run(threads, columns_run, &call);
}

void product_row(const struct product_weight *w, int32_t n, float *out)
{
    int64_t at = (int64_t)(n / PANEL) * w->K * PANEL + n % PANEL;

    for (int32_t k = 0; k < w->K; k++) {
        int64_t i = at + (int64_t)k * PANEL;

        out[k] = w->format == PRODUCT_INT8 ? (float)w->i8[i] * w->scale[n] : w->f32[i];
    }
}

const char *product_path(void)
{
    return "plain";
}
