/* SPDX-License-Identifier: MIT
 *
 * offsets_call: rd_kafka_send_offsets_to_transaction() with a limit that holds. In librdkafka
 * 2.15.1 the lookup of the group's coordinator has a deadline that nothing looks at: when its
 * answer is an error that asks for new metadata only (a coordinator that has moved, a broker that
 * went away), the caller waits for ever. So the call runs in a thread of its own, kept from one
 * call to the next. When a call is overdue the thread is left behind with it and its producer, and
 * destroys both should it ever return; the next call has a new thread. An offsets_caller is for one
 * thread.
 */
#ifndef PGPT_WORKER_OFFSETS_CALL_H
#define PGPT_WORKER_OFFSETS_CALL_H

#include "worker/kafka_client.h"

/* So many calls may stand at once; each holds a producer's threads, sockets and some memory. */
enum { OFFSETS_CALLS_LEFT_MAX = 8 };

struct offsets_thread; /* opaque: a thread that waits for calls */

/* Zeroed at first. */
struct offsets_caller {
    struct offsets_thread *thread; /* NULL = none yet, or it was left behind */
};

struct offsets_call {
    rd_kafka_t *producer;                      /* set to NULL when it was left with the call */
    rd_kafka_topic_partition_list_t *list;     /* taken in any case */
    rd_kafka_consumer_group_metadata_t *group; /* set to NULL when it was left with the call */
};

/* Waits timeout_ms and a second. A call that was left behind is KAFKA_INDETERMINATE; with
 * OFFSETS_CALLS_LEFT_MAX of them before it is KAFKA_FATAL. */
enum kafka_class offsets_call_run(struct offsets_caller *caller, struct offsets_call *call,
                                  int timeout_ms);

/* Ends the thread, which has no call. */
void offsets_caller_close(struct offsets_caller *caller);

/* How many were left behind and stand still. */
int offsets_calls_left(void);

#endif
