/* SPDX-License-Identifier: MIT */
#include "worker/job.h"

#include <stdlib.h>
#include <string.h>

enum {
    ARENA_FIRST = 2560, /* with the payload twice, and the job: all that most jobs come to need */
    ARENA_BASE_MAX = 4 << 20, /* running_table_add() allows what the run needs */
    /* decoded against encoded size: an empty text in an array has 1 byte there and 32 here, and
     * blocks double */
    ARENA_PAYLOAD_FACTOR = 96
};

static struct job_identity identity = {"", "", "", ""};
static _Atomic size_t alive, bytes;

void job_identity_set(const struct job_identity *value)
{
    identity = *value;
}

const struct job_identity *job_identity_get(void)
{
    return &identity;
}

struct job *job_create(size_t payload_size)
{
    struct arena *arena = arena_create(sizeof(struct job) + ARENA_FIRST + 2 * payload_size,
                                       ARENA_BASE_MAX + payload_size * ARENA_PAYLOAD_FACTOR);
    struct job *job = arena ? arena_calloc(arena, 1, sizeof *job) : NULL;

    if (!job) {
        arena_destroy(arena);
        return NULL;
    }
    job->arena = arena;
    job->attempt = 1;
    job->traceparent = job->tracestate = (struct text){"", 0};
    job->log.job_id = job->job_id;
    job->log.traceparent = "";
    generation_request_init(&job->request);
    atomic_fetch_add(&alive, 1);
    job_charge(job);
    return job;
}

void job_destroy(struct job *job)
{
    if (!job)
        return;
    atomic_fetch_sub(&bytes, job->charged);
    arena_destroy(job->arena); /* and the job */
    atomic_fetch_sub(&alive, 1);
}

size_t job_alive(void)
{
    return atomic_load(&alive);
}

size_t job_bytes(void)
{
    return atomic_load(&bytes);
}

void job_charge(struct job *job)
{
    size_t held = arena_held(job->arena);

    atomic_fetch_add(&bytes, held - job->charged); /* it never shrinks */
    job->charged = held;
}

static struct text text_of(const char *s)
{
    return (struct text){s, strlen(s)};
}

/* Without memory the error still gets through, with a text that needs none. */
static struct text text_copy(struct arena *arena, const char *s)
{
    struct text copy = arena_text(arena, s, strlen(s));

    return copy.data ? copy : text_of("out of memory");
}

static const char *outcome_status(enum job_outcome outcome)
{
    switch (outcome) {
    case JOB_COMPLETED:
        return "completed";
    case JOB_CANCELLED:
        return "cancelled";
    case JOB_EXPIRED:
        return "expired";
    default:
        return "failed";
    }
}

void job_finish(struct job *job, enum job_outcome outcome, const char *error_class,
                const char *error_message, int64_t now_wall_us)
{
    struct generation_result *r = &job->result;
    int64_t admitted_at_us;

    job->outcome = outcome;
    r->job_id = text_of(job->job_id);
    r->attempt = job->attempt;
    r->status = outcome_status(outcome);
    r->model = text_of(identity.model);
    r->model_version = text_of(identity.model_version);
    r->engine_id = text_of(identity.engine_id);
    r->worker = text_of(identity.worker);
    r->metadata = job->request.metadata;
    r->metadata_count = job->request.metadata_count;
    /* A job that never started queued all its life. */
    admitted_at_us = job->started_at_us ? job->started_at_us : now_wall_us;
    if (admitted_at_us > job->record_timestamp_us)
        r->timings.queue_us = admitted_at_us - job->record_timestamp_us;
    if (now_wall_us > job->record_timestamp_us)
        r->timings.total_us = now_wall_us - job->record_timestamp_us;
    r->has_error = error_class != NULL;
    if (error_class) {
        r->error.error_class = text_copy(job->arena, error_class);
        r->error.message = text_copy(job->arena, error_message);
    }
}

const char *job_outcome_name(enum job_outcome outcome)
{
    static const char *const names[] = {[JOB_OPEN] = "open",
                                        [JOB_COMPLETED] = "completed",
                                        [JOB_FAILED] = "failed",
                                        [JOB_CANCELLED] = "cancelled",
                                        [JOB_EXPIRED] = "expired",
                                        [JOB_POISON] = "poison",
                                        [JOB_DEAD_LETTER] = "dead_letter",
                                        [JOB_DUPLICATE] = "duplicate"};

    return names[outcome];
}

void job_list_init(struct job_list *list)
{
    list->head = NULL;
    list->tail = &list->head;
    list->count = 0;
}

void job_list_push(struct job_list *list, struct job *job)
{
    job->next = NULL;
    *list->tail = job;
    list->tail = &job->next;
    list->count++;
}

struct job *job_list_pop(struct job_list *list)
{
    struct job *job = list->head;

    if (!job)
        return NULL;
    list->head = job->next;
    if (!list->head)
        list->tail = &list->head;
    list->count--;
    job->next = NULL;
    return job;
}

void job_list_splice(struct job_list *to, struct job_list *from)
{
    if (!from->head)
        return;
    *to->tail = from->head;
    to->tail = from->tail;
    to->count += from->count;
    job_list_init(from);
}
