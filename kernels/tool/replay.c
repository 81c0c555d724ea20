/* SPDX-License-Identifier: MIT */
#include "kernels/tool/replay.h"

#include <stdlib.h>
#include <string.h>

enum { DECOYS_MAX = 8, SLOT_NONE = -1 };
static const uint64_t DECOY_TAG = UINT64_MAX;

/* A neighbour that joins and leaves before its end: nothing of it is kept. */
struct decoy {
    int32_t slot;
    int32_t calls_left;
};

struct replay {
    struct engine *engine;
    const struct engine_request *requests;
    int32_t n;
    const struct replay_schedule *schedule;
    struct replay_output *outputs;
    int32_t *order, *slots; /* (n) */
    int32_t admitted, finished;
    struct decoy decoys[DECOYS_MAX];
    uint64_t random;
    struct error *error;
};

uint64_t replay_random(uint64_t *state)
{
    uint64_t z = *state += 0x9E3779B97F4A7C15u;

    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
    z = (z ^ z >> 27) * 0x94D049BB133111EBu;
    return z ^ z >> 31;
}

static int32_t random_below(struct replay *r, int32_t limit)
{
    return (int32_t)(replay_random(&r->random) % (uint64_t)limit);
}

static int output_create(struct replay_output *output, const struct engine_request *request,
                         struct error *error)
{
    size_t room = (size_t)request->max_new + 1;

    memset(output, 0, sizeof *output);
    output->sequence_count = request->num_sequences;
    for (int32_t i = 0; i < request->num_sequences; i++) {
        output->sequences[i].tokens = calloc(room, sizeof(int32_t));
        output->sequences[i].logprobs = calloc(room, sizeof(float));
        if (!output->sequences[i].tokens || !output->sequences[i].logprobs)
            return error_set(error, "out of memory");
    }
    return 0;
}

/* Checks what a back end reports as it goes: more tokens than asked for would be a plain defect. */
static int item_take(struct replay *r, const struct engine_item *item)
{
    const struct engine_request *request;
    struct replay_sequence *s;
    int32_t logprobs = item->logprobs ? item->token_count + item->ended_with_eos : 0;

    if (item->tag == DECOY_TAG)
        return 0;
    if (item->tag >= (uint64_t)r->n)
        return error_set(r->error, "the engine reported the tag %llu, which no request has",
                         (unsigned long long)item->tag);
    request = &r->requests[item->tag];
    s = &r->outputs[item->tag].sequences[item->sequence];
    if (item->sequence >= request->num_sequences || s->finished ||
        s->token_count + item->token_count + item->ended_with_eos > request->max_new)
        return error_set(r->error, "the engine reported too much for request %llu, sequence %d",
                         (unsigned long long)item->tag, item->sequence);
    memcpy(s->tokens + s->token_count, item->tokens, (size_t)item->token_count * sizeof *s->tokens);
    if (logprobs)
        memcpy(s->logprobs + s->logprob_count, item->logprobs,
               (size_t)logprobs * sizeof *s->logprobs);
    s->token_count += item->token_count;
    s->logprob_count += logprobs;
    s->ended_with_eos |= item->ended_with_eos;
    s->finish = item->finish;
    s->beam_score = item->beam_score;
    if (item->finish == ENGINE_RUNNING)
        return 0;
    s->finished = true;
    if (++r->outputs[item->tag].finished_count == request->num_sequences) {
        engine_release(r->engine, r->slots[item->tag]);
        r->finished++;
    }
    return 0;
}

/* Admits the next `count` requests of the order, or as many of them as fit. */
static int admit(struct replay *r, int32_t count)
{
    while (count > 0 && r->admitted < r->n) {
        int32_t index = r->order[r->admitted];
        struct engine_request request = r->requests[index];
        int32_t taken;

        request.tag = (uint64_t)index;
        taken = engine_admit(r->engine, 1, &request, &r->slots[index], r->error);
        if (taken < 0)
            return -1;
        if (taken == 0) {
            if (r->admitted == r->finished && !r->schedule->random)
                return error_set(r->error, "a request does not fit into the empty engine: more "
                                           "--rows or --memory is needed");
            return 0;
        }
        r->admitted++;
        count--;
    }
    return 0;
}

static int decoy_admit(struct replay *r)
{
    int32_t at = random_below(r, DECOYS_MAX), taken;
    struct engine_request request = r->requests[random_below(r, r->n)];

    if (r->decoys[at].slot != SLOT_NONE)
        return 0;
    request.tag = DECOY_TAG;
    request.seed ^= 0x5bd1e995;
    request.max_new = 1 + random_below(r, request.max_new);
    if (request.min_new > request.max_new)
        request.min_new = request.max_new;
    taken = engine_admit(r->engine, 1, &request, &r->decoys[at].slot, r->error);
    if (taken == 1) {
        r->decoys[at].calls_left = 1 + random_below(r, 6);
        if (request.num_beams == 1 && random_below(r, 3) == 0)
            engine_stop_sequence(r->engine, r->decoys[at].slot, 0);
    } else {
        r->decoys[at].slot = SLOT_NONE;
    }
    return taken < 0 ? -1 : 0;
}

static void decoys_leave(struct replay *r, bool all)
{
    for (int i = 0; i < DECOYS_MAX; i++) {
        if (r->decoys[i].slot == SLOT_NONE || (!all && --r->decoys[i].calls_left > 0))
            continue;
        engine_release(r->engine, r->decoys[i].slot);
        r->decoys[i].slot = SLOT_NONE;
    }
}

static int round_admit(struct replay *r)
{
    int32_t room = r->schedule->batch ? r->schedule->batch - (r->admitted - r->finished) : r->n;
    int32_t most = 4 + r->n / 64; /* so that many are many at once */

    if (!r->schedule->random)
        return admit(r, room);
    decoys_leave(r, false);
    if (random_below(r, 2) && decoy_admit(r))
        return -1;
    return admit(r, random_below(r, (room < most ? room : most) + 1));
}

static int rounds(struct replay *r)
{
    while (r->finished < r->n) {
        struct engine_output output;

        if (round_admit(r) || engine_step(r->engine, r->schedule->k, &output, r->error))
            return -1;
        for (int32_t i = 0; i < output.item_count; i++)
            if (item_take(r, &output.items[i]))
                return -1;
        if (output.steps == 0 && r->admitted > r->finished && !r->schedule->random)
            return error_set(r->error, "the engine runs no step though sequences are not finished");
    }
    return 0;
}

static void order_make(struct replay *r)
{
    for (int32_t i = 0; i < r->n; i++)
        r->order[i] = i;
    for (int32_t i = r->n - 1; i > 0 && r->schedule->random; i--) {
        int32_t j = random_below(r, i + 1), other = r->order[i];

        r->order[i] = r->order[j];
        r->order[j] = other;
    }
}

int replay_run(struct engine *engine, const struct engine_request *requests, int32_t n,
               const struct replay_schedule *schedule, struct replay_output *outputs,
               struct error *error)
{
    struct replay r = {.engine = engine,
                       .requests = requests,
                       .n = n,
                       .schedule = schedule,
                       .outputs = outputs,
                       .random = schedule->seed,
                       .error = error};
    int status = -1;

    memset(outputs, 0, (size_t)n * sizeof *outputs);
    for (int i = 0; i < DECOYS_MAX; i++)
        r.decoys[i].slot = SLOT_NONE;
    r.order = calloc((size_t)n + 1, sizeof *r.order);
    r.slots = calloc((size_t)n + 1, sizeof *r.slots);
    if (!r.order || !r.slots) {
        error_set(error, "out of memory");
        goto out;
    }
    for (int32_t i = 0; i < n; i++)
        if (output_create(&outputs[i], &requests[i], error))
            goto out;
    order_make(&r);
    status = rounds(&r);
    decoys_leave(&r, true);
out:
    free(r.order);
    free(r.slots);
    return status;
}

void replay_free(struct replay_output *outputs, int32_t n)
{
    for (int32_t i = 0; i < n; i++)
        for (int32_t s = 0; s < REPLAY_SEQUENCES_MAX; s++) {
            free(outputs[i].sequences[s].tokens);
            free(outputs[i].sequences[s].logprobs);
        }
    memset(outputs, 0, (size_t)n * sizeof *outputs);
}

bool replay_equal(const struct replay_output *a, const struct replay_output *b)
{
    if (a->sequence_count != b->sequence_count)
        return false;
    for (int32_t i = 0; i < a->sequence_count; i++) {
        const struct replay_sequence *x = &a->sequences[i], *y = &b->sequences[i];

        if (x->token_count != y->token_count || x->logprob_count != y->logprob_count ||
            x->finish != y->finish || x->ended_with_eos != y->ended_with_eos ||
            memcmp(x->tokens, y->tokens, (size_t)x->token_count * sizeof *x->tokens) ||
            memcmp(x->logprobs, y->logprobs, (size_t)x->logprob_count * sizeof *x->logprobs) ||
            memcmp(&x->beam_score, &y->beam_score, sizeof x->beam_score))
            return false;
    }
    return true;
}
