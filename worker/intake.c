/* SPDX-License-Identifier: MIT */
#include "worker/intake.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "kernels/base/clock.h"
#include "worker/admission.h"
#include "worker/assignment.h"
#include "worker/control.h"
#include "worker/engines.h"
#include "worker/fault.h"
#include "worker/kafka_client.h"
#include "worker/lag.h"
#include "worker/partitions.h"
#include "worker/takeover.h"
#include "worker/topics.h"

enum {
    POLL_MS = 20,
    RECORD_RETRY_MS = 50,
    TAKEOVER_RETRY_US = 500000,
    TOPICS_CHECK_US = 30000000,
    TOPICS_RETRY_US = 2000000,
    FULL_REST_US = 500,    /* between looks at a full worker */
    FULL_PAUSE_US = 100000 /* full for so long without a job that left: pause */
};

struct intake {
    struct pipeline *pipeline;
    rd_kafka_t *consumer;
    struct admission *admission;
    struct takeover *takeover;
    struct lag *lag;
    struct engines *engines;
    pthread_t thread;
    bool started, ran; /* ran: to its end, and closed what was to be closed */
    _Atomic bool draining, stopping;
    /* The thread's own: */
    struct partitions partitions;
    int32_t output_partitions; /* least of the output topics, -1 = not known */
    int64_t takeover_at_us, topics_at_us;
    int64_t full_since_us;     /* 0 = the worker is not full */
    rd_kafka_message_t *alone; /* a suspect held back until nothing runs beside it */
    bool alone_running;
};

/* ---- pausing ---- */

/* A pause throws away what the client has fetched, and a resumed partition waits for it anew:
 * longer than a fast device takes for all that the worker holds. So a full worker first only rests.
 */
static void full_review(struct intake *in)
{
    bool paused = in->partitions.all_reasons & PAUSE_FULL;
    bool full = admission_is_full(in->pipeline->config, paused);
    int64_t now = clock_mono_us();

    if (!full)
        in->full_since_us = 0;
    else if (!in->full_since_us)
        in->full_since_us = now;
    partitions_reason_set_all(&in->partitions, PAUSE_FULL,
                              full && (paused || now - in->full_since_us >= FULL_PAUSE_US));
}

/* Reasons that come and go with the state of the worker. */
static void pauses_review(struct intake *in)
{
    struct pipeline *p = in->pipeline;

    full_review(in);
    partitions_reason_set_all(&in->partitions, PAUSE_DRAIN, atomic_load(&in->draining));
    partitions_reason_set_all(&in->partitions, PAUSE_CONTROL, !control_caught_up(p->control));
    partitions_reason_set_all(&in->partitions, PAUSE_ALONE, in->alone || in->alone_running);
    for (int32_t i = 0; i < in->partitions.end; i++)
        if (in->partitions.assigned[i] && in->partitions.reasons[i] & PAUSE_FAR &&
            assignment_has_room(p->assignment, i, p->config->ledger_max_ahead))
            partitions_reason_set(&in->partitions, i, PAUSE_FAR, false);
    partitions_pause(&in->partitions);
}

/* ---- topics ---- */

/* Partitions without their counterparts stay paused and the worker unready. */
static void topics_review(struct intake *in, int64_t now)
{
    struct error reason = {""};

    if (now < in->topics_at_us)
        return;
    in->output_partitions = topics_outputs(in->consumer, in->pipeline->config, &reason);
    for (int32_t p = 0; p < in->partitions.end; p++) {
        bool missing = in->partitions.assigned[p] && p >= in->output_partitions;

        partitions_reason_set(&in->partitions, p, PAUSE_NO_OUTPUT, missing);
        if (missing && !*reason.message)
            error_set(&reason,
                      "request partition %d has no counterpart in every "
                      "output topic; grow them with `pgpt topics --create`",
                      p);
    }
    if (*reason.message)
        health_block(in->pipeline->health, HEALTH_TOPICS, reason.message);
    else
        health_clear(in->pipeline->health, HEALTH_TOPICS);
    in->topics_at_us = now + (*reason.message ? TOPICS_RETRY_US : TOPICS_CHECK_US);
}

/* ---- assignment ---- */

static void on_assign(struct intake *in, const rd_kafka_topic_partition_list_t *partitions)
{
    rd_kafka_topic_partition_list_t *list = rd_kafka_topic_partition_list_copy(partitions);
    rd_kafka_error_t *failed;

    for (int i = 0; i < list->cnt; i++) {
        int32_t p = list->elems[i].partition;

        list->elems[i].offset = RD_KAFKA_OFFSET_BEGINNING; /* takeover seeks before it resumes */
        if (p >= ASSIGNMENT_PARTITIONS_MAX) {
            health_fail(in->pipeline->health, "the requests topic has more than %d partitions",
                        ASSIGNMENT_PARTITIONS_MAX);
            continue;
        }
        partitions_add(&in->partitions, p);
        takeover_forget(in->takeover, p);
    }
    failed = rd_kafka_incremental_assign(in->consumer, list);
    rd_kafka_pause_partitions(in->consumer, list);
    if (failed) {
        health_fail(in->pipeline->health, "intake: assign: %s", rd_kafka_error_string(failed));
        rd_kafka_error_destroy(failed);
    }
    rd_kafka_topic_partition_list_destroy(list);
    in->takeover_at_us = 0;
    in->topics_at_us = 0;
}

static void alone_forget(struct intake *in, int32_t partition)
{
    if (!in->alone || in->alone->partition != partition)
        return;
    rd_kafka_message_destroy(in->alone);
    in->alone = NULL;
}

/* Ends the ownership of the list's partitions; in order: commits their ledgers without the mark. A
 * commit that is not answered in time harms nobody: the client tells the group that partitions are
 * given up when all its commits have their answers. */
static void give_up(struct intake *in, const rd_kafka_topic_partition_list_t *list, bool lost)
{
    struct pipeline *p = in->pipeline;
    struct ledger *ledgers = calloc((size_t)list->cnt + 1, sizeof *ledgers);
    int32_t *closed = calloc((size_t)list->cnt + 1, sizeof *closed);
    int64_t until = clock_mono_us() + p->config->kafka_call_timeout_ms * 1000;
    struct error error;
    int count = 0;

    for (int i = 0; i < list->cnt; i++) {
        int32_t partition = list->elems[i].partition;
        int64_t left = lost ? 0 : (until - clock_mono_us()) / 1000;
        struct ledger ledger;

        FAULT_POINT("revoke");
        if (assignment_give_up(p->assignment, partition, left > 0 ? (int)left : 0, &ledger) &&
            !lost && ledgers && closed) {
            ledger_give_up(&ledger);
            ledgers[count] = ledger;
            closed[count++] = partition;
        }
        scheduler_drop_stale(p->scheduler, partition, 0);
        alone_forget(in, partition);
        partitions_remove(&in->partitions, partition);
    }
    if (count && takeover_commit(in->takeover, in->consumer, closed, ledgers, count, &error))
        log_write(LOG_WARN, "intake", NULL, "%s; the next owner will see a death", error.message);
    free(ledgers);
    free(closed);
}

static void on_revoke(struct intake *in, const rd_kafka_topic_partition_list_t *list)
{
    bool lost = rd_kafka_assignment_lost(in->consumer) != 0;
    rd_kafka_error_t *failed;

    give_up(in, list, lost);
    if (lost)
        metrics_add(METRIC_PARTITIONS_LOST, (uint64_t)list->cnt);
    failed = rd_kafka_incremental_unassign(in->consumer, list);
    if (failed) { /* the group would wait for it for ever */
        health_fail(in->pipeline->health, "intake: unassign: %s", rd_kafka_error_string(failed));
        rd_kafka_error_destroy(failed);
    }
    log_write(LOG_INFO, "intake", NULL, "%d partitions %s, %d left", list->cnt,
              lost ? "lost" : "given up", in->partitions.assigned_count);
}

static void on_rebalance(rd_kafka_t *consumer, rd_kafka_resp_err_t code,
                         rd_kafka_topic_partition_list_t *list, void *opaque)
{
    struct intake *in = opaque;

    (void)consumer;
    metrics_add(METRIC_REBALANCES, 1);
    if (code == RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS)
        on_assign(in, list);
    else
        on_revoke(in, list);
}

static void takeover_step(struct intake *in, int64_t now)
{
    enum { AT_ONCE = 64 };
    int32_t partitions[AT_ONCE] = {0};
    int64_t offsets[AT_ONCE] = {0};
    struct error error;
    int count = 0;

    if (!in->partitions.untaken_count || now < in->takeover_at_us || atomic_load(&in->draining))
        return;
    /* Those without counterparts wait: there is no index to read for them yet. */
    for (int32_t p = 0; p < in->partitions.end && p < in->output_partitions && count < AT_ONCE; p++)
        if (in->partitions.assigned[p] && in->partitions.reasons[p] & PAUSE_UNTAKEN)
            partitions[count++] = p;
    if (!count)
        return;
    if (takeover_run(in->takeover, in->consumer, partitions, offsets, count, &error)) {
        log_write(LOG_WARN, "intake", NULL, "%d partitions not taken over yet: %s", count,
                  error.message);
        in->takeover_at_us = now + TAKEOVER_RETRY_US;
        return;
    }
    for (int i = 0; i < count; i++)
        partitions_taken(&in->partitions, partitions[i], offsets[i]);
    log_write(LOG_INFO, "intake", NULL, "%d partitions taken over, %d owned", count,
              in->partitions.assigned_count - in->partitions.untaken_count);
}

static void assignment_report(struct intake *in)
{
    struct health *health = in->pipeline->health;

    metrics_set(METRIC_PARTITIONS_ASSIGNED,
                in->partitions.assigned_count - in->partitions.untaken_count);
    metrics_set(METRIC_LEDGER_AHEAD, assignment_ahead(in->pipeline->assignment));
    metrics_set(METRIC_JOBS_IN_FLIGHT, (int64_t)job_alive());
    metrics_set(METRIC_JOBS_BYTES, (int64_t)job_bytes());
    if (!in->partitions.assigned_count)
        health_block(health, HEALTH_ASSIGNMENT, "no partition is assigned to this worker");
    else if (in->partitions.untaken_count)
        health_block(health, HEALTH_ASSIGNMENT, "partitions are being taken over");
    else
        health_clear(health, HEALTH_ASSIGNMENT);
}

/* ---- records ---- */

static void admit(struct intake *in, rd_kafka_message_t *message,
                  const struct assignment_admission *answer)
{
    switch (admission_run(in->admission, message, answer)) {
    case ADMISSION_OK:
        break;
    case ADMISSION_RETRY:
        assignment_again(in->pipeline->assignment, message->partition, message->offset);
        nanosleep(&(struct timespec){0, RECORD_RETRY_MS * 1000000L}, NULL);
        partitions_rewind(&in->partitions, message->partition, message->offset);
        break;
    case ADMISSION_LIMIT:
        partitions_reason_set_all(&in->partitions, PAUSE_DLQ_LIMIT, true);
        health_block(in->pipeline->health, HEALTH_DLQ_LIMIT,
                     "too many of the last records were dead-lettered (dlq.limit_ratio); look at "
                     "them with `pgpt dlq list`, then restart");
        log_write(LOG_ERROR, "intake", NULL, "intake stopped: too many dead letters");
        partitions_pause(&in->partitions);
        break;
    }
}

/* Returns true when it keeps the message. */
static bool on_record(struct intake *in, rd_kafka_message_t *message)
{
    const struct config *config = in->pipeline->config;
    struct assignment_admission answer;

    if (!assignment_begin(in->pipeline->assignment, message->partition, message->offset,
                          config->ledger_max_ahead, (int32_t)config->poison_max_deaths, &answer))
        return false; /* not owned (yet): it is read again by its owner */
    if (answer.answer == LEDGER_DONE || answer.answer == LEDGER_RUNNING)
        return false; /* the client delivers it a second time */
    if (answer.answer == LEDGER_TOO_FAR) {
        partitions_reason_set(&in->partitions, message->partition, PAUSE_FAR, true);
        partitions_pause(&in->partitions);
        partitions_rewind(&in->partitions, message->partition, message->offset);
        return false;
    }
    if (answer.run_alone) {
        in->alone = message; /* not decoded before the commit that says it runs alone */
        pauses_review(in);
        return true;
    }
    admit(in, message, &answer);
    return false;
}

/* A suspect starts when the worker is empty and its mark is committed, and ends before the next. */
static void alone_step(struct intake *in)
{
    const struct config *config = in->pipeline->config;
    struct assignment_admission answer;
    rd_kafka_message_t *message = in->alone;
    struct ledger ledger;
    struct error error;

    if (job_alive() > 0)
        return;
    in->alone_running = false;
    if (!message || atomic_load(&in->draining))
        return;
    in->alone = NULL;
    if (assignment_begin(in->pipeline->assignment, message->partition, message->offset,
                         config->ledger_max_ahead, (int32_t)config->poison_max_deaths, &answer) &&
        assignment_mark_alone(in->pipeline->assignment, message->partition, message->offset,
                              &ledger)) {
        if (takeover_commit(in->takeover, in->consumer, &message->partition, &ledger, 1, &error)) {
            log_write(LOG_WARN, "intake", NULL, "%s; trying again", error.message);
            in->alone = message;
            return;
        }
        FAULT_POINT("alone_marked");
        in->alone_running = true;
        admit(in, message, &answer);
    }
    rd_kafka_message_destroy(message);
}

static void on_error(struct intake *in, const rd_kafka_message_t *message)
{
    char reason[512];

    if (message->err == RD_KAFKA_RESP_ERR__PARTITION_EOF ||
        kafka_client_broken(in->consumer, message->err))
        return;
    snprintf(reason, sizeof reason, "partition %d: %s", message->partition,
             rd_kafka_message_errstr(message));
    log_write(LOG_WARN, "intake", NULL, "%s", reason);
    if (message->err == RD_KAFKA_RESP_ERR__AUTO_OFFSET_RESET)
        health_block(in->pipeline->health, HEALTH_OFFSETS, reason);
}

static void *intake_main(void *argument)
{
    struct intake *in = argument;
    const struct config *config = in->pipeline->config;
    char reason[8];

    pthread_setname_np(pthread_self(), "intake");
    while (!atomic_load(&in->stopping) &&
           !health_failed(in->pipeline->health, reason, sizeof reason)) {
        int64_t now = clock_mono_us();
        rd_kafka_message_t *message;

        health_beat(in->pipeline->health, HEALTH_BEAT_INTAKE, now);
        topics_review(in, now);
        takeover_step(in, now);
        partitions_seek_again(&in->partitions, now);
        alone_step(in);
        pauses_review(in);
        assignment_report(in);
        lag_review(in->lag, in->partitions.assigned, in->partitions.end, now);
        /* The reviews are not free; the bound on jobs is looked at for each record. */
        for (int n = 0; n < 256 && !in->partitions.all_reasons && !admission_is_full(config, false);
             n++) {
            message = rd_kafka_consumer_poll(in->consumer, n ? 0 : POLL_MS);
            if (!message)
                break;
            if (message->err)
                on_error(in, message);
            else if (on_record(in, message))
                break;
            rd_kafka_message_destroy(message);
        }
        if (!in->partitions.all_reasons && admission_is_full(config, false)) {
            nanosleep(&(struct timespec){0, FULL_REST_US * 1000}, NULL);
        } else if (in->partitions
                       .all_reasons) { /* everything is paused: still poll, for rebalances */
            message = rd_kafka_consumer_poll(in->consumer, POLL_MS);
            if (message && message->err)
                on_error(in, message);
            else if (message) /* it was fetched before the pause: deliver it again later */
                partitions_rewind(&in->partitions, message->partition, message->offset);
            if (message)
                rd_kafka_message_destroy(message);
        }
    }
    /* Closing revokes: everything is given up in order. After a failure it must not be: the `open`
     * marks tell the next owner that jobs may have killed this one. */
    if (!health_failed(in->pipeline->health, reason, sizeof reason))
        rd_kafka_consumer_close(in->consumer);
    in->ran = true;
    return NULL;
}

/* ---- life ---- */

struct intake *intake_create(struct pipeline *pipeline, struct error *error)
{
    struct intake *in = calloc(1, sizeof *in);

    if (!in) {
        error_set(error, "intake: out of memory");
        return NULL;
    }
    in->pipeline = pipeline;
    in->output_partitions = -1;
    in->partitions.config = pipeline->config;
    in->admission = admission_create(pipeline, error);
    in->takeover = in->admission ? takeover_create(pipeline, &in->draining, error) : NULL;
    if (!in->takeover) {
        intake_destroy(in);
        return NULL;
    }
    return in;
}

static rd_kafka_t *consumer_new(struct intake *in, struct error *error)
{
    const struct config *config = in->pipeline->config;
    const char *settings[] = {"group.id",
                              config->kafka_group,
                              "group.protocol",
                              "consumer",
                              "enable.auto.commit",
                              "false",
                              "enable.auto.offset.store",
                              "false",
                              "auto.offset.reset",
                              "error",
                              "isolation.level",
                              "read_committed",
                              "fetch.wait.max.ms",
                              "100",
                              "queued.min.messages",
                              "2000",
                              "queued.max.messages.kbytes",
                              "16384",
                              "fetch.queue.backoff.ms",
                              "5",
                              NULL};
    struct kafka_client_options options = {config, in->pipeline->health, "intake", settings, in};
    rd_kafka_conf_t *conf = kafka_client_conf(&options, error);
    rd_kafka_t *consumer;

    if (!conf)
        return NULL;
    rd_kafka_conf_set_rebalance_cb(conf, on_rebalance);
    consumer = kafka_client_new(RD_KAFKA_CONSUMER, conf, error);
    if (consumer)
        rd_kafka_poll_set_consumer(consumer);
    return consumer;
}

int intake_start(struct intake *in, struct error *error)
{
    rd_kafka_topic_partition_list_t *topics;
    rd_kafka_resp_err_t code;

    in->consumer = consumer_new(in, error);
    in->lag = in->consumer ? lag_create(in->pipeline, in->consumer, error) : NULL;
    in->engines = in->lag ? engines_create(in->pipeline, error) : NULL;
    if (!in->engines)
        return -1;
    assignment_set_consumer(in->pipeline->assignment, in->consumer);
    in->partitions.consumer = in->consumer;
    in->partitions.lag = in->lag;
    topics = rd_kafka_topic_partition_list_new(1);
    rd_kafka_topic_partition_list_add(topics, in->pipeline->config->topic_requests,
                                      RD_KAFKA_PARTITION_UA);
    code = rd_kafka_subscribe(in->consumer, topics);
    rd_kafka_topic_partition_list_destroy(topics);
    if (code)
        return error_set(error, "subscribing to %s: %s", in->pipeline->config->topic_requests,
                         rd_kafka_err2str(code));
    if (pthread_create(&in->thread, NULL, intake_main, in))
        return error_set(error, "intake: its thread could not be started");
    in->started = true;
    return 0;
}

void intake_drain(struct intake *in)
{
    atomic_store(&in->draining, true);
}

void intake_stop(struct intake *in)
{
    if (!in->started)
        return;
    atomic_store(&in->draining, true);
    atomic_store(&in->stopping, true);
    pthread_join(in->thread, NULL);
    in->started = false;
}

void intake_destroy(struct intake *in)
{
    if (!in)
        return;
    if (in->alone)
        rd_kafka_message_destroy(in->alone);
    lag_destroy(in->lag);
    engines_destroy(in->engines);
    if (in->consumer && !in->ran) /* an assignment that nobody takes would never let it go */
        rd_kafka_consumer_close(in->consumer);
    takeover_destroy(in->takeover);
    if (in->consumer) { /* is closed, unless it must not give anything up */
        assignment_set_consumer(in->pipeline->assignment, NULL);
        rd_kafka_destroy_flags(in->consumer, RD_KAFKA_DESTROY_F_NO_CONSUMER_CLOSE);
    }
    admission_destroy(in->admission);
    free(in);
}
