/* SPDX-License-Identifier: MIT
 *
 * golden: a directory of reference vectors written by Hugging Face transformers. cases.json is a
 * list of cases:
 *   input_ids            the whole encoder input
 *   max_new_tokens       optional, 128
 *   greedy_ids           what generate() returned, the decoder's start token first
 *   greedy_repR_ids      the same with repetition_penalty R, e.g. greedy_rep1.3_ids
 *   beamN_ids            with num_beams N, length_penalty 1, early_stopping
 *   warped               list of {prefix, temperature, top_k, top_p, repetition_penalty, support,
 *                        top: [[id, probability], ...]}: the distribution after the prefix
 *   prompt, target_language, author, greedy_text   what the ids are as text (optional)
 * tensors.safetensors (optional) holds caseN.encoder (source, D) and caseN.logits (prefix, V): the
 * encoder's output, and logits teacher-forced with greedy_ids. Read-only after golden_open().
 */
#ifndef PGPT_KERNELS_TOOL_GOLDEN_H
#define PGPT_KERNELS_TOOL_GOLDEN_H

#include "kernels/base/arena.h"
#include "kernels/engine.h"
#include "kernels/model/model.h"

struct golden_ids {
    const int32_t *ids; /* (count); NULL = the case has none */
    int32_t count;
};

enum golden_mode { GOLDEN_GREEDY, GOLDEN_PENALTY, GOLDEN_BEAM };

struct golden_kind {
    char name[32]; /* "greedy", "greedy_rep1.3", "beam4" */
    enum golden_mode mode;
    double value; /* the penalty or the number of beams */
};

struct golden_warped {
    struct golden_ids prefix;
    double temperature, top_p, repetition_penalty;
    int32_t top_k, support, top_count;
    const int32_t *top_ids; /* (top_count) */
    const double *top_probabilities;
};

enum { GOLDEN_KINDS_MAX = 16 };

struct golden_case {
    struct golden_ids source;
    int32_t max_new;
    struct golden_ids outputs[GOLDEN_KINDS_MAX]; /* by kind */
    const struct golden_warped *warped;          /* (warped_count) */
    int32_t warped_count;
    struct text prompt, target_language, author, greedy_text; /* data NULL = absent */
    struct model_tensor encoder, logits;                      /* data NULL = absent */
};

struct golden {
    struct golden_case *cases; /* (count) */
    int32_t count;
    struct golden_kind kinds[GOLDEN_KINDS_MAX];
    int32_t kind_count;
    struct arena *arena; /* holds all of it */
    struct safetensors *tensors;
};

/* Every id and length is checked against the limits. NULL with a message naming file and case. */
struct golden *golden_open(const char *directory, const struct engine_limits *limits,
                           int32_t d_model, struct error *error) PGPT_MUST_CHECK;
void golden_close(struct golden *golden); /* NULL is allowed */

#endif
