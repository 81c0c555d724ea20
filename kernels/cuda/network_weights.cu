/* SPDX-License-Identifier: MIT */
#include "kernels/cuda/network_weights.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/cuda/check.h"
#include "kernels/cuda/product_stream.h"

/* Device memory that lives as long as the network. */
static void *network_reserve(struct network *network, size_t bytes, struct error *error)
{
    void *device = NULL;
    cudaError_t status;

    if (network->owned_count == NETWORK_OWNED_MOST) {
        error_set(error, "CUDA: the model has more than %d tensors", (int)NETWORK_OWNED_MOST);
        return NULL;
    }
    status = cudaMalloc(&device, bytes);
    if (status != cudaSuccess) {
        size_t free_bytes = 0, total = 0;

        (void)cudaMemGetInfo(&free_bytes, &total);
        error_set(error, "CUDA: weights: %zu bytes: %s; %zu of %zu bytes of the device are free",
                  bytes, cudaGetErrorString(status), free_bytes, total);
        return NULL;
    }
    network->owned[network->owned_count++] = device;
    network->bytes += bytes;
    return device;
}

/* The same, filled from `data`. */
static void *network_upload(struct network *network, const void *data, size_t bytes,
                            struct error *error)
{
    void *device = network_reserve(network, bytes, error);

    if (!device)
        return NULL;
    CUDA_TRY(cudaMemcpy(device, data, bytes, cudaMemcpyHostToDevice), error, fail);
    return device;
fail:
    return NULL;
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

/* A product's weights once more, as its kernel of many rows reads them. */
static int weight_tile(struct network *network, struct cuda_weight *weight, struct error *error)
{
    const size_t bytes = stream_tiled_bytes(weight);

    if (!bytes)
        return 0;
    weight->tiled = network_reserve(network, bytes, error);
    if (!weight->tiled)
        return -1;
    CUDA_TRY(stream_tile(weight), error, fail);
    CUDA_TRY(cudaStreamSynchronize(0), error, fail);
    return 0;
fail:
    return -1;
}

/* Where a side of a weight goes when it is filled up: `heads` heads of `each` (0: all in a row), of
 * which each begins NETWORK_HEAD after the last; `size` with all that fills it up. */
struct side {
    int32_t heads, each, size;
};

static int32_t side_at(const struct side *side, int32_t i)
{
    return side->heads ? i / side->each * NETWORK_HEAD + i % side->each : i;
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
    const struct side attention = {heads, config->d_model / heads, filled * NETWORK_HEAD};
    /* kernels divide scores by the root of NETWORK_HEAD, not of the model's */
    const float factor = sqrtf((float)NETWORK_HEAD / (float)attention.each);

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
            norm_upload(network, &layer->cross.norm, &out->cross_norm, error) ||
            weight_tile(network, &out->qkv, error))
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
    if (weight_tile(network, &network->output, error))
        return -1;
    if (positions_upload(network, model, true, &network->decoder_positions, error))
        return -1;
    if (!model->encoder_positions.data && !model->decoder_positions.data) {
        network->encoder_positions = network->decoder_positions;
        return 0;
    }
    return positions_upload(network, model, false, &network->encoder_positions, error);
}

int network_weights_upload(struct network *network, const struct model *model,
                           enum cuda_format tables, struct error *error)
{
    if (tables_upload(network, model, tables, error))
        return -1;
    for (int32_t i = 0; i < network->config.encoder_layers; i++)
        if (layer_upload(network, &model->encoder[i], false, &network->encoder[i], error))
            return -1;
    for (int32_t i = 0; i < network->config.decoder_layers; i++)
        if (layer_upload(network, &model->decoder[i], true, &network->decoder[i], error))
            return -1;
    return 0;
}
