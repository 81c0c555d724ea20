/* SPDX-License-Identifier: MIT
 *
 * rules: what becomes of a row's scores before a token is chosen, as Hugging Face's generate() does
 * it for a Marian model. Its processors run in this order:
 *   repetition penalty, bad words, shortest length, forced first token, forced EOS, suppressed
 * tokens and for sampling temperature, top-k, top-p (sampling.h). Greedy and sampling rows feed
 * them the raw logits, beams the log-softmax of the raw logits. -inf survives all that follows it
 * except a forced token, so the order comes down to rules_score() and the phrases, and any token
 * may be looked at alone. Plain data owned by the back end; pure functions, any thread, host and
 * CUDA.
 */
#ifndef PGPT_KERNELS_SEARCH_RULES_H
#define PGPT_KERNELS_SEARCH_RULES_H

#include <math.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#include "kernels/search/device.h"
#include "kernels/search/sampling.h"

/* What the model's files ask for, the same for all rows. Sets of tokens are bitmaps of
 * rules_words(V) words; NULL = the empty set. */
struct rules {
    int32_t vocabulary;
    int32_t eos_token;
    int32_t forced_bos_token;    /* -1 = none */
    int32_t forced_eos_token;    /* -1 = none */
    const uint32_t *suppressed;  /* suppress_tokens */
    const uint32_t *banned;      /* suppressed, and the bad words of one token */
    const int32_t *phrases;      /* the bad words of several tokens, one after the other */
    const int32_t *phrase_sizes; /* (phrase_count) */
    int32_t phrase_count;
};

/* Where one row stands. Hugging Face's input_ids: the start token and `length` generated ones. */
struct rules_row {
    int32_t length;
    int32_t min_new, max_new;
    float repetition_penalty; /* 1 = off */
    const uint32_t *seen;     /* bitmap of input_ids; looked at when there is a penalty */
    const int32_t *history;   /* (length + 1) input_ids; looked at when there are phrases */
};

enum rules_end { RULES_RUNNING, RULES_EOS, RULES_LENGTH };

PGPT_DEVICE static inline int32_t rules_words(int32_t vocabulary)
{
    return (vocabulary + 31) / 32;
}

PGPT_DEVICE static inline bool rules_has(const uint32_t *set, int32_t token)
{
    return set && (set[token >> 5] >> (token & 31) & 1u);
}

PGPT_DEVICE static inline void rules_add(uint32_t *set, int32_t token)
{
    set[token >> 5] |= 1u << (token & 31);
}

/* The one token that may come next, or -1 when the row is free. The end beats the beginning. */
PGPT_DEVICE static inline int32_t rules_forced(const struct rules *rules,
                                               const struct rules_row *row)
{
    if (rules->forced_eos_token >= 0 && row->length + 1 == row->max_new)
        return rules->forced_eos_token;
    if (rules->forced_bos_token >= 0 && row->length == 0)
        return rules->forced_bos_token;
    return -1;
}

/* The processed score of one token, all but the phrases; forced: rules_forced() of the row. */
PGPT_DEVICE static inline float rules_score(const struct rules *rules, const struct rules_row *row,
                                            int32_t forced, int32_t token, float score)
{
    const float never = -INFINITY;

    if (forced >= 0)
        return token == forced && !rules_has(rules->suppressed, token) ? 0.0f : never;
    if (rules_has(rules->banned, token))
        return never;
    if (token == rules->eos_token && row->length < row->min_new)
        return never;
    if (row->repetition_penalty != 1.0f && rules_has(row->seen, token))
        return sampling_penalise(score, row->repetition_penalty);
    return score;
}

/* The token that would complete a bad phrase now, or -1: its score is -inf unless a token is
 * forced. first: offset of the phrase in rules->phrases. As in Hugging Face, input_ids must be at
 * least as long as the whole phrase. */
PGPT_DEVICE static inline int32_t
rules_phrase(const struct rules *rules, const struct rules_row *row, int32_t phrase, int32_t first)
{
    const int32_t *words = rules->phrases + first;
    int32_t prefix = rules->phrase_sizes[phrase] - 1;

    if (prefix > row->length)
        return -1;
    for (int32_t i = 0; i < prefix; i++)
        if (row->history[row->length + 1 - prefix + i] != words[i])
            return -1;
    return words[prefix];
}

/* scores (V): all rules, in place. The definition in one piece; a kernel may fuse it. */
PGPT_DEVICE static inline void rules_apply(const struct rules *rules, const struct rules_row *row,
                                           float *scores)
{
    int32_t forced = rules_forced(rules, row);

    for (int32_t t = 0; t < rules->vocabulary; t++)
        scores[t] = rules_score(rules, row, forced, t, scores[t]);
    for (int32_t p = 0, first = 0; forced < 0 && p < rules->phrase_count; p++) {
        int32_t token = rules_phrase(rules, row, p, first);

        if (token >= 0)
            scores[token] = -INFINITY;
        first += rules->phrase_sizes[p];
    }
}

/* What choosing `token` now does to the row. An EOS that the length limit forced ends by length. */
PGPT_DEVICE static inline enum rules_end rules_after(const struct rules *rules,
                                                     const struct rules_row *row, int32_t token)
{
    bool at_limit = row->length + 1 >= row->max_new;

    if (token == rules->eos_token && !(at_limit && rules->forced_eos_token >= 0))
        return RULES_EOS;
    return at_limit ? RULES_LENGTH : RULES_RUNNING;
}

#endif
