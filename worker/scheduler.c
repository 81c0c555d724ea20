/* SPDX-License-Identifier: MIT */
#include "worker/scheduler.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "kernels/generate/run.h"
#include "worker/condition.h"
#include "worker/job_id.h"

enum { PRIORITY_MIN = -10, PRIORITY_MAX = 10, CLASSES = PRIORITY_MAX - PRIORITY_MIN + 1 };

TAILQ_HEAD(job_queue, job);
LIST_HEAD(job_bucket, job);

/* One tenant's jobs within one priority. Those with waiting jobs stand in their class's ring. */
struct scheduler_tenant {
    TAILQ_ENTRY(scheduler_tenant) in_ring;
    LIST_ENTRY(scheduler_tenant) same_bucket;
    struct job_queue jobs;
    int32_t class_index;
    size_t name_size;
    char name[]; /* (name_size) */
};

TAILQ_HEAD(tenant_ring, scheduler_tenant);
LIST_HEAD(tenant_bucket, scheduler_tenant);

struct class
{
    struct job_queue jobs;             /* oldest first */
    struct tenant_ring ring;           /* whose turn it is, first */
    struct scheduler_tenant *overflow; /* shared by tenants for which memory was out */
};

struct scheduler {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    int64_t ageing_us;
    uint64_t hash_key;
    size_t buckets;                /* a power of two */
    struct job_bucket *ids;        /* (buckets) */
    struct tenant_bucket *tenants; /* (buckets) */
    struct class classes[CLASSES];
    struct job *soonest; /* heap by deadline, its root */
    struct job_queue unannounced;
    struct job_list cancelled; /* taken out of the classes, wait for a sweep */
    size_t depth;
    bool woken;
};

static struct job_bucket *bucket_of_id(struct scheduler *scheduler, const uint8_t id[16])
{
    return &scheduler->ids[job_id_hash(id) & (scheduler->buckets - 1)];
}

static struct tenant_bucket *bucket_of_tenant(struct scheduler *scheduler, int32_t class_index,
                                              struct text name)
{
    uint64_t hash = scheduler->hash_key ^ name.size;

    for (size_t i = 0; i < name.size; i++) /* FNV-1a over a secret start, then mixed */
        hash = (hash ^ (unsigned char)name.data[i]) * 0x100000001b3u;
    hash ^= hash >> 32;
    hash *= 0x9e3779b97f4a7c15u;
    hash ^= hash >> 29;
    return &scheduler->tenants[(hash + (size_t)class_index) & (scheduler->buckets - 1)];
}

/* ---- heap by deadline: a pairing heap linked through the jobs ---- */

static struct job *heap_join(struct job *a, struct job *b)
{
    if (!a || !b)
        return a ? a : b;
    if (b->request.deadline_us < a->request.deadline_us) {
        struct job *t = a;

        a = b;
        b = t;
    }
    b->links.sibling = a->links.child;
    if (b->links.sibling)
        b->links.sibling->links.previous = b;
    b->links.previous = a;
    a->links.child = b;
    return a;
}

/* Joins a list of siblings: in pairs from the left, then the pairs from the right. */
static struct job *heap_join_siblings(struct job *first)
{
    struct job *pairs = NULL, *root = NULL;

    while (first) {
        struct job *a = first, *b = a->links.sibling;

        first = b ? b->links.sibling : NULL;
        a->links.sibling = NULL;
        if (b)
            b->links.sibling = NULL;
        a = heap_join(a, b);
        a->links.previous = pairs; /* a stack of pairs */
        pairs = a;
    }
    while (pairs) {
        struct job *next = pairs->links.previous;

        pairs->links.previous = NULL;
        root = heap_join(root, pairs);
        pairs = next;
    }
    return root;
}

static void heap_push(struct scheduler *scheduler, struct job *job)
{
    job->links.child = job->links.sibling = job->links.previous = NULL;
    job->links.in_heap = true;
    scheduler->soonest = heap_join(scheduler->soonest, job);
}

static void heap_remove(struct scheduler *scheduler, struct job *job)
{
    struct job *children = heap_join_siblings(job->links.child);
    struct job *previous = job->links.previous, *sibling = job->links.sibling;

    job->links.in_heap = false;
    if (job == scheduler->soonest) {
        scheduler->soonest = children;
        return;
    }
    if (previous->links.child == job)
        previous->links.child = sibling;
    else
        previous->links.sibling = sibling;
    if (sibling)
        sibling->links.previous = previous;
    scheduler->soonest = heap_join(scheduler->soonest, children);
}

/* ---- tenants ---- */

static struct scheduler_tenant *tenant_new(int32_t class_index, struct text name)
{
    struct scheduler_tenant *tenant = malloc(sizeof *tenant + name.size);

    if (!tenant)
        return NULL;
    TAILQ_INIT(&tenant->jobs);
    tenant->class_index = class_index;
    tenant->name_size = name.size;
    memcpy(tenant->name, name.data, name.size);
    return tenant;
}

static struct scheduler_tenant *tenant_get(struct scheduler *scheduler, int32_t class_index,
                                           struct text name)
{
    struct tenant_bucket *bucket = bucket_of_tenant(scheduler, class_index, name);
    struct scheduler_tenant *tenant;

    LIST_FOREACH(tenant, bucket, same_bucket)
    if (tenant->class_index == class_index && tenant->name_size == name.size &&
        memcmp(tenant->name, name.data, name.size) == 0)
        return tenant;
    tenant = tenant_new(class_index, name);
    if (!tenant)
        return scheduler->classes[class_index].overflow;
    LIST_INSERT_HEAD(bucket, tenant, same_bucket);
    return tenant;
}

/* The tenant has no jobs left: it leaves the ring, and memory. */
static void tenant_leave(struct scheduler *scheduler, struct scheduler_tenant *tenant)
{
    struct class *class = &scheduler->classes[tenant->class_index];

    TAILQ_REMOVE(&class->ring, tenant, in_ring);
    if (tenant == class->overflow)
        return;
    LIST_REMOVE(tenant, same_bucket);
    free(tenant);
}

/* ---- jobs ---- */

static int32_t class_of(const struct job *job)
{
    int32_t priority = job->request.priority;

    if (priority < PRIORITY_MIN)
        priority = PRIORITY_MIN;
    return (priority > PRIORITY_MAX ? PRIORITY_MAX : priority) - PRIORITY_MIN;
}

static void job_insert(struct scheduler *scheduler, struct job *job, int64_t now_mono_us)
{
    int32_t class_index = class_of(job);
    struct class *class = &scheduler->classes[class_index];
    struct scheduler_tenant *tenant = tenant_get(scheduler, class_index, job->request.tenant);

    memset(&job->links, 0, sizeof job->links);
    job->links.queued_mono_us = now_mono_us;
    job->links.tenant = tenant;
    if (TAILQ_EMPTY(&tenant->jobs))
        TAILQ_INSERT_TAIL(&class->ring, tenant, in_ring);
    TAILQ_INSERT_TAIL(&tenant->jobs, job, links.of_tenant);
    TAILQ_INSERT_TAIL(&class->jobs, job, links.of_class);
    LIST_INSERT_HEAD(bucket_of_id(scheduler, job->id), job, links.same_bucket);
    if (job->request.has_deadline)
        heap_push(scheduler, job);
    if (!job->accepted_sent) {
        TAILQ_INSERT_TAIL(&scheduler->unannounced, job, links.unannounced);
        job->links.is_unannounced = true;
    }
    scheduler->depth++;
}

/* Takes a job out of every structure. */
static void job_remove(struct scheduler *scheduler, struct job *job)
{
    struct scheduler_tenant *tenant = job->links.tenant;

    TAILQ_REMOVE(&scheduler->classes[tenant->class_index].jobs, job, links.of_class);
    TAILQ_REMOVE(&tenant->jobs, job, links.of_tenant);
    if (TAILQ_EMPTY(&tenant->jobs))
        tenant_leave(scheduler, tenant);
    LIST_REMOVE(job, links.same_bucket);
    if (job->links.in_heap)
        heap_remove(scheduler, job);
    if (job->links.is_unannounced)
        TAILQ_REMOVE(&scheduler->unannounced, job, links.unannounced);
    job->links.is_unannounced = false;
    job->links.tenant = NULL;
    scheduler->depth--;
}

/* The class to serve: the least arrival time of its oldest job, moved one ageing_us earlier for
 * each level of priority. The order does not depend on the time it is asked for. */
static struct class *class_best(struct scheduler *scheduler)
{
    struct class *best = NULL;
    int64_t best_key = 0;

    for (int32_t i = CLASSES - 1; i >= 0; i--) {
        struct job *oldest = TAILQ_FIRST(&scheduler->classes[i].jobs);
        int64_t key;

        if (!oldest)
            continue;
        key = oldest->links.queued_mono_us - (int64_t)i * scheduler->ageing_us;
        if (best && key >= best_key)
            continue;
        best = &scheduler->classes[i];
        best_key = key;
    }
    return best;
}

/* ---- the interface ---- */

static int tables_create(struct scheduler *scheduler, size_t max_jobs, struct error *error)
{
    const struct text nobody = {"", 0};

    for (scheduler->buckets = 64; scheduler->buckets < max_jobs;)
        scheduler->buckets *= 2;
    scheduler->ids = calloc(scheduler->buckets, sizeof *scheduler->ids);
    scheduler->tenants = calloc(scheduler->buckets, sizeof *scheduler->tenants);
    if (!scheduler->ids || !scheduler->tenants)
        return error_set(error, "queue.max_jobs: out of memory for %zu jobs", max_jobs);
    for (int32_t i = 0; i < CLASSES; i++) {
        struct class *class = &scheduler->classes[i];

        TAILQ_INIT(&class->jobs);
        TAILQ_INIT(&class->ring);
        class->overflow = tenant_new(i, nobody);
        if (!class->overflow)
            return error_set(error, "queue.max_jobs: out of memory");
    }
    TAILQ_INIT(&scheduler->unannounced);
    job_list_init(&scheduler->cancelled);
    if (getrandom(&scheduler->hash_key, sizeof scheduler->hash_key, 0) !=
        (ssize_t)sizeof scheduler->hash_key)
        return error_set(error, "getrandom: %s", strerror(errno));
    return 0;
}

struct scheduler *scheduler_create(size_t max_jobs, int64_t ageing_us, struct error *error)
{
    struct scheduler *scheduler = calloc(1, sizeof *scheduler);

    if (!scheduler) {
        error_set(error, "out of memory");
        return NULL;
    }
    scheduler->ageing_us = ageing_us;
    pthread_mutex_init(&scheduler->lock, NULL);
    condition_init(&scheduler->changed);
    if (tables_create(scheduler, max_jobs, error)) {
        scheduler_destroy(scheduler);
        return NULL;
    }
    return scheduler;
}

void scheduler_destroy(struct scheduler *scheduler)
{
    if (!scheduler)
        return;
    for (int32_t i = 0; i < CLASSES; i++) {
        struct class *class = &scheduler->classes[i];
        struct job *job;

        if (!class->overflow) /* creation failed here: later classes are not set up */
            break;
        while ((job = TAILQ_FIRST(&class->jobs))) {
            job_remove(scheduler, job);
            job_destroy(job);
        }
        free(class->overflow);
    }
    if (scheduler->cancelled.tail)
        for (struct job *job; (job = job_list_pop(&scheduler->cancelled));)
            job_destroy(job);
    free(scheduler->ids);
    free(scheduler->tenants);
    pthread_cond_destroy(&scheduler->changed);
    pthread_mutex_destroy(&scheduler->lock);
    free(scheduler);
}

void scheduler_push(struct scheduler *scheduler, struct job *job, int64_t now_mono_us)
{
    pthread_mutex_lock(&scheduler->lock);
    job_insert(scheduler, job, now_mono_us);
    if (scheduler->depth == 1)
        pthread_cond_signal(&scheduler->changed);
    pthread_mutex_unlock(&scheduler->lock);
}

static void wait_for_jobs(struct scheduler *scheduler, int64_t wait_us)
{
    struct timespec until = condition_end(wait_us);

    while (!scheduler->depth && !scheduler->woken && !scheduler->cancelled.count)
        if (pthread_cond_timedwait(&scheduler->changed, &scheduler->lock, &until))
            break;
    scheduler->woken = false;
}

/* Takes the class's next job if it may run now; its tenant goes to the end of the ring. */
static struct job *class_take(struct scheduler *scheduler, struct class *class, int32_t max_rows,
                              bool alone_allowed)
{
    struct scheduler_tenant *tenant = TAILQ_FIRST(&class->ring);
    struct job *job = TAILQ_FIRST(&tenant->jobs);

    if (generation_run_rows(&job->request) > max_rows || (job->run_alone && !alone_allowed))
        return NULL;
    TAILQ_REMOVE(&class->ring, tenant, in_ring);
    TAILQ_INSERT_TAIL(&class->ring, tenant, in_ring);
    job_remove(scheduler, job);
    return job;
}

void scheduler_take(struct scheduler *scheduler, int32_t max_jobs, int32_t max_rows,
                    bool engine_idle, int64_t wait_us, struct job_list *out)
{
    int32_t taken = 0;
    bool alone = false;

    pthread_mutex_lock(&scheduler->lock);
    if (!scheduler->depth && wait_us > 0)
        wait_for_jobs(scheduler, wait_us);
    while (taken < max_jobs && !alone) {
        struct class *class = class_best(scheduler);
        struct job *job =
            class ? class_take(scheduler, class, max_rows, engine_idle && !taken) : NULL;

        if (!job)
            break;
        max_rows -= generation_run_rows(&job->request);
        alone = job->run_alone;
        job_list_push(out, job);
        taken++;
    }
    pthread_mutex_unlock(&scheduler->lock);
}

void scheduler_sweep(struct scheduler *scheduler, int64_t now_wall_us, struct job_list *out)
{
    pthread_mutex_lock(&scheduler->lock);
    job_list_splice(out, &scheduler->cancelled);
    while (scheduler->soonest && scheduler->soonest->request.deadline_us <= now_wall_us) {
        struct job *job = scheduler->soonest;

        job_remove(scheduler, job);
        job_list_push(out, job);
    }
    pthread_mutex_unlock(&scheduler->lock);
}

bool scheduler_cancel(struct scheduler *scheduler, const uint8_t id[16])
{
    struct job *job, *next;
    bool found = false;

    pthread_mutex_lock(&scheduler->lock);
    job = LIST_FIRST(bucket_of_id(scheduler, id));
    for (; job; job = next) {
        next = LIST_NEXT(job, links.same_bucket);
        if (memcmp(job->id, id, sizeof job->id))
            continue;
        atomic_store(&job->cancel_requested, true);
        job_remove(scheduler, job);
        job_list_push(&scheduler->cancelled, job);
        found = true;
    }
    if (found)
        pthread_cond_signal(&scheduler->changed);
    pthread_mutex_unlock(&scheduler->lock);
    return found;
}

void scheduler_drop_stale(struct scheduler *scheduler, int32_t partition, uint32_t epoch)
{
    pthread_mutex_lock(&scheduler->lock);
    for (int32_t i = 0; i < CLASSES; i++) {
        struct job *job, *next;

        for (job = TAILQ_FIRST(&scheduler->classes[i].jobs); job; job = next) {
            next = TAILQ_NEXT(job, links.of_class);
            if (job->partition != partition || job->epoch == epoch)
                continue;
            job_remove(scheduler, job);
            job_destroy(job);
        }
    }
    pthread_mutex_unlock(&scheduler->lock);
}

void scheduler_announce(struct scheduler *scheduler, int64_t before_mono_us, int32_t max_jobs,
                        scheduler_announce_fn announce, void *user)
{
    struct job *job;

    pthread_mutex_lock(&scheduler->lock);
    while (max_jobs-- > 0 && (job = TAILQ_FIRST(&scheduler->unannounced)) &&
           job->links.queued_mono_us < before_mono_us) {
        TAILQ_REMOVE(&scheduler->unannounced, job, links.unannounced);
        job->links.is_unannounced = false;
        job->accepted_sent = true;
        announce(user, job);
    }
    pthread_mutex_unlock(&scheduler->lock);
}

size_t scheduler_depth(struct scheduler *scheduler)
{
    size_t depth;

    pthread_mutex_lock(&scheduler->lock);
    depth = scheduler->depth + scheduler->cancelled.count;
    pthread_mutex_unlock(&scheduler->lock);
    return depth;
}

void scheduler_wake(struct scheduler *scheduler)
{
    pthread_mutex_lock(&scheduler->lock);
    scheduler->woken = true;
    pthread_cond_signal(&scheduler->changed);
    pthread_mutex_unlock(&scheduler->lock);
}
