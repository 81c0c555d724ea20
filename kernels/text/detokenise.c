/* SPDX-License-Identifier: MIT */
#include "kernels/text/detokenise.h"

#include <stdlib.h>
#include <string.h>

#include "kernels/text/utf8.h"

enum reading_kind {
    READING_SKIPPED, /* a special token: decoding never sees it */
    READING_NOTHING, /* a control piece: reads as nothing, but parts the bytes around it */
    READING_BYTE,
    READING_TEXT
};

struct reading {
    uint32_t offset; /* of its text in `texts` */
    uint16_t size;
    uint16_t lead;  /* bytes of white space at its start; == size when nothing else is in it */
    uint16_t trail; /* at its end */
    uint8_t kind;
    uint8_t byte;
};

struct detokeniser {
    struct reading *readings; /* (vocabulary) */
    char *texts;
    size_t texts_size, texts_room;
    int32_t vocabulary;
    size_t longest;
};

static const char replacement[] = "\xEF\xBF\xBD"; /* U+FFFD */
static const char word_mark[] = "\xE2\x96\x81";   /* U+2581, reads as a space */
enum { MARK_SIZE = 3, HELD_MAX = 3 };

/* White space at both ends of a text. */
static void edges_measure(struct reading *reading, const char *text)
{
    size_t at = 0, last = 0; /* last: behind the last character that is no space */
    bool leading = true;

    while (at < reading->size) {
        uint32_t code = 0;
        int length = utf8_decode(text + at, reading->size - at, &code);

        if (!length) /* pieces are valid text; anything else counts as a letter */
            length = 1;
        at += (size_t)length;
        if (code && utf8_is_space(code)) {
            if (leading)
                reading->lead = (uint16_t)at;
        } else {
            leading = false;
            last = at;
        }
    }
    reading->trail = (uint16_t)(reading->size - last);
}

/* Stores a reading's text with its word marks as spaces. */
static int text_store(struct detokeniser *detokeniser, struct reading *reading, const char *text,
                      size_t size)
{
    size_t need = detokeniser->texts_size + size;
    char *to;

    if (size > UINT16_MAX || need > UINT32_MAX)
        return -1;
    if (need > detokeniser->texts_room) {
        size_t room = need * 2 + 4096;
        char *texts = realloc(detokeniser->texts, room);

        if (!texts)
            return -1;
        detokeniser->texts = texts;
        detokeniser->texts_room = room;
    }
    reading->offset = (uint32_t)detokeniser->texts_size;
    to = detokeniser->texts + detokeniser->texts_size;
    for (size_t at = 0; at < size;) {
        if (size - at >= MARK_SIZE && memcmp(text + at, word_mark, MARK_SIZE) == 0) {
            *to++ = ' ';
            at += MARK_SIZE;
        } else {
            *to++ = text[at++];
        }
    }
    reading->size = (uint16_t)(to - (detokeniser->texts + reading->offset));
    detokeniser->texts_size += reading->size;
    if (reading->size > detokeniser->longest)
        detokeniser->longest = reading->size;
    edges_measure(reading, detokeniser->texts + reading->offset);
    return 0;
}

static int reading_fill(struct detokeniser *detokeniser, const struct spm *sp, struct text piece,
                        struct reading *reading, struct error *error)
{
    struct spm_reading from;
    int rc = 0;

    if (spm_read(sp, piece.data, piece.size, &from, error))
        return -1;
    reading->byte = from.byte;
    reading->kind = from.kind == SPM_CONTROL ? READING_NOTHING
                    : from.kind == SPM_BYTE  ? READING_BYTE
                                             : READING_TEXT;
    if (from.surface && text_store(detokeniser, reading, from.surface, from.surface_size))
        rc =
            error_set(error, "piece \"%.64s\": its text is too long, or memory is out", piece.data);
    free(from.surface);
    return rc;
}

static bool piece_is_special(struct text piece)
{
    static const char *const special[] = {"</s>", "<unk>", "<pad>"};

    for (size_t i = 0; i < sizeof special / sizeof *special; i++)
        if (strcmp(piece.data, special[i]) == 0)
            return true;
    return false;
}

struct detokeniser *detokeniser_create(const struct vocabulary *vocabulary, const struct spm *sp,
                                       struct error *error)
{
    struct detokeniser *detokeniser = calloc(1, sizeof *detokeniser);

    if (!detokeniser)
        goto no_memory;
    detokeniser->vocabulary = vocabulary_size(vocabulary);
    detokeniser->readings = calloc((size_t)detokeniser->vocabulary, sizeof *detokeniser->readings);
    if (!detokeniser->readings)
        goto no_memory;
    for (int32_t id = 0; id < detokeniser->vocabulary; id++) {
        struct text piece = vocabulary_piece(vocabulary, id);

        if (piece.data && !piece_is_special(piece) &&
            reading_fill(detokeniser, sp, piece, &detokeniser->readings[id], error)) {
            detokeniser_destroy(detokeniser);
            return NULL;
        }
    }
    return detokeniser;

no_memory:
    detokeniser_destroy(detokeniser);
    error_set(error, "out of memory");
    return NULL;
}

void detokeniser_destroy(struct detokeniser *detokeniser)
{
    if (!detokeniser)
        return;
    free(detokeniser->readings);
    free(detokeniser->texts);
    free(detokeniser);
}

size_t detokeniser_room(const struct detokeniser *detokeniser)
{
    /* Held bytes turned into U+FFFD, then a piece or a character. */
    return (HELD_MAX + 1) * (sizeof replacement - 1) + (detokeniser ? detokeniser->longest : 0);
}

static size_t write_text(struct detokenise_state *state, const char *text, size_t size, size_t lead,
                         size_t trail, char *out)
{
    if (!state->started) {
        text += lead;
        size -= lead;
        if (!size)
            return 0;
        state->started = true;
        lead = 0;
    }
    state->trailing = lead == size ? state->trailing + size : trail;
    memcpy(out, text, size);
    return size;
}

static size_t write_character(struct detokenise_state *state, const char *bytes, int length,
                              uint32_t code, char *out)
{
    size_t size = (size_t)length, space;

    if (code == 0x2581) {
        bytes = " ";
        size = 1;
        code = ' ';
    }
    space = utf8_is_space(code) ? size : 0;
    return write_text(state, bytes, size, space, space, out);
}

static size_t write_replacement(struct detokenise_state *state, char *out)
{
    return write_text(state, replacement, sizeof replacement - 1, 0, 0, out);
}

/* Could the held bytes still become a character? Decided as late as the full length is there; the
 * text that comes out is the same. */
static bool held_may_grow(const struct detokenise_state *state)
{
    if (state->held_count >= utf8_length(state->held[0]))
        return false;
    for (int i = 1; i < state->held_count; i++)
        if ((state->held[i] & 0xC0) != 0x80)
            return false;
    return true;
}

/* Takes characters, or bytes that are none, off the front of the held bytes. */
static size_t held_write(struct detokenise_state *state, bool all, char *out)
{
    char *at = out;

    while (state->held_count && (all || !held_may_grow(state))) {
        uint32_t code = 0;
        int length = utf8_decode((const char *)state->held, state->held_count, &code);

        if (length) {
            at += write_character(state, (const char *)state->held, length, code, at);
        } else {
            at += write_replacement(state, at);
            length = 1;
        }
        state->held_count = (uint8_t)(state->held_count - length);
        memmove(state->held, state->held + length, state->held_count);
    }
    return (size_t)(at - out);
}

size_t detokenise_token(const struct detokeniser *detokeniser, struct detokenise_state *state,
                        int32_t token, char *out)
{
    const struct reading *reading;
    size_t size;

    if (!detokeniser || token < 0 || token >= detokeniser->vocabulary)
        return 0;
    reading = &detokeniser->readings[token];
    switch ((enum reading_kind)reading->kind) {
    case READING_BYTE:
        state->held[state->held_count++] = reading->byte;
        return held_write(state, false, out);
    case READING_NOTHING:
        return held_write(state, true, out);
    case READING_TEXT:
        size = held_write(state, true, out);
        return size + write_text(state, detokeniser->texts + reading->offset, reading->size,
                                 reading->lead, reading->trail, out + size);
    case READING_SKIPPED:
        break;
    }
    return 0;
}

size_t detokenise_end(struct detokenise_state *state, char *out)
{
    return held_write(state, true, out);
}
