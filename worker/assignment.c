/* SPDX-License-Identifier: MIT */
#include "worker/assignment.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "worker/condition.h"
#include "worker/pipeline.h"

struct owned {
    struct ledger ledger;
    struct duplicates *duplicates;
    int64_t again; /* begun and to be begun once more, or -1 */
};

struct assignment {
    pthread_mutex_t lock;
    pthread_cond_t closed; /* a transaction ended */
    rd_kafka_t *consumer;
    int32_t end;                                    /* nothing was ever owned from here on */
    struct owned *owned[ASSIGNMENT_PARTITIONS_MAX]; /* NULL = not owned */
    int32_t in_transaction[ASSIGNMENT_PARTITIONS_MAX];
    _Atomic uint32_t epochs[ASSIGNMENT_PARTITIONS_MAX]; /* odd while owned */
};

struct assignment *assignment_create(struct error *error)
{
    struct assignment *a = calloc(1, sizeof *a);

    if (!a) {
        error_set(error, "assignment: out of memory");
        return NULL;
    }
    pthread_mutex_init(&a->lock, NULL);
    condition_init(&a->closed);
    return a;
}

static void owned_free(struct owned *owned)
{
    if (!owned)
        return;
    duplicates_destroy(owned->duplicates);
    free(owned);
}

void assignment_destroy(struct assignment *a)
{
    if (!a)
        return;
    for (int32_t i = 0; i < a->end; i++)
        owned_free(a->owned[i]);
    pthread_cond_destroy(&a->closed);
    pthread_mutex_destroy(&a->lock);
    free(a);
}

static struct owned *get(struct assignment *a, int32_t partition)
{
    return partition >= 0 && partition < ASSIGNMENT_PARTITIONS_MAX ? a->owned[partition] : NULL;
}

bool assignment_current(const struct assignment *a, int32_t partition, uint32_t epoch)
{
    /* An owned partition has an odd epoch, so an old even or odd one never matches by chance. */
    return partition >= 0 && partition < ASSIGNMENT_PARTITIONS_MAX && epoch % 2 &&
           atomic_load(&((struct assignment *)a)->epochs[partition]) == epoch;
}

void assignment_set_consumer(struct assignment *a, rd_kafka_t *consumer)
{
    pthread_mutex_lock(&a->lock);
    a->consumer = consumer;
    pthread_mutex_unlock(&a->lock);
}

rd_kafka_t *assignment_consumer(struct assignment *a)
{
    rd_kafka_t *consumer;

    pthread_mutex_lock(&a->lock);
    consumer = a->consumer;
    pthread_mutex_unlock(&a->lock);
    return consumer;
}

int assignment_take(struct assignment *a, int32_t partition, const struct ledger *ledger,
                    struct duplicates *duplicates)
{
    struct owned *owned = malloc(sizeof *owned), *before;

    if (!owned)
        return -1;
    owned->ledger = *ledger;
    owned->ledger.next = ledger->base; /* nothing was read in this ownership */
    owned->duplicates = duplicates;
    owned->again = -1;
    pthread_mutex_lock(&a->lock);
    before = a->owned[partition];
    a->owned[partition] = owned;
    a->end = partition < a->end ? a->end : partition + 1;
    if (atomic_load(&a->epochs[partition]) % 2 == 0)
        atomic_fetch_add(&a->epochs[partition], 1);
    else
        atomic_fetch_add(&a->epochs[partition], 2);
    pthread_mutex_unlock(&a->lock);
    owned_free(before); /* a million ids take a while: not under the lock */
    return 0;
}

bool assignment_give_up(struct assignment *a, int32_t partition, int timeout_ms,
                        struct ledger *ledger)
{
    struct timespec until = condition_end((int64_t)timeout_ms * 1000);
    struct owned *owned = NULL;
    bool in_order = false;

    pthread_mutex_lock(&a->lock);
    if (!get(a, partition))
        goto done;
    while (a->in_transaction[partition] &&
           pthread_cond_timedwait(&a->closed, &a->lock, &until) != ETIMEDOUT)
        ;
    in_order = !a->in_transaction[partition];
    owned = a->owned[partition];
    *ledger = owned->ledger;
    a->owned[partition] = NULL;
    atomic_fetch_add(&a->epochs[partition], 1);
done:
    pthread_mutex_unlock(&a->lock);
    owned_free(owned);
    return in_order;
}

/* The client may deliver what it has delivered before: its position can fall back by itself. */
static bool runs_already(const struct owned *owned, int64_t offset)
{
    const struct ledger *l = &owned->ledger;

    return offset < l->next && !ledger_is_finished(l, offset) && offset != owned->again;
}

bool assignment_begin(struct assignment *a, int32_t partition, int64_t offset, int64_t ahead,
                      int32_t poison_deaths, struct assignment_admission *out)
{
    struct owned *owned;

    pthread_mutex_lock(&a->lock);
    owned = get(a, partition);
    if (owned) {
        struct ledger *l = &owned->ledger;

        out->answer = runs_already(owned, offset) ? LEDGER_RUNNING : ledger_begin(l, offset, ahead);
        owned->again = owned->again == offset ? -1 : owned->again;
        out->epoch = atomic_load(&a->epochs[partition]);
        out->attempt = ledger_attempt(l, offset);
        out->runs = ledger_runs(l, offset);
        out->poison = l->alone_offset == offset && l->alone_deaths >= poison_deaths;
        out->unreadable = out->poison && l->alone_deaths / 2 >= poison_deaths;
    }
    pthread_mutex_unlock(&a->lock);
    return owned != NULL;
}

void assignment_again(struct assignment *a, int32_t partition, int64_t offset)
{
    struct owned *owned;

    pthread_mutex_lock(&a->lock);
    owned = get(a, partition);
    if (owned)
        owned->again = offset;
    pthread_mutex_unlock(&a->lock);
}

bool assignment_is_new(struct assignment *a, int32_t partition, const uint8_t id[16],
                       int64_t offset)
{
    struct owned *owned;
    bool is_new = true;

    pthread_mutex_lock(&a->lock);
    owned = get(a, partition);
    if (owned)
        is_new = duplicates_begin(owned->duplicates, id, offset) != 0;
    pthread_mutex_unlock(&a->lock);
    return is_new;
}

bool assignment_mark_alone(struct assignment *a, const struct assignment_mark *mark,
                           struct ledger *out)
{
    struct owned *owned;

    pthread_mutex_lock(&a->lock);
    owned = get(a, mark->partition);
    if (owned) {
        ledger_mark_alone(&owned->ledger, mark->first, mark->end, mark->runs);
        *out = owned->ledger;
    }
    pthread_mutex_unlock(&a->lock);
    return owned != NULL;
}

bool assignment_expects_suspects(struct assignment *a)
{
    bool expects = false;

    pthread_mutex_lock(&a->lock);
    for (int32_t i = 0; i < a->end && !expects; i++)
        expects = a->owned[i] && ledger_expects_suspects(&a->owned[i]->ledger);
    pthread_mutex_unlock(&a->lock);
    return expects;
}

bool assignment_has_room(struct assignment *a, int32_t partition, int64_t ahead)
{
    struct owned *owned;
    bool room = false;

    pthread_mutex_lock(&a->lock);
    owned = get(a, partition);
    if (owned)
        room = owned->ledger.next - owned->ledger.base < ahead * 3 / 4; /* hysteresis */
    pthread_mutex_unlock(&a->lock);
    return room;
}

int64_t assignment_unfinished(struct assignment *a, int32_t partition, int64_t end)
{
    struct owned *owned;
    int64_t unfinished = 0;

    pthread_mutex_lock(&a->lock);
    owned = get(a, partition);
    if (owned)
        unfinished = ledger_unfinished(&owned->ledger, end);
    pthread_mutex_unlock(&a->lock);
    return unfinished;
}

int64_t assignment_ahead(struct assignment *a)
{
    int64_t most = 0;

    pthread_mutex_lock(&a->lock);
    for (int32_t i = 0; i < a->end; i++)
        if (a->owned[i] && ledger_ahead(&a->owned[i]->ledger) > most)
            most = ledger_ahead(&a->owned[i]->ledger);
    pthread_mutex_unlock(&a->lock);
    return most;
}

/* ---- transactions ---- */

static bool owned_now(struct assignment *a, int32_t partition, uint32_t epoch)
{
    return get(a, partition) && assignment_current(a, partition, epoch);
}

static struct assignment_part *part_of(struct assignment_transaction *t, int32_t partition)
{
    for (size_t i = 0; i < t->part_count; i++)
        if (t->parts[i].partition == partition)
            return &t->parts[i];
    return NULL;
}

/* Counts the job into its partition's part; a new part starts from the live ledger. */
static int part_add(struct assignment *a, struct assignment_transaction *t, const struct job *job)
{
    struct assignment_part *part = part_of(t, job->partition);

    if (!part) {
        struct assignment_part *grown = realloc(t->parts, (t->part_count + 1) * sizeof *t->parts);

        if (!grown)
            return -1;
        t->parts = grown;
        part = &t->parts[t->part_count++];
        part->partition = job->partition;
        part->epoch = job->epoch;
        part->ledger = a->owned[job->partition]->ledger;
        a->in_transaction[job->partition]++;
    }
    ledger_finish(&part->ledger, job->offset);
    return 0;
}

static void parts_close(struct assignment *a, struct assignment_transaction *t)
{
    for (size_t i = 0; i < t->part_count; i++)
        a->in_transaction[t->parts[i].partition]--;
    pthread_cond_broadcast(&a->closed);
    free(t->parts);
    t->parts = NULL;
    t->part_count = 0;
}

int assignment_open(struct assignment *a, struct job_list *jobs, struct job_list *stale,
                    struct assignment_transaction *t, struct error *error)
{
    struct job_list all = *jobs;
    struct job *job;
    bool failed = false;

    if (!jobs->head)
        job_list_init(&all);
    memset(t, 0, sizeof *t);
    job_list_init(jobs);
    pthread_mutex_lock(&a->lock);
    while ((job = job_list_pop(&all))) {
        if (!owned_now(a, job->partition, job->epoch)) {
            job_list_push(stale, job);
            continue;
        }
        job_list_push(jobs, job);
        failed = failed || part_add(a, t, job);
    }
    if (t->part_count && !failed) {
        t->group = a->consumer ? rd_kafka_consumer_group_metadata(a->consumer) : NULL;
        failed = !t->group;
    }
    if (failed)
        parts_close(a, t);
    pthread_mutex_unlock(&a->lock);
    return failed ? error_set(error, "no memory or no group membership for a transaction") : 0;
}

bool assignment_still_owned(struct assignment *a, const struct assignment_transaction *t)
{
    bool owned = true;

    pthread_mutex_lock(&a->lock);
    for (size_t i = 0; i < t->part_count; i++)
        owned = owned && owned_now(a, t->parts[i].partition, t->parts[i].epoch);
    pthread_mutex_unlock(&a->lock);
    return owned;
}

void assignment_committed(struct assignment *a, const struct job_list *jobs, int64_t now_us)
{
    pthread_mutex_lock(&a->lock);
    for (const struct job *job = jobs->head; job; job = job->next) {
        struct owned *owned = get(a, job->partition);

        if (!owned || !owned_now(a, job->partition, job->epoch))
            continue;
        ledger_finish(&owned->ledger, job->offset);
        if (job->has_id && job->outcome != JOB_DUPLICATE)
            duplicates_finish(owned->duplicates, job->id, job->offset, now_us);
    }
    pthread_mutex_unlock(&a->lock);
}

void assignment_close(struct assignment *a, struct assignment_transaction *t)
{
    pthread_mutex_lock(&a->lock);
    parts_close(a, t);
    pthread_mutex_unlock(&a->lock);
    if (t->group)
        rd_kafka_consumer_group_metadata_destroy(t->group);
    t->group = NULL;
}
