/* SPDX-License-Identifier: MIT
 *
 * Stands in for kernels/text/sentencepiece.cc in a build without SentencePiece: no .spm file opens,
 * so no prompt_codec exists and only token ids are worked on (generate --tokens).
 */
#include <stdlib.h>

#include "kernels/text/sentencepiece.h"

struct spm *spm_open(const char *path, struct error *error)
{
    error_set(error, "%.300s: this program was built without SentencePiece", path);
    return NULL;
}

void spm_close(struct spm *sp)
{
    (void)sp;
}

/* Nothing below can be reached without an open file. */

int32_t spm_count(const struct spm *sp)
{
    (void)sp;
    abort();
}

int spm_encode(const struct spm *sp, const char *text, size_t size, spm_fn each, void *user,
               struct error *error)
{
    (void)sp, (void)text, (void)size, (void)each, (void)user, (void)error;
    abort();
}

const char *spm_piece(const struct spm *sp, int32_t id, size_t *size)
{
    (void)sp, (void)id, (void)size;
    abort();
}

bool spm_is_unknown(const struct spm *sp, int32_t id)
{
    (void)sp, (void)id;
    abort();
}

int spm_read(const struct spm *sp, const char *piece, size_t size, struct spm_reading *reading,
             struct error *error)
{
    (void)sp, (void)piece, (void)size, (void)reading, (void)error;
    abort();
}
