/* SPDX-License-Identifier: MIT */
#include "worker/ledger.h"

#include <string.h>

static uint64_t *word_of(struct ledger *l, int64_t offset)
{
    return &l->bits[offset % LEDGER_SPAN / 64];
}

static uint64_t mask_of(int64_t offset)
{
    return (uint64_t)1 << offset % 64;
}

void ledger_init(struct ledger *l, int64_t base, int32_t bound)
{
    memset(l, 0, sizeof *l);
    l->base = l->next = base;
    l->highest_finished = -1;
    l->bound = bound;
    l->alone_offset = -1;
}

bool ledger_is_finished(const struct ledger *l, int64_t offset)
{
    if (offset < l->base)
        return true;
    if (offset >= l->base + LEDGER_SPAN)
        return false;
    return (l->bits[offset % LEDGER_SPAN / 64] & mask_of(offset)) != 0;
}

static bool unfinished_within(const struct ledger *l, int64_t first, int64_t end)
{
    for (int64_t o = first > l->base ? first : l->base; o < end; o++)
        if (!ledger_is_finished(l, o))
            return true;
    return false;
}

static void alone_clear(struct ledger *l)
{
    l->runs = LEDGER_FREE;
    l->alone_offset = -1;
    l->alone_end = 0;
    l->alone_deaths = 0;
}

/* What was marked runs no more; the deaths of a single one stay with it. */
static void alone_stop(struct ledger *l)
{
    if (l->runs == LEDGER_GROUP)
        alone_clear(l);
    l->runs = LEDGER_FREE;
}

/* No unfinished offset below suspect_end is left: the dead owners are forgotten. */
static void suspects_review(struct ledger *l)
{
    if (l->alone_offset >= 0 && !unfinished_within(l, l->alone_offset, l->alone_end))
        alone_clear(l);
    if (l->single_end <= l->base)
        l->single_end = 0;
    if (unfinished_within(l, l->base, l->suspect_end))
        return;
    l->suspect_end = 0;
    l->takeovers = 0;
}

void ledger_finish(struct ledger *l, int64_t offset)
{
    if (ledger_is_finished(l, offset) || offset >= l->base + LEDGER_SPAN)
        return;
    *word_of(l, offset) |= mask_of(offset);
    if (offset > l->highest_finished)
        l->highest_finished = offset;
    while (*word_of(l, l->base) & mask_of(l->base)) {
        *word_of(l, l->base) &= ~mask_of(l->base);
        l->base++;
    }
    if (l->next < l->base)
        l->next = l->base;
    if (l->highest_finished < l->base)
        l->highest_finished = -1;
    suspects_review(l);
}

enum ledger_answer ledger_begin(struct ledger *l, int64_t offset, int64_t ahead)
{
    if (ledger_is_finished(l, offset))
        return LEDGER_DONE;
    if (offset - l->base >= ahead) {
        /* Holes alone may close the gap: everything up to `next` is known. */
        while (l->next < offset && l->next - l->base < ahead)
            ledger_finish(l, l->next++);
        if (offset - l->base >= ahead)
            return LEDGER_TOO_FAR;
    }
    while (l->next < offset) {
        int64_t hole = l->next++;

        ledger_finish(l, hole);
    }
    if (l->next == offset)
        l->next = offset + 1;
    return LEDGER_ADMIT;
}

int64_t ledger_unfinished(const struct ledger *l, int64_t end)
{
    int64_t finished = 0;

    for (int i = 0; i < LEDGER_SPAN / 64; i++)
        finished += __builtin_popcountll(l->bits[i]);
    return end - l->base > finished ? end - l->base - finished : 0;
}

int64_t ledger_ahead(const struct ledger *l)
{
    return l->highest_finished < 0 ? 0 : l->highest_finished - l->base;
}

static void suspects_add(struct ledger *l, int64_t log_end)
{
    int64_t last = l->highest_finished < l->base ? l->base - 1 : l->highest_finished;
    int64_t end = last + 1 + l->bound;

    if (end > log_end) /* what comes later was never in its hands */
        end = log_end;
    if (l->suspect_end < end)
        l->suspect_end = end;
}

bool ledger_take_over(struct ledger *l, int32_t bound, int64_t log_end)
{
    bool unclean = l->open;

    if (unclean) {
        l->takeovers += l->takeovers < LEDGER_COUNT_MAX;
        if (l->runs == LEDGER_FREE)
            suspects_add(l, log_end);
        else if (l->single_end < l->alone_end)
            l->single_end = l->alone_end;
        if (l->runs == LEDGER_SINGLE && l->alone_deaths < LEDGER_COUNT_MAX)
            l->alone_deaths++;
    }
    l->open = true;
    alone_stop(l);
    l->bound = bound;
    suspects_review(l);
    return unclean;
}

void ledger_give_up(struct ledger *l)
{
    l->open = false;
    alone_stop(l);
}

void ledger_mark_alone(struct ledger *l, int64_t first, int64_t end, enum ledger_run runs)
{
    if (l->alone_offset != first || runs == LEDGER_GROUP)
        l->alone_deaths = 0;
    l->alone_offset = first;
    l->alone_end = end;
    l->runs = runs;
}

int32_t ledger_attempt(const struct ledger *l, int64_t offset)
{
    return offset < l->suspect_end ? l->takeovers + 1 : 1;
}

enum ledger_run ledger_runs(const struct ledger *l, int64_t offset)
{
    if (offset >= l->suspect_end || l->takeovers < 2)
        return LEDGER_FREE;
    return offset < l->single_end ? LEDGER_SINGLE : LEDGER_GROUP;
}

bool ledger_expects_suspects(const struct ledger *l)
{
    return ledger_runs(l, l->next) != LEDGER_FREE;
}
