/* SPDX-License-Identifier: MIT
 *
 * choose: one row's next token from its logits, on the CPU: rules.h and sampling.h carried out over
 * a row at a time. Pure functions over the caller's work space, any thread.
 */
#ifndef PGPT_KERNELS_CPU_CHOOSE_H
#define PGPT_KERNELS_CPU_CHOOSE_H

#include "kernels/cpu/ops.h"
#include "kernels/search/beam.h"
#include "kernels/search/rules_create.h"

struct choose {
    const struct rules_tables *tables;
    const struct ops *ops;
    float *processed; /* work (V) */
    float *weights;   /* work (V) */
};

struct choose_sampling {
    float temperature, top_p;
    int32_t top_k; /* 0 = off */
    uint64_t seed;
    uint32_t sequence;
};

struct choose_token {
    int32_t token;
    float logprob; /* ln p of the raw logits */
};

/* processed (V) = the scores (V) after the rules: rules_apply(), in time that depends on what the
 * rules touch. The row needs its history whatever the rules are. */
void choose_process(const struct choose *c, const struct rules_row *row, const float *scores);

struct choose_token choose_greedy(const struct choose *c, const struct rules_row *row,
                                  const float *logits);
struct choose_token choose_sample(const struct choose *c, const struct rules_row *row,
                                  const struct choose_sampling *sampling, const float *logits);

/* Adds one beam's continuations to the list of the best `most`; returns its new length. */
int32_t choose_continue(const struct choose *c, const struct rules_row *row, const float *logits,
                        int32_t beam, float running, struct beam_candidate *list, int32_t count,
                        int32_t most);

/* out (V): the probabilities that choose_sample() draws from. */
void choose_probabilities(const struct choose *c, const struct rules_row *row,
                          const struct choose_sampling *sampling, const float *logits, float *out);

#endif
