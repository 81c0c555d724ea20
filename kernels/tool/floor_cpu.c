/* SPDX-License-Identifier: MIT
 *
 * What this processor can do at best: each figure is the best of several short tries, because
 * whatever else runs can only make a try slower.
 */
#include <stdlib.h>
#include <string.h>

#include "kernels/base/clock.h"
#include "kernels/cpu/math.h"
#include "kernels/cpu/product.h"
#include "kernels/cpu/threads.h"
#include "kernels/tool/floor.h"

enum {
    TRY_US = 5000, /* of reading and of products */
    TRIES = 20,
    BARRIER_TRY_US = 200, /* short: a thread that was put off the processor spoils one try */
    BARRIER_TRIES = 200,
    READ_BYTES_MIN = 1 << 16,
    READ_BYTES_MAX = 1 << 30,
    PRODUCT_M = 256,
    PRODUCT_N = 1024,
    PRODUCT_K = 512
};

/* Runs `once` for try_us; the best microseconds a run over the tries. */
static double best_us(void (*once)(void *arg), void *arg, int tries, int64_t try_us)
{
    double best = 1e30;

    once(arg);
    for (int try = 0; try < tries; try++) {
        int64_t begun = clock_mono_us(), now;
        int64_t runs = 0;

        do {
            once(arg);
            runs++;
        } while ((now = clock_mono_us()) - begun < try_us);
        if ((double)(now - begun) / (double)runs < best)
            best = (double)(now - begun) / (double)runs;
    }
    return best;
}

/* ---- reading ---- */

enum { LANES = 64 };

struct reading {
    struct threads *threads;
    const uint32_t *words; /* (count), a multiple of LANES */
    int64_t count;
    uint32_t sums[THREADS_MAX][16]; /* a cache line a thread */
};

MATH_CLONES
static void read_part(void *arg, int32_t part, int32_t parts)
{
    struct reading *reading = arg;
    struct threads_range range = threads_share(reading->count, LANES, part, parts);
    uint32_t lanes[LANES] = {0};

    for (int64_t i = range.begin; i < range.end; i += LANES)
        for (int lane = 0; lane < LANES; lane++)
            lanes[lane] += reading->words[i + lane];
    for (int lane = 0; lane < LANES; lane++)
        reading->sums[part][0] += lanes[lane]; /* kept, so that the reads are not left out */
}

static void read_once(void *arg)
{
    struct reading *reading = arg;

    threads_run(reading->threads, read_part, reading);
}

static int reading_measure(struct threads *threads, double bytes, double *bytes_per_us,
                           struct error *error)
{
    size_t size = bytes < READ_BYTES_MIN   ? READ_BYTES_MIN
                  : bytes > READ_BYTES_MAX ? READ_BYTES_MAX
                                           : (size_t)bytes;
    struct reading *reading = calloc(1, sizeof *reading);
    uint32_t *words;

    size -= size % (LANES * sizeof *words);
    words = aligned_alloc(64, size);
    if (!reading || !words) {
        free(reading);
        free(words);
        return error_set(error, "out of memory for measuring the bandwidth");
    }
    memset(words, 1, size); /* pages of its own */
    reading->threads = threads;
    reading->words = words;
    reading->count = (int64_t)(size / sizeof *words);
    *bytes_per_us = (double)size / best_us(read_once, reading, TRIES, TRY_US);
    free(reading);
    free(words);
    return 0;
}

/* ---- a product ---- */

struct product_try {
    struct threads *threads;
    struct product_weight *weight;
    float *x, *y;
};

static void product_once(void *arg)
{
    struct product_try *try = arg;

    product_run(try->weight, PRODUCT_M, try->x, PRODUCT_NONE, NULL, try->y, NULL, try->threads);
}

static int product_measure(struct threads *threads, enum product_format format,
                           double *operations_per_us, struct error *error)
{
    struct product_try try = {.threads = threads};
    float *weight = malloc(sizeof *weight * PRODUCT_N * PRODUCT_K);
    int status = -1;

    try.x = malloc(sizeof *try.x * PRODUCT_M * PRODUCT_K);
    try.y = malloc(sizeof *try.y * PRODUCT_M * PRODUCT_N);
    if (!weight || !try.x || !try.y) {
        error_set(error, "out of memory for measuring a product");
        goto out;
    }
    for (int i = 0; i < PRODUCT_N * PRODUCT_K; i++)
        weight[i] = (float)(i % 255 - 127) / 127;
    for (int i = 0; i < PRODUCT_M * PRODUCT_K; i++)
        try.x[i] = (float)(i % 253 - 126) / 126;
    try.weight = product_pack(format, PRODUCT_N, PRODUCT_K, weight, NULL, NULL, error);
    if (!try.weight)
        goto out;
    *operations_per_us =
        2.0 * PRODUCT_M * PRODUCT_N * PRODUCT_K / best_us(product_once, &try, TRIES, TRY_US);
    status = 0;
out:
    product_free(try.weight);
    free(try.x);
    free(try.y);
    free(weight);
    return status;
}

/* ---- a barrier ---- */

static void nothing(void *arg, int32_t part, int32_t parts)
{
    (void)arg, (void)part, (void)parts;
}

static void barrier_once(void *arg)
{
    threads_run(arg, nothing, NULL);
}

int engine_floor_cpu(const struct engine_floor_need *need, struct engine_floor *floor,
                     struct error *error)
{
    bool int8 = !strcmp(need->compute, "int8") || !strcmp(need->compute, "dynamic");
    struct threads *threads = threads_create(need->threads, error);
    int status = -1;

    if (!threads)
        return -1;
    if (!reading_measure(threads, need->bytes, &floor->bytes_per_us, error) &&
        !product_measure(threads, int8 ? PRODUCT_INT8 : PRODUCT_F32, &floor->operations_per_us,
                         error)) {
        floor->barrier_us = best_us(barrier_once, threads, BARRIER_TRIES, BARRIER_TRY_US);
        status = 0;
    }
    threads_destroy(threads);
    return status;
}
