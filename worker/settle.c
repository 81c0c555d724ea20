/* SPDX-License-Identifier: MIT
 *
 * One transaction, step by step, and what can go wrong at each:
 * 1. assignment_open(): under the lock, jobs of partitions given up are dropped, the group metadata
 *    is taken, the partitions are marked as being in a transaction.
 * 2. Results, events, index records and dead letters are produced, then flushed: the offsets are
 * sent only when all of them are acknowledged, which also keeps the broker from answering
 *    CONCURRENT_TRANSACTIONS to a commit that follows the last one closely.
 * 3. send_offsets: watermark and ledger of each partition. A rebalance in between gives an
 * abortable error: abort, and the same jobs go into a new transaction while their partitions are
 * owned.
 * 4. A last look at the ownership, then commit.
 * 5. Any answer that leaves the fate open (a timeout anywhere) destroys the producer: a delayed
 *    commit must not hit a later transaction of it. The new one's init_transactions() fences the
 * old and ends its transaction one way or the other; the stable committed offsets then say which.
 * Jobs they show as done are dropped, the rest is published again. Nothing runs on the device
 * twice.
 */
#include "worker/settle.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "kernels/base/clock.h"
#include "worker/assignment.h"
#include "worker/condition.h"
#include "worker/dead_letter.h"
#include "worker/fault.h"
#include "worker/kafka_client.h"
#include "worker/ledger_metadata.h"
#include "worker/offsets_call.h"
#include "worker/settle_records.h"

enum {
    TRANSACTION_JOBS_MAX = 4096,
    RETRY_PAUSE_MS = 50,    /* after an abort */
    RECOVER_PAUSE_MS = 500, /* between tries to reach the brokers */
    SILENCE_MAX = 2,        /* transactions in a row whose records nobody acknowledged */
    CALL_SLACK_MS = 4000    /* on a machine that is short of time */
};

struct settle {
    struct pipeline *pipeline;
    struct settle_records records;
    rd_kafka_t *producer;
    struct offsets_caller offsets_caller;
    pthread_t thread;
    bool started;
    pthread_mutex_t lock;
    pthread_cond_t wake;
    struct job_list incoming; /* under the lock */
    bool poked;               /* under the lock: some job's chunks are all acknowledged */
    _Atomic bool stopping;
    _Atomic int64_t stop_by_mono_us;
    _Atomic size_t depth;
    /* The thread's own: */
    struct job_list waiting; /* for their chunks or for cancels */
    struct job_list ready;
    int64_t ready_since_us;   /* monotonic; when the oldest of ready became ready */
    int64_t failing_since_us; /* monotonic; 0 = what is ready was not tried in vain */
    int silence;              /* see SILENCE_MAX */
};

void settle_push(struct settle *s, struct job *job)
{
    bool wake;

    atomic_fetch_add(&s->depth, 1);
    pthread_mutex_lock(&s->lock);
    wake = s->incoming.count == 0;
    job_list_push(&s->incoming, job);
    if (wake)
        pthread_cond_signal(&s->wake);
    pthread_mutex_unlock(&s->lock);
}

void settle_poke(struct settle *s)
{
    pthread_mutex_lock(&s->lock);
    if (!s->poked) {
        s->poked = true;
        pthread_cond_signal(&s->wake);
    }
    pthread_mutex_unlock(&s->lock);
}

size_t settle_depth(struct settle *s)
{
    return atomic_load(&s->depth);
}

static void forget(struct settle *s, struct job *job)
{
    atomic_fetch_sub(&s->depth, 1);
    job_destroy(job);
}

static void forget_all(struct settle *s, struct job_list *jobs)
{
    struct job *job;

    while ((job = job_list_pop(jobs)))
        forget(s, job);
}

/* ---- the producer ---- */

/* A record that failed makes its transaction fail; what can be learnt from it is learnt here.
 * Reports of success are asked for as well: they wake rd_kafka_flush(), which else sleeps in steps
 * of 10 ms. */
static void on_delivery(rd_kafka_t *producer, const rd_kafka_message_t *message, void *opaque)
{
    struct settle *s = opaque;

    (void)producer;
    if (message->err == RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE &&
        !strcmp(rd_kafka_topic_name(message->rkt), s->pipeline->config->topic_dlq))
        settle_records_cut_further(&s->records);
}

static rd_kafka_t *producer_new(struct settle *s, struct error *error)
{
    const struct config *config = s->pipeline->config;
    char id[512], timeout[24], delivery[24], largest[24];
    const char *settings[] = {
        "transactional.id", id, "transaction.timeout.ms", timeout, "message.timeout.ms", delivery,
        "enable.idempotence", "true", "message.max.bytes", largest,
        /* markers of the last transaction may still be written: ask again soon */
        "retry.backoff.ms", "1", "retry.backoff.max.ms", "5", "linger.ms", "1",
        "topic.metadata.refresh.interval.ms", "10000", NULL};
    struct kafka_client_options options = {config, s->pipeline->health, "settle", settings, s};
    rd_kafka_conf_t *conf;

    if (snprintf(id, sizeof id, "%s-%s", config->kafka_group, config->worker_name) >=
        (int)sizeof id) { /* cut names might be equal, and fence one another */
        error_set(error, "group and worker.name together are longer than %zu bytes", sizeof id - 2);
        return NULL;
    }
    snprintf(largest, sizeof largest, "%d", DEAD_LETTER_RECORD_MAX);
    snprintf(timeout, sizeof timeout, "%lld", (long long)config->kafka_transaction_timeout_ms);
    snprintf(delivery, sizeof delivery, "%lld",
             (long long)config->kafka_transaction_timeout_ms - 500);
    conf = kafka_client_conf(&options, error);
    if (!conf)
        return NULL;
    rd_kafka_conf_set_dr_msg_cb(conf, on_delivery);
    return kafka_client_new(RD_KAFKA_PRODUCER, conf, error);
}

static void producer_destroy(struct settle *s)
{
    if (!s->producer)
        return;
    rd_kafka_purge(s->producer, RD_KAFKA_PURGE_F_QUEUE | RD_KAFKA_PURGE_F_INFLIGHT);
    rd_kafka_destroy(s->producer);
    s->producer = s->records.producer = NULL;
}

/* Fences every earlier producer of this name. KAFKA_INDETERMINATE = the brokers do not answer. */
static enum kafka_class producer_create(struct settle *s)
{
    struct error error;
    enum kafka_class class;

    s->producer = producer_new(s, &error);
    if (!s->producer) {
        health_fail(s->pipeline->health, "settle: %s", error.message);
        return KAFKA_FATAL;
    }
    s->records.producer = s->producer;
    class = kafka_client_classify(rd_kafka_init_transactions(s->producer, s->records.timeout_ms),
                                  "init_transactions");
    if (class != KAFKA_OK)
        producer_destroy(s);
    if (class == KAFKA_FATAL || class == KAFKA_FENCED)
        health_fail(s->pipeline->health,
                    "settle: the brokers refuse a transactional producer as "
                    "%s-%s",
                    s->pipeline->config->kafka_group, s->pipeline->config->worker_name);
    return class == KAFKA_ABORT ? KAFKA_INDETERMINATE : class;
}

/* ---- one transaction ---- */

static void beat(struct settle *s)
{
    health_beat(s->pipeline->health, HEALTH_BEAT_SETTLE, clock_mono_us());
}

/* A worker that cannot commit stops consuming once it is full: it is not ready then. */
static void commits_report(struct settle *s, bool failed)
{
    int64_t now_us = clock_mono_us(), for_us;
    struct error reason;

    if (!failed) {
        if (s->failing_since_us)
            health_clear(s->pipeline->health, HEALTH_COMMITS);
        s->failing_since_us = 0;
        return;
    }
    if (!s->failing_since_us)
        s->failing_since_us = now_us;
    for_us = now_us - s->failing_since_us;
    if (for_us < (int64_t)s->records.timeout_ms * 1000)
        return;
    error_set(&reason, "no transaction was committed for %lld s; log lines of settle say why",
              (long long)for_us / 1000000);
    health_block(s->pipeline->health, HEALTH_COMMITS, reason.message);
}

static enum kafka_class send_offsets(struct settle *s, struct assignment_transaction *t)
{
    rd_kafka_topic_partition_list_t *list = rd_kafka_topic_partition_list_new((int)t->part_count);
    struct offsets_call call = {s->producer, list, t->group};
    enum kafka_class class;

    for (size_t i = 0; i < t->part_count; i++) {
        const struct ledger *ledger = &t->parts[i].ledger;
        rd_kafka_topic_partition_t *entry = rd_kafka_topic_partition_list_add(
            list, s->pipeline->config->topic_requests, t->parts[i].partition);
        char *metadata = malloc(LEDGER_METADATA_MAX);

        entry->offset = ledger->base;
        if (!metadata) { /* never commit an offset without its ledger */
            rd_kafka_topic_partition_list_destroy(list);
            return KAFKA_ABORT;
        }
        entry->metadata_size = ledger_metadata_write(ledger, metadata);
        entry->metadata = metadata; /* owned by the list */
    }
    beat(s);
    class = offsets_call_run(&s->offsets_caller, &call, s->records.timeout_ms);
    s->producer = s->records.producer = call.producer;
    t->group = call.group;
    return class;
}

static enum kafka_class publish(struct settle *s, struct assignment_transaction *t,
                                const struct job_list *jobs)
{
    struct error error;
    enum kafka_class class =
        kafka_client_classify(rd_kafka_begin_transaction(s->producer), "begin_transaction");

    if (class != KAFKA_OK)
        return class;
    for (struct job *job = jobs->head; job; job = job->next) {
        FAULT_POINT("produce_result");
        if (settle_records_job(&s->records, job, &error))
            goto abort;
    }
    for (size_t i = 0; i < t->part_count; i++)
        if (settle_records_index(&s->records, &t->parts[i], jobs, &error))
            goto abort;
    beat(s);
    if (rd_kafka_flush(s->producer, s->records.timeout_ms)) {
        error_set(&error, "the brokers did not acknowledge the records in time");
        if (++s->silence < SILENCE_MAX)
            goto abort;
        /* After a request to its coordinator that was lost, the client may never send the records
         * of any later transaction, although the brokers serve: a new producer does. */
        log_write(LOG_WARN, "settle", NULL, "%s, %d times: a new producer", error.message,
                  s->silence);
        s->silence = 0;
        return KAFKA_INDETERMINATE;
    }
    s->silence = 0;
    FAULT_POINT("send_offsets");
    class = send_offsets(s, t);
    if (class != KAFKA_OK)
        return class;
    if (!assignment_still_owned(s->pipeline->assignment, t)) {
        error_set(&error, "a partition of the transaction was lost");
        goto abort;
    }
    FAULT_POINT("commit");
    beat(s);
    return kafka_client_classify(rd_kafka_commit_transaction(s->producer, s->records.timeout_ms),
                                 "commit_transaction");
abort:
    log_write(LOG_WARN, "settle", NULL, "transaction of %zu jobs aborted: %s", jobs->count,
              error.message);
    return KAFKA_ABORT;
}

/* A coordinator fences the producer of a transaction that it has ended by its timeout: after a
 * pause, or without brokers for so long. A younger one was fenced by another worker of its name. */
static enum kafka_class fence_judge(const struct settle *s, enum kafka_class class,
                                    int64_t begun_us)
{
    int64_t age_us = clock_mono_us() - begun_us;

    if (class != KAFKA_FENCED)
        return class;
    return age_us < s->pipeline->config->kafka_transaction_timeout_ms * 1000 ? KAFKA_FATAL
                                                                             : KAFKA_INDETERMINATE;
}

static void count_outcome(const struct job *job)
{
    static const enum metric metrics[] = {
        [JOB_COMPLETED] = METRIC_JOBS_COMPLETED, [JOB_FAILED] = METRIC_JOBS_FAILED,
        [JOB_CANCELLED] = METRIC_JOBS_CANCELLED, [JOB_EXPIRED] = METRIC_JOBS_EXPIRED,
        [JOB_POISON] = METRIC_JOBS_POISON,       [JOB_DEAD_LETTER] = METRIC_JOBS_DEAD_LETTER,
        [JOB_DUPLICATE] = METRIC_JOBS_DUPLICATE};

    metrics_add(metrics[job->outcome], 1);
    if (job->outcome == JOB_COMPLETED) {
        metrics_observe(METRIC_QUEUE_TIME, job->result.timings.queue_us);
        metrics_observe(METRIC_FIRST_TOKEN_TIME, job->result.timings.first_token_us);
        metrics_observe(METRIC_TOTAL_TIME, job->result.timings.total_us);
    }
}

static void committed(struct settle *s, struct job_list *jobs)
{
    assignment_committed(s->pipeline->assignment, jobs, clock_wall_us());
    for (const struct job *job = jobs->head; job; job = job->next)
        count_outcome(job);
    if (jobs->count)
        metrics_add(METRIC_TRANSACTIONS_COMMITTED, 1);
    forget_all(s, jobs);
}

/* ---- an open fate ---- */

/* What the brokers have for one part; false when they did not answer. */
static bool committed_ledger(struct settle *s, rd_kafka_t *consumer, int32_t partition,
                             struct ledger *ledger)
{
    rd_kafka_topic_partition_list_t *list = rd_kafka_topic_partition_list_new(1);
    rd_kafka_topic_partition_t *entry =
        rd_kafka_topic_partition_list_add(list, s->pipeline->config->topic_requests, partition);
    rd_kafka_resp_err_t code = rd_kafka_committed(consumer, list, s->records.timeout_ms);
    struct error error;
    bool known = code == RD_KAFKA_RESP_ERR_NO_ERROR && !entry->err;

    if (known && entry->offset < 0)
        ledger_init(ledger, 0, 0);
    else if (known && ledger_metadata_read(entry->metadata, entry->metadata_size, entry->offset,
                                           ledger, &error))
        log_write(LOG_ERROR, "settle", NULL, "partition %d: %s", partition, error.message);
    rd_kafka_topic_partition_list_destroy(list);
    return known;
}

/* Splits jobs of one part into those that were committed and the rest. */
static void split_done(const struct ledger *ledger, int32_t partition, struct job_list *jobs,
                       struct job_list *done)
{
    struct job_list rest;
    struct job *job;

    job_list_init(&rest);
    while ((job = job_list_pop(jobs)))
        job_list_push(
            job->partition == partition && ledger_is_finished(ledger, job->offset) ? done : &rest,
            job);
    job_list_splice(jobs, &rest);
}

static bool give_up(struct settle *s)
{
    char reason[8];

    if (health_failed(s->pipeline->health, reason, sizeof reason))
        return true;
    return atomic_load(&s->stopping) && clock_mono_us() > atomic_load(&s->stop_by_mono_us);
}

static void pause_ms(int ms)
{
    struct timespec t = {ms / 1000, (long)(ms % 1000) * 1000000};

    nanosleep(&t, NULL);
}

/* Recreates the producer, then asks what was committed. jobs keeps what must be published again;
 * when it gives up before all is known, settle ends, and the next owner finds out. */
static void recover(struct settle *s, const struct assignment_transaction *t, struct job_list *jobs)
{
    rd_kafka_t *consumer = assignment_consumer(s->pipeline->assignment);
    struct job_list done;

    job_list_init(&done);
    metrics_add(METRIC_TRANSACTIONS_INDETERMINATE, 1);
    producer_destroy(s);
    while (!give_up(s)) {
        beat(s);
        commits_report(s, true);
        if (producer_create(s) == KAFKA_OK)
            break;
        pause_ms(RECOVER_PAUSE_MS);
    }
    for (size_t i = 0; i < t->part_count && !give_up(s); i++) {
        struct ledger ledger;

        if (committed_ledger(s, consumer, t->parts[i].partition, &ledger)) {
            split_done(&ledger, t->parts[i].partition, jobs, &done);
            continue;
        }
        beat(s);
        commits_report(s, true);
        pause_ms(RECOVER_PAUSE_MS);
        i--; /* the same part again */
    }
    log_write(
        LOG_INFO, "settle", NULL,
        "after an indeterminate transaction: %zu jobs were committed, %zu are published again",
        done.count, jobs->count);
    committed(s, &done);
}

static void fail_fenced(struct settle *s)
{
    health_fail(s->pipeline->health,
                "settle: the transactional producer failed; is another worker running as %s?",
                s->pipeline->config->worker_name);
}

static void abort_transaction(struct settle *s, const struct assignment_transaction *t,
                              struct job_list *jobs, int64_t begun_us)
{
    enum kafka_class class;

    beat(s);
    commits_report(s, true);
    class = kafka_client_classify(rd_kafka_abort_transaction(s->producer, s->records.timeout_ms),
                                  "abort_transaction");
    class = fence_judge(s, class, begun_us);
    metrics_add(METRIC_TRANSACTIONS_ABORTED, 1);
    if (class == KAFKA_FATAL)
        fail_fenced(s);
    else if (class != KAFKA_OK)
        recover(s, t, jobs);
    else
        pause_ms(RETRY_PAUSE_MS);
}

/* Takes up to TRANSACTION_JOBS_MAX of the ready jobs; puts back what must be tried again. */
static void transaction_run(struct settle *s)
{
    struct assignment_transaction t;
    struct job_list jobs, stale;
    struct error error;
    int64_t begun = clock_mono_us();

    job_list_init(&jobs);
    job_list_init(&stale);
    while (s->ready.head && jobs.count < TRANSACTION_JOBS_MAX)
        job_list_push(&jobs, job_list_pop(&s->ready));
    if (assignment_open(s->pipeline->assignment, &jobs, &stale, &t, &error)) {
        log_write(LOG_WARN, "settle", NULL, "%s", error.message);
        commits_report(s, true);
        pause_ms(RETRY_PAUSE_MS);
        goto back;
    }
    metrics_add(METRIC_STALE_DROPPED, stale.count);
    forget_all(s, &stale);
    if (!t.part_count)
        return;
    switch (fence_judge(s, publish(s, &t, &jobs), begun)) {
    case KAFKA_OK:
        FAULT_POINT("committed");
        metrics_observe(METRIC_COMMIT_TIME, clock_mono_us() - begun);
        commits_report(s, false);
        committed(s, &jobs);
        break;
    case KAFKA_ABORT:
        abort_transaction(s, &t, &jobs, begun);
        break;
    case KAFKA_INDETERMINATE:
        recover(s, &t, &jobs);
        break;
    case KAFKA_FENCED: /* was judged */
    case KAFKA_FATAL:
        fail_fenced(s);
        break;
    }
    assignment_close(s->pipeline->assignment, &t);
back:
    job_list_splice(&jobs, &stale);
    job_list_splice(&jobs, &s->ready);
    job_list_splice(&s->ready, &jobs);
}

/* ---- the thread ---- */

/* A completed job waits until every cancel is known that may have been sent before its request. */
static bool cancels_known(struct settle *s, struct job *job)
{
    if (job->outcome != JOB_COMPLETED)
        return true;
    if (!control_knows(s->pipeline->control, job->accepted_mono_us))
        return false;
    if (control_is_cancelled(s->pipeline->control, job->id))
        job_finish(job, JOB_CANCELLED, NULL, NULL, clock_wall_us());
    return true;
}

static void sort_waiting(struct settle *s)
{
    struct job_list still;
    struct job *job;
    int64_t for_chunks = 0, for_cancels = 0;

    job_list_init(&still);
    while ((job = job_list_pop(&s->waiting))) {
        bool chunks = atomic_load(&job->chunks_unacked) > 0,
             cancels = !chunks && !cancels_known(s, job);

        for_chunks += chunks;
        for_cancels += cancels;
        if (chunks || cancels) {
            job_list_push(&still, job);
            continue;
        }
        if (!s->ready.head)
            s->ready_since_us = clock_mono_us();
        job_list_push(&s->ready, job);
    }
    job_list_splice(&s->waiting, &still);
    metrics_set(METRIC_JOBS_AWAITING_CHUNKS, for_chunks);
    metrics_set(METRIC_JOBS_AWAITING_CANCELS, for_cancels);
}

/* Waits for work, but not past the moment when the ready jobs are due. */
static void gather(struct settle *s, int64_t wait_us)
{
    pthread_mutex_lock(&s->lock);
    if (!s->incoming.head && !s->poked && wait_us > 0) { /* settle_stop() pokes */
        struct timespec until = condition_end(wait_us);

        pthread_cond_timedwait(&s->wake, &s->lock, &until);
    }
    job_list_splice(&s->waiting, &s->incoming);
    s->poked = false;
    pthread_mutex_unlock(&s->lock);
    sort_waiting(s);
}

/* When nothing else is in the worker, nothing could join by waiting. */
static bool due(const struct settle *s, int64_t now_us)
{
    const struct config *config = s->pipeline->config;

    return s->ready.head && ((int64_t)s->ready.count >= config->commit_max_jobs ||
                             atomic_load(&s->stopping) || s->ready.count == job_alive() ||
                             now_us - s->ready_since_us >= config->commit_interval_ms * 1000);
}

static void *settle_main(void *argument)
{
    enum { IDLE_WAIT_US = 200000 };
    struct settle *s = argument;
    char reason[8];

    pthread_setname_np(pthread_self(), "settle");
    while (!health_failed(s->pipeline->health, reason, sizeof reason)) {
        int64_t now = clock_mono_us();
        int64_t wait = s->ready.head ? s->pipeline->config->commit_interval_ms * 1000 -
                                           (now - s->ready_since_us)
                                     : IDLE_WAIT_US;

        health_beat(s->pipeline->health, HEALTH_BEAT_SETTLE, now);
        gather(s, wait);
        rd_kafka_poll(s->producer, 0); /* error callbacks */
        if (due(s, clock_mono_us())) {
            transaction_run(s);
            s->ready_since_us = clock_mono_us();
        }
        if (!s->ready.head) /* what failed may have been dropped with its partition */
            commits_report(s, false);
        /* A recovery that was given up leaves no producer: then there is nothing more to do. */
        if (!s->producer || (atomic_load(&s->stopping) && settle_depth(s) == 0) || give_up(s))
            break;
    }
    return NULL;
}

struct settle *settle_create(struct pipeline *pipeline, struct error *error)
{
    struct settle *s = calloc(1, sizeof *s);

    if (!s) {
        error_set(error, "settle: out of memory");
        return NULL;
    }
    s->pipeline = pipeline;
    s->records.config = pipeline->config;
    s->records.timeout_ms = (int)pipeline->config->kafka_call_timeout_ms;
    s->records.dead_letter_max = DEAD_LETTER_RECORD_MAX;
    s->records.codec = codec_open(NULL, error);
    if (!s->records.codec) {
        free(s);
        return NULL;
    }
    pthread_mutex_init(&s->lock, NULL);
    condition_init(&s->wake);
    job_list_init(&s->incoming);
    job_list_init(&s->waiting);
    job_list_init(&s->ready);
    return s;
}

int settle_start(struct settle *s, struct error *error)
{
    if (producer_create(s) != KAFKA_OK)
        return error_set(error,
                         "settle: no transactional producer: the brokers at %s did not "
                         "answer within %d ms, or refused",
                         s->pipeline->config->kafka_brokers, s->records.timeout_ms);
    /* Calls of librdkafka have hung for ever, whatever their timeout. */
    health_limit(s->pipeline->health, HEALTH_BEAT_SETTLE,
                 (2 * (int64_t)s->records.timeout_ms + CALL_SLACK_MS) * 1000);
    if (pthread_create(&s->thread, NULL, settle_main, s))
        return error_set(error, "settle: its thread could not be started");
    s->started = true;
    return 0;
}

void settle_stop(struct settle *s, int wait_ms)
{
    if (!s->started)
        return;
    atomic_store(&s->stop_by_mono_us, clock_mono_us() + (int64_t)wait_ms * 1000);
    atomic_store(&s->stopping, true);
    settle_poke(s);
    pthread_join(s->thread, NULL);
    s->started = false;
}

void settle_destroy(struct settle *s)
{
    if (!s)
        return;
    producer_destroy(s);
    offsets_caller_close(&s->offsets_caller);
    forget_all(s, &s->ready);
    forget_all(s, &s->waiting);
    forget_all(s, &s->incoming);
    codec_close(s->records.codec);
    buffer_free(&s->records.buffer);
    pthread_cond_destroy(&s->wake);
    pthread_mutex_destroy(&s->lock);
    free(s);
}
