/* SPDX-License-Identifier: MIT */
#include "producer/latency.h"

#include <math.h>

static const double growth = 1.01;

static int bucket_of(int64_t us)
{
    int bucket = us <= 1 ? (int)us : (int)ceil(log((double)us) / log(growth));

    return bucket < LATENCY_BUCKETS ? bucket : LATENCY_BUCKETS - 1;
}

void latency_add(struct latency *l, int64_t us)
{
    if (us < 0)
        us = 0;
    if (!l->count || us < l->min)
        l->min = us;
    if (!l->count || us > l->max)
        l->max = us;
    l->buckets[bucket_of(us)]++;
    l->count++;
    l->sum += (double)us;
}

/* The value with the same relative error to both ends of the bucket. */
static double bucket_value(int bucket)
{
    return bucket == 0 ? 0 : 2 / (1 + growth) * pow(growth, bucket);
}

double latency_percentile(const struct latency *l, double share)
{
    uint64_t rank = (uint64_t)ceil(share * (double)l->count), seen = 0;
    double value;
    int bucket = 0;

    if (!l->count)
        return 0;
    if (rank < 1)
        rank = 1;
    if (rank >= l->count)
        return (double)l->max;
    while ((seen += l->buckets[bucket]) < rank)
        bucket++;
    value = bucket_value(bucket);
    return value < (double)l->min   ? (double)l->min
           : value > (double)l->max ? (double)l->max
                                    : value;
}

double latency_mean(const struct latency *l)
{
    return l->count ? l->sum / (double)l->count : 0;
}
