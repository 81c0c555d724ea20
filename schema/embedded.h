/* SPDX-License-Identifier: MIT
 *
 * embedded: the texts of schema/<Record>.avsc, compiled in by the build. Constant data.
 */
#ifndef PGPT_SCHEMA_EMBEDDED_H
#define PGPT_SCHEMA_EMBEDDED_H

#include "schema/codec.h"

extern const char *const embedded_schemas[RECORD_TYPE_COUNT]; /* NUL-terminated JSON */

#endif
