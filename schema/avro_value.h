/* SPDX-License-Identifier: MIT
 *
 * avro_value: moves data between C structs and Avro C's generic values along a binding. Decoding
 * maps fields by name and gives missing ones the wire's defaults, which Avro C's own resolution
 * cannot. Works on values of one thread.
 */
#ifndef PGPT_SCHEMA_AVRO_VALUE_H
#define PGPT_SCHEMA_AVRO_VALUE_H

#include <avro.h>

#include "schema/binding.h"

/* Sets every field of `value`, whose schema is the product's own. */
int avro_value_from_struct(avro_value_t *value, const struct record_binding *binding,
                           const void *record, struct error *error) PGPT_MUST_CHECK;

/* Fills *record from a value of any writer's schema. CODEC_OK, BAD_PAYLOAD or NO_MEMORY. */
enum codec_status avro_value_to_struct(const avro_value_t *value,
                                       const struct record_binding *binding, struct arena *arena,
                                       void *record, struct error *error) PGPT_MUST_CHECK;

#endif
