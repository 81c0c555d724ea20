/* SPDX-License-Identifier: MIT */
#include "worker/partitions.h"

#include "worker/lag.h"
#include "worker/log.h"
#include "worker/metrics.h"

enum { SEEK_RETRY_US = 100000 };

void partitions_add(struct partitions *ps, int32_t partition)
{
    if (partition >= ps->end)
        ps->end = partition + 1;
    ps->assigned_count += !ps->assigned[partition];
    ps->untaken_count += !ps->assigned[partition] || !(ps->reasons[partition] & PAUSE_UNTAKEN);
    ps->assigned[partition] = ps->paused[partition] = 1;
    ps->reasons[partition] = PAUSE_UNTAKEN;
}

void partitions_remove(struct partitions *ps, int32_t partition)
{
    if (partition >= ps->end || !ps->assigned[partition])
        return;
    ps->untaken_count -= (ps->reasons[partition] & PAUSE_UNTAKEN) != 0;
    ps->assigned_count--;
    ps->assigned[partition] = ps->paused[partition] = ps->reasons[partition] = 0;
}

void partitions_taken(struct partitions *ps, int32_t partition, int64_t offset)
{
    partitions_reason_set(ps, partition, PAUSE_UNTAKEN, false);
    ps->untaken_count--;
    partitions_rewind(ps, partition, offset);
}

/* ---- pausing ---- */

void partitions_reason_set(struct partitions *ps, int32_t partition, enum partition_pause reason,
                           bool on)
{
    unsigned reasons = ps->reasons[partition];

    ps->reasons[partition] = (uint8_t)(on ? reasons | reason : reasons & ~(unsigned)reason);
}

void partitions_reason_set_all(struct partitions *ps, enum worker_pause reason, bool on)
{
    ps->all_reasons = on ? ps->all_reasons | reason : ps->all_reasons & ~(unsigned)reason;
}

static void list_add(const struct partitions *ps, rd_kafka_topic_partition_list_t *list,
                     int32_t partition, int64_t offset)
{
    rd_kafka_topic_partition_list_add(list, ps->config->topic_requests, partition)->offset = offset;
}

/* The client's thread would see what was resumed when it next looks by itself, up to a second
 * later; a request to the partitions' leaders wakes it. */
void partitions_pause(struct partitions *ps)
{
    rd_kafka_topic_partition_list_t *pause = rd_kafka_topic_partition_list_new(16);
    rd_kafka_topic_partition_list_t *resume = rd_kafka_topic_partition_list_new(16);
    int64_t paused = 0;

    for (int32_t p = 0; p < ps->end; p++) {
        bool wanted = ps->all_reasons || ps->reasons[p];

        if (!ps->assigned[p])
            continue;
        paused += wanted;
        if (wanted && !ps->paused[p])
            list_add(ps, pause, p, 0);
        else if (!wanted && ps->paused[p])
            list_add(ps, resume, p, 0);
        ps->paused[p] = wanted;
    }
    if (pause->cnt)
        rd_kafka_pause_partitions(ps->consumer, pause);
    if (resume->cnt) {
        rd_kafka_resume_partitions(ps->consumer, resume);
        lag_ask_now(ps->lag);
    }
    rd_kafka_topic_partition_list_destroy(pause);
    rd_kafka_topic_partition_list_destroy(resume);
    metrics_set(METRIC_PARTITIONS_PAUSED, paused);
}

/* ---- seeking ---- */

void partitions_rewind(struct partitions *ps, int32_t partition, int64_t offset)
{
    rd_kafka_topic_partition_list_t *list = rd_kafka_topic_partition_list_new(1);
    rd_kafka_error_t *failed;
    bool refused;

    list_add(ps, list, partition, offset);
    failed = rd_kafka_seek_partitions(ps->consumer, list, (int)ps->config->kafka_call_timeout_ms);
    refused = failed || list->elems[0].err;
    partitions_reason_set(ps, partition, PAUSE_SEEK, refused);
    if (refused) {
        log_write(LOG_INFO, "intake", NULL, "partition %d: seek to %lld: %s; trying again",
                  partition, (long long)offset,
                  failed ? rd_kafka_error_string(failed) : rd_kafka_err2str(list->elems[0].err));
        ps->seek_to[partition] = offset;
        partitions_pause(ps); /* at once: a later record must not come before this one */
    }
    if (failed)
        rd_kafka_error_destroy(failed);
    rd_kafka_topic_partition_list_destroy(list);
}

void partitions_seek_again(struct partitions *ps, int64_t now_mono_us)
{
    if (now_mono_us < ps->seek_at_us)
        return;
    ps->seek_at_us = now_mono_us + SEEK_RETRY_US;
    for (int32_t p = 0; p < ps->end; p++)
        if (ps->assigned[p] && ps->reasons[p] & PAUSE_SEEK)
            partitions_rewind(ps, p, ps->seek_to[p]);
}
