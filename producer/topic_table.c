/* SPDX-License-Identifier: MIT */
#include "producer/topic_table.h"

#define MINUTES(n) ((int64_t)(n)*60 * 1000)
#define HOURS(n) (MINUTES(60) * (n))
#define DAYS(n) (HOURS(24) * (n))
#define REQUEST_BYTES (1 << 20)

/* A dead letter is a request with headers that say why: 64 KiB more. */
const struct topic_row topic_table[TOPIC_COUNT] = {
    [TOPIC_CHUNKS] = {"pgpt.chunks", "PGPT_TOPIC_CHUNKS", true, DAYS(1), 0, REQUEST_BYTES},
    [TOPIC_RESULTS] = {"pgpt.results", "PGPT_TOPIC_RESULTS", true, DAYS(7), 0, REQUEST_BYTES},
    [TOPIC_EVENTS] = {"pgpt.events", "PGPT_TOPIC_EVENTS", true, DAYS(30), 0, REQUEST_BYTES},
    [TOPIC_INDEX] = {"pgpt.index", "PGPT_TOPIC_INDEX", true, HOURS(1), MINUTES(10), REQUEST_BYTES},
    [TOPIC_CONTROL] = {"pgpt.control", "PGPT_TOPIC_CONTROL", false, DAYS(1), HOURS(1),
                       REQUEST_BYTES},
    [TOPIC_DLQ] = {"pgpt.dlq", "PGPT_TOPIC_DLQ", false, DAYS(30), 0, REQUEST_BYTES + (64 << 10)},
    [TOPIC_REQUESTS] = {"pgpt.requests", "PGPT_TOPIC_REQUESTS", true, DAYS(7), 0, REQUEST_BYTES},
};
