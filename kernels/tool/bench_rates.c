/* SPDX-License-Identifier: MIT */
#include <stdlib.h>
#include <string.h>

#include "kernels/base/clock.h"
#include "kernels/tool/bench.h"
#include "kernels/tool/replay.h"
#include "kernels/tool/stats.h"

enum {
    ROUNDS_MAX = 200,
    ROUNDS_US = 1000000, /* short rounds are repeated for so long */
    TRAFFIC_SOURCE_LEAST = 5,
    TRAFFIC_SOURCE_MOST = 200,
    TRAFFIC_NEW_MOST = 250,
};

void bench_request(const struct bench *b, uint64_t *random, int32_t source_len, int32_t new_tokens,
                   int32_t *tokens, struct engine_request *request)
{
    const struct engine_limits *limits = engine_limits(b->engine);

    for (int32_t i = 0; i < source_len - 1; i++)
        tokens[i] = (int32_t)(replay_random(random) % (uint64_t)limits->vocabulary);
    tokens[source_len - 1] = limits->eos_token;
    engine_request_init(request);
    request->source = tokens;
    request->source_len = source_len;
    request->max_new = request->min_new = new_tokens;
    request->num_beams = b->beams;
    request->seed = replay_random(random);
    if (b->sample) {
        request->do_sample = true;
        request->temperature = 0.8f;
        request->top_k = limits->vocabulary < 50 ? limits->vocabulary : 50;
        request->top_p = 0.95f;
    }
}

int64_t bench_item_tokens(const struct bench *b, const struct engine_item *item)
{
    return (int64_t)(item->token_count + item->ended_with_eos) * b->beams;
}

/* ---- fixed lengths ---- */

struct round {
    double wall_us, encode_us;
    double us_per_step; /* of calls in which all rows ran, and so nothing was encoded beside them */
    int64_t tokens;
};

static int round_run(struct bench *b, const struct engine_request *requests, int32_t *slots,
                     int32_t batch, struct round *out, struct error *error)
{
    struct engine_output output = {0};
    int64_t begun = clock_mono_us();
    double all_us = 0.0, all_steps = 0.0, full_us = 0.0, full_steps = 0.0;
    int32_t left = batch;
    int taken = engine_admit(b->engine, batch, requests, slots, error);

    memset(out, 0, sizeof *out);
    if (taken < 0)
        return -1;
    if (taken < batch)
        return error_set(error, "only %d of %d requests fit; more --rows or --memory is needed",
                         taken, batch);
    while (left > 0) {
        if (engine_step(b->engine, b->steps, &output, error))
            return -1;
        if (!output.steps && !output.item_count)
            return error_set(error, "the engine runs no step though sequences are not finished");
        out->encode_us += (double)output.encode_us;
        all_us += (double)output.decode_us;
        all_steps += output.steps;
        if (output.rows_mean > (double)batch * b->beams - 0.5) {
            full_us += (double)output.decode_us;
            full_steps += output.steps;
        }
        for (int32_t i = 0; i < output.item_count; i++) {
            out->tokens += bench_item_tokens(b, &output.items[i]);
            if (output.items[i].finish == ENGINE_RUNNING)
                continue;
            engine_release(b->engine, output.items[i].slot);
            left--;
        }
    }
    out->wall_us = (double)(clock_mono_us() - begun);
    /* where the rows never ran all at once: of all calls */
    out->us_per_step = full_steps > 0.0 ? full_us / full_steps : all_us / all_steps;
    return 0;
}

static void figures_make(double *us, double *rates, double *encodes, size_t count,
                         struct bench_figures *out)
{
    stats_sort(us, count);
    stats_sort(rates, count);
    stats_sort(encodes, count);
    out->rounds = (int32_t)count;
    out->us_per_step = stats_median(us, count);
    out->us_per_step_min = us[0];
    out->us_per_step_max = us[count - 1];
    out->tok_per_s = stats_median(rates, count);
    out->tok_per_s_min = rates[0];
    out->tok_per_s_max = rates[count - 1];
    out->encode_us = stats_median(encodes, count);
}

static int rounds_run(struct bench *b, const struct engine_request *requests, int32_t *slots,
                      int32_t batch, struct bench_figures *out, struct error *error)
{
    double us[ROUNDS_MAX], rates[ROUNDS_MAX], encodes[ROUNDS_MAX];
    struct round round;
    int64_t begun;
    size_t count = 0;

    for (int warm = 0; warm < 2; warm++)
        if (round_run(b, requests, slots, batch, &round, error))
            return -1;
    begun = clock_mono_us();
    while (count < (size_t)b->rounds ||
           (count < ROUNDS_MAX && clock_mono_us() - begun < ROUNDS_US)) {
        if (round_run(b, requests, slots, batch, &round, error))
            return -1;
        us[count] = round.us_per_step;
        encodes[count] = round.encode_us;
        rates[count++] = (double)round.tokens * 1e6 / round.wall_us;
    }
    figures_make(us, rates, encodes, count, out);
    out->rows_mean = (double)batch * b->beams;
    return 0;
}

int bench_fixed(struct bench *b, int32_t batch, struct bench_figures *out, struct error *error)
{
    size_t count = (size_t)batch, source = (size_t)b->source;
    struct engine_request *requests = calloc(count, sizeof *requests);
    int32_t *slots = calloc(count, sizeof *slots);
    int32_t *tokens = calloc(count * source, sizeof *tokens);
    uint64_t random = 1;
    int status = -1;

    if (!requests || !slots || !tokens) {
        error_set(error, "out of memory for %d requests", batch);
    } else {
        for (int32_t i = 0; i < batch; i++)
            bench_request(b, &random, b->source, b->new_tokens, tokens + (size_t)i * source,
                          &requests[i]);
        status = rounds_run(b, requests, slots, batch, out, error);
    }
    free(requests);
    free(slots);
    free(tokens);
    return status;
}

/* ---- continuous traffic ---- */

enum { NEWCOMERS_MAX = 256 };

struct traffic {
    struct bench *b;
    struct engine_request newcomers[NEWCOMERS_MAX];     /* (waiting) drawn, not admitted yet */
    int32_t tokens[NEWCOMERS_MAX][TRAFFIC_SOURCE_MOST]; /* their sources */
    int32_t waiting;
    uint64_t random;
    int32_t batch, running;
    struct engine_output output;
};

static int32_t draw(struct traffic *t, int32_t least, int32_t most, int32_t limit)
{
    if (most > limit)
        most = limit;
    if (least > most)
        least = most;
    return least + (int32_t)(replay_random(&t->random) % (uint64_t)(most - least + 1));
}

static void newcomer_draw(struct traffic *t)
{
    const struct engine_limits *limits = engine_limits(t->b->engine);
    int32_t source = draw(t, TRAFFIC_SOURCE_LEAST, TRAFFIC_SOURCE_MOST, limits->max_source);
    int32_t fresh = draw(t, 1, TRAFFIC_NEW_MOST, limits->max_new);

    bench_request(t->b, &t->random, source, fresh, t->tokens[t->waiting],
                  &t->newcomers[t->waiting]);
    t->waiting++;
}

/* The first `count` are admitted: the others move up. */
static void newcomers_drop(struct traffic *t, int32_t count)
{
    t->waiting -= count;
    for (int32_t i = 0; i < t->waiting; i++) {
        memcpy(t->tokens[i], t->tokens[i + count], sizeof t->tokens[i]);
        t->newcomers[i] = t->newcomers[i + count];
        t->newcomers[i].source = t->tokens[i];
    }
}

static int traffic_admit(struct traffic *t, struct error *error)
{
    int32_t slots[NEWCOMERS_MAX], taken, want = t->batch - t->running;

    want = want > NEWCOMERS_MAX ? NEWCOMERS_MAX : want;
    while (t->waiting < want)
        newcomer_draw(t);
    if (want <= 0)
        return 0;
    taken = engine_admit(t->b->engine, want, t->newcomers, slots, error);
    if (taken < 0)
        return -1;
    if (taken == 0 && t->running == 0)
        return error_set(error, "a request does not fit into the empty engine");
    t->running += taken;
    newcomers_drop(t, taken);
    return 0;
}

/* Fills the free places, runs one step, releases what ended. */
static int traffic_step(struct traffic *t, int64_t *tokens, struct error *error)
{
    struct engine *engine = t->b->engine;

    if (traffic_admit(t, error) || engine_step(engine, 1, &t->output, error))
        return -1;
    for (int32_t i = 0; i < t->output.item_count; i++) {
        *tokens += bench_item_tokens(t->b, &t->output.items[i]);
        if (t->output.items[i].finish == ENGINE_RUNNING)
            continue;
        engine_release(engine, t->output.items[i].slot);
        t->running--;
    }
    return 0;
}

/* Ends what still runs, so that the engine is empty again. */
static int traffic_drain(struct traffic *t, struct error *error)
{
    int64_t ignored = 0;

    t->batch = 0;
    while (t->running > 0)
        if (traffic_step(t, &ignored, error))
            return -1;
    return 0;
}

static int traffic_measure(struct traffic *t, struct bench_figures *out, struct error *error)
{
    int64_t begun = clock_mono_us(), length = (int64_t)t->b->seconds * 1000000, now, tokens = 0;
    double decode_us = 0, encode_us = 0, steps = 0, rows = 0;

    do {
        if (traffic_step(t, &tokens, error))
            return -1;
        decode_us += (double)t->output.decode_us;
        encode_us += (double)t->output.encode_us;
        rows += t->output.rows_mean * t->output.steps;
        steps += t->output.steps;
    } while ((now = clock_mono_us()) - begun < length);
    *out = (struct bench_figures){
        .us_per_step = decode_us / steps,
        .encode_us = encode_us / steps,
        .tok_per_s = (double)tokens * 1e6 / (double)(now - begun),
        .rows_mean = rows / steps,
        .rounds = 1,
    };
    return 0;
}

int bench_traffic(struct bench *b, int32_t batch, struct bench_figures *out, struct error *error)
{
    struct traffic *t = calloc(1, sizeof *t);
    int64_t ignored = 0, begun = clock_mono_us();
    int status = 0;

    if (!t)
        return error_set(error, "out of memory");
    t->b = b;
    t->random = 2;
    t->batch = batch;
    /* Until the lengths are mixed, but no longer than is measured. */
    for (int i = 0; !status && i < TRAFFIC_NEW_MOST; i++) {
        status = traffic_step(t, &ignored, error);
        if (clock_mono_us() - begun > (int64_t)b->seconds * 1000000)
            break;
    }
    if (!status)
        status = traffic_measure(t, out, error) || traffic_drain(t, error) ? -1 : 0;
    free(t);
    return status;
}
