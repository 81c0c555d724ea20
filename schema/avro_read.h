/* SPDX-License-Identifier: MIT
 *
 * avro_read: fills a C struct from Avro binary that was written with the product's own schema,
 * along its binding, as schema/avro_write.h writes it. Straight from the bytes: Avro C's generic
 * values, filled and then taken apart, took a third of the time of the thread that takes requests
 * in. Other writers' schemas are read by Avro C (schema/avro_value.h). Works on what one thread
 * owns.
 */
#ifndef PGPT_SCHEMA_AVRO_READ_H
#define PGPT_SCHEMA_AVRO_READ_H

#include <stdint.h>

#include "schema/binding.h"

/* body: one record of the binding's own schema, which skim_check() found plain: no length is looked
 * at again here. The record, or the failure and its words, that Avro C's way comes to. CODEC_OK,
 * BAD_PAYLOAD (text that is not UTF-8, a NUL in a literal) or NO_MEMORY. */
enum codec_status avro_read_struct(const uint8_t *body, const struct record_binding *binding,
                                   struct arena *arena, void *record,
                                   struct error *error) PGPT_MUST_CHECK;

#endif
