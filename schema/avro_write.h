/* SPDX-License-Identifier: MIT
 *
 * avro_write: writes a C struct as Avro binary along its binding, whose fields stand in the order
 * of the product's own schema; unions there are all ["null", T]. Straight into the buffer: Avro C's
 * generic values, filled and then written, took a third of the time of the thread that publishes
 * results. Works on what one thread owns.
 */
#ifndef PGPT_SCHEMA_AVRO_WRITE_H
#define PGPT_SCHEMA_AVRO_WRITE_H

#include "schema/binding.h"

/* Appends the record behind buffer->size, which grows, up to size_max bytes in all. */
int avro_write_struct(struct buffer *buffer, size_t size_max, const struct record_binding *binding,
                      const void *record, struct error *error) PGPT_MUST_CHECK;

#endif
