/* SPDX-License-Identifier: MIT
 *
 * progress: a line on standard error that is drawn again a few times a second, when that is a
 * terminal; else nothing. Time is an argument. Main thread only.
 */
#ifndef PGPT_KERNELS_TOOL_PROGRESS_H
#define PGPT_KERNELS_TOOL_PROGRESS_H

#include <stdbool.h>
#include <stdint.h>

struct progress {
    const char *unit; /* "lines" */
    bool terminal;
    int64_t begun_us, drawn_us;
};

void progress_init(struct progress *progress, const char *unit, int64_t now);
/* share: 0..1, below 0 = unknown. */
void progress_show(struct progress *progress, double share, int64_t done, int64_t tokens,
                   int64_t running, int64_t now);
void progress_end(struct progress *progress, int64_t done, int64_t tokens, int64_t now);

#endif
