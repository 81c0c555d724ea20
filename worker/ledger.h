/* SPDX-License-Identifier: MIT
 *
 * ledger: which offsets of one request partition are finished. `base` is the watermark, the lowest
 * offset that is not; a ring of bits marks finished offsets above it:
 *
 *   ... finished | base .......... finished, unfinished, holes .......... next | not read yet
 *                  <------------ at most LEDGER_SPAN offsets ------------->
 *
 * A plain value: copying it is how a transaction prepares what it will commit. No lock; worker/
 * assignment.h guards the live ones. It also carries what the commit metadata says of takeovers.
 */
#ifndef PGPT_WORKER_LEDGER_H
#define PGPT_WORKER_LEDGER_H

#include <stdbool.h>
#include <stdint.h>

enum { LEDGER_ENGINE_ID_SIZE = 17 };
enum {
    LEDGER_SPAN = 16384,       /* bits; a power of two */
    LEDGER_COUNT_MAX = 1000000 /* where the counts of deaths stand still */
};

/* How an offset may run. */
enum ledger_run {
    LEDGER_FREE,   /* beside anything */
    LEDGER_SINGLE, /* a suspect, with nothing beside it in the worker */
    LEDGER_GROUP   /* a suspect, with nothing but other suspects of a marked group beside it */
};

struct ledger {
    int64_t base;                    /* committed as the partition's offset */
    int64_t next;                    /* first offset that was never read here, >= base */
    int64_t highest_finished;        /* -1 = none above base */
    uint64_t bits[LEDGER_SPAN / 64]; /* offset o at bit o % LEDGER_SPAN; base's own bit is clear */

    /* Attempts: DESIGN.md, "Deaths, suspects, poison". */
    bool open;            /* an owner is at work, or died without saying goodbye */
    int32_t takeovers;    /* unclean ones since no suspects were left */
    int32_t bound;        /* most unfinished jobs the owner may have read of this partition */
    int64_t suspect_end;  /* unfinished offsets below may have killed an owner; 0 = none */
    int64_t single_end;   /* ... and those below this one in a group; 0 = none */
    enum ledger_run runs; /* what the owner has marked and not finished; LEDGER_FREE = nothing */
    int64_t alone_offset, alone_end; /* the marked offsets, or the last single one; -1, 0 = none */
    int32_t alone_deaths;            /* owners that died while alone_offset was the single one */
    char engine_id[LEDGER_ENGINE_ID_SIZE]; /* of the owner, see worker/engines.h; "" = not said */
};

void ledger_init(struct ledger *ledger, int64_t base, int32_t bound);

enum ledger_answer {
    LEDGER_ADMIT,   /* read it now; it is in flight */
    LEDGER_DONE,    /* finished before: skip it */
    LEDGER_TOO_FAR, /* more than `ahead` past base: not admitted, pause the partition */
    LEDGER_RUNNING  /* assignment_begin() alone: it is in flight here already: skip it */
};

/* A record at `offset` was read. Offsets between the last one read and this one hold no records
 * (transaction markers, compaction) and count as finished. ahead <= LEDGER_SPAN. */
enum ledger_answer ledger_begin(struct ledger *ledger, int64_t offset, int64_t ahead);

/* The job at offset has its outcome. Moves base over what is contiguous. Idempotent. */
void ledger_finish(struct ledger *ledger, int64_t offset);

bool ledger_is_finished(const struct ledger *ledger, int64_t offset);
/* Unfinished offsets below end, the partition's end. */
int64_t ledger_unfinished(const struct ledger *ledger, int64_t end);
/* Distance from base to the highest finished offset, 0 = nothing above base. */
int64_t ledger_ahead(const struct ledger *ledger);

/* An owner takes the partition: marks it open; a partition found open was left by a death. Counts
 * it, and makes suspects of the unfinished offsets its owner may have started: those below
 * log_end, the partition's end now, and within its bound. Where suspects were marked to run it had
 * started nothing but these: no new ones; those of a group run singly from now on, and a single one
 * has a death more. True = unclean. */
bool ledger_take_over(struct ledger *ledger, int32_t bound, int64_t log_end);
/* The owner says goodbye: nothing of the partition runs any more. */
void ledger_give_up(struct ledger *ledger);
/* The unfinished suspects in [first, end) are about to run, in a group or as the single one. They
 * are the lowest of the partition, and nothing else of it may start before they are finished. */
void ledger_mark_alone(struct ledger *ledger, int64_t first, int64_t end, enum ledger_run runs);
/* attempt of a job: 1, or takeovers + 1 for a suspect. */
int32_t ledger_attempt(const struct ledger *ledger, int64_t offset);
/* From the second unclean takeover on suspects run in groups; those of a group in which an owner
 * died, singly. */
enum ledger_run ledger_runs(const struct ledger *ledger, int64_t offset);
/* Suspects that do not run freely may still be read in this ownership. */
bool ledger_expects_suspects(const struct ledger *ledger);

#endif
