/* SPDX-License-Identifier: MIT */
#include "worker/offsets_call.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>

#include "kernels/base/clock.h"
#include "worker/condition.h"
#include "worker/log.h"

enum { SLACK_MS = 1000 }; /* beyond the limit that the client keeps by itself, when it does */

/* ASKED -> OVER -> IDLE by a call; ASKED -> LEFT when it is overdue: then the thread owns all of
 * it, and nobody else looks at it again. */
enum state { IDLE, ASKED, OVER, LEFT, ENDING };

struct offsets_thread {
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t wake;      /* of both sides: only one of them waits at a time */
    enum state state;         /* under the lock */
    struct offsets_call call; /* these three are the thread's while ASKED and LEFT */
    int timeout_ms;
    rd_kafka_error_t *error;
};

static _Atomic int calls_left;

static void thread_free(struct offsets_thread *t)
{
    pthread_cond_destroy(&t->wake);
    pthread_mutex_destroy(&t->lock);
    free(t);
}

/* In the thread of a call that returned after nobody waited for it any more. */
static void clear_up(struct offsets_thread *t)
{
    if (t->error)
        rd_kafka_error_destroy(t->error);
    rd_kafka_topic_partition_list_destroy(t->call.list);
    rd_kafka_consumer_group_metadata_destroy(t->call.group);
    rd_kafka_purge(t->call.producer, RD_KAFKA_PURGE_F_QUEUE | RD_KAFKA_PURGE_F_INFLIGHT);
    rd_kafka_destroy(t->call.producer);
    thread_free(t);
    atomic_fetch_sub(&calls_left, 1);
}

static enum state next_state(struct offsets_thread *t)
{
    enum state state;

    pthread_mutex_lock(&t->lock);
    while (t->state != ASKED && t->state != ENDING)
        pthread_cond_wait(&t->wake, &t->lock);
    state = t->state;
    pthread_mutex_unlock(&t->lock);
    return state;
}

static void *offsets_main(void *argument)
{
    struct offsets_thread *t = argument;
    bool left = false;

    pthread_setname_np(pthread_self(), "offsets");
    while (!left && next_state(t) == ASKED) {
        t->error = rd_kafka_send_offsets_to_transaction(t->call.producer, t->call.list,
                                                        t->call.group, t->timeout_ms);
        pthread_mutex_lock(&t->lock);
        left = t->state == LEFT;
        if (!left)
            t->state = OVER;
        pthread_cond_signal(&t->wake);
        pthread_mutex_unlock(&t->lock);
    }
    if (left)
        clear_up(t);
    return NULL;
}

static struct offsets_thread *thread_new(void)
{
    struct offsets_thread *t = calloc(1, sizeof *t);

    if (!t)
        return NULL;
    pthread_mutex_init(&t->lock, NULL);
    condition_init(&t->wake);
    if (!pthread_create(&t->thread, NULL, offsets_main, t))
        return t;
    thread_free(t);
    return NULL;
}

/* False: it is overdue, and the thread has it now. */
static bool thread_ask(struct offsets_thread *t, const struct offsets_call *call, int timeout_ms)
{
    int64_t wait_us = (int64_t)(timeout_ms + SLACK_MS) * 1000;
    int64_t until_us = clock_mono_us() + wait_us;
    struct timespec until = condition_end(wait_us);
    bool over;

    pthread_mutex_lock(&t->lock);
    t->call = *call;
    t->timeout_ms = timeout_ms;
    t->state = ASKED;
    pthread_cond_signal(&t->wake);
    while (t->state == ASKED && clock_mono_us() < until_us)
        pthread_cond_timedwait(&t->wake, &t->lock, &until);
    over = t->state == OVER;
    t->state = over ? IDLE : LEFT;
    if (!over)
        atomic_fetch_add(&calls_left, 1);
    pthread_mutex_unlock(&t->lock);
    return over;
}

int offsets_calls_left(void)
{
    return atomic_load(&calls_left);
}

enum kafka_class offsets_call_run(struct offsets_caller *caller, struct offsets_call *call,
                                  int timeout_ms)
{
    pthread_t thread;

    if (!caller->thread)
        caller->thread = thread_new();
    if (!caller->thread) {
        log_write(LOG_WARN, "settle", NULL, "send_offsets_to_transaction: no memory or no thread");
        rd_kafka_topic_partition_list_destroy(call->list);
        return KAFKA_ABORT; /* no offsets have left */
    }
    thread = caller->thread->thread; /* of one that is left behind nothing may be looked at */
    if (thread_ask(caller->thread, call, timeout_ms)) {
        rd_kafka_topic_partition_list_destroy(call->list);
        return kafka_client_classify(caller->thread->error, "send_offsets_to_transaction");
    }
    pthread_detach(thread);
    caller->thread = NULL;
    call->producer = NULL;
    call->group = NULL;
    log_write(LOG_WARN, "settle", NULL,
              "send_offsets_to_transaction: no answer within %d ms, its own limit; its producer is "
              "left behind (indeterminate)",
              timeout_ms + SLACK_MS);
    return offsets_calls_left() > OFFSETS_CALLS_LEFT_MAX ? KAFKA_FATAL : KAFKA_INDETERMINATE;
}

void offsets_caller_close(struct offsets_caller *caller)
{
    struct offsets_thread *t = caller->thread;

    if (!t)
        return;
    pthread_mutex_lock(&t->lock);
    t->state = ENDING;
    pthread_cond_signal(&t->wake);
    pthread_mutex_unlock(&t->lock);
    pthread_join(t->thread, NULL);
    thread_free(t);
    caller->thread = NULL;
}
