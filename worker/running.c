/* SPDX-License-Identifier: MIT */
#include "worker/running.h"

#include <stdlib.h>
#include <string.h>

#include "worker/job_id.h"

enum { RESULT_ROOM = 65536 }; /* what later stages copy: a message, the rest of a block */

int running_table_init(struct running_table *table, size_t jobs)
{
    table->bucket_count = 64;
    while (table->bucket_count < jobs)
        table->bucket_count *= 2;
    table->buckets = calloc(table->bucket_count, sizeof *table->buckets);
    pthread_mutex_init(&table->lock, NULL);
    return table->buckets ? 0 : -1;
}

void running_table_free(struct running_table *table)
{
    for (size_t i = 0; table->buckets && i < table->bucket_count; i++)
        while (!LIST_EMPTY(&table->buckets[i])) {
            struct running *running = LIST_FIRST(&table->buckets[i]);

            LIST_REMOVE(running, same_bucket);
            job_destroy(running->job);
        }
    free(table->buckets);
    pthread_mutex_destroy(&table->lock);
}

static struct running_bucket *bucket_of(struct running_table *table, const uint8_t id[16])
{
    return &table->buckets[job_id_hash(id) & (table->bucket_count - 1)];
}

struct running *running_table_add(struct running_table *table, struct job *job,
                                  const struct detokeniser *detokeniser)
{
    struct running *running;

    /* Twice: parts of blocks stay unused. */
    arena_allow(job->arena, sizeof *running + RESULT_ROOM +
                                2 * generation_run_memory(&job->request, detokeniser));
    running = arena_calloc(job->arena, 1, sizeof *running);

    if (!running)
        return NULL;
    running->job = job;
    running->run = generation_run_create(&job->request, job->source_count, detokeniser, job->arena);
    if (!running->run)
        return NULL;
    job->running = running;
    atomic_fetch_add(&table->depth, 1);
    pthread_mutex_lock(&table->lock);
    LIST_INSERT_HEAD(bucket_of(table, job->id), running, same_bucket);
    pthread_mutex_unlock(&table->lock);
    return running;
}

void running_table_remove(struct running_table *table, struct running *running)
{
    pthread_mutex_lock(&table->lock);
    LIST_REMOVE(running, same_bucket);
    pthread_mutex_unlock(&table->lock);
}

void running_table_forget(struct running_table *table)
{
    atomic_fetch_sub(&table->depth, 1);
}

bool running_table_cancel(struct running_table *table, const uint8_t id[16])
{
    bool found = false;

    pthread_mutex_lock(&table->lock);
    for (struct running *running = LIST_FIRST(bucket_of(table, id)); running;
         running = LIST_NEXT(running, same_bucket)) {
        if (memcmp(running->job->id, id, 16) != 0)
            continue;
        atomic_store(&running->job->cancel_requested, true);
        found = true;
    }
    pthread_mutex_unlock(&table->lock);
    return found;
}
