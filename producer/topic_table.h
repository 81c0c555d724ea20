/* SPDX-License-Identifier: MIT
 *
 * topic_table: the topics of the wire contract, once: name, partitions, retention, sizes. The
 * client takes its names from here, `pgpt topics` creates and checks what is here. Constant data.
 */
#ifndef PGPT_PRODUCER_TOPIC_TABLE_H
#define PGPT_PRODUCER_TOPIC_TABLE_H

#include <stdbool.h>
#include <stdint.h>

/* In the order in which topics grow: outputs first, so that a request never lies in a partition
 * without its counterparts; requests last. */
enum topic {
    TOPIC_CHUNKS,
    TOPIC_RESULTS,
    TOPIC_EVENTS,
    TOPIC_INDEX,
    TOPIC_CONTROL,
    TOPIC_DLQ,
    TOPIC_REQUESTS,
    TOPIC_COUNT
};

struct topic_row {
    const char *name;        /* the default one */
    const char *environment; /* variable that renames it, the worker's too */
    bool partitioned;        /* as many partitions as requests; otherwise one */
    int64_t retention_ms;
    int64_t segment_ms; /* 0 = the broker's; short where all of the topic is read at a start */
    int64_t max_message_bytes; /* of a record batch, as the broker counts */
};

extern const struct topic_row topic_table[TOPIC_COUNT];

#endif
