/* SPDX-License-Identifier: MIT */
#include "kernels/cpu/product.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/cpu/isa.h"
#include "kernels/cpu/product_kernel.h"

/* Inputs of one block stay in a core's second-level cache beside the panels that pass by. */
enum { BLOCK_BYTES = 1 << 17, BLOCK_ROWS = 96 }; /* one row of PRODUCT_K_MAX inputs fits */

struct product_weight {
    enum product_format format;
    int32_t N, K, groups;
    int32_t panels, width;    /* how many, and the columns of one */
    float *f32;               /* (panels, K, 16), one of the two */
    struct product_group *i8; /* (panels, groups) */
    float *balance;           /* (2, K) what W was multiplied by, and its inverse; int8 only */
    float *bias;              /* (panels * width) */
};

static const struct product_kernel *const kernels[ISA_COUNT] = {
    [ISA_PLAIN] = &product_kernel_plain,
#if defined(__x86_64__)
    [ISA_AVX2] = &product_kernel_avx2,
    [ISA_AVX512] = &product_kernel_avx512,
#elif defined(__aarch64__)
    [ISA_NEON] = &product_kernel_neon,
    [ISA_NEON_DOT] = &product_kernel_neon_dot,
#endif
};

static const struct product_kernel *kernel_current(void)
{
    return kernels[isa_current()];
}

static void row_pack_f32(struct product_weight *w, int32_t n, const float *row)
{
    float *to = w->f32 + (int64_t)(n / PRODUCT_PANEL) * w->K * PRODUCT_PANEL + n % PRODUCT_PANEL;

    for (int32_t k = 0; k < w->K; k++)
        to[(int64_t)k * PRODUCT_PANEL] = row[k];
}

/* false when memory is out. */
static bool balance_make(struct product_weight *w, const float *weight, const float *reach)
{
    double *squares = calloc((size_t)w->K, sizeof *squares);
    bool made;

    for (int64_t n = 0; squares && reach && n < w->N; n++)
        for (int32_t k = 0; k < w->K; k++)
            squares[k] += (double)weight[n * w->K + k] * weight[n * w->K + k];
    for (int32_t k = 0; squares && k < w->K; k++) {
        bool known = reach && reach[k] > 0.0f && squares[k] > 0.0;

        w->balance[k] = known ? (float)sqrt(reach[k] / sqrt(squares[k] / w->N)) : 1.0f;
        w->balance[w->K + k] = 1.0f / w->balance[k];
    }
    made = squares != NULL;
    free(squares);
    return made;
}

/* count values, balanced, to column n of a group. */
static void group_pack(struct product_group *group, int32_t n, int32_t count, const float *row,
                       const float *balance)
{
    float values[PRODUCT_GROUP] = {0}, low = 0.0f, high = 0.0f, factor;
    int32_t zero, total = 0;

    for (int32_t k = 0; k < count; k++) {
        values[k] = row[k] * balance[k];
        low = values[k] < low ? values[k] : low;
        high = values[k] > high ? values[k] : high;
    }
    factor = high - low < PRODUCT_TINY ? 0.0f : PRODUCT_Q_MAX / (high - low);
    zero = (int32_t)lrintf(-low * factor);
    for (int32_t k = 0; k < PRODUCT_GROUP; k++) {
        int32_t q = zero + (int32_t)lrintf(values[k] * factor);

        q = q > 255 ? 255 : q;
        group->q[k / PRODUCT_QUAD][n][k % PRODUCT_QUAD] = (uint8_t)q;
        total += q - zero;
    }
    group->scale[n] = factor > 0.0f ? (high - low) / PRODUCT_Q_MAX : 0.0f;
    group->pair[n] = (struct product_pair){{(int16_t)-total, (int16_t)-zero}};
}

static void row_pack_int8(struct product_weight *w, int32_t n, const float *row)
{
    struct product_group *groups = w->i8 + (int64_t)(n / PRODUCT_STRIP) * w->groups;

    for (int32_t g = 0, k = 0; k < w->K; g++, k += PRODUCT_GROUP)
        group_pack(groups + g, n % PRODUCT_STRIP,
                   w->K - k < PRODUCT_GROUP ? w->K - k : PRODUCT_GROUP, row + k, w->balance + k);
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
    size_t panels = (size_t)w->panels;

    w->bias = lines_alloc(panels * (size_t)w->width * sizeof *w->bias);
    if (w->format == PRODUCT_F32) {
        w->f32 = lines_alloc(panels * PRODUCT_PANEL * (size_t)w->K * sizeof *w->f32);
        return w->bias && w->f32;
    }
    w->i8 = lines_alloc(panels * (size_t)w->groups * sizeof *w->i8);
    w->balance = lines_alloc(2 * (size_t)w->K * sizeof *w->balance);
    return w->bias && w->i8 && w->balance;
}

struct product_weight *product_pack(enum product_format format, int32_t N, int32_t K,
                                    const float *weight, const float *bias, const float *reach,
                                    struct error *error)
{
    struct product_weight *w;

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
    w->width = format == PRODUCT_INT8 ? PRODUCT_STRIP : PRODUCT_PANEL;
    w->panels = (N + w->width - 1) / w->width;
    w->groups = product_groups(K);
    if (!arrays_alloc(w))
        goto no_memory;
    if (format == PRODUCT_INT8 && !balance_make(w, weight, reach))
        goto no_memory;
    for (int32_t n = 0; n < N; n++)
        if (format == PRODUCT_INT8)
            row_pack_int8(w, n, weight + (int64_t)n * K);
        else
            row_pack_f32(w, n, weight + (int64_t)n * K);
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
    free(w->balance);
    free(w->bias);
    free(w);
}

size_t product_bytes(const struct product_weight *w)
{
    size_t panels = (size_t)w->panels, size = panels * (size_t)w->width * sizeof *w->bias;

    if (w->format == PRODUCT_F32)
        size += panels * PRODUCT_PANEL * (size_t)w->K * sizeof *w->f32;
    else
        size += panels * (size_t)w->groups * sizeof *w->i8 + 2 * (size_t)w->K * sizeof *w->balance;
    return sizeof *w + size;
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
    const int32_t inputs_most = BLOCK_BYTES / (int32_t)sizeof(struct product_input);
    int32_t most = w->format == PRODUCT_INT8 ? inputs_most / w->groups : BLOCK_ROWS;
    struct product_input inputs[BLOCK_BYTES / sizeof(struct product_input)];
    struct product_block b = {.K = w->K,
                              .N = w->N,
                              .groups = w->groups,
                              .first = first,
                              .end = last,
                              .inputs = inputs,
                              .f32 = w->f32,
                              .i8 = w->i8,
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
            kernel->quantise(w->K, b.x + (int64_t)i * w->K, w->balance + w->K,
                             inputs + (int64_t)i * w->groups);
        kernel->run_int8(&b);
    }
}

/* Panels of 16 columns are shared out in fours, the width of a tile, where there are enough. */
static void part_columns(void *arg, int32_t part, int32_t parts)
{
    const struct product_call *call = arg;
    int32_t panels = call->w->panels;
    int32_t unit = call->w->format == PRODUCT_F32 && panels >= 4 * parts ? 4 : 1;
    struct threads_range range = threads_share(panels, unit, part, parts);

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
    int64_t panel = n / w->width, column = n % w->width;

    if (w->format == PRODUCT_F32) {
        for (int32_t k = 0; k < w->K; k++)
            out[k] = w->f32[(panel * w->K + k) * PRODUCT_PANEL + column];
        return;
    }
    for (int32_t g = 0, at = 0; at < w->K; g++, at += PRODUCT_GROUP) {
        const struct product_group *group = w->i8 + panel * w->groups + g;
        const float *inverse = w->balance + w->K + at;
        const int32_t zero = group->pair[column].part[1];
        int32_t q[PRODUCT_GROUP];

        for (int32_t k = 0; k < PRODUCT_GROUP; k++)
            q[k] = group->q[k / PRODUCT_QUAD][column][k % PRODUCT_QUAD] + zero;
        for (int32_t k = 0; k < PRODUCT_GROUP && at + k < w->K; k++)
            out[at + k] = (float)q[k] * group->scale[column] * inverse[k];
    }
}

const char *product_path(void)
{
    return kernel_current()->name;
}
