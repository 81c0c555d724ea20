/* SPDX-License-Identifier: MIT
 *
 * recorder_store: the recorder's connection to PostgreSQL. A batch and the offsets behind it are
 * written in one transaction that first moves recorder_offset from the value this store knows
 * (compare-and-set), so of two recorders only one can win. Every wait has an end. One thread.
 */
#ifndef PGPT_WORKER_RECORDER_STORE_H
#define PGPT_WORKER_RECORDER_STORE_H

#include <stdatomic.h>

#include "worker/recorder_batch.h"

struct recorder_store; /* opaque */

struct recorder_store_options {
    const char *url; /* libpq connection string or URL; TLS and SCRAM come from it */
    int latency_days, history_days;
    const _Atomic bool *stopping; /* shortens waits; NULL = never */
};

enum recorder_store_status {
    RECORDER_STORED,
    RECORDER_CONFLICT, /* another recorder moved an offset: read them again */
    RECORDER_FAILED /* nothing was written, or nobody knows: connect again, read the offsets again
                     */
};

/* One partition of the events topic: recorder_offset holds `stored`, the batch ends before `next`.
 */
struct recorder_position {
    int32_t partition;
    int64_t stored, next;
};

struct recorder_store *
recorder_store_create(const struct recorder_store_options *options) PGPT_MUST_CHECK;
void recorder_store_destroy(struct recorder_store *store); /* NULL is allowed */

bool recorder_store_connected(const struct recorder_store *store);
/* Connects within 5 s (or the URL's connect_timeout) and prepares; -1 with the server's reason. */
int recorder_store_connect(struct recorder_store *store, struct error *error) PGPT_MUST_CHECK;
void recorder_store_disconnect(struct recorder_store *store);

/* Fills `stored` of each position; a partition never recorded gets 0. */
int recorder_store_positions(struct recorder_store *store, const char *topic,
                             struct recorder_position *positions, size_t count,
                             struct error *error) PGPT_MUST_CHECK;

/* Writes the batch (ends adding to it) and moves the offsets, whole or not at all. */
enum recorder_store_status recorder_store_write(struct recorder_store *store, const char *topic,
                                                struct recorder_batch *batch,
                                                const struct recorder_position *positions,
                                                size_t count, struct error *error) PGPT_MUST_CHECK;

/* Partitions ahead, retention. *more: call again. After an error the connection may still stand. */
int recorder_store_maintain(struct recorder_store *store, bool *more,
                            struct error *error) PGPT_MUST_CHECK;

#endif
