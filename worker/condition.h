/* SPDX-License-Identifier: MIT
 *
 * condition: waiting on a condition variable with an end, on the monotonic clock, so that setting
 * the machine's time neither shortens nor lengthens a wait. Any thread.
 */
#ifndef PGPT_WORKER_CONDITION_H
#define PGPT_WORKER_CONDITION_H

#include <pthread.h>
#include <stdint.h>
#include <time.h>

static inline void condition_init(pthread_cond_t *condition)
{
    pthread_condattr_t attributes;

    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_cond_init(condition, &attributes);
    pthread_condattr_destroy(&attributes);
}

/* For pthread_cond_timedwait(): the time in wait_us microseconds. */
static inline struct timespec condition_end(int64_t wait_us)
{
    struct timespec end;
    int64_t ns;

    clock_gettime(CLOCK_MONOTONIC, &end);
    ns = end.tv_nsec + wait_us % 1000000 * 1000;
    end.tv_sec += wait_us / 1000000 + ns / 1000000000;
    end.tv_nsec = (long)(ns % 1000000000);
    return end;
}

#endif
