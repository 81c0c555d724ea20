/* SPDX-License-Identifier: MIT */
#include "worker/prepare.h"

#include <pthread.h>
#include <stdlib.h>

#include "kernels/base/clock.h"
#include "kernels/generate/validate.h"
#include "worker/fault.h"
#include "worker/health.h"

struct prepare {
    struct pipeline *pipeline;
    pthread_t *threads;  /* (thread_count) those that were started */
    int64_t *busy_since; /* (worker.prepare_threads) monotonic; 0 = it waits. Under the lock */
    int64_t thread_count;
    pthread_mutex_t lock;
    pthread_cond_t wake;
    struct job_list queue; /* under the lock */
    int64_t idle;          /* under the lock: threads that wait */
    bool stopping;         /* under the lock */
    _Atomic size_t depth;
    _Atomic size_t places_taken; /* in busy_since */
};

void prepare_push(struct prepare *p, struct job *job)
{
    atomic_fetch_add(&p->depth, 1);
    pthread_mutex_lock(&p->lock);
    job_list_push(&p->queue, job);
    if (p->idle)
        pthread_cond_signal(&p->wake);
    pthread_mutex_unlock(&p->lock);
}

size_t prepare_depth(struct prepare *p)
{
    return atomic_load(&p->depth);
}

/* ---- one job ---- */

static void settle(struct prepare *p, struct job *job, enum job_outcome outcome, const char *class,
                   const char *message)
{
    job_finish(job, outcome, class, message, clock_wall_us());
    settle_push(p->pipeline->settle, job);
}

static void prepare_job(struct prepare *p, struct job *job)
{
    struct pipeline *pipeline = p->pipeline;
    struct validate_problems problems;

    FAULT_POINT("prepare");
    if (!assignment_current(pipeline->assignment, job->partition, job->epoch)) {
        metrics_add(METRIC_STALE_DROPPED, 1);
        job_destroy(job);
        return;
    }
    job->source_count = generation_prepare(&job->request, engine_limits(pipeline->engine),
                                           pipeline->prompts, pipeline->config->engine_model_name,
                                           job->arena, &job->source, &problems);
    job_charge(job);
    if (job->source_count < 0) {
        bool invalid = problems.count > 0;

        log_write(LOG_INFO, "prepare", &job->log, "failed: %s", problems.message);
        settle(p, job, JOB_FAILED, invalid ? "invalid" : "internal", problems.message);
    } else if (control_is_cancelled(pipeline->control, job->id)) {
        settle(p, job, JOB_CANCELLED, NULL, NULL);
    } else if (job->request.has_deadline && job->request.deadline_us <= clock_wall_us()) {
        settle(p, job, JOB_EXPIRED, NULL, NULL);
    } else {
        scheduler_push(pipeline->scheduler, job, clock_mono_us());
    }
}

/* ---- threads ---- */

/* Under the lock. What one thread is at for long must not hide behind the others. */
static void beat(struct prepare *p)
{
    int64_t oldest = 0;

    for (int64_t i = 0; i < p->pipeline->config->worker_prepare_threads; i++)
        if (p->busy_since[i] && (!oldest || p->busy_since[i] < oldest))
            oldest = p->busy_since[i];
    health_beat(p->pipeline->health, HEALTH_BEAT_PREPARE, oldest);
}

/* The next job; NULL when the threads shall end. busy_since: the calling thread's. */
static struct job *next_job(struct prepare *p, int64_t *busy_since)
{
    struct job *job = NULL;

    pthread_mutex_lock(&p->lock);
    *busy_since = 0;
    beat(p);
    while (!p->stopping && !p->queue.head) {
        p->idle++;
        pthread_cond_wait(&p->wake, &p->lock);
        p->idle--;
    }
    if (!p->stopping) {
        job = job_list_pop(&p->queue);
        *busy_since = clock_mono_us();
        beat(p);
    }
    pthread_mutex_unlock(&p->lock);
    return job;
}

static void *prepare_main(void *argument)
{
    struct prepare *p = argument;
    int64_t *busy_since = &p->busy_since[atomic_fetch_add(&p->places_taken, 1)];
    struct job *job;

    pthread_setname_np(pthread_self(), "prepare");
    while ((job = next_job(p, busy_since))) {
        prepare_job(p, job);
        atomic_fetch_sub(&p->depth, 1);
    }
    return NULL;
}

struct prepare *prepare_create(struct pipeline *pipeline, struct error *error)
{
    struct prepare *p = calloc(1, sizeof *p);

    if (p) {
        p->threads = calloc((size_t)pipeline->config->worker_prepare_threads, sizeof *p->threads);
        p->busy_since =
            calloc((size_t)pipeline->config->worker_prepare_threads, sizeof *p->busy_since);
    }
    if (!p || !p->threads || !p->busy_since) {
        if (p) {
            free(p->threads);
            free(p->busy_since);
        }
        free(p);
        error_set(error, "prepare: out of memory");
        return NULL;
    }
    p->pipeline = pipeline;
    pthread_mutex_init(&p->lock, NULL);
    pthread_cond_init(&p->wake, NULL);
    job_list_init(&p->queue);
    return p;
}

int prepare_start(struct prepare *p, struct error *error)
{
    while (p->thread_count < p->pipeline->config->worker_prepare_threads) {
        if (pthread_create(&p->threads[p->thread_count], NULL, prepare_main, p))
            return error_set(error,
                             "prepare: thread %lld could not be started; lower "
                             "worker.prepare_threads",
                             (long long)p->thread_count + 1);
        p->thread_count++;
    }
    return 0;
}

void prepare_stop(struct prepare *p)
{
    struct job *job;

    pthread_mutex_lock(&p->lock);
    p->stopping = true;
    pthread_cond_broadcast(&p->wake);
    pthread_mutex_unlock(&p->lock);
    while (p->thread_count > 0)
        pthread_join(p->threads[--p->thread_count], NULL);
    while ((job = job_list_pop(&p->queue))) {
        atomic_fetch_sub(&p->depth, 1);
        job_destroy(job);
    }
}

void prepare_destroy(struct prepare *p)
{
    if (!p)
        return;
    prepare_stop(p);
    pthread_cond_destroy(&p->wake);
    pthread_mutex_destroy(&p->lock);
    free(p->threads);
    free(p->busy_since);
    free(p);
}
