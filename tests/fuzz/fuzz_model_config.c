/* SPDX-License-Identifier: MIT
 *
 * Fuzz target of config.json and generation_config.json. A NUL byte parts the two texts; without
 * one there is no generation_config.json. What is accepted must lie in the ranges that the engine
 * relies on.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/model/model_config.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void require(int condition, const char *what)
{
    if (condition)
        return;
    fprintf(stderr, "%s\n", what);
    abort();
}

static int is_token(const struct model_config *c, int32_t token)
{
    return token >= 0 && token < c->vocabulary;
}

static void config_check(const struct model_config *c)
{
    int32_t total = 0;

    require(c->d_model > 0 && c->d_model % 2 == 0, "d_model is odd");
    require(c->encoder_heads > 0 && c->d_model % c->encoder_heads == 0, "heads do not divide");
    require(c->decoder_heads > 0 && c->d_model % c->decoder_heads == 0, "heads do not divide");
    require(c->encoder_layers > 0 && c->decoder_layers > 0, "there are no layers");
    require(c->encoder_ffn > 0 && c->decoder_ffn > 0, "ffn is empty");
    require(c->vocabulary > 1 && c->positions > 1, "sizes are empty");
    require(is_token(c, c->start_token) && is_token(c, c->eos_token) && is_token(c, c->pad_token),
            "a special token is none");
    require(c->forced_eos_token < 0 || c->forced_eos_token == c->eos_token, "forced EOS differs");
    require(c->forced_bos_token < c->vocabulary && c->unk_token < c->vocabulary, "no token");
    for (int32_t i = 0; i < c->suppress_count; i++)
        require(is_token(c, c->suppress_tokens[i]), "suppress_tokens holds no token");
    for (int32_t i = 0; i < c->bad_word_count; i++) {
        require(c->bad_word_lengths[i] > 0, "a bad word is empty");
        for (int32_t j = 0; j < c->bad_word_lengths[i]; j++)
            require(is_token(c, c->bad_words[total++]), "bad_words_ids holds no token");
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const char *text = (const char *)data;
    const char *end = size ? memchr(text, '\0', size) : NULL;
    size_t first = end ? (size_t)(end - text) : size;
    struct error error = {""};
    struct model_config config;

    if (!model_config_parse(text, first, end ? end + 1 : NULL, end ? size - first - 1 : 0, &config,
                            &error))
        config_check(&config);
    else
        require(error.message[0] != '\0', "refused without a message");
    model_config_free(&config);
    return 0;
}
