/* SPDX-License-Identifier: MIT */
#include "kernels/model/model_config.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>

enum { TOKEN_LIST_MAX = 65536 };

struct source {
    const char *file; /* for messages */
    const json_t *object;
};

static int integer_read(const struct source *from, const char *key, int64_t least, int64_t most,
                        int32_t *out, struct error *error)
{
    const json_t *value = json_object_get(from->object, key);

    if (!value)
        return error_set(error, "%s: %s is missing", from->file, key);
    if (!json_is_integer(value))
        return error_set(error, "%s: %s must be an integer in %lld..%lld", from->file, key,
                         (long long)least, (long long)most);
    if (json_integer_value(value) < least || json_integer_value(value) > most)
        return error_set(error, "%s: %s is %lld, supported are %lld..%lld", from->file, key,
                         (long long)json_integer_value(value), (long long)least, (long long)most);
    *out = (int32_t)json_integer_value(value);
    return 0;
}

static int boolean_read(const struct source *from, const char *key, bool absent, bool *out,
                        struct error *error)
{
    const json_t *value = json_object_get(from->object, key);

    *out = absent;
    if (!value || json_is_null(value))
        return 0;
    if (!json_is_boolean(value))
        return error_set(error, "%s: %s must be true or false", from->file, key);
    *out = json_is_true(value);
    return 0;
}

/* A token id, null, or a list of one id; -1 when absent. Ids from `limit` on are refused. */
static int token_read(const struct source *from, const char *key, int32_t limit, int32_t *out,
                      struct error *error)
{
    const json_t *value = json_object_get(from->object, key);

    *out = -1;
    if (!value || json_is_null(value))
        return 0;
    if (json_is_array(value) && json_array_size(value) == 1)
        value = json_array_get(value, 0);
    if (!json_is_integer(value))
        return error_set(error, "%s: %s must be one token id", from->file, key);
    if (json_integer_value(value) < 0 || json_integer_value(value) >= limit)
        return error_set(error, "%s: %s is %lld, but token ids are 0..%d", from->file, key,
                         (long long)json_integer_value(value), (int)limit - 1);
    *out = (int32_t)json_integer_value(value);
    return 0;
}

/* Appends a list of token ids to out (which has room for TOKEN_LIST_MAX). */
static int token_list_read(const struct source *from, const char *key, const json_t *list,
                           int32_t limit, int32_t *out, int32_t *count, struct error *error)
{
    if (!json_is_array(list) || json_array_size(list) > (size_t)(TOKEN_LIST_MAX - *count))
        return error_set(error, "%s: %s must be a list of at most %d token ids", from->file, key,
                         (int)TOKEN_LIST_MAX);
    for (size_t i = 0; i < json_array_size(list); i++) {
        const json_t *value = json_array_get(list, i);

        if (!json_is_integer(value) || json_integer_value(value) < 0 ||
            json_integer_value(value) >= limit)
            return error_set(error, "%s: %s holds something that is no token id (0..%d)",
                             from->file, key, (int)limit - 1);
        out[(*count)++] = (int32_t)json_integer_value(value);
    }
    return 0;
}

static int suppress_read(const struct source *from, struct model_config *config,
                         struct error *error)
{
    const json_t *list = json_object_get(from->object, "suppress_tokens");

    if (!list || json_is_null(list))
        return 0;
    config->suppress_tokens = calloc(json_array_size(list) + 1, sizeof(int32_t));
    if (!config->suppress_tokens)
        return error_set(error, "%s: out of memory for suppress_tokens", from->file);
    return token_list_read(from, "suppress_tokens", list, config->vocabulary,
                           config->suppress_tokens, &config->suppress_count, error);
}

/* As Hugging Face does, a bad word that is just EOS is left out. */
static int bad_words_read(const struct source *from, struct model_config *config,
                          struct error *error)
{
    const json_t *list = json_object_get(from->object, "bad_words_ids");
    int32_t total = 0;

    if (!list || json_is_null(list))
        return 0;
    if (!json_is_array(list) || json_array_size(list) > TOKEN_LIST_MAX)
        return error_set(error, "%s: bad_words_ids must be a list of lists of token ids",
                         from->file);
    config->bad_words = calloc(TOKEN_LIST_MAX, sizeof(int32_t));
    config->bad_word_lengths = calloc(json_array_size(list) + 1, sizeof(int32_t));
    if (!config->bad_words || !config->bad_word_lengths)
        return error_set(error, "%s: out of memory for bad_words_ids", from->file);
    for (size_t i = 0; i < json_array_size(list); i++) {
        int32_t before = total;

        if (token_list_read(from, "bad_words_ids", json_array_get(list, i), config->vocabulary,
                            config->bad_words, &total, error))
            return -1;
        if (total == before)
            return error_set(error, "%s: bad_words_ids holds an empty list", from->file);
        if (total - before == 1 && config->bad_words[before] == config->eos_token)
            total = before;
        else
            config->bad_word_lengths[config->bad_word_count++] = total - before;
    }
    return 0;
}

static int activation_read(const struct source *from, struct model_config *config,
                           struct error *error)
{
    static const struct {
        const char *name;
        enum model_activation activation;
    } names[] = {
        {"relu", MODEL_RELU}, {"swish", MODEL_SWISH}, {"silu", MODEL_SWISH}, {"gelu", MODEL_GELU}};
    const char *name = json_string_value(json_object_get(from->object, "activation_function"));

    for (size_t i = 0; name && i < sizeof names / sizeof names[0]; i++)
        if (!strcmp(names[i].name, name)) {
            config->activation = names[i].activation;
            return 0;
        }
    return error_set(error,
                     "%s: activation_function is %.100s, supported are relu, swish, silu, gelu",
                     from->file, name ? name : "missing");
}

static int sizes_read(const struct source *from, struct model_config *config, struct error *error)
{
    const struct {
        const char *key;
        int32_t *out;
        int64_t least, most;
    } sizes[] = {{"d_model", &config->d_model, 8, 8192},
                 {"vocab_size", &config->vocabulary, 2, 1 << 20},
                 {"max_position_embeddings", &config->positions, 2, 65536},
                 {"encoder_layers", &config->encoder_layers, 1, 64},
                 {"decoder_layers", &config->decoder_layers, 1, 64},
                 {"encoder_attention_heads", &config->encoder_heads, 1, 128},
                 {"decoder_attention_heads", &config->decoder_heads, 1, 128},
                 {"encoder_ffn_dim", &config->encoder_ffn, 1, 65536},
                 {"decoder_ffn_dim", &config->decoder_ffn, 1, 65536}};
    const json_t *target = json_object_get(from->object, "decoder_vocab_size");

    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++)
        if (integer_read(from, sizes[i].key, sizes[i].least, sizes[i].most, sizes[i].out, error))
            return -1;
    if (config->d_model % 2 || config->d_model % config->encoder_heads ||
        config->d_model % config->decoder_heads)
        return error_set(error,
                         "%s: d_model %d must be even and a multiple of the attention heads "
                         "(%d encoder, %d decoder)",
                         from->file, (int)config->d_model, (int)config->encoder_heads,
                         (int)config->decoder_heads);
    if (json_is_integer(target) && json_integer_value(target) != config->vocabulary)
        return error_set(error,
                         "%s: decoder_vocab_size %lld differs from vocab_size %d; two "
                         "vocabularies are not supported",
                         from->file, (long long)json_integer_value(target),
                         (int)config->vocabulary);
    return 0;
}

/* A token from generation_config.json, else from config.json. */
static int required_token_read(const struct source *generation, const struct source *base,
                               const char *key, int32_t limit, int32_t *out, struct error *error)
{
    if (token_read(generation, key, limit, out, error))
        return -1;
    if (*out < 0 && token_read(base, key, limit, out, error))
        return -1;
    if (*out < 0)
        return error_set(error, "%s: %s is missing", base->file, key);
    return 0;
}

static int tokens_read(const struct source *generation, const struct source *base,
                       struct model_config *config, struct error *error)
{
    int32_t limit = config->vocabulary;

    if (required_token_read(generation, base, "decoder_start_token_id", limit, &config->start_token,
                            error) ||
        required_token_read(generation, base, "eos_token_id", limit, &config->eos_token, error) ||
        required_token_read(generation, base, "pad_token_id", limit, &config->pad_token, error) ||
        token_read(base, "unk_token_id", limit, &config->unk_token, error) ||
        token_read(generation, "forced_eos_token_id", limit, &config->forced_eos_token, error) ||
        token_read(generation, "forced_bos_token_id", limit, &config->forced_bos_token, error))
        return -1;
    if (config->forced_eos_token >= 0 && config->forced_eos_token != config->eos_token)
        return error_set(error,
                         "%s: forced_eos_token_id %d differs from eos_token_id %d; that is not "
                         "supported",
                         generation->file, (int)config->forced_eos_token, (int)config->eos_token);
    return suppress_read(generation, config, error) || bad_words_read(generation, config, error)
               ? -1
               : 0;
}

static int config_read(const struct source *base, const struct source *generation,
                       struct model_config *config, struct error *error)
{
    const char *type = json_string_value(json_object_get(base->object, "model_type"));
    bool shared, tied;

    if (!type || strcmp(type, "marian"))
        return error_set(error, "%s: model_type is %.100s; only marian is supported", base->file,
                         type ? type : "missing");
    if (sizes_read(base, config, error) || activation_read(base, config, error) ||
        boolean_read(base, "scale_embedding", false, &config->scale_embedding, error) ||
        boolean_read(base, "share_encoder_decoder_embeddings", true, &shared, error) ||
        boolean_read(base, "tie_word_embeddings", true, &tied, error) ||
        tokens_read(generation, base, config, error))
        return -1;
    config->shared_embeddings = shared;
    config->tied_embeddings = tied;
    return 0;
}

static json_t *object_load(const char *file, const char *text, size_t size, struct error *error)
{
    json_error_t why;
    json_t *object;

    if (size > MODEL_CONFIG_BYTES_MAX) {
        error_set(error, "%s: %zu bytes, the limit is %d", file, size, (int)MODEL_CONFIG_BYTES_MAX);
        return NULL;
    }
    object = json_loadb(text, size, JSON_REJECT_DUPLICATES, &why);
    if (!object) {
        error_set(error, "%s: line %d: %.200s", file, why.line, why.text);
        return NULL;
    }
    if (json_is_object(object))
        return object;
    error_set(error, "%s: must be a JSON object", file);
    json_decref(object);
    return NULL;
}

int model_config_parse(const char *config_text, size_t config_size, const char *generation_text,
                       size_t generation_size, struct model_config *config, struct error *error)
{
    json_t *base = object_load("config.json", config_text, config_size, error);
    json_t *generation = NULL;
    int result = -1;

    memset(config, 0, sizeof *config);
    if (!base)
        return -1;
    if (generation_text)
        generation = object_load("generation_config.json", generation_text, generation_size, error);
    if (generation || !generation_text) {
        struct source from_base = {"config.json", base};
        struct source from_generation = {"generation_config.json", generation};

        result = config_read(&from_base, generation ? &from_generation : &from_base, config, error);
    }
    json_decref(base);
    json_decref(generation);
    return result;
}

void model_config_free(struct model_config *config)
{
    free(config->suppress_tokens);
    free(config->bad_words);
    free(config->bad_word_lengths);
    memset(config, 0, sizeof *config);
}
