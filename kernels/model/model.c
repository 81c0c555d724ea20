/* SPDX-License-Identifier: MIT */
#include "kernels/model/model.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <jansson.h>
#include <limits.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "kernels/model/model_config.h"
#include "kernels/model/safetensors.h"

enum { VOCABULARY_BYTES_MAX = 32 << 20 };

struct file_bytes {
    char *data;
    size_t size;
};

/* Reads a whole small file. 0 = read, 1 = does not exist, -1 = error. */
static int file_read(const char *directory, const char *name, size_t most, struct file_bytes *out,
                     struct error *error)
{
    char path[PATH_MAX];
    struct stat status;
    size_t got = 0;
    int fd, result = -1;

    out->data = NULL;
    out->size = 0;
    if ((size_t)snprintf(path, sizeof path, "%s/%s", directory, name) >= sizeof path)
        return error_set(error, "%.200s: the path is too long", directory);
    fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0 && errno == ENOENT)
        return 1;
    if (fd < 0 || fstat(fd, &status)) {
        error_set(error, "%s: %s", path, strerror(errno));
        goto out;
    }
    if (!S_ISREG(status.st_mode) || (uint64_t)status.st_size > most) {
        error_set(error, "%s: not a file of at most %zu bytes", path, most);
        goto out;
    }
    out->data = malloc((size_t)status.st_size + 1);
    if (!out->data) {
        error_set(error, "%s: out of memory", path);
        goto out;
    }
    while (got < (size_t)status.st_size) {
        ssize_t n = read(fd, out->data + got, (size_t)status.st_size - got);

        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0) {
            error_set(error, "%s: %s", path, n ? strerror(errno) : "the file shrank while read");
            goto out;
        }
        got += (size_t)n;
    }
    out->size = got;
    result = 0;
out:
    if (fd >= 0)
        close(fd);
    if (result) {
        free(out->data);
        out->data = NULL;
    }
    return result;
}

/* FNV-1a, for identity, not security. */
static uint64_t bytes_hash(uint64_t hash, const void *data, size_t size)
{
    for (size_t i = 0; i < size; i++)
        hash = (hash ^ ((const unsigned char *)data)[i]) * 0x100000001b3u;
    return hash;
}

static uint64_t hash_mix(uint64_t a, uint64_t b)
{
    return bytes_hash(a, &b, sizeof b);
}

struct loader {
    const struct safetensors *file;
    struct error *error;
};

/* name is printf-formatted; 1-D tensors have rows == 1. optional: an absent one is no error. */
static int tensor_load(const struct loader *loader, struct model_tensor *out, bool optional,
                       int64_t rows, int64_t cols, const char *format, ...) PGPT_PRINTF(6, 7);
static int tensor_load(const struct loader *loader, struct model_tensor *out, bool optional,
                       int64_t rows, int64_t cols, const char *format, ...)
{
    char name[160];
    va_list args;

    va_start(args, format);
    vsnprintf(name, sizeof name, format, args);
    va_end(args);
    memset(out, 0, sizeof *out);
    if (!safetensors_find(loader->file, name, out)) {
        if (optional)
            return 0;
        return error_set(loader->error, "model.safetensors: tensor %s is missing", name);
    }
    if (out->rows != rows || out->cols != cols)
        return error_set(loader->error,
                         "model.safetensors: tensor %s has shape (%" PRId64 ", %" PRId64
                         "), config.json needs (%" PRId64 ", %" PRId64 ")",
                         name, out->rows, out->cols, rows, cols);
    return 0;
}

static int linear_load(const struct loader *loader, struct model_linear *out, int64_t rows,
                       int64_t cols, const char *prefix, const char *name)
{
    return tensor_load(loader, &out->weight, false, rows, cols, "%s.%s.weight", prefix, name) ||
                   tensor_load(loader, &out->bias, false, 1, rows, "%s.%s.bias", prefix, name)
               ? -1
               : 0;
}

static int norm_load(const struct loader *loader, struct model_norm *out, int64_t width,
                     const char *prefix, const char *name)
{
    return tensor_load(loader, &out->weight, false, 1, width, "%s.%s.weight", prefix, name) ||
                   tensor_load(loader, &out->bias, false, 1, width, "%s.%s.bias", prefix, name)
               ? -1
               : 0;
}

static int attention_load(const struct loader *loader, struct model_attention *out, int64_t width,
                          const char *layer, const char *name)
{
    char prefix[96], norm[48];

    snprintf(prefix, sizeof prefix, "%s.%s", layer, name);
    snprintf(norm, sizeof norm, "%s_layer_norm", name);
    return linear_load(loader, &out->q, width, width, prefix, "q_proj") ||
                   linear_load(loader, &out->k, width, width, prefix, "k_proj") ||
                   linear_load(loader, &out->v, width, width, prefix, "v_proj") ||
                   linear_load(loader, &out->out, width, width, prefix, "out_proj") ||
                   norm_load(loader, &out->norm, width, layer, norm)
               ? -1
               : 0;
}

static int layer_load(const struct loader *loader, struct model_layer *out, bool decoder,
                      int32_t index, int64_t width, int64_t ffn)
{
    char prefix[64];

    snprintf(prefix, sizeof prefix, "model.%s.layers.%d", decoder ? "decoder" : "encoder",
             (int)index);
    return attention_load(loader, &out->self, width, prefix, "self_attn") ||
                   (decoder &&
                    attention_load(loader, &out->cross, width, prefix, "encoder_attn")) ||
                   linear_load(loader, &out->fc1, ffn, width, prefix, "fc1") ||
                   linear_load(loader, &out->fc2, width, ffn, prefix, "fc2") ||
                   norm_load(loader, &out->norm, width, prefix, "final_layer_norm")
               ? -1
               : 0;
}

static int embeddings_load(const struct loader *loader, struct model *model)
{
    const struct model_config *config = &model->config;
    int64_t V = config->vocabulary, D = config->d_model, P = config->positions;

    if (config->shared_embeddings) {
        if (tensor_load(loader, &model->encoder_embedding, false, V, D, "model.shared.weight"))
            return -1;
        model->decoder_embedding = model->encoder_embedding;
    } else if (tensor_load(loader, &model->encoder_embedding, false, V, D,
                           "model.encoder.embed_tokens.weight") ||
               tensor_load(loader, &model->decoder_embedding, false, V, D,
                           "model.decoder.embed_tokens.weight")) {
        return -1;
    }
    model->output = model->decoder_embedding;
    if (!config->tied_embeddings &&
        tensor_load(loader, &model->output, false, V, D, "lm_head.weight"))
        return -1;
    return tensor_load(loader, &model->logits_bias, true, 1, V, "final_logits_bias") ||
                   tensor_load(loader, &model->encoder_positions, true, P, D,
                               "model.encoder.embed_positions.weight") ||
                   tensor_load(loader, &model->decoder_positions, true, P, D,
                               "model.decoder.embed_positions.weight")
               ? -1
               : 0;
}

static int tensors_load(const struct loader *loader, struct model *model)
{
    const struct model_config *config = &model->config;

    model->encoder = calloc((size_t)config->encoder_layers, sizeof model->encoder[0]);
    model->decoder = calloc((size_t)config->decoder_layers, sizeof model->decoder[0]);
    if (!model->encoder || !model->decoder)
        return error_set(loader->error, "model: out of memory");
    if (embeddings_load(loader, model))
        return -1;
    for (int32_t i = 0; i < config->encoder_layers; i++)
        if (layer_load(loader, &model->encoder[i], false, i, config->d_model, config->encoder_ffn))
            return -1;
    for (int32_t i = 0; i < config->decoder_layers; i++)
        if (layer_load(loader, &model->decoder[i], true, i, config->d_model, config->decoder_ffn))
            return -1;
    return 0;
}

/* vocab.json names the unknown token where config.json does not; without the file it stays -1. */
static int unknown_token_load(const char *directory, struct model_config *config,
                              struct error *error)
{
    struct file_bytes text;
    json_t *object;
    const json_t *id;
    int found = file_read(directory, "vocab.json", VOCABULARY_BYTES_MAX, &text, error);

    if (found)
        return found < 0 ? -1 : 0;
    object = json_loadb(text.data, text.size, 0, NULL);
    free(text.data);
    id = json_object_get(object, "<unk>");
    if (json_is_integer(id) && json_integer_value(id) >= 0 &&
        json_integer_value(id) < config->vocabulary)
        config->unk_token = (int32_t)json_integer_value(id);
    found = json_is_object(object);
    json_decref(object);
    return found ? 0 : error_set(error, "vocab.json: must be a JSON object of pieces and ids");
}

static int configs_load(const char *directory, struct model *model, struct error *error)
{
    struct file_bytes config, generation;
    int found = file_read(directory, "config.json", MODEL_CONFIG_BYTES_MAX, &config, error);
    int result = -1;

    generation.data = NULL;
    generation.size = 0;
    if (found > 0)
        error_set(error, "%s/config.json: no such file; a Hugging Face Marian directory is needed",
                  directory);
    if (found)
        return -1;
    found =
        file_read(directory, "generation_config.json", MODEL_CONFIG_BYTES_MAX, &generation, error);
    if (found >= 0)
        result = model_config_parse(config.data, config.size, generation.data, generation.size,
                                    &model->config, error);
    model->weight_hash = bytes_hash(0xcbf29ce484222325u, config.data, config.size);
    model->weight_hash = bytes_hash(model->weight_hash, generation.data, generation.size);
    free(config.data);
    free(generation.data);
    if (!result && model->config.unk_token < 0)
        result = unknown_token_load(directory, &model->config, error);
    return result;
}

struct model *model_open(const char *directory, struct error *error)
{
    struct model *model = calloc(1, sizeof *model);
    struct safetensors *file;
    struct loader loader;
    char path[PATH_MAX];

    if (!model) {
        error_set(error, "model: out of memory");
        return NULL;
    }
    if ((size_t)snprintf(path, sizeof path, "%s/model.safetensors", directory) >= sizeof path) {
        error_set(error, "%.200s: the path is too long", directory);
        goto failed;
    }
    if (configs_load(directory, model, error))
        goto failed;
    file = safetensors_open(path, error);
    if (!file)
        goto failed;
    model->mapping = file;
    loader.file = file;
    loader.error = error;
    if (tensors_load(&loader, model))
        goto failed;
    model->weight_hash = hash_mix(model->weight_hash, safetensors_hash(file));
    return model;
failed:
    model_close(model);
    return NULL;
}

void model_close(struct model *model)
{
    if (!model)
        return;
    safetensors_close(model->mapping);
    model_config_free(&model->config);
    free(model->encoder);
    free(model->decoder);
    free(model);
}

static float half_widen(uint16_t half)
{
    uint32_t sign = (uint32_t)(half & 0x8000) << 16;
    uint32_t exponent = half >> 10 & 31, fraction = half & 1023;
    uint32_t bits;
    float value;

    if (exponent == 0) {
        value = (float)fraction * 0x1p-24f;
        return sign ? -value : value;
    }
    bits = sign | (exponent == 31 ? 255u : exponent + 112) << 23 | fraction << 13;
    memcpy(&value, &bits, sizeof value);
    return value;
}

void model_tensor_f32(const struct model_tensor *tensor, float *out)
{
    int64_t count = tensor->rows * tensor->cols;
    const char *data = tensor->data;

    if (tensor->dtype == MODEL_F32) {
        memcpy(out, data, (size_t)count * sizeof *out);
        return;
    }
    for (int64_t i = 0; i < count; i++) {
        uint16_t half;
        uint32_t bits;

        memcpy(&half, data + 2 * i, sizeof half);
        bits = (uint32_t)half << 16;
        if (tensor->dtype == MODEL_F16)
            out[i] = half_widen(half);
        else
            memcpy(&out[i], &bits, sizeof bits);
    }
}

/* A value in -1..1 rounded to the type's significant bits, to nearest even. */
static float value_round(float value, enum model_dtype dtype)
{
    int exponent;

    if (dtype == MODEL_F32)
        return value;
    frexpf(value, &exponent);
    if (dtype == MODEL_F16) /* 11 bits, multiples of 2^-24 below 2^-14 */
        exponent = (exponent < -13 ? -13 : exponent) - 11;
    else
        exponent -= 8;
    return ldexpf(rintf(ldexpf(value, -exponent)), exponent);
}

void model_position_f32(const struct model *model, bool decoder, int32_t position, float *out)
{
    enum model_dtype dtype = model->decoder_embedding.dtype;
    const struct model_tensor *table =
        decoder ? &model->decoder_positions : &model->encoder_positions;
    int32_t D = model->config.d_model;

    if (table->data) {
        struct model_tensor row = *table;

        row.data =
            (const char *)table->data + (int64_t)position * D * (table->dtype == MODEL_F32 ? 4 : 2);
        row.rows = 1;
        model_tensor_f32(&row, out);
        return;
    }
    for (int32_t i = 0; i < D / 2; i++) {
        double angle = position / pow(10000.0, 2.0 * i / D);

        out[i] = value_round((float)sin(angle), dtype);
        out[D / 2 + i] = value_round((float)cos(angle), dtype);
    }
}
