/* SPDX-License-Identifier: MIT
 *
 * partitions: the flags of each request partition on its way: assigned (paused) -> taken over ->
 * read -> given up. Reasons to pause are bits; a partition is paused while any is set, for itself
 * or for all. The intake reads the struct's fields, and changes them by the calls below alone.
 * Intake thread only.
 */
#ifndef PGPT_WORKER_PARTITIONS_H
#define PGPT_WORKER_PARTITIONS_H

#include <librdkafka/rdkafka.h>

#include "worker/assignment.h"
#include "worker/config.h"

struct lag; /* worker/lag.h */

enum partition_pause {                      /* why one of them is paused */
                       PAUSE_UNTAKEN = 1,   /* assigned, its ledger is not read yet */
                       PAUSE_FAR = 2,       /* too far ahead of its oldest unfinished offset */
                       PAUSE_NO_OUTPUT = 4, /* output topics have no partition of this number */
                       PAUSE_SEEK = 8,      /* the client has not taken the new position yet */
                       PAUSE_SUSPECTS = 16  /* so many of its suspects wait already */
};

enum worker_pause {                      /* why all of them are */
                    PAUSE_FULL = 1,      /* the worker is full */
                    PAUSE_ALONE = 2,     /* suspects run, and enough was read beside them */
                    PAUSE_DRAIN = 4,     /* the worker ends */
                    PAUSE_DLQ_LIMIT = 8, /* too many dead letters */
                    PAUSE_CONTROL = 16   /* control records are not read to their end yet */
};

struct partitions {
    const struct config *config;
    rd_kafka_t *consumer;
    struct lag *lag;
    uint8_t assigned[ASSIGNMENT_PARTITIONS_MAX]; /* bool */
    uint8_t reasons[ASSIGNMENT_PARTITIONS_MAX];  /* enum partition_pause */
    uint8_t paused[ASSIGNMENT_PARTITIONS_MAX];   /* as told to the client */
    int64_t seek_to[ASSIGNMENT_PARTITIONS_MAX];  /* while PAUSE_SEEK is set */
    unsigned all_reasons;                        /* enum worker_pause */
    int32_t end;                                 /* one past the highest ever assigned */
    int32_t assigned_count, untaken_count;
    int64_t seek_at_us;
};

/* It is this worker's, and paused until it was taken over. */
void partitions_add(struct partitions *partitions, int32_t partition);
/* It was given up. Partitions that were never added are ignored. */
void partitions_remove(struct partitions *partitions, int32_t partition);
/* It was taken over, and is read from offset on. */
void partitions_taken(struct partitions *partitions, int32_t partition, int64_t offset);

void partitions_reason_set(struct partitions *partitions, int32_t partition,
                           enum partition_pause reason, bool on);
void partitions_reason_set_all(struct partitions *partitions, enum worker_pause reason, bool on);
/* Tells the client what changed. */
void partitions_pause(struct partitions *partitions);

/* The record at offset is the next to be delivered. While the client refuses the partition is
 * paused; partitions_seek_again() asks again from time to time. */
void partitions_rewind(struct partitions *partitions, int32_t partition, int64_t offset);
void partitions_seek_again(struct partitions *partitions, int64_t now_mono_us);

#endif
