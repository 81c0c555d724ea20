/* SPDX-License-Identifier: MIT
 *
 * The engine stage between a real scheduler and doubles of everything around it: the engine, the
 * stream and settle. Jobs are pushed as prepare would and taken back where settle would have them.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

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

/* ---- tests ---- */

static void test_a_job_completes_with_times_and_usage(void **state)
{
    struct job *job = job_make(1);

    (void)state;
    atomic_store(&fake_engine_control.length, 10);
    atomic_store(&fake_engine_control.step_us, 2000);
    start();
    push(job);
    wait_settled(1);
    assert_ptr_equal(world.settled[0], job);
    assert_int_equal(job->outcome, JOB_COMPLETED);
    assert_int_equal(job->result.sequence_count, 1);
    assert_int_equal(job->result.sequences[0].token_count, 9);
    assert_string_equal(job->result.sequences[0].finish_reason, "eos");
    assert_true(job->result.sequences[0].score == -2.5);
    assert_int_equal(job->result.usage.generated_tokens, 10);
    assert_int_equal(job->result.usage.prompt_tokens, 3);
    assert_true(timings_sane(job));
    assert_true(job->result.timings.decode_us >= 9 * 2000);
    assert_true(job->result.timings.batch_size_mean == 1.0);
    assert_int_equal(atomic_load(&job->chunks_unacked), 0);
    assert_int_equal(chunk_count(), 0);
    assert_int_equal(engine_stage_depth(stage.pipeline.engine_stage), 0);
}

static void test_batch_size_is_the_mean_of_the_jobs_own_steps(void **state)
{
    struct job *four = job_make(1), *one = job_make(2);

    (void)state;
    atomic_store(&fake_engine_control.length, 20);
    atomic_store(&fake_engine_control.step_us, 3000);
    four->request.do_sample = true;
    four->request.num_return_sequences = 4;
    push(four);
    push(one);
    start(); /* both join the first step and end with the same one */
    wait_settled(2);
    assert_true(four->result.timings.batch_size_mean == 5.0);
    assert_true(one->result.timings.batch_size_mean == 5.0);
}

static void test_streams_are_their_results(void **state)
{
    struct job *jobs[24];

    (void)state;
    start();
    for (int i = 0; i < 24; i++) {
        jobs[i] = job_make(i);
        jobs[i]->request.stream = true;
        jobs[i]->request.stream_interval = 1 + i % 4;
        jobs[i]->request.do_sample = i % 3 == 1;
        jobs[i]->request.has_seed = true;
        jobs[i]->request.seed = i;
        jobs[i]->request.num_return_sequences = i % 3 == 1 ? 1 + i % 8 : 1;
        if (i % 3 == 2)
            jobs[i]->request.num_beams = jobs[i]->request.num_return_sequences = 2 + i % 7;
        push(jobs[i]);
    }
    wait_settled(24);
    for (int i = 0; i < 24; i++) {
        assert_int_equal(jobs[i]->outcome, JOB_COMPLETED);
        assert_int_equal(jobs[i]->result.sequence_count, jobs[i]->request.num_return_sequences);
        for (int32_t n = 0; n < jobs[i]->request.num_return_sequences; n++)
            check_chunks(jobs[i], n);
    }
    assert_true(atomic_load(&fake_engine_control.most_rows) <= 16);
}

static void test_a_full_stream_holds_back_its_own_job_alone(void **state)
{
    struct job *held = job_make(1), *others[20];

    (void)state;
    held->request.stream = true;
    world.full = held;
    start();
    push(held);
    for (int i = 0; i < 20; i++)
        others[i] = push(job_make(2 + i));
    wait_settled(20); /* the batch went on, and the held job's rows with it */
    for (int i = 0; i < 20; i++)
        assert_ptr_not_equal(world.settled[i], held);
    assert_int_equal(chunk_count(), 0);
    pthread_mutex_lock(&world.lock);
    world.full = NULL;
    pthread_mutex_unlock(&world.lock);
    wait_settled(21);
    assert_ptr_equal(world.settled[20], held);
    check_chunks(held, 0);
    (void)others;
}

/* A partition whose leader is gone: streams of the others go on, chunk by chunk. */
static void test_a_full_partition_holds_back_no_other_stream(void **state)
{
    struct job *held = job_make(1), *other = job_make(2);

    (void)state;
    held->request.stream = other->request.stream = true;
    world.full = held;
    world.partition_full = true;
    start();
    push(held);
    while (!engine_stage_depth(stage.pipeline.engine_stage))
        usleep(100);
    usleep(5000); /* its first chunk waits */
    push(other);
    wait_settled(1);
    assert_ptr_equal(world.settled[0], other);
    check_chunks(other, 0);
    pthread_mutex_lock(&world.lock);
    world.full = NULL;
    pthread_mutex_unlock(&world.lock);
    wait_settled(2);
    check_chunks(held, 0);
}

static void test_a_text_thread_that_stands_still_is_named(void **state)
{
    struct job *job = job_make(1);
    char reason[256] = "";
    int64_t until = clock_mono_us() + WAIT_US;

    (void)state;
    atomic_store(&fake_engine_control.length, 1); /* the engine's thread has nothing to wait for */
    job->request.stream = true;
    world.hangs = true;
    start();
    push(job);
    wait_chunks(1);
    while (clock_mono_us() < until && !strstr(reason, "the text thread has made no progress")) {
        health_alive(stage.pipeline.health, clock_mono_us() + 29000000, reason, sizeof reason);
        usleep(1000);
    }
    pthread_mutex_lock(&world.lock);
    world.hangs = false;
    pthread_mutex_unlock(&world.lock);
    assert_non_null(strstr(reason, "the text thread has made no progress"));
    wait_settled(1);
}

/* A job of eight long sequences, on a model that allows them, outgrows what a job begins with. */
static void test_a_job_has_the_memory_that_it_can_need(void **state)
{
    struct job *job = job_make(1);
    size_t charged = job->charged;

    (void)state;
    while (arena_alloc(job->arena, 4096)) /* whatever it had at first is used up */
        ;
    atomic_store(&fake_engine_control.length, 100);
    job->request.stream = true;
    job->request.do_sample = true;
    job->request.num_return_sequences = 8;
    job->request.max_length = 100;
    start();
    push(job);
    wait_settled(1);
    assert_int_equal(job->outcome, JOB_COMPLETED);
    for (int32_t n = 0; n < 8; n++)
        check_chunks(job, n);
    assert_true(job->charged > charged);
    assert_true(job_bytes() >= job->charged);
}

static void test_a_stop_string_ends_the_sequence_in_the_engine(void **state)
{
    struct text stop[1];
    struct job *first = job_make(1), *stopped = job_make(2);

    (void)state;
    atomic_store(&fake_engine_control.length, 200);
    first->request.max_length = 60;
    start();
    push(first);
    wait_settled(1);
    assert_string_equal(first->result.sequences[0].finish_reason, "length");
    assert_int_equal(first->result.sequences[0].token_count, 60);
    /* Two bytes from the middle of its text. */
    stop[0] = arena_text(stopped->arena, first->result.sequences[0].text.data + 12, 2);
    stopped->request.stop = stop;
    stopped->request.stop_count = 1;
    stopped->request.stream = true;
    stopped->request.max_length = 200;
    atomic_store(&fake_engine_control.step_us, 500);
    push(stopped);
    wait_settled(2);
    assert_int_equal(stopped->outcome, JOB_COMPLETED);
    assert_string_equal(stopped->result.sequences[0].finish_reason, "stop");
    assert_true(stopped->result.sequences[0].text.size <= 12);
    check_chunks(stopped, 0);
    assert_int_equal(atomic_load(&fake_engine_control.stopped_sequences), 1);
    assert_int_equal(engine_free_rows(stage.pipeline.engine), 16);
}

static void test_cancel_while_running(void **state)
{
    struct job *job = job_make(1);

    (void)state;
    atomic_store(&fake_engine_control.length, 200);
    atomic_store(&fake_engine_control.step_us, 1000);
    job->request.max_length = 200;
    job->request.stream = true;
    job->request.do_sample = true;
    job->request.num_return_sequences = 2;
    start();
    push(job);
    wait_chunks(6);
    assert_true(engine_stage_cancel(stage.pipeline.engine_stage, job->id));
    wait_settled(1);
    assert_int_equal(job->outcome, JOB_CANCELLED);
    assert_string_equal(job->result.status, "cancelled");
    assert_string_equal(job->result.sequences[0].finish_reason, "cancelled");
    assert_true(job->result.sequences[0].token_count >= 2);
    check_chunks(job, 0);
    check_chunks(job, 1);
    assert_false(engine_stage_cancel(stage.pipeline.engine_stage, job->id));
}

static void test_cancels_before_admission(void **state)
{
    struct job *known = job_make(1), *queued = job_make(2), *other = job_make(3);

    (void)state;
    memcpy(world.cancelled, known->id, 16); /* came between prepare's look and the stage's */
    known->request.stream = true;
    push(known);
    push(queued);
    push(other);
    assert_true(scheduler_cancel(stage.pipeline.scheduler, queued->id));
    start();
    wait_settled(3);
    assert_int_equal(known->outcome, JOB_CANCELLED);
    assert_int_equal(queued->outcome, JOB_CANCELLED);
    assert_int_equal(other->outcome, JOB_COMPLETED);
    assert_int_equal(known->result.sequence_count, 0);
    assert_int_equal(known->started_at_us, 0);
    assert_int_equal(chunk_count(), 0);
}

static void test_deadlines_queued_and_running(void **state)
{
    struct job *running = job_make(1), *queued = job_make(2);

    (void)state;
    atomic_store(&fake_engine_control.length, 200);
    atomic_store(&fake_engine_control.step_us, 1000);
    running->request.max_length = 200;
    running->request.stream = true;
    running->request.has_deadline = true;
    running->request.deadline_us = clock_wall_us() + 60000;
    queued->request.has_deadline = true;
    queued->request.deadline_us = clock_wall_us() - 1;
    push(queued);
    push(running);
    start();
    wait_settled(2);
    assert_int_equal(queued->outcome, JOB_EXPIRED);
    assert_int_equal(queued->result.sequence_count, 0);
    assert_int_equal(running->outcome, JOB_EXPIRED);
    assert_string_equal(running->result.sequences[0].finish_reason, "expired");
    assert_true(running->result.sequences[0].token_count > 0);
    assert_true(running->result.sequences[0].token_count < 200);
    check_chunks(running, 0);
}

static void test_revoked_partitions_drop_their_work(void **state)
{
    struct job *running = job_make(1), *queued = job_make(2);

    (void)state;
    atomic_store(&fake_engine_control.rows, 16);
    atomic_store(&fake_engine_control.length, 200);
    atomic_store(&fake_engine_control.step_us, 1000);
    running->request.max_length = queued->request.max_length = 200;
    running->request.stream = true;
    start();
    push(running);
    wait_chunks(3);
    pthread_mutex_lock(&world.lock);
    world.epoch = 3;
    pthread_mutex_unlock(&world.lock);
    push(queued); /* destroyed: nothing of it is anywhere */
    wait_settled(1);
    assert_ptr_equal(world.settled[0], running);
    assert_int_equal(running->outcome, JOB_OPEN); /* settle drops it */
    for (size_t i = 0; i < world.chunk_count; i++)
        assert_null(world.chunks[i].finish_reason);
    while (job_alive() > 1)
        usleep(200);
}

static void test_a_suspect_runs_alone(void **state)
{
    struct job *alone = job_make(50);

    (void)state;
    atomic_store(&fake_engine_control.length, 20);
    atomic_store(&fake_engine_control.step_us, 500);
    for (int i = 0; i < 4; i++)
        push(job_make(i));
    start();
    while (engine_stage_depth(stage.pipeline.engine_stage) < 4)
        usleep(100);
    alone->run_alone = true;
    alone->request.priority = 10;
    push(alone); /* waits for the four, and the next four wait for it */
    for (int i = 4; i < 8; i++)
        push(job_make(i));
    wait_settled(9);
    assert_ptr_equal(world.settled[4], alone);
    assert_true(alone->result.timings.batch_size_mean == 1.0);
}

static void test_more_work_than_rows_or_memory(void **state)
{
    (void)state;
    atomic_store(&fake_engine_control.memory_jobs, 3);
    start();
    for (int i = 0; i < 100; i++) {
        struct job *job = job_make(i);

        if (i % 10 == 0) {
            job->request.num_beams = 8;
            job->request.has_deadline = i % 20 == 0;
            job->request.deadline_us = clock_wall_us() + 60000000;
        }
        push(job);
    }
    wait_settled(100);
    for (int i = 0; i < 100; i++)
        assert_int_equal(world.settled[i]->outcome, JOB_COMPLETED);
    assert_int_equal(atomic_load(&fake_engine_control.most_jobs), 3);
}

static void test_a_waiting_job_can_still_be_cancelled(void **state)
{
    struct job *first = job_make(1), *second = job_make(2);

    (void)state;
    atomic_store(&fake_engine_control.memory_jobs, 1);
    atomic_store(&fake_engine_control.length, 200);
    atomic_store(&fake_engine_control.step_us, 1000);
    first->request.max_length = 200;
    push(first);
    push(second); /* taken, but there is no memory for it */
    start();
    while (engine_stage_depth(stage.pipeline.engine_stage) < 2)
        usleep(100);
    assert_true(engine_stage_cancel(stage.pipeline.engine_stage, second->id));
    wait_settled(1);
    assert_ptr_equal(world.settled[0], second);
    assert_int_equal(second->outcome, JOB_CANCELLED);
    assert_int_equal(atomic_load(&second->chunks_unacked), 0);
}

static void test_a_broken_device_fails_the_worker_and_keeps_its_jobs_open(void **state)
{
    char reason[256];

    (void)state;
    atomic_store(&fake_engine_control.length, 200);
    atomic_store(&fake_engine_control.fail_in_steps, 5);
    start();
    push(job_make(1));
    while (!health_failed(stage.pipeline.health, reason, sizeof reason))
        usleep(200);
    assert_non_null(strstr(reason, "the device fell off the bus"));
    engine_stage_stop(stage.pipeline.engine_stage);
    assert_int_equal(settled_count(), 0);
    assert_int_equal(engine_stage_depth(stage.pipeline.engine_stage), 1);
}

static void test_a_broken_stream_ends_both_threads(void **state)
{
    char reason[256];

    (void)state;
    world.fails = true;
    start();
    for (int i = 0; i < 40; i++) {
        struct job *job = job_make(i);

        job->request.stream = true;
        push(job);
    }
    while (!health_failed(stage.pipeline.health, reason, sizeof reason))
        usleep(200);
    engine_stage_stop(stage.pipeline.engine_stage); /* must not hang on the ring */
}

static void test_drain_lets_running_jobs_end_and_starts_none(void **state)
{
    struct job *running = job_make(1);

    (void)state;
    atomic_store(&fake_engine_control.length, 30);
    atomic_store(&fake_engine_control.step_us, 1000);
    start();
    push(running);
    while (!engine_stage_depth(stage.pipeline.engine_stage))
        usleep(100);
    engine_stage_close(stage.pipeline.engine_stage);
    usleep(2000); /* a take that was on its way has ended */
    push(job_make(2));
    wait_settled(1);
    assert_int_equal(running->outcome, JOB_COMPLETED);
    usleep(20000);
    assert_int_equal(settled_count(), 1);
    assert_int_equal(engine_stage_depth(stage.pipeline.engine_stage), 0);
    assert_int_equal(scheduler_depth(stage.pipeline.scheduler), 1);
}

static void test_stopping_hands_back_what_runs(void **state)
{
    struct job *job = job_make(1);

    (void)state;
    atomic_store(&fake_engine_control.length, 200);
    atomic_store(&fake_engine_control.step_us, 5000);
    job->request.max_length = 200;
    start();
    push(job);
    while (!engine_stage_depth(stage.pipeline.engine_stage))
        usleep(100);
    engine_stage_stop(stage.pipeline.engine_stage);
    assert_int_equal(settled_count(), 0);
    assert_int_equal(engine_stage_depth(stage.pipeline.engine_stage), 1);
}

static void test_live_events_for_jobs_that_live_long(void **state)
{
    struct job *lives = job_make(1), *brief = job_make(2);

    (void)state;
    stage.config.live_event_ms = 50;
    atomic_store(&fake_engine_control.length, 200);
    atomic_store(&fake_engine_control.step_us, 1000);
    lives->request.max_length = 150;
    brief->request.max_length = 2;
    start();
    push(lives);
    push(brief);
    wait_settled(2);
    assert_int_equal(world.accepted, 1);
    assert_int_equal(world.started, 1);
}

static void test_an_idle_stage_wakes_at_once_and_does_not_spin(void **state)
{
    struct timespec before, after;
    int64_t begun;

    (void)state;
    atomic_store(&fake_engine_control.length, 1);
    start();
    usleep(50000);
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &before);
    usleep(300000);
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &after);
    assert_true((after.tv_sec - before.tv_sec) * 1000000000L + after.tv_nsec - before.tv_nsec <
                30000000L);
    begun = clock_mono_us();
    push(job_make(1));
    wait_settled(1);
    assert_true(clock_mono_us() - begun < 50000); /* the idle wait is twice this long */
}

#define STAGE_TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        STAGE_TEST(test_a_job_completes_with_times_and_usage),
        STAGE_TEST(test_batch_size_is_the_mean_of_the_jobs_own_steps),
        STAGE_TEST(test_streams_are_their_results),
        STAGE_TEST(test_a_full_stream_holds_back_its_own_job_alone),
        STAGE_TEST(test_a_full_partition_holds_back_no_other_stream),
        STAGE_TEST(test_a_text_thread_that_stands_still_is_named),
        STAGE_TEST(test_a_job_has_the_memory_that_it_can_need),
        STAGE_TEST(test_a_stop_string_ends_the_sequence_in_the_engine),
        STAGE_TEST(test_cancel_while_running),
        STAGE_TEST(test_cancels_before_admission),
        STAGE_TEST(test_deadlines_queued_and_running),
        STAGE_TEST(test_revoked_partitions_drop_their_work),
        STAGE_TEST(test_a_suspect_runs_alone),
        STAGE_TEST(test_more_work_than_rows_or_memory),
        STAGE_TEST(test_a_waiting_job_can_still_be_cancelled),
        STAGE_TEST(test_a_broken_device_fails_the_worker_and_keeps_its_jobs_open),
        STAGE_TEST(test_a_broken_stream_ends_both_threads),
        STAGE_TEST(test_drain_lets_running_jobs_end_and_starts_none),
        STAGE_TEST(test_stopping_hands_back_what_runs),
        STAGE_TEST(test_live_events_for_jobs_that_live_long),
        STAGE_TEST(test_an_idle_stage_wakes_at_once_and_does_not_spin),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
