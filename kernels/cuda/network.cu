/* SPDX-License-Identifier: MIT */
#include "kernels/cuda/network.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/cuda/attention.h"
#include "kernels/cuda/check.h"
#include "kernels/cuda/network_weights.h"

enum { HEADS_UNIT = PRODUCT_INPUTS / NETWORK_HEAD };

static int element_bytes(enum cuda_format activations)
{
    return activations == CUDA_F32 ? 4 : 2;
}

static int format_parse(struct network *network, const char *compute, enum cuda_format *tables,
                        struct error *error)
{
    static const struct {
        const char *name;
        enum cuda_format layers, tables, activations;
    } formats[] = {
        {"fp32", CUDA_F32, CUDA_F32, CUDA_F32},     {"fp16", CUDA_F16, CUDA_F16, CUDA_F16},
        {"bf16", CUDA_BF16, CUDA_BF16, CUDA_BF16},  {"int8", CUDA_INT8, CUDA_INT8, CUDA_F16},
        {"dynamic", CUDA_INT8, CUDA_F16, CUDA_F16},
    };

    for (size_t i = 0; i < sizeof formats / sizeof formats[0]; i++)
        if (!strcmp(compute, formats[i].name)) {
            network->format = formats[i].layers;
            network->activations = formats[i].activations;
            *tables = formats[i].tables;
            return 0;
        }
    return error_set(error, "compute %s: not one of fp32, fp16, bf16, int8, dynamic", compute);
}

static int32_t filled(int32_t size, int32_t unit)
{
    return (size + unit - 1) / unit * unit;
}

/* The sizes of the kernels, or why they have none for this model. */
static int sizes_fill(struct network *network, struct error *error)
{
    const struct model_config *config = &network->config;
    struct network_sizes *sizes = &network->sizes;
    int32_t encoder_each = config->d_model / config->encoder_heads;
    int32_t decoder_each = config->d_model / config->decoder_heads;
    int32_t ffn =
        config->encoder_ffn > config->decoder_ffn ? config->encoder_ffn : config->decoder_ffn;

    if (encoder_each > NETWORK_HEAD || decoder_each > NETWORK_HEAD)
        return error_set(error,
                         "CUDA: d_model %d with %d and %d heads: attention's kernels hold heads of "
                         "up to %d dimensions in registers; run this model on the CPU",
                         config->d_model, config->encoder_heads, config->decoder_heads,
                         NETWORK_HEAD);
    if (config->d_model > PRODUCT_WIDTH)
        return error_set(error,
                         "CUDA: d_model %d: norms are taken of rows in registers, which have room "
                         "for %d; run this model on the CPU",
                         config->d_model, PRODUCT_WIDTH);
    sizes->width = filled(config->d_model, PRODUCT_INPUTS);
    sizes->encoder_heads = filled(config->encoder_heads, HEADS_UNIT);
    sizes->decoder_heads = filled(config->decoder_heads, HEADS_UNIT);
    sizes->encoder_ffn = filled(config->encoder_ffn, PRODUCT_INPUTS);
    sizes->decoder_ffn = filled(config->decoder_ffn, PRODUCT_INPUTS);
    if (network->format == CUDA_INT8 && ffn > FORMAT_INT8_INPUTS)
        return error_set(error,
                         "CUDA: feed-forward widths %d and %d: integer sums hold %d inputs; take "
                         "compute fp16, bf16 or fp32",
                         config->encoder_ffn, config->decoder_ffn, FORMAT_INT8_INPUTS);
    return 0;
}

struct network *network_open(const struct model *model, const char *compute, struct error *error)
{
    const struct model_config *config = &model->config;
    struct network *network = (struct network *)calloc(1, sizeof *network);
    enum cuda_format tables = CUDA_F16;

    if (!network) {
        error_set(error, "out of memory");
        return NULL;
    }
    network->config = *config;
    network->embedding_factor = config->scale_embedding ? sqrtf((float)config->d_model) : 1.0f;
    network->activation = config->activation == MODEL_RELU    ? PRODUCT_ACT_RELU
                          : config->activation == MODEL_SWISH ? PRODUCT_ACT_SWISH
                                                              : PRODUCT_ACT_GELU;
    network->owned = (void **)calloc(NETWORK_OWNED_MOST, sizeof *network->owned);
    network->encoder =
        (struct network_layer *)calloc((size_t)config->encoder_layers, sizeof *network->encoder);
    network->decoder =
        (struct network_layer *)calloc((size_t)config->decoder_layers, sizeof *network->decoder);
    if (!network->owned || !network->encoder || !network->decoder) {
        error_set(error, "out of memory");
        goto fail;
    }
    if (format_parse(network, compute, &tables, error) || sizes_fill(network, error) ||
        network_weights_upload(network, model, tables, error))
        goto fail;
    return network;
fail:
    network_close(network);
    return NULL;
}

void network_close(struct network *network)
{
    if (!network)
        return;
    for (size_t i = 0; network->owned && i < network->owned_count; i++)
        (void)cudaFree(network->owned[i]);
    free(network->owned);
    free(network->encoder);
    free(network->decoder);
    free(network);
}

static size_t aligned(size_t bytes)
{
    return (bytes + 255) / 256 * 256;
}

static size_t space_layout(const struct network *network, int32_t tokens, bool encoder,
                           char *memory, struct network_space *space)
{
    const struct network_sizes *sizes = &network->sizes;
    size_t D = (size_t)sizes->width, T = (size_t)tokens;
    size_t A = (size_t)(encoder ? sizes->encoder_heads : sizes->decoder_heads) * NETWORK_HEAD;
    size_t F = (size_t)(encoder ? sizes->encoder_ffn : sizes->decoder_ffn);
    size_t e = (size_t)element_bytes(network->activations), at = 0;

    space->x = (float *)(memory + at);
    at += aligned(T * D * sizeof(float));
    space->y = (float *)(memory + at);
    at += aligned(T * D * sizeof(float));
    space->q = memory + at;
    at += aligned(T * A * (encoder ? 3 : 1) * e);
    space->o = memory + at;
    at += aligned(T * A * e);
    space->n = memory + at;
    at += aligned(T * D * e);
    space->h = memory + at;
    at += aligned(T * F * e);
    return at;
}

size_t network_space_bytes(const struct network *network, int32_t tokens, bool encoder)
{
    struct network_space unused;

    return space_layout(network, tokens, encoder, NULL, &unused);
}

void network_space_carve(const struct network *network, int32_t tokens, bool encoder, char *memory,
                         struct network_space *space)
{
    (void)space_layout(network, tokens, encoder, memory, space);
}

static struct product product_of(const int32_t *n, const struct cuda_weight *weight,
                                 enum product_input input, enum product_output output)
{
    struct product p;

    memset(&p, 0, sizeof p);
    p.n = n;
    p.weight = *weight;
    p.input = input;
    p.output = output;
    return p;
}

/* Where norms are taken: in front of the products that need them, or (many rows, product_many)
 * right behind the product that ends a part of a layer. */
struct network_flow {
    const int32_t *n;
    int32_t n_most, width; /* width: of a row, what the model has */
    const struct network_space *space;
    bool many;
    bool beside; /* as struct product has it */
    bool pdl;
    cudaStream_t stream;
};

static struct network_flow flow_of(const struct network *network, const int32_t *n, int32_t n_most,
                                   const struct network_space *space, bool pdl, cudaStream_t stream)
{
    struct network_flow flow = {
        n,   n_most, network->config.d_model, space, product_many(network->format, n_most), false,
        pdl, stream};

    return flow;
}

/* A product of normed rows, which are kept as x for the next residual. */
static struct product product_normed(const struct network_flow *flow,
                                     const struct cuda_weight *weight, enum product_output output,
                                     const struct network_norm *norm)
{
    struct product p = product_of(flow->n, weight, PRODUCT_NORM, output);

    p.beside = flow->beside;
    if (flow->many) {
        p.input = PRODUCT_ROWS;
        p.x = flow->space->n;
        return p;
    }
    p.x = flow->space->y;
    p.gamma = norm->gamma;
    p.beta = norm->beta;
    p.width = flow->width;
    p.x_out = flow->space->x;
    return p;
}

/* A product of embedded tokens; what else the embedding needs is set by the caller, before
 * embedded_enqueue(). */
static struct product product_embedded(const struct network_flow *flow,
                                       const struct cuda_weight *weight, enum product_output output)
{
    struct product p = product_of(flow->n, weight, PRODUCT_EMBED, output);

    p.beside = flow->beside;
    p.x_out = flow->space->x;
    return p;
}

static cudaError_t embedded_enqueue(const struct network_flow *flow, const struct product *product,
                                    bool pdl)
{
    struct product p = *product;

    if (!flow->many)
        return product_enqueue(&p, flow->n_most, pdl, flow->stream);
    p.out = flow->space->n;
    CUDA_PASS(product_embed_enqueue(&p, flow->n_most, pdl, flow->stream));
    p.out = product->out;
    p.input = PRODUCT_ROWS;
    p.x = flow->space->n;
    return product_enqueue(&p, flow->n_most, flow->pdl, flow->stream);
}

/* y = x_in W^T + b + x, and with many rows its norm. */
static cudaError_t residual_enqueue(const struct network_flow *flow,
                                    const struct cuda_weight *weight, const void *in,
                                    const struct network_norm *norm)
{
    struct product p = product_of(flow->n, weight, PRODUCT_ROWS, PRODUCT_RESIDUAL);

    p.beside = flow->beside;
    p.x = in;
    p.residual = flow->space->x;
    p.out = flow->space->y;
    if (flow->many) {
        p.output = PRODUCT_NORMED;
        p.gamma = norm->gamma;
        p.beta = norm->beta;
        p.width = flow->width;
        p.x_out = flow->space->x;
        p.out = flow->space->n;
    }
    return product_enqueue(&p, flow->n_most, flow->pdl, flow->stream);
}

static cudaError_t feed_forward(const struct network *network, const struct network_flow *flow,
                                const struct network_layer *layer,
                                const struct network_norm *before)
{
    struct product p = product_normed(flow, &layer->fc1, PRODUCT_PLAIN, before);

    p.activation = network->activation;
    p.out = flow->space->h;
    CUDA_PASS(product_enqueue(&p, flow->n_most, flow->pdl, flow->stream));
    return residual_enqueue(flow, &layer->fc2, flow->space->h, &layer->norm);
}

cudaError_t network_encode(const struct network *network, const struct network_sources *sources,
                           const struct network_space *space, const struct network_cache *cross,
                           bool output, bool pdl, cudaStream_t stream)
{
    const struct model_config *config = &network->config;
    struct network_flow flow =
        flow_of(network, sources->n, sources->token_count, space, pdl, stream);
    const struct network_norm *last = NULL;

    for (int32_t i = 0; i < config->encoder_layers; i++) {
        const struct network_layer *layer = &network->encoder[i];

        if (i) {
            struct product p = product_normed(&flow, &layer->qkv, PRODUCT_PLAIN, last);

            p.out = space->q;
            CUDA_PASS(product_enqueue(&p, flow.n_most, pdl, stream));
        } else {
            struct product p = product_embedded(&flow, &layer->qkv, PRODUCT_PLAIN);

            p.embedding = network->encoder_embedding;
            p.embedding_factor = network->embedding_factor;
            p.position_table = network->encoder_positions;
            p.tokens = sources->tokens;
            p.positions = sources->positions;
            p.out = space->q;
            CUDA_PASS(embedded_enqueue(&flow, &p, false));
        }
        CUDA_PASS(attention_encoder_enqueue(space->q, space->o, sources->starts, sources->count,
                                            sources->longest, network->sizes.encoder_heads,
                                            network->activations, stream));
        CUDA_PASS(residual_enqueue(&flow, &layer->out, space->o, &layer->self_norm));
        CUDA_PASS(feed_forward(network, &flow, layer, &layer->self_norm));
        last = &layer->norm;
    }
    for (int32_t i = 0; i < config->decoder_layers; i++) {
        struct product p =
            product_normed(&flow, &network->decoder[i].cross_kv, PRODUCT_CROSS, last);

        p.x_out = i == 0 && output ? space->x : NULL;
        p.positions = sources->positions;
        p.cache_rows = sources->rows;
        p.cache_k = cross->k + (size_t)i * cross->layer_stride;
        p.cache_v = cross->v + (size_t)i * cross->layer_stride;
        p.scales_k = cross->k_scales + (size_t)i * cross->scale_stride;
        p.scales_v = cross->v_scales + (size_t)i * cross->scale_stride;
        p.cache_heads = network->sizes.decoder_heads;
        p.chunk_places = cross->chunk_places;
        CUDA_PASS(product_enqueue(&p, flow.n_most, pdl, stream));
    }
    return cudaSuccess;
}

static cudaError_t step_attention(const struct network *network, const struct network_step *step,
                                  int32_t layer, bool cross, bool pdl, cudaStream_t stream)
{
    const struct network_cache *cache = cross ? &step->cross : &step->self;
    struct attention a;

    memset(&a, 0, sizeof a);
    a.n = step->n;
    a.active = step->active;
    a.rows = step->rows;
    a.beside = step->beside;
    a.cross = cross;
    a.heads = network->sizes.decoder_heads;
    a.chunk_places = cache->chunk_places;
    a.q = step->space.q;
    a.cache_k = cache->k + (size_t)layer * cache->layer_stride;
    a.cache_v = cache->v + (size_t)layer * cache->layer_stride;
    a.scales_k = cache->k_scales + (size_t)layer * cache->scale_stride;
    a.scales_v = cache->v_scales + (size_t)layer * cache->scale_stride;
    a.out = step->space.o;
    return attention_enqueue(&a, network->activations, step->n_most, pdl, stream);
}

static cudaError_t step_layer(const struct network *network, const struct network_step *step,
                              const struct network_flow *flow, int32_t i, bool chained)
{
    const struct network_layer *layer = &network->decoder[i];
    const struct network_space *space = &step->space;
    struct product q = product_normed(flow, &layer->cross_q, PRODUCT_PLAIN, &layer->self_norm);
    struct product qkv;

    if (i) {
        qkv = product_normed(flow, &layer->qkv, PRODUCT_QKV, &network->decoder[i - 1].norm);
    } else {
        qkv = product_embedded(flow, &layer->qkv, PRODUCT_QKV);
        qkv.embedding = network->decoder_embedding;
        qkv.embedding_factor = network->embedding_factor;
        qkv.position_table = network->decoder_positions;
    }
    qkv.active = step->active;
    qkv.rows = step->rows;
    qkv.out = space->q;
    qkv.cache_k = step->self.k + (size_t)i * step->self.layer_stride;
    qkv.cache_v = step->self.v + (size_t)i * step->self.layer_stride;
    qkv.scales_k = step->self.k_scales + (size_t)i * step->self.scale_stride;
    qkv.scales_v = step->self.v_scales + (size_t)i * step->self.scale_stride;
    qkv.cache_heads = network->sizes.decoder_heads;
    qkv.chunk_places = step->self.chunk_places;
    CUDA_PASS(i ? product_enqueue(&qkv, flow->n_most, flow->pdl, flow->stream)
                : embedded_enqueue(flow, &qkv, flow->pdl && chained));
    CUDA_PASS(step_attention(network, step, i, false, flow->pdl, flow->stream));
    CUDA_PASS(residual_enqueue(flow, &layer->out, space->o, &layer->self_norm));
    q.out = space->q;
    CUDA_PASS(product_enqueue(&q, flow->n_most, flow->pdl, flow->stream));
    CUDA_PASS(step_attention(network, step, i, true, flow->pdl, flow->stream));
    CUDA_PASS(residual_enqueue(flow, &layer->cross_out, space->o, &layer->cross_norm));
    return feed_forward(network, flow, layer, &layer->cross_norm);
}

static cudaError_t logits_enqueue(const struct network *network, const struct network_step *step,
                                  const struct network_flow *flow)
{
    const struct network_norm *last = &network->decoder[network->config.decoder_layers - 1].norm;
    struct product p = product_normed(flow, &network->output, PRODUCT_LOGITS, last);

    p.x_out = NULL;
    p.active = step->active;
    p.rows = step->rows;
    p.rules = step->rules;
    p.units = step->units;
    p.special = step->special;
    p.logits = step->logits;
    return product_enqueue(&p, flow->n_most, flow->pdl, flow->stream);
}

cudaError_t network_logits(const struct network *network, const struct network_step *step, bool pdl,
                           cudaStream_t stream)
{
    struct network_flow flow = flow_of(network, step->n, step->n_most, &step->space, pdl, stream);

    flow.many = false; /* y is not normed yet */
    return logits_enqueue(network, step, &flow);
}

cudaError_t network_step(const struct network *network, const struct network_step *step, bool pdl,
                         bool chained, cudaStream_t stream)
{
    struct network_flow flow = flow_of(network, step->n, step->n_most, &step->space, pdl, stream);

    flow.beside = step->beside;
    for (int32_t i = 0; i < network->config.decoder_layers; i++)
        CUDA_PASS(step_layer(network, step, &flow, i, chained));
    return logits_enqueue(network, step, &flow);
}

bool network_many(const struct network *network, int32_t n_most)
{
    return product_many(network->format, n_most);
}

struct network_step network_step_part(const struct network *network,
                                      const struct network_step *step, const int32_t *n,
                                      int32_t first, int32_t count)
{
    const struct network_sizes *sizes = &network->sizes;
    const size_t e = (size_t)element_bytes(network->activations), at = (size_t)first;
    const size_t D = (size_t)sizes->width, A = (size_t)sizes->decoder_heads * NETWORK_HEAD;
    struct network_step part = *step;

    part.n = n;
    part.n_most = count;
    part.active += first;
    part.space.x += at * D;
    part.space.y += at * D;
    part.space.q = (char *)part.space.q + at * A * e;
    part.space.o = (char *)part.space.o + at * A * e;
    part.space.n = (char *)part.space.n + at * D * e;
    part.space.h = (char *)part.space.h + at * (size_t)sizes->decoder_ffn * e;
    part.units += at * (size_t)product_units(part.rules.vocabulary);
    part.special += at * 2;
    if (part.logits)
        part.logits += at * (size_t)part.rules.vocabulary;
    return part;
}
