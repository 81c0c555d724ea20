/* SPDX-License-Identifier: MIT
 *
 * pg_binary: values in PostgreSQL's binary format, for array parameters and COPY. A buffer grows as
 * needed and remembers that memory ran out, so that callers check once at the end. One owner.
 */
#ifndef PGPT_WORKER_PG_BINARY_H
#define PGPT_WORKER_PG_BINARY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "kernels/base/arena.h"

enum pg_type {
    PG_BOOL = 16,
    PG_INT8 = 20,
    PG_INT2 = 21,
    PG_INT4 = 23,
    PG_TEXT = 25,
    PG_FLOAT8 = 701,
    PG_TIMESTAMPTZ = 1184,
    PG_UUID = 2950
};

struct pg_buffer {
    char *data;
    size_t size, capacity;
    bool failed; /* memory ran out; what follows is ignored */
};

void pg_buffer_free(struct pg_buffer *buffer);
void pg_buffer_reset(struct pg_buffer *buffer); /* keeps the memory */

/* Without a length, for headers. */
void pg_put_raw(struct pg_buffer *buffer, const void *data, size_t size);
void pg_put_raw16(struct pg_buffer *buffer, int16_t value);
void pg_put_raw32(struct pg_buffer *buffer, int32_t value);

/* A one-dimensional array of `count` elements; the elements follow. */
void pg_put_array(struct pg_buffer *buffer, enum pg_type type, size_t count);

/* Elements and fields: a length and the value. */
void pg_put_null(struct pg_buffer *buffer);
void pg_put_bool(struct pg_buffer *buffer, bool value);
void pg_put_int2(struct pg_buffer *buffer, int16_t value);
void pg_put_int4(struct pg_buffer *buffer, int32_t value);
void pg_put_int8(struct pg_buffer *buffer, int64_t value);
void pg_put_float8(struct pg_buffer *buffer, double value);
void pg_put_text(struct pg_buffer *buffer, struct text text);
void pg_put_literal(struct pg_buffer *buffer, const char *text);
void pg_put_uuid(struct pg_buffer *buffer, const uint8_t id[16]);
void pg_put_time(struct pg_buffer *buffer, int64_t unix_us); /* timestamptz */

#endif
