/* SPDX-License-Identifier: MIT */
#include "producer/id_map.h"

#include <stdlib.h>
#include <string.h>

enum { SLOTS_FIRST = 64 };

struct slot {
    uint8_t id[16];
    void *value; /* NULL = free */
};

/* Open addressing with linear probing, at most half full, without tombstones. */
struct id_map {
    struct slot *slots;
    size_t slot_count; /* a power of two */
    size_t count, max;
};

struct id_map *id_map_create(size_t max)
{
    struct id_map *map = calloc(1, sizeof *map);

    if (!map)
        return NULL;
    map->max = max;
    map->slot_count = SLOTS_FIRST;
    map->slots = calloc(map->slot_count, sizeof *map->slots);
    if (!map->slots) {
        free(map);
        return NULL;
    }
    return map;
}

void id_map_destroy(struct id_map *map)
{
    if (!map)
        return;
    free(map->slots);
    free(map);
}

static size_t home_of(const struct id_map *map, const uint8_t id[16])
{
    uint64_t a, b;

    memcpy(&a, id, 8);
    memcpy(&b, id + 8, 8);
    a = (a ^ (b << 31 | b >> 33)) * 0x9E3779B97F4A7C15u;
    return (size_t)(a ^ a >> 32) & (map->slot_count - 1);
}

/* The slot that holds the id, or the free one where it belongs. */
static size_t slot_of(const struct id_map *map, const uint8_t id[16])
{
    size_t i = home_of(map, id);

    while (map->slots[i].value && memcmp(map->slots[i].id, id, 16) != 0)
        i = (i + 1) & (map->slot_count - 1);
    return i;
}

static int grow(struct id_map *map)
{
    struct id_map bigger = {.slot_count = map->slot_count * 2};

    bigger.slots = calloc(bigger.slot_count, sizeof *bigger.slots);
    if (!bigger.slots)
        return -1;
    for (size_t i = 0; i < map->slot_count; i++)
        if (map->slots[i].value)
            bigger.slots[slot_of(&bigger, map->slots[i].id)] = map->slots[i];
    free(map->slots);
    map->slots = bigger.slots;
    map->slot_count = bigger.slot_count;
    return 0;
}

enum id_map_status id_map_put(struct id_map *map, const uint8_t id[16], void *value)
{
    size_t i = slot_of(map, id);

    if (map->slots[i].value)
        return ID_MAP_TAKEN;
    if (map->count == map->max)
        return ID_MAP_FULL;
    if (map->count * 2 >= map->slot_count) {
        if (grow(map))
            return ID_MAP_NO_MEMORY;
        i = slot_of(map, id);
    }
    memcpy(map->slots[i].id, id, 16);
    map->slots[i].value = value;
    map->count++;
    return ID_MAP_OK;
}

void *id_map_get(const struct id_map *map, const uint8_t id[16])
{
    return map->slots[slot_of(map, id)].value;
}

void *id_map_remove(struct id_map *map, const uint8_t id[16])
{
    size_t mask = map->slot_count - 1, hole = slot_of(map, id), i = hole;
    void *value = map->slots[hole].value;

    if (!value)
        return NULL;
    /* Entries behind the hole move up, so that no chain has a gap. */
    for (;;) {
        i = (i + 1) & mask;
        if (!map->slots[i].value)
            break;
        if (((i - home_of(map, map->slots[i].id)) & mask) >= ((i - hole) & mask)) {
            map->slots[hole] = map->slots[i];
            hole = i;
        }
    }
    map->slots[hole].value = NULL;
    map->count--;
    return value;
}

size_t id_map_count(const struct id_map *map)
{
    return map->count;
}

void *id_map_at(const struct id_map *map, size_t *at)
{
    while (*at < map->slot_count) {
        void *value = map->slots[(*at)++].value;

        if (value)
            return value;
    }
    return NULL;
}
