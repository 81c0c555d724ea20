/* SPDX-License-Identifier: MIT
 *
 * engine_stage_fixture: the engine stage between a real scheduler and doubles of everything around
 * it: the engine, the stream and settle. Jobs are pushed as prepare would and taken back where
 * settle would have them. Include it after cmocka.h, in one file of a program.
 */
#ifndef PGPT_TESTS_ENGINE_STAGE_FIXTURE_H
#define PGPT_TESTS_ENGINE_STAGE_FIXTURE_H

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "kernels/base/clock.h"
#include "kernels/text/prompt.h"
#include "tests/worker/fake_engine.h"
#include "worker/engine_stage.h"
#include "worker/health.h"
#include "worker/stream.h"

#define MODEL PGPT_SOURCE_DIR "/models/prometheus-mini"

enum { JOBS_MAX = 256, CHUNKS_MAX = 8192, WAIT_US = 20000000 };

/* A chunk as the stream saw it. */
struct seen_chunk {
    const struct job *job;
    int32_t sequence, seq, token_start;
    int64_t text_start;
    int32_t tokens[128];
    size_t token_count;
    char text[512];
    size_t text_size;
    const char *finish_reason;
};

static struct {
    pthread_mutex_t lock;
    struct job *settled[JOBS_MAX];
    size_t settled_count;
    struct seen_chunk chunks[CHUNKS_MAX];
    size_t chunk_count;
    int accepted, started;
    uint32_t epoch;         /* of every partition */
    const struct job *full; /* the stream has no room for this job's chunks ... */
    bool partition_full;    /* ... because of its partition alone */
    bool hangs;             /* stream_chunk() does not come back */
    bool fails;             /* the stream fails */
    uint8_t cancelled[16];  /* the control topic holds this id */
} world = {.lock = PTHREAD_MUTEX_INITIALIZER};

static struct {
    struct config config;
    struct pipeline pipeline;
} stage;

/* ---- doubles ---- */

enum stream_status stream_chunk(struct stream *stream, struct job *job,
                                const struct generation_chunk *chunk)
{
    enum stream_status status = STREAM_SENT;
    struct seen_chunk *seen;

    (void)stream;
    pthread_mutex_lock(&world.lock);
    if (world.fails) {
        health_fail(stage.pipeline.health, "no stream");
        status = STREAM_FAILED;
    } else if (world.full == job) {
        status = world.partition_full ? STREAM_LATER : STREAM_FULL;
    } else {
        assert_true(world.chunk_count < CHUNKS_MAX && chunk->token_count <= 128 &&
                    chunk->text.size < 512);
        seen = &world.chunks[world.chunk_count++];
        *seen = (struct seen_chunk){.job = job,
                                    .sequence = chunk->sequence,
                                    .seq = chunk->seq,
                                    .token_start = chunk->token_start,
                                    .text_start = chunk->text_start,
                                    .token_count = chunk->token_count,
                                    .text_size = chunk->text.size,
                                    .finish_reason = chunk->finish_reason};
        if (chunk->token_count)
            memcpy(seen->tokens, chunk->token_ids, chunk->token_count * sizeof *seen->tokens);
        memcpy(seen->text, chunk->text.data, chunk->text.size);
    }
    while (world.hangs) {
        pthread_mutex_unlock(&world.lock);
        usleep(1000);
        pthread_mutex_lock(&world.lock);
    }
    pthread_mutex_unlock(&world.lock);
    return status;
}

void stream_event(struct stream *stream, const struct job *job, const char *state, int64_t at_us)
{
    (void)stream;
    assert_true(at_us > 0 && job->job_id[0]);
    pthread_mutex_lock(&world.lock);
    world.accepted += !strcmp(state, "accepted");
    world.started += !strcmp(state, "started");
    pthread_mutex_unlock(&world.lock);
}

void settle_push(struct settle *settle, struct job *job)
{
    (void)settle;
    pthread_mutex_lock(&world.lock);
    world.settled[world.settled_count++] = job;
    pthread_mutex_unlock(&world.lock);
}

bool assignment_current(const struct assignment *assignment, int32_t partition, uint32_t epoch)
{
    bool current;

    (void)assignment;
    (void)partition;
    pthread_mutex_lock(&world.lock);
    current = epoch == world.epoch;
    pthread_mutex_unlock(&world.lock);
    return current;
}

bool control_is_cancelled(struct control *control, const uint8_t id[16])
{
    bool cancelled;

    (void)control;
    pthread_mutex_lock(&world.lock);
    cancelled = !memcmp(world.cancelled, id, 16);
    pthread_mutex_unlock(&world.lock);
    return cancelled;
}

size_t prepare_depth(struct prepare *prepare)
{
    (void)prepare;
    return 0;
}

/* ---- the stage ---- */

static void config_set(void)
{
    stage.config = (struct config){
        .engine_device = "cpu", .engine_model_name = "m", .worker_name = "w", .live_event_ms = 100};
}

static int setup(void **state)
{
    struct engine_options options;
    struct error error;
    struct pipeline *p = &stage.pipeline;

    (void)state;
    memset(&fake_engine_control, 0, sizeof fake_engine_control);
    atomic_store(&fake_engine_control.rows, 16);
    memset(world.cancelled, 0, sizeof world.cancelled);
    world.settled_count = world.chunk_count = 0;
    world.accepted = world.started = 0;
    world.epoch = 1;
    world.full = NULL;
    world.partition_full = world.fails = world.hangs = false;
    config_set();
    memset(p, 0, sizeof *p);
    p->config = &stage.config;
    p->health = health_create(30000000);
    engine_options_init(&options);
    p->engine = engine_open(MODEL, &options, &error);
    assert_non_null(p->engine);
    p->prompts = prompt_codec_open(MODEL, engine_limits(p->engine)->vocabulary, &error);
    assert_non_null(p->prompts);
    p->scheduler = scheduler_create(4096, 2000000, &error);
    p->engine_stage = engine_stage_create(p, &error);
    assert_non_null(p->engine_stage);
    return 0;
}

static void start(void)
{
    struct error error;

    assert_int_equal(engine_stage_start(stage.pipeline.engine_stage, &error), 0);
}

static int teardown(void **state)
{
    struct pipeline *p = &stage.pipeline;

    (void)state;
    atomic_store(&fake_engine_control.holds, false); /* of a test that failed */
    engine_stage_stop(p->engine_stage);
    engine_stage_destroy(p->engine_stage);
    scheduler_destroy(p->scheduler);
    for (size_t i = 0; i < world.settled_count; i++)
        job_destroy(world.settled[i]);
    prompt_codec_close((struct prompt_codec *)p->prompts);
    engine_close(p->engine);
    health_destroy(p->health);
    return job_alive() ? -1 : 0; /* every job has exactly one owner in the end */
}

/* ---- jobs ---- */

/* Number n of the test; what differs from the defaults is set by the caller before it is pushed. */
static struct job *job_make(int n)
{
    static int32_t source[3] = {445, 665, 3};
    struct job *job = job_create(100);

    assert_non_null(job);
    snprintf(job->job_id, sizeof job->job_id, "00000000-0000-4000-8000-%012d", n);
    job->request.job_id = (struct text){job->job_id, 36};
    assert_int_equal(uuid_parse(job->request.job_id, job->id), 0);
    job->has_id = true;
    job->epoch = 1;
    job->offset = n;
    job->record_timestamp_us = clock_wall_us() - 1000;
    job->accepted_at_us = clock_wall_us();
    job->accepted_mono_us = clock_mono_us();
    job->source = source;
    job->source_count = 3;
    job->request.max_length = 40;
    return job;
}

static struct job *push(struct job *job)
{
    scheduler_push(stage.pipeline.scheduler, job, clock_mono_us());
    return job;
}

static size_t settled_count(void)
{
    size_t count;

    pthread_mutex_lock(&world.lock);
    count = world.settled_count;
    pthread_mutex_unlock(&world.lock);
    return count;
}

static size_t chunk_count(void)
{
    size_t count;

    pthread_mutex_lock(&world.lock);
    count = world.chunk_count;
    pthread_mutex_unlock(&world.lock);
    return count;
}

static void wait_settled(size_t count)
{
    int64_t until = clock_mono_us() + WAIT_US;

    while (settled_count() < count && clock_mono_us() < until)
        usleep(200);
    assert_int_equal(settled_count(), count);
}

static void wait_chunks(size_t count)
{
    int64_t until = clock_mono_us() + WAIT_US;

    while (chunk_count() < count && clock_mono_us() < until)
        usleep(200);
    assert_true(chunk_count() >= count);
}

/* The chunks of a sequence are exactly its result, and the last one alone says why it ended. */
static void check_chunks(const struct job *job, int32_t sequence)
{
    const struct generation_sequence *result = &job->result.sequences[sequence];
    size_t tokens = 0, text = 0;
    int32_t seq = 0;
    bool ended = false;

    for (size_t i = 0; i < world.chunk_count; i++) {
        const struct seen_chunk *c = &world.chunks[i];

        if (c->job != job || c->sequence != sequence)
            continue;
        assert_false(ended);
        assert_int_equal(c->seq, seq++);
        assert_int_equal(c->token_start, tokens);
        assert_int_equal(c->text_start, text);
        assert_memory_equal(c->tokens, result->token_ids + tokens,
                            c->token_count * sizeof *c->tokens);
        assert_memory_equal(c->text, result->text.data + text, c->text_size);
        tokens += c->token_count;
        text += c->text_size;
        ended = c->finish_reason != NULL;
        if (ended)
            assert_string_equal(c->finish_reason, result->finish_reason);
    }
    assert_true(ended);
    assert_int_equal(tokens, result->token_count);
    assert_int_equal(text, result->text.size);
}

static bool timings_sane(const struct job *job)
{
    const struct generation_timings *t = &job->result.timings;

    return t->queue_us >= 1000 && t->encode_us >= 0 && t->first_token_us >= t->encode_us &&
           t->encode_us + t->decode_us >= t->first_token_us &&
           t->total_us >= t->queue_us + t->encode_us + t->decode_us && t->batch_size_mean >= 1;
}

#endif
