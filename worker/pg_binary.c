/* SPDX-License-Identifier: MIT */
#include "worker/pg_binary.h"

#include <endian.h>
#include <stdlib.h>
#include <string.h>

/* PostgreSQL counts from 2000-01-01. */
static const int64_t epoch_us = 946684800000000;

void pg_buffer_free(struct pg_buffer *b)
{
    free(b->data);
    memset(b, 0, sizeof *b);
}

void pg_buffer_reset(struct pg_buffer *b)
{
    b->size = 0;
    b->failed = false;
}

void pg_put_raw(struct pg_buffer *b, const void *data, size_t size)
{
    if (b->failed)
        return;
    if (b->capacity - b->size < size) {
        size_t capacity = b->capacity ? b->capacity : 4096;
        char *grown;

        while (capacity - b->size < size)
            capacity *= 2;
        grown = realloc(b->data, capacity);
        if (!grown) {
            b->failed = true;
            return;
        }
        b->data = grown;
        b->capacity = capacity;
    }
    memcpy(b->data + b->size, data, size);
    b->size += size;
}

void pg_put_raw16(struct pg_buffer *b, int16_t value)
{
    uint16_t big = htobe16((uint16_t)value);

    pg_put_raw(b, &big, sizeof big);
}

void pg_put_raw32(struct pg_buffer *b, int32_t value)
{
    uint32_t big = htobe32((uint32_t)value);

    pg_put_raw(b, &big, sizeof big);
}

static void put_raw64(struct pg_buffer *b, uint64_t value)
{
    uint64_t big = htobe64(value);

    pg_put_raw(b, &big, sizeof big);
}

void pg_put_array(struct pg_buffer *b, enum pg_type type, size_t count)
{
    pg_put_raw32(b, count ? 1 : 0); /* dimensions */
    pg_put_raw32(b, 1);             /* may hold nulls */
    pg_put_raw32(b, (int32_t)type);
    if (count) {
        pg_put_raw32(b, (int32_t)count);
        pg_put_raw32(b, 1); /* first index */
    }
}

void pg_put_null(struct pg_buffer *b)
{
    pg_put_raw32(b, -1);
}

void pg_put_bool(struct pg_buffer *b, bool value)
{
    char byte = value;

    pg_put_raw32(b, 1);
    pg_put_raw(b, &byte, 1);
}

void pg_put_int2(struct pg_buffer *b, int16_t value)
{
    pg_put_raw32(b, 2);
    pg_put_raw16(b, value);
}

void pg_put_int4(struct pg_buffer *b, int32_t value)
{
    pg_put_raw32(b, 4);
    pg_put_raw32(b, value);
}

void pg_put_int8(struct pg_buffer *b, int64_t value)
{
    pg_put_raw32(b, 8);
    put_raw64(b, (uint64_t)value);
}

void pg_put_float8(struct pg_buffer *b, double value)
{
    uint64_t bits;

    memcpy(&bits, &value, sizeof bits);
    pg_put_raw32(b, 8);
    put_raw64(b, bits);
}

void pg_put_text(struct pg_buffer *b, struct text text)
{
    pg_put_raw32(b, (int32_t)text.size);
    pg_put_raw(b, text.data, text.size);
}

void pg_put_literal(struct pg_buffer *b, const char *text)
{
    pg_put_text(b, (struct text){text, strlen(text)});
}

void pg_put_uuid(struct pg_buffer *b, const uint8_t id[16])
{
    pg_put_raw32(b, 16);
    pg_put_raw(b, id, 16);
}

void pg_put_time(struct pg_buffer *b, int64_t unix_us)
{
    pg_put_int8(b, unix_us - epoch_us);
}
