/* SPDX-License-Identifier: MIT
 *
 * order: a window of jobs that finish in any order and leave in the order they came. Bounded: a
 * full window takes nothing in until its first job is finished and taken out. One thread at a time.
 */
#ifndef PGPT_PRODUCER_ORDER_H
#define PGPT_PRODUCER_ORDER_H

#include <stdbool.h>
#include <stddef.h>

#include "kernels/base/error.h"

struct order_slot {
    bool finished;
    void *item; /* the caller's */
};

struct order {
    struct order_slot *slots; /* (capacity), a ring */
    size_t capacity, first, count;
};

int order_init(struct order *order, size_t capacity) PGPT_MUST_CHECK; /* -1 = no memory */
void order_free(struct order *order);                                 /* not the items */

/* The new last slot, NULL when the window is full. It stays where it is until it is taken. */
struct order_slot *order_add(struct order *order, void *item);
/* The first item when it is finished, else NULL; then it has left the window. */
void *order_take(struct order *order);
/* Item number i from the first, finished or not; NULL past the last. */
void *order_peek(const struct order *order, size_t i);

#endif
