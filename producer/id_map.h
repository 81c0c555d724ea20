/* SPDX-License-Identifier: MIT
 *
 * id_map: from a job's UUID (16 bytes) to a pointer, within a declared number of entries. Owns
 * nothing that it points to. No lock.
 */
#ifndef PGPT_PRODUCER_ID_MAP_H
#define PGPT_PRODUCER_ID_MAP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "kernels/base/error.h"

struct id_map; /* opaque */

struct id_map *id_map_create(size_t max) PGPT_MUST_CHECK; /* NULL = no memory */
void id_map_destroy(struct id_map *map);                  /* NULL is allowed */

enum id_map_status { ID_MAP_OK, ID_MAP_TAKEN, ID_MAP_FULL, ID_MAP_NO_MEMORY };
enum id_map_status id_map_put(struct id_map *map, const uint8_t id[16],
                              void *value) PGPT_MUST_CHECK;
void *id_map_get(const struct id_map *map, const uint8_t id[16]); /* NULL = not there */
void *id_map_remove(struct id_map *map, const uint8_t id[16]);    /* NULL = was not there */
size_t id_map_count(const struct id_map *map);

/* Entry number `at` of an arbitrary order, NULL past the last; the map must not change meanwhile.
 */
void *id_map_at(const struct id_map *map, size_t *at);

#endif
