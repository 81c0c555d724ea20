/* SPDX-License-Identifier: MIT */
#include "worker/takeover.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/base/clock.h"
#include "schema/codec.h"
#include "worker/fault.h"
#include "worker/kafka_client.h"
#include "worker/ledger_metadata.h"

enum {
    INDEX_ARENA_MAX = 64 << 20,
    INDEX_SILENCE_MS = 60000, /* the index must come on within */
    CLOCK_SLACK_MS = 60000,   /* between the clocks of workers, and from a record to its commit */
    UNANSWERED_STALLS = 10    /* so many worker.stall_ms without an answer: it will not come */
};

/* A mark whose commit failed, or was made and its answer lost: found again, it is no death. */
struct mark {
    int64_t base;
    char text[LEDGER_METADATA_MAX];
};

struct takeover {
    struct pipeline *pipeline;
    const _Atomic bool *draining; /* the intake's */
    rd_kafka_t *reader;           /* of pgpt.index, made at the first takeover */
    struct codec *codec;
    struct arena *arena;
    struct mark *tried[ASSIGNMENT_PARTITIONS_MAX]; /* NULL = none in this ownership */
    rd_kafka_queue_t *answers;   /* to commits, made at the first; the consumer's */
    int64_t unanswered_since_us; /* monotonic; 0 = the last commit has its answer */
};

struct takeover *takeover_create(struct pipeline *pipeline, const _Atomic bool *draining,
                                 struct error *error)
{
    struct takeover *t = calloc(1, sizeof *t);

    if (t) {
        t->pipeline = pipeline;
        t->draining = draining;
        t->codec = codec_open(NULL, error);
        t->arena = arena_create(65536, INDEX_ARENA_MAX);
    }
    if (!t || !t->codec || !t->arena) {
        takeover_destroy(t);
        error_set(error, "takeover: out of memory");
        return NULL;
    }
    return t;
}

void takeover_destroy(struct takeover *t)
{
    if (!t)
        return;
    if (t->answers)
        rd_kafka_queue_destroy(t->answers);
    if (t->reader) {
        rd_kafka_consumer_close(t->reader);
        rd_kafka_destroy(t->reader);
    }
    for (int32_t p = 0; p < ASSIGNMENT_PARTITIONS_MAX; p++)
        takeover_forget(t, p);
    codec_close(t->codec);
    arena_destroy(t->arena);
    free(t);
}

static int timeout_ms(const struct takeover *t)
{
    return (int)t->pipeline->config->kafka_call_timeout_ms;
}

/* ---- commits ---- */

/* The answer to the last commit; KAFKA's own code for none within wait_ms. */
static rd_kafka_resp_err_t answer_take(struct takeover *t, int wait_ms)
{
    rd_kafka_event_t *event = rd_kafka_queue_poll(t->answers, wait_ms);
    rd_kafka_topic_partition_list_t *list;
    rd_kafka_resp_err_t code;

    if (!event)
        return RD_KAFKA_RESP_ERR__TIMED_OUT;
    t->unanswered_since_us = 0;
    code = rd_kafka_event_error(event);
    list = rd_kafka_event_topic_partition_list(event);
    for (int i = 0; list && i < list->cnt && !code; i++)
        code = list->elems[i].err;
    rd_kafka_event_destroy(event);
    return code;
}

bool takeover_quiet(struct takeover *t, int wait_ms)
{
    int64_t limit_us = UNANSWERED_STALLS * t->pipeline->config->worker_stall_ms * 1000;

    if (t->unanswered_since_us)
        answer_take(t, wait_ms);
    if (t->unanswered_since_us && clock_mono_us() - t->unanswered_since_us > limit_us)
        health_fail(t->pipeline->health, "intake: a commit of ledgers has had no answer for %lld s",
                    (long long)limit_us / 1000000);
    return !t->unanswered_since_us;
}

static rd_kafka_topic_partition_list_t *commit_list(const struct takeover *t,
                                                    const int32_t *partitions,
                                                    const struct ledger *ledgers, int count)
{
    rd_kafka_topic_partition_list_t *list = rd_kafka_topic_partition_list_new(count);

    for (int i = 0; i < count; i++) {
        rd_kafka_topic_partition_t *entry = rd_kafka_topic_partition_list_add(
            list, t->pipeline->config->topic_requests, partitions[i]);
        char *metadata = malloc(LEDGER_METADATA_MAX);

        if (!metadata) {
            rd_kafka_topic_partition_list_destroy(list);
            return NULL;
        }
        entry->offset = ledgers[i].base;
        entry->metadata_size = ledger_metadata_write(&ledgers[i], metadata);
        entry->metadata = metadata; /* owned by the list */
    }
    return list;
}

/* rd_kafka_commit() waits as long as it takes. An answer that does not come in time leaves a commit
 * that may still reach the brokers, and would undo what was committed after it: until it is known
 * no other is made. */
int takeover_commit(struct takeover *t, rd_kafka_t *consumer, const int32_t *partitions,
                    const struct ledger *ledgers, int count, struct error *error)
{
    rd_kafka_topic_partition_list_t *list;
    rd_kafka_resp_err_t code;

    if (!takeover_quiet(t, 0))
        return error_set(error, "an earlier commit of ledgers has no answer yet");
    list = commit_list(t, partitions, ledgers, count);
    if (!list)
        return error_set(error, "no memory to commit a ledger");
    if (!t->answers)
        t->answers = rd_kafka_queue_new(consumer);
    code = rd_kafka_commit_queue(consumer, list, t->answers, NULL, NULL);
    rd_kafka_topic_partition_list_destroy(list);
    if (!code) {
        t->unanswered_since_us = clock_mono_us();
        code = answer_take(t, timeout_ms(t));
    }
    return code ? error_set(error, "committing %d ledgers: %s", count, rd_kafka_err2str(code)) : 0;
}

/* ---- committed offsets ---- */

/* The ledger of one partition from its committed offset; none means the log's beginning. */
static int ledger_from(struct takeover *t, rd_kafka_t *consumer,
                       const rd_kafka_topic_partition_t *entry, struct ledger *ledger,
                       struct error *error)
{
    int64_t low, high;
    rd_kafka_resp_err_t code;
    struct error problem;

    if (entry->err)
        return error_set(error, "partition %d: its committed offset cannot be read: %s",
                         entry->partition, rd_kafka_err2str(entry->err));
    if (entry->offset < 0) {
        code = rd_kafka_query_watermark_offsets(consumer, entry->topic, entry->partition, &low,
                                                &high, timeout_ms(t));
        if (code)
            return error_set(error, "partition %d: its first offset cannot be read: %s",
                             entry->partition, rd_kafka_err2str(code));
        ledger_init(ledger, low, 0);
        return 0;
    }
    if (ledger_metadata_read(entry->metadata, entry->metadata_size, entry->offset, ledger,
                             &problem))
        log_write(LOG_ERROR, "intake", NULL, "partition %d: %s; starting from the offset alone",
                  entry->partition, problem.message);
    return 0;
}

static int ledgers_read(struct takeover *t, rd_kafka_t *consumer, const int32_t *partitions,
                        struct ledger *ledgers, int count, struct error *error)
{
    rd_kafka_topic_partition_list_t *list = rd_kafka_topic_partition_list_new(count);
    rd_kafka_resp_err_t code;
    int status = -1;

    for (int i = 0; i < count; i++)
        rd_kafka_topic_partition_list_add(list, t->pipeline->config->topic_requests, partitions[i]);
    /* A read_committed consumer waits for open transactions: these offsets are stable. */
    code = rd_kafka_committed(consumer, list, timeout_ms(t));
    if (code) {
        error_set(error, "the committed offsets cannot be read: %s", rd_kafka_err2str(code));
        goto done;
    }
    for (int i = 0; i < count; i++)
        if (ledger_from(t, consumer, &list->elems[i], &ledgers[i], error))
            goto done;
    status = 0;
done:
    rd_kafka_topic_partition_list_destroy(list);
    return status;
}

/* ---- the window of duplicates ---- */

static struct duplicates_limits limits(const struct config *config)
{
    return (struct duplicates_limits){config->duplicate_window_ms * 1000,
                                      (size_t)config->duplicate_min_jobs,
                                      (size_t)config->duplicate_max_jobs};
}

/* Why it reads uncommitted records: a committed reader's end is the first record of a transaction
 * that is still open, as a dead owner leaves one for some 10 s, or whose marker the partition does
 * not have yet; what later owners committed behind it would be missed. The ledger says which
 * records count: an index record commits together with the offsets that it names. */
static int reader_open(struct takeover *t, struct error *error)
{
    const char *const settings[] = {"group.id",
                                    "unused-index-reader",
                                    "enable.auto.commit",
                                    "false",
                                    "enable.partition.eof",
                                    "true",
                                    "auto.offset.reset",
                                    "earliest",
                                    "isolation.level",
                                    "read_uncommitted",
                                    "fetch.wait.max.ms",
                                    "50",
                                    NULL};
    struct kafka_client_options options = {t->pipeline->config, t->pipeline->health, "index",
                                           settings, t};
    rd_kafka_conf_t *conf = kafka_client_conf(&options, error);

    t->reader = conf ? kafka_client_new(RD_KAFKA_CONSUMER, conf, error) : NULL;
    if (!t->reader)
        return -1;
    rd_kafka_poll_set_consumer(t->reader);
    return 0;
}

static int position_of(const int32_t *partitions, int count, int32_t partition)
{
    for (int i = 0; i < count; i++)
        if (partitions[i] == partition)
            return i;
    return -1;
}

static void index_apply(struct takeover *t, const rd_kafka_message_t *message,
                        const struct ledger *ledger, struct duplicates *window)
{
    struct job_index index;
    struct error error;

    arena_reset(t->arena);
    if (codec_decode(t->codec, RECORD_JOB_INDEX, message->payload, message->len, t->arena, &index,
                     &error)) {
        log_write(LOG_WARN, "intake", NULL, "index record at offset %lld ignored: %s",
                  (long long)message->offset, error.message);
        return;
    }
    for (size_t i = 0; i < index.job_count; i++)
        if (ledger_is_finished(ledger, index.jobs[i].source_offset))
            duplicates_finish(window, index.jobs[i].id, index.jobs[i].source_offset, index.at_us);
}

/* Reads the partitions that the reader has to their ends; an end may be told of more than once. */
static int index_poll(struct takeover *t, const int32_t *partitions, const struct ledger *ledgers,
                      struct duplicates **windows, int count, int left, struct error *error)
{
    int64_t heard_us = clock_mono_us();
    bool ended[ASSIGNMENT_PARTITIONS_MAX] = {false};

    while (left > 0) {
        rd_kafka_message_t *message = rd_kafka_consumer_poll(t->reader, 100);
        int i = message ? position_of(partitions, count, message->partition) : -1;
        int64_t now_us = clock_mono_us();

        health_beat(t->pipeline->health, HEALTH_BEAT_INTAKE, now_us);
        if (i >= 0 && message->err == RD_KAFKA_RESP_ERR__PARTITION_EOF && !ended[i]) {
            ended[i] = true;
            left--;
        } else if (i >= 0 && !message->err) {
            index_apply(t, message, &ledgers[i], windows[i]);
            heard_us = now_us;
        }
        if (message)
            rd_kafka_message_destroy(message);
        if (atomic_load(t->draining))
            return error_set(error, "the worker drains");
        if (now_us - heard_us > (int64_t)INDEX_SILENCE_MS * 1000)
            return error_set(error,
                             "the index topic could not be read to its end: nothing came "
                             "for %d s",
                             INDEX_SILENCE_MS / 1000);
    }
    return 0;
}

static int index_read(struct takeover *t, const rd_kafka_topic_partition_list_t *from,
                      const int32_t *partitions, const struct ledger *ledgers,
                      struct duplicates **windows, int count, struct error *error)
{
    rd_kafka_resp_err_t code = rd_kafka_assign(t->reader, from);
    int status;

    if (code)
        return error_set(error, "the index topic cannot be read: %s", rd_kafka_err2str(code));
    status = index_poll(t, partitions, ledgers, windows, count, from->cnt, error);
    rd_kafka_assign(t->reader, NULL);
    return status;
}

/* What was committed within the window. Where the brokers do not say where it begins, as of a
 * partition that the reader has not heard of yet, all of the topic: that is only slower. */
static int recent_read(struct takeover *t, const int32_t *partitions, const struct ledger *ledgers,
                       struct duplicates **windows, int count, struct error *error)
{
    const struct config *config = t->pipeline->config;
    int64_t since_ms = clock_wall_us() / 1000 - config->duplicate_window_ms - CLOCK_SLACK_MS;
    rd_kafka_topic_partition_list_t *list = rd_kafka_topic_partition_list_new(count);
    rd_kafka_resp_err_t code;
    int status;

    for (int i = 0; i < count; i++)
        rd_kafka_topic_partition_list_add(list, config->topic_index, partitions[i])->offset =
            since_ms;
    code = rd_kafka_offsets_for_times(t->reader, list, timeout_ms(t));
    for (int i = 0; i < count; i++)
        if (code || list->elems[i].err)
            list->elems[i].offset = RD_KAFKA_OFFSET_BEGINNING;
    status = index_read(t, list, partitions, ledgers, windows, count, error);
    rd_kafka_topic_partition_list_destroy(list);
    return status;
}

/* Where less was committed within the window than is remembered at least, all of the topic: there
 * it is short. */
static int rest_read(struct takeover *t, const int32_t *partitions, const struct ledger *ledgers,
                     struct duplicates **windows, int count, struct error *error)
{
    const struct config *config = t->pipeline->config;
    rd_kafka_topic_partition_list_t *list = rd_kafka_topic_partition_list_new(count);
    int status = 0;

    for (int i = 0; i < count && !status; i++) {
        if ((int64_t)duplicates_count(windows[i]) >= config->duplicate_min_jobs)
            continue;
        duplicates_destroy(windows[i]);
        windows[i] = duplicates_create(limits(config));
        if (!windows[i])
            status = error_set(error, "no memory for a window of duplicates");
        rd_kafka_topic_partition_list_add(list, config->topic_index, partitions[i])->offset =
            RD_KAFKA_OFFSET_BEGINNING;
    }
    if (!status && list->cnt)
        status = index_read(t, list, partitions, ledgers, windows, count, error);
    rd_kafka_topic_partition_list_destroy(list);
    return status;
}

/* An hour of a fast worker's index takes longer than the jobs of a dead one may wait: so the window
 * is read first. */
static int windows_read(struct takeover *t, const int32_t *partitions, const struct ledger *ledgers,
                        struct duplicates **windows, int count, struct error *error)
{
    if (!t->reader && reader_open(t, error))
        return -1;
    return recent_read(t, partitions, ledgers, windows, count, error) ||
                   rest_read(t, partitions, ledgers, windows, count, error)
               ? -1
               : 0;
}

/* ---- the whole ---- */

void takeover_forget(struct takeover *t, int32_t partition)
{
    free(t->tried[partition]);
    t->tried[partition] = NULL;
}

static void mark_remember(struct takeover *t, int32_t partition, const struct ledger *ledger)
{
    if (!t->tried[partition])
        t->tried[partition] = malloc(sizeof *t->tried[partition]);
    if (!t->tried[partition])
        return; /* then a commit whose answer is lost looks like a death */
    t->tried[partition]->base = ledger->base;
    ledger_metadata_write(ledger, t->tried[partition]->text);
}

static bool mark_is_ours(const struct takeover *t, int32_t partition, const struct ledger *ledger)
{
    const struct mark *tried = t->tried[partition];
    char text[LEDGER_METADATA_MAX];

    ledger_metadata_write(ledger, text);
    return tried && tried->base == ledger->base && !strcmp(tried->text, text);
}

static void death_log(int32_t partition, const struct ledger *ledger)
{
    char single[64] = "";

    if (ledger->single_end)
        snprintf(single, sizeof single, ", those below %lld run one at a time",
                 (long long)ledger->single_end);
    if (ledger->suspect_end)
        log_write(LOG_WARN, "intake", NULL,
                  "partition %d was left by a worker that died (takeover %d); unfinished offsets "
                  "below %lld are suspects%s",
                  partition, ledger->takeovers, (long long)ledger->suspect_end, single);
    else
        log_write(LOG_WARN, "intake", NULL,
                  "partition %d was left by a worker that died; it had nothing unfinished",
                  partition);
}

static int marks_set(struct takeover *t, rd_kafka_t *consumer, const int32_t *partitions,
                     struct ledger *ledgers, int count, struct error *error)
{
    const struct config *config = t->pipeline->config;
    int32_t bound = (int32_t)(config->queue_max_jobs + 1024);
    const char *engine_id = job_identity_get()->engine_id;

    for (int i = 0; i < count; i++) {
        int64_t low, high = ledgers[i].base;
        rd_kafka_resp_err_t code;
        bool unclean;

        if (mark_is_ours(t, partitions[i], &ledgers[i]))
            continue;
        code = ledgers[i].open
                   ? rd_kafka_query_watermark_offsets(consumer, config->topic_requests,
                                                      partitions[i], &low, &high, timeout_ms(t))
                   : RD_KAFKA_RESP_ERR_NO_ERROR;
        if (code)
            return error_set(error, "partition %d: its end cannot be read: %s", partitions[i],
                             rd_kafka_err2str(code));
        unclean = ledger_take_over(&ledgers[i], bound, high);
        if (engine_id)
            snprintf(ledgers[i].engine_id, sizeof ledgers[i].engine_id, "%s", engine_id);
        if (!unclean)
            continue;
        metrics_add(METRIC_TAKEOVERS_UNCLEAN, 1);
        death_log(partitions[i], &ledgers[i]);
    }
    return 0;
}

static int marks_commit(struct takeover *t, rd_kafka_t *consumer, const int32_t *partitions,
                        const struct ledger *ledgers, int count, struct error *error)
{
    FAULT_POINT("open_mark");
    if (takeover_commit(t, consumer, partitions, ledgers, count, error)) {
        for (int i = 0; i < count; i++)
            mark_remember(t, partitions[i], &ledgers[i]);
        return -1;
    }
    FAULT_POINT("open_marked");
    return 0;
}

int takeover_run(struct takeover *t, rd_kafka_t *consumer, const int32_t *partitions,
                 int64_t *offsets, int count, struct error *error)
{
    struct ledger *ledgers = calloc((size_t)count, sizeof *ledgers);
    struct duplicates **windows = calloc((size_t)count, sizeof *windows);
    bool memory = ledgers && windows;
    int status = -1;

    if (!takeover_quiet(t, 0)) {
        error_set(error, "an earlier commit of ledgers has no answer yet");
        goto done;
    }
    for (int i = 0; memory && i < count; i++)
        memory = (windows[i] = duplicates_create(limits(t->pipeline->config))) != NULL;
    if (!memory) {
        error_set(error, "no memory for the ledgers of %d partitions", count);
        goto done;
    }
    /* The mark comes last: a try that fails before it must not look like a death to the next one.
     */
    if (ledgers_read(t, consumer, partitions, ledgers, count, error) ||
        windows_read(t, partitions, ledgers, windows, count, error))
        goto done;
    if (marks_set(t, consumer, partitions, ledgers, count, error) ||
        marks_commit(t, consumer, partitions, ledgers, count, error))
        goto done;
    for (int i = 0; i < count; i++) {
        if (assignment_take(t->pipeline->assignment, partitions[i], &ledgers[i], windows[i])) {
            for (int j = 0; j < count; j++)
                mark_remember(t, partitions[j], &ledgers[j]);
            error_set(error, "no memory to own partition %d", partitions[i]);
            goto done;
        }
        windows[i] = NULL;
        offsets[i] = ledgers[i].base;
    }
    for (int i = 0; i < count; i++)
        takeover_forget(t, partitions[i]);
    status = 0;
done:
    for (int i = 0; windows && i < count; i++)
        duplicates_destroy(windows[i]);
    free(windows);
    free(ledgers);
    return status;
}
