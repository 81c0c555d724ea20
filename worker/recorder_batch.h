/* SPDX-License-Identifier: MIT
 *
 * recorder_batch: job events on their way into PostgreSQL, already merged: one row a job, however
 * many of its events came. Merging is the same operation that the upsert runs in SQL, so the rows
 * do not depend on where batches begin and end. Texts point into the batch's arena until
 * recorder_batch_reset(). No lock: the recorder's thread owns it.
 */
#ifndef PGPT_WORKER_RECORDER_BATCH_H
#define PGPT_WORKER_RECORDER_BATCH_H

#include <stdbool.h>

#include "schema/records.h"

enum { RECORDER_RANK_ACCEPTED = 1, RECORDER_RANK_STARTED, RECORDER_RANK_FINAL };
enum recorder_metric {
    RECORDER_QUEUE,
    RECORDER_FIRST_TOKEN,
    RECORDER_PER_TOKEN,
    RECORDER_TOTAL,
    RECORDER_METRIC_COUNT
};
enum { RECORDER_ZERO_BUCKET = INT16_MIN };

/* The part of an event that the newest (attempt, rank) wins, the first of equals. */
struct recorder_state {
    int32_t attempt;
    int32_t rank;
    const char *status; /* a literal */
    int64_t at_us;      /* Unix time; so are the others; 0 = not yet */
    struct text worker, tenant, model;
    int32_t source_partition;
    int64_t source_offset;
    bool has_usage, has_timings, has_error, dead_lettered;
    struct generation_usage usage;
    struct generation_timings timings;
    struct generation_error error;
};

struct recorder_row {
    uint8_t id[16];
    struct recorder_state newest;
    struct recorder_state first_final; /* valid when finals > 0 */
    int64_t accepted_at_us;            /* earliest of all events; 0 = none knows */
    int64_t started_at_us;
    int32_t finals;    /* final states in this batch */
    bool final_is_new; /* set by the store: no earlier batch had one, so it is counted */
};

/* counts of one bucket: what latency_histogram adds up */
struct recorder_bucket {
    int64_t minute_us;
    struct text model, tenant;
    enum recorder_metric metric;
    int16_t bucket;
    int64_t count;
};

/* what job_minute adds up */
struct recorder_minute {
    int64_t minute_us;
    struct text model, tenant, worker;
    const char *status;
    int64_t jobs, prompt_tokens, generated_tokens, last_us;
};

struct recorder_batch {
    struct arena *arena;          /* decode events into it, too */
    struct recorder_row *rows;    /* (row_count) in order of arrival */
    struct recorder_row **sorted; /* (row_count) by id, made by recorder_batch_sort() */
    size_t row_count, event_count, max_events;
    uint32_t *slots; /* (slot_count) hash by id: index + 1, 0 = free */
    size_t slot_count;
    struct recorder_bucket *buckets; /* (bucket_count), sorted, made by recorder_batch_count() */
    size_t bucket_count;
    struct recorder_minute *minutes; /* (minute_count), likewise */
    size_t minute_count;
};

struct recorder_batch *recorder_batch_create(size_t max_events) PGPT_MUST_CHECK;
void recorder_batch_destroy(struct recorder_batch *batch); /* NULL is allowed */
void recorder_batch_reset(struct recorder_batch *batch);

/* No further event fits (count or memory): write it, then reset. */
bool recorder_batch_full(const struct recorder_batch *batch);

enum recorder_added {
    RECORDER_ADDED,
    RECORDER_NO_EVENT, /* no job's event: an id that is no UUID, an unknown state */
    RECORDER_NO_ROOM   /* the batch or memory is full: it must come again */
};

/* Merges one event whose texts lie in the batch's arena. With the reason when it was not added; the
 * batch is unchanged then. */
enum recorder_added recorder_batch_add(struct recorder_batch *batch, const struct job_event *event,
                                       struct error *error) PGPT_MUST_CHECK;

void recorder_batch_sort(struct recorder_batch *batch);  /* ends adding */
void recorder_batch_count(struct recorder_batch *batch); /* buckets, minutes of final_is_new rows */

/* The bucket of a value in microseconds: ceil(log_1.02(value)); RECORDER_ZERO_BUCKET below 1 ns. */
int16_t recorder_bucket_of(double micros);
const char *recorder_metric_name(enum recorder_metric metric);

#endif
