/* SPDX-License-Identifier: MIT
 *
 * Batch invariance: requests of every kind, each alone, then in random batches with neighbours that
 * join and leave, with other numbers of steps a call and of threads. All bits must be the same.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/tool/replay.h"
#include "kernels/tool/verify.h"

enum { REQUESTS = 32, MAX_NEW = 48, COPIES = 16 };

static int32_t smaller(int32_t a, int32_t b)
{
    return a < b ? a : b;
}

static void requests_make(const struct verify *v, struct engine_request *requests)
{
    const struct engine_limits *limits = engine_limits(v->engine);
    int32_t several = smaller(4, limits->max_rows);

    for (int32_t i = 0; i < REQUESTS; i++) {
        /* golden sources far apart, so that their lengths differ */
        const struct golden_case *c = &v->golden->cases[(int64_t)i * 7919 % v->golden->count];
        struct engine_request *r = &requests[i];

        engine_request_init(r);
        r->source = c->source.ids;
        r->source_len = c->source.count;
        r->max_new = smaller(c->max_new, MAX_NEW);
        r->seed = v->seed + (uint64_t)i;
        if (i % 4 == 1 || i % 4 == 2) {
            r->do_sample = true;
            r->temperature = 0.9f;
            r->top_k = smaller(50, limits->vocabulary);
            r->top_p = 0.95f;
        }
        if (i % 4 == 2)
            r->num_sequences = smaller(3, several);
        if (i % 4 == 3)
            r->num_beams = several;
        if (i % 8 >= 4)
            r->repetition_penalty = 1.2f;
    }
}

/* Where the first sequence that differs does so. */
static void difference_find(const struct replay_output *a, const struct replay_output *b,
                            struct verify_difference *out)
{
    for (int32_t s = 0; s < a->sequence_count; s++) {
        const struct replay_sequence *x = &a->sequences[s], *y = &b->sequences[s];

        for (int32_t i = 0; i < x->token_count || i < y->token_count; i++) {
            bool tokens = i < x->token_count && i < y->token_count && x->tokens[i] == y->tokens[i];
            bool logprobs = i >= x->logprob_count || i >= y->logprob_count ||
                            !memcmp(&x->logprobs[i], &y->logprobs[i], sizeof *x->logprobs);

            if (tokens && logprobs)
                continue;
            out->position = i;
            out->expected = i < x->token_count ? x->tokens[i] : -1;
            out->got = i < y->token_count ? y->tokens[i] : -1;
            return;
        }
    }
}

static void compare(struct verify_row *row, const struct replay_output *alone,
                    const struct replay_output *other)
{
    for (int32_t i = 0; i < REQUESTS; i++) {
        struct verify_difference difference = {
            .at = i, .position = -1, .expected = -1, .got = -1, .gap = NAN};

        row->total++;
        if (replay_equal(&alone[i], &other[i])) {
            row->equal++;
            continue;
        }
        difference_find(&alone[i], &other[i], &difference);
        verify_difference_add(row, difference);
    }
    row->judged = true;
    row->ok = row->equal == row->total;
    snprintf(row->rule, sizeof row->rule, "the same bits as alone");
}

/* Every request many times at once, so that all rows are full: a device takes other kernels there.
 */
static int crowd_verify(struct verify *v, const char *name, const struct replay_schedule *schedule,
                        const struct engine_request *requests, const struct replay_output *alone,
                        struct error *error)
{
    const int32_t fit = engine_limits(v->engine)->max_rows / REQUESTS;
    const int32_t copies = fit > COPIES ? fit : COPIES;
    struct engine_request *crowd = calloc((size_t)copies * REQUESTS, sizeof *crowd);
    struct replay_output *outputs = calloc((size_t)copies * REQUESTS, sizeof *outputs);
    struct verify_row *row = verify_row_add(v, name);
    int status = -1;

    if (!crowd || !outputs) {
        error_set(error, "out of memory");
        goto out;
    }
    for (int32_t i = 0; i < copies; i++)
        memcpy(crowd + i * REQUESTS, requests, REQUESTS * sizeof *requests);
    status = replay_run(v->engine, crowd, copies * REQUESTS, schedule, outputs, error);
    for (int32_t i = 0; !status && i < copies; i++)
        compare(row, alone, outputs + i * REQUESTS);
    replay_free(outputs, copies * REQUESTS);
out:
    free(crowd);
    free(outputs);
    return status;
}

/* What a crowd without beams asks for. */
enum crowd_kind { CROWD_GREEDY, CROWD_SAMPLED, CROWD_ALL };

/* Greedy requests of a crowd, or such and others that draw by one rule or another, without
 * penalties: a device takes kernels of their own for either. */
static void crowd_make(const struct verify *v, enum crowd_kind kind,
                       struct engine_request *requests)
{
    static const int32_t top_ks[] = {50, 0, 64, 7, 1, 200};

    requests_make(v, requests);
    for (int32_t i = 0; i < REQUESTS; i++) {
        struct engine_request plain;

        requests[i].num_beams = 1;
        if (kind == CROWD_ALL)
            continue;
        engine_request_init(&plain);
        plain.source = requests[i].source;
        plain.source_len = requests[i].source_len;
        plain.max_new = requests[i].max_new;
        plain.seed = requests[i].seed;
        if (kind == CROWD_SAMPLED && i % 4) {
            plain.do_sample = true;
            plain.temperature = i % 3 ? 0.9f : 1.5f;
            plain.top_k =
                smaller(i % 2 ? 50 : top_ks[i / 2 % 6], engine_limits(v->engine)->vocabulary);
            plain.top_p = i % 5 ? 0.95f : 1.0f;
            plain.min_new = i % 7 ? 0 : smaller(8, plain.max_new);
            plain.num_sequences = i % 8 == 2 ? smaller(3, engine_limits(v->engine)->max_rows) : 1;
        }
        requests[i] = plain;
    }
}

/* A crowd of requests without beams, so that a device may be told of the next call before the host
 * has seen this one: all at once, which ends little by little (a device takes other kernels for
 * each number of rows), and with some that join, leave and are stopped all the time. */
static int ahead_verify(struct verify *v, enum crowd_kind kind, struct error *error)
{
    static const char *const names[] = {"greedy", "sampled", "no beams"};
    static const int32_t steps[] = {4, 16};
    const struct replay_schedule once = {.k = 1, .batch = 1};
    const struct replay_schedule joining = {.k = 1, .random = true, .seed = v->seed + 7};
    struct engine_request requests[REQUESTS];
    struct replay_output alone[REQUESTS];
    char name[32];
    int status;

    crowd_make(v, kind, requests);
    status = replay_run(v->engine, requests, REQUESTS, &once, alone, error);
    for (int i = 0; !status && i < (kind == CROWD_SAMPLED ? 2 : 1); i++) {
        const struct replay_schedule all = {.k = steps[i]};

        snprintf(name, sizeof name, "%s, crowd, k %d", names[kind], steps[i]);
        status = crowd_verify(v, name, &all, requests, alone, error);
    }
    if (!status) {
        snprintf(name, sizeof name, "%s, joining, k 1", names[kind]);
        status = crowd_verify(v, name, &joining, requests, alone, error);
    }
    replay_free(alone, REQUESTS);
    return status;
}

static int schedule_verify(struct verify *v, struct engine *engine, const char *name,
                           const struct replay_schedule *schedule,
                           const struct engine_request *requests, const struct replay_output *alone,
                           struct error *error)
{
    struct replay_output outputs[REQUESTS];
    struct verify_row *row = verify_row_add(v, name);
    int status = replay_run(engine, requests, REQUESTS, schedule, outputs, error);

    if (!status)
        compare(row, alone, outputs);
    replay_free(outputs, REQUESTS);
    return status;
}

/* The same schedule in an engine with another number of threads. */
static int threads_verify(struct verify *v, const struct engine_request *requests,
                          const struct replay_output *alone, struct error *error)
{
    struct replay_schedule schedule = {.k = 4, .random = true, .seed = v->seed + 99};
    struct engine_options options = *v->options;
    struct engine *engine;
    char name[32];
    int status;

    options.threads = options.threads == 1 ? 2 : 1;
    snprintf(name, sizeof name, "batch, %d thread%s", options.threads,
             options.threads == 1 ? "" : "s");
    engine = engine_open(v->model_dir, &options, error);
    if (!engine)
        return -1;
    status = schedule_verify(v, engine, name, &schedule, requests, alone, error);
    engine_close(engine);
    return status;
}

int verify_batches(struct verify *v, struct error *error)
{
    static const int32_t steps[] = {1, 4, 16};
    struct engine_request requests[REQUESTS];
    struct replay_output alone[REQUESTS];
    struct replay_schedule schedule = {.k = 1, .batch = 1};
    int status;

    requests_make(v, requests);
    status = replay_run(v->engine, requests, REQUESTS, &schedule, alone, error);
    schedule.k = 16;
    if (!status)
        status = schedule_verify(v, v->engine, "alone, k 16", &schedule, requests, alone, error);
    for (int i = 0; !status && i < 3; i++) {
        struct replay_schedule random = {
            .k = steps[i], .random = true, .seed = v->seed + (uint64_t)i};
        char name[32];

        snprintf(name, sizeof name, "batch, k %d", steps[i]);
        status = schedule_verify(v, v->engine, name, &random, requests, alone, error);
    }
    if (!status && !strcmp(v->options->device, "cpu")) {
        status = threads_verify(v, requests, alone, error);
    } else if (!status) {
        const struct replay_schedule all = {.k = 16};

        status = crowd_verify(v, "crowd, k 16", &all, requests, alone, error);
        for (int kind = CROWD_GREEDY; !status && kind <= CROWD_ALL; kind++)
            status = ahead_verify(v, (enum crowd_kind)kind, error);
    }
    replay_free(alone, REQUESTS);
    return status;
}
