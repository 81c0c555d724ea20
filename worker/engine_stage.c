/* SPDX-License-Identifier: MIT
 *
 * The engine's thread. A turn: apply the stops that the text thread found; every few milliseconds
 * look at deadlines, cancels and partitions given up; admit while rows are free; step; send the
 * batch. Running rows never wait for anything but the device and a text thread that is a whole ring
 * behind.
 */
#include "worker/engine_stage.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "kernels/base/clock.h"
#include "kernels/text/prompt.h"
#include "worker/fault.h"
#include "worker/health.h"
#include "worker/text_stage.h"

enum {
    CPU_ADMIT_MOST = 64, /* encoding is work that running rows wait for */
    CPU_STEPS = 1,
    CUDA_STEPS = 4, /* it encodes beside the steps: as many join as there is room for */
    STOPS_AT_ONCE = 64,
    SWEEP_US = 3000,
    IDLE_WAIT_US = 100000,
    CLOSED_PAUSE_US = 1000
};

struct engine_stage {
    struct pipeline *pipeline;
    struct engine *engine;
    const struct detokeniser *detokeniser;
    struct running_table table;
    struct step_ring *ring;
    struct text_stage *text;
    pthread_t thread;
    bool started;
    _Atomic bool closed, stopping;
    /* The thread's own: */
    struct running **places; /* (max_rows) NULL = free */
    int32_t *free_places;    /* (free_count) */
    struct running **live;   /* (live_count) */
    int32_t max_rows, free_count, live_count;
    struct running **pending; /* (admit_most) taken, but the engine had no memory for them yet */
    struct engine_request *requests; /* (admit_most) of these */
    int32_t *slots;                  /* (admit_most) */
    int32_t pending_count;
    int32_t admit_most, steps_each; /* a turn */
    bool alone;                     /* a suspect runs: nothing may join it */
    uint32_t serial;
    struct step_batch *batch; /* the one being filled, or NULL */
    int64_t sweep_at_us;
    int64_t steps;
    double row_steps;
};

size_t engine_stage_depth(struct engine_stage *s)
{
    return atomic_load(&s->table.depth);
}

bool engine_stage_cancel(struct engine_stage *s, const uint8_t id[16])
{
    return running_table_cancel(&s->table, id);
}

/* ---- batches ---- */

/* The open batch. NULL when the stage ends: what is not reported any more stays where it is. */
static struct step_batch *batch_get(struct engine_stage *s)
{
    if (!s->batch) {
        s->batch = step_ring_open(s->ring);
        if (s->batch)
            s->batch->encoded_mono_us = s->batch->at_mono_us = clock_mono_us();
    }
    return s->batch;
}

static void batch_send(struct engine_stage *s)
{
    if (!s->batch)
        return;
    s->batch->steps = s->steps;
    s->batch->row_steps = s->row_steps;
    s->batch = NULL;
    step_ring_send(s->ring);
}

static void out_of_memory(struct engine_stage *s)
{
    health_fail(s->pipeline->health, "engine stage: out of memory");
}

/* ---- letting go ---- */

/* A job that was never admitted goes to settle, or nowhere when it is stale. */
static void let_go_unadmitted(struct engine_stage *s, struct running *r, enum running_end end)
{
    struct job *job = r->job;

    running_table_remove(&s->table, r);
    job->running = NULL;
    if (end == RUNNING_STALE) {
        metrics_add(METRIC_STALE_DROPPED, 1);
        job_destroy(job);
    } else {
        job->started_at_us = 0; /* it never did */
        job_finish(job, end == RUNNING_CANCELLED ? JOB_CANCELLED : JOB_EXPIRED, NULL, NULL,
                   clock_wall_us());
        settle_push(s->pipeline->settle, job);
    }
    running_table_forget(&s->table);
}

/* Frees the slot and says the last word about the job: it is the text thread's from now on. */
static void let_go(struct engine_stage *s, struct running *r, enum running_end end)
{
    struct step_batch *batch = batch_get(s);
    int32_t place = (int32_t)(r->tag & UINT32_MAX);

    if (!batch)
        return;
    engine_release(s->engine, r->slot);
    s->places[place] = NULL;
    s->free_places[s->free_count++] = place;
    s->live[r->live_at] = s->live[--s->live_count];
    s->live[r->live_at]->live_at = r->live_at;
    s->alone = false;
    if (step_batch_end(batch, r, end))
        out_of_memory(s);
}

/* What ends a job from outside; false = it goes on. */
static bool has_ended(struct engine_stage *s, const struct job *job, int64_t now_wall,
                      enum running_end *end)
{
    if (!assignment_current(s->pipeline->assignment, job->partition, job->epoch))
        *end = RUNNING_STALE;
    else if (atomic_load(&job->cancel_requested))
        *end = RUNNING_CANCELLED;
    else if (job->request.has_deadline && job->request.deadline_us <= now_wall)
        *end = RUNNING_EXPIRED;
    else
        return false;
    return true;
}

static void queued_sweep(struct engine_stage *s, int64_t now_wall)
{
    struct job_list ended;
    struct job *job;

    job_list_init(&ended);
    scheduler_sweep(s->pipeline->scheduler, now_wall, &ended);
    while ((job = job_list_pop(&ended))) {
        bool cancelled = atomic_load(&job->cancel_requested);

        job_finish(job, cancelled ? JOB_CANCELLED : JOB_EXPIRED, NULL, NULL, now_wall);
        settle_push(s->pipeline->settle, job);
    }
}

static void sweep(struct engine_stage *s, int64_t now)
{
    int64_t now_wall = clock_wall_us();
    enum running_end end;

    s->sweep_at_us = now + SWEEP_US;
    queued_sweep(s, now_wall);
    for (int32_t i = s->live_count - 1; i >= 0; i--)
        if (has_ended(s, s->live[i]->job, now_wall, &end))
            let_go(s, s->live[i], end);
    metrics_set(METRIC_QUEUE_DEPTH, (int64_t)(scheduler_depth(s->pipeline->scheduler) +
                                              prepare_depth(s->pipeline->prepare)));
    metrics_set(METRIC_ENGINE_ROWS, s->max_rows - engine_free_rows(s->engine));
}

static void stops_apply(struct engine_stage *s)
{
    struct step_stop stops[STOPS_AT_ONCE];
    size_t count;

    do {
        count = step_ring_stops(s->ring, stops, STOPS_AT_ONCE);
        for (size_t i = 0; i < count; i++) {
            struct running *r = s->places[stops[i].tag & UINT32_MAX];
            uint32_t bit = 1u << stops[i].sequence;

            if (!r || r->tag != stops[i].tag)
                continue; /* the engine had ended it meanwhile */
            if (r->live & bit)
                engine_stop_sequence(s->engine, r->slot, stops[i].sequence);
            r->live &= ~bit;
            if (!r->live)
                let_go(s, r, RUNNING_FINISHED);
        }
    } while (count == STOPS_AT_ONCE);
}

/* ---- admission ---- */

static void take(struct engine_stage *s, struct job *job)
{
    struct running *r = running_table_add(&s->table, job, s->detokeniser);

    if (!r) { /* the job stays open: it runs elsewhere */
        job_destroy(job);
        out_of_memory(s);
        return;
    }
    /* A cancel that came before the table knew the job. */
    if (control_is_cancelled(s->pipeline->control, job->id))
        atomic_store(&job->cancel_requested, true);
    s->pending[s->pending_count++] = r;
}

/* Fills pending from the scheduler; waits there when there is nothing else to do. */
static void pending_fill(struct engine_stage *s)
{
    bool idle = s->live_count == 0;
    struct job_list jobs;
    struct job *job;

    if (s->pending_count || s->alone || atomic_load(&s->closed))
        return;
    if (idle)
        batch_send(s); /* what stops and sweeps ended */
    job_list_init(&jobs);
    scheduler_take(s->pipeline->scheduler, s->admit_most, engine_free_rows(s->engine), idle,
                   idle ? IDLE_WAIT_US : 0, &jobs);
    while ((job = job_list_pop(&jobs)))
        take(s, job);
}

/* Drops what ended while it waited, and makes requests of the rest. */
static void pending_review(struct engine_stage *s)
{
    int64_t now = clock_mono_us(), now_wall = clock_wall_us();
    int32_t kept = 0;
    enum running_end end;

    for (int32_t i = 0; i < s->pending_count; i++) {
        struct running *r = s->pending[i];

        if (has_ended(s, r->job, now_wall, &end)) {
            let_go_unadmitted(s, r, end);
            continue;
        }
        r->job->started_at_us = now_wall;
        r->job->started_mono_us = now;
        r->tag = (uint64_t)++s->serial << 32 | (uint32_t)s->free_places[s->free_count - 1 - kept];
        generation_run_request(&r->job->request, r->job->source, r->job->source_count, r->tag,
                               &s->requests[kept]);
        s->pending[kept++] = r;
    }
    s->pending_count = kept;
}

static void joined(struct engine_stage *s, struct running *r, int32_t slot)
{
    FAULT_POINT(r->job->job_id);
    r->slot = slot;
    r->live = (1u << r->run->sequence_count) - 1;
    r->steps_before = s->steps;
    r->row_steps_before = s->row_steps;
    r->live_at = s->live_count;
    s->live[s->live_count++] = r;
    s->places[s->free_places[--s->free_count]] = r;
    s->alone = r->job->run_alone;
    atomic_fetch_add(&r->job->chunks_unacked, 1); /* the stage's own, until it finishes the job */
    if (step_batch_admit(s->batch, r))
        out_of_memory(s);
}

static void admit(struct engine_stage *s)
{
    struct error error;
    int32_t count;

    pending_fill(s);
    pending_review(s);
    if (!s->pending_count || !batch_get(s))
        return;
    count = engine_admit(s->engine, s->pending_count, s->requests, s->slots, &error);
    if (count < 0) {
        health_fail(s->pipeline->health, "engine: %s", error.message);
        return;
    }
    if (count == 0 && s->live_count == 0) {
        health_fail(s->pipeline->health,
                    "the idle engine has no room for a job of %d source and %d new tokens; raise "
                    "engine.memory_mb",
                    s->requests[0].source_len, s->requests[0].max_new);
        return;
    }
    for (int32_t i = 0; i < count; i++)
        joined(s, s->pending[i], s->slots[i]);
    s->pending_count -= count;
    memmove(s->pending, s->pending + count, (size_t)s->pending_count * sizeof *s->pending);
}

/* ---- stepping ---- */

/* Copies the items, which the next call of the engine invalidates, then lets go of what ended. */
static void items_pass(struct engine_stage *s, const struct engine_output *out)
{
    struct step_batch *batch = s->batch;

    for (int32_t i = 0; i < out->item_count; i++) {
        const struct engine_item *item = &out->items[i];
        struct running *r = s->places[item->tag & UINT32_MAX];

        if (!r || r->tag != item->tag)
            continue;
        if (item->finish != ENGINE_RUNNING)
            r->live &= ~(1u << item->sequence);
        if (step_batch_add(batch, r, item))
            out_of_memory(s);
    }
    for (size_t i = 0; i < batch->item_count; i++) {
        struct running *r = batch->items[i].running;

        if (!r->live && s->places[r->tag & UINT32_MAX] == r)
            let_go(s, r, RUNNING_FINISHED);
    }
}

static void step(struct engine_stage *s)
{
    struct engine_output out;
    struct error error;
    int64_t begun;

    if (!batch_get(s))
        return;
    FAULT_POINT("step");
    begun = clock_mono_us();
    if (engine_step(s->engine, s->steps_each, &out, &error)) {
        health_fail(s->pipeline->health, "engine: %s", error.message);
        return;
    }
    s->batch->encoded_mono_us = begun + out.encode_us;
    s->batch->at_mono_us = clock_mono_us();
    s->steps += out.steps;
    s->row_steps += out.steps * out.rows_mean;
    metrics_add(METRIC_ENGINE_STEPS, (uint64_t)out.steps);
    if (out.steps)
        metrics_observe(METRIC_STEP_TIME, out.decode_us / out.steps);
    items_pass(s, &out);
}

static void *engine_main(void *argument)
{
    struct engine_stage *s = argument;
    char reason[8];

    pthread_setname_np(pthread_self(), "engine");
    while (!atomic_load(&s->stopping) &&
           !health_failed(s->pipeline->health, reason, sizeof reason)) {
        int64_t now = clock_mono_us();

        health_beat(s->pipeline->health, HEALTH_BEAT_ENGINE, now);
        stops_apply(s);
        if (now >= s->sweep_at_us || !s->live_count)
            sweep(s, now);
        admit(s);
        if (s->live_count)
            step(s);
        batch_send(s);
        if (!s->live_count && atomic_load(&s->closed))
            nanosleep(&(struct timespec){0, CLOSED_PAUSE_US * 1000}, NULL);
    }
    step_ring_close(s->ring);
    return NULL;
}

/* ---- life ---- */

/* How much of what a turn does, by the device. */
static void pace_set(struct engine_stage *s)
{
    const struct config *config = s->pipeline->config;
    bool cuda = !strncmp(config->engine_device, "cuda", 4);

    s->admit_most = cuda || s->max_rows < CPU_ADMIT_MOST ? s->max_rows : CPU_ADMIT_MOST;
    s->steps_each = config->engine_steps ? (int32_t)config->engine_steps
                    : cuda               ? CUDA_STEPS
                                         : CPU_STEPS;
}

static int parts_create(struct engine_stage *s, struct error *error)
{
    size_t rows = (size_t)s->max_rows, most = (size_t)s->admit_most;

    s->pending = calloc(most, sizeof *s->pending);
    s->requests = calloc(most, sizeof *s->requests);
    s->slots = calloc(most, sizeof *s->slots);
    s->places = calloc(rows, sizeof *s->places);
    s->live = calloc(rows, sizeof *s->live);
    s->free_places = calloc(rows, sizeof *s->free_places);
    s->ring = step_ring_create(s->max_rows);
    if (running_table_init(&s->table, rows) || !s->pending || !s->requests || !s->slots ||
        !s->places || !s->live || !s->free_places || !s->ring)
        return error_set(error, "engine stage: out of memory for %d rows; lower engine.max_rows",
                         s->max_rows);
    while (s->free_count < s->max_rows) {
        s->free_places[s->free_count] = s->free_count;
        s->free_count++;
    }
    s->text = text_stage_create(s->pipeline, s->ring, &s->table, error);
    return s->text ? 0 : -1;
}

struct engine_stage *engine_stage_create(struct pipeline *pipeline, struct error *error)
{
    struct engine_stage *s = calloc(1, sizeof *s);

    if (!s) {
        error_set(error, "engine stage: out of memory");
        return NULL;
    }
    s->pipeline = pipeline;
    s->engine = pipeline->engine;
    s->detokeniser = prompt_codec_detokeniser(pipeline->prompts);
    s->max_rows = engine_limits(s->engine)->max_rows;
    pace_set(s);
    if (parts_create(s, error)) {
        engine_stage_destroy(s);
        return NULL;
    }
    return s;
}

int engine_stage_start(struct engine_stage *s, struct error *error)
{
    if (text_stage_start(s->text, error))
        return -1;
    if (pthread_create(&s->thread, NULL, engine_main, s))
        return error_set(error, "engine stage: the engine's thread could not be started");
    s->started = true;
    return 0;
}

void engine_stage_close(struct engine_stage *s)
{
    atomic_store(&s->closed, true);
    scheduler_wake(s->pipeline->scheduler);
}

void engine_stage_stop(struct engine_stage *s)
{
    atomic_store(&s->stopping, true);
    scheduler_wake(s->pipeline->scheduler);
    if (s->started)
        pthread_join(s->thread, NULL);
    s->started = false;
    step_ring_close(s->ring);
    text_stage_stop(s->text);
}

void engine_stage_destroy(struct engine_stage *s)
{
    if (!s)
        return;
    text_stage_destroy(s->text);
    step_ring_destroy(s->ring);
    running_table_free(&s->table);
    free(s->pending);
    free(s->requests);
    free(s->slots);
    free(s->places);
    free(s->free_places);
    free(s->live);
    free(s);
}
