/* SPDX-License-Identifier: MIT
 *
 * ops_body: the functions of ops.h over lanes.h. Included once by the file of each instruction set,
 * which then defines its table. Sums run as math.h says: 16 lanes, then a tree.
 */
#ifndef PGPT_KERNELS_CPU_OPS_BODY_H
#define PGPT_KERNELS_CPU_OPS_BODY_H

#include "kernels/cpu/lanes.h"
#include "kernels/cpu/ops.h"

static void body_norm(int32_t D, const float *x, const float *gain, const float *bias, float eps,
                      float *y)
{
    struct lanes sum = lanes_all(0.0f), squares = lanes_all(0.0f);
    struct lanes mean, factor;

    for (int32_t i = 0; i < D; i += LANES)
        sum = lanes_add(sum, lanes_load(x + i));
    mean = lanes_all(lanes_sum(sum) / (float)D);
    for (int32_t i = 0; i < D; i += LANES) {
        struct lanes d = lanes_sub(lanes_load(x + i), mean);

        squares = lanes_fma(d, d, squares);
    }
    factor = lanes_all(1.0f / sqrtf(lanes_sum(squares) / (float)D + eps));
    for (int32_t i = 0; i < D; i += LANES) {
        struct lanes d = lanes_mul(lanes_sub(lanes_load(x + i), mean), factor);

        lanes_store(y + i, lanes_fma(d, lanes_load(gain + i), lanes_load(bias + i)));
    }
}

static void body_scale_add(int32_t D, const float *x, float scale, const float *add, float *y)
{
    struct lanes factor = lanes_all(scale);

    for (int32_t i = 0; i < D; i += LANES)
        lanes_store(y + i, lanes_add(lanes_mul(lanes_load(x + i), factor), lanes_load(add + i)));
}

static void body_keep(const struct ops_cache *cache, const float *k, const float *v, char *layer,
                      int32_t at)
{
    const int32_t dh = cache->dh;

    for (int32_t h = 0; h < cache->heads; h++, k += dh, v += dh) {
        char *head = layer + (size_t)h * ops_head_bytes(cache);

        if (cache->half) {
            uint16_t *keys = (uint16_t *)head, *values = keys + dh * OPS_PAGE + at * dh;

            for (int32_t d = 0; d < dh; d += LANES) {
                uint16_t halves[LANES];

                lanes_to_half(halves, lanes_load(k + d));
                for (int32_t i = 0; i < LANES; i++)
                    keys[(d + i) * OPS_PAGE + at] = halves[i];
                lanes_to_half(values + d, lanes_load(v + d));
            }
        } else {
            float *keys = (float *)head, *values = keys + dh * OPS_PAGE + at * dh;

            for (int32_t d = 0; d < dh; d++)
                keys[d * OPS_PAGE + at] = k[d];
            memcpy(values, v, (size_t)dh * sizeof *v);
        }
    }
}

LANES_INLINE struct lanes cache_load(const char *from, int32_t at, const bool half)
{
    return half ? lanes_load_half((const uint16_t *)from + at)
                : lanes_load((const float *)from + at);
}

/* q . k for the 16 positions of a page: four sums over dimensions d mod 4, added in pairs. */
LANES_INLINE struct lanes page_scores(const float *q, const char *keys, const int32_t dh,
                                      const bool half)
{
    struct lanes sum[4] = {lanes_all(0.0f), lanes_all(0.0f), lanes_all(0.0f), lanes_all(0.0f)};

    for (int32_t d = 0; d < dh; d += 4)
#pragma GCC unroll 4
        for (int32_t i = 0; i < 4; i++)
            sum[i] =
                lanes_fma(lanes_all(q[d + i]), cache_load(keys, (d + i) * OPS_PAGE, half), sum[i]);
    return lanes_add(lanes_add(sum[0], sum[1]), lanes_add(sum[2], sum[3]));
}

/* scores (count rounded up) = e^(q . k - max), 0 past count; returns their sum. */
LANES_INLINE float head_weights(const struct ops_attend *a, int32_t head, const int32_t dh,
                                const bool half)
{
    struct lanes most = lanes_all(-INFINITY), sum = lanes_all(0.0f);
    size_t offset = a->offset + (size_t)head * ops_head_bytes(&a->cache);
    float top;

    for (int32_t t = 0; t < a->count; t += OPS_PAGE) {
        struct lanes s = page_scores(a->q + head * dh, a->pages[t / OPS_PAGE] + offset, dh, half);

        lanes_store(a->scores + t, s);
        s = lanes_load_some(a->scores + t, a->count - t, -INFINITY);
        lanes_store(a->scores + t, s);
        most = lanes_max(most, s);
    }
    top = lanes_top(most);
    for (int32_t t = 0; t < a->count; t += OPS_PAGE) {
        struct lanes e = lanes_exp(lanes_sub(lanes_load(a->scores + t), lanes_all(top)));

        lanes_store(a->scores + t, e);
        sum = lanes_add(sum, e);
    }
    return lanes_sum(sum);
}

LANES_INLINE void values_add(struct lanes *sum, float weight, const char *values, int32_t at,
                             const int blocks, const bool half)
{
    struct lanes factor = lanes_all(weight);

#pragma GCC unroll 4
    for (int j = 0; j < blocks; j++)
        sum[j] = lanes_fma(factor, cache_load(values, at + j * LANES, half), sum[j]);
}

/* out[d..d+16 blocks-1] = sum of weights times values, even and odd positions apart. */
LANES_INLINE void head_values(const struct ops_attend *a, int32_t head, int32_t d, float factor,
                              const int32_t dh, const int blocks, const bool half)
{
    size_t offset = a->offset + (size_t)head * ops_head_bytes(&a->cache) +
                    (size_t)dh * OPS_PAGE * (half ? 2 : 4);
    struct lanes sum[2][4];

#pragma GCC unroll 4
    for (int j = 0; j < blocks; j++)
        sum[0][j] = sum[1][j] = lanes_all(0.0f);
    for (int32_t t = 0; t < a->count; t += OPS_PAGE) {
        const char *values = a->pages[t / OPS_PAGE] + offset;
        int32_t count = a->count - t < OPS_PAGE ? a->count - t : OPS_PAGE;

        for (int32_t i = 0; i + 1 < count; i += 2) {
            values_add(sum[0], a->scores[t + i], values, i * dh + d, blocks, half);
            values_add(sum[1], a->scores[t + i + 1], values, (i + 1) * dh + d, blocks, half);
        }
        if (count & 1)
            values_add(sum[0], a->scores[t + count - 1], values, (count - 1) * dh + d, blocks,
                       half);
    }
#pragma GCC unroll 4
    for (int j = 0; j < blocks; j++)
        lanes_store(a->out + head * dh + d + j * LANES,
                    lanes_mul(lanes_add(sum[0][j], sum[1][j]), lanes_all(factor)));
}

/* Asks for what a head will read of its pages: they come from a cache far away. */
LANES_INLINE void head_ahead(const struct ops_attend *a, char *const *pages, int32_t count,
                             int32_t head, const int32_t dh, const bool half)
{
    const size_t offset = a->offset + (size_t)head * ops_head_bytes(&a->cache);
    const size_t keys = ops_head_bytes(&a->cache) / 2, value = (size_t)dh * (half ? 2 : 4);

    for (int32_t t = 0; t < count; t += OPS_PAGE) {
        const char *page = pages[t / OPS_PAGE] + offset;
        size_t filled = (size_t)(count - t < OPS_PAGE ? count - t : OPS_PAGE);

        for (size_t i = 0; i < keys + filled * value; i += 64)
            __builtin_prefetch(page + i);
    }
}

LANES_INLINE void heads_attend(const struct ops_attend *a, const int32_t dh, const bool half)
{
    for (int32_t h = a->first; h < a->end; h++) {
        float factor;

        if (half && h + 1 < a->end)
            head_ahead(a, a->pages, a->count, h + 1, dh, half);
        else if (half && a->next_pages)
            head_ahead(a, a->next_pages, a->next_count, 0, dh, half);
        factor = 1.0f / head_weights(a, h, dh, half);

        if (dh == 64) {
            head_values(a, h, 0, factor, dh, 4, half);
            continue;
        }
        for (int32_t d = 0; d < dh; d += LANES)
            head_values(a, h, d, factor, dh, 1, half);
    }
}

static void body_attend(const struct ops_attend *a)
{
    if (a->cache.dh == 64 && a->cache.half)
        heads_attend(a, 64, true);
    else if (a->cache.dh == 64)
        heads_attend(a, 64, false);
    else
        heads_attend(a, a->cache.dh, a->cache.half);
}

static float body_top(int32_t V, const float *x, int32_t *index)
{
    struct lanes most = lanes_all(-INFINITY);
    float top;

    for (int32_t i = 0; i < V; i += LANES)
        most = lanes_max(lanes_load_some(x + i, V - i, -INFINITY), most);
    top = lanes_top(most);
    *index = 0;
    for (int32_t i = 0; i < V; i += LANES) {
        int lane = lanes_find(lanes_load_some(x + i, V - i, -INFINITY), top);

        if (lane >= 0 && i + lane < V) {
            *index = i + lane;
            break;
        }
    }
    return top;
}

static float body_sum_exp(int32_t V, const float *x, float most, float *weights)
{
    struct lanes sum = lanes_all(0.0f);

    for (int32_t i = 0; i < V; i += LANES) {
        struct lanes e =
            lanes_exp(lanes_sub(lanes_load_some(x + i, V - i, -INFINITY), lanes_all(most)));

        sum = lanes_add(sum, e);
        if (weights && V - i >= LANES) {
            lanes_store(weights + i, e);
        } else if (weights) {
            float last[LANES];

            lanes_store(last, e);
            memcpy(weights + i, last, (size_t)(V - i) * sizeof *last);
        }
    }
    return lanes_sum(sum);
}

#define OPS_TABLE                                                                                  \
    {                                                                                              \
        body_norm, body_scale_add, body_keep, body_attend, body_top, body_sum_exp                  \
    }

#endif
