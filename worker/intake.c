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
#include "worker/suspects.h"
#include "worker/takeover.h"
#include "worker/topics.h"

enum {
    POLL_MS = 20,
    POLL_BUSY_MS = 2, /* while suspects wait or run */
    RECORD_RETRY_MS = 50,
    TAKEOVER_RETRY_US = 500000,
    TOPICS_CHECK_US = 30000000,
    TOPICS_RETRY_US = 2000000,
    REST_US = 500,         /* between looks at a worker that takes nothing now */
    REST_PAUSE_US = 100000 /* for so long without change: pause */
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
    int64_t full_since_us, waiting_since_us; /* 0 = the worker, the list beside a round is not */
    struct suspects *suspects;
};

/* ---- pausing ---- */

/* A pause throws away what the client has fetched, and a resumed partition waits for it anew:
 * longer than a fast device takes for all that the worker holds. So a worker that takes nothing now
 * first only rests. */
static void rest_review(struct intake *in, enum worker_pause reason, bool rests, int64_t *since_us)
{
    bool paused = in->partitions.all_reasons & reason;
    int64_t now = clock_mono_us();

    if (!rests)
        *since_us = 0;
    else if (!*since_us)
        *since_us = now;
    partitions_reason_set_all(&in->partitions, reason,
                              rests && (paused || now - *since_us >= REST_PAUSE_US));
}

static bool rests(const struct intake *in)
{
    return admission_is_full(in->pipeline->config, false) || suspects_is_full(in->suspects);
}

/* Reasons that come and go with the state of the worker. */
static void pauses_review(struct intake *in)
{
    struct pipeline *p = in->pipeline;

    rest_review(in, PAUSE_FULL,
                admission_is_full(p->config, in->partitions.all_reasons & PAUSE_FULL),
                &in->full_since_us);
    rest_review(in, PAUSE_ALONE, suspects_is_full(in->suspects), &in->waiting_since_us);
    partitions_reason_set_all(&in->partitions, PAUSE_DRAIN, atomic_load(&in->draining));
    partitions_reason_set_all(&in->partitions, PAUSE_CONTROL, !control_caught_up(p->control));
    for (int32_t i = 0; i < in->partitions.end; i++) {
        unsigned reasons = in->partitions.assigned[i] ? in->partitions.reasons[i] : 0;

        if (reasons & PAUSE_FAR &&
            assignment_has_room(p->assignment, i, p->config->ledger_max_ahead))
            partitions_reason_set(&in->partitions, i, PAUSE_FAR, false);
        if (reasons & PAUSE_SUSPECTS && !suspects_has_enough(in->suspects, i, true))
            partitions_reason_set(&in->partitions, i, PAUSE_SUSPECTS, false);
    }
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
        suspects_forget(in->suspects, partition);
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

/* False = the same record again later. */
static bool admit(struct intake *in, const rd_kafka_message_t *message,
                  const struct assignment_admission *answer)
{
    switch (admission_run(in->admission, message, answer)) {
    case ADMISSION_OK:
        break;
    case ADMISSION_RETRY:
        nanosleep(&(struct timespec){0, RECORD_RETRY_MS * 1000000L}, NULL);
        return false;
    case ADMISSION_LIMIT:
        partitions_reason_set_all(&in->partitions, PAUSE_DLQ_LIMIT, true);
        health_block(in->pipeline->health, HEALTH_DLQ_LIMIT,
                     "too many of the last records were dead-lettered (dlq.limit_ratio); look at "
                     "them with `pgpt dlq list`, then restart");
        log_write(LOG_ERROR, "intake", NULL, "intake stopped: too many dead letters");
        partitions_pause(&in->partitions);
        break;
    }
    return true;
}

/* It was begun and came to nothing: the client delivers it once more. */
static void again(struct intake *in, const rd_kafka_message_t *message)
{
    assignment_again(in->pipeline->assignment, message->partition, message->offset);
    partitions_rewind(&in->partitions, message->partition, message->offset);
}

/* It is read once more when there is room. */
static void put_off(struct intake *in, const rd_kafka_message_t *message,
                    enum partition_pause reason)
{
    partitions_reason_set(&in->partitions, message->partition, reason, true);
    partitions_pause(&in->partitions);
    partitions_rewind(&in->partitions, message->partition, message->offset);
}

/* Suspects, and what comes while they run, wait for their turn; not decoded before the commit that
 * says that they run. */
static bool keep(struct intake *in, rd_kafka_message_t *message,
                 const struct assignment_admission *answer)
{
    if (suspects_keep(in->suspects, message, answer, clock_mono_us())) {
        again(in, message);
        return false;
    }
    if (suspects_has_enough(in->suspects, message->partition, false)) {
        partitions_reason_set(&in->partitions, message->partition, PAUSE_SUSPECTS, true);
        partitions_pause(&in->partitions);
    }
    return true;
}

/* Returns true when it keeps the message. */
static bool on_record(struct intake *in, rd_kafka_message_t *message)
{
    const struct config *config = in->pipeline->config;
    struct assignment_admission answer;

    if (message->partition < in->partitions.end &&
        in->partitions.reasons[message->partition] & PAUSE_SUSPECTS) {
        put_off(in, message, PAUSE_SUSPECTS); /* it was fetched before the pause */
        return false;
    }
    if (!assignment_begin(in->pipeline->assignment, message->partition, message->offset,
                          config->ledger_max_ahead, (int32_t)config->poison_max_deaths, &answer))
        return false; /* not owned (yet): it is read again by its owner */
    if (answer.answer == LEDGER_DONE || answer.answer == LEDGER_RUNNING)
        return false; /* the client delivers it a second time */
    if (answer.answer == LEDGER_TOO_FAR) {
        put_off(in, message, PAUSE_FAR);
        return false;
    }
    if (!suspects_passes(in->suspects, &answer))
        return keep(in, message, &answer);
    if (!admit(in, message, &answer))
        again(in, message);
    return false;
}

/* ---- suspects ---- */

/* One commit for all partitions of the round; until it stands nothing of it is even decoded. */
static int marks_commit(struct intake *in, const struct assignment_mark *marks, int count)
{
    struct ledger *ledgers = calloc((size_t)count, sizeof *ledgers);
    int32_t partitions[SUSPECTS_GROUP_MAX];
    struct error error;
    int status = ledgers ? 0 : error_set(&error, "no memory to mark suspects");

    for (int i = 0; i < count && !status; i++) {
        partitions[i] = marks[i].partition;
        if (!assignment_mark_alone(in->pipeline->assignment, &marks[i], &ledgers[i]))
            status = error_set(&error, "partition %d is not owned any more", partitions[i]);
    }
    if (!status)
        status = takeover_commit(in->takeover, in->consumer, partitions, ledgers, count, &error);
    if (status)
        log_write(LOG_WARN, "intake", NULL, "%s; trying again", error.message);
    free(ledgers);
    return status;
}

/* Marks the next round when the worker is empty, and admits what may be admitted. */
static void suspects_step(struct intake *in, int64_t now)
{
    struct assignment_mark marks[SUSPECTS_GROUP_MAX];
    const struct config *config = in->pipeline->config;
    const struct suspect *suspect;
    int count;

    if (!suspects_is_busy(in->suspects) || in->partitions.all_reasons & ~(unsigned)PAUSE_ALONE)
        return;
    count = suspects_review(in->suspects, job_alive(),
                            assignment_expects_suspects(in->pipeline->assignment), now, marks);
    if (count && marks_commit(in, marks, count))
        return;
    if (count) {
        FAULT_POINT("alone_marked");
        suspects_start(in->suspects);
    }
    while (!(in->partitions.all_reasons & PAUSE_DLQ_LIMIT) && !admission_is_full(config, false) &&
           (suspect = suspects_next(in->suspects)) && admit(in, suspect->message, &suspect->answer))
        suspects_admitted(in->suspects);
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
    char reason[8];

    pthread_setname_np(pthread_self(), "intake");
    while (!atomic_load(&in->stopping) &&
           !health_failed(in->pipeline->health, reason, sizeof reason)) {
        int64_t now = clock_mono_us();
        rd_kafka_message_t *message;
        int poll_ms;

        health_beat(in->pipeline->health, HEALTH_BEAT_INTAKE, now);
        topics_review(in, now);
        takeover_step(in, now);
        partitions_seek_again(&in->partitions, now);
        suspects_step(in, now);
        pauses_review(in);
        assignment_report(in);
        lag_review(in->lag, in->partitions.assigned, in->partitions.end, now);
        poll_ms = suspects_is_busy(in->suspects) ? POLL_BUSY_MS : POLL_MS;
        /* The reviews are not free; the bound on jobs is looked at for each record. */
        for (int n = 0; n < 256 && !in->partitions.all_reasons && !rests(in); n++) {
            message = rd_kafka_consumer_poll(in->consumer, n ? 0 : poll_ms);
            if (!message)
                break;
            if (message->err)
                on_error(in, message);
            else if (on_record(in, message))
                continue;
            rd_kafka_message_destroy(message);
        }
        if (!in->partitions.all_reasons && rests(in)) {
            nanosleep(&(struct timespec){0, REST_US * 1000}, NULL);
        } else if (in->partitions
                       .all_reasons) { /* everything is paused: still poll, for rebalances */
            message = rd_kafka_consumer_poll(in->consumer, poll_ms);
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
    in->suspects = in->admission ? suspects_create(error) : NULL;
    in->takeover = in->suspects ? takeover_create(pipeline, &in->draining, error) : NULL;
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
    lag_destroy(in->lag);
    engines_destroy(in->engines);
    if (in->consumer && !in->ran) /* an assignment that nobody takes would never let it go */
        rd_kafka_consumer_close(in->consumer);
    suspects_destroy(in->suspects); /* closing may still give partitions up */
    takeover_destroy(in->takeover);
    if (in->consumer) { /* is closed, unless it must not give anything up */
        assignment_set_consumer(in->pipeline->assignment, NULL);
        rd_kafka_destroy_flags(in->consumer, RD_KAFKA_DESTROY_F_NO_CONSUMER_CLOSE);
    }
    admission_destroy(in->admission);
    free(in);
}
