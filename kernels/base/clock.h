/* SPDX-License-Identifier: MIT
 *
 * clock: the only two clocks. Wall time is for what others read (timestamps, deadlines); monotonic
 * time is for durations. Policy code takes `now` as an argument instead of calling these.
 */
#ifndef PGPT_KERNELS_BASE_CLOCK_H
#define PGPT_KERNELS_BASE_CLOCK_H

#include <stdint.h>
#include <time.h>

static inline int64_t clock_wall_us(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_REALTIME, &ts);
    return (int64_t)ts.tv_sec * 1000000 + ts.tv_nsec / 1000;
}

static inline int64_t clock_mono_us(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (int64_t)ts.tv_sec * 1000000 + ts.tv_nsec / 1000;
}

#endif
