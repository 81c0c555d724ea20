/* SPDX-License-Identifier: MIT */
#include "kernels/tool/progress.h"

#include <stdio.h>
#include <unistd.h>

enum { DRAW_EVERY_US = 200000, BAR = 24 };

void progress_init(struct progress *progress, const char *unit, int64_t now)
{
    *progress = (struct progress){unit, isatty(STDERR_FILENO) == 1, now, now};
}

static double rate(const struct progress *progress, int64_t count, int64_t now)
{
    return (double)count * 1e6 / (double)(now > progress->begun_us ? now - progress->begun_us : 1);
}

void progress_show(struct progress *progress, double share, int64_t done, int64_t tokens,
                   int64_t running, int64_t now)
{
    char bar[BAR + 1];

    if (!progress->terminal || now - progress->drawn_us < DRAW_EVERY_US)
        return;
    progress->drawn_us = now;
    fputs("\r\033[K", stderr);
    if (share >= 0) {
        for (int i = 0; i < BAR; i++)
            bar[i] = i < share * BAR ? '#' : '.';
        bar[BAR] = '\0';
        fprintf(stderr, "%s %3.0f %%  ", bar, share * 100);
    }
    fprintf(stderr, "%lld %s, %lld running, %.0f tokens/s", (long long)done, progress->unit,
            (long long)running, rate(progress, tokens, now));
    fflush(stderr);
}

void progress_end(struct progress *progress, int64_t done, int64_t tokens, int64_t now)
{
    if (!progress->terminal)
        return;
    fprintf(stderr, "\r\033[K%lld %s, %lld tokens in %.1f s: %.0f tokens/s\n", (long long)done,
            progress->unit, (long long)tokens, (double)(now - progress->begun_us) / 1e6,
            rate(progress, tokens, now));
}
