/* SPDX-License-Identifier: MIT
 *
 * model: a Hugging Face Marian directory, read and checked. Weights stay mapped in the file's own
 * format; model_tensor_f32() widens one. Immutable after model_open(): any thread may read it.
 */
#ifndef PGPT_KERNELS_MODEL_MODEL_H
#define PGPT_KERNELS_MODEL_MODEL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "kernels/base/error.h"

#ifdef __cplusplus
extern "C" {
#endif

enum model_dtype { MODEL_F32, MODEL_F16, MODEL_BF16 };
enum model_activation { MODEL_RELU, MODEL_SWISH, MODEL_GELU };

/* One tensor inside the mapped file, at any alignment; data == NULL means absent (optional ones).
 */
struct model_tensor {
    const void *data;
    enum model_dtype dtype;
    int64_t rows; /* 1-D tensors: 1 */
    int64_t cols;
};

struct model_linear {           /* y = x W^T + b */
    struct model_tensor weight; /* (out, in) */
    struct model_tensor bias;   /* (out) */
};

struct model_norm {
    struct model_tensor weight; /* (D) */
    struct model_tensor bias;   /* (D) */
};

struct model_attention {
    struct model_linear q, k, v, out; /* each (D, D) */
    struct model_norm norm;           /* after the residual: Marian is post-norm */
};

struct model_layer {
    struct model_attention self;
    struct model_attention cross; /* decoder only */
    struct model_linear fc1;      /* (F, D) */
    struct model_linear fc2;      /* (D, F) */
    struct model_norm norm;       /* after the feed-forward residual */
};

struct model_config {
    int32_t d_model, vocabulary, positions;
    int32_t encoder_layers, encoder_heads, encoder_ffn;
    int32_t decoder_layers, decoder_heads, decoder_ffn;
    enum model_activation activation;
    bool scale_embedding;   /* embeddings times sqrt(D) */
    bool shared_embeddings; /* encoder and decoder have one embedding */
    bool tied_embeddings;   /* output = decoder embedding */
    int32_t start_token, eos_token, pad_token;
    int32_t unk_token;        /* -1 = unknown to the files */
    int32_t forced_eos_token; /* -1 = none */
    int32_t forced_bos_token; /* -1 = none */
    int32_t *suppress_tokens; /* (suppress_count) */
    int32_t suppress_count;
    int32_t *bad_words;        /* all sequences one after the other */
    int32_t *bad_word_lengths; /* (bad_word_count) */
    int32_t bad_word_count;
};

struct model {
    struct model_config config;
    struct model_tensor encoder_embedding; /* (V, D) */
    struct model_tensor decoder_embedding; /* (V, D), the same data when shared */
    struct model_tensor output;            /* (V, D) */
    struct model_tensor logits_bias;       /* (V) or absent */
    struct model_tensor encoder_positions; /* (P, D) or absent: then sinusoidal */
    struct model_tensor decoder_positions;
    struct model_layer *encoder; /* (encoder_layers) */
    struct model_layer *decoder; /* (decoder_layers) */
    uint64_t weight_hash;        /* of config.json, generation_config.json and all tensors */
    void *mapping;               /* owned by model_open/model_close */
};

struct model *model_open(const char *directory, struct error *error) PGPT_MUST_CHECK;
void model_close(struct model *model); /* NULL is allowed */

/* out (count) float32, count = rows * cols of the tensor. */
void model_tensor_f32(const struct model_tensor *tensor, float *out);

/* out (D): Hugging Face's layout, sines in the first half, cosines in the second. A computed table
 * is rounded to the type of the stored weights, since transformers makes it in that type. */
void model_position_f32(const struct model *model, bool decoder, int32_t position, float *out);

#ifdef __cplusplus
}
#endif
#endif
