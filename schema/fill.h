/* SPDX-License-Identifier: MIT
 *
 * fill: what both readers of records do with a field once they have it: defaults, flags, texts that
 * are checked and copied into the arena. Works on what one thread owns.
 */
#ifndef PGPT_SCHEMA_FILL_H
#define PGPT_SCHEMA_FILL_H

#include "schema/binding.h"

/* A record on its way into a struct. */
struct fill {
    struct arena *arena;
    struct error *error;
    enum codec_status status; /* of the failure that error tells of */
};

/* What a record holds where the writer gives nothing: the wire's defaults, zero, empty texts. */
void fill_defaults(const struct record_binding *binding, void *record);
/* The field, of the record at base, has a value: sets its flag if its kind has one. */
void fill_flag(const struct field_binding *field, char *base);

/* These return -1 and set status and error. Text must be UTF-8; a literal has no NUL in it. */
int fill_no_memory(struct fill *fill);
int fill_text(struct fill *fill, const char *field, const void *data, size_t size,
              struct text *out) PGPT_MUST_CHECK;
int fill_literal(struct fill *fill, const char *field, struct text text,
                 const char **out) PGPT_MUST_CHECK;

#endif
