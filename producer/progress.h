/* SPDX-License-Identifier: MIT
 *
 * progress: one line at the foot of a terminal that is drawn again and again. Nothing at all when
 * standard error is no terminal. One thread at a time.
 */
#ifndef PGPT_PRODUCER_PROGRESS_H
#define PGPT_PRODUCER_PROGRESS_H

#include <stdbool.h>
#include <stdint.h>

#include "kernels/base/error.h"

struct progress {
    bool on;
    int64_t drawn_us; /* monotonic */
};

void progress_init(struct progress *progress);
/* True when it is time to draw again: ten times a second at most. */
bool progress_due(const struct progress *progress, int64_t now_us);
/* A bar of done / total (none when total is 0) and what the format says. */
void progress_draw(struct progress *progress, uint64_t done, uint64_t total, int64_t now_us,
                   const char *format, ...) PGPT_PRINTF(5, 6);
void progress_clear(struct progress *progress); /* before other lines, and at the end */

#endif
