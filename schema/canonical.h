/* SPDX-License-Identifier: MIT
 *
 * canonical: Parsing Canonical Form and CRC-64-AVRO of a schema, as the Avro specification defines
 * them ("Parsing Canonical Form for Schemas", "Schema Fingerprints"). Avro C has neither. Pure
 * functions; any thread.
 */
#ifndef PGPT_SCHEMA_CANONICAL_H
#define PGPT_SCHEMA_CANONICAL_H

#include <stddef.h>
#include <stdint.h>

#include "kernels/base/error.h"

/* The canonical form of the schema's JSON text as a malloc'ed string; NULL with the reason. */
char *canonical_form(const char *json, size_t size, struct error *error) PGPT_MUST_CHECK;
uint64_t canonical_crc64(const void *data, size_t size);

#endif
