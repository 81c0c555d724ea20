/* SPDX-License-Identifier: MIT
 *
 * weights: a model packed for the CPU back end: products in the chosen format, norms and positions
 * in float32. Immutable after weights_create(): every thread reads the same copy.
 */
#ifndef PGPT_KERNELS_CPU_WEIGHTS_H
#define PGPT_KERNELS_CPU_WEIGHTS_H

#include "kernels/cpu/product.h"
#include "kernels/model/model.h"

enum weights_format {
    WEIGHTS_FP32,
    WEIGHTS_INT8,    /* embeddings and all products in int8 */
    WEIGHTS_DYNAMIC, /* attention and feed-forward in int8, embeddings and output in float32 */
};

struct weights_norm {
    float *gain, *bias; /* (D) each */
};

struct weights_layer {
    struct product_weight *qkv; /* (3 D, D) queries, keys, values; queries carry 1 / sqrt(dh) */
    struct product_weight *out; /* (D, D) */
    struct weights_norm norm;
    struct product_weight *cross_q;  /* (D, D), scaled too; this and the next three: decoder only */
    struct product_weight *cross_kv; /* (2 D, D) of the encoder's output */
    struct product_weight *cross_out; /* (D, D) */
    struct weights_norm cross_norm;
    struct product_weight *fc1; /* (F, D) */
    struct product_weight *fc2; /* (D, F) */
    struct weights_norm ffn_norm;
};

struct weights_side { /* encoder or decoder */
    int32_t layer_count, heads, ffn;
    struct weights_layer *layers;
    struct product_weight *embedding; /* (V, D); rows are read, products made when tied */
    float *positions;                 /* (P, D) */
};

struct weights {
    int32_t D, V, P;
    float embedding_scale;
    enum product_activation activation;
    struct weights_side encoder, decoder; /* one embedding when shared */
    struct product_weight *output;        /* (V, D) with the logits' bias; may be an embedding */
    size_t bytes;                         /* resident */
};

struct weights *weights_create(const struct model *model, enum weights_format format,
                               struct error *error) PGPT_MUST_CHECK;
void weights_destroy(struct weights *weights); /* NULL is allowed */

#endif
