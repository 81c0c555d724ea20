/* SPDX-License-Identifier: MIT
 *
 * sentencepiece (spm): a C face for one SentencePiece model file (.spm). It cuts text into pieces
 * and says how a piece reads in decoded text; it knows no vocabulary ids. Immutable after
 * spm_open(): any thread may call.
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

struct spm; /* opaque */

struct spm *spm_open(const char *path, struct error *error) PGPT_MUST_CHECK;
void spm_close(struct spm *sp); /* NULL is allowed */
int32_t spm_count(const struct spm *sp);

/* Called for each piece in order; id is the piece's number in this .spm file, the one of the
 * unknown piece when the file does not know it. The bytes are valid during the call. Non-zero
 * stops. */
typedef int (*spm_fn)(void *user, int32_t id, const char *piece, size_t size);

/* Normalises and cuts `text` (UTF-8). Returns the callback's non-zero value, else 0; -1 with the
 * reason when SentencePiece fails. */
int spm_encode(const struct spm *sp, const char *text, size_t size, spm_fn each, void *user,
               struct error *error) PGPT_MUST_CHECK;

/* The piece's text; *size its length. Valid as long as sp. id in 0..count-1. */
const char *spm_piece(const struct spm *sp, int32_t id, size_t *size);
bool spm_is_unknown(const struct spm *sp, int32_t id);

enum spm_kind {
    SPM_TEXT,    /* reads as `surface` */
    SPM_CONTROL, /* reads as nothing */
    SPM_BYTE,    /* one byte of a character, `byte` */
};

struct spm_reading {
    enum spm_kind kind;
    uint8_t byte;
    char *surface; /* malloc'ed, NUL-terminated, the caller frees; NULL unless TEXT */
    size_t surface_size;
};

/* How a piece reads inside a decoded text, not at its start. A piece that the file does not know
 * reads as itself. */
int spm_read(const struct spm *sp, const char *piece, size_t size, struct spm_reading *reading,
             struct error *error) PGPT_MUST_CHECK;

#ifdef __cplusplus
}
#endif
#endif
