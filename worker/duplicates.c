/* SPDX-License-Identifier: MIT */
#include "worker/duplicates.h"

#include <stdlib.h>
#include <string.h>

#include "worker/job_id.h"

struct entry {
    uint8_t id[16];
    int64_t offset;
    int64_t finished_us; /* 0 = running */
    struct entry *chain; /* same bucket */
    struct entry *newer; /* finished ones in order of finishing */
};

struct duplicates {
    struct duplicates_limits limits;
    struct entry **buckets;
    size_t bucket_count; /* a power of two */
    size_t count;
    size_t finished;
    struct entry *oldest, *newest;
};

enum { FIRST_BUCKETS = 1024 };

struct duplicates *duplicates_create(struct duplicates_limits limits)
{
    struct duplicates *d = calloc(1, sizeof *d);

    if (!d)
        return NULL;
    d->limits = limits;
    d->bucket_count = FIRST_BUCKETS;
    d->buckets = calloc(d->bucket_count, sizeof *d->buckets);
    if (!d->buckets) {
        free(d);
        return NULL;
    }
    return d;
}

void duplicates_destroy(struct duplicates *d)
{
    if (!d)
        return;
    for (size_t i = 0; i < d->bucket_count; i++)
        while (d->buckets[i]) {
            struct entry *next = d->buckets[i]->chain;

            free(d->buckets[i]);
            d->buckets[i] = next;
        }
    free(d->buckets);
    free(d);
}

static size_t bucket_of(const struct duplicates *d, const uint8_t id[16])
{
    return (size_t)job_id_hash(id) & (d->bucket_count - 1);
}

static struct entry *find(const struct duplicates *d, const uint8_t id[16])
{
    struct entry *e = d->buckets[bucket_of(d, id)];

    while (e && memcmp(e->id, id, 16) != 0)
        e = e->chain;
    return e;
}

/* Doubles the table; keeping the old one on failure only costs speed. */
static void grow(struct duplicates *d)
{
    size_t old_count = d->bucket_count;
    struct entry **old = d->buckets;
    struct entry **buckets = calloc(old_count * 2, sizeof *buckets);

    if (!buckets)
        return;
    d->buckets = buckets;
    d->bucket_count = old_count * 2;
    for (size_t i = 0; i < old_count; i++)
        while (old[i]) {
            struct entry *e = old[i];
            size_t b = bucket_of(d, e->id);

            old[i] = e->chain;
            e->chain = buckets[b];
            buckets[b] = e;
        }
    free(old);
}

static struct entry *add(struct duplicates *d, const uint8_t id[16], int64_t offset)
{
    struct entry *e = calloc(1, sizeof *e);
    size_t b;

    if (!e)
        return NULL;
    if (d->count >= d->bucket_count)
        grow(d);
    memcpy(e->id, id, 16);
    e->offset = offset;
    b = bucket_of(d, id);
    e->chain = d->buckets[b];
    d->buckets[b] = e;
    d->count++;
    return e;
}

static void remove_oldest(struct duplicates *d)
{
    struct entry *e = d->oldest;
    struct entry **link = &d->buckets[bucket_of(d, e->id)];

    while (*link != e)
        link = &(*link)->chain;
    *link = e->chain;
    d->oldest = e->newer;
    if (!d->oldest)
        d->newest = NULL;
    d->finished--;
    d->count--;
    free(e);
}

static void expire(struct duplicates *d, int64_t now_us)
{
    while (d->oldest && (d->finished > d->limits.max_jobs ||
                         (d->finished > d->limits.min_jobs &&
                          d->oldest->finished_us < now_us - d->limits.window_us)))
        remove_oldest(d);
}

int duplicates_begin(struct duplicates *d, const uint8_t id[16], int64_t offset)
{
    struct entry *e = find(d, id);

    if (e)
        return e->offset == offset;
    return add(d, id, offset) ? 1 : -1;
}

void duplicates_finish(struct duplicates *d, const uint8_t id[16], int64_t offset, int64_t now_us)
{
    struct entry *e = find(d, id);

    if (!e)
        e = add(d, id,
                offset); /* rebuilt from the index; without memory only a retry slips through */
    if (!e || e->finished_us)
        return;
    e->offset = offset;
    e->finished_us = now_us ? now_us : 1;
    if (d->newest)
        d->newest->newer = e;
    else
        d->oldest = e;
    d->newest = e;
    d->finished++;
    expire(d, now_us);
}

size_t duplicates_count(const struct duplicates *d)
{
    return d->count;
}
