/* SPDX-License-Identifier: MIT
 *
 * Products: every instruction set of this machine gives the bytes of plain C, for odd sizes, any
 * number of rows and of threads; plain C agrees with sums in double.
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
#include "kernels/cpu/math.h"
#include "kernels/cpu/product.h"

struct shape {
    int32_t N, K, M;
};

static const struct shape shapes[] = {
    {1, 1, 1},     {16, 4, 1},    {17, 5, 3},    {48, 7, 2},    {63, 31, 6},  {64, 33, 7},
    {65, 64, 11},  {130, 13, 1},  {128, 16, 13}, {200, 100, 5}, {96, 512, 4}, {250, 129, 97},
    {3000, 18, 2}, {512, 256, 9}, {144, 2, 100}, {33, 1030, 3}, {31, 3, 64},  {272, 40, 1},
};

static uint32_t state;

static float random_float(void)
{
    state = state * 1664525u + 1013904223u;
    return (float)(int32_t)(state >> 8) / 8388608.0f - 1.0f;
}

static float *random_floats(size_t count)
{
    float *values = malloc(count * sizeof *values);

    assert_non_null(values);
    for (size_t i = 0; i < count; i++)
        values[i] = random_float();
    return values;
}

struct inputs {
    struct shape s;
    float *w, *b, *x, *add;
    float *reach; /* (K) from 0 up */
};

static struct inputs inputs_make(struct shape s)
{
    size_t N = (size_t)s.N, K = (size_t)s.K, M = (size_t)s.M;
    struct inputs in = {s,
                        random_floats(N * K),
                        random_floats(N),
                        random_floats(M * K),
                        random_floats(M * N),
                        random_floats(K)};

    for (size_t k = 0; k < K; k++)
        in.reach[k] = 8.0f * (in.reach[k] > 0.0f ? in.reach[k] : 0.0f);
    for (size_t k = 0; k < K; k++) /* a row of zeros has scale 0 */
        in.x[(M - 1) * K + k] = M > 1 ? 0.0f : in.x[(M - 1) * K + k];
    return in;
}

static void inputs_free(struct inputs *in)
{
    free(in->w);
    free(in->b);
    free(in->x);
    free(in->add);
    free(in->reach);
}

/* Runs rows from..from+count-1 alone; y (count, N). */
static void rows_run(const struct product_weight *w, const struct inputs *in, int32_t from,
                     int32_t count, enum product_activation activation, bool add, int32_t threads,
                     float *y)
{
    struct error error;
    struct threads *pool = threads_create(threads, &error);

    assert_non_null(pool);
    product_run(w, count, in->x + (int64_t)from * in->s.K, activation,
                add ? in->add + (int64_t)from * in->s.N : NULL, y, NULL, pool);
    threads_destroy(pool);
}

static void check_all(const struct inputs *in, enum product_format format,
                      enum product_activation activation, bool add)
{
    struct error error;
    size_t size = (size_t)in->s.M * (size_t)in->s.N * sizeof(float);
    struct product_weight *w =
        product_pack(format, in->s.N, in->s.K, in->w, in->b, in->reach, &error);
    float *expected = malloc(size), *y = malloc(size);

    assert_non_null(w);
    assert_non_null(expected);
    assert_non_null(y);
    assert_int_equal(isa_force(ISA_PLAIN), 0);
    rows_run(w, in, 0, in->s.M, activation, add, 1, expected);
    for (int isa = 0; isa < ISA_COUNT; isa++) {
        if (isa_force((enum isa)isa))
            continue;
        for (int32_t threads = 1; threads <= 3; threads++) {
            memset(y, 0xff, size);
            rows_run(w, in, 0, in->s.M, activation, add, threads, y);
            assert_memory_equal(y, expected, size);
        }
        for (int32_t m = 0; m < in->s.M; m += 3) { /* a row alone */
            rows_run(w, in, m, 1, activation, add, 1, y);
            assert_memory_equal(y, expected + (int64_t)m * in->s.N,
                                (size_t)in->s.N * sizeof(float));
        }
    }
    free(expected);
    free(y);
    product_free(w);
}

static void every_path_gives_the_bytes_of_plain_c(void **unused)
{
    (void)unused;
    for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; i++) {
        struct inputs in = inputs_make(shapes[i]);

        for (int format = PRODUCT_F32; format <= PRODUCT_INT8; format++)
            for (int activation = PRODUCT_NONE; activation <= PRODUCT_GELU; activation++)
                check_all(&in, (enum product_format)format, (enum product_activation)activation,
                          (i + (size_t)activation) % 2);
        inputs_free(&in);
    }
}

static float expected_activation(enum product_activation activation, double y)
{
    switch (activation) {
    case PRODUCT_RELU:
        return y > 0 ? (float)y : 0.0f;
    case PRODUCT_SWISH:
        return (float)(y / (1.0 + exp(-y)));
    case PRODUCT_GELU:
        return (float)(0.5 * y * (1.0 + erf(y / sqrt(2.0))));
    case PRODUCT_NONE:
        break;
    }
    return (float)y;
}

static void plain_c_is_near_the_sum_in_double(void **unused)
{
    struct inputs in = inputs_make((struct shape){37, 300, 5});
    float y[5 * 37];
    struct error error;

    (void)unused;
    assert_int_equal(isa_force(ISA_PLAIN), 0);
    for (int format = PRODUCT_F32; format <= PRODUCT_INT8; format++)
        for (int activation = PRODUCT_NONE; activation <= PRODUCT_GELU; activation++) {
            struct product_weight *w =
                product_pack((enum product_format)format, 37, 300, in.w, in.b, NULL, &error);

            assert_non_null(w);
            rows_run(w, &in, 0, 5, (enum product_activation)activation, true, 1, y);
            for (int32_t m = 0; m < 5; m++)
                for (int32_t n = 0; n < 37; n++) {
                    double sum = in.b[n];
                    float value;

                    for (int32_t k = 0; k < 300; k++)
                        sum += (double)in.x[m * 300 + k] * (double)in.w[n * 300 + k];
                    value = expected_activation((enum product_activation)activation, sum) +
                            in.add[m * 37 + n];
                    assert_true(fabsf(value - y[m * 37 + n]) <
                                (format == PRODUCT_INT8 ? 0.1f : 2e-5f));
                }
            product_free(w);
        }
    inputs_free(&in);
}

/* Group 0 of each row all above zero, group 1 all below, the last one tiny; columns likewise. */
static void one_sided_and_tiny_groups_agree(void **unused)
{
    enum { K = 180, N = 70, M = 8 };
    struct inputs in = inputs_make((struct shape){N, K, M});

    (void)unused;
    for (int i = 0; i < N * K; i++)
        in.w[i] = i % K < 64 ? 1.0f + in.w[i] : i % K < 128 ? in.w[i] - 1.0f : in.w[i] * 1e-35f;
    for (int i = 0; i < M * K; i++)
        in.x[i] = i % K < 64 ? in.x[i] - 1.0f : i % K < 128 ? in.x[i] + 3.0f : in.x[i] * 1e-32f;
    check_all(&in, PRODUCT_INT8, PRODUCT_NONE, false);
    inputs_free(&in);
}

static void extremes_do_not_saturate(void **unused)
{
    enum { K = 4096, N = 16 };
    struct inputs in = inputs_make((struct shape){N, K, 2});

    (void)unused;
    for (int i = 0; i < N * K; i++)
        in.w[i] = i / K % 2 ? -1.0f : 1.0f;
    for (int i = 0; i < 2 * K; i++)
        in.x[i] = i / K ? -2.0f : 2.0f;
    check_all(&in, PRODUCT_INT8, PRODUCT_NONE, false);
    inputs_free(&in);
}

static void a_row_of_the_weight_comes_back(void **unused)
{
    struct inputs in = inputs_make((struct shape){35, 50, 1});
    float out[50];
    struct error error;

    (void)unused;
    for (int format = PRODUCT_F32; format <= PRODUCT_INT8; format++) {
        struct product_weight *w =
            product_pack((enum product_format)format, 35, 50, in.w, NULL, NULL, &error);

        assert_non_null(w);
        product_row(w, 33, out);
        for (int k = 0; k < 50; k++)
            assert_true(fabsf(out[k] - in.w[33 * 50 + k]) <=
                        (format == PRODUCT_INT8 ? 1.01f / 255.0f : 0.0f));
        product_free(w);
    }
    inputs_free(&in);
}

static void sizes_out_of_range_are_refused(void **unused)
{
    struct error error;
    float one = 1.0f;

    (void)unused;
    assert_null(product_pack(PRODUCT_INT8, 1, PRODUCT_K_MAX + 1, &one, NULL, NULL, &error));
    assert_non_null(strstr(error.message, "outside the supported sizes"));
    assert_null(product_pack(PRODUCT_F32, 0, 1, &one, NULL, NULL, &error));
}

static void the_environment_names_the_path(void **unused)
{
    struct error error;

    (void)unused;
    assert_int_equal(setenv("PGPT_CPU_ISA", "sse9", 1), 0);
    assert_int_equal(isa_check(&error), -1);
    assert_non_null(strstr(error.message, "sse9"));
    assert_int_equal(setenv("PGPT_CPU_ISA", "plain", 1), 0);
    assert_int_equal(isa_check(&error), 0);
    assert_int_equal(unsetenv("PGPT_CPU_ISA"), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_path_gives_the_bytes_of_plain_c),
        cmocka_unit_test(plain_c_is_near_the_sum_in_double),
        cmocka_unit_test(one_sided_and_tiny_groups_agree),
        cmocka_unit_test(extremes_do_not_saturate),
        cmocka_unit_test(a_row_of_the_weight_comes_back),
        cmocka_unit_test(sizes_out_of_range_are_refused),
        cmocka_unit_test(the_environment_names_the_path),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
