/* SPDX-License-Identifier: MIT */
#include "worker/recorder_batch.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/text/utf8.h"
#include "worker/job_id.h"

enum { NAME_BYTES = 256, MESSAGE_BYTES = 8192, ARENA_FULL = 32 << 20, ARENA_MAX = 64 << 20 };
static const int64_t minute_length_us = 60000000;
static const int64_t latest_us =
    253370764800000000; /* year 9999: what PostgreSQL and people read */

struct recorder_batch *recorder_batch_create(size_t max_events)
{
    struct recorder_batch *b = calloc(1, sizeof *b);

    if (!b)
        return NULL;
    b->max_events = max_events;
    b->slot_count = 16;
    while (b->slot_count < max_events * 2)
        b->slot_count *= 2;
    b->arena = arena_create(1 << 20, ARENA_MAX);
    b->rows = calloc(max_events, sizeof *b->rows);
    b->sorted = calloc(max_events, sizeof(*b->sorted));
    b->slots = calloc(b->slot_count, sizeof *b->slots);
    b->buckets = calloc(max_events * RECORDER_METRIC_COUNT, sizeof *b->buckets);
    b->minutes = calloc(max_events, sizeof *b->minutes);
    if (!b->arena || !b->rows || !b->sorted || !b->slots || !b->buckets || !b->minutes) {
        recorder_batch_destroy(b);
        return NULL;
    }
    return b;
}

void recorder_batch_destroy(struct recorder_batch *b)
{
    if (!b)
        return;
    arena_destroy(b->arena);
    free(b->rows);
    free(b->sorted);
    free(b->slots);
    free(b->buckets);
    free(b->minutes);
    free(b);
}

void recorder_batch_reset(struct recorder_batch *b)
{
    arena_reset(b->arena);
    memset(b->slots, 0, b->slot_count * sizeof *b->slots);
    b->row_count = b->event_count = b->bucket_count = b->minute_count = 0;
}

bool recorder_batch_full(const struct recorder_batch *b)
{
    return b->event_count >= b->max_events || arena_used(b->arena) >= ARENA_FULL;
}

/* Text that PostgreSQL takes: no NUL, valid UTF-8, at most `limit` bytes. What is wrong becomes
 * '?'. */
static int text_clean(struct recorder_batch *b, struct text *text, size_t limit)
{
    char *copy;
    size_t size = text->size;

    if (size <= limit && !memchr(text->data, 0, size) && utf8_valid(text->data, size))
        return 0;
    copy = arena_alloc(b->arena, size + 1);
    if (!copy)
        return -1;
    memcpy(copy, text->data, size);
    for (size_t i = 0; i < size;) {
        uint32_t code;
        int length = utf8_decode(copy + i, size - i, &code);

        if (!length || !code)
            copy[i] = '?';
        i += length ? (size_t)length : 1;
    }
    size = utf8_cut(copy, size, limit);
    copy[size] = '\0';
    *text = (struct text){copy, size};
    return 0;
}

static int state_find(const char *name, const char **status)
{
    static const struct {
        const char *name;
        int rank;
    } states[] = {{"accepted", RECORDER_RANK_ACCEPTED}, {"started", RECORDER_RANK_STARTED},
                  {"completed", RECORDER_RANK_FINAL},   {"failed", RECORDER_RANK_FINAL},
                  {"cancelled", RECORDER_RANK_FINAL},   {"expired", RECORDER_RANK_FINAL}};

    for (size_t i = 0; i < sizeof states / sizeof *states; i++) {
        if (!strcmp(states[i].name, name)) {
            *status = states[i].name;
            return states[i].rank;
        }
    }
    return 0;
}

static int64_t time_clamp(int64_t at_us)
{
    return at_us < 0 ? 0 : at_us > latest_us ? latest_us : at_us;
}

/* Everything of the event but its id; -1 when memory is out. */
static int state_read(struct recorder_batch *b, const struct job_event *event,
                      struct recorder_state *state)
{
    state->attempt = event->attempt;
    state->at_us = time_clamp(event->at_us);
    state->worker = event->worker;
    state->tenant = event->tenant;
    state->model = event->model;
    state->source_partition = event->source_partition;
    state->source_offset = event->source_offset;
    state->has_usage = event->has_usage;
    state->usage = event->usage;
    state->has_timings = event->has_timings;
    state->timings = event->timings;
    state->dead_lettered = event->dead_lettered;
    state->has_error = event->has_error;
    if (text_clean(b, &state->worker, NAME_BYTES) || text_clean(b, &state->tenant, NAME_BYTES) ||
        text_clean(b, &state->model, NAME_BYTES))
        return -1;
    if (!event->has_error)
        return 0;
    state->error = event->error;
    return text_clean(b, &state->error.error_class, NAME_BYTES) ||
                   text_clean(b, &state->error.message, MESSAGE_BYTES)
               ? -1
               : 0;
}

static struct recorder_row *row_find(struct recorder_batch *b, const uint8_t id[16])
{
    size_t slot = (size_t)job_id_hash(id) & (b->slot_count - 1);

    while (b->slots[slot]) {
        struct recorder_row *row = &b->rows[b->slots[slot] - 1];

        if (!memcmp(row->id, id, 16))
            return row;
        slot = (slot + 1) & (b->slot_count - 1);
    }
    b->slots[slot] = (uint32_t)++b->row_count;
    memset(&b->rows[b->row_count - 1], 0, sizeof *b->rows);
    memcpy(b->rows[b->row_count - 1].id, id, 16);
    return &b->rows[b->row_count - 1];
}

static int64_t earliest(int64_t a, int64_t b)
{
    return !a || (b && b < a) ? b : a;
}

static bool is_newer(const struct recorder_state *a, const struct recorder_state *b)
{
    return a->attempt > b->attempt || (a->attempt == b->attempt && a->rank > b->rank);
}

enum recorder_added recorder_batch_add(struct recorder_batch *b, const struct job_event *event,
                                       struct error *error)
{
    struct recorder_state state = {0};
    struct recorder_row *row;
    uint8_t id[16];

    if (uuid_parse(event->job_id, id)) {
        error_set(error, "job_id is no UUID");
        return RECORDER_NO_EVENT;
    }
    state.rank = state_find(event->state, &state.status);
    if (!state.rank) {
        error_set(error, "state is none of accepted, started, completed, failed, cancelled, "
                         "expired");
        return RECORDER_NO_EVENT;
    }
    if (b->event_count >= b->max_events || state_read(b, event, &state)) {
        error_set(error, "no memory for a batch of events; lower recorder.batch");
        return RECORDER_NO_ROOM;
    }
    row = row_find(b, id);
    b->event_count++;
    if (!row->newest.rank || is_newer(&state, &row->newest))
        row->newest = state;
    row->accepted_at_us = earliest(row->accepted_at_us, time_clamp(event->accepted_at_us));
    row->started_at_us = earliest(row->started_at_us, time_clamp(event->started_at_us));
    if (state.rank == RECORDER_RANK_FINAL && row->finals++ == 0)
        row->first_final = state;
    return RECORDER_ADDED;
}

static int row_order(const void *a, const void *b)
{
    const struct recorder_row *const *left = a, *const *right = b;

    return memcmp((*left)->id, (*right)->id, 16);
}

void recorder_batch_sort(struct recorder_batch *b)
{
    for (size_t i = 0; i < b->row_count; i++)
        b->sorted[i] = &b->rows[i];
    qsort(b->sorted, b->row_count, sizeof *b->sorted, row_order);
}

/* ---- counting ---- */

int16_t recorder_bucket_of(double micros)
{
    static const double least = 1e-3, log_gamma = 0.019802627296179712; /* ln 1.02 */

    if (!(micros >= least))
        return RECORDER_ZERO_BUCKET;
    return (int16_t)ceil(log(micros) / log_gamma); /* at most 2206 for an int64_t */
}

const char *recorder_metric_name(enum recorder_metric metric)
{
    static const char *const names[RECORDER_METRIC_COUNT] = {"queue", "first_token", "per_token",
                                                             "total"};

    return names[metric];
}

static int text_order(struct text a, struct text b)
{
    int order = memcmp(a.data, b.data, a.size < b.size ? a.size : b.size);

    return order ? order : (a.size > b.size) - (a.size < b.size);
}

/* One order for every recorder, so that they cannot lock one another out; numbers first, they are
 * quick to compare. */
static int bucket_order(const void *left, const void *right)
{
    const struct recorder_bucket *a = left, *b = right;
    int order = (a->minute_us > b->minute_us) - (a->minute_us < b->minute_us);

    if (!order)
        order = (int)a->metric - (int)b->metric;
    if (!order)
        order = a->bucket - b->bucket;
    if (!order)
        order = text_order(a->tenant, b->tenant);
    return order ? order : text_order(a->model, b->model);
}

static int minute_order(const void *left, const void *right)
{
    const struct recorder_minute *a = left, *b = right;
    int order = (a->minute_us > b->minute_us) - (a->minute_us < b->minute_us);

    if (!order)
        order = text_order(a->model, b->model);
    if (!order)
        order = text_order(a->tenant, b->tenant);
    if (!order)
        order = text_order(a->worker, b->worker);
    return order ? order : strcmp(a->status, b->status);
}

/* Only completed jobs have all four; the others would make the percentiles look better. */
static void buckets_add(struct recorder_batch *b, const struct recorder_state *s, int64_t minute_us)
{
    double values[RECORDER_METRIC_COUNT] = {[RECORDER_QUEUE] = (double)s->timings.queue_us,
                                            [RECORDER_FIRST_TOKEN] =
                                                (double)s->timings.first_token_us,
                                            [RECORDER_TOTAL] = (double)s->timings.total_us};

    if (!s->has_timings || strcmp(s->status, "completed") != 0)
        return;
    if (s->usage.generated_tokens > 0)
        values[RECORDER_PER_TOKEN] = (double)s->timings.decode_us / s->usage.generated_tokens;
    for (int metric = 0; metric < RECORDER_METRIC_COUNT; metric++) {
        if (metric == RECORDER_PER_TOKEN && s->usage.generated_tokens <= 0)
            continue;
        b->buckets[b->bucket_count++] = (struct recorder_bucket){minute_us,
                                                                 s->model,
                                                                 s->tenant,
                                                                 (enum recorder_metric)metric,
                                                                 recorder_bucket_of(values[metric]),
                                                                 1};
    }
}

/* Adds equal neighbours together; the arrays are sorted. */
static void buckets_merge(struct recorder_batch *b)
{
    size_t kept = 0;

    for (size_t i = 0; i < b->bucket_count; i++) {
        if (kept && !bucket_order(&b->buckets[kept - 1], &b->buckets[i]))
            b->buckets[kept - 1].count++;
        else
            b->buckets[kept++] = b->buckets[i];
    }
    b->bucket_count = kept;
}

static void minutes_merge(struct recorder_batch *b)
{
    size_t kept = 0;

    for (size_t i = 0; i < b->minute_count; i++) {
        struct recorder_minute *from = &b->minutes[i], *to = kept ? &b->minutes[kept - 1] : NULL;

        if (!to || minute_order(to, from)) {
            b->minutes[kept++] = *from;
            continue;
        }
        to->jobs += from->jobs;
        to->prompt_tokens += from->prompt_tokens;
        to->generated_tokens += from->generated_tokens;
        if (from->last_us > to->last_us)
            to->last_us = from->last_us;
    }
    b->minute_count = kept;
}

void recorder_batch_count(struct recorder_batch *b)
{
    b->bucket_count = b->minute_count = 0;
    for (size_t i = 0; i < b->row_count; i++) {
        const struct recorder_state *s = &b->rows[i].first_final;
        int64_t minute_us = s->at_us - s->at_us % minute_length_us;

        if (!b->rows[i].final_is_new)
            continue;
        buckets_add(b, s, minute_us);
        b->minutes[b->minute_count++] = (struct recorder_minute){minute_us,
                                                                 s->model,
                                                                 s->tenant,
                                                                 s->worker,
                                                                 s->status,
                                                                 1,
                                                                 s->usage.prompt_tokens,
                                                                 s->usage.generated_tokens,
                                                                 s->at_us};
    }
    qsort(b->buckets, b->bucket_count, sizeof *b->buckets, bucket_order);
    qsort(b->minutes, b->minute_count, sizeof *b->minutes, minute_order);
    buckets_merge(b);
    minutes_merge(b);
}
