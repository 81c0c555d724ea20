/* SPDX-License-Identifier: MIT */
#include "worker/step_ring.h"

#include <stdlib.h>
#include <string.h>

#include "worker/condition.h"

enum { RING_BATCHES = 8 };

struct step_ring {
    pthread_mutex_t lock;
    pthread_cond_t sent, done;
    struct step_batch batches[RING_BATCHES];
    uint64_t sent_count, done_count; /* under the lock; sent - done <= RING_BATCHES */
    struct step_stop *stops;         /* (stop_count) under the lock */
    size_t stop_count, stop_room;
    bool closed;
};

/* ---- batches ---- */

/* Room for `more` elements behind `count`; the old array on failure. */
static void *room_for(void *array, size_t element, size_t count, size_t more, size_t *room)
{
    size_t wanted = *room ? *room : 64;
    void *grown;

    if (count + more <= *room)
        return array;
    while (wanted < count + more)
        wanted *= 2;
    grown = realloc(array, wanted * element);
    if (!grown)
        return array;
    *room = wanted;
    return grown;
}

int step_batch_admit(struct step_batch *b, struct running *running)
{
    b->admitted =
        room_for(b->admitted, sizeof *b->admitted, b->admitted_count, 1, &b->admitted_room);
    if (b->admitted_count == b->admitted_room)
        return -1;
    b->admitted[b->admitted_count++] = running;
    return 0;
}

int step_batch_add(struct step_batch *b, struct running *running, const struct engine_item *item)
{
    size_t tokens = (size_t)item->token_count;
    size_t logprobs = item->logprobs ? tokens + item->ended_with_eos : 0;

    b->items = room_for(b->items, sizeof *b->items, b->item_count, 1, &b->item_room);
    b->tokens = room_for(b->tokens, sizeof *b->tokens, b->token_count, tokens, &b->token_room);
    b->logprobs =
        room_for(b->logprobs, sizeof *b->logprobs, b->logprob_count, logprobs, &b->logprob_room);
    if (b->item_count == b->item_room || b->token_count + tokens > b->token_room ||
        b->logprob_count + logprobs > b->logprob_room)
        return -1;
    b->items[b->item_count++] =
        (struct step_item){running, *item, b->token_count, b->logprob_count};
    if (tokens)
        memcpy(b->tokens + b->token_count, item->tokens, tokens * sizeof *b->tokens);
    if (logprobs)
        memcpy(b->logprobs + b->logprob_count, item->logprobs, logprobs * sizeof *b->logprobs);
    b->token_count += tokens;
    b->logprob_count += logprobs;
    return 0;
}

int step_batch_end(struct step_batch *b, struct running *running, enum running_end end)
{
    b->ends = room_for(b->ends, sizeof *b->ends, b->end_count, 1, &b->end_room);
    if (b->end_count == b->end_room)
        return -1;
    b->ends[b->end_count++] = (struct step_end){running, end};
    return 0;
}

/* The arrays do not move any more: items may point into them. */
static void pointers_set(struct step_batch *b)
{
    for (size_t i = 0; i < b->item_count; i++) {
        struct step_item *item = &b->items[i];

        item->item.tokens = b->tokens + item->token_at;
        if (item->item.logprobs)
            item->item.logprobs = b->logprobs + item->logprob_at;
    }
}

/* ---- the ring ---- */

struct step_ring *step_ring_create(int32_t max_rows)
{
    struct step_ring *ring = calloc(1, sizeof *ring);

    if (!ring)
        return NULL;
    /* All rows of all batches on their way, once stopped and once with their job. */
    ring->stop_room = (size_t)max_rows * 2 * (RING_BATCHES + 1);
    ring->stops = malloc(ring->stop_room * sizeof *ring->stops);
    if (!ring->stops) {
        free(ring);
        return NULL;
    }
    pthread_mutex_init(&ring->lock, NULL);
    condition_init(&ring->sent);
    condition_init(&ring->done);
    return ring;
}

void step_ring_destroy(struct step_ring *ring)
{
    if (!ring)
        return;
    for (int i = 0; i < RING_BATCHES; i++) {
        struct step_batch *b = &ring->batches[i];

        free(b->admitted);
        free(b->items);
        free(b->ends);
        free(b->tokens);
        free(b->logprobs);
    }
    pthread_cond_destroy(&ring->sent);
    pthread_cond_destroy(&ring->done);
    pthread_mutex_destroy(&ring->lock);
    free(ring->stops);
    free(ring);
}

struct step_batch *step_ring_open(struct step_ring *ring)
{
    struct step_batch *batch = NULL;

    pthread_mutex_lock(&ring->lock);
    while (!ring->closed && ring->sent_count - ring->done_count == RING_BATCHES)
        pthread_cond_wait(&ring->done, &ring->lock);
    if (!ring->closed)
        batch = &ring->batches[ring->sent_count % RING_BATCHES];
    pthread_mutex_unlock(&ring->lock);
    if (!batch)
        return NULL;
    batch->admitted_count = batch->item_count = batch->end_count = 0;
    batch->token_count = batch->logprob_count = 0;
    return batch;
}

void step_ring_send(struct step_ring *ring)
{
    pthread_mutex_lock(&ring->lock);
    pointers_set(&ring->batches[ring->sent_count % RING_BATCHES]);
    if (ring->sent_count++ == ring->done_count)
        pthread_cond_signal(&ring->sent);
    pthread_mutex_unlock(&ring->lock);
}

struct step_batch *step_ring_receive(struct step_ring *ring, int64_t wait_us)
{
    struct timespec until = condition_end(wait_us);
    struct step_batch *batch = NULL;

    pthread_mutex_lock(&ring->lock);
    while (ring->sent_count == ring->done_count && !ring->closed)
        if (pthread_cond_timedwait(&ring->sent, &ring->lock, &until))
            break;
    if (ring->sent_count != ring->done_count)
        batch = &ring->batches[ring->done_count % RING_BATCHES];
    pthread_mutex_unlock(&ring->lock);
    return batch;
}

void step_ring_done(struct step_ring *ring)
{
    pthread_mutex_lock(&ring->lock);
    if (ring->sent_count - ring->done_count++ == RING_BATCHES)
        pthread_cond_signal(&ring->done);
    pthread_mutex_unlock(&ring->lock);
}

void step_ring_stop(struct step_ring *ring, struct step_stop stop)
{
    pthread_mutex_lock(&ring->lock);
    if (ring->stop_count < ring->stop_room)
        ring->stops[ring->stop_count++] = stop;
    pthread_mutex_unlock(&ring->lock);
}

size_t step_ring_stops(struct step_ring *ring, struct step_stop *stops, size_t max)
{
    size_t count;

    pthread_mutex_lock(&ring->lock);
    count = ring->stop_count < max ? ring->stop_count : max;
    ring->stop_count -= count;
    memcpy(stops, ring->stops + ring->stop_count, count * sizeof *stops);
    pthread_mutex_unlock(&ring->lock);
    return count;
}

void step_ring_close(struct step_ring *ring)
{
    pthread_mutex_lock(&ring->lock);
    ring->closed = true;
    pthread_cond_broadcast(&ring->sent);
    pthread_cond_broadcast(&ring->done);
    pthread_mutex_unlock(&ring->lock);
}

bool step_ring_closed(struct step_ring *ring)
{
    bool closed;

    pthread_mutex_lock(&ring->lock);
    closed = ring->closed;
    pthread_mutex_unlock(&ring->lock);
    return closed;
}
