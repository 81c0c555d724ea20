/* SPDX-License-Identifier: MIT
 *
 * job: one consumed request on its way through the worker. It has one owner at a time, the stage or
 * queue that holds it; handing it over means the giver drops its pointer:
 *
 *   intake -> prepare -> scheduler -> engine stage -> settle -> freed once its commit is known
 *        \________\____________\_______________________^   (bad, duplicate, expired, cancelled)
 *
 * Only the fields marked `shared` may be touched by a thread that does not own the job.
 */
#ifndef PGPT_WORKER_JOB_H
#define PGPT_WORKER_JOB_H

#include <stdatomic.h>
#include <sys/queue.h>

#include "schema/records.h"
#include "worker/log.h"

enum job_outcome {
    JOB_OPEN = 0,    /* still on its way */
    JOB_COMPLETED,   /* result: completed */
    JOB_FAILED,      /* result: failed, with an error of class invalid or internal */
    JOB_CANCELLED,   /* result: cancelled */
    JOB_EXPIRED,     /* result: expired */
    JOB_POISON,      /* DLQ record and a failed result of class poison */
    JOB_DEAD_LETTER, /* DLQ record only: undecodable, or no UUID as job_id */
    JOB_DUPLICATE    /* nothing is published; its offset is finished */
};

/* Why and how a record goes to the DLQ. */
struct job_dead_letter {
    const char *error_class; /* "undecodable", "no_job_id", "poison", ... a literal */
    char error_message[512];
};

/* A queued job's places inside the scheduler, which alone touches them. */
struct scheduler_links {
    TAILQ_ENTRY(job) of_class;    /* jobs of one priority, oldest first */
    TAILQ_ENTRY(job) of_tenant;   /* of these, one tenant's */
    TAILQ_ENTRY(job) unannounced; /* jobs without an `accepted` event, oldest first */
    LIST_ENTRY(job) same_bucket;  /* hash table by id */
    struct scheduler_tenant *tenant;
    struct job *child, *sibling, *previous; /* heap by deadline */
    int64_t queued_mono_us;
    bool in_heap, is_unannounced;
};

struct job {
    struct job *next;    /* link of whichever queue owns the job */
    struct arena *arena; /* the job itself lies in it: one allocation for most jobs */
    size_t charged;      /* its part of job_bytes() */

    /* The record it came from. */
    int32_t partition;
    int64_t offset;
    int64_t record_timestamp_us;
    uint32_t epoch;           /* assignment epoch of the partition when it was consumed */
    struct text original_key; /* kept for the DLQ; data NULL = no key */
    struct text original;     /* the payload, untouched */
    struct text traceparent;  /* "" = none */
    struct text tracestate;

    /* Identity and attempts. */
    bool has_id; /* request decoded and job_id is a UUID */
    uint8_t id[16];
    char job_id[37]; /* as the request wrote it */
    int32_t attempt; /* 1 = first run */
    bool run_alone;  /* a suspect after unclean takeovers: nothing else may run beside it */
    bool replayed;   /* carries dlq.attempt: no duplicate by definition */

    struct generation_request request;
    const int32_t *source; /* (source_count) encoder input, made by prepare */
    int32_t source_count;

    /* Times, Unix microseconds; 0 = not yet. */
    int64_t accepted_at_us;
    int64_t started_at_us;
    int64_t accepted_mono_us; /* the same instants on the monotonic clock, for durations */
    int64_t started_mono_us;

    /* The outcome; result is filled by the stage that sets outcome (COMPLETED .. POISON). */
    enum job_outcome outcome;
    struct generation_result result;
    struct job_dead_letter dead_letter;

    _Atomic int32_t chunks_unacked; /* shared: stream adds, delivery reports subtract */
    _Atomic bool cancel_requested;  /* shared: control sets, the owner looks */
    void *running;                  /* the engine stage's own state of a running job */
    struct scheduler_links links;   /* the scheduler's own state of a queued job */
    bool accepted_sent;             /* its `accepted` event went out */
    struct log_context log;         /* job_id, traceparent, partition, offset for log lines */
};

/* NULL when memory is out; the arena's bound grows with the payload's size. */
struct job *job_create(size_t payload_size) PGPT_MUST_CHECK;
void job_destroy(struct job *job); /* frees the arena, the job with it; NULL is allowed */
size_t job_alive(void);            /* jobs created and not destroyed, in the process */
/* Memory of these: each as large as it was at its last charge. Its owner charges it when a stage
 * has added to it. */
size_t job_bytes(void);
void job_charge(struct job *job);

/* What every result says of its worker. Set once, before the first job; the texts must stay. */
struct job_identity {
    const char *model;         /* engine.model_name */
    const char *model_version; /* engine_info */
    const char *engine_id;     /* engine_info */
    const char *worker;        /* worker.name */
};
void job_identity_set(const struct job_identity *identity);
const struct job_identity *job_identity_get(void);

/* Fills result with everything known from the request and job (ids, attempt, model, worker, times,
 * metadata) and sets the outcome; sequences and usage stay as the caller set them. error_class NULL
 * = no error. Texts are copied into the job's arena. */
void job_finish(struct job *job, enum job_outcome outcome, const char *error_class,
                const char *error_message, int64_t now_wall_us);
const char *job_outcome_name(enum job_outcome outcome); /* "completed", "failed", ... */

/* First-in first-out list of jobs; no lock of its own. */
struct job_list {
    struct job *head;
    struct job **tail;
    size_t count;
};
void job_list_init(struct job_list *list);
void job_list_push(struct job_list *list, struct job *job);
struct job *job_list_pop(struct job_list *list);                  /* NULL when empty */
void job_list_splice(struct job_list *to, struct job_list *from); /* from is empty after */

#endif
