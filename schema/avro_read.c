/* SPDX-License-Identifier: MIT
 *
 * The binary encoding: https://avro.apache.org/docs/1.11.1/specification/#binary-encoding
 */
#include "schema/avro_read.h"

#include <string.h>

#include "schema/fill.h"

struct in {
    const uint8_t *at;
    struct fill fill;
};

static int take_record(struct in *in, const struct record_binding *binding, void *record);

/* Zig-zag, seven bits a byte, the lowest first. */
static int64_t take_long(struct in *in)
{
    uint64_t bits = 0;
    uint8_t byte;
    int shift = 0;

    do {
        byte = *in->at++;
        bits |= (uint64_t)(byte & 127) << shift;
        shift += 7;
    } while (byte > 127);
    return (int64_t)(bits >> 1) ^ -(int64_t)(bits & 1);
}

/* The lowest byte first. */
static uint64_t take_bits(struct in *in, size_t size)
{
    uint64_t bits = 0;

    for (size_t i = 0; i < size; i++)
        bits |= (uint64_t)*in->at++ << (8 * i);
    return bits;
}

static float take_float(struct in *in)
{
    uint32_t bits = (uint32_t)take_bits(in, sizeof bits);
    float value;

    memcpy(&value, &bits, sizeof value);
    return value;
}

static double take_double(struct in *in)
{
    uint64_t bits = take_bits(in, sizeof bits);
    double value;

    memcpy(&value, &bits, sizeof value);
    return value;
}

static int take_text(struct in *in, const char *field, struct text *out)
{
    size_t size = (size_t)take_long(in);
    const uint8_t *data = in->at;

    in->at += size;
    return fill_text(&in->fill, field, data, size, out);
}

static int take_literal(struct in *in, const char *field, const char **out)
{
    struct text text;

    return take_text(in, field, &text) ? -1 : fill_literal(&in->fill, field, text, out);
}

static void take_fixed16(struct in *in, char *out)
{
    memcpy(out, in->at, 16);
    in->at += 16;
}

/* ---- lists ---- */

static size_t item_size(const struct field_binding *f)
{
    switch (f->kind) {
    case BIND_TEXTS:
        return sizeof(struct text);
    case BIND_MAP:
        return sizeof(struct text_pair);
    case BIND_RECORDS:
        return f->record->size;
    default:
        return sizeof(int32_t);
    }
}

static int take_item(struct in *in, const struct field_binding *f, void *item)
{
    struct text_pair *pair = item;

    switch (f->kind) {
    case BIND_TEXTS:
        return take_text(in, f->name, item);
    case BIND_MAP:
        return take_text(in, f->name, &pair->key) || take_text(in, f->name, &pair->value) ? -1 : 0;
    case BIND_RECORDS:
        return take_record(in, f->record, item);
    default:
        *(int32_t *)item = (int32_t)take_long(in);
        return 0;
    }
}

/* The items of the block that begins here, 0 = it is the end. A negative count is followed by the
 * block's size in bytes. */
static size_t take_block(struct in *in)
{
    int64_t count = take_long(in);

    if (count < 0)
        (void)take_long(in);
    return (size_t)(count < 0 ? -count : count);
}

/* Moves the list to where it has room for `more` items behind its `count`. The arena keeps the
 * places it had before: together no more than the last one. */
static int list_grow(struct in *in, size_t size, char **items, size_t count, size_t *room,
                     size_t more)
{
    size_t wanted = count + more > 2 * *room ? count + more : 2 * *room;
    char *grown;

    if (count + more <= *room)
        return 0;
    grown = arena_calloc(in->fill.arena, wanted, size);
    if (!grown)
        return fill_no_memory(&in->fill);
    if (count)
        memcpy(grown, *items, count * size);
    *items = grown;
    *room = wanted;
    return 0;
}

static int take_list(struct in *in, const struct field_binding *f, const void **out, size_t *count)
{
    char *items = arena_alloc(in->fill.arena, 0); /* nothing; not NULL */
    size_t size = item_size(f), room = 0, more;

    *count = 0;
    while ((more = take_block(in)) > 0) {
        if (list_grow(in, size, &items, *count, &room, more))
            return -1;
        for (; more; more--)
            if (take_item(in, f, items + (*count)++ * size))
                return -1;
    }
    *out = items;
    return 0;
}

/* ---- records ---- */

static int take_field(struct in *in, const struct field_binding *f, char *base)
{
    char *member = base + f->offset;

    switch (f->kind) {
    case BIND_TEXT:
        return take_text(in, f->name, (struct text *)member);
    case BIND_LITERAL:
    case BIND_OPT_LITERAL:
        return take_literal(in, f->name, (const char **)member);
    case BIND_INT:
        *(int32_t *)member = (int32_t)take_long(in);
        return 0;
    case BIND_LONG:
    case BIND_OPT_LONG:
        *(int64_t *)member = take_long(in);
        return 0;
    case BIND_BOOL:
        *(bool *)member = take_bits(in, 1) != 0;
        return 0;
    case BIND_FLOAT:
        *(float *)member = take_float(in);
        return 0;
    case BIND_DOUBLE:
        *(double *)member = take_double(in);
        return 0;
    case BIND_FIXED16:
        take_fixed16(in, member);
        return 0;
    case BIND_INTS:
    case BIND_OPT_INTS:
    case BIND_TEXTS:
    case BIND_MAP:
    case BIND_RECORDS:
        return take_list(in, f, (const void **)member, (size_t *)(base + f->count));
    case BIND_RECORD:
    case BIND_OPT_RECORD:
        return take_record(in, f->record, member);
    }
    return 0;
}

static bool is_optional(const struct field_binding *f)
{
    return f->kind == BIND_OPT_LITERAL || f->kind == BIND_OPT_LONG || f->kind == BIND_OPT_INTS ||
           f->kind == BIND_OPT_RECORD;
}

static int take_record(struct in *in, const struct record_binding *binding, void *record)
{
    fill_defaults(binding, record);
    for (size_t i = 0; i < binding->field_count; i++) {
        const struct field_binding *f = &binding->fields[i];

        if (is_optional(f) && !take_long(in)) /* the union's branch 0 is null */
            continue;
        if (take_field(in, f, record))
            return -1;
        fill_flag(f, record);
    }
    return 0;
}

enum codec_status avro_read_struct(const uint8_t *body, const struct record_binding *binding,
                                   struct arena *arena, void *record, struct error *error)
{
    struct in in = {body, {arena, error, CODEC_OK}};

    if (take_record(&in, binding, record))
        return in.fill.status;
    return CODEC_OK;
}
