/* SPDX-License-Identifier: MIT
 *
 * fused_model: a decoder as the fused kernels take it among their parameters, and the host's side
 * of filling them from a network and a step. Weights stay the network's. Any thread.
 */
#ifndef PGPT_KERNELS_CUDA_FUSED_MODEL_CUH
#define PGPT_KERNELS_CUDA_FUSED_MODEL_CUH

#include <string.h>

#include "kernels/cuda/network.h"

struct fused_weight {
    const char *packed;
    const float *bias;
};

struct fused_layer {
    struct fused_weight qkv, out, cross_q, cross_out, fc1, fc2;
    struct network_norm self_norm, cross_norm, norm;
};

static inline struct fused_weight fused_weight_of(const struct cuda_weight *weight)
{
    struct fused_weight w = {(const char *)weight->packed, weight->bias};

    return w;
}

static inline void fused_layer_fill(const struct network_layer *from, struct fused_layer *to)
{
    to->qkv = fused_weight_of(&from->qkv);
    to->out = fused_weight_of(&from->out);
    to->cross_q = fused_weight_of(&from->cross_q);
    to->cross_out = fused_weight_of(&from->cross_out);
    to->fc1 = fused_weight_of(&from->fc1);
    to->fc2 = fused_weight_of(&from->fc2);
    to->self_norm = from->self_norm;
    to->cross_norm = from->cross_norm;
    to->norm = from->norm;
}

/* What every fused kernel's parameters P have of a network and a step; the rest is zero. */
template <class P>
static inline void fused_params_fill(const struct network *network, const struct network_step *step,
                                     P *p)
{
    memset(p, 0, sizeof *p);
    p->layers = network->config.decoder_layers;
    for (int32_t l = 0; l < p->layers; l++)
        fused_layer_fill(&network->decoder[l], &p->layer[l]);
    p->output = fused_weight_of(&network->output);
    p->embedding = network->decoder_embedding;
    p->positions = network->decoder_positions;
    p->embedding_factor = network->embedding_factor;
    p->activation = network->activation;
    p->active = step->active;
    p->rows = step->rows;
    p->rules = step->rules;
    p->self = step->self;
    p->cross = step->cross;
}

#endif
