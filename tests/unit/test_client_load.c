/* SPDX-License-Identifier: MIT
 *
 * Arrival plans, percentiles, and what a stall looks like when latencies count from when jobs were
 * due.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "producer/arrivals.h"
#include "producer/latency.h"

static void test_constant_plan(void **state)
{
    struct arrivals a;

    (void)state;
    arrivals_init(&a, 1000, false, 1);
    for (int64_t i = 0; i < 1000000; i++)
        assert_in_range(arrivals_next(&a), i ? i * 1000 - 1 : 0, i * 1000);
}

static void test_poisson_plan(void **state)
{
    enum { N = 200000 };
    struct arrivals a, again;
    int64_t before = 0;
    double sum = 0, squares = 0;
    int above_mean = 0;

    (void)state;
    arrivals_init(&a, 500, true, 42);
    arrivals_init(&again, 500, true, 42);
    for (int i = 0; i < N; i++) {
        int64_t at = arrivals_next(&a), gap = at - before;

        assert_int_equal(at, arrivals_next(&again));
        assert_true(gap >= 0);
        sum += (double)gap;
        squares += (double)gap * (double)gap;
        above_mean += gap > 2000;
        before = at;
    }
    /* Exponential gaps: mean = standard deviation = 2 ms, exp(-1) of them above the mean. */
    assert_true(fabs(sum / N - 2000) < 20);
    assert_true(fabs(sqrt(squares / N - sum / N * (sum / N)) - 2000) < 40);
    assert_true(fabs((double)above_mean / N - exp(-1)) < 0.005);
    arrivals_init(&again, 500, true, 43);
    arrivals_init(&a, 500, true, 42);
    assert_int_not_equal(arrivals_next(&a), arrivals_next(&again));
}

static int ascending(const void *a, const void *b)
{
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;

    return (x > y) - (x < y);
}

static void test_percentiles_against_exact_ones(void **state)
{
    enum { N = 137 };
    static const double shares[] = {0, 0.001, 0.25, 0.5, 0.9, 0.95, 0.99, 0.999, 1};
    static int64_t values[N];
    static struct latency l;
    uint64_t random = 7;

    (void)state;
    for (int i = 0; i < N; i++) {
        random = random * 6364136223846793005u + 1442695040888963407u;
        /* log-uniform from 1 us to about 20 minutes */
        values[i] = (int64_t)exp((double)(random >> 33) / 0x1p31 * 21);
        latency_add(&l, values[i]);
    }
    qsort(values, N, sizeof *values, ascending);
    for (size_t i = 0; i < sizeof shares / sizeof *shares; i++) {
        int rank = (int)ceil(shares[i] * N);
        double exact = (double)values[rank ? rank - 1 : 0];

        assert_true(fabs(latency_percentile(&l, shares[i]) - exact) <= 0.005 * exact + 0.51);
    }
    assert_int_equal(l.min, values[0]);
    assert_int_equal(l.max, values[N - 1]);
    assert_true(latency_percentile(&l, 1) == (double)values[N - 1]);
}

static void test_percentiles_of_few(void **state)
{
    static struct latency none, one, edges;

    (void)state;
    assert_true(latency_percentile(&none, 0.5) == 0 && latency_mean(&none) == 0);
    latency_add(&one, 12345);
    assert_true(latency_percentile(&one, 0.01) == 12345 && latency_percentile(&one, 0.99) == 12345);
    latency_add(&edges, -5); /* clocks of other threads: never below 0 */
    latency_add(&edges, 0);
    latency_add(&edges, 1);
    latency_add(&edges, INT64_MAX / 4); /* past the last bucket */
    assert_int_equal(edges.min, 0);
    assert_true(latency_percentile(&edges, 0.25) == 0);
    assert_true(latency_percentile(&edges, 1) == (double)(INT64_MAX / 4));
}

/* A server that takes 1 ms a job, one at a time, and stalls once for a second; a sender that may
 * have one job on its way (--outstanding 1). Measured from the send, one job in ten thousand is
 * slow; measured from when they were due, every job that the stall delayed is. */
static void test_stall_is_charged_to_all_it_delayed(void **state)
{
    enum { N = 10000, SERVICE_US = 1000, STALL_US = 1000000 };
    static struct latency due, sent;
    struct arrivals a;
    int64_t free_at = 0;

    (void)state;
    arrivals_init(&a, 500, false, 1);
    for (int i = 0; i < N; i++) {
        int64_t at = arrivals_next(&a), send = at > free_at ? at : free_at;
        int64_t end = send + SERVICE_US + (i == N / 2 ? STALL_US : 0);

        latency_add(&due, end - at);
        latency_add(&sent, end - send);
        free_at = end;
    }
    assert_true(latency_percentile(&sent, 0.999) < 1100);
    /* The backlog of 500 jobs drains at 1,000 a second while 500 a second arrive: 1,000 are late.
     */
    assert_true(fabs(latency_percentile(&due, 0.95) - 500000) < 10000);
    assert_true(fabs(latency_percentile(&due, 0.99) - 900000) < 12000);
    assert_true(latency_percentile(&due, 0.89) < 1100);
    assert_int_equal(due.max, STALL_US + SERVICE_US);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_constant_plan),
        cmocka_unit_test(test_poisson_plan),
        cmocka_unit_test(test_percentiles_against_exact_ones),
        cmocka_unit_test(test_percentiles_of_few),
        cmocka_unit_test(test_stall_is_charged_to_all_it_delayed),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
