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

/* Where they lie in the payload; no NUL behind them. */
static struct text take_bytes(struct in *in)
{
    size_t size = (size_t)take_long(in);
    struct text bytes = {(const char *)in->at, size};

    in->at += size;
    return bytes;
}

static int take_text(struct in *in, const char *field, struct text *out)
{
    struct text bytes = take_bytes(in);

    return fill_text(&in->fill, field, bytes.data, bytes.size, out);
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

/* Room for the items of the list that begins here, and how many: one block, and the empty one that
 * ends it, or this one alone. NULL: there is no memory. */
static void *list_begin(struct in *in, size_t size, size_t *count)
{
    void *items;

    *count = (size_t)take_long(in);
    items = arena_calloc(in->fill.arena, *count, size);
    if (!items)
        (void)fill_no_memory(&in->fill);
    return items;
}

static void list_end(struct in *in, size_t count)
{
    if (count)
        (void)take_long(in);
}

static int take_ints(struct in *in, const int32_t **out, size_t *count)
{
    int32_t *items = list_begin(in, sizeof *items, count);

    if (!items)
        return -1;
    for (size_t i = 0; i < *count; i++)
        items[i] = (int32_t)take_long(in);
    list_end(in, *count);
    *out = items;
    return 0;
}

static int take_texts(struct in *in, const char *field, const struct text **out, size_t *count)
{
    struct text *items = list_begin(in, sizeof *items, count);

    if (!items)
        return -1;
    for (size_t i = 0; i < *count; i++)
        if (take_text(in, field, &items[i]))
            return -1;
    list_end(in, *count);
    *out = items;
    return 0;
}

static int take_records(struct in *in, const struct record_binding *binding, const void **out,
                        size_t *count)
{
    char *items = list_begin(in, binding->size, count);

    if (!items)
        return -1;
    for (size_t i = 0; i < *count; i++)
        if (take_record(in, binding, items + i * binding->size))
            return -1;
    list_end(in, *count);
    *out = items;
    return 0;
}

/* As Avro C has it: a key that comes again has its last value, in its first place. What was
 * replaced is not looked at. Returns how many are left. */
static size_t pairs_unite(struct text_pair *pairs, size_t count)
{
    size_t kept = 0;

    for (size_t i = 0; i < count; i++) {
        size_t at = 0;

        while (at < kept && (pairs[at].key.size != pairs[i].key.size ||
                             memcmp(pairs[at].key.data, pairs[i].key.data, pairs[i].key.size)))
            at++;
        pairs[at] = pairs[i];
        kept += at == kept;
    }
    return kept;
}

static int take_map(struct in *in, const char *field, const struct text_pair **out, size_t *count)
{
    struct text_pair *pairs = list_begin(in, sizeof *pairs, count);

    if (!pairs)
        return -1;
    for (size_t i = 0; i < *count; i++) {
        pairs[i].key = take_bytes(in);
        pairs[i].value = take_bytes(in);
    }
    list_end(in, *count);
    *count = pairs_unite(pairs, *count);
    for (size_t i = 0; i < *count; i++) {
        struct text key = pairs[i].key, value = pairs[i].value;

        if (fill_text(&in->fill, field, key.data, key.size, &pairs[i].key) ||
            fill_text(&in->fill, field, value.data, value.size, &pairs[i].value))
            return -1;
    }
    *out = pairs;
    return 0;
}

/* ---- records ---- */

static int take_field(struct in *in, const struct field_binding *f, char *base)
{
    char *member = base + f->offset;
    size_t *count = (size_t *)(base + f->count);

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
        return take_ints(in, (const int32_t **)member, count);
    case BIND_TEXTS:
        return take_texts(in, f->name, (const struct text **)member, count);
    case BIND_MAP:
        return take_map(in, f->name, (const struct text_pair **)member, count);
    case BIND_RECORDS:
        return take_records(in, f->record, (const void **)member, count);
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
