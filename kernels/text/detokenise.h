/* SPDX-License-Identifier: MIT
 *
 * detokenise: token ids in, bytes of UTF-8 out, a token at a time. What a sequence's calls wrote,
 * without the `trailing` white space at its end, is exactly what Hugging Face's
 * MarianTokenizer.decode(ids, skip_special_tokens=True) gives: pieces by the target .spm, white
 * space stripped at both ends. Characters spelt by byte pieces come out whole; bytes that form none
 * come out as U+FFFD. The table is immutable after detokeniser_create(): any thread may read it.
 */
#ifndef PGPT_KERNELS_TEXT_DETOKENISE_H
#define PGPT_KERNELS_TEXT_DETOKENISE_H

#include "kernels/text/sentencepiece.h"
#include "kernels/text/vocabulary.h"

#ifdef __cplusplus
extern "C" {
#endif

struct detokeniser; /* opaque */

/* sp: the .spm whose readings count. Both are read during the call only. */
struct detokeniser *detokeniser_create(const struct vocabulary *vocabulary, const struct spm *sp,
                                       struct error *error) PGPT_MUST_CHECK;
void detokeniser_destroy(struct detokeniser *detokeniser); /* NULL is allowed */

/* Bytes that one call can write at most. A detokeniser of NULL (an engine on token ids alone) reads
 * every token as nothing. */
size_t detokeniser_room(const struct detokeniser *detokeniser);

/* One sequence's state; {0} at its start. */
struct detokenise_state {
    size_t trailing;    /* bytes of white space at the end of everything written so far */
    bool started;       /* something but white space was written */
    uint8_t held_count; /* bytes of an incomplete character */
    uint8_t held[4];
};

/* Writes what this token adds to out (detokeniser_room() bytes free); returns how many bytes. An id
 * outside the vocabulary adds nothing. */
size_t detokenise_token(const struct detokeniser *detokeniser, struct detokenise_state *state,
                        int32_t token, char *out);
/* The sequence ended: what is still held comes out as U+FFFD. */
size_t detokenise_end(struct detokenise_state *state, char *out);

#ifdef __cplusplus
}
#endif
#endif
