/* SPDX-License-Identifier: MIT */
#include "worker/text_stage.h"

#include <stdlib.h>
#include <string.h>

#include "kernels/base/clock.h"
#include "worker/fault.h"
#include "worker/health.h"
#include "worker/stream.h"

enum {
    LIVE_REVIEW_US = 20000,    /* how often live events are looked for */
    LIVE_EVENTS_AT_ONCE = 256, /* under the scheduler's lock */
    BLOCKED_RETRY_US = 2000
};

TAILQ_HEAD(running_queue, running);

struct text_stage {
    struct pipeline *pipeline;
    struct step_ring *ring;
    struct running_table *table;
    pthread_t thread;
    bool started;
    /* The thread's own: */
    struct running_queue unannounced, blocked;
    int64_t review_at_us;
    int64_t retry_at_us; /* while something is blocked */
    bool is_full;        /* the stream's queue was, at the last try */
    bool failed;         /* nothing is passed on any more */
};

/* A job's arena has room for all that it can need, so memory itself is out. As when the engine's
 * thread finds that: the worker ends, its jobs stay open and run elsewhere. */
static void out_of_memory(struct text_stage *t)
{
    t->failed = true;
    health_fail(t->pipeline->health, "text stage: out of memory");
}

/* ---- chunks ---- */

/* One chunk. */
static enum stream_status chunk_send(struct text_stage *t, struct running *r, int32_t sequence)
{
    const struct job_identity *identity = job_identity_get();
    const struct assembly *assembly = &r->run->sequences[sequence];
    int32_t seq = r->chunks_sent[sequence];
    const struct assemble_chunk *part = &assembly->chunks[seq];
    struct generation_chunk chunk = {
        .job_id = {r->job->job_id, strlen(r->job->job_id)},
        .attempt = r->job->attempt,
        .sequence = sequence,
        .seq = seq,
        .token_start = part->token_start,
        .text_start = (int64_t)part->text_start,
        .token_ids = assembly->tokens + part->token_start,
        .token_count = (size_t)part->token_count,
        .text = {assembly->text + part->text_start, part->text_size},
        .finish_reason = part->last ? assemble_finish_name(assembly->finish) : NULL,
        .engine_id = {identity->engine_id, strlen(identity->engine_id)},
        .created_at_us = clock_wall_us(),
    };

    if (seq == 0)
        FAULT_POINT("first_chunk");
    if (part->last)
        FAULT_POINT("last_chunk");
    return stream_chunk(t->pipeline->stream, r->job, &chunk);
}

/* Sends what there is; STREAM_SENT when nothing is left. */
static enum stream_status chunks_send(struct text_stage *t, struct running *r)
{
    for (int32_t i = 0; i < r->run->sequence_count; i++)
        for (; r->chunks_sent[i] < r->run->sequences[i].chunk_count; r->chunks_sent[i]++) {
            enum stream_status status = chunk_send(t, r, i);

            if (status != STREAM_SENT)
                return status;
        }
    return STREAM_SENT;
}

/* While the client's queue is full, jobs wait in the order they came; while only a partition takes
 * no more, its jobs wait alone. */
static void chunks_pump(struct text_stage *t, struct running *r)
{
    enum stream_status status;

    if (r->is_blocked || !r->job->request.stream)
        return;
    status = t->is_full && !TAILQ_EMPTY(&t->blocked) ? STREAM_FULL : chunks_send(t, r);
    if (status == STREAM_SENT)
        return;
    t->is_full = status == STREAM_FULL;
    if (TAILQ_EMPTY(&t->blocked))
        t->retry_at_us = clock_mono_us() + BLOCKED_RETRY_US;
    r->is_blocked = true;
    TAILQ_INSERT_TAIL(&t->blocked, r, blocked);
}

/* ---- finishing ---- */

static int64_t at_least_0(int64_t us)
{
    return us > 0 ? us : 0;
}

static void timings_set(struct running *r)
{
    struct generation_timings *timings = &r->job->result.timings;
    int64_t started = r->job->started_mono_us;

    timings->encode_us = at_least_0(r->encoded_mono_us - started);
    if (!r->last_mono_us)
        return; /* it ended before its first token */
    timings->first_token_us = at_least_0(r->first_mono_us - started);
    timings->decode_us = at_least_0(r->last_mono_us - r->encoded_mono_us);
}

static int result_set(struct running *r)
{
    static const enum job_outcome outcomes[] = {[RUNNING_FINISHED] = JOB_COMPLETED,
                                                [RUNNING_CANCELLED] = JOB_CANCELLED,
                                                [RUNNING_EXPIRED] = JOB_EXPIRED};
    struct job *job = r->job;

    if (generation_run_result(r->run, &job->result))
        return -1;
    timings_set(r);
    if (r->failure) {
        log_write(LOG_ERROR, "engine", &job->log, "failed: %s", r->failure);
        job_finish(job, JOB_FAILED, "internal", r->failure, clock_wall_us());
        return 0;
    }
    job_finish(job, outcomes[r->end], NULL, NULL, clock_wall_us());
    metrics_add(METRIC_TOKENS_PROMPT, (uint64_t)job->result.usage.prompt_tokens);
    metrics_add(METRIC_TOKENS_GENERATED, (uint64_t)job->result.usage.generated_tokens);
    return 0;
}

/* The job goes to settle, and is settle's from then on. A stale one goes there without an outcome:
 * it is dropped once its chunks are acknowledged. */
static void finish(struct text_stage *t, struct running *r)
{
    struct job *job = r->job;

    if (r->end != RUNNING_STALE && result_set(r)) {
        out_of_memory(t);
        return;
    }
    if (r->is_unannounced)
        TAILQ_REMOVE(&t->unannounced, r, unannounced);
    if (r->is_blocked)
        TAILQ_REMOVE(&t->blocked, r, blocked);
    running_table_remove(t->table, r);
    job->running = NULL;
    job_charge(job);
    atomic_fetch_sub(&job->chunks_unacked, 1); /* the stage's own: from now on 0 means settled */
    settle_push(t->pipeline->settle, job);
    running_table_forget(t->table);
}

static void blocked_retry(struct text_stage *t)
{
    struct running *r, *next;

    t->is_full = false;
    t->retry_at_us = clock_mono_us() + BLOCKED_RETRY_US;
    for (r = TAILQ_FIRST(&t->blocked); r && !t->is_full; r = next) {
        enum stream_status status = chunks_send(t, r);

        next = TAILQ_NEXT(r, blocked);
        t->is_full = status == STREAM_FULL;
        if (status != STREAM_SENT)
            continue;
        TAILQ_REMOVE(&t->blocked, r, blocked);
        r->is_blocked = false;
        if (r->ended)
            finish(t, r);
    }
}

/* ---- batches ---- */

static void admitted_take(struct text_stage *t, const struct step_batch *batch, struct running *r)
{
    r->encoded_mono_us = batch->encoded_mono_us;
    r->is_unannounced = true;
    TAILQ_INSERT_TAIL(&t->unannounced, r, unannounced);
}

static void item_take(struct text_stage *t, const struct step_batch *batch,
                      const struct step_item *it)
{
    struct running *r = it->running;

    if (!r->first_mono_us)
        r->first_mono_us = batch->at_mono_us;
    r->last_mono_us = batch->at_mono_us;
    switch (generation_run_take(r->run, &it->item)) {
    case GENERATION_TOOK_STOP:
        step_ring_stop(t->ring, (struct step_stop){r->tag, it->item.sequence});
        break;
    case GENERATION_TOOK_NOMEM:
        out_of_memory(t);
        return;
    case GENERATION_TOOK_SOME:
    case GENERATION_TOOK_FINISHED:
        break;
    }
    chunks_pump(t, r);
}

static void end_take(struct text_stage *t, const struct step_batch *batch,
                     const struct step_end *last)
{
    struct running *r = last->running;
    int64_t steps = batch->steps - r->steps_before;

    r->ended = true;
    r->end = last->end;
    if (steps > 0)
        r->job->result.timings.batch_size_mean =
            (batch->row_steps - r->row_steps_before) / (double)steps;
    if (r->end == RUNNING_STALE) {
        finish(t, r);
        return;
    }
    if (generation_run_finished(r->run))
        r->end = RUNNING_FINISHED; /* the cancel or the deadline came too late */
    else if (r->end == RUNNING_FINISHED)
        r->failure = "the engine let go of it before its sequences had ended";
    if (generation_run_end(r->run,
                           r->end == RUNNING_EXPIRED ? ASSEMBLE_EXPIRED : ASSEMBLE_CANCELLED)) {
        out_of_memory(t);
        return;
    }
    chunks_pump(t, r);
    if (!r->is_blocked)
        finish(t, r);
}

static void batch_take(struct text_stage *t, const struct step_batch *batch)
{
    for (size_t i = 0; i < batch->admitted_count; i++)
        admitted_take(t, batch, batch->admitted[i]);
    for (size_t i = 0; i < batch->item_count && !t->failed; i++)
        item_take(t, batch, &batch->items[i]);
    for (size_t i = 0; i < batch->end_count && !t->failed; i++)
        end_take(t, batch, &batch->ends[i]);
}

/* ---- live events ---- */

static void announce_accepted(void *user, struct job *job)
{
    struct text_stage *t = user;

    job->accepted_sent = true;
    stream_event(t->pipeline->stream, job, "accepted", job->accepted_at_us);
}

/* Jobs that live longer than live_event.ms: queued ones are accepted, running ones started too. */
static void live_review(struct text_stage *t, int64_t now)
{
    int64_t before = now - t->pipeline->config->live_event_ms * 1000;
    struct running *r, *next;

    t->review_at_us = now + LIVE_REVIEW_US;
    scheduler_announce(t->pipeline->scheduler, before, LIVE_EVENTS_AT_ONCE, announce_accepted, t);
    for (r = TAILQ_FIRST(&t->unannounced); r; r = next) {
        struct job *job = r->job;

        next = TAILQ_NEXT(r, unannounced);
        if (job->accepted_mono_us >= before)
            continue;
        if (!job->accepted_sent)
            announce_accepted(t, job);
        stream_event(t->pipeline->stream, job, "started", job->started_at_us);
        TAILQ_REMOVE(&t->unannounced, r, unannounced);
        r->is_unannounced = false;
    }
}

/* ---- the thread ---- */

static void *text_main(void *argument)
{
    struct text_stage *t = argument;
    char reason[8];

    pthread_setname_np(pthread_self(), "text");
    while (!health_failed(t->pipeline->health, reason, sizeof reason)) {
        int64_t wait = TAILQ_EMPTY(&t->blocked) ? LIVE_REVIEW_US : BLOCKED_RETRY_US;
        struct step_batch *batch = step_ring_receive(t->ring, wait);
        int64_t now = clock_mono_us();

        health_beat(t->pipeline->health, HEALTH_BEAT_TEXT, now);
        if (batch) {
            batch_take(t, batch);
            step_ring_done(t->ring);
        } else if (step_ring_closed(t->ring)) {
            break;
        }
        if (!TAILQ_EMPTY(&t->blocked) && now >= t->retry_at_us)
            blocked_retry(t);
        if (now >= t->review_at_us)
            live_review(t, now);
    }
    step_ring_close(t->ring); /* after a failure: the engine's thread must not wait for this one */
    return NULL;
}

struct text_stage *text_stage_create(struct pipeline *pipeline, struct step_ring *ring,
                                     struct running_table *table, struct error *error)
{
    struct text_stage *t = calloc(1, sizeof *t);

    if (!t) {
        error_set(error, "engine stage: out of memory");
        return NULL;
    }
    t->pipeline = pipeline;
    t->ring = ring;
    t->table = table;
    TAILQ_INIT(&t->unannounced);
    TAILQ_INIT(&t->blocked);
    return t;
}

int text_stage_start(struct text_stage *t, struct error *error)
{
    if (pthread_create(&t->thread, NULL, text_main, t))
        return error_set(error, "engine stage: the text thread could not be started");
    t->started = true;
    return 0;
}

void text_stage_stop(struct text_stage *t)
{
    if (t->started)
        pthread_join(t->thread, NULL);
    t->started = false;
}

void text_stage_destroy(struct text_stage *t)
{
    free(t);
}
