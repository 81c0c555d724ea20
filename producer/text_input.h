/* SPDX-License-Identifier: MIT
 *
 * text_input: texts from files and pipes, within bounds. text_lines reads a descriptor without ever
 * waiting longer than asked, so that answers can be written while input is slow.
 */
#ifndef PGPT_PRODUCER_TEXT_INPUT_H
#define PGPT_PRODUCER_TEXT_INPUT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>

#include "kernels/base/error.h"

enum { TEXT_INPUT_MAX = 1 << 20 }; /* bytes of a text or line: no request holds more */

/* All of a stream, at most max bytes, without its last newlines; NULL with the reason. The caller
 * frees it. */
char *text_input_all(FILE *stream, size_t max, struct error *error) PGPT_MUST_CHECK;

struct text_lines {
    int descriptor;
    char *buffer; /* (TEXT_INPUT_MAX + 1) */
    size_t from, to;
    bool ended;
};

int text_lines_init(struct text_lines *lines, int descriptor, struct error *error) PGPT_MUST_CHECK;
void text_lines_free(struct text_lines *lines);

enum text_lines_status { TEXT_LINE, TEXT_NOT_YET, TEXT_ENDED, TEXT_ERROR };
/* The next line without its newline, NUL-terminated, valid until the next call. Waits at most
 * timeout_ms for input (-1 = for ever, but for signals). A line with a NUL ends there. */
enum text_lines_status text_lines_next(struct text_lines *lines, int timeout_ms, char **line,
                                       struct error *error) PGPT_MUST_CHECK;

#endif
