/* SPDX-License-Identifier: MIT
 *
 * vocabulary: a model directory's vocab.json: which id a piece has and which piece an id is. Marian
 * models share it between source and target; the ids of the .spm files mean nothing to the model.
 * Immutable after vocabulary_open(): any thread may read it.
 */
#ifndef PGPT_KERNELS_TEXT_VOCABULARY_H
#define PGPT_KERNELS_TEXT_VOCABULARY_H

#include <stdint.h>

#include "kernels/base/arena.h"

#ifdef __cplusplus
extern "C" {
#endif

struct vocabulary; /* opaque */

/* size: the model's vocabulary; every id of the file must lie below it. */
struct vocabulary *vocabulary_open(const char *path, int32_t size,
                                   struct error *error) PGPT_MUST_CHECK;
void vocabulary_close(struct vocabulary *vocabulary); /* NULL is allowed */

int32_t vocabulary_find(const struct vocabulary *vocabulary, const char *piece,
                        size_t size); /* -1 = not there */
/* data == NULL: no piece has this id (padded embeddings). id in 0..size-1. */
struct text vocabulary_piece(const struct vocabulary *vocabulary, int32_t id);
int32_t vocabulary_size(const struct vocabulary *vocabulary);

#ifdef __cplusplus
}
#endif
#endif
