/* SPDX-License-Identifier: MIT */
#include "worker/offsets_call.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>

#include "kernels/base/clock.h"
#include "worker/condition.h"
#include "worker/log.h"

enum { SLACK_MS = 1000 }; /* beyond the limit that the client keeps by itself, when it does */

/* Shared by the caller and the call's thread: the last one of them frees it. */
struct run {
    struct offsets_call call;
    int timeout_ms;
    rd_kafka_error_t *error;
    pthread_mutex_t lock;
    pthread_cond_t wake;
    bool over, left; /* under the lock */
};

static _Atomic int calls_left;

static void run_free(struct run *run)
{
    rd_kafka_topic_partition_list_destroy(run->call.list);
    pthread_cond_destroy(&run->wake);
    pthread_mutex_destroy(&run->lock);
    free(run);
}

/* In the thread of a call that returned after nobody waited for it any more. */
static void clear_up(struct run *run)
{
    if (run->error)
        rd_kafka_error_destroy(run->error);
    rd_kafka_consumer_group_metadata_destroy(run->call.group);
    rd_kafka_purge(run->call.producer, RD_KAFKA_PURGE_F_QUEUE | RD_KAFKA_PURGE_F_INFLIGHT);
    rd_kafka_destroy(run->call.producer);
    run_free(run);
    atomic_fetch_sub(&calls_left, 1);
}

static void *run_main(void *argument)
{
    struct run *run = argument;
    bool left;

    run->error = rd_kafka_send_offsets_to_transaction(run->call.producer, run->call.list,
                                                      run->call.group, run->timeout_ms);
    pthread_mutex_lock(&run->lock);
    run->over = true;
    left = run->left;
    pthread_cond_signal(&run->wake);
    pthread_mutex_unlock(&run->lock);
    if (left)
        clear_up(run);
    return NULL;
}

static struct run *run_new(const struct offsets_call *call, int timeout_ms)
{
    struct run *run = calloc(1, sizeof *run);

    if (!run)
        return NULL;
    run->call = *call;
    run->timeout_ms = timeout_ms;
    pthread_mutex_init(&run->lock, NULL);
    condition_init(&run->wake);
    return run;
}

/* False: it is overdue, and the thread has it now. */
static bool run_wait(struct run *run)
{
    int64_t wait_us = (int64_t)(run->timeout_ms + SLACK_MS) * 1000;
    int64_t until_us = clock_mono_us() + wait_us;
    struct timespec until = condition_end(wait_us);
    bool over;

    pthread_mutex_lock(&run->lock);
    while (!run->over && clock_mono_us() < until_us)
        pthread_cond_timedwait(&run->wake, &run->lock, &until);
    over = run->over;
    run->left = !over;
    if (!over)
        atomic_fetch_add(&calls_left, 1);
    pthread_mutex_unlock(&run->lock);
    return over;
}

int offsets_calls_left(void)
{
    return atomic_load(&calls_left);
}

enum kafka_class offsets_call_run(struct offsets_call *call, int timeout_ms)
{
    struct run *run = run_new(call, timeout_ms);
    rd_kafka_error_t *error;
    pthread_t thread;

    if (!run || pthread_create(&thread, NULL, run_main, run)) {
        log_write(LOG_WARN, "settle", NULL, "send_offsets_to_transaction: no memory or no thread");
        if (run)
            run_free(run);
        else
            rd_kafka_topic_partition_list_destroy(call->list);
        return KAFKA_ABORT; /* no offsets have left */
    }
    if (run_wait(run)) {
        pthread_join(thread, NULL);
        error = run->error;
        run_free(run);
        return kafka_client_classify(error, "send_offsets_to_transaction");
    }
    pthread_detach(thread);
    call->producer = NULL;
    call->group = NULL;
    log_write(LOG_WARN, "settle", NULL,
              "send_offsets_to_transaction: no answer within %d ms, its own limit; its producer is "
              "left behind (indeterminate)",
              timeout_ms + SLACK_MS);
    return offsets_calls_left() > OFFSETS_CALLS_LEFT_MAX ? KAFKA_FATAL : KAFKA_INDETERMINATE;
}
