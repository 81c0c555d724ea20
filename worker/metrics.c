/* SPDX-License-Identifier: MIT */
#include "worker/metrics.h"

#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum metric_type { TYPE_COUNTER, TYPE_GAUGE, TYPE_HISTOGRAM };
static const char *const type_names[] = {"counter", "gauge", "histogram"};

static const struct {
    enum metric_type type;
    const char *name, *labels, *help;
} table[METRIC_COUNT] = {
#define COUNTER(id, name, labels, help) {TYPE_COUNTER, name, labels, help},
#define GAUGE(id, name, labels, help) {TYPE_GAUGE, name, labels, help},
#define HISTOGRAM(id, name, labels, help) {TYPE_HISTOGRAM, name, labels, help},
#include "worker/metrics_table.h"
};

/* Upper bounds in microseconds, about 2.2 apart: from a decode step to minutes in a queue. */
static const int64_t bounds[] = {10,     25,      50,      100,     250,      500,      1000,
                                 2500,   5000,    10000,   25000,   50000,    100000,   250000,
                                 500000, 1000000, 2500000, 5000000, 15000000, 60000000, 300000000};
enum { BOUND_COUNT = sizeof bounds / sizeof *bounds };

static _Atomic int64_t values[METRIC_COUNT]; /* histograms: sum in microseconds */
static _Atomic uint64_t buckets[METRIC_COUNT][BOUND_COUNT + 1]; /* not cumulative */

void metrics_add(enum metric metric, uint64_t n)
{
    atomic_fetch_add_explicit(&values[metric], (int64_t)n, memory_order_relaxed);
}

void metrics_set(enum metric metric, int64_t value)
{
    atomic_store_explicit(&values[metric], value, memory_order_relaxed);
}

void metrics_observe(enum metric metric, int64_t micros)
{
    int i = 0;

    while (i < BOUND_COUNT && micros > bounds[i])
        i++;
    atomic_fetch_add_explicit(&buckets[metric][i], 1, memory_order_relaxed);
    atomic_fetch_add_explicit(&values[metric], micros, memory_order_relaxed);
}

uint64_t metrics_value(enum metric metric)
{
    return (uint64_t)atomic_load_explicit(&values[metric], memory_order_relaxed);
}

static void render_histogram(FILE *out, int m)
{
    uint64_t total = 0;

    for (int i = 0; i <= BOUND_COUNT; i++) {
        total += atomic_load_explicit(&buckets[m][i], memory_order_relaxed);
        if (i < BOUND_COUNT)
            fprintf(out, "%s_bucket{le=\"%g\"} %llu\n", table[m].name, (double)bounds[i] / 1e6,
                    (unsigned long long)total);
    }
    fprintf(out, "%s_bucket{le=\"+Inf\"} %llu\n%s_sum %.6f\n%s_count %llu\n", table[m].name,
            (unsigned long long)total, table[m].name, (double)atomic_load(&values[m]) / 1e6,
            table[m].name, (unsigned long long)total);
}

char *metrics_render(size_t *size)
{
    char *text = NULL;
    FILE *out = open_memstream(&text, size);

    if (!out)
        return NULL;
    for (int m = 0; m < METRIC_COUNT; m++) {
        bool first = m == 0 || strcmp(table[m].name, table[m - 1].name) != 0;

        if (first)
            fprintf(out, "# HELP %s %s\n# TYPE %s %s\n", table[m].name, table[m].help,
                    table[m].name, type_names[table[m].type]);
        if (table[m].type == TYPE_HISTOGRAM)
            render_histogram(out, m);
        else if (*table[m].labels)
            fprintf(out, "%s{%s} %lld\n", table[m].name, table[m].labels,
                    (long long)atomic_load(&values[m]));
        else
            fprintf(out, "%s %lld\n", table[m].name, (long long)atomic_load(&values[m]));
    }
    if (fclose(out)) {
        free(text);
        return NULL;
    }
    return text;
}
