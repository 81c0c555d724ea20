/* SPDX-License-Identifier: MIT */
#include "kernels/cuda/network.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/cuda/attention.h"
#include "kernels/cuda/check.h"

enum { OWNED_MOST = 4096, HEAD_WIDTH = 64, HEADS_UNIT = PRODUCT_INPUTS / HEAD_WIDTH };

static int element_bytes(enum cuda_format activations)
{
    return activations == CUDA_F32 ? 4 : 2;
}

/* Device memory that lives as long as the network, filled from `data`. */
static void *network_upload(struct network *network, const void *data, size_t bytes,
                            struct error *error)
{
    void *device = NULL;
    cudaError_t status;

    if (network->owned_count == OWNED_MOST) {
        error_set(error, "CUDA: the model has more than %d tensors", (int)OWNED_MOST);
        return NULL;
    }
    status = cudaMalloc(&device, bytes);
    if (status == cudaSuccess)
        status = cudaMemcpy(device, data, bytes, cudaMemcpyHostToDevice);
    if (status != cudaSuccess) {
        size_t free_bytes = 0, total = 0;

        (void)cudaMemGetInfo(&free_bytes, &total);
        error_set(error, "CUDA: weights: %zu bytes: %s; %zu of %zu bytes of the device are free",
                  bytes, cudaGetErrorString(status), free_bytes, total);
        (void)cudaFree(device);
        return NULL;
    }
    network->owned[network->owned_count++] = device;
    network->bytes += bytes;
    return device;
}

/* Where column n, input k lies in a packed weight, in units of `per` inputs a block: see
 * format.cuh. */
static size_t packed_at(int32_t n, int32_t k, int32_t K, int32_t per)
{
    int32_t column = n % 16, word = per / 16; /* inputs in 4 bytes: 2 or 4 */
    int32_t half = k % per / (per / 2), in = k % (per / 2);
    int32_t late = in / (per / 4), q = in % (per / 4) / word;

    return ((size_t)(n / 16) * (size_t)(K / per) + (size_t)(k / per)) * (size_t)(16 * per) +
           (size_t)((half * 32 + column % 8 * 4 + q) * 4 + late * 2 + column / 8) * (size_t)word +
           (size_t)(in % word);
}

static void pack_float(const float *weight, int32_t N, int32_t K, enum cuda_format format,
                       void *packed)
{
    int32_t padded = product_padded(N);

    for (int32_t n = 0; n < padded; n++)
        for (int32_t k = 0; k < K; k++) {
            float value = n < N ? weight[(size_t)n * K + k] : 0.0f;

            if (format == CUDA_F32)
                ((float *)packed)[((size_t)(n / 16) * (size_t)(K / 4) + (size_t)(k / 4)) * 64 +
                                  (size_t)(n % 16 * 4 + k % 4)] = value;
            else if (format == CUDA_F16)
                ((__half *)packed)[packed_at(n, k, K, 32)] = __float2half_rn(value);
            else
                ((__nv_bfloat16 *)packed)[packed_at(n, k, K, 32)] = __float2bfloat16_rn(value);
        }
}

static void pack_int8(const float *weight, int32_t N, int32_t K, int8_t *packed, float *scale)
{
    for (int32_t n = 0; n < product_padded(N); n++) {
        float most = 0.0f, inverse;

        for (int32_t k = 0; n < N && k < K; k++)
            most = fmaxf(most, fabsf(weight[(size_t)n * K + k]));
        scale[n] = most / 127.0f;
        inverse = most > 0.0f ? 127.0f / most : 0.0f;
        for (int32_t k = 0; k < K; k++)
            packed[packed_at(n, k, K, 64)] =
                n < N ? (int8_t)rintf(weight[(size_t)n * K + k] * inverse) : 0;
    }
}

/* weight (N,K), bias (N) or NULL, both float on the host. */
static int weight_upload(struct network *network, const float *weight, const float *bias, int32_t N,
                         int32_t K, enum cuda_format format, struct cuda_weight *out,
                         struct error *error)
{
    int32_t padded = product_padded(N);
    size_t bytes = (size_t)padded * K * (format == CUDA_F32 ? 4 : format == CUDA_INT8 ? 1 : 2);
    char *packed = (char *)malloc(bytes);
    float *row = (float *)calloc((size_t)padded, sizeof *row);
    int result = -1;

    memset(out, 0, sizeof *out);
    out->format = format;
    out->N = N;
    out->K = K;
    if (!packed || !row) {
        error_set(error, "out of memory packing a weight of %d x %d", N, K);
        goto out;
    }
    if (format == CUDA_INT8) {
        pack_int8(weight, N, K, (int8_t *)packed, row);
        out->scale = (float *)network_upload(network, row, (size_t)padded * sizeof *row, error);
        if (!out->scale)
            goto out;
    } else {
        pack_float(weight, N, K, format, packed);
    }
    memset(row, 0, (size_t)padded * sizeof *row);
    if (bias)
        memcpy(row, bias, (size_t)N * sizeof *row);
    out->packed = network_upload(network, packed, bytes, error);
    if (!out->packed)
        goto out;
    out->bias = (float *)network_upload(network, row, (size_t)padded * sizeof *row, error);
    result = out->bias ? 0 : -1;
out:
    free(packed);
    free(row);
    return result;
}

/* Where a side of a weight goes when it is filled up: `heads` heads of `each` (0: all in a row), of
 * which each begins HEAD_WIDTH after the last; `size` with all that fills it up. */
struct side {
    int32_t heads, each, size;
};

static int32_t side_at(const struct side *side, int32_t i)
{
    return side->heads ? i / side->each * HEAD_WIDTH + i % side->each : i;
}

/* A linear layer's place in a weight (rows.size, columns.size) and its bias. */
static int linear_place(const struct model_linear *linear, const struct side *rows,
                        const struct side *columns, float factor, float *weight, float *bias,
                        struct error *error)
{
    int32_t N = (int32_t)linear->weight.rows, K = (int32_t)linear->weight.cols;
    float *from = (float *)malloc(((size_t)N * K + (size_t)N) * sizeof *from);

    if (!from)
        return error_set(error, "out of memory reading a weight of %d x %d", N, K);
    model_tensor_f32(&linear->weight, from);
    model_tensor_f32(&linear->bias, from + (size_t)N * K);
    for (int32_t n = 0; n < N; n++) {
        float *to = weight + (size_t)side_at(rows, n) * columns->size;

        for (int32_t k = 0; k < K; k++)
            to[side_at(columns, k)] = from[(size_t)n * K + k] * factor;
        bias[side_at(rows, n)] = from[(size_t)N * K + n] * factor;
    }
    free(from);
    return 0;
}

/* Up to three linear layers of the same input, one after the other in the output columns; the
 * first one's output times `factor`. */
static int linear_upload(struct network *network, const struct model_linear *const *parts,
                         int count, const struct side *rows, const struct side *columns,
                         float factor, struct cuda_weight *out, struct error *error)
{
    int32_t N = count * rows->size, K = columns->size;
    float *weight = (float *)calloc((size_t)N * K, sizeof *weight);
    float *bias = (float *)calloc((size_t)N, sizeof *bias);
    int result = -1;

    if (!weight || !bias) {
        error_set(error, "out of memory reading a weight of %d x %d", N, K);
        goto out;
    }
    for (int i = 0; i < count; i++)
        if (linear_place(parts[i], rows, columns, i ? 1.0f : factor,
                         weight + (size_t)i * rows->size * K, bias + i * rows->size, error))
            goto out;
    result = weight_upload(network, weight, bias, N, K, network->format, out, error);
out:
    free(weight);
    free(bias);
    return result;
}

/* A row of numbers, filled up to `size`. */
static int tensor_upload(struct network *network, const struct model_tensor *tensor, int32_t size,
                         float **out, struct error *error)
{
    float *values = (float *)calloc((size_t)size, sizeof *values);

    if (!values)
        return error_set(error, "out of memory reading a tensor of %d values", size);
    model_tensor_f32(tensor, values);
    *out = (float *)network_upload(network, values, (size_t)size * sizeof *values, error);
    free(values);
    return *out ? 0 : -1;
}

static int norm_upload(struct network *network, const struct model_norm *norm,
                       struct network_norm *out, struct error *error)
{
    if (tensor_upload(network, &norm->weight, network->sizes.width, &out->gamma, error))
        return -1;
    return tensor_upload(network, &norm->bias, network->sizes.width, &out->beta, error);
}

static int layer_upload(struct network *network, const struct model_layer *layer, bool decoder,
                        struct network_layer *out, struct error *error)
{
    const struct model_linear *qkv[] = {&layer->self.q, &layer->self.k, &layer->self.v};
    const struct model_linear *self_out[] = {&layer->self.out}, *fc1[] = {&layer->fc1};
    const struct model_linear *fc2[] = {&layer->fc2};
    const struct model_config *config = &network->config;
    const struct network_sizes *sizes = &network->sizes;
    const int32_t heads = decoder ? config->decoder_heads : config->encoder_heads;
    const int32_t filled = decoder ? sizes->decoder_heads : sizes->encoder_heads;
    const struct side width = {0, 0, sizes->width};
    const struct side ffn = {0, 0, decoder ? sizes->decoder_ffn : sizes->encoder_ffn};
    const struct side attention = {heads, config->d_model / heads, filled * HEAD_WIDTH};
    /* kernels divide scores by the root of HEAD_WIDTH, not of the model's */
    const float factor = sqrtf((float)HEAD_WIDTH / (float)attention.each);

    if (linear_upload(network, qkv, 3, &attention, &width, factor, &out->qkv, error) ||
        linear_upload(network, self_out, 1, &width, &attention, 1.0f, &out->out, error) ||
        norm_upload(network, &layer->self.norm, &out->self_norm, error) ||
        linear_upload(network, fc1, 1, &ffn, &width, 1.0f, &out->fc1, error) ||
        linear_upload(network, fc2, 1, &width, &ffn, 1.0f, &out->fc2, error) ||
        norm_upload(network, &layer->norm, &out->norm, error))
        return -1;
    if (decoder) {
        const struct model_linear *q[] = {&layer->cross.q}, *o[] = {&layer->cross.out};
        const struct model_linear *kv[] = {&layer->cross.k, &layer->cross.v};

        if (linear_upload(network, q, 1, &attention, &width, factor, &out->cross_q, error) ||
            linear_upload(network, kv, 2, &attention, &width, 1.0f, &out->cross_kv, error) ||
            linear_upload(network, o, 1, &width, &attention, 1.0f, &out->cross_out, error) ||
            norm_upload(network, &layer->cross.norm, &out->cross_norm, error))
            return -1;
    }
    return 0;
}

/* Rows of `K` values, one behind the other, to `width` from one to the next; zeros in between. */
static void rows_spread(float *rows, int32_t count, int32_t K, int32_t width)
{
    for (int32_t i = count - 1; i > 0 && K < width; i--) {
        memmove(rows + (size_t)i * width, rows + (size_t)i * K, (size_t)K * sizeof *rows);
        memset(rows + (size_t)i * width - (width - K), 0, (size_t)(width - K) * sizeof *rows);
    }
}

static int embedding_upload(struct network *network, const struct model_tensor *tensor,
                            const struct model_tensor *bias, enum cuda_format format,
                            struct cuda_weight *out, struct error *error)
{
    int32_t V = (int32_t)tensor->rows, K = (int32_t)tensor->cols, width = network->sizes.width;
    float *weight = (float *)calloc((size_t)V * width, sizeof *weight);
    float *add = bias && bias->data ? (float *)malloc((size_t)tensor->rows * sizeof *add) : NULL;
    int result = -1;

    if (!weight || (bias && bias->data && !add)) {
        error_set(error, "out of memory reading embeddings of %d x %d", V, width);
        goto out;
    }
    model_tensor_f32(tensor, weight);
    rows_spread(weight, V, K, width);
    if (add)
        model_tensor_f32(bias, add);
    result = weight_upload(network, weight, add, V, width, format, out, error);
out:
    free(weight);
    free(add);
    return result;
}

static int positions_upload(struct network *network, const struct model *model, bool decoder,
                            float **out, struct error *error)
{
    const struct model_config *config = &model->config;
    size_t width = (size_t)network->sizes.width, count = (size_t)config->positions * width;
    float *table = (float *)calloc(count, sizeof *table);

    if (!table)
        return error_set(error, "out of memory making %d positions", config->positions);
    for (int32_t i = 0; i < config->positions; i++)
        model_position_f32(model, decoder, i, table + (size_t)i * width);
    *out = (float *)network_upload(network, table, count * sizeof *table, error);
    free(table);
    return *out ? 0 : -1;
}

/* Embeddings are read from the output product's packed weights where the model ties them. */
static int tables_upload(struct network *network, const struct model *model,
                         enum cuda_format format, struct error *error)
{
    if (embedding_upload(network, &model->output, &model->logits_bias, format, &network->output,
                         error))
        return -1;
    if (model->decoder_embedding.data == model->output.data)
        network->decoder_embedding = network->output;
    else if (embedding_upload(network, &model->decoder_embedding, NULL, format,
                              &network->decoder_embedding, error))
        return -1;
    if (model->encoder_embedding.data == model->decoder_embedding.data)
        network->encoder_embedding = network->decoder_embedding;
    else if (embedding_upload(network, &model->encoder_embedding, NULL, format,
                              &network->encoder_embedding, error))
        return -1;
    if (positions_upload(network, model, true, &network->decoder_positions, error))
        return -1;
    if (!model->encoder_positions.data && !model->decoder_positions.data) {
        network->encoder_positions = network->decoder_positions;
        return 0;
    }
    return positions_upload(network, model, false, &network->encoder_positions, error);
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

    if (encoder_each > HEAD_WIDTH || decoder_each > HEAD_WIDTH)
        return error_set(error,
                         "CUDA: d_model %d with %d and %d heads: attention's kernels hold heads of "
                         "up to %d dimensions in registers; run this model on the CPU",
                         config->d_model, config->encoder_heads, config->decoder_heads, HEAD_WIDTH);
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
    network->owned = (void **)calloc(OWNED_MOST, sizeof *network->owned);
    network->encoder =
        (struct network_layer *)calloc((size_t)config->encoder_layers, sizeof *network->encoder);
    network->decoder =
        (struct network_layer *)calloc((size_t)config->decoder_layers, sizeof *network->decoder);
    if (!network->owned || !network->encoder || !network->decoder) {
        error_set(error, "out of memory");
        goto fail;
    }
    if (format_parse(network, compute, &tables, error) || sizes_fill(network, error) ||
        tables_upload(network, model, tables, error))
        goto fail;
    for (int32_t i = 0; i < config->encoder_layers; i++)
        if (layer_upload(network, &model->encoder[i], false, &network->encoder[i], error))
            goto fail;
    for (int32_t i = 0; i < config->decoder_layers; i++)
        if (layer_upload(network, &model->decoder[i], true, &network->decoder[i], error))
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
    size_t A = (size_t)(encoder ? sizes->encoder_heads : sizes->decoder_heads) * HEAD_WIDTH;
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
    bool pdl;
    cudaStream_t stream;
};

static struct network_flow flow_of(const struct network *network, const int32_t *n, int32_t n_most,
                                   const struct network_space *space, bool pdl, cudaStream_t stream)
{
    struct network_flow flow = {
        n,   n_most, network->config.d_model, space, product_many(network->format, n_most),
        pdl, stream};

    return flow;
}

/* A product of normed rows, which are kept as x for the next residual. */
static struct product product_normed(const struct network_flow *flow,
                                     const struct cuda_weight *weight, enum product_output output,
                                     const struct network_norm *norm)
{
    struct product p = product_of(flow->n, weight, PRODUCT_NORM, output);

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
                           bool output, cudaStream_t stream)
{
    const struct model_config *config = &network->config;
    struct network_flow flow =
        flow_of(network, sources->n, sources->token_count, space, false, stream);
    const struct network_norm *last = NULL;

    for (int32_t i = 0; i < config->encoder_layers; i++) {
        const struct network_layer *layer = &network->encoder[i];

        if (i) {
            struct product p = product_normed(&flow, &layer->qkv, PRODUCT_PLAIN, last);

            p.out = space->q;
            CUDA_PASS(product_enqueue(&p, flow.n_most, false, stream));
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
        p.cache_positions = cross->positions;
        CUDA_PASS(product_enqueue(&p, flow.n_most, false, stream));
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
    a.cross = cross;
    a.heads = network->sizes.decoder_heads;
    a.cache_positions = cache->positions;
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
    qkv.cache_positions = step->self.positions;
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

    for (int32_t i = 0; i < network->config.decoder_layers; i++)
        CUDA_PASS(step_layer(network, step, &flow, i, chained));
    return logits_enqueue(network, step, &flow);
}
