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

/* A table that grows keeps the old one until its entries have moved, a few at a time: all at once
 * are a fifth of a second for half a million, under the assignment's lock. */
struct duplicates {
    struct duplicates_limits limits;
    struct entry **buckets;
    size_t bucket_count; /* a power of two */
    struct entry **old;  /* half as many buckets, or NULL; those below `moved` are empty */
    size_t moved;
    size_t count;
    size_t finished;
    struct entry *oldest, *newest;
};

enum {
    FIRST_BUCKETS = 1024,
    MOVED_AT_ONCE = 2, /* buckets of the old table an addition; done when half of the new is used */
    EXPIRED_AT_ONCE = 64 /* ids, at most, when one is finished; more may be left by silence */
};

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

static void buckets_free(struct entry **buckets, size_t count)
{
    for (size_t i = 0; i < count; i++)
        while (buckets[i]) {
            struct entry *next = buckets[i]->chain;

            free(buckets[i]);
            buckets[i] = next;
        }
    free(buckets);
}

void duplicates_destroy(struct duplicates *d)
{
    if (!d)
        return;
    if (d->old)
        buckets_free(d->old, d->bucket_count / 2);
    buckets_free(d->buckets, d->bucket_count);
    free(d);
}

/* Where an id is, or would be. */
static struct entry **bucket_of(const struct duplicates *d, const uint8_t id[16])
{
    size_t hash = (size_t)job_id_hash(id), old = hash & (d->bucket_count / 2 - 1);

    return d->old && old >= d->moved ? &d->old[old] : &d->buckets[hash & (d->bucket_count - 1)];
}

static struct entry *find(const struct duplicates *d, const uint8_t id[16])
{
    struct entry *e = *bucket_of(d, id);

    while (e && memcmp(e->id, id, 16) != 0)
        e = e->chain;
    return e;
}

static void put(struct duplicates *d, struct entry *e)
{
    struct entry **bucket = bucket_of(d, e->id);

    e->chain = *bucket;
    *bucket = e;
}

/* Begins to double the table; keeping the old one on failure only costs speed. */
static void grow(struct duplicates *d)
{
    struct entry **buckets = calloc(d->bucket_count * 2, sizeof *buckets);

    if (!buckets)
        return;
    d->old = d->buckets;
    d->moved = 0;
    d->buckets = buckets;
    d->bucket_count *= 2;
}

static void move_some(struct duplicates *d)
{
    for (int n = 0; n < MOVED_AT_ONCE && d->moved < d->bucket_count / 2; n++) {
        struct entry *e = d->old[d->moved], *next;

        d->old[d->moved++] = NULL;
        for (; e; e = next) {
            next = e->chain;
            put(d, e);
        }
    }
    if (d->moved == d->bucket_count / 2) {
        free(d->old);
        d->old = NULL;
    }
}

static struct entry *add(struct duplicates *d, const uint8_t id[16], int64_t offset)
{
    struct entry *e = calloc(1, sizeof *e);

    if (!e)
        return NULL;
    if (d->old)
        move_some(d);
    else if (d->count >= d->bucket_count)
        grow(d);
    memcpy(e->id, id, 16);
    e->offset = offset;
    put(d, e);
    d->count++;
    return e;
}

static void remove_oldest(struct duplicates *d)
{
    struct entry *e = d->oldest;
    struct entry **link = bucket_of(d, e->id);

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

static bool is_over(const struct duplicates *d, int64_t now_us)
{
    return d->oldest && (d->finished > d->limits.max_jobs ||
                         (d->finished > d->limits.min_jobs &&
                          d->oldest->finished_us < now_us - d->limits.window_us));
}

static void expire(struct duplicates *d, int64_t now_us)
{
    for (int n = 0; n < EXPIRED_AT_ONCE && is_over(d, now_us); n++)
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
