/* SPDX-License-Identifier: MIT */
#include "kernels/base/arena.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { ARENA_ALIGN = 16 };

struct arena_block {
    struct arena_block *next;
    size_t size; /* payload bytes */
    size_t used;
    _Alignas(ARENA_ALIGN) unsigned char payload[];
};

/* In one piece with its first block, which stands behind it. */
struct arena {
    _Alignas(ARENA_ALIGN) struct arena_block *first; /* kept by reset */
    struct arena_block *last;                        /* newest, allocations come from it */
    size_t total;                                    /* payload bytes of all blocks */
    size_t max;
    bool full; /* an allocation met the maximum */
};

static void block_init(struct arena_block *block, size_t size)
{
    block->next = NULL;
    block->size = size;
    block->used = 0;
}

struct arena *arena_create(size_t first_block, size_t max_bytes)
{
    size_t size = first_block < max_bytes ? first_block : max_bytes;
    struct arena *arena =
        size < SIZE_MAX / 2 ? malloc(sizeof *arena + sizeof *arena->first + size) : NULL;

    if (!arena)
        return NULL;
    arena->first = arena->last = (struct arena_block *)(arena + 1);
    block_init(arena->first, size);
    arena->total = size;
    arena->max = max_bytes;
    arena->full = false;
    return arena;
}

static void blocks_free(struct arena_block *block)
{
    while (block) {
        struct arena_block *next = block->next;

        free(block);
        block = next;
    }
}

void arena_destroy(struct arena *arena)
{
    if (!arena)
        return;
    blocks_free(arena->first->next);
    free(arena);
}

void arena_reset(struct arena *arena)
{
    blocks_free(arena->first->next);
    arena->first->next = NULL;
    arena->first->used = 0;
    arena->last = arena->first;
    arena->total = arena->first->size;
    arena->full = false;
}

/* Doubles the last block's size, within the maximum. */
static int arena_grow(struct arena *arena, size_t need)
{
    size_t size = arena->last->size * 2;
    size_t left = arena->max - arena->total;
    struct arena_block *block;

    if (need > left) {
        arena->full = true;
        return -1;
    }
    if (size < need)
        size = need;
    if (size > left)
        size = left;
    block = malloc(sizeof *block + size);
    if (!block)
        return -1;
    block_init(block, size);
    arena->last->next = block;
    arena->last = block;
    arena->total += size;
    return 0;
}

void *arena_alloc(struct arena *arena, size_t size)
{
    struct arena_block *block = arena->last;
    size_t rounded = (size + ARENA_ALIGN - 1) & ~(size_t)(ARENA_ALIGN - 1);
    void *p;

    if (rounded < size)
        return NULL;
    if (rounded > block->size - block->used) {
        if (arena_grow(arena, rounded))
            return NULL;
        block = arena->last;
    }
    p = block->payload + block->used;
    block->used += rounded;
    return p;
}

void *arena_calloc(struct arena *arena, size_t count, size_t size)
{
    void *p;

    if (size && count > SIZE_MAX / size)
        return NULL;
    p = arena_alloc(arena, count * size);
    if (p)
        memset(p, 0, count * size);
    return p;
}

struct text arena_text(struct arena *arena, const void *data, size_t size)
{
    struct text text = {NULL, 0};
    char *copy;

    if (size == SIZE_MAX)
        return text;
    copy = arena_alloc(arena, size + 1);
    if (!copy)
        return text;
    if (size)
        memcpy(copy, data, size);
    copy[size] = '\0';
    text.data = copy;
    text.size = size;
    return text;
}

size_t arena_used(const struct arena *arena)
{
    size_t used = 0;

    for (const struct arena_block *b = arena->first; b; b = b->next)
        used += b->used;
    return used;
}

size_t arena_held(const struct arena *arena)
{
    return arena->total;
}

void arena_allow(struct arena *arena, size_t bytes)
{
    size_t max = bytes < SIZE_MAX - arena->total ? arena->total + bytes : SIZE_MAX;

    if (max > arena->max)
        arena->max = max;
}

bool arena_is_full(const struct arena *arena)
{
    return arena->full;
}
