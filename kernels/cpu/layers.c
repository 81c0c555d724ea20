/* SPDX-License-Identifier: MIT */
#include "kernels/cpu/layers.h"

/* From here on work is worth sharing: some microseconds of it. */
enum { MULTIPLY_BYTES = 1 << 19, NORM_ROWS = 16, ENCODE_QUERIES = 8, DECODE_HEADS = 32 };

static const float NORM_EPS = 1e-5f; /* PyTorch's LayerNorm */

static int64_t pages_for(int64_t positions)
{
    return (positions + OPS_PAGE - 1) / OPS_PAGE;
}

/* Takes size bytes from *used, on a cache line of their own. */
static void *carve(char *memory, size_t *used, size_t size)
{
    void *part = memory ? memory + *used : NULL;

    *used += (size + 63) & ~(size_t)63;
    return part;
}

size_t frame_carve(struct frame *frame, const struct weights *w, int32_t max_source,
                   int32_t max_new, char *memory)
{
    int32_t capacity = max_source > FRAME_TOKENS ? max_source : FRAME_TOKENS;
    int32_t positions = max_source > max_new ? max_source : max_new;
    const struct ops_cache encoder = {w->encoder.heads, w->D / w->encoder.heads, false};
    size_t rows = (size_t)capacity, D = (size_t)w->D, V = (size_t)w->V;
    size_t F = (size_t)(w->encoder.ffn > w->decoder.ffn ? w->encoder.ffn : w->decoder.ffn);
    size_t page_count = (size_t)pages_for(max_source), page = ops_layer_bytes(&encoder);
    size_t used = 0;
    char *pages;

    frame->capacity = capacity;
    frame->row_capacity = FRAME_ROWS;
    frame->memory = memory;
    frame->x = carve(memory, &used, rows * D * sizeof(float));
    frame->y = carve(memory, &used, rows * D * sizeof(float));
    frame->qkv = carve(memory, &used, rows * 3 * D * sizeof(float));
    frame->context = carve(memory, &used, rows * D * sizeof(float));
    frame->ffn = carve(memory, &used, rows * F * sizeof(float));
    frame->scores = carve(memory, &used, (size_t)pages_for(positions) * OPS_PAGE * 4);
    frame->logits = carve(memory, &used, FRAME_ROWS * V * sizeof(float));
    frame->processed = carve(memory, &used, V * sizeof(float));
    frame->weights = carve(memory, &used, V * sizeof(float));
    frame->rows = carve(memory, &used, FRAME_ROWS * sizeof *frame->rows);
    frame->sources = carve(memory, &used, rows * sizeof *frame->sources);
    frame->pages = carve(memory, &used, page_count * sizeof *frame->pages);
    pages = carve(memory, &used, page_count * page);
    for (size_t i = 0; memory && i < page_count; i++)
        frame->pages[i] = pages + i * page;
    return used;
}

struct each {
    const struct crew *crew;
    int64_t count;
    void (*work)(void *arg, int64_t begin, int64_t end, struct frame *frame);
    void *arg;
};

static void each_part(void *arg, int32_t part, int32_t parts)
{
    const struct each *each = arg;
    struct threads_range share = threads_share(each->count, 1, part, parts);

    if (share.begin < share.end)
        each->work(each->arg, share.begin, share.end, &each->crew->frames[part]);
}

void crew_each(const struct crew *crew, int64_t count, int64_t enough,
               void (*work)(void *arg, int64_t begin, int64_t end, struct frame *frame), void *arg)
{
    struct each each = {crew, count, work, arg};

    if (crew->threads && count >= enough)
        threads_run(crew->threads, each_part, &each);
    else if (count > 0)
        work(arg, 0, count, &crew->frames[0]);
}

/* y (M,N) = activation(x W^T + b) + add */
static void multiply(const struct crew *crew, const struct product_weight *weight, int32_t M,
                     const float *x, enum product_activation activation, const float *add, float *y)
{
    if (crew->threads && product_bytes(weight) * (size_t)M >= MULTIPLY_BYTES)
        product_run(weight, M, x, activation, add, y, NULL, crew->threads);
    else
        product_columns(weight, M, x, activation, add, y, 0, 1);
}

struct normalise {
    const struct crew *crew;
    const struct weights_norm *norm;
};

static void normalise_rows(void *arg, int64_t begin, int64_t end, struct frame *unused)
{
    const struct normalise *n = arg;
    const struct frame *frame = n->crew->frames;
    int32_t D = n->crew->weights->D;

    (void)unused;
    for (int64_t i = begin; i < end; i++)
        n->crew->ops->norm(D, frame->y + i * D, n->norm->gain, n->norm->bias, NORM_EPS,
                           frame->x + i * D);
}

/* x (M,D) = norm(W input + b + x), the end of every block of a post-norm layer. */
static void residual(const struct crew *crew, const struct product_weight *weight, int32_t M,
                     const float *input, const struct weights_norm *norm)
{
    struct frame *frame = crew->frames;
    struct normalise n = {crew, norm};

    multiply(crew, weight, M, input, PRODUCT_NONE, frame->x, frame->y);
    crew_each(crew, M, NORM_ROWS, normalise_rows, &n);
}

static void feed_forward(const struct crew *crew, const struct weights_layer *layer, int32_t M)
{
    struct frame *frame = crew->frames;

    multiply(crew, layer->fc1, M, frame->x, crew->weights->activation, NULL, frame->ffn);
    residual(crew, layer->fc2, M, frame->ffn, &layer->ffn_norm);
}

/* x = embedding of the token times its scale + the position's vector */
static void embed(const struct crew *crew, const struct weights_side *side, int32_t token,
                  int32_t position, float *x)
{
    const struct weights *w = crew->weights;

    product_row(side->embedding, token, x);
    crew->ops->scale_add(w->D, x, w->embedding_scale, side->positions + (int64_t)position * w->D,
                         x);
}

struct encode_attention {
    const struct crew *crew;
    int32_t first;  /* row of the source in the frame */
    int32_t length; /* its tokens */
};

/* Queries begin..end-1 of one source over all of its keys. */
static void encode_attend(void *arg, int64_t begin, int64_t end, struct frame *work)
{
    const struct encode_attention *e = arg;
    const struct frame *frame = e->crew->frames;
    const struct weights *w = e->crew->weights;
    struct ops_attend a = {.cache = {w->encoder.heads, w->D / w->encoder.heads, false},
                           .pages = frame->pages,
                           .count = e->length,
                           .end = w->encoder.heads,
                           .scores = work->scores};

    for (int64_t i = begin; i < end; i++) {
        a.q = frame->qkv + (e->first + i) * 3 * w->D;
        a.out = frame->context + (e->first + i) * w->D;
        e->crew->ops->attend(&a);
    }
}

static void encode_self_attention(const struct crew *crew, int32_t count)
{
    const struct frame *frame = crew->frames;
    const struct weights *w = crew->weights;
    const struct ops_cache cache = {w->encoder.heads, w->D / w->encoder.heads, false};
    struct encode_attention e = {.crew = crew};

    for (int32_t s = 0; s < count; s++, e.first += e.length) {
        e.length = frame->sources[s].length;
        for (int32_t i = 0; i < e.length; i++) {
            const float *qkv = frame->qkv + (int64_t)(e.first + i) * 3 * w->D;

            crew->ops->keep(&cache, qkv + w->D, qkv + 2 * w->D, frame->pages[i / OPS_PAGE],
                            i % OPS_PAGE);
        }
        crew_each(crew, e.length, ENCODE_QUERIES, encode_attend, &e);
    }
}

void layers_encode(const struct crew *crew, int32_t count)
{
    const struct weights *w = crew->weights;
    struct frame *frame = crew->frames;
    int32_t M = 0;

    for (int32_t s = 0; s < count; s++)
        for (int32_t i = 0; i < frame->sources[s].length; i++)
            embed(crew, &w->encoder, frame->sources[s].tokens[i], i,
                  frame->x + (int64_t)M++ * w->D);
    for (int32_t l = 0; l < w->encoder.layer_count; l++) {
        const struct weights_layer *layer = &w->encoder.layers[l];

        multiply(crew, layer->qkv, M, frame->x, PRODUCT_NONE, NULL, frame->qkv);
        encode_self_attention(crew, count);
        residual(crew, layer->out, M, frame->context, &layer->norm);
        feed_forward(crew, layer, M);
    }
}

void layers_cross(const struct crew *crew, int32_t count)
{
    const struct weights *w = crew->weights;
    const struct frame *frame = crew->frames;
    int32_t M = 0;

    for (int32_t s = 0; s < count; s++)
        M += frame->sources[s].length;
    for (int32_t l = 0; l < w->decoder.layer_count; l++) {
        size_t offset = (size_t)l * ops_layer_bytes(&crew->cache);
        const float *kv = frame->qkv;

        multiply(crew, w->decoder.layers[l].cross_kv, M, frame->x, PRODUCT_NONE, NULL, frame->qkv);
        for (int32_t s = 0; s < count; s++)
            for (int32_t i = 0; i < frame->sources[s].length; i++, kv += 2 * w->D)
                crew->ops->keep(&crew->cache, kv, kv + w->D,
                                frame->sources[s].cross[i / OPS_PAGE] + offset, i % OPS_PAGE);
    }
}

struct decode_attention {
    const struct crew *crew;
    size_t offset; /* of the layer in a page */
    bool cross;
};

/* Units begin..end-1 of rows times heads. */
static void decode_attend(void *arg, int64_t begin, int64_t end, struct frame *work)
{
    const struct decode_attention *d = arg;
    const struct frame *frame = d->crew->frames;
    int32_t D = d->crew->weights->D, heads = d->crew->cache.heads;
    struct ops_attend a = {.cache = d->crew->cache, .offset = d->offset, .scores = work->scores};

    for (int64_t unit = begin; unit < end; unit += a.end - a.first) {
        int64_t i = unit / heads;
        const struct layers_row *row = &frame->rows[i];

        a.first = (int32_t)(unit % heads);
        a.end = end - unit < heads - a.first ? a.first + (int32_t)(end - unit) : heads;
        a.q = frame->qkv + i * (d->cross ? 1 : 3) * D;
        a.out = frame->context + i * D;
        a.pages = d->cross ? row->cross : row->pages;
        a.count = d->cross ? row->cross_count : row->position + 1;
        a.next_pages = NULL;
        if (unit + a.end - a.first < end) {
            a.next_pages = d->cross ? row[1].cross : row[1].pages;
            a.next_count = d->cross ? row[1].cross_count : row[1].position + 1;
        }
        d->crew->ops->attend(&a);
    }
}

static void decode_self_attention(const struct crew *crew, const struct weights_layer *layer,
                                  int32_t M, size_t offset)
{
    struct frame *frame = crew->frames;
    int32_t D = crew->weights->D;
    struct decode_attention d = {crew, offset, false};

    multiply(crew, layer->qkv, M, frame->x, PRODUCT_NONE, NULL, frame->qkv);
    for (int32_t i = 0; i < M; i++) {
        const float *qkv = frame->qkv + (int64_t)i * 3 * D;
        const struct layers_row *row = &frame->rows[i];

        crew->ops->keep(&crew->cache, qkv + D, qkv + 2 * D,
                        row->pages[row->position / OPS_PAGE] + offset, row->position % OPS_PAGE);
    }
    crew_each(crew, (int64_t)M * crew->cache.heads, DECODE_HEADS, decode_attend, &d);
    residual(crew, layer->out, M, frame->context, &layer->norm);
}

static void decode_cross_attention(const struct crew *crew, const struct weights_layer *layer,
                                   int32_t M, size_t offset)
{
    struct frame *frame = crew->frames;
    struct decode_attention d = {crew, offset, true};

    multiply(crew, layer->cross_q, M, frame->x, PRODUCT_NONE, NULL, frame->qkv);
    crew_each(crew, (int64_t)M * crew->cache.heads, DECODE_HEADS, decode_attend, &d);
    residual(crew, layer->cross_out, M, frame->context, &layer->cross_norm);
}

void layers_decode(const struct crew *crew, int32_t count)
{
    const struct weights *w = crew->weights;
    struct frame *frame = crew->frames;

    for (int32_t i = 0; i < count; i++)
        embed(crew, &w->decoder, frame->rows[i].token, frame->rows[i].position,
              frame->x + (int64_t)i * w->D);
    for (int32_t l = 0; l < w->decoder.layer_count; l++) {
        const struct weights_layer *layer = &w->decoder.layers[l];
        size_t offset = (size_t)l * ops_layer_bytes(&crew->cache);

        decode_self_attention(crew, layer, count, offset);
        decode_cross_attention(crew, layer, count, offset);
        feed_forward(crew, layer, count);
    }
}

void layers_logits(const struct crew *crew, int32_t count)
{
    multiply(crew, crew->weights->output, count, crew->frames->x, PRODUCT_NONE, NULL,
             crew->frames->logits);
}
