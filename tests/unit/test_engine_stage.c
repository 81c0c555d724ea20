/* SPDX-License-Identifier: MIT
 * The engine stage: what becomes of jobs, and of the worker, whatever engine, stream, control and
 * ownership do. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "tests/unit/engine_stage_fixture.h"

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
    atomic_store(&fake_engine_control.step_us, 10000);
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
    atomic_store(&fake_engine_control.step_us, 6000); /* it takes 1.2 s, and has half of that */
    running->request.max_length = 200;
    running->request.stream = true;
    running->request.has_deadline = true;
    running->request.deadline_us = clock_wall_us() + 600000;
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
    atomic_store(&fake_engine_control.step_us, 10000);
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
    atomic_store(&fake_engine_control.holds, true);
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
    atomic_store(&fake_engine_control.holds, false);
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
    atomic_store(&fake_engine_control.step_us, 10000);
    atomic_store(&fake_engine_control.holds, true);
    first->request.max_length = 200;
    push(first);
    push(second); /* taken, but there is no memory for it */
    start();
    while (engine_stage_depth(stage.pipeline.engine_stage) < 2)
        usleep(100);
    assert_true(engine_stage_cancel(stage.pipeline.engine_stage, second->id));
    atomic_store(&fake_engine_control.holds, false);
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
    atomic_store(&fake_engine_control.holds, true);
    start();
    push(running);
    while (!engine_stage_depth(stage.pipeline.engine_stage)) /* it is taken, and steps next */
        usleep(100);
    engine_stage_close(stage.pipeline.engine_stage);
    push(job_make(2));
    atomic_store(&fake_engine_control.holds, false);
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
    atomic_store(&fake_engine_control.step_us, 10000);
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
    stage.config.live_event_ms = 400;
    atomic_store(&fake_engine_control.length, 200);
    atomic_store(&fake_engine_control.step_us, 4000);
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
    int64_t least_us = INT64_MAX;

    (void)state;
    atomic_store(&fake_engine_control.length, 1);
    start();
    usleep(50000);
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &before);
    usleep(300000);
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &after);
    assert_true((after.tv_sec - before.tv_sec) * 1000000000L + after.tv_nsec - before.tv_nsec <
                30000000L);
    for (size_t i = 1; i <= 8; i++) { /* a busy machine may be late for some of them */
        int64_t begun = clock_mono_us();

        push(job_make((int)i));
        wait_settled(i);
        if (clock_mono_us() - begun < least_us)
            least_us = clock_mono_us() - begun;
    }
    assert_true(least_us <
                50000); /* an idle wait, begun when the last job ended, is twice this long */
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
