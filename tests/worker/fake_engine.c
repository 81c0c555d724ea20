/* SPDX-License-Identifier: MIT */
#include "tests/worker/fake_engine.h"

#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "kernels/base/clock.h"
#include "kernels/model/model.h"

enum {
    SEQUENCES_MAX = 8,
    SLOW_TOKENS = 200,     /* a request for so many is slowed down by `slow` */
    FIRST_TEXT_TOKEN = 500 /* past control tokens and pieces of single bytes */
};

struct fake_engine_control fake_engine_control;

struct slot {
    bool used;
    struct engine_request request; /* source is not kept */
    uint64_t key;                  /* hash of what the tokens depend on */
    int32_t rows, position, waited;
    int32_t lengths[SEQUENCES_MAX]; /* with the ending EOS, or up to the limit */
    bool ended[SEQUENCES_MAX];
};

struct engine {
    struct model *model;
    struct engine_limits limits;
    struct engine_info info;
    struct slot *slots; /* (max_rows) */
    int32_t step_us, encode_us, length, slow, rows_used, jobs;
    uint64_t delays;           /* state of the drawn delays */
    struct engine_item *items; /* (max_rows) */
    int32_t *tokens;           /* (max_rows, max_new) */
    float *logprobs;           /* (max_rows, max_new + 1) */
    size_t token_count, logprob_count;
    int64_t encode_owed_us;
    atomic_flag busy;
};

static void misuse(const char *what)
{
    fprintf(stderr, "fake engine: %s\n", what);
    abort();
}

static void enter(struct engine *e)
{
    if (atomic_flag_test_and_set(&e->busy))
        misuse("two threads call at once");
}

static void leave(struct engine *e)
{
    atomic_flag_clear(&e->busy);
}

static uint64_t mix(uint64_t x)
{
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
    x = (x ^ x >> 27) * 0x94d049bb133111ebu;
    return x ^ x >> 31;
}

static void wait_about(struct engine *e, int32_t mean_us)
{
    e->delays = mix(e->delays + 0x9e3779b97f4a7c15u);
    if (mean_us > 0)
        usleep((useconds_t)(e->delays % (2 * (uint64_t)mean_us + 1)));
}

/* ---- life ---- */

void engine_options_init(struct engine_options *options)
{
    memset(options, 0, sizeof *options);
    options->device = "cpu";
}

static int32_t setting(const char *name, int32_t otherwise)
{
    const char *all = getenv("PGPT_FAKE_ENGINE");
    const char *at = all ? strstr(all, name) : NULL;

    return at ? atoi(at + strlen(name)) : otherwise;
}

static void limits_set(struct engine *e, const struct engine_options *options)
{
    const struct model_config *c = &e->model->config;
    int32_t rows = atomic_load(&fake_engine_control.rows);

    if (!rows)
        rows = options->max_rows ? options->max_rows : setting("rows=", 64);
    e->limits = (struct engine_limits){.max_rows = rows,
                                       .max_source = c->positions,
                                       .max_new = c->positions,
                                       .vocabulary = c->vocabulary,
                                       .positions = c->positions,
                                       .max_beams = SEQUENCES_MAX,
                                       .max_sequences = SEQUENCES_MAX,
                                       .start_token = c->start_token,
                                       .eos_token = c->eos_token,
                                       .pad_token = c->pad_token,
                                       .unk_token = c->unk_token};
}

struct engine *engine_open(const char *model_dir, const struct engine_options *options,
                           struct error *error)
{
    struct engine *e = calloc(1, sizeof *e);
    size_t rows;

    e->model = model_open(model_dir, error);
    if (!e->model) {
        free(e);
        return NULL;
    }
    limits_set(e, options);
    rows = (size_t)e->limits.max_rows;
    e->slots = calloc(rows, sizeof *e->slots);
    e->items = calloc(rows, sizeof *e->items);
    e->tokens = calloc(rows * (size_t)e->limits.max_new, sizeof *e->tokens);
    e->logprobs = calloc(rows * ((size_t)e->limits.max_new + 1), sizeof *e->logprobs);
    e->step_us = setting("step_us=", 0);
    e->encode_us = setting("encode_us=", 0);
    e->length = setting("length=", 20);
    e->slow = setting("slow=", 1);
    e->delays = (uint64_t)setting("seed=", 1);
    snprintf(e->info.device, sizeof e->info.device, "fake");
    snprintf(e->info.compute, sizeof e->info.compute, "fake");
    snprintf(e->info.model_version, sizeof e->info.model_version, "%016llx",
             (unsigned long long)e->model->weight_hash);
    snprintf(e->info.engine_id, sizeof e->info.engine_id, "%016llx",
             (unsigned long long)mix(e->model->weight_hash));
    return e;
}

void engine_close(struct engine *e)
{
    if (!e)
        return;
    model_close(e->model);
    free(e->slots);
    free(e->items);
    free(e->tokens);
    free(e->logprobs);
    free(e);
}

const struct engine_limits *engine_limits(const struct engine *e)
{
    return &e->limits;
}

const struct engine_info *engine_info(const struct engine *e)
{
    return &e->info;
}

int32_t engine_free_rows(const struct engine *e)
{
    return e->limits.max_rows - e->rows_used;
}

/* ---- requests ---- */

void engine_request_init(struct engine_request *request)
{
    memset(request, 0, sizeof *request);
    request->max_new = 128;
    request->num_sequences = request->num_beams = 1;
    request->temperature = request->top_p = 1.0f;
    request->repetition_penalty = request->length_penalty = 1.0f;
}

static uint64_t key_of(const struct engine_request *r)
{
    uint64_t key = r->do_sample ? mix(r->seed + 1) : 0;

    for (int32_t i = 0; i < r->source_len; i++)
        key = mix(key ^ (uint64_t)(uint32_t)r->source[i]);
    return key;
}

static int32_t length_of(const struct engine *e, const struct slot *s, int32_t sequence)
{
    int32_t fixed = atomic_load(&fake_engine_control.length);
    uint64_t hash = mix(s->key + (uint64_t)sequence * 77 + 5);
    int32_t length = fixed ? fixed : 1 + (int32_t)(hash % (2 * (uint64_t)e->length));

    return length > s->request.min_new ? length : s->request.min_new + 1;
}

static void slot_fill(struct engine *e, struct slot *s, const struct engine_request *r)
{
    *s = (struct slot){.used = true, .request = *r, .key = key_of(r)};
    s->request.source = NULL;
    s->rows = r->num_sequences > r->num_beams ? r->num_sequences : r->num_beams;
    for (int32_t i = 0; i < r->num_sequences; i++)
        s->lengths[i] = length_of(e, s, i);
    e->rows_used += s->rows;
    e->jobs++;
    if (e->rows_used > e->limits.max_rows)
        misuse("more rows than there are");
    if (e->rows_used > atomic_load(&fake_engine_control.most_rows))
        atomic_store(&fake_engine_control.most_rows, e->rows_used);
    if (e->jobs > atomic_load(&fake_engine_control.most_jobs))
        atomic_store(&fake_engine_control.most_jobs, e->jobs);
}

int32_t engine_admit(struct engine *e, int32_t n, const struct engine_request *requests,
                     int32_t *slots, struct error *error)
{
    int32_t memory = atomic_load(&fake_engine_control.memory_jobs), m = 0;

    (void)error;
    enter(e);
    for (int32_t at = 0; m < n; m++) {
        const struct engine_request *r = &requests[m];
        int32_t rows = r->num_sequences > r->num_beams ? r->num_sequences : r->num_beams;

        if (r->max_new < 1 || r->max_new > e->limits.max_new || r->source_len < 1)
            misuse("a request out of the limits");
        if (rows > engine_free_rows(e) || (memory && e->jobs >= memory))
            break;
        while (e->slots[at].used)
            at++;
        slot_fill(e, &e->slots[at], r);
        e->encode_owed_us += e->encode_us;
        slots[m] = at;
    }
    leave(e);
    return m;
}

/* ---- steps ---- */

static int32_t token_of(const struct engine *e, const struct slot *s, int32_t sequence,
                        int32_t position)
{
    uint64_t hash = mix(s->key ^ mix((uint64_t)sequence << 32 | (uint32_t)position));

    return FIRST_TEXT_TOKEN + (int32_t)(hash % (uint64_t)(e->limits.vocabulary - FIRST_TEXT_TOKEN));
}

/* An item with the tokens [from, to) of a sequence, and how it goes on. */
static void item_put(struct engine *e, struct engine_output *out, int32_t slot, int32_t sequence,
                     int32_t from, int32_t to)
{
    struct slot *s = &e->slots[slot];
    struct engine_item *item = &e->items[out->item_count++];
    bool beams = s->request.num_beams > 1;
    bool eos = s->lengths[sequence] <= s->request.max_new && to >= s->lengths[sequence];
    int32_t end = eos ? s->lengths[sequence] - 1 : to;

    *item = (struct engine_item){.tag = s->request.tag,
                                 .slot = slot,
                                 .sequence = sequence,
                                 .tokens = e->tokens + e->token_count,
                                 .logprobs = beams ? NULL : e->logprobs + e->logprob_count,
                                 .ended_with_eos = eos,
                                 .beam_score = -0.5 - sequence};
    for (int32_t i = from; i < end; i++) {
        e->tokens[e->token_count++] = token_of(e, s, sequence, i);
        item->token_count++;
    }
    for (int32_t i = 0; i < item->token_count + eos && !beams; i++)
        e->logprobs[e->logprob_count++] = -0.25f;
    if (eos)
        item->finish = ENGINE_FINISH_EOS;
    else if (to >= s->request.max_new)
        item->finish = ENGINE_FINISH_LENGTH;
    s->ended[sequence] = item->finish != ENGINE_RUNNING;
}

static int32_t at_most(int32_t a, int32_t b)
{
    return a < b ? a : b;
}

/* Beams say nothing until all of them end. */
static void beams_step(struct engine *e, struct engine_output *out, int32_t slot, int32_t to)
{
    struct slot *s = &e->slots[slot];
    int32_t longest = 0;

    for (int32_t i = 0; i < s->request.num_sequences; i++)
        if (s->lengths[i] > longest)
            longest = s->lengths[i];
    if (s->ended[0] || to < at_most(longest, s->request.max_new))
        return;
    for (int32_t i = 0; i < s->request.num_sequences; i++)
        item_put(e, out, slot, i, 0, at_most(s->lengths[i], s->request.max_new));
}

static int32_t slot_step(struct engine *e, struct engine_output *out, int32_t slot, int32_t k)
{
    struct slot *s = &e->slots[slot];
    int32_t from = s->position, to = at_most(from + k, s->request.max_new), rows = 0;

    if (s->request.min_new >= SLOW_TOKENS && ++s->waited % e->slow)
        return s->rows;
    if (s->request.num_beams > 1) {
        rows = s->ended[0] ? 0 : s->rows;
        beams_step(e, out, slot, to);
    } else {
        for (int32_t i = 0; i < s->request.num_sequences; i++) {
            if (s->ended[i])
                continue;
            rows++;
            item_put(e, out, slot, i, from, to);
        }
    }
    s->position = to;
    return rows;
}

int engine_step(struct engine *e, int32_t k, struct engine_output *out, struct error *error)
{
    int32_t fixed = atomic_load(&fake_engine_control.step_us), rows = 0;
    int64_t begun = clock_mono_us();

    enter(e);
    memset(out, 0, sizeof *out);
    if (atomic_load(&fake_engine_control.fail_in_steps) > 0 &&
        atomic_fetch_sub(&fake_engine_control.fail_in_steps, 1) == 1) {
        leave(e);
        return error_set(error, "the device fell off the bus");
    }
    wait_about(e, (int32_t)e->encode_owed_us);
    e->encode_owed_us = 0;
    out->encode_us = clock_mono_us() - begun;
    e->token_count = e->logprob_count = 0;
    for (int32_t i = 0; i < e->limits.max_rows; i++)
        if (e->slots[i].used)
            rows += slot_step(e, out, i, k);
    if (fixed)
        usleep((useconds_t)fixed);
    else
        wait_about(e, e->step_us * k);
    while (atomic_load(&fake_engine_control.holds))
        usleep(100);
    out->items = e->items;
    out->steps = rows ? k : 0;
    out->rows_mean = rows;
    out->decode_us = clock_mono_us() - begun - out->encode_us;
    leave(e);
    return 0;
}

void engine_stop_sequence(struct engine *e, int32_t slot, int32_t sequence)
{
    enter(e);
    if (slot < 0 || slot >= e->limits.max_rows || !e->slots[slot].used)
        misuse("a sequence of an unknown slot is stopped");
    e->slots[slot].ended[sequence] = true;
    atomic_fetch_add(&fake_engine_control.stopped_sequences, 1);
    leave(e);
}

void engine_release(struct engine *e, int32_t slot)
{
    enter(e);
    if (slot < 0 || slot >= e->limits.max_rows || !e->slots[slot].used)
        misuse("an unknown slot is released");
    e->rows_used -= e->slots[slot].rows;
    e->jobs--;
    memset(&e->slots[slot], 0, sizeof e->slots[slot]);
    if (e->items) /* what the engine handed out is gone: who still reads it shall notice */
        memset(e->items, 0xa5, (size_t)e->limits.max_rows * sizeof *e->items);
    leave(e);
}
