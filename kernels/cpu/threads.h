/* SPDX-License-Identifier: MIT
 *
 * threads: a small fork-join pool. The owner calls threads_run() from one thread at a time; that
 * thread works too. A job has as many parts as there are threads; whoever is free takes the next
 * one, so a worker that the system keeps waiting delays nobody. Workers spin for some tens of
 * microseconds after a job, then sleep, so a decode step pays no system call and an idle engine no
 * processor time. What a part computes must not depend on the number of parts: only who computes it
 * may.
 */
#ifndef PGPT_KERNELS_CPU_THREADS_H
#define PGPT_KERNELS_CPU_THREADS_H

#include <stdint.h>

#include "kernels/base/error.h"

struct threads; /* opaque */

enum { THREADS_MAX = 256 };

/* count 1..THREADS_MAX includes the caller; 1 makes no thread at all. */
struct threads *threads_create(int32_t count, struct error *error) PGPT_MUST_CHECK;
void threads_destroy(struct threads *threads); /* NULL is allowed */
int32_t threads_count(const struct threads *threads);

/* Calls work(arg, part, parts) once for each part 0..parts-1 and returns when all have returned. */
void threads_run(struct threads *threads, void (*work)(void *arg, int32_t part, int32_t parts),
                 void *arg);

struct threads_range {
    int64_t begin, end;
};

/* The share of `part` in 0..total-1, cut at multiples of `grain`. */
static inline struct threads_range threads_share(int64_t total, int64_t grain, int32_t part,
                                                 int32_t parts)
{
    int64_t pieces = (total + grain - 1) / grain;
    struct threads_range range = {pieces * part / parts * grain,
                                  pieces * (part + 1) / parts * grain};

    if (range.begin > total)
        range.begin = total;
    if (range.end > total)
        range.end = total;
    return range;
}

#endif
