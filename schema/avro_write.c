/* SPDX-License-Identifier: MIT
 *
 * The binary encoding: https://avro.apache.org/docs/1.11.1/specification/#binary-encoding
 */
#include "schema/avro_write.h"

#include <stdlib.h>
#include <string.h>

enum { LONG_BYTES_MAX = 10, INT_BYTES_MAX = 5 };

struct out {
    struct buffer *buffer;
    size_t size_max;
    const char *reason; /* of a failure; NULL = too large */
};

static int put_record(struct out *o, const struct record_binding *binding, const void *record);

/* Makes room for `size` more bytes. */
static int reserve(struct out *o, size_t size)
{
    struct buffer *b = o->buffer;
    uint8_t *grown;

    if (size <= b->capacity - b->size)
        return 0;
    if (size > o->size_max - b->size)
        return -1;
    grown = realloc(b->data, 2 * (b->size + size));
    if (!grown) {
        o->reason = "out of memory";
        return -1;
    }
    b->data = grown;
    b->capacity = 2 * (b->size + size);
    return 0;
}

/* Zig-zag, then seven bits a byte, the lowest first. Room was made. */
static void append_long(struct buffer *b, int64_t value)
{
    uint64_t left = ((uint64_t)value << 1) ^ (value < 0 ? UINT64_MAX : 0);

    for (; left > 127; left >>= 7)
        b->data[b->size++] = (uint8_t)(left | 128);
    b->data[b->size++] = (uint8_t)left;
}

static int put_long(struct out *o, int64_t value)
{
    if (reserve(o, LONG_BYTES_MAX))
        return -1;
    append_long(o->buffer, value);
    return 0;
}

static int put_bytes(struct out *o, const void *data, size_t size)
{
    if (reserve(o, size))
        return -1;
    if (size)
        memcpy(o->buffer->data + o->buffer->size, data, size);
    o->buffer->size += size;
    return 0;
}

/* The lowest byte first. */
static int put_bits(struct out *o, uint64_t bits, size_t size)
{
    uint8_t bytes[8];

    for (size_t i = 0; i < size; i++)
        bytes[i] = (uint8_t)(bits >> (8 * i));
    return put_bytes(o, bytes, size);
}

static int put_float(struct out *o, float value)
{
    uint32_t bits;

    memcpy(&bits, &value, sizeof bits);
    return put_bits(o, bits, sizeof bits);
}

static int put_double(struct out *o, double value)
{
    uint64_t bits;

    memcpy(&bits, &value, sizeof bits);
    return put_bits(o, bits, sizeof bits);
}

static int put_text(struct out *o, struct text text)
{
    return put_long(o, (int64_t)text.size) || put_bytes(o, text.data, text.size) ? -1 : 0;
}

static int put_literal(struct out *o, const char *text)
{
    return put_text(o, (struct text){text, strlen(text)});
}

/* Lists are one block, if they have items, and the empty one that ends them. */
static int list_begin(struct out *o, size_t count)
{
    return count ? put_long(o, (int64_t)count) : 0;
}

static int list_end(struct out *o)
{
    return put_long(o, 0);
}

static int put_ints(struct out *o, const int32_t *items, size_t count)
{
    if (list_begin(o, count) || reserve(o, count * INT_BYTES_MAX))
        return -1;
    for (size_t i = 0; i < count; i++)
        append_long(o->buffer, items[i]);
    return list_end(o);
}

static int put_texts(struct out *o, const struct text *items, size_t count)
{
    if (list_begin(o, count))
        return -1;
    for (size_t i = 0; i < count; i++)
        if (put_text(o, items[i]))
            return -1;
    return list_end(o);
}

static int put_map(struct out *o, const struct text_pair *pairs, size_t count)
{
    if (list_begin(o, count))
        return -1;
    for (size_t i = 0; i < count; i++) {
        if (pairs[i].key.size && memchr(pairs[i].key.data, 0, pairs[i].key.size)) {
            o->reason = "a map's key contains a NUL";
            return -1;
        }
        if (put_text(o, pairs[i].key) || put_text(o, pairs[i].value))
            return -1;
    }
    return list_end(o);
}

static int put_records(struct out *o, const struct record_binding *binding, const void *items,
                       size_t count)
{
    if (list_begin(o, count))
        return -1;
    for (size_t i = 0; i < count; i++)
        if (put_record(o, binding, (const char *)items + i * binding->size))
            return -1;
    return list_end(o);
}

static size_t list_count(const struct field_binding *f, const char *base)
{
    return *(const size_t *)(base + f->count);
}

/* The union's branch, 0 = null, then what is in it. */
static int put_optional(struct out *o, const struct field_binding *f, const char *base)
{
    const char *member = base + f->offset;
    const char *literal = f->kind == BIND_OPT_LITERAL ? *(const char *const *)member : NULL;
    bool present = f->kind == BIND_OPT_LITERAL ? literal != NULL : *(const bool *)(base + f->flag);

    if (put_long(o, present))
        return -1;
    if (!present)
        return 0;
    switch (f->kind) {
    case BIND_OPT_LITERAL:
        return put_literal(o, literal);
    case BIND_OPT_LONG:
        return put_long(o, *(const int64_t *)member);
    case BIND_OPT_INTS:
        return put_ints(o, *(const int32_t *const *)member, list_count(f, base));
    default:
        return put_record(o, f->record, member);
    }
}

static int put_field(struct out *o, const struct field_binding *f, const char *base)
{
    const char *member = base + f->offset;

    switch (f->kind) {
    case BIND_TEXT:
        return put_text(o, *(const struct text *)member);
    case BIND_LITERAL:
        return put_literal(o, *(const char *const *)member);
    case BIND_INT:
        return put_long(o, *(const int32_t *)member);
    case BIND_LONG:
        return put_long(o, *(const int64_t *)member);
    case BIND_BOOL:
        return put_bits(o, *(const bool *)member, 1);
    case BIND_FLOAT:
        return put_float(o, *(const float *)member);
    case BIND_DOUBLE:
        return put_double(o, *(const double *)member);
    case BIND_INTS:
        return put_ints(o, *(const int32_t *const *)member, list_count(f, base));
    case BIND_TEXTS:
        return put_texts(o, *(const struct text *const *)member, list_count(f, base));
    case BIND_MAP:
        return put_map(o, *(const struct text_pair *const *)member, list_count(f, base));
    case BIND_FIXED16:
        return put_bytes(o, member, 16);
    case BIND_RECORD:
        return put_record(o, f->record, member);
    case BIND_RECORDS:
        return put_records(o, f->record, *(const void *const *)member, list_count(f, base));
    default:
        return put_optional(o, f, base);
    }
}

static int put_record(struct out *o, const struct record_binding *binding, const void *record)
{
    for (size_t i = 0; i < binding->field_count; i++)
        if (put_field(o, &binding->fields[i], record))
            return -1;
    return 0;
}

int avro_write_struct(struct buffer *buffer, size_t size_max, const struct record_binding *binding,
                      const void *record, struct error *error)
{
    struct out o = {buffer, size_max, NULL};

    if (!put_record(&o, binding, record) && buffer->size <= size_max)
        return 0;
    if (o.reason)
        return error_set(error, "%s cannot be encoded: %s", binding->name, o.reason);
    return error_set(error, "%s cannot be encoded: it is larger than %zu bytes", binding->name,
                     size_max);
}
