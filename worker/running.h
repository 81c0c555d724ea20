/* SPDX-License-Identifier: MIT
 *
 * running: what the engine stage knows of a job while it runs, and the table of these by job id, so
 * that a cancel finds its job. A running job lives in its job's arena. Its fields belong to the
 * thread that they are listed under; the table has a lock and any thread may call it.
 */
#ifndef PGPT_WORKER_RUNNING_H
#define PGPT_WORKER_RUNNING_H

#include <pthread.h>

#include "kernels/generate/run.h"
#include "worker/job.h"

/* Why the engine let go of a job. */
enum running_end {
    RUNNING_FINISHED, /* all of its sequences ended */
    RUNNING_CANCELLED,
    RUNNING_EXPIRED,
    RUNNING_STALE /* its partition was given up: nothing of it is published */
};

enum { RUNNING_SEQUENCES_MAX = 8 };

struct running {
    struct job *job;
    struct generation_run *run;      /* the text thread's after admission */
    LIST_ENTRY(running) same_bucket; /* the table's */

    /* Engine thread. The first three are constant after admission, so the text thread reads them.
     */
    uint64_t tag;            /* this job's in the engine: place and serial number */
    int64_t steps_before;    /* steps that the stage had run before it was admitted ... */
    double row_steps_before; /* ... and the sum of their rows */
    int32_t slot;            /* in the engine */
    uint32_t live;           /* bits of the sequences that the engine still runs */
    int32_t live_at;         /* in the stage's array of live jobs */

    /* Text thread. */
    int64_t encoded_mono_us, first_mono_us, last_mono_us; /* 0 = not yet */
    int32_t chunks_sent[RUNNING_SEQUENCES_MAX];
    TAILQ_ENTRY(running) unannounced; /* jobs without a `started` event */
    TAILQ_ENTRY(running) blocked;     /* jobs with chunks that the stream had no room for */
    bool is_unannounced, is_blocked;
    bool ended; /* the engine has let go of it; what is left are chunks to send */
    enum running_end end;
    const char *failure; /* NULL = none */
};

struct running_table {
    pthread_mutex_t lock;
    LIST_HEAD(running_bucket, running) * buckets; /* (bucket_count) under the lock */
    size_t bucket_count;                          /* a power of two */
    _Atomic size_t depth;                         /* jobs added and not yet forgotten */
};

int running_table_init(struct running_table *table, size_t jobs) PGPT_MUST_CHECK;
/* Destroys the jobs that are still inside. */
void running_table_free(struct running_table *table);

/* Makes a job's running state, in its arena, which is allowed what the run can need at most, and
 * adds it; job->running points at it. NULL = memory is out; nothing was added. */
struct running *running_table_add(struct running_table *table, struct job *job,
                                  const struct detokeniser *detokeniser) PGPT_MUST_CHECK;
/* Cancels do not find it any more; it still counts until running_table_forget(). */
void running_table_remove(struct running_table *table, struct running *running);
/* The job went to its next owner. */
void running_table_forget(struct running_table *table);
/* Marks the jobs of that id cancelled; false when there is none. */
bool running_table_cancel(struct running_table *table, const uint8_t id[16]);

#endif
