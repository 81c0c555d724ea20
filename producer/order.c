/* SPDX-License-Identifier: MIT */
#include "producer/order.h"

#include <stdlib.h>

int order_init(struct order *order, size_t capacity)
{
    *order = (struct order){.slots = calloc(capacity, sizeof *order->slots), .capacity = capacity};
    return order->slots ? 0 : -1;
}

void order_free(struct order *order)
{
    free(order->slots);
    order->slots = NULL;
}

struct order_slot *order_add(struct order *order, void *item)
{
    struct order_slot *slot;

    if (order->count == order->capacity)
        return NULL;
    slot = &order->slots[(order->first + order->count++) % order->capacity];
    *slot = (struct order_slot){false, item};
    return slot;
}

void *order_take(struct order *order)
{
    struct order_slot *slot = &order->slots[order->first];

    if (!order->count || !slot->finished)
        return NULL;
    order->first = (order->first + 1) % order->capacity;
    order->count--;
    return slot->item;
}

void *order_peek(const struct order *order, size_t i)
{
    return i < order->count ? order->slots[(order->first + i) % order->capacity].item : NULL;
}
