/* SPDX-License-Identifier: MIT
 *
 * lines: reads a file descriptor line by line without waiting when the caller has other work, in
 * bounded memory: a line above LINES_BYTES_MAX is reported once and skipped. Main thread only.
 */
#ifndef PGPT_KERNELS_TOOL_LINES_H
#define PGPT_KERNELS_TOOL_LINES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "kernels/base/error.h"

enum { LINES_BYTES_MAX = 4 << 20 };

struct lines; /* opaque */

enum lines_status {
    LINES_LINE,
    LINES_NONE_YET, /* only when not told to wait */
    LINES_TOO_LONG, /* *size holds its first bytes' count, *line those bytes */
    LINES_END,
    LINES_ERROR,
};

/* path NULL or "-": standard input. */
struct lines *lines_open(const char *path, struct error *error) PGPT_MUST_CHECK;
void lines_close(struct lines *lines); /* NULL is allowed */

/* *line: without its line feed, NUL-terminated, valid until the next call. */
enum lines_status lines_next(struct lines *lines, bool wait, char **line, size_t *size,
                             struct error *error) PGPT_MUST_CHECK;

int64_t lines_number(const struct lines *lines); /* of the last line given, from 1 */
/* The share of a regular file that has been given out, 0..1; -1 for pipes. */
double lines_share(const struct lines *lines);

#endif
