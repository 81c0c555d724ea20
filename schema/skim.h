/* SPDX-License-Identifier: MIT
 *
 * skim: walks an Avro payload along its writer's schema and checks every length and count against
 * the bytes that are left and against hard caps, before anything reads it. After a clean skim
 * schema/avro_read.h looks at no length again, and Avro C cannot fail but for memory; what they
 * allocate is bounded by the payload's size and SKIM_VALUES_MAX. Map keys with a NUL are refused:
 * Avro C would cut them there. A schema is immutable once compiled; any thread may skim with it.
 */
#ifndef PGPT_SCHEMA_SKIM_H
#define PGPT_SCHEMA_SKIM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "kernels/base/error.h"

enum {
    SKIM_DEPTH_MAX = 32,          /* nested records, arrays, maps, unions */
    SKIM_EMPTY_ITEMS_MAX = 65536, /* items of no bytes (null) in one payload */
    SKIM_VALUES_MAX = 2 << 20,    /* values of any kind in one payload */
    SKIM_RECORD_MAX = 4096,       /* values in one record, records inside it included */
    SKIM_PAYLOAD_MAX = 16 << 20,
    SKIM_PLAIN_PAIRS = 64 /* of a map in a plain payload */
};

struct skim_schema; /* opaque */

struct skim_schema *skim_compile(const char *json, size_t size,
                                 struct error *error) PGPT_MUST_CHECK;
void skim_free(struct skim_schema *schema); /* NULL is allowed */

/* 0 when the payload is one value of the schema and nothing else. The error says where and what.
 * *plain (or NULL): each of its lists is one block without a size in bytes, as nearly every writer
 * makes them, and no map has more than SKIM_PLAIN_PAIRS. */
int skim_check(const struct skim_schema *schema, const void *data, size_t size, bool *plain,
               struct error *error) PGPT_MUST_CHECK;

#endif
