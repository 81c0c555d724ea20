/* SPDX-License-Identifier: MIT
 *
 * duplicates: the job ids of one partition that are running or were finished within the window, so
 * that an upstream retry gets no second run. Bounded: at least `min_jobs` finished ids are kept, at
 * most `max_jobs`, in between those younger than the window (after a silence older ones too, which
 * go a few at a time). No call but the last does much at once. No lock: the intake thread and
 * settle use it under the assignment's lock.
 */
#ifndef PGPT_WORKER_DUPLICATES_H
#define PGPT_WORKER_DUPLICATES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "kernels/base/error.h"

struct duplicates; /* opaque */

struct duplicates_limits {
    int64_t window_us;
    size_t min_jobs, max_jobs;
};

struct duplicates *duplicates_create(struct duplicates_limits limits) PGPT_MUST_CHECK;
void duplicates_destroy(struct duplicates *duplicates); /* NULL is allowed */

/* False when the id is running or finished at another offset: a duplicate. Otherwise it is now
 * running at this offset. A redelivered offset is no duplicate of itself. -1: out of memory. */
int duplicates_begin(struct duplicates *duplicates, const uint8_t id[16], int64_t offset);
/* It was committed at this time. */
void duplicates_finish(struct duplicates *duplicates, const uint8_t id[16], int64_t offset,
                       int64_t now_us);
size_t duplicates_count(const struct duplicates *duplicates);

#endif
