/* SPDX-License-Identifier: MIT */
#include "producer/progress.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { BAR_WIDTH = 24, REDRAW_US = 100000 };

void progress_init(struct progress *p)
{
    const char *terminal = getenv("TERM");

    *p =
        (struct progress){.on = isatty(STDERR_FILENO) && terminal && strcmp(terminal, "dumb") != 0};
}

bool progress_due(const struct progress *p, int64_t now_us)
{
    return p->on && now_us - p->drawn_us >= REDRAW_US;
}

void progress_draw(struct progress *p, uint64_t done, uint64_t total, int64_t now_us,
                   const char *format, ...)
{
    va_list args;

    if (!p->on)
        return;
    p->drawn_us = now_us;
    fputs("\r\033[K", stderr);
    if (total) {
        int filled = done >= total ? BAR_WIDTH : (int)(done * BAR_WIDTH / total);

        fputc('[', stderr);
        for (int i = 0; i < BAR_WIDTH; i++)
            fputc(i < filled ? '#' : '.', stderr);
        fputs("] ", stderr);
    }
    va_start(args, format);
    vfprintf(stderr, format, args);
    va_end(args);
    fflush(stderr);
}

void progress_clear(struct progress *p)
{
    if (!p->on || !p->drawn_us)
        return;
    fputs("\r\033[K", stderr);
    fflush(stderr);
    p->drawn_us = 0;
}
