/* SPDX-License-Identifier: MIT
 *
 * arena: memory by lifetime. Allocations are never freed one by one; arena_reset() or
 * arena_destroy() frees them all. An arena has a declared maximum, so nothing that lives in one can
 * grow without bound. One owner at a time, no lock: the owner of a job owns its arena.
 */
#ifndef PGPT_KERNELS_BASE_ARENA_H
#define PGPT_KERNELS_BASE_ARENA_H

#include <stdbool.h>
#include <stddef.h>

#include "kernels/base/error.h"

#ifdef __cplusplus
extern "C" {
#endif

struct arena; /* opaque */

/* A byte string. data[size] is always a NUL that is not counted; data may hold other NULs. */
struct text {
    const char *data;
    size_t size;
};

struct text_pair {
    struct text key;
    struct text value;
};

/* max_bytes bounds the sum of all blocks; first_block is a hint. NULL when memory is out. */
struct arena *arena_create(size_t first_block, size_t max_bytes) PGPT_MUST_CHECK;
void arena_destroy(struct arena *arena); /* NULL is allowed */
void arena_reset(struct arena *arena);   /* keeps the first block */

/* 16-byte aligned, not cleared; NULL past the maximum or when memory is out. size 0 is allowed. */
void *arena_alloc(struct arena *arena, size_t size) PGPT_MUST_CHECK;
/* count * size with overflow check, cleared to zero. */
void *arena_calloc(struct arena *arena, size_t count, size_t size) PGPT_MUST_CHECK;
/* Copies and terminates; data == NULL on failure. */
struct text arena_text(struct arena *arena, const void *data, size_t size) PGPT_MUST_CHECK;
size_t arena_used(const struct arena *arena); /* bytes given out */
size_t arena_held(const struct arena *arena); /* bytes of all blocks */
/* More may be needed than was known when it was made: the maximum becomes what is held + bytes. */
void arena_allow(struct arena *arena, size_t bytes);
/* True when an allocation failed because of the maximum; false when memory itself was out. */
bool arena_is_full(const struct arena *arena);

#ifdef __cplusplus
}
#endif
#endif
