/* SPDX-License-Identifier: MIT
 *
 * metrics: process-wide counters, gauges and histograms, fixed by metrics_table.h. Lock-free; any
 * thread may call.
 */
#ifndef PGPT_WORKER_METRICS_H
#define PGPT_WORKER_METRICS_H

#include <stddef.h>
#include <stdint.h>

enum metric {
#define COUNTER(id, name, labels, help) METRIC_##id,
#define GAUGE(id, name, labels, help) METRIC_##id,
#define HISTOGRAM(id, name, labels, help) METRIC_##id,
#include "worker/metrics_table.h"
    METRIC_COUNT
};

void metrics_add(enum metric metric, uint64_t n);         /* counters */
void metrics_set(enum metric metric, int64_t value);      /* gauges */
void metrics_observe(enum metric metric, int64_t micros); /* histograms */
uint64_t metrics_value(enum metric metric);               /* counter or gauge, for tests */

/* Prometheus text format 0.0.4 into a malloc'ed string (caller frees); NULL without memory. */
char *metrics_render(size_t *size);

#endif
