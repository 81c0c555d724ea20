/* SPDX-License-Identifier: MIT */
#include "producer/arrivals.h"

#include <math.h>

/* SplitMix64 (Steele, Lea, Flood 2014). */
static uint64_t random_next(uint64_t *state)
{
    uint64_t z = *state += 0x9E3779B97F4A7C15u;

    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
    z = (z ^ z >> 27) * 0x94D049BB133111EBu;
    return z ^ z >> 31;
}

/* In (0, 1]. */
static double uniform(uint64_t *state)
{
    return (double)((random_next(state) >> 11) + 1) * 0x1p-53;
}

void arrivals_init(struct arrivals *a, double rate, bool poisson, uint64_t seed)
{
    *a = (struct arrivals){.rate = rate, .poisson = poisson, .state = seed};
    if (poisson)
        a->next_s = -log(uniform(&a->state)) / rate;
}

int64_t arrivals_next(struct arrivals *a)
{
    /* A constant plan is multiplied, not summed: a million steps of 0.1 would drift. */
    double due = a->poisson ? a->next_s : (double)a->count / a->rate;

    a->count++;
    if (a->poisson)
        a->next_s += -log(uniform(&a->state)) / a->rate;
    return (int64_t)(due * 1e6);
}
