/* SPDX-License-Identifier: MIT
 *
 * arrivals: when each job of an open-loop load is due. The plan depends on rate and seed alone,
 * never on how fast answers come, so a server that stalls is charged for every job that should have
 * been sent meanwhile (no coordinated omission): latencies are measured from these times. Plain
 * data.
 */
#ifndef PGPT_PRODUCER_ARRIVALS_H
#define PGPT_PRODUCER_ARRIVALS_H

#include <stdbool.h>
#include <stdint.h>

struct arrivals {
    double rate; /* jobs a second */
    bool poisson;
    uint64_t state; /* of the random numbers */
    double next_s;  /* since the start */
    uint64_t count;
};

void arrivals_init(struct arrivals *arrivals, double rate, bool poisson, uint64_t seed);
/* Microseconds since the start at which the next job is due. */
int64_t arrivals_next(struct arrivals *arrivals);

#endif
