/* SPDX-License-Identifier: MIT */
#include "kernels/cpu/threads.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/base/clock.h"

enum { SPIN_US = 50, SPINS_A_LOOK = 32 }; /* looks at the clock are rare */

struct worker {
    struct threads *threads;
    pthread_t handle;
};

struct threads {
    int32_t count;
    int32_t started; /* workers to join */
    void (*work)(void *arg, int32_t part, int32_t parts);
    void *arg;
    _Atomic uint64_t ticket; /* number of the job << 32 | the next part of it; count = none left */
    _Atomic int32_t remaining; /* parts of the job that are not done */
    _Atomic int32_t sleepers;
    _Atomic int owner_sleeps;
    _Atomic int stopping;
    pthread_mutex_t lock;
    pthread_cond_t job_came;
    pthread_cond_t job_done;
    struct worker workers[]; /* (count - 1) */
};

static inline void spin_pause(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ __volatile__("yield");
#endif
}

static bool parts_left(const struct threads *threads, uint64_t ticket)
{
    return (uint32_t)ticket < (uint32_t)threads->count;
}

/* Returns once there is something to do. */
static void worker_wait(struct threads *threads)
{
    int64_t until = clock_mono_us() + SPIN_US;

    do
        for (int i = 0; i < SPINS_A_LOOK; i++) {
            if (parts_left(threads, atomic_load_explicit(&threads->ticket, memory_order_acquire)))
                return;
            spin_pause();
        }
    while (clock_mono_us() < until);
    pthread_mutex_lock(&threads->lock);
    atomic_fetch_add(&threads->sleepers, 1);
    while (!parts_left(threads, atomic_load(&threads->ticket)) && !atomic_load(&threads->stopping))
        pthread_cond_wait(&threads->job_came, &threads->lock);
    atomic_fetch_sub(&threads->sleepers, 1);
    pthread_mutex_unlock(&threads->lock);
}

static void part_done(struct threads *threads)
{
    if (atomic_fetch_sub(&threads->remaining, 1) != 1 || !atomic_load(&threads->owner_sleeps))
        return;
    pthread_mutex_lock(&threads->lock);
    pthread_cond_signal(&threads->job_done);
    pthread_mutex_unlock(&threads->lock);
}

/* Takes parts of the job at hand until none is left. A part that is taken keeps the job from
 * ending, so work and arg are those of its job. */
static void parts_run(struct threads *threads)
{
    uint64_t ticket = atomic_load(&threads->ticket);

    while (parts_left(threads, ticket)) {
        if (!atomic_compare_exchange_weak(&threads->ticket, &ticket, ticket + 1))
            continue;
        threads->work(threads->arg, (int32_t)(uint32_t)ticket, threads->count);
        part_done(threads);
        ticket = atomic_load(&threads->ticket);
    }
}

static void *worker_main(void *arg)
{
    struct worker *worker = arg;
    struct threads *threads = worker->threads;

    while (!atomic_load(&threads->stopping)) {
        worker_wait(threads);
        parts_run(threads);
    }
    return NULL;
}

static void sleepers_wake(struct threads *threads)
{
    if (!atomic_load(&threads->sleepers))
        return;
    pthread_mutex_lock(&threads->lock);
    pthread_cond_broadcast(&threads->job_came);
    pthread_mutex_unlock(&threads->lock);
}

/* Returns once every part is done. */
static void job_wait(struct threads *threads)
{
    int64_t until = clock_mono_us() + SPIN_US;

    do
        for (int i = 0; i < SPINS_A_LOOK; i++) {
            if (!atomic_load_explicit(&threads->remaining, memory_order_acquire))
                return;
            spin_pause();
        }
    while (clock_mono_us() < until);
    pthread_mutex_lock(&threads->lock);
    atomic_store(&threads->owner_sleeps, 1);
    while (atomic_load(&threads->remaining))
        pthread_cond_wait(&threads->job_done, &threads->lock);
    atomic_store(&threads->owner_sleeps, 0);
    pthread_mutex_unlock(&threads->lock);
}

void threads_run(struct threads *threads, void (*work)(void *arg, int32_t part, int32_t parts),
                 void *arg)
{
    uint64_t job = (atomic_load(&threads->ticket) >> 32) + 1;

    if (threads->count == 1) {
        work(arg, 0, 1);
        return;
    }
    threads->work = work;
    threads->arg = arg;
    atomic_store(&threads->remaining, threads->count);
    atomic_store(&threads->ticket, job << 32);
    sleepers_wake(threads);
    parts_run(threads);
    job_wait(threads);
}

struct threads *threads_create(int32_t count, struct error *error)
{
    struct threads *threads;

    if (count < 1 || count > THREADS_MAX) {
        error_set(error, "threads: %d is not in 1..%d", (int)count, (int)THREADS_MAX);
        return NULL;
    }
    threads = calloc(1, sizeof *threads + (size_t)(count - 1) * sizeof threads->workers[0]);
    if (!threads) {
        error_set(error, "threads: out of memory for %d threads", (int)count);
        return NULL;
    }
    threads->count = count;
    threads->ticket = (uint64_t)count; /* nothing to do */
    pthread_mutex_init(&threads->lock, NULL);
    pthread_cond_init(&threads->job_came, NULL);
    pthread_cond_init(&threads->job_done, NULL);
    for (int32_t i = 0; i < count - 1; i++) {
        struct worker *worker = &threads->workers[i];
        char name[16];
        int failed;

        worker->threads = threads;
        failed = pthread_create(&worker->handle, NULL, worker_main, worker);
        if (failed) {
            error_set(error, "threads: cannot start thread %d of %d: %s", (int)i + 2, (int)count,
                      strerror(failed));
            threads_destroy(threads);
            return NULL;
        }
        snprintf(name, sizeof name, "engine-%d", (int)(i + 1) % 1000);
        pthread_setname_np(worker->handle, name);
        threads->started++;
    }
    return threads;
}

void threads_destroy(struct threads *threads)
{
    if (!threads)
        return;
    atomic_store(&threads->stopping, 1);
    sleepers_wake(threads);
    for (int32_t i = 0; i < threads->started; i++)
        pthread_join(threads->workers[i].handle, NULL);
    pthread_cond_destroy(&threads->job_done);
    pthread_cond_destroy(&threads->job_came);
    pthread_mutex_destroy(&threads->lock);
    free(threads);
}

int32_t threads_count(const struct threads *threads)
{
    return threads->count;
}
