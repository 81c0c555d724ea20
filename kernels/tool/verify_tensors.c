/* SPDX-License-Identifier: MIT */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/tool/verify.h"

static size_t count_of(const struct model_tensor *tensor)
{
    return (size_t)tensor->rows * (size_t)tensor->cols;
}

/* Compares got (rows, cols) with the reference tensor. A NaN anywhere is an infinite error. */
static int tensor_compare(const struct verify *v, struct verify_row *row, int32_t at,
                          const struct model_tensor *reference, const float *got,
                          struct error *error)
{
    size_t count = count_of(reference);
    float *expected = malloc(count * sizeof *expected), least = INFINITY, most = -INFINITY;
    struct verify_difference worst = {.at = at, .position = -1, .expected = -1, .got = -1};
    double scale, largest = 0;

    if (!expected)
        return error_set(error, "out of memory");
    model_tensor_f32(reference, expected);
    for (size_t i = 0; i < count; i++) {
        least = expected[i] < least ? expected[i] : least;
        most = expected[i] > most ? expected[i] : most;
    }
    scale = v->rules.relative ? (double)most - (double)least : 1;
    for (size_t i = 0; i < count; i++) {
        double difference = fabs((double)got[i] - (double)expected[i]) / scale;

        if (isnan(difference))
            difference = INFINITY;
        row->total++;
        row->equal += !(difference > v->rules.tensor);
        if (difference > largest) {
            largest = difference;
            worst.position = (int32_t)(i / (size_t)reference->cols);
        }
    }
    if (!(largest <= row->worst))
        row->worst = largest;
    worst.gap = NAN;
    if (largest > v->rules.tensor)
        verify_difference_add(row, worst);
    free(expected);
    return 0;
}

static int case_trace(struct verify *v, int32_t at, int32_t greedy, struct verify_row *encoder,
                      struct verify_row *logits, struct error *error)
{
    const struct golden_case *c = &v->golden->cases[at];
    struct backend_trace trace = {.source = c->source.ids, .source_len = c->source.count};
    int32_t start = engine_limits(v->engine)->start_token;
    int status = -1;

    trace.prefix = &start;
    trace.prefix_len = 1;
    if (c->encoder.data)
        trace.encoder = malloc(count_of(&c->encoder) * sizeof(float));
    if (c->logits.data) {
        trace.logits = malloc(count_of(&c->logits) * sizeof(float));
        trace.prefix = c->outputs[greedy].ids;
        trace.prefix_len = c->outputs[greedy].count - 1;
    }
    if ((c->encoder.data && !trace.encoder) || (c->logits.data && !trace.logits))
        error_set(error, "out of memory");
    else if (!engine_trace(v->engine, &trace, error) &&
             (!trace.encoder ||
              !tensor_compare(v, encoder, at, &c->encoder, trace.encoder, error)) &&
             (!trace.logits || !tensor_compare(v, logits, at, &c->logits, trace.logits, error)))
        status = 0;
    free(trace.encoder);
    free(trace.logits);
    return status;
}

static void tensor_judge(const struct verify *v, struct verify_row *row)
{
    row->judged = !isnan(v->rules.tensor);
    row->ok = row->equal == row->total;
    if (row->judged)
        snprintf(row->rule, sizeof row->rule, "error at most %g%s", v->rules.tensor,
                 v->rules.relative ? " of the range" : "");
    else
        snprintf(row->rule, sizeof row->rule, "not judged");
}

/* Below about this a token is impossible: sampling draws by weights of 32 bits. */
static const double NEGLIGIBLE = 1e-9;

static int32_t listed_below(const struct golden_warped *w, double limit)
{
    int32_t count = 0;

    for (int32_t i = 0; i < w->top_count; i++)
        count += w->top_probabilities[i] < limit;
    return count;
}

/* The reference counts every token above 0. With top-p one token on the border may lie on either
 * side by rounding: a wrong border would move the probabilities of all others. */
static bool support_matches(const struct golden_warped *w, const float *got, int32_t count)
{
    int32_t border = w->top_p < 1, support = 0;

    for (int32_t i = 0; i < count; i++)
        support += got[i] >= NEGLIGIBLE;
    return support >= w->support - listed_below(w, NEGLIGIBLE * 10) - border &&
           support <= w->support - listed_below(w, NEGLIGIBLE / 10) + border;
}

static void probabilities_compare(const struct verify *v, struct verify_row *row, int32_t at,
                                  const struct golden_warped *w, const float *got)
{
    struct verify_difference worst = {
        .at = at, .position = w->prefix.count - 1, .expected = -1, .got = -1, .gap = NAN};
    double largest = 0;

    for (int32_t i = 0; i < w->top_count; i++) {
        double difference = fabs((double)got[w->top_ids[i]] - w->top_probabilities[i]);

        if (difference > largest || isnan(difference)) {
            largest = isnan(difference) ? INFINITY : difference;
            worst.expected = worst.got = w->top_ids[i];
        }
    }
    if (!(largest <= row->worst))
        row->worst = largest;
    row->total++;
    if (!(largest > v->rules.probabilities) &&
        support_matches(w, got, engine_limits(v->engine)->vocabulary))
        row->equal++;
    else
        verify_difference_add(row, worst);
}

static int warped_verify(struct verify *v, struct verify_row *row, struct error *error)
{
    int32_t V = engine_limits(v->engine)->vocabulary;
    float *probabilities = malloc((size_t)V * sizeof *probabilities);
    int status = 0;

    if (!probabilities)
        return error_set(error, "out of memory");
    for (int32_t i = 0; !status && i < v->golden->count; i++) {
        const struct golden_case *c = &v->golden->cases[i];

        for (int32_t j = 0; !status && j < c->warped_count; j++) {
            const struct golden_warped *w = &c->warped[j];
            struct engine_request warp;
            struct backend_trace trace = {.source = c->source.ids,
                                          .source_len = c->source.count,
                                          .prefix = w->prefix.ids,
                                          .prefix_len = w->prefix.count,
                                          .warp = &warp,
                                          .probabilities = probabilities};

            engine_request_init(&warp);
            warp.max_new = engine_limits(v->engine)->max_new; /* no EOS is forced */
            warp.do_sample = true;
            warp.temperature = (float)w->temperature;
            warp.top_k = w->top_k;
            warp.top_p = (float)w->top_p;
            warp.repetition_penalty = (float)w->repetition_penalty;
            warp.source = c->source.ids;
            warp.source_len = c->source.count;
            status = engine_trace(v->engine, &trace, error);
            if (!status)
                probabilities_compare(v, row, i, w, probabilities);
        }
    }
    free(probabilities);
    return status;
}

static int32_t greedy_kind(const struct golden *golden)
{
    for (int32_t i = 0; i < golden->kind_count; i++)
        if (golden->kinds[i].mode == GOLDEN_GREEDY)
            return i;
    return -1;
}

int verify_tensors(struct verify *v, struct error *error)
{
    struct verify_row *warped = verify_row_add(v, "probabilities");
    struct verify_row *encoder = verify_row_add(v, "encoder");
    struct verify_row *logits = verify_row_add(v, "logits");
    int32_t greedy = greedy_kind(v->golden);

    if (warped_verify(v, warped, error))
        return -1;
    for (int32_t i = 0; i < v->golden->count; i++)
        if ((v->golden->cases[i].encoder.data || v->golden->cases[i].logits.data) &&
            case_trace(v, i, greedy, encoder, logits, error))
            return -1;
    tensor_judge(v, encoder);
    tensor_judge(v, logits);
    warped->judged = !isnan(v->rules.probabilities);
    warped->ok = warped->equal == warped->total;
    if (warped->judged)
        snprintf(warped->rule, sizeof warped->rule, "error at most %g, same support",
                 v->rules.probabilities);
    else
        snprintf(warped->rule, sizeof warped->rule, "not judged");
    return 0;
}
