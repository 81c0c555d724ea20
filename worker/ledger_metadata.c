/* SPDX-License-Identifier: MIT */
#include "worker/ledger_metadata.h"

#include <ctype.h>
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define OFFSET_MAX (INT64_MAX / 2)

static const char alphabet[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/* Bits of 8 offsets from base + 8 * index. */
static unsigned char byte_at(const struct ledger *l, int64_t index)
{
    unsigned char byte = 0;

    for (int bit = 0; bit < 8; bit++)
        if (ledger_is_finished(l, l->base + index * 8 + bit))
            byte = (unsigned char)(byte | 1 << bit);
    return byte;
}

/* Six bits a character, no padding: the reader knows the count from the length. */
static size_t bits_write(const struct ledger *l, char *out)
{
    int64_t bytes = l->highest_finished < l->base ? 0 : (l->highest_finished - l->base) / 8 + 1;
    uint32_t held = 0;
    int held_bits = 0;
    size_t size = 0;

    for (int64_t i = 0; i < bytes; i++) {
        held = held << 8 | byte_at(l, i);
        held_bits += 8;
        while (held_bits >= 6) {
            held_bits -= 6;
            out[size++] = alphabet[held >> held_bits & 63];
        }
    }
    if (held_bits)
        out[size++] = alphabet[held << (6 - held_bits) & 63];
    return size;
}

size_t ledger_metadata_write(const struct ledger *l, char out[LEDGER_METADATA_MAX])
{
    bool plain = !l->single_end && l->runs != LEDGER_GROUP;
    int head = snprintf(out, LEDGER_METADATA_MAX, "%d;%d;%d;%d;%lld;%lld;%d;", plain ? 1 : 2,
                        l->open ? 1 + (int)l->runs : 0, l->takeovers, l->bound,
                        (long long)l->suspect_end, (long long)l->alone_offset, l->alone_deaths);
    size_t size;

    if (!plain)
        head += snprintf(out + head, LEDGER_METADATA_MAX - (size_t)head, "%lld;%lld;",
                         (long long)l->alone_end, (long long)l->single_end);
    size = (size_t)head + bits_write(l, out + head);

    return size + (size_t)snprintf(out + size, LEDGER_METADATA_MAX - size, "%s%s",
                                   *l->engine_id ? ";" : "", l->engine_id);
}

/* A decimal number up to ';' in [min, max]. */
static int number_read(const char **at, const char *end, int64_t min, int64_t max, int64_t *out)
{
    char digits[24];
    size_t size = 0;
    char *stop;
    long long value;

    while (*at < end && **at != ';' && size < sizeof digits - 1)
        digits[size++] = *(*at)++;
    if (*at == end || **at != ';' || !size)
        return -1;
    (*at)++;
    digits[size] = '\0';
    errno = 0;
    value = strtoll(digits, &stop, 10);
    if (errno || *stop || value < min || value > max)
        return -1;
    *out = value;
    return 0;
}

static int bits_read(const char *at, const char *end, int64_t base, struct ledger *l)
{
    uint32_t held = 0;
    int held_bits = 0;
    int64_t offset = base;

    for (; at < end; at++) {
        const char *found = *at ? strchr(alphabet, *at) : NULL;

        if (!found)
            return -1;
        held = held << 6 | (uint32_t)(found - alphabet);
        held_bits += 6;
        if (held_bits < 8)
            continue;
        held_bits -= 8;
        for (int bit = 0; bit < 8; bit++, offset++) {
            if (!(held >> held_bits >> bit & 1))
                continue;
            if (offset == base || offset - base >= LEDGER_SPAN)
                return -1; /* base is unfinished by definition */
            ledger_finish(l, offset);
        }
    }
    return 0;
}

/* What follows the bits: nothing, or ';' and up to 16 hexadecimal digits. */
static int engine_id_read(const char *at, const char *end, struct ledger *l)
{
    size_t size = at < end ? (size_t)(end - at - 1) : 0;

    if (at == end)
        return 0;
    if (!size || size >= sizeof l->engine_id)
        return -1;
    for (size_t i = 0; i < size; i++)
        if (!isxdigit((unsigned char)at[1 + i]))
            return -1;
    memcpy(l->engine_id, at + 1, size);
    l->engine_id[size] = '\0';
    return 0;
}

static int tail_read(const char *at, const char *end, int64_t base, struct ledger *l)
{
    const char *bits_end = at < end ? memchr(at, ';', (size_t)(end - at)) : NULL;

    if (!bits_end)
        bits_end = end;
    return bits_read(at, bits_end, base, l) || engine_id_read(bits_end, end, l) ? -1 : 0;
}

/* What was marked is kept while something of it may be unfinished. */
static void alone_restore(struct ledger *l, enum ledger_run runs, int64_t alone, int64_t group_end,
                          int32_t deaths)
{
    int64_t end = runs == LEDGER_GROUP ? group_end : alone + 1;

    if (alone < 0 || end <= l->base || end <= alone)
        return;
    l->runs = runs;
    l->alone_offset = alone;
    l->alone_end = end;
    if (runs == LEDGER_GROUP)
        return;
    l->alone_deaths = deaths;
    if (deaths && l->single_end < end) /* they were counted for a single one */
        l->single_end = end;
}

int ledger_metadata_read(const char *text, size_t size, int64_t base, struct ledger *l,
                         struct error *error)
{
    const char *at = text, *end = text + size;
    int64_t version, open, takeovers, bound, suspect_end, alone, deaths;
    int64_t alone_end = 0, single_end = 0;

    ledger_init(l, base, 0);
    if (size == 0)
        return 0;
    if (number_read(&at, end, 1, 2, &version) || number_read(&at, end, 0, 1 + version, &open) ||
        number_read(&at, end, 0, LEDGER_COUNT_MAX, &takeovers) ||
        number_read(&at, end, 0, INT_MAX, &bound) ||
        number_read(&at, end, 0, OFFSET_MAX, &suspect_end) ||
        number_read(&at, end, -1, OFFSET_MAX, &alone) ||
        number_read(&at, end, 0, LEDGER_COUNT_MAX, &deaths) ||
        (version == 2 && (number_read(&at, end, 0, OFFSET_MAX, &alone_end) ||
                          number_read(&at, end, 0, OFFSET_MAX, &single_end))) ||
        tail_read(at, end, base, l)) {
        ledger_init(l, base, 0);
        return error_set(error,
                         "the commit metadata at offset %lld is not a worker's (%.*s...); "
                         "another program commits for this group",
                         (long long)base, (int)(size < 40 ? size : 40),
                         text); /* text ends without a NUL */
    }
    l->open = open != 0;
    l->takeovers = (int32_t)takeovers;
    l->bound = (int32_t)bound;
    l->suspect_end = suspect_end > base ? suspect_end : 0;
    l->single_end = single_end > base ? single_end : 0;
    alone_restore(l, open > 1 ? (enum ledger_run)(open - 1) : LEDGER_FREE, alone, alone_end,
                  (int32_t)deaths);
    return 0;
}
