/* SPDX-License-Identifier: MIT */
#include "kernels/cpu/choose.h"

#include "kernels/cpu/math.h"

void choose_process(const struct choose *c, const struct rules_row *row, const float *scores)
{
    const struct rules *rules = &c->tables->rules;
    int32_t V = rules->vocabulary, forced = rules_forced(rules, row);
    float *out = c->processed;

    if (forced >= 0) {
        for (int32_t t = 0; t < V; t++)
            out[t] = -INFINITY;
        out[forced] = rules_score(rules, row, forced, forced, 0.0f);
        return;
    }
    memcpy(out, scores, (size_t)V * sizeof *out);
    for (int32_t i = 0; row->repetition_penalty != 1.0f && i <= row->length; i++)
        out[row->history[i]] = sampling_penalise(scores[row->history[i]], row->repetition_penalty);
    for (int32_t i = 0; i < c->tables->banned_count; i++)
        out[c->tables->banned_list[i]] = -INFINITY;
    if (row->length < row->min_new)
        out[rules->eos_token] = -INFINITY;
    for (int32_t p = 0, first = 0; p < rules->phrase_count; first += rules->phrase_sizes[p++]) {
        int32_t token = rules_phrase(rules, row, p, first);

        if (token >= 0)
            out[token] = -INFINITY;
    }
}

/* Would the rules leave the choice of `token`, the best of the raw logits, as it is? */
static bool choice_stands(const struct choose *c, const struct rules_row *row, int32_t token)
{
    const struct rules *rules = &c->tables->rules;

    return row->repetition_penalty == 1.0f && !rules->phrase_count &&
           rules_forced(rules, row) < 0 && !rules_has(rules->banned, token) &&
           !(token == rules->eos_token && row->length < row->min_new);
}

static float logprob_of(float logit, float top, float sum)
{
    return (logit - top) - math_log(sum);
}

struct choose_token choose_greedy(const struct choose *c, const struct rules_row *row,
                                  const float *logits)
{
    int32_t V = c->tables->rules.vocabulary;
    struct choose_token chosen;
    float top = c->ops->top(V, logits, &chosen.token);
    float sum = c->ops->sum_exp(V, logits, top, NULL);

    if (!choice_stands(c, row, chosen.token)) {
        choose_process(c, row, logits);
        c->ops->top(V, c->processed, &chosen.token);
    }
    chosen.logprob = logprob_of(logits[chosen.token], top, sum);
    return chosen;
}

/* The lowest key that stays when a score stays as long as the mass strictly above it is below the
 * budget (>= 1). The mass of a token is 1, or its sampling_weight() where weights are given. Finds
 * the key digit by digit, highest first. */
static uint32_t key_threshold(int32_t V, const float *z, const float *weights, uint64_t budget)
{
    static const int shifts[] = {21, 10, 0}, widths[] = {11, 11, 10};
    uint32_t prefix = 0;
    uint64_t above = 0;

    for (int level = 0; level < 3; level++) {
        uint64_t mass[2048] = {0};
        uint32_t digit, mask = (1u << widths[level]) - 1;
        int known = shifts[level] + widths[level];

        for (int32_t t = 0; t < V; t++) {
            uint32_t key = sampling_key(z[t]);

            if (level == 0 || key >> known == prefix)
                mass[key >> shifts[level] & mask] += weights ? sampling_weight(weights[t]) : 1;
        }
        for (digit = mask; digit && above + mass[digit] < budget; digit--)
            above += mass[digit];
        prefix = prefix << widths[level] | digit;
    }
    return prefix;
}

static uint64_t weights_total(int32_t V, const float *weights)
{
    uint64_t total = 0;

    for (int32_t t = 0; t < V; t++)
        total += sampling_weight(weights[t]);
    return total;
}

/* Tokens whose score's key is below the threshold lose their value in `what`. */
static void below_clear(int32_t V, const float *z, uint32_t threshold, float value, float *what)
{
    for (int32_t t = 0; t < V; t++)
        if (sampling_key(z[t]) < threshold)
            what[t] = value;
}

/* c->weights (V): e^(z - max z), 0 where sampling.h takes a token's weight; returns their total. */
static uint64_t warp(const struct choose *c, const struct rules_row *row,
                     const struct choose_sampling *s, const float *logits)
{
    int32_t V = c->tables->rules.vocabulary, index;
    float *z = c->processed, *weights = c->weights;
    uint64_t total;
    float top;

    choose_process(c, row, logits);
    for (int32_t t = 0; s->temperature != 1.0f && t < V; t++)
        z[t] /= s->temperature;
    if (s->top_k >= 1 && s->top_k < V)
        below_clear(V, z, key_threshold(V, z, NULL, (uint64_t)s->top_k), -INFINITY, z);
    top = c->ops->top(V, z, &index);
    if (isfinite(top))
        c->ops->sum_exp(V, z, top, weights);
    else /* a tiny temperature sent the best to infinity, or the rules left nothing */
        for (int32_t t = 0; t < V; t++)
            weights[t] = z[t] == top ? 1.0f : 0.0f;
    total = weights_total(V, weights);
    if (s->top_p >= 1.0f)
        return total;
    below_clear(V, z, key_threshold(V, z, weights, total - sampling_limit(s->top_p, total)), 0.0f,
                weights);
    return weights_total(V, weights);
}

struct choose_token choose_sample(const struct choose *c, const struct rules_row *row,
                                  const struct choose_sampling *s, const float *logits)
{
    int32_t V = c->tables->rules.vocabulary, index;
    uint64_t total = warp(c, row, s, logits), running = 0;
    uint64_t target = sampling_target(s->seed, s->sequence, (uint32_t)row->length, total);
    float top = c->ops->top(V, logits, &index);
    float sum = c->ops->sum_exp(V, logits, top, NULL);
    struct choose_token chosen = {.token = V - 1};

    for (int32_t t = 0; t < V; t++) {
        running += sampling_weight(c->weights[t]);
        if (running > target) {
            chosen.token = t;
            break;
        }
    }
    chosen.logprob = logprob_of(logits[chosen.token], top, sum);
    return chosen;
}

void choose_probabilities(const struct choose *c, const struct rules_row *row,
                          const struct choose_sampling *s, const float *logits, float *out)
{
    uint64_t total = warp(c, row, s, logits);

    for (int32_t t = 0; t < c->tables->rules.vocabulary; t++)
        out[t] = (float)((double)sampling_weight(c->weights[t]) / (double)total);
}

int32_t choose_continue(const struct choose *c, const struct rules_row *row, const float *logits,
                        int32_t beam, float running, struct beam_candidate *list, int32_t count,
                        int32_t most)
{
    int32_t V = c->tables->rules.vocabulary, index;
    float top = c->ops->top(V, logits, &index);
    float log_sum = math_log(c->ops->sum_exp(V, logits, top, NULL));

    for (int32_t t = 0; t < V; t++)
        c->weights[t] = (logits[t] - top) - log_sum;
    choose_process(c, row, c->weights);
    for (int32_t t = 0; t < V; t++) {
        struct beam_candidate candidate = {c->processed[t] + running, beam, t};

        if (count == most && !(candidate.score >= list[most - 1].score))
            continue;
        count = beam_insert(list, count, most, candidate);
    }
    return count;
}
