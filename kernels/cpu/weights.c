/* SPDX-License-Identifier: MIT */
#include "kernels/cpu/weights.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/cpu/ops.h"

/* Packing reads tensors through one work space that is as large as the largest of them. */
struct packer {
    const struct model *model;
    struct weights *weights;
    enum product_format format; /* of attention and feed-forward products */
    float *weight;              /* (largest) */
    float *bias;                /* (largest rows) */
    float *reach;               /* (2 D) of the inputs of the product being packed */
    struct error *error;
};

/* Appends a linear layer, times factor, to rows at.. of the work space. */
static void linear_read(struct packer *p, const struct model_linear *linear, int64_t at,
                        float factor)
{
    int64_t rows = linear->weight.rows, cols = linear->weight.cols;
    float *weight = p->weight + at * cols, *bias = p->bias + at;

    model_tensor_f32(&linear->weight, weight);
    model_tensor_f32(&linear->bias, bias);
    for (int64_t i = 0; factor != 1.0f && i < rows * cols; i++)
        weight[i] *= factor;
    for (int64_t i = 0; factor != 1.0f && i < rows; i++)
        bias[i] *= factor;
}

static struct product_weight *pack(struct packer *p, enum product_format format, int64_t N,
                                   int64_t K, const float *bias, const float *reach)
{
    struct product_weight *w =
        product_pack(format, (int32_t)N, (int32_t)K, p->weight, bias, reach, p->error);

    if (w)
        p->weights->bytes += product_bytes(w);
    return w;
}

/* reach (D): how far each output of a norm goes, about three deviations. */
static const float *norm_reach(struct packer *p, const struct model_norm *norm)
{
    const int32_t D = p->weights->D;
    float *gain = p->reach, *bias = p->reach + D;

    model_tensor_f32(&norm->weight, gain);
    model_tensor_f32(&norm->bias, bias);
    for (int32_t i = 0; i < D; i++)
        p->reach[i] = 3.0f * fabsf(gain[i]) + fabsf(bias[i]);
    return p->reach;
}

/* The same of embedding rows plus positions, which lie within 1. */
static const float *embedding_reach(struct packer *p, const struct model_tensor *embedding)
{
    const int64_t D = p->weights->D, rows = embedding->rows;

    model_tensor_f32(embedding, p->weight);
    memset(p->reach, 0, (size_t)D * sizeof *p->reach);
    for (int64_t i = 0; i < rows * D; i++)
        p->reach[i % D] += p->weight[i] * p->weight[i];
    for (int64_t i = 0; i < D; i++)
        p->reach[i] = 3.0f * p->weights->embedding_scale * sqrtf(p->reach[i] / (float)rows) + 1.0f;
    return p->reach;
}

/* reach (K) of the inputs, or NULL when nothing is known. */
static struct product_weight *linear_pack(struct packer *p, const struct model_linear *linear,
                                          float factor, const float *reach)
{
    linear_read(p, linear, 0, factor);
    return pack(p, p->format, linear->weight.rows, linear->weight.cols, p->bias, reach);
}

/* The query's factor 1 / sqrt(dh) is a power of two for the usual head sizes: exact in the weights.
 */
static float query_factor(const struct model *model, int32_t heads)
{
    return 1.0f / sqrtf((float)(model->config.d_model / heads));
}

static struct product_weight *qkv_pack(struct packer *p, const struct model_attention *attention,
                                       float factor, const float *reach)
{
    int64_t D = p->weights->D;

    linear_read(p, &attention->q, 0, factor);
    linear_read(p, &attention->k, D, 1.0f);
    linear_read(p, &attention->v, 2 * D, 1.0f);
    return pack(p, p->format, 3 * D, D, p->bias, reach);
}

static struct product_weight *cross_kv_pack(struct packer *p,
                                            const struct model_attention *attention)
{
    int64_t D = p->weights->D;
    const float *reach =
        norm_reach(p, &p->model->encoder[p->model->config.encoder_layers - 1].norm);

    linear_read(p, &attention->k, 0, 1.0f);
    linear_read(p, &attention->v, D, 1.0f);
    return pack(p, p->format, 2 * D, D, p->bias, reach);
}

static int norm_read(struct packer *p, const struct model_norm *from, struct weights_norm *to)
{
    size_t size = (size_t)p->weights->D * sizeof(float);

    to->gain = aligned_alloc(64, size);
    to->bias = aligned_alloc(64, size);
    if (!to->gain || !to->bias)
        return error_set(p->error, "weights: out of memory");
    model_tensor_f32(&from->weight, to->gain);
    model_tensor_f32(&from->bias, to->bias);
    p->weights->bytes += 2 * size;
    return 0;
}

static int cross_pack(struct packer *p, const struct model_layer *from, float factor,
                      struct weights_layer *to)
{
    to->cross_q = linear_pack(p, &from->cross.q, factor, norm_reach(p, &from->self.norm));
    to->cross_kv = to->cross_q ? cross_kv_pack(p, &from->cross) : NULL;
    to->cross_out = to->cross_kv ? linear_pack(p, &from->cross.out, 1.0f, NULL) : NULL;
    return to->cross_out ? norm_read(p, &from->cross.norm, &to->cross_norm) : -1;
}

/* before: the norm that the layer's input comes from, NULL for the embedding. */
static int layer_pack(struct packer *p, const struct model_layer *from, bool decoder,
                      const struct model_norm *before, struct weights_layer *to)
{
    const struct model *m = p->model;
    const struct model_tensor *embedding = decoder ? &m->decoder_embedding : &m->encoder_embedding;
    float factor = query_factor(m, decoder ? m->config.decoder_heads : m->config.encoder_heads);

    to->qkv = qkv_pack(p, &from->self, factor,
                       before ? norm_reach(p, before) : embedding_reach(p, embedding));
    to->out = to->qkv ? linear_pack(p, &from->self.out, 1.0f, NULL) : NULL;
    if (!to->out || norm_read(p, &from->self.norm, &to->norm))
        return -1;
    if (decoder && cross_pack(p, from, factor, to))
        return -1;
    to->fc1 = linear_pack(p, &from->fc1, 1.0f,
                          norm_reach(p, decoder ? &from->cross.norm : &from->self.norm));
    to->fc2 = to->fc1 ? linear_pack(p, &from->fc2, 1.0f, NULL) : NULL;
    return to->fc2 ? norm_read(p, &from->norm, &to->ffn_norm) : -1;
}

static int side_pack(struct packer *p, bool decoder)
{
    const struct model_config *c = &p->model->config;
    const struct model_layer *from = decoder ? p->model->decoder : p->model->encoder;
    struct weights_side *side = decoder ? &p->weights->decoder : &p->weights->encoder;
    int32_t D = p->weights->D, P = p->weights->P;

    side->layer_count = decoder ? c->decoder_layers : c->encoder_layers;
    side->heads = decoder ? c->decoder_heads : c->encoder_heads;
    side->ffn = decoder ? c->decoder_ffn : c->encoder_ffn;
    side->layers = calloc((size_t)side->layer_count, sizeof *side->layers);
    side->positions = aligned_alloc(64, (size_t)P * (size_t)D * sizeof(float));
    if (!side->layers || !side->positions)
        return error_set(p->error, "weights: out of memory");
    for (int32_t i = 0; i < P; i++)
        model_position_f32(p->model, decoder, i, side->positions + (int64_t)i * D);
    p->weights->bytes += (size_t)P * (size_t)D * sizeof(float);
    for (int32_t i = 0; i < side->layer_count; i++)
        if (layer_pack(p, &from[i], decoder, i ? &from[i - 1].norm : NULL, &side->layers[i]))
            return -1;
    return 0;
}

static struct product_weight *embedding_pack(struct packer *p, enum product_format format,
                                             const struct model_tensor *tensor, const float *bias,
                                             const float *reach)
{
    model_tensor_f32(tensor, p->weight);
    return pack(p, format, tensor->rows, tensor->cols, bias, reach);
}

/* The output projection, then the embeddings, each packed once however often it is used. */
static int embeddings_pack(struct packer *p, enum product_format format)
{
    const struct model *m = p->model;
    struct weights *w = p->weights;

    norm_reach(p, &m->decoder[m->config.decoder_layers - 1].norm);
    memset(p->bias, 0, (size_t)w->V * sizeof *p->bias);
    if (m->logits_bias.data)
        model_tensor_f32(&m->logits_bias, p->bias);
    w->output = embedding_pack(p, format, &m->output, p->bias, p->reach);
    if (!w->output)
        return -1;
    w->decoder.embedding = m->decoder_embedding.data == m->output.data
                               ? w->output
                               : embedding_pack(p, format, &m->decoder_embedding, NULL, NULL);
    if (!w->decoder.embedding)
        return -1;
    w->encoder.embedding = m->encoder_embedding.data == m->output.data ? w->output
                           : m->encoder_embedding.data == m->decoder_embedding.data
                               ? w->decoder.embedding
                               : embedding_pack(p, format, &m->encoder_embedding, NULL, NULL);
    return w->encoder.embedding ? 0 : -1;
}

static int sizes_check(const struct model_config *c, struct error *error)
{
    int32_t D = c->d_model;

    if (D % (OPS_PAGE * c->encoder_heads) || D % (OPS_PAGE * c->decoder_heads))
        return error_set(error,
                         "model: d_model %d with %d encoder and %d decoder heads: heads must be a "
                         "multiple of %d wide on the CPU",
                         (int)D, (int)c->encoder_heads, (int)c->decoder_heads, (int)OPS_PAGE);
    return 0;
}

static int64_t larger(int64_t a, int64_t b)
{
    return a > b ? a : b;
}

struct weights *weights_create(const struct model *model, enum weights_format format,
                               struct error *error)
{
    const struct model_config *c = &model->config;
    int64_t D = c->d_model, F = larger(c->encoder_ffn, c->decoder_ffn);
    int64_t rows = larger(larger(c->vocabulary, 3 * D), F);
    struct packer p = {.model = model, .error = error};
    bool int8_output = format == WEIGHTS_INT8;

    if (sizes_check(c, error))
        return NULL;
    p.format = format == WEIGHTS_FP32 ? PRODUCT_F32 : PRODUCT_INT8;
    p.weights = calloc(1, sizeof *p.weights);
    p.weight = malloc((size_t)(rows * D) * sizeof *p.weight);
    p.bias = malloc((size_t)rows * sizeof *p.bias);
    p.reach = malloc(2 * (size_t)D * sizeof *p.reach);
    if (!p.weights || !p.weight || !p.bias || !p.reach) {
        error_set(error, "weights: out of memory");
        goto failed;
    }
    p.weights->D = c->d_model;
    p.weights->V = c->vocabulary;
    p.weights->P = c->positions;
    p.weights->embedding_scale = c->scale_embedding ? sqrtf((float)D) : 1.0f;
    p.weights->activation = c->activation == MODEL_SWISH  ? PRODUCT_SWISH
                            : c->activation == MODEL_GELU ? PRODUCT_GELU
                                                          : PRODUCT_RELU;
    if (embeddings_pack(&p, int8_output ? PRODUCT_INT8 : PRODUCT_F32) || side_pack(&p, false) ||
        side_pack(&p, true))
        goto failed;
    free(p.weight);
    free(p.bias);
    free(p.reach);
    return p.weights;
failed:
    free(p.weight);
    free(p.bias);
    free(p.reach);
    weights_destroy(p.weights);
    return NULL;
}

static void norm_free(struct weights_norm *norm)
{
    free(norm->gain);
    free(norm->bias);
}

static void side_free(struct weights_side *side)
{
    for (int32_t i = 0; side->layers && i < side->layer_count; i++) {
        struct weights_layer *layer = &side->layers[i];

        product_free(layer->qkv);
        product_free(layer->out);
        product_free(layer->cross_q);
        product_free(layer->cross_kv);
        product_free(layer->cross_out);
        product_free(layer->fc1);
        product_free(layer->fc2);
        norm_free(&layer->norm);
        norm_free(&layer->cross_norm);
        norm_free(&layer->ffn_norm);
    }
    free(side->layers);
    free(side->positions);
}

void weights_destroy(struct weights *w)
{
    if (!w)
        return;
    side_free(&w->encoder);
    side_free(&w->decoder);
    if (w->encoder.embedding != w->output && w->encoder.embedding != w->decoder.embedding)
        product_free(w->encoder.embedding);
    if (w->decoder.embedding != w->output)
        product_free(w->decoder.embedding);
    product_free(w->output);
    free(w);
}
