/* SPDX-License-Identifier: MIT
 *
 * avro_value: fills C structs from Avro C's generic values along a binding. Fields are mapped by
 * name, and missing ones get the wire's defaults, which Avro C's own resolution cannot. Works on
 * values of one thread.
 */
#ifndef PGPT_SCHEMA_AVRO_VALUE_H
#define PGPT_SCHEMA_AVRO_VALUE_H

#include <avro.h>

#include "schema/binding.h"

/* Fills *record from a value of any writer's schema. CODEC_OK, BAD_PAYLOAD or NO_MEMORY. */
enum codec_status avro_value_to_struct(const avro_value_t *value,
                                       const struct record_binding *binding, struct arena *arena,
                                       void *record, struct error *error) PGPT_MUST_CHECK;

#endif
