/* SPDX-License-Identifier: MIT */
#include "kernels/cpu/product.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/cpu/isa.h"
#include "kernels/cpu/product_kernel.h"

/* Inputs of one block stay in a core's second-level cache beside the panels that pass by. */
enum { BLOCK_BYTES = 1 << 17, BLOCK_ROWS = 96 }; /* PRODUCT_K_MAX: one row fits */

struct product_weight {
    enum product_format format;
    int32_t N, K, panels;
    float *f32; /* packed as product_kernel.h says, one of the two */
    int8_t *i8;
    float *scale; /* (panels * 16), int8 only */
    int32_t *sum; /* (panels * 16) 128 times the sum of a column, int8 only */
    float *bias;  /* (panels * 16) */
};

static const struct product_kernel *kernel_current(void)
{
#if defined(__x86_64__)
    switch (isa_current()) {
    case ISA_AVX512:
        return &product_kernel_avx512;
    case ISA_AVX2:
        return &product_kernel_avx2;
    case ISA_PLAIN:
        break;
    }
#endif
    return &product_kernel_plain;
}

static void row_pack_f32(struct product_weight *w, int32_t n, const float *row)
{
    float *to = w->f32 + (int64_t)(n / PRODUCT_PANEL) * w->K * PRODUCT_PANEL + n % PRODUCT_PANEL;

    for (int32_t k = 0; k < w->K; k++)
        to[(int64_t)k * PRODUCT_PANEL] = row[k];
}

/* out (K4 * 4), zeros past K; returns the scale. */
static float weight_quantise(int32_t K, const float *row, int8_t *out)
{
    int32_t length = product_groups(K) * PRODUCT_GROUP;
    float most = 0.0f, factor;

    for (int32_t k = 0; k < K; k++)
        most = fabsf(row[k]) > most ? fabsf(row[k]) : most;
    factor = most > 0.0f ? 127.0f / most : 0.0f;
    for (int32_t k = 0; k < K; k++)
        out[k] = (int8_t)rintf(row[k] * factor);
    memset(out + K, 0, (size_t)(length - K));
    return most / 127.0f;
}

static void row_pack_int8(struct product_weight *w, int32_t n, const float *row, int8_t *work)
{
    int32_t groups = product_groups(w->K), total = 0;
    int8_t *to =
        w->i8 +
        ((int64_t)(n / PRODUCT_PANEL) * groups * PRODUCT_PANEL + n % PRODUCT_PANEL) * PRODUCT_GROUP;

    w->scale[n] = weight_quantise(w->K, row, work);
    for (int32_t g = 0; g < groups; g++)
        memcpy(to + (int64_t)g * PRODUCT_PANEL * PRODUCT_GROUP, work + g * PRODUCT_GROUP,
               PRODUCT_GROUP);
    for (int32_t k = 0; k < w->K; k++)
        total += work[k];
    w->sum[n] = 128 * total;
}

/* Zeroed, on a cache line of its own; NULL when memory is out. */
static void *lines_alloc(size_t size)
{
    size_t whole = (size + 63) & ~(size_t)63;
    void *memory = aligned_alloc(64, whole);

    if (memory)
        memset(memory, 0, whole);
    return memory;
}

static bool arrays_alloc(struct product_weight *w)
{
    size_t columns = (size_t)w->panels * PRODUCT_PANEL;

    w->bias = lines_alloc(columns * sizeof *w->bias);
    if (w->format == PRODUCT_F32) {
        w->f32 = lines_alloc(columns * (size_t)w->K * sizeof *w->f32);
        return w->bias && w->f32;
    }
    w->scale = lines_alloc(columns * sizeof *w->scale);
    w->sum = lines_alloc(columns * sizeof *w->sum);
    w->i8 = lines_alloc(columns * (size_t)product_groups(w->K) * PRODUCT_GROUP);
    return w->bias && w->scale && w->sum && w->i8;
}

struct product_weight *product_pack(enum product_format format, int32_t N, int32_t K,
                                    const float *weight, const float *bias, struct error *error)
{
    struct product_weight *w;
    int8_t *work = NULL;

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
    w->panels = (N + PRODUCT_PANEL - 1) / PRODUCT_PANEL;
    work = malloc((size_t)product_groups(K) * PRODUCT_GROUP);
    if (!arrays_alloc(w) || !work)
        goto no_memory;
    for (int32_t n = 0; n < N; n++)
        if (format == PRODUCT_INT8)
            row_pack_int8(w, n, weight + (int64_t)n * K, work);
        else
            row_pack_f32(w, n, weight + (int64_t)n * K);
    if (bias)
        memcpy(w->bias, bias, (size_t)N * sizeof *bias);
    free(work);
    return w;
no_memory:
    error_set(error, "product: out of memory for a weight of %d x %d", (int)N, (int)K);
    free(work);
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
    free(w->sum);
    free(w->bias);
    free(w);
}

size_t product_bytes(const struct product_weight *w)
{
    size_t columns = (size_t)w->panels * PRODUCT_PANEL;

    if (w->format == PRODUCT_F32)
        return sizeof *w + columns * ((size_t)w->K + 1) * sizeof(float);
    return sizeof *w + columns * ((size_t)product_groups(w->K) * PRODUCT_GROUP + 3 * sizeof(float));
}

size_t product_scratch(const struct product_weight *w, int32_t M)
{
    (void)w;
    (void)M;
    return 0;
}

struct product_call {
    const struct product_weight *w;
    int32_t M;
    enum product_activation activation;
    const float *x;   /* (M,K) */
    const float *add; /* (M,N) or NULL */
    float *y;         /* (M,N) */
};

/* Rows begin..end-1 by panels first..last-1, block by block. */
static void call_run(const struct product_call *call, int64_t begin, int64_t end, int32_t first,
                     int32_t last)
{
    const struct product_kernel *kernel = kernel_current();
    const struct product_weight *w = call->w;
    const int32_t length = product_groups(w->K) * PRODUCT_GROUP;
    int32_t most = w->format == PRODUCT_INT8 ? BLOCK_BYTES / (2 * length) : BLOCK_ROWS;
    _Alignas(64) int8_t q[BLOCK_BYTES];
    float scales[BLOCK_ROWS];
    struct product_block b = {.K = w->K,
                              .N = w->N,
                              .first = first,
                              .end = last,
                              .q = q,
                              .x_scale = scales,
                              .f32 = w->f32,
                              .i8 = w->i8,
                              .scale = w->scale,
                              .sum = w->sum,
                              .bias = w->bias,
                              .activation = call->activation};

    most = most > BLOCK_ROWS ? BLOCK_ROWS : most;
    for (int64_t m = begin; first < last && m < end; m += b.rows) {
        b.rows = (int32_t)(end - m < most ? end - m : most);
        b.x = call->x + m * w->K;
        b.add = call->add ? call->add + m * w->N : NULL;
        b.y = call->y + m * w->N;
        if (w->format == PRODUCT_F32) {
            kernel->run_f32(&b);
            continue;
        }
        for (int32_t i = 0; i < b.rows; i++)
            scales[i] =
                kernel->quantise(w->K, b.x + (int64_t)i * w->K, q + 2 * (int64_t)i * length);
        kernel->run_int8(&b);
    }
}

/* Panels are shared out in fours, the width of a tile, where there are enough of them. */
static void part_columns(void *arg, int32_t part, int32_t parts)
{
    const struct product_call *call = arg;
    int32_t panels = call->w->panels;
    struct threads_range range = threads_share(panels, panels >= 4 * parts ? 4 : 1, part, parts);

    call_run(call, 0, call->M, (int32_t)range.begin, (int32_t)range.end);
}

static void part_rows(void *arg, int32_t part, int32_t parts)
{
    const struct product_call *call = arg;
    struct threads_range range = threads_share(call->M, 1, part, parts);

    call_run(call, range.begin, range.end, 0, call->w->panels);
}

void product_run(const struct product_weight *w, int32_t M, const float *x,
                 enum product_activation activation, const float *add, float *y, void *scratch,
                 struct threads *threads)
{
    struct product_call call = {w, M, activation, x, add, y};

    (void)scratch;
    threads_run(threads, M >= 8 * threads_count(threads) ? part_rows : part_columns, &call);
}

void product_columns(const struct product_weight *w, int32_t M, const float *x,
                     enum product_activation activation, const float *add, float *y, int32_t part,
                     int32_t parts)
{
    struct product_call call = {w, M, activation, x, add, y};

    part_columns(&call, part, parts);
}

void product_row(const struct product_weight *w, int32_t n, float *out)
{
    int64_t panel = n / PRODUCT_PANEL, column = n % PRODUCT_PANEL;
    int32_t groups = product_groups(w->K);

    for (int32_t k = 0; k < w->K; k++) {
        int64_t group = (panel * groups + k / PRODUCT_GROUP) * PRODUCT_PANEL + column;

        out[k] = w->format == PRODUCT_F32
                     ? w->f32[(panel * w->K + k) * PRODUCT_PANEL + column]
                     : (float)w->i8[group * PRODUCT_GROUP + k % PRODUCT_GROUP] * w->scale[n];
    }
}

const char *product_path(void)
{
    return kernel_current()->name;
}
