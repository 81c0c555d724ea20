/* SPDX-License-Identifier: MIT */
#include "kernels/model/model.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/model/model_config.h"
#include "kernels/model/safetensors.h"

/* Where a tensor is looked for: prefix.suffix, with the shape it must have. */
struct finder {
    const struct safetensors *file;
    struct error *error;
};

static int find(const struct finder *f, int64_t rows, int64_t cols, struct model_tensor *out,
                const char *format, ...) __attribute__((format(printf, 5, 6)));

static int find(const struct finder *f, int64_t rows, int64_t cols, struct model_tensor *out,
                const char *format, ...)
{
    char name[256];
    va_list args;

    va_start(args, format);
    vsnprintf(name, sizeof name, format, args);
    va_end(args);
    if (!safetensors_find(f->file, name, out))
        return error_set(f->error, "model.safetensors: tensor %s is missing", name);
    if (out->rows != rows || out->cols != cols)
        return error_set(f->error, "model.safetensors: tensor %s has shape (%lld, %lld), config.json "
                                   "asks for (%lld, %lld)", name, (long long)out->rows,
                         (long long)out->cols, (long long)rows, (long long)cols);
    return 0;
}

static int find_linear(const struct finder *f, int64_t out_width, int64_t in_width,
                       struct model_linear *linear, const char *prefix, const char *name)
{
    return find(f, out_width, in_width, &linear->weight, "%s.%s.weight", prefix, name) ||
                   find(f, 1, out_width, &linear->bias, "%s.%s.bias", prefix, name)
               ? -1
               : 0;
}

static int find_norm(const struct finder *f, int64_t width, struct model_norm *norm,
                     const char *prefix, const char *name)
{
    return find(f, 1, width, &norm->weight, "%s.%s.weight", prefix, name) ||
                   find(f, 1, width, &norm->bias, "%s.%s.bias", prefix, name)
               ? -1
               : 0;
}

static int find_attention(const struct finder *f, int64_t d, struct model_attention *attention,
                          const char *layer, const char *name)
{
    char prefix[192], norm[64];

    snprintf(prefix, sizeof prefix, "%s.%s", layer, name);
    snprintf(norm, sizeof norm, "%s_layer_norm", name);
    return find_linear(f, d, d, &attention->q, prefix, "q_proj") ||
                   find_linear(f, d, d, &attention->k, prefix, "k_proj") ||
                   find_linear(f, d, d, &attention->v, prefix, "v_proj") ||
                   find_linear(f, d, d, &attention->out, prefix, "out_proj") ||
                   find_norm(f, d, &attention->norm, layer, norm)
               ? -1
               : 0;
}

static int find_layer(const struct finder *f, const struct model_config *c, bool decoder, int index,
                      struct model_layer *layer)
{
    char prefix[128];
    int64_t ffn = decoder ? c->decoder_ffn : c->encoder_ffn;

    snprintf(prefix, sizeof prefix, "model.%s.layers.%d", decoder ? "decoder" : "encoder", index);
    if (find_attention(f, c->d_model, &layer->self, prefix, "self_attn"))
        return -1;
    if (decoder && find_attention(f, c->d_model, &layer->cross, prefix, "encoder_attn"))
        return -1;
    return find_linear(f, ffn, c->d_model, &layer->fc1, prefix, "fc1") ||
                   find_linear(f, c->d_model, ffn, &layer->fc2, prefix, "fc2") ||
                   find_norm(f, c->d_model, &layer->norm, prefix, "final_layer_norm")
               ? -1
               : 0;
}

/* Hugging Face stores the shared table once, under one of several names. */
static int find_embeddings(const struct finder *f, struct model *model)
{
    const struct model_config *c = &model->config;
    struct model_tensor tensor;
    int64_t v = c->vocabulary, d = c->d_model;

    if (safetensors_find(f->file, "model.shared.weight", &tensor)) {
        if (find(f, v, d, &model->encoder_embedding, "model.shared.weight"))
            return -1;
        model->decoder_embedding = model->encoder_embedding;
    }
    if (safetensors_find(f->file, "model.encoder.embed_tokens.weight", &tensor) &&
        find(f, v, d, &model->encoder_embedding, "model.encoder.embed_tokens.weight"))
        return -1;
    if (safetensors_find(f->file, "model.decoder.embed_tokens.weight", &tensor) &&
        find(f, v, d, &model->decoder_embedding, "model.decoder.embed_tokens.weight"))
        return -1;
    if (!model->encoder_embedding.data && model->decoder_embedding.data && c->tied_embeddings)
        model->encoder_embedding = model->decoder_embedding;
    if (!model->decoder_embedding.data && model->encoder_embedding.data && c->tied_embeddings)
        model->decoder_embedding = model->encoder_embedding;
    if (!model->encoder_embedding.data || !model->decoder_embedding.data)
        return error_set(f->error, "model.safetensors: tensor model.shared.weight (or "
                                   "model.encoder.embed_tokens.weight and "
                                   "model.decoder.embed_tokens.weight) is missing");
    if (safetensors_find(f->file, "lm_head.weight", &tensor))
        return find(f, v, d, &model->output, "lm_head.weight");
    model->output = model->decoder_embedding;
    return 0;
}

static int find_optional(const struct finder *f, const char *name, int64_t rows, int64_t cols,
                         struct model_tensor *out)
{
    struct model_tensor tensor;

    return safetensors_find(f->file, name, &tensor) ? find(f, rows, cols, out, "%s", name) : 0;
}

static int find_all(const struct finder *f, struct model *model)
{
    const struct model_config *c = &model->config;

    if (find_embeddings(f, model) ||
        find_optional(f, "final_logits_bias", 1, c->vocabulary, &model->logits_bias) ||
        find_optional(f, "model.encoder.embed_positions.weight", c->positions, c->d_model,
                      &model->encoder_positions) ||
        find_optional(f, "model.decoder.embed_positions.weight", c->positions, c->d_model,
                      &model->decoder_positions))
        return -1;
    for (int i = 0; i < c->encoder_layers; i++)
        if (find_layer(f, c, false, i, &model->encoder[i]))
            return -1;
    for (int i = 0; i < c->decoder_layers; i++)
        if (find_layer(f, c, true, i, &model->decoder[i]))
            return -1;
    return 0;
}

struct model *model_open(const char *directory, struct error *error)
{
    struct model *model = calloc(1, sizeof *model);
    struct error inner;
    struct finder finder = {NULL, &inner};
    uint64_t hash = 0xcbf29ce484222325u;
    char path[4096];

    if (!model) {
        error_set(error, "%s: out of memory", directory);
        return NULL;
    }
    if (model_config_read(directory, &model->config, &hash, error))
        goto fail;
    if (snprintf(path, sizeof path, "%s/model.safetensors", directory) >= (int)sizeof path) {
        error_set(error, "%s: the path is too long", directory);
        goto fail;
    }
    model->mapping = safetensors_open(path, error);
    if (!model->mapping)
        goto fail;
    model->encoder = calloc((size_t)model->config.encoder_layers, sizeof *model->encoder);
    model->decoder = calloc((size_t)model->config.decoder_layers, sizeof *model->decoder);
    if (!model->encoder || !model->decoder) {
        error_set(error, "%s: out of memory", directory);
        goto fail;
    }
    finder.file = model->mapping;
    if (find_all(&finder, model)) {
        error_set(error, "%s/%s", directory, inner.message);
        goto fail;
    }
    model->weight_hash = hash ^ safetensors_hash(model->mapping);
    return model;
fail:
    model_close(model);
    return NULL;
}

void model_close(struct model *model)
{
    if (!model)
        return;
    safetensors_close(model->mapping);
    free(model->encoder);
    free(model->decoder);
    model_config_free(&model->config);
    free(model);
}

static float half_widen(uint16_t half)
{
    uint32_t sign = (uint32_t)(half & 0x8000u) << 16;
    uint32_t exponent = half >> 10 & 0x1fu;
    uint32_t fraction = half & 0x3ffu;
    uint32_t bits;
    float value;

    if (exponent == 0x1f) {
        bits = sign | 0x7f800000u | fraction << 13;
    } else if (exponent) {
        bits = sign | (exponent + 112) << 23 | fraction << 13;
    } else { /* zero or subnormal: fraction * 2^-24 is exact */
        value = (float)fraction * 0x1p-24f;
        return sign ? -value : value;
    }
    memcpy(&value, &bits, sizeof value);
    return value;
}

void model_tensor_f32(const struct model_tensor *tensor, float *out)
{
    size_t count = (size_t)(tensor->rows * tensor->cols);
    const unsigned char *bytes = tensor->data; /* may be unaligned in the file */

    if (tensor->dtype == MODEL_F32) {
        memcpy(out, bytes, count * sizeof *out);
        return;
    }
    for (size_t i = 0; i < count; i++) {
        uint16_t half;
        uint32_t bits;

        memcpy(&half, bytes + 2 * i, sizeof half);
        if (tensor->dtype == MODEL_F16) {
            out[i] = half_widen(half);
        } else {
            bits = (uint32_t)half << 16;
            memcpy(&out[i], &bits, sizeof bits);
        }
    }
}

void model_position_f32(const struct model *model, bool decoder, int32_t position, float *out)
{
    const struct model_tensor *table =
        decoder ? &model->decoder_positions : &model->encoder_positions;
    int32_t d = model->config.d_model, half = d / 2 + d % 2;

    if (table->data) {
        struct model_tensor row = *table;

        row.rows = 1;
        row.data = (const unsigned char *)table->data +
                   (size_t)position * (size_t)d * (table->dtype == MODEL_F32 ? 4 : 2);
        model_tensor_f32(&row, out);
        return;
    }
    /* Hugging Face's MarianSinusoidalPositionalEmbedding: computed in double, kept in float32. */
    for (int32_t i = 0; i < d; i++) {
        int32_t j = i < half ? i : i - half;
        double angle = position / pow(10000.0, 2.0 * j / d);

        out[i] = (float)(i < half ? sin(angle) : cos(angle));
    }
}
