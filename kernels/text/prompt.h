/* SPDX-License-Identifier: MIT
 *
 * prompt: everything that turns a model directory's texts into token ids and back. A request's
 * encoder input is: language token, author token, the prompt as Hugging Face's MarianTokenizer cuts
 * it, EOS. So "</s>", "<unk>" and "<pad>" inside a prompt are those tokens, and a prompt (or what
 * follows such a token) may open with a language code of its own, ">>ru<< text". Immutable after
 * prompt_codec_open(): any thread may call.
 */
#ifndef PGPT_KERNELS_TEXT_PROMPT_H
#define PGPT_KERNELS_TEXT_PROMPT_H

#include "kernels/generate/generation.h"
#include "kernels/text/detokenise.h"

#ifdef __cplusplus
extern "C" {
#endif

struct prompt_codec; /* opaque */

/* Reads source.spm, target.spm and vocab.json; vocabulary: the model's (engine_limits). */
struct prompt_codec *prompt_codec_open(const char *model_dir, int32_t vocabulary,
                                       struct error *error) PGPT_MUST_CHECK;
void prompt_codec_close(struct prompt_codec *codec); /* NULL is allowed */

/* Below, a codec of NULL is an engine on token ids alone: it knows no token by name, encodes no
 * prompt and has no detokeniser. */

const struct detokeniser *prompt_codec_detokeniser(const struct prompt_codec *codec);

/* Control tokens by their names without brackets; -1 = the model has no such token. */
int32_t prompt_codec_language(const struct prompt_codec *codec, struct text name); /* "en" */
int32_t prompt_codec_author(const struct prompt_codec *codec, struct text name);   /* "author_3" */

/* Encodes prompt, target_language and author into *tokens (arena). Returns the count, which is not
 * limited here; -1 with the reason when a control token is unknown or memory is out. */
int32_t prompt_encode(const struct prompt_codec *codec, const struct generation_request *request,
                      struct arena *arena, const int32_t **tokens,
                      struct error *error) PGPT_MUST_CHECK;

#ifdef __cplusplus
}
#endif
#endif
