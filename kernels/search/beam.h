/* SPDX-License-Identifier: MIT
 *
 * beam: the bookkeeping of one beam search, step by step, as Hugging Face's generate() does it
 * (float32 scores, the best 2 B of B V continuations, finished hypotheses scored by
 * length^length_penalty). The holder keeps, for each step, the token and the parent of each running
 * beam; a hypothesis names its last step, the beam it came from and its last token, and is read
 * back through the parents. Plain data, one owner; pure functions, any thread.
 */
#ifndef PGPT_KERNELS_SEARCH_BEAM_H
#define PGPT_KERNELS_SEARCH_BEAM_H

#include <math.h>
#include <stdbool.h>
#include <stdint.h>

#include "kernels/search/device.h"

#define BEAM_MAX 8
#define BEAM_CANDIDATES (2 * BEAM_MAX) /* one EOS: twice the beams are looked at */
#define BEAM_NONE (-1.0e9f)            /* Hugging Face's "minus infinity" of scores */

struct beam_candidate {
    float score; /* log-probability of the whole sequence */
    int32_t beam;
    int32_t token;
};

struct beam_hypothesis {
    float score;    /* after the length penalty */
    int32_t length; /* generated tokens, EOS included; 0 = nothing here yet */
    int32_t beam;   /* the running beam, before the last step, that it continues */
    int32_t token;  /* its last token */
    bool finished;
};

struct beam_state {
    int32_t num_beams;
    int32_t max_new;
    int32_t eos_token;
    int32_t length; /* generated tokens of the running beams */
    float length_penalty;
    bool early_stopping;
    bool improvable;                       /* running beams may still beat a finished hypothesis */
    float running[BEAM_MAX];               /* log-probabilities of the running beams */
    struct beam_hypothesis best[BEAM_MAX]; /* by score, best first */
};

PGPT_DEVICE static inline void beam_init(struct beam_state *s, int32_t num_beams, int32_t max_new,
                                         int32_t eos_token, float length_penalty,
                                         bool early_stopping)
{
    s->num_beams = num_beams;
    s->max_new = max_new;
    s->eos_token = eos_token;
    s->length = 0;
    s->length_penalty = length_penalty;
    s->early_stopping = early_stopping;
    s->improvable = true;
    for (int32_t i = 0; i < BEAM_MAX; i++) {
        s->running[i] = i ? BEAM_NONE : 0.0f; /* all beams start equal: only the first counts */
        s->best[i].score = BEAM_NONE;
        s->best[i].length = 0;
        s->best[i].beam = 0;
        s->best[i].token = 0;
        s->best[i].finished = false;
    }
}

/* a comes before b among candidates: higher score, then lower beam, then lower token. */
PGPT_DEVICE static inline bool beam_before(const struct beam_candidate *a,
                                           const struct beam_candidate *b)
{
    if (a->score != b->score)
        return a->score > b->score;
    return a->beam != b->beam ? a->beam < b->beam : a->token < b->token;
}

/* Inserts a candidate into the sorted list of at most `most`; returns its new length. */
PGPT_DEVICE static inline int32_t beam_insert(struct beam_candidate *list, int32_t count,
                                              int32_t most, struct beam_candidate candidate)
{
    int32_t at = count;

    if (count == most && !beam_before(&candidate, &list[most - 1]))
        return count;
    if (count == most)
        at = most - 1;
    for (; at > 0 && beam_before(&candidate, &list[at - 1]); at--)
        list[at] = list[at - 1];
    list[at] = candidate;
    return count < most ? count + 1 : count;
}

PGPT_DEVICE static inline float beam_divisor(int32_t length, float length_penalty)
{
    if (length_penalty == 1.0f) /* what pow() would say, at once */
        return (float)length;
    return (float)pow((double)length, (double)length_penalty);
}

PGPT_DEVICE static inline bool beam_all_finished(const struct beam_state *s)
{
    for (int32_t i = 0; i < s->num_beams; i++)
        if (!s->best[i].finished)
            return false;
    return true;
}

/* Merges a hypothesis into the sorted list; of equal ones the older stays in front. */
PGPT_DEVICE static inline void beam_keep(struct beam_state *s, struct beam_hypothesis hypothesis)
{
    int32_t at = s->num_beams - 1;

    if (!(hypothesis.score > s->best[at].score))
        return;
    for (; at > 0 && hypothesis.score > s->best[at - 1].score; at--)
        s->best[at] = s->best[at - 1];
    s->best[at] = hypothesis;
}

/* The finished ones among the first num_beams candidates become hypotheses. */
PGPT_DEVICE static inline void beam_finish(struct beam_state *s,
                                           const struct beam_candidate *candidates, bool at_limit)
{
    float divisor = beam_divisor(s->length + 1, s->length_penalty);
    bool closed = (s->early_stopping && beam_all_finished(s)) || !s->improvable;

    if (closed)
        return;
    for (int32_t i = 0; i < s->num_beams; i++) {
        struct beam_hypothesis hypothesis;

        if (!at_limit && candidates[i].token != s->eos_token)
            continue;
        hypothesis.score = candidates[i].score / divisor;
        hypothesis.length = s->length + 1;
        hypothesis.beam = candidates[i].beam;
        hypothesis.token = candidates[i].token;
        hypothesis.finished = true;
        beam_keep(s, hypothesis);
    }
}

/* One step. candidates: the best 2 num_beams continuations, sorted by beam_before(). Writes the
 * next running beams: the parent of each and its token. Returns true when the search is over. */
PGPT_DEVICE static inline bool beam_advance(struct beam_state *s,
                                            const struct beam_candidate *candidates,
                                            int32_t *parents, int32_t *tokens)
{
    bool at_limit = s->length + 1 >= s->max_new;
    float best_possible, worst;
    int32_t kept = 0;

    beam_finish(s, candidates, at_limit);
    for (int32_t i = 0; i < 2 * s->num_beams && kept < s->num_beams; i++) {
        if (candidates[i].token == s->eos_token)
            continue;
        parents[kept] = candidates[i].beam;
        tokens[kept] = candidates[i].token;
        s->running[kept++] = candidates[i].score;
    }
    s->length++;
    if (at_limit || kept < s->num_beams)
        return true;
    best_possible = s->running[0] / beam_divisor(s->length, s->length_penalty);
    worst = beam_all_finished(s) ? s->best[s->num_beams - 1].score : BEAM_NONE;
    s->improvable = s->improvable && best_possible > worst;
    return !s->improvable || (s->early_stopping && beam_all_finished(s));
}

/* Reads a hypothesis back: out (length). tokens and parents: (steps, stride), row i describes the
 * running beams after step i. */
PGPT_DEVICE static inline void beam_read(const struct beam_hypothesis *hypothesis,
                                         const int32_t *tokens, const int32_t *parents,
                                         int32_t stride, int32_t *out)
{
    int32_t beam = hypothesis->beam;

    if (!hypothesis->length)
        return;
    out[hypothesis->length - 1] = hypothesis->token;
    for (int32_t i = hypothesis->length - 2; i >= 0; i--) {
        out[i] = tokens[i * stride + beam];
        beam = parents[i * stride + beam];
    }
}

#endif
