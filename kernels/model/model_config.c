/* SPDX-License-Identifier: MIT */
#include "kernels/model/model_config.h"

#include <errno.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    CONFIG_FILE_MAX = 4 << 20, /* bytes; bad_words_ids of 60k entries would still fit */
    TOKEN_LIST_MAX = 65536
};

/* generation_config.json wins over config.json, as in Hugging Face. */
struct sources {
    const json_t *config;
    const json_t *generation; /* NULL = none */
};

static const json_t *lookup(const struct sources *from, const char *key)
{
    const json_t *value = json_object_get(from->generation, key);

    return value && !json_is_null(value) ? value : json_object_get(from->config, key);
}

static int read_int(const json_t *object, const char *key, int64_t min, int64_t max, int32_t *out,
                    struct error *error)
{
    const json_t *value = json_object_get(object, key);

    if (!json_is_integer(value))
        return error_set(error, "config.json: %s is missing or not an integer", key);
    if (json_integer_value(value) < min || json_integer_value(value) > max)
        return error_set(error, "config.json: %s is %lld, outside %lld..%lld", key,
                         (long long)json_integer_value(value), (long long)min, (long long)max);
    *out = (int32_t)json_integer_value(value);
    return 0;
}

static int read_bool(const json_t *object, const char *key, bool fallback, bool *out,
                     struct error *error)
{
    const json_t *value = json_object_get(object, key);

    if (!value || json_is_null(value)) {
        *out = fallback;
        return 0;
    }
    if (!json_is_boolean(value))
        return error_set(error, "config.json: %s must be true or false", key);
    *out = json_is_true(value);
    return 0;
}

/* A token id, or the first of a list of one; missing or null gives fallback. */
static int read_token(const struct sources *from, const char *key, int32_t vocabulary,
                      int32_t fallback, int32_t *out, struct error *error)
{
    const json_t *value = lookup(from, key);

    *out = fallback;
    if (!value || json_is_null(value))
        return 0;
    if (json_is_array(value) && json_array_size(value) == 1)
        value = json_array_get(value, 0);
    if (!json_is_integer(value) || json_integer_value(value) < 0 ||
        json_integer_value(value) >= vocabulary)
        return error_set(error, "%s must be one token id in 0..%d", key, vocabulary - 1);
    *out = (int32_t)json_integer_value(value);
    return 0;
}

static int token_list(const json_t *list, const char *key, int32_t vocabulary, int32_t *out,
                      struct error *error)
{
    size_t i;
    const json_t *item;

    json_array_foreach(list, i, item)
    {
        if (!json_is_integer(item) || json_integer_value(item) < 0 ||
            json_integer_value(item) >= vocabulary)
            return error_set(error, "%s: entry %zu is no token id in 0..%d", key, i,
                             vocabulary - 1);
        out[i] = (int32_t)json_integer_value(item);
    }
    return 0;
}

static int read_suppressed(const struct sources *from, struct model_config *config,
                           struct error *error)
{
    const json_t *list = lookup(from, "suppress_tokens");
    size_t count = json_array_size(list);

    if (!list || json_is_null(list) || (json_is_array(list) && count == 0))
        return 0;
    if (!json_is_array(list) || count > TOKEN_LIST_MAX)
        return error_set(error, "suppress_tokens must be a list of at most %d token ids",
                         TOKEN_LIST_MAX);
    config->suppress_tokens = malloc(count * sizeof *config->suppress_tokens);
    if (!config->suppress_tokens)
        return error_set(error, "suppress_tokens: out of memory");
    config->suppress_count = (int32_t)count;
    return token_list(list, "suppress_tokens", config->vocabulary, config->suppress_tokens, error);
}

static int read_bad_words(const struct sources *from, struct model_config *config,
                          struct error *error)
{
    const json_t *lists = lookup(from, "bad_words_ids"), *list;
    size_t i, total = 0;

    if (!lists || json_is_null(lists) || (json_is_array(lists) && !json_array_size(lists)))
        return 0;
    if (!json_is_array(lists) || json_array_size(lists) > TOKEN_LIST_MAX)
        return error_set(error, "bad_words_ids must be a list of at most %d lists", TOKEN_LIST_MAX);
    json_array_foreach(lists, i, list)
    {
        if (!json_is_array(list) || !json_array_size(list))
            return error_set(error, "bad_words_ids: entry %zu is no list of token ids", i);
        total += json_array_size(list);
    }
    if (total > TOKEN_LIST_MAX)
        return error_set(error, "bad_words_ids holds %zu ids, more than %d", total, TOKEN_LIST_MAX);
    config->bad_words = malloc(total * sizeof *config->bad_words);
    config->bad_word_lengths = malloc(json_array_size(lists) * sizeof *config->bad_word_lengths);
    if (!config->bad_words || !config->bad_word_lengths)
        return error_set(error, "bad_words_ids: out of memory");
    total = 0;
    json_array_foreach(lists, i, list)
    {
        if (token_list(list, "bad_words_ids", config->vocabulary, config->bad_words + total, error))
            return -1;
        config->bad_word_lengths[i] = (int32_t)json_array_size(list);
        total += json_array_size(list);
        config->bad_word_count++;
    }
    return 0;
}

static int read_activation(const json_t *object, struct model_config *config, struct error *error)
{
    static const struct {
        const char *name;
        enum model_activation activation;
    } known[] = {
        {"relu", MODEL_RELU}, {"swish", MODEL_SWISH}, {"silu", MODEL_SWISH}, {"gelu", MODEL_GELU}};
    const char *name = json_string_value(json_object_get(object, "activation_function"));

    for (size_t i = 0; name && i < sizeof known / sizeof *known; i++)
        if (!strcmp(name, known[i].name)) {
            config->activation = known[i].activation;
            return 0;
        }
    return error_set(error, "config.json: activation_function is %s; supported: relu, swish, silu, "
                            "gelu", name ? name : "missing");
}

static int read_sizes(const json_t *object, struct model_config *c, struct error *error)
{
    if (read_int(object, "d_model", 8, 8192, &c->d_model, error) ||
        read_int(object, "vocab_size", 4, 1 << 20, &c->vocabulary, error) ||
        read_int(object, "max_position_embeddings", 2, 8192, &c->positions, error) ||
        read_int(object, "encoder_layers", 1, 64, &c->encoder_layers, error) ||
        read_int(object, "decoder_layers", 1, 64, &c->decoder_layers, error) ||
        read_int(object, "encoder_attention_heads", 1, 256, &c->encoder_heads, error) ||
        read_int(object, "decoder_attention_heads", 1, 256, &c->decoder_heads, error) ||
        read_int(object, "encoder_ffn_dim", 8, 65536, &c->encoder_ffn, error) ||
        read_int(object, "decoder_ffn_dim", 8, 65536, &c->decoder_ffn, error))
        return -1;
    if (c->d_model % 8 || c->encoder_ffn % 8 || c->decoder_ffn % 8)
        return error_set(error, "config.json: d_model %d, encoder_ffn_dim %d and decoder_ffn_dim %d "
                                "must be multiples of 8", c->d_model, c->encoder_ffn,
                         c->decoder_ffn);
    if (c->d_model % c->encoder_heads || c->d_model % c->decoder_heads)
        return error_set(error, "config.json: d_model %d must be a multiple of the attention heads "
                                "(%d and %d)", c->d_model, c->encoder_heads, c->decoder_heads);
    return 0;
}

static int read_all(const struct sources *from, struct model_config *c, struct error *error)
{
    const json_t *object = from->config;
    const char *type = json_string_value(json_object_get(object, "model_type"));
    bool shared, tied;

    if (!type || strcmp(type, "marian"))
        return error_set(error, "config.json: model_type is %s; only \"marian\" is supported",
                         type ? type : "missing");
    if (read_sizes(object, c, error) || read_activation(object, c, error) ||
        read_bool(object, "scale_embedding", false, &c->scale_embedding, error) ||
        read_bool(object, "share_encoder_decoder_embeddings", true, &shared, error) ||
        read_bool(object, "tie_word_embeddings", true, &tied, error))
        return -1;
    c->tied_embeddings = shared && tied;
    if (read_token(from, "eos_token_id", c->vocabulary, 0, &c->eos_token, error) ||
        read_token(from, "pad_token_id", c->vocabulary, c->vocabulary - 1, &c->pad_token, error) ||
        read_token(from, "decoder_start_token_id", c->vocabulary, c->pad_token, &c->start_token,
                   error) ||
        read_token(from, "unk_token_id", c->vocabulary, 1, &c->unk_token, error) ||
        read_token(from, "forced_eos_token_id", c->vocabulary, -1, &c->forced_eos_token, error) ||
        read_token(from, "forced_bos_token_id", c->vocabulary, -1, &c->forced_bos_token, error))
        return -1;
    return read_suppressed(from, c, error) || read_bad_words(from, c, error) ? -1 : 0;
}

int model_config_parse(const char *config_json, size_t config_size, const char *generation_json,
                       size_t generation_size, struct model_config *config, struct error *error)
{
    struct sources from = {NULL, NULL};
    json_t *object = NULL, *generation = NULL;
    json_error_t problem;
    int status = -1;

    memset(config, 0, sizeof *config);
    object = json_loadb(config_json, config_size, 0, &problem);
    if (!json_is_object(object)) {
        error_set(error, "config.json: line %d: %s", object ? 1 : problem.line,
                  object ? "not a JSON object" : problem.text);
        goto done;
    }
    if (generation_json) {
        generation = json_loadb(generation_json, generation_size, 0, &problem);
        if (!json_is_object(generation)) {
            error_set(error, "generation_config.json: line %d: %s", generation ? 1 : problem.line,
                      generation ? "not a JSON object" : problem.text);
            goto done;
        }
    }
    from.config = object;
    from.generation = generation;
    status = read_all(&from, config, error);
done:
    if (status)
        model_config_free(config);
    json_decref(object);
    json_decref(generation);
    return status;
}

/* The whole file in a malloc'ed buffer. Missing: NULL, and no error when it is optional. */
static char *file_read(const char *directory, const char *name, bool optional, size_t *size,
                       struct error *error)
{
    char path[4096];
    char *data = NULL;
    FILE *file;

    error->message[0] = '\0';
    if (snprintf(path, sizeof path, "%s/%s", directory, name) >= (int)sizeof path) {
        error_set(error, "%s: the path is too long", directory);
        return NULL;
    }
    file = fopen(path, "rb");
    if (!file) {
        if (!optional || errno != ENOENT)
            error_set(error, "%s: cannot be opened: %s; a Marian directory has config.json, "
                             "model.safetensors and vocab.json", path, strerror(errno));
        return NULL;
    }
    data = malloc(CONFIG_FILE_MAX + 1);
    if (!data) {
        error_set(error, "%s: out of memory", path);
    } else {
        *size = fread(data, 1, CONFIG_FILE_MAX + 1, file);
        if (ferror(file) || *size > CONFIG_FILE_MAX) {
            error_set(error, "%s: cannot be read or is larger than %d bytes", path,
                      CONFIG_FILE_MAX);
            free(data);
            data = NULL;
        }
    }
    fclose(file);
    return data;
}

static void hash_bytes(uint64_t *hash, const char *data, size_t size)
{
    for (size_t i = 0; i < size; i++)
        *hash = (*hash ^ (unsigned char)data[i]) * 0x100000001b3u;
}

int model_config_read(const char *directory, struct model_config *config, uint64_t *hash,
                      struct error *error)
{
    struct error local = {""}, inner;
    size_t config_size = 0, generation_size = 0;
    char *config_json = file_read(directory, "config.json", false, &config_size, &local);
    char *generation_json = NULL;
    int status = -1;

    if (!config_json) {
        error_set(error, "%s", local.message);
        return -1;
    }
    generation_json =
        file_read(directory, "generation_config.json", true, &generation_size, &local);
    if (!generation_json && local.message[0]) {
        error_set(error, "%s", local.message);
        goto done;
    }
    status = model_config_parse(config_json, config_size, generation_json, generation_size, config,
                                &inner);
    if (status)
        error_set(error, "%s/%s", directory, inner.message);
    hash_bytes(hash, config_json, config_size);
    hash_bytes(hash, generation_json ? generation_json : "", generation_size);
done:
    free(config_json);
    free(generation_json);
    return status;
}

void model_config_free(struct model_config *config)
{
    free(config->suppress_tokens);
    free(config->bad_words);
    free(config->bad_word_lengths);
    memset(config, 0, sizeof *config);
}
