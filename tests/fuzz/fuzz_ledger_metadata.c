/* SPDX-License-Identifier: MIT
 *
 * Fuzz target of the commit's metadata: any text gives a ledger or an error. A ledger that was read
 * is sane, is written and read back as the same, and takes reads, finishes and a takeover.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "worker/ledger_metadata.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void require(bool condition)
{
    if (!condition)
        abort();
}

static void same(const struct ledger *a, const struct ledger *b)
{
    require(a->base == b->base && a->highest_finished == b->highest_finished);
    require(!memcmp(a->bits, b->bits, sizeof a->bits));
    require(a->open == b->open && a->takeovers == b->takeovers && a->bound == b->bound);
    require(a->suspect_end == b->suspect_end && a->alone_offset == b->alone_offset);
    require(a->alone_deaths == b->alone_deaths && a->runs == b->runs);
    require(a->alone_end == b->alone_end && a->single_end == b->single_end);
    require(!strcmp(a->engine_id, b->engine_id));
}

static void use(struct ledger *l)
{
    int64_t base = l->base;

    ledger_take_over(l, 100, base + 50);
    require(l->open && l->takeovers >= 0);
    for (int64_t o = base; o < base + 20; o++)
        if (ledger_begin(l, o, 64) == LEDGER_ADMIT)
            ledger_finish(l, o);
    require(l->base >= base + 20);
    require(!ledger_is_finished(l, l->base));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char text[LEDGER_METADATA_MAX];
    struct ledger found, again;
    struct error error;
    int64_t base = 0;
    size_t written;

    if (size < 4 || size > 8192)
        return 0;
    memcpy(&base, data, 4); /* the committed offset, then the text */
    if (ledger_metadata_read((const char *)data + 4, size - 4, base, &found, &error)) {
        require(found.base == base && found.highest_finished == -1 && !found.open);
        require(strlen(error.message) > 0);
        return 0;
    }
    require(found.base == base && found.next == base && !ledger_is_finished(&found, base));
    written = ledger_metadata_write(&found, text);
    require(written < LEDGER_METADATA_MAX);
    require(!ledger_metadata_read(text, written, base, &again, &error));
    same(&found, &again);
    use(&found);
    return 0;
}
