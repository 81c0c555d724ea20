/* SPDX-License-Identifier: MIT
 *
 * sentencepiece: a C face for one SentencePiece model file (.spm). It cuts text into pieces and says
 * how a piece reads in decoded text; it knows no vocabulary ids. Immutable after
 * sentencepiece_open(): any thread may call.
 */
#ifndef PGPT_KERNELS_TEXT_SENTENCEPIECE_H
#define PGPT_KERNELS_TEXT_SENTENCEPIECE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "kernels/base/error.h"

#ifdef __cplusplus
extern "C" {
#endif

struct sentencepiece; /* opaque */

struct sentencepiece *sentencepiece_open(const char *path, struct error *error) PGPT_MUST_CHECK;
void sentencepiece_close(struct sentencepiece *sp); /* NULL is allowed */
int32_t sentencepiece_count(const struct sentencepiece *sp);

/* Called for each piece in order; id is the piece's number in this .spm file, the one of the unknown
 * piece when the file does not know it. The bytes are valid during the call. Non-zero stops. */
typedef int (*sentencepiece_fn)(void *user, int32_t id, const char *piece, size_t size);

/* Normalises and cuts `text` (UTF-8). Returns the callback's non-zero value, else 0; -1 with the
 * reason when SentencePiece fails. */
int sentencepiece_encode(const struct sentencepiece *sp, const char *text, size_t size,
                         sentencepiece_fn each, void *user, struct error *error) PGPT_MUST_CHECK;

/* The piece's text; *size its length. Valid as long as sp. id in 0..count-1. */
const char *sentencepiece_piece(const struct sentencepiece *sp, int32_t id, size_t *size);
bool sentencepiece_is_unknown(const struct sentencepiece *sp, int32_t id);

enum sentencepiece_kind {
    SENTENCEPIECE_TEXT,    /* reads as `surface` */
    SENTENCEPIECE_CONTROL, /* reads as nothing */
    SENTENCEPIECE_BYTE,    /* one byte of a character, `byte` */
};

struct sentencepiece_reading {
    enum sentencepiece_kind kind;
    uint8_t byte;
    char *surface; /* malloc'ed, NUL-terminated, the caller frees; NULL unless TEXT */
    size_t surface_size;
};

/* How a piece reads inside a decoded text, not at its start. A piece that the file does not know
 * reads as itself. */
int sentencepiece_read(const struct sentencepiece *sp, const char *piece, size_t size,
                       struct sentencepiece_reading *reading, struct error *error) PGPT_MUST_CHECK;

#ifdef __cplusplus
}
#endif
#endif
