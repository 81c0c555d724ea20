/* SPDX-License-Identifier: MIT
 *
 * rows: what the device knows of each row (one sequence of the running batch). The host writes a
 * row when it is admitted; from then on the kernels that choose tokens advance it, and the host
 * learns of tokens by struct step_output alone. Plain data in device memory, indexed by row
 * 0..max_rows-1. The active list (n) names the rows that a step advances; activations are indexed
 * by the place in that list, caches and histories by the row.
 */
#ifndef PGPT_KERNELS_CUDA_ROWS_H
#define PGPT_KERNELS_CUDA_ROWS_H

#include <stdint.h>

#include "kernels/search/beam.h"

enum cuda_row_flags {
    CUDA_ROW_SAMPLE = 1,  /* draws its tokens */
    CUDA_ROW_PENALTY = 2, /* repetition_penalty != 1 */
    CUDA_ROW_WORDS = 4,   /* the model forbids words of several tokens */
    CUDA_ROW_BEAM = 8,    /* belongs to a beam group */
    /* any of these: the whole row of logits is needed to choose (a "full" row); else the partial
     * maxima that the logits product leaves are enough (a "plain" row) */
    CUDA_ROW_FULL = 15,
};

struct cuda_row {
    uint64_t seed;
    int32_t token; /* decoder input of the next step */
    int32_t
        position; /* tokens generated so far; the next step's position in caches and histories */
    int32_t max_new, min_new;
    int32_t source_len;
    int32_t cross;    /* the row whose cross-attention cache it reads */
    int32_t sequence; /* Philox: 0..7 */
    int32_t flags;
    int32_t finished; /* 1: steps leave it alone */
    int32_t group;    /* beams: index into cuda_rows.groups */
    int32_t beam;     /* beams: its place in the group */
    int32_t top_k;    /* 0 = off */
    float temperature, top_p, repetition_penalty;
};

/* One beam search: its rows, its state and the trail of its beams. */
struct cuda_beam_group {
    struct beam_state state;
    int32_t rows[BEAM_MAX];
    int32_t num_beams;
    int32_t finished;
};

/* Everything by row, in device memory. P = positions a row may generate (limits.max_new). */
struct cuda_rows {
    struct cuda_row *row; /* (max_rows) */
    int32_t *tokens;      /* (max_rows, P) generated tokens, a final EOS included */
    float *logprobs;      /* (max_rows, P) ln p by the unprocessed logits */
    int32_t *source_row;  /* (max_rows, P) beams: the row whose self cache holds position p */
    struct cuda_beam_group *groups; /* (max_rows) */
    int32_t *beam_tokens;           /* (max_rows groups, P, BEAM_MAX) */
    int32_t *beam_parents;          /* (max_rows groups, P, BEAM_MAX) */
    int32_t *collected;             /* (max_rows) tokens the host has */
    int32_t P;
    int32_t max_rows;
};

/* What the host reads after a call of `steps` steps for n active rows, by their places in the
 * active list: memory that both see. Written by the kernels that run whole calls, or by one behind
 * them. */
struct step_output {
    int32_t *position; /* (n) tokens generated so far */
    int32_t *finished; /* (n) */
    int32_t *tokens;   /* (n, steps) those of this call */
    float *logprobs;   /* (n, steps) */
};

/* What the model says of a plain row's choice; full rows go by search/rules.h, but for those that
 * are drawn in a fused kernel. */
struct cuda_rules {
    int32_t vocabulary;
    int32_t start_token, eos_token;
    int32_t forced_bos, forced_eos; /* -1 = none */
    const float *mask; /* (V) 0, or -inf: suppressed tokens and forbidden single tokens */
    const uint32_t *banned, *suppressed; /* bitmaps of these, and of suppressed ones; or NULL */
};

#endif
