/* SPDX-License-Identifier: MIT */
#include "kernels/tool/lines.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { FIRST_ROOM = 64 << 10, READ_MAX = 256 << 10 };

/*   0 .. given     handed out
 *   given .. end   read, not handed out
 *   end .. room    free; one byte of it is kept for a NUL */
struct lines {
    const char *name;
    int fd;
    char *buffer;
    size_t given, scanned, end, room; /* scanned: no line feed in given..scanned */
    bool ended, skipping;             /* skipping: the rest of a line that was too long */
    int64_t number, consumed, total;  /* total -1 = not a regular file */
};

struct lines *lines_open(const char *path, struct error *error)
{
    struct lines *lines = calloc(1, sizeof *lines);
    bool standard = !path || !strcmp(path, "-");
    struct stat status;

    if (!lines || !(lines->buffer = malloc(FIRST_ROOM))) {
        error_set(error, "out of memory");
        free(lines);
        return NULL;
    }
    lines->room = FIRST_ROOM;
    lines->name = standard ? "standard input" : path;
    lines->fd = standard ? STDIN_FILENO : open(path, O_RDONLY | O_CLOEXEC);
    if (lines->fd < 0 || fstat(lines->fd, &status)) {
        error_set(error, "%s: cannot be opened: %s", lines->name, strerror(errno));
        lines_close(lines);
        return NULL;
    }
    lines->total = S_ISREG(status.st_mode) ? status.st_size : -1;
    return lines;
}

void lines_close(struct lines *lines)
{
    if (!lines)
        return;
    if (lines->fd > STDIN_FILENO)
        close(lines->fd);
    free(lines->buffer);
    free(lines);
}

/* Free room for at least one read, by moving what is left to the front or by doubling. */
static int room_make(struct lines *lines, struct error *error)
{
    size_t held = lines->end - lines->given;
    char *buffer;

    if (lines->given) {
        memmove(lines->buffer, lines->buffer + lines->given, held);
        lines->scanned -= lines->given;
        lines->end = held;
        lines->given = 0;
    }
    if (lines->room - lines->end > lines->room / 2)
        return 0;
    buffer = realloc(lines->buffer, lines->room * 2);
    if (!buffer)
        return error_set(error, "%s: out of memory", lines->name);
    lines->buffer = buffer;
    lines->room *= 2;
    return 0;
}

/* Reads once. 1 = nothing there now. */
static int read_some(struct lines *lines, bool wait, struct error *error)
{
    struct pollfd ready = {.fd = lines->fd, .events = POLLIN};
    size_t free_bytes;
    ssize_t got;

    if (!wait && poll(&ready, 1, 0) == 0)
        return 1;
    if (room_make(lines, error))
        return -1;
    free_bytes = lines->room - lines->end - 1;
    do
        got = read(lines->fd, lines->buffer + lines->end,
                   free_bytes < READ_MAX ? free_bytes : READ_MAX);
    while (got < 0 && errno == EINTR);
    if (got < 0)
        return error_set(error, "%s: cannot be read: %s", lines->name, strerror(errno));
    lines->ended = got == 0;
    lines->end += (size_t)got;
    return 0;
}

/* Hands out given..at; `skip` bytes behind it (the line feed) go with it. */
static void give(struct lines *lines, size_t at, size_t skip, char **line, size_t *size)
{
    *line = lines->buffer + lines->given;
    *size = at - lines->given;
    lines->consumed += (int64_t)(*size + skip);
    lines->buffer[at] = '\0';
    lines->given = lines->scanned = at + skip;
}

enum lines_status lines_next(struct lines *lines, bool wait, char **line, size_t *size,
                             struct error *error)
{
    for (;;) {
        char *feed = memchr(lines->buffer + lines->scanned, '\n', lines->end - lines->scanned);
        size_t at = feed ? (size_t)(feed - lines->buffer) : lines->end;
        bool whole = feed || (lines->ended && at > lines->given);
        bool too_long = at - lines->given > LINES_BYTES_MAX;
        bool skipped = lines->skipping;
        int status;

        if (whole || too_long) {
            lines->skipping = too_long && !whole;
            give(lines, at, feed ? 1 : 0, line, size);
            if (skipped)
                continue;
            lines->number++;
            return too_long ? LINES_TOO_LONG : LINES_LINE;
        }
        if (lines->ended)
            return LINES_END;
        lines->scanned = lines->end;
        status = read_some(lines, wait, error);
        if (status)
            return status < 0 ? LINES_ERROR : LINES_NONE_YET;
    }
}

int64_t lines_number(const struct lines *lines)
{
    return lines->number;
}

double lines_share(const struct lines *lines)
{
    return lines->total > 0 ? (double)lines->consumed / (double)lines->total : -1;
}
