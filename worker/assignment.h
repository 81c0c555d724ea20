/* SPDX-License-Identifier: MIT
 *
 * assignment: which request partitions this worker owns, under which epoch, and the ledger and the
 * window of duplicates of each. Shared by the intake thread (takes, begins, releases) and the
 * settle thread (transactions) under one lock; assignment_current() is lock-free.
 *
 * Why it is as it is, race by race:
 * 1. The broker checks a commit's member epoch, not who owns a partition. A member that has given a
 *    partition away could still commit for it. So a transaction takes its group-metadata handle in
 *    the same locked section that checks that every partition in it is owned, before its first
 *    produce, and never refreshes it.
 * 2. A revoke in the middle of a transaction: the revoke callback waits (bounded) until no open
 *    transaction contains the partition, and gives it up under the lock. If the wait runs out, the
 *    partition is given up all the same; the transaction sees that and aborts.
 * 3. A lost partition (session expired) is given up at once: somebody else may run its jobs
 * already. The transaction that contains it is aborted; a commit that was already on its way
 * counts, since the next owner reads stable offsets, which wait for it.
 * 4. Jobs carry the epoch of their partition. Giving up adds one to it, so completions of an
 * earlier ownership are recognised and dropped, even when the same partition comes back.
 * 5. An owner's first act is to commit the `open` mark; giving up in order clears it. An owner that
 *    finds it set took over from a death.
 */
#ifndef PGPT_WORKER_ASSIGNMENT_H
#define PGPT_WORKER_ASSIGNMENT_H

#include <librdkafka/rdkafka.h>

#include "worker/duplicates.h"
#include "worker/job.h"
#include "worker/ledger.h"

struct assignment; /* opaque: has a lock */

enum { ASSIGNMENT_PARTITIONS_MAX = 8192 };

struct assignment *assignment_create(struct error *error) PGPT_MUST_CHECK;
void assignment_destroy(struct assignment *assignment); /* NULL is allowed */

/* ---- intake thread ---- */

/* The consumer whose group metadata transactions carry; NULL again before it is destroyed. */
void assignment_set_consumer(struct assignment *assignment, rd_kafka_t *consumer);

/* Ownership begins; takes ownership of duplicates, copies the ledger. -1 = no memory: not owned. */
int assignment_take(struct assignment *assignment, int32_t partition, const struct ledger *ledger,
                    struct duplicates *duplicates) PGPT_MUST_CHECK;

/* Ownership ends (epoch + 1) as soon as no open transaction contains the partition, or when
 * timeout_ms ran out (0 = at once); then an open transaction that contains it will abort. True = it
 * ended in order: `ledger` is what is committed, and nobody here will commit for it any more. */
bool assignment_give_up(struct assignment *assignment, int32_t partition, int timeout_ms,
                        struct ledger *ledger);

/* What to do with a record that was read. */
struct assignment_admission {
    enum ledger_answer answer;
    uint32_t epoch;
    int32_t attempt;
    enum ledger_run runs; /* not LEDGER_FREE: only after assignment_mark_alone() */
    bool poison;          /* it was running alone at the last of too many deaths */
    bool unreadable;      /* and since then, as many owners died before they could say so of it */
};
/* False when the partition is not owned. A record that was begun before and has no outcome yet is
 * LEDGER_RUNNING: it must not run beside itself. */
bool assignment_begin(struct assignment *assignment, int32_t partition, int64_t offset,
                      int64_t ahead, int32_t poison_deaths, struct assignment_admission *out);
/* The record that was begun came to nothing here: it will be read and begun once more. */
void assignment_again(struct assignment *assignment, int32_t partition, int64_t offset);
/* False = a duplicate. Without memory a job counts as new. */
bool assignment_is_new(struct assignment *assignment, int32_t partition, const uint8_t id[16],
                       int64_t offset);
/* The suspects of a partition that are about to run, all that are unfinished in [first, end). */
struct assignment_mark {
    int32_t partition;
    int64_t first, end;
    enum ledger_run runs;
};
/* `out` is the ledger to commit before they run. */
bool assignment_mark_alone(struct assignment *assignment, const struct assignment_mark *mark,
                           struct ledger *out);
/* True while suspects that do not run freely may still be read, of any partition. */
bool assignment_expects_suspects(struct assignment *assignment);
/* True when a partition that was too far ahead has room again. */
bool assignment_has_room(struct assignment *assignment, int32_t partition, int64_t ahead);
/* Records of an owned partition below its end that are not finished; 0 when it is not owned. */
int64_t assignment_unfinished(struct assignment *assignment, int32_t partition, int64_t end);
/* Largest distance of a finished offset from its watermark, over all partitions. */
int64_t assignment_ahead(struct assignment *assignment);

/* ---- settle thread ---- */

/* One partition of a transaction: what will be committed for it. */
struct assignment_part {
    int32_t partition;
    uint32_t epoch;
    struct ledger ledger;
};

struct assignment_transaction {
    rd_kafka_consumer_group_metadata_t *group; /* the handle of race 1 */
    struct assignment_part *parts;             /* (part_count), owned */
    size_t part_count;
};

/* Opens: jobs whose partition is not owned under their epoch are moved to `stale`; the rest is
 * counted into the parts. No parts = nothing to commit (group is NULL). -1 without memory or group;
 * then nothing was opened. */
int assignment_open(struct assignment *assignment, struct job_list *jobs, struct job_list *stale,
                    struct assignment_transaction *transaction,
                    struct error *error) PGPT_MUST_CHECK;
/* The consumer, for reading committed offsets; NULL when there is none. */
rd_kafka_t *assignment_consumer(struct assignment *assignment);
/* True while every part is still owned: asked right before the commit. */
bool assignment_still_owned(struct assignment *assignment,
                            const struct assignment_transaction *transaction);
/* The commit is known: the jobs' offsets are finished, their ids settled. */
void assignment_committed(struct assignment *assignment, const struct job_list *jobs,
                          int64_t now_us);
/* Ends it, committed or not: lets revokes go on and frees what the transaction holds. */
void assignment_close(struct assignment *assignment, struct assignment_transaction *transaction);

#endif
