/* SPDX-License-Identifier: MIT
 *
 * latency: durations in microseconds, counted in logarithmic buckets: bounded memory, percentiles
 * at most 0.5 % off, minimum, maximum and mean exact. One thread at a time.
 */
#ifndef PGPT_PRODUCER_LATENCY_H
#define PGPT_PRODUCER_LATENCY_H

#include <stdint.h>

/* Bucket i > 0 holds 1.01^(i-1) < v <= 1.01^i; up to 1.01^2760 us, about ten days. */
enum { LATENCY_BUCKETS = 2761 };

struct latency {
    uint64_t buckets[LATENCY_BUCKETS];
    uint64_t count;
    int64_t min, max;
    double sum;
};

void latency_add(struct latency *latency, int64_t us); /* below 0 counts as 0 */
/* Nearest rank: the smallest value with at least share * count values at or below it; share 0..1.
 * 0 when nothing was added. */
double latency_percentile(const struct latency *latency, double share);
double latency_mean(const struct latency *latency);

#endif
