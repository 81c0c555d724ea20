/* SPDX-License-Identifier: MIT
 *
 * Ops: every instruction set of this machine gives the bytes of plain C for random inputs, caches
 * of both precisions, lengths around the width of a register, and values at the edges: signed
 * zeros, numbers too small for half precision or too large, ties; plain C agrees with sums in
 * double.
 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "kernels/cpu/isa.h"
#include "kernels/cpu/ops.h"

enum { D = 192, V = 131, HEADS = 3, POSITIONS = 70, PAGES = (POSITIONS + OPS_PAGE - 1) / OPS_PAGE };

static uint32_t state = 1;

static float random_float(void)
{
    state = state * 1664525u + 1013904223u;
    return (float)(int32_t)(state >> 8) / 8388608.0f - 1.0f;
}

/* One in eight is at an edge of what caches and sums have to bear. */
static void fill(float *values, int32_t count)
{
    static const float edges[] = {0.0f,    -0.0f,    1e-8f,    -3e-7f, 6.1e-5f,
                                  1000.0f, -2000.0f, 0.33333f, 1e-40f};

    for (int32_t i = 0; i < count; i++) {
        float value = random_float();

        values[i] = state >> 29 ? value : edges[(state >> 8) % (sizeof edges / sizeof edges[0])];
    }
}

static const struct ops *ops_of(enum isa isa)
{
    return isa_force(isa) ? NULL : ops_current();
}

/* Everything that one set of ops makes of the same inputs, filled byte by byte. */
struct made {
    float norm[D], scale_add[D], weights[V], sum_exp[V], top[V];
    int32_t index[V];
};

static void rows_make(const struct ops *ops, struct made *made)
{
    float x[D], gain[D], bias[D], logits[V];

    memset(made, 0, sizeof *made);
    state = 7;
    fill(x, D);
    fill(gain, D);
    fill(bias, D);
    ops->norm(D, x, gain, bias, 1e-5f, made->norm);
    ops->scale_add(D, x, 22.627417f, bias, made->scale_add);
    for (int32_t count = 1; count <= V; count++) {
        float most;

        fill(logits, V);
        if (count % 3 == 0) /* a tie, the lower index wins */
            logits[count / 2] = logits[count - 1] = 3000.0f;
        if (count % 5 == 0)
            logits[0] = -INFINITY;
        if (count % 7 == 0) /* zeros of both signs are equal */
            for (int32_t i = 0; i < count; i++)
                logits[i] = i % 2 ? 0.0f : -0.0f;
        most = ops->top(count, logits, &made->index[count - 1]);
        made->top[count - 1] = most + 0.0f; /* which zero is not said */
        made->sum_exp[count - 1] = ops->sum_exp(count, logits, most, made->weights);
    }
}

static void rows_have_the_bytes_of_plain_c(void **unused)
{
    static struct made expected, got;

    (void)unused;
    rows_make(ops_of(ISA_PLAIN), &expected);
    for (int32_t count = 3; count <= V; count += 3)
        assert_int_equal(expected.index[count - 1], count % 7 == 0 ? 0 : count / 2);
    for (int isa = 1; isa < ISA_COUNT; isa++) {
        const struct ops *ops = ops_of((enum isa)isa);

        if (!ops)
            continue;
        rows_make(ops, &got);
        assert_memory_equal(&got, &expected, sizeof got);
    }
}

struct attended {
    char *pages[PAGES];
    size_t page_bytes;
    float *out; /* (POSITIONS, HEADS, dh) */
    size_t out_bytes;
};

/* Fills a cache position by position and attends after each. */
static struct attended attend_make(const struct ops *ops, const struct ops_cache *cache)
{
    int32_t width = cache->heads * cache->dh;
    struct attended made = {.page_bytes = 2 * ops_layer_bytes(cache),
                            .out_bytes = (size_t)POSITIONS * (size_t)width * sizeof(float)};
    float *k = malloc((size_t)width * sizeof *k), *v = malloc((size_t)width * sizeof *v);
    float *q = malloc((size_t)width * sizeof *q), scores[PAGES * OPS_PAGE];

    made.out = malloc(made.out_bytes);
    assert_true(k && v && q && made.out);
    for (int32_t i = 0; i < PAGES; i++) {
        made.pages[i] = calloc(1, made.page_bytes);
        assert_non_null(made.pages[i]);
    }
    state = 11;
    for (int32_t t = 0; t < POSITIONS; t++) {
        struct ops_attend a = {.cache = *cache,
                               .q = q,
                               .pages = made.pages,
                               .offset = ops_layer_bytes(cache), /* the second layer */
                               .count = t + 1,
                               .first = 0,
                               .end = cache->heads,
                               .scores = scores,
                               .out = made.out + (int64_t)t * width};

        fill(k, width);
        fill(v, width);
        k[t % width] = 70000.0f; /* beyond half precision */
        for (int32_t i = 0; i < width; i++)
            q[i] = random_float() * 0.125f;
        ops->keep(cache, k, v, made.pages[t / OPS_PAGE] + a.offset, t % OPS_PAGE);
        ops->attend(&a);
    }
    free(k);
    free(v);
    free(q);
    return made;
}

static void attended_free(struct attended *made)
{
    for (int32_t i = 0; i < PAGES; i++)
        free(made->pages[i]);
    free(made->out);
}

static void attention_has_the_bytes_of_plain_c(void **unused)
{
    static const int32_t sizes[] = {16, 32, 64, 80};

    (void)unused;
    for (size_t i = 0; i < 2 * sizeof sizes / sizeof sizes[0]; i++) {
        struct ops_cache cache = {.heads = HEADS, .dh = sizes[i / 2], .half = i % 2};
        struct attended expected = attend_make(ops_of(ISA_PLAIN), &cache);

        for (int isa = 1; isa < ISA_COUNT; isa++) {
            const struct ops *ops = ops_of((enum isa)isa);
            struct attended got;

            if (!ops)
                continue;
            got = attend_make(ops, &cache);
            for (int32_t p = 0; p < PAGES; p++)
                assert_memory_equal(got.pages[p], expected.pages[p], expected.page_bytes);
            assert_memory_equal(got.out, expected.out, expected.out_bytes);
            attended_free(&got);
        }
        attended_free(&expected);
    }
}

static void plain_c_is_near_the_sum_in_double(void **unused)
{
    const struct ops *ops = ops_of(ISA_PLAIN);
    float x[D], gain[D], bias[D], y[D], logits[V];
    double mean = 0, variance = 0, sum = 0;
    int32_t index;
    float most;

    (void)unused;
    for (int32_t i = 0; i < D; i++) {
        x[i] = random_float();
        gain[i] = random_float();
        bias[i] = random_float();
        mean += x[i] / (double)D;
    }
    for (int32_t i = 0; i < D; i++)
        variance += (x[i] - mean) * (x[i] - mean) / D;
    ops->norm(D, x, gain, bias, 1e-5f, y);
    for (int32_t i = 0; i < D; i++)
        assert_true(fabs((x[i] - mean) / sqrt(variance + 1e-5) * gain[i] + bias[i] - y[i]) < 2e-6);
    for (int32_t i = 0; i < V; i++)
        logits[i] = 8.0f * random_float();
    most = ops->top(V, logits, &index);
    for (int32_t i = 0; i < V; i++) {
        assert_true(logits[i] <= most);
        sum += exp((double)logits[i] - (double)most);
    }
    assert_true(logits[index] == most);
    assert_true(fabs(ops->sum_exp(V, logits, most, NULL) / sum - 1.0) < 1e-6);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(rows_have_the_bytes_of_plain_c),
        cmocka_unit_test(attention_has_the_bytes_of_plain_c),
        cmocka_unit_test(plain_c_is_near_the_sum_in_double),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
