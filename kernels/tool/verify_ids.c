/* SPDX-License-Identifier: MIT */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/search/sampling.h"
#include "kernels/tool/replay.h"
#include "kernels/tool/verify.h"

static struct engine *reference_engine(struct verify *v)
{
    struct engine_options options;

    if (v->reference || v->reference_failed)
        return v->reference;
    engine_options_init(&options);
    options.compute = "fp32";
    options.max_rows = 1;
    v->reference = engine_open(v->model_dir, &options, NULL);
    v->reference_failed = v->reference == NULL;
    return v->reference;
}

/* Tokens that can never be chosen must not count as the second best. */
static void forbid(const struct model_config *config, float *scores)
{
    const int32_t *word = config->bad_words;

    for (int32_t i = 0; i < config->suppress_count; i++)
        scores[config->suppress_tokens[i]] = -INFINITY;
    for (int32_t i = 0; i < config->bad_word_count; word += config->bad_word_lengths[i++])
        if (config->bad_word_lengths[i] == 1)
            scores[*word] = -INFINITY;
}

static double top_two_gap(const float *scores, int32_t count)
{
    float best = -INFINITY, second = -INFINITY;

    for (int32_t i = 0; i < count; i++) {
        if (scores[i] > best) {
            second = best;
            best = scores[i];
        } else if (scores[i] > second) {
            second = scores[i];
        }
    }
    return (double)best - (double)second;
}

static void penalise(float *scores, const int32_t *prefix, int32_t prefix_len, float penalty)
{
    for (int32_t i = 0; i < prefix_len; i++) {
        bool seen = false;

        for (int32_t j = 0; j < i && !seen; j++)
            seen = prefix[j] == prefix[i];
        if (!seen)
            scores[prefix[i]] = sampling_penalise(scores[prefix[i]], penalty);
    }
}

double verify_gap(struct verify *v, const struct golden_ids *source, const int32_t *prefix,
                  int32_t prefix_len, double penalty)
{
    struct engine *engine = reference_engine(v);
    int32_t V = engine_limits(v->engine)->vocabulary;
    float *logits, *last;
    struct backend_trace trace = {.source = source->ids,
                                  .source_len = source->count,
                                  .prefix = prefix,
                                  .prefix_len = prefix_len};
    double gap = NAN;

    if (!engine)
        return NAN;
    logits = malloc((size_t)prefix_len * (size_t)V * sizeof *logits);
    trace.logits = logits;
    if (logits && !engine_trace(engine, &trace, NULL)) {
        last = logits + (size_t)(prefix_len - 1) * (size_t)V;
        penalise(last, prefix, prefix_len, (float)penalty);
        forbid(engine_config(engine), last);
        gap = top_two_gap(last, V);
    }
    free(logits);
    return gap;
}

/* generate()'s ids: start token, tokens, the EOS that ended it. out has room for max_new + 1. */
static int32_t ids_of(const struct verify *v, const struct replay_sequence *s, int32_t *out)
{
    const struct engine_limits *limits = engine_limits(v->engine);
    int32_t count = 0;

    out[count++] = limits->start_token;
    memcpy(out + count, s->tokens, (size_t)s->token_count * sizeof *out);
    count += s->token_count;
    if (s->ended_with_eos)
        out[count++] = limits->eos_token;
    return count;
}

static void request_make(const struct golden_kind *kind, const struct golden_case *c,
                         struct engine_request *request)
{
    engine_request_init(request);
    request->source = c->source.ids;
    request->source_len = c->source.count;
    request->max_new = c->max_new;
    if (kind->mode == GOLDEN_PENALTY)
        request->repetition_penalty = (float)kind->value;
    if (kind->mode == GOLDEN_BEAM) {
        request->num_beams = (int32_t)kind->value;
        request->early_stopping = true;
    }
}

/* May a case differ where the reference's gap is this? */
static bool tolerated(const struct verify_rules *rules, const struct golden_kind *kind, double gap)
{
    if (isnan(rules->gap))
        return true; /* only the share counts */
    if (rules->gap == 0)
        return false;
    return kind->mode == GOLDEN_BEAM || gap <= rules->gap; /* beams have no one gap */
}

/* Compares one case; returns whether it is equal or its difference is within the gap. */
static bool compare(struct verify *v, struct verify_row *row, const struct golden_kind *kind,
                    int32_t at, const struct golden_ids *expected, const int32_t *got,
                    int32_t got_count)
{
    int32_t longer = got_count > expected->count ? got_count : expected->count, first = -1;
    struct verify_difference difference = {.at = at, .expected = -1, .got = -1, .gap = NAN};

    row->total++;
    for (int32_t i = 1; i < longer; i++) {
        bool same = i < got_count && i < expected->count && got[i] == expected->ids[i];

        row->tokens++;
        row->tokens_equal += same;
        if (!same && first < 0)
            first = i;
    }
    if (first < 0) {
        row->equal++;
        return true;
    }
    difference.position = first - 1;
    difference.expected = first < expected->count ? expected->ids[first] : -1;
    difference.got = first < got_count ? got[first] : -1;
    if (kind->mode != GOLDEN_BEAM && first < expected->count)
        difference.gap = verify_gap(v, &v->golden->cases[at].source, expected->ids, first,
                                    kind->mode == GOLDEN_PENALTY ? kind->value : 1);
    if (!isnan(difference.gap) && !(difference.gap <= row->worst))
        row->worst = difference.gap;
    verify_difference_add(row, difference);
    return tolerated(&v->rules, kind, difference.gap);
}

static int kind_verify(struct verify *v, int32_t kind, struct error *error)
{
    const struct golden *golden = v->golden;
    const struct golden_kind *k = &golden->kinds[kind];
    struct replay_schedule schedule = {.k = v->steps};
    struct engine_request *requests = calloc((size_t)golden->count, sizeof *requests);
    struct replay_output *outputs = calloc((size_t)golden->count, sizeof *outputs);
    int32_t *cases = calloc((size_t)golden->count, sizeof *cases), n = 0;
    int32_t *ids = calloc((size_t)engine_limits(v->engine)->max_new + 2, sizeof *ids);
    struct verify_row *row = verify_row_add(v, k->name);
    int status = -1;

    if (!requests || !outputs || !cases || !ids) {
        error_set(error, "out of memory");
        goto out;
    }
    for (int32_t i = 0; i < golden->count; i++) {
        if (!golden->cases[i].outputs[kind].ids)
            continue;
        request_make(k, &golden->cases[i], &requests[n]);
        cases[n++] = i;
    }
    if (replay_run(v->engine, requests, n, &schedule, outputs, error))
        goto out;
    row->ok = true;
    for (int32_t i = 0; i < n; i++) {
        int32_t count = ids_of(v, &outputs[i].sequences[0], ids);

        if (!compare(v, row, k, cases[i], &golden->cases[cases[i]].outputs[kind], ids, count))
            row->ok = false;
    }
    status = 0;
out:
    if (outputs)
        replay_free(outputs, n);
    free(requests);
    free(outputs);
    free(cases);
    free(ids);
    return status;
}

/* A row of its own for the share over all kinds. */
static void share_judge(struct verify *v, int32_t first_row)
{
    struct verify_row *all = verify_row_add(v, "all ids");

    for (int32_t i = first_row; &v->rows[i] < all; i++) {
        all->total += v->rows[i].total;
        all->equal += v->rows[i].equal;
        all->tokens += v->rows[i].tokens;
        all->tokens_equal += v->rows[i].tokens_equal;
    }
    all->judged = true;
    all->ok = (double)all->equal >= v->rules.share * (double)all->total;
    snprintf(all->rule, sizeof all->rule, "%g %% of cases equal", v->rules.share * 100);
}

static void kind_judge(struct verify *v, const struct golden_kind *kind, struct verify_row *row)
{
    const struct verify_rules *rules = &v->rules;

    if (rules->gap == 0) {
        row->judged = true;
        snprintf(row->rule, sizeof row->rule, "all equal");
    } else if (rules->gap > 0 && kind->mode != GOLDEN_BEAM) {
        row->judged = true;
        snprintf(row->rule, sizeof row->rule, "equal where the gap exceeds %g logits", rules->gap);
    } else if (rules->greedy_only && kind->mode == GOLDEN_GREEDY) {
        row->judged = true;
        row->ok = (double)row->equal >= rules->share * (double)row->total;
        snprintf(row->rule, sizeof row->rule, "%g %% of cases equal", rules->share * 100);
    } else {
        snprintf(row->rule, sizeof row->rule, rules->greedy_only ? "not judged" : "see all ids");
    }
}

int verify_ids(struct verify *v, struct error *error)
{
    int32_t first_row = v->row_count;

    for (int32_t kind = 0; kind < v->golden->kind_count; kind++) {
        if (kind_verify(v, kind, error))
            return -1;
        kind_judge(v, &v->golden->kinds[kind], &v->rows[v->row_count - 1]);
    }
    if (v->rules.gap > 0)
        share_judge(v, first_row);
    return 0;
}
