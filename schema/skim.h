/* SPDX-License-Identifier: MIT
 *
 * skim: walks an Avro payload along its writer's schema and checks every length and count against
 * the bytes that are left and against hard caps, before Avro C sees a byte. After a clean skim Avro
 * C cannot fail, allocate more than the payload's size or loop without reading. A schema is
 * immutable once compiled; any thread may skim with it.
 */
#ifndef PGPT_SCHEMA_SKIM_H
#define PGPT_SCHEMA_SKIM_H

#include <stddef.h>
#include <stdint.h>

#include "kernels/base/error.h"

enum {
    SKIM_DEPTH_MAX = 32,          /* nested records, arrays, maps, unions */
    SKIM_EMPTY_ITEMS_MAX = 65536, /* items of no bytes (null) in one payload */
    SKIM_PAYLOAD_MAX = 16 << 20
};

struct skim_schema; /* opaque */

struct skim_schema *skim_compile(const char *json, size_t size,
                                 struct error *error) PGPT_MUST_CHECK;
void skim_free(struct skim_schema *schema); /* NULL is allowed */

/* 0 when the payload is one value of the schema and nothing else. The error says where and what. */
int skim_check(const struct skim_schema *schema, const void *data, size_t size,
               struct error *error) PGPT_MUST_CHECK;

#endif
