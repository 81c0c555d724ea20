/* SPDX-License-Identifier: MIT */
#include "producer/text_input.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

char *text_input_all(FILE *stream, size_t max, struct error *error)
{
    char *text = malloc(max + 1);
    size_t size;

    if (!text) {
        error_set(error, "out of memory");
        return NULL;
    }
    size = fread(text, 1, max + 1, stream);
    if (ferror(stream) || size > max) {
        if (ferror(stream))
            error_set(error, "reading the text: %s", strerror(errno));
        else
            error_set(error, "the text is longer than %zu bytes", max);
        free(text);
        return NULL;
    }
    while (size && (text[size - 1] == '\n' || text[size - 1] == '\r'))
        size--;
    text[size] = '\0';
    return text;
}

int text_lines_init(struct text_lines *l, int descriptor, struct error *error)
{
    *l = (struct text_lines){.descriptor = descriptor, .buffer = malloc(TEXT_INPUT_MAX + 1)};
    return l->buffer ? 0 : error_set(error, "out of memory");
}

void text_lines_free(struct text_lines *l)
{
    free(l->buffer);
    l->buffer = NULL;
}

/* The line that ends at `end`, which becomes its NUL. */
static enum text_lines_status take(struct text_lines *l, char *end, size_t next, char **line)
{
    *line = l->buffer + l->from;
    *end = '\0';
    if (end > *line && end[-1] == '\r')
        end[-1] = '\0';
    l->from = next;
    return TEXT_LINE;
}

/* Reads what is there; false when nothing came within the time. */
static bool fill(struct text_lines *l, int timeout_ms, struct error *error, bool *failed)
{
    struct pollfd wait = {.fd = l->descriptor, .events = POLLIN};
    ssize_t size;

    *failed = false;
    if (l->from) {
        memmove(l->buffer, l->buffer + l->from, l->to - l->from);
        l->to -= l->from;
        l->from = 0;
    }
    if (poll(&wait, 1, timeout_ms) <= 0)
        return false;
    size = read(l->descriptor, l->buffer + l->to, TEXT_INPUT_MAX - l->to);
    if (size < 0) {
        *failed = errno != EINTR && errno != EAGAIN;
        error_set(error, "reading lines: %s", strerror(errno));
        return false;
    }
    l->ended = size == 0;
    l->to += (size_t)size;
    return true;
}

enum text_lines_status text_lines_next(struct text_lines *l, int timeout_ms, char **line,
                                       struct error *error)
{
    bool failed;

    for (;;) {
        char *begin = l->buffer + l->from;
        char *end = l->to > l->from ? memchr(begin, '\n', l->to - l->from) : NULL;

        if (end)
            return take(l, end, (size_t)(end - l->buffer) + 1, line);
        if (l->ended && l->to == l->from)
            return TEXT_ENDED;
        if (l->ended)
            return take(l, l->buffer + l->to, l->to, line);
        if (l->to - l->from == TEXT_INPUT_MAX) {
            error_set(error, "a line is longer than %d bytes", TEXT_INPUT_MAX - 1);
            return TEXT_ERROR;
        }
        if (!fill(l, timeout_ms, error, &failed))
            return failed ? TEXT_ERROR : TEXT_NOT_YET;
    }
}
