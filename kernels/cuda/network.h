/* SPDX-License-Identifier: MIT
 *
 * network: a Marian model's weights on a device, and the order in which products and attentions run
 * for sources (encode) and for one decode step. It owns the weights alone: buffers, caches and rows
 * come with each call. Enqueues only, but for opening.
 */
#ifndef PGPT_KERNELS_CUDA_NETWORK_H
#define PGPT_KERNELS_CUDA_NETWORK_H

#include "kernels/cuda/product.h"
#include "kernels/model/model.h"

/* What the kernels compute with: the model's sizes, each filled up with zeros to a whole multiple
 * of PRODUCT_INPUTS and heads to 64 dimensions. Zeros go through products, attention and
 * activations as zeros, and norms leave them out (struct product, width), so results are the
 * model's. */
struct network_sizes {
    int32_t width;                        /* D below */
    int32_t encoder_heads, decoder_heads; /* of 64 dimensions; 64 times as many are A below */
    int32_t encoder_ffn, decoder_ffn;     /* F below */
};

struct network_norm {
    float *gamma, *beta; /* (D) */
};

struct network_layer {
    struct cuda_weight qkv; /* (3 A, D) self-attention */
    struct cuda_weight out; /* (D, A) */
    struct network_norm self_norm;
    struct cuda_weight cross_q;   /* decoder only (A, D) */
    struct cuda_weight cross_kv;  /* (2 A, D), of the encoder's output */
    struct cuda_weight cross_out; /* (D, A) */
    struct network_norm cross_norm;
    struct cuda_weight fc1, fc2; /* (F, D), (D, F) */
    struct network_norm norm;
};

struct network {
    struct model_config config; /* the model's own sizes; the lists inside belong to the model */
    struct network_sizes sizes;
    enum cuda_format format; /* of the layers' products */
    enum cuda_format
        activations; /* element type between kernels: CUDA_F32, CUDA_F16 or CUDA_BF16 */
    struct network_layer *encoder, *decoder;
    struct cuda_weight encoder_embedding, decoder_embedding,
        output;                                   /* (V, D); may be one and the same */
    float *encoder_positions, *decoder_positions; /* (positions, D) */
    float embedding_factor;
    enum product_act activation;
    uint64_t bytes; /* of device memory */
    void **owned;   /* device allocations */
    size_t owned_count;
};

/* Work space of `tokens` packed source tokens or rows. Elements unless said otherwise. */
struct network_space {
    float *x, *y; /* (tokens, D) residual stream: normed, and not yet */
    void *q;      /* (tokens, A); the encoder: (tokens, 3 A) */
    void *o;      /* (tokens, A) attention's output */
    void *n;      /* (tokens, D) x as elements: many rows' normed input of the next product */
    void *h;      /* (tokens, F) */
};
size_t network_space_bytes(const struct network *network, int32_t tokens, bool encoder);
void network_space_carve(const struct network *network, int32_t tokens, bool encoder, char *memory,
                         struct network_space *space);

/* One layer's cache starts `layer` strides after the first. */
struct network_cache {
    char *k, *v;         /* (layers, chunks, max_rows, heads, 32, 64): cache.cuh */
    size_t layer_stride; /* bytes */
    /* int8: (layers, chunks, max_rows, heads, 32, 2); else NULL, and a stride of 0 */
    __nv_bfloat16 *k_scales, *v_scales;
    size_t scale_stride;   /* of a layer, in scales */
    uint32_t chunk_places; /* of a chunk of all rows: max_rows * heads * 32 */
};

/* Packed sources on the device. */
struct network_sources {
    const int32_t *n;                    /* tokens, in device memory */
    const int32_t *tokens;               /* (n) */
    const int32_t *positions;            /* (n) in their source */
    const int32_t *rows;                 /* (n) whose cross cache they fill */
    const int32_t *starts;               /* (count + 1) */
    int32_t token_count, count, longest; /* the same on the host */
};

struct network_step {
    const int32_t *n;      /* device */
    const int32_t *active; /* (n) */
    int32_t n_most;
    struct cuda_rows rows;
    struct cuda_rules rules;
    struct network_space space;
    struct network_cache self, cross;
    struct product_unit *units; /* (n_most, units) */
    float *special;             /* (n_most, 2) */
    float *logits;              /* (n_most, V) or NULL */
    bool beside;                /* other steps run beside it: kernels leave room for theirs */
};

/* compute: "fp32", "fp16", "bf16", "int8", "dynamic". NULL with the reason, also for sizes that the
 * kernels do not take. */
struct network *network_open(const struct model *model, const char *compute,
                             struct error *error) PGPT_MUST_CHECK;
void network_close(struct network *network); /* NULL is allowed */

/* output: the encoder's output (tokens, D) float lies in space->x afterwards. pdl: as below. */
cudaError_t network_encode(const struct network *network, const struct network_sources *sources,
                           const struct network_space *space, const struct network_cache *cross,
                           bool output, bool pdl, cudaStream_t stream);
/* Everything up to the logits' units. pdl: chain the kernels (the first never starts early unless
 * chained says that a kernel of the same chain stands in front). */
cudaError_t network_step(const struct network *network, const struct network_step *step, bool pdl,
                         bool chained, cudaStream_t stream);
/* Do steps of so many rows run as kernels of many rows (product_many)? */
bool network_many(const struct network *network, int32_t n_most);
/* Of a step's rows `count` at most, from `first` on: n says how many there are. */
struct network_step network_step_part(const struct network *network,
                                      const struct network_step *step, const int32_t *n,
                                      int32_t first, int32_t count);
/* Its last part: from space.y, the last layer's output before its norm, to the logits' units. */
cudaError_t network_logits(const struct network *network, const struct network_step *step, bool pdl,
                           cudaStream_t stream);

#endif
