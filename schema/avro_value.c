/* SPDX-License-Identifier: MIT */
#include "schema/avro_value.h"

#include <float.h>
#include <math.h>
#include <string.h>

#include "schema/fill.h"

static int get_record(struct fill *g, const avro_value_t *value,
                      const struct record_binding *binding, void *record);

static int mismatch(struct fill *g, const char *field, const char *wanted)
{
    g->status = CODEC_BAD_PAYLOAD;
    return error_set(g->error, "field %s: the writer's type is no %s", field, wanted);
}

static int get_text(struct fill *g, const avro_value_t *value, const char *field, struct text *out)
{
    const char *text;
    const void *bytes;
    size_t size;

    if (avro_value_get_type(value) == AVRO_STRING && !avro_value_get_string(value, &text, &size))
        return fill_text(g, field, text, size - 1, out);
    if (avro_value_get_type(value) == AVRO_BYTES && !avro_value_get_bytes(value, &bytes, &size))
        return fill_text(g, field, bytes, size, out);
    return mismatch(g, field, "string");
}

static int get_literal(struct fill *g, const avro_value_t *value, const char *field,
                       const char **out)
{
    struct text text;

    return get_text(g, value, field, &text) ? -1 : fill_literal(g, field, text, out);
}

static int get_long(struct fill *g, const avro_value_t *value, const char *field, int64_t *out)
{
    int32_t narrow;

    if (avro_value_get_type(value) == AVRO_INT64 && !avro_value_get_long(value, out))
        return 0;
    if (avro_value_get_type(value) == AVRO_INT32 && !avro_value_get_int(value, &narrow)) {
        *out = narrow;
        return 0;
    }
    return mismatch(g, field, "long");
}

static int get_int(struct fill *g, const avro_value_t *value, const char *field, int32_t *out)
{
    int64_t wide;

    if (get_long(g, value, field, &wide))
        return -1;
    if (wide < INT32_MIN || wide > INT32_MAX) {
        g->status = CODEC_BAD_PAYLOAD;
        return error_set(g->error, "field %s: %lld does not fit into an int", field,
                         (long long)wide);
    }
    *out = (int32_t)wide;
    return 0;
}

static int get_double(struct fill *g, const avro_value_t *value, const char *field, double *out)
{
    float narrow;
    int64_t whole;

    if (avro_value_get_type(value) == AVRO_DOUBLE && !avro_value_get_double(value, out))
        return 0;
    if (avro_value_get_type(value) == AVRO_FLOAT && !avro_value_get_float(value, &narrow)) {
        *out = (double)narrow;
        return 0;
    }
    if (get_long(g, value, field, &whole))
        return mismatch(g, field, "number");
    *out = (double)whole;
    return 0;
}

static int get_float(struct fill *g, const avro_value_t *value, const char *field, float *out)
{
    double wide;

    if (avro_value_get_type(value) == AVRO_FLOAT) /* bit by bit, be it a number or not */
        return avro_value_get_float(value, out) ? mismatch(g, field, "number") : 0;
    if (get_double(g, value, field, &wide))
        return -1;
    if (isfinite(wide) && fabs(wide) > (double)FLT_MAX) {
        g->status = CODEC_BAD_PAYLOAD;
        return error_set(g->error, "field %s: %g does not fit into a float", field, wide);
    }
    *out = (float)wide;
    return 0;
}

static int get_bool(struct fill *g, const avro_value_t *value, const char *field, bool *out)
{
    int flag;

    if (avro_value_get_type(value) != AVRO_BOOLEAN || avro_value_get_boolean(value, &flag))
        return mismatch(g, field, "boolean");
    *out = flag != 0;
    return 0;
}

/* Replaces a union by its current branch. */
static int unwrap(struct fill *g, avro_value_t *value, const char *field)
{
    avro_value_t branch;

    if (avro_value_get_type(value) != AVRO_UNION)
        return 0;
    if (avro_value_get_current_branch(value, &branch))
        return mismatch(g, field, "union");
    *value = branch;
    return 0;
}

/* The list's item i, out of its union if it is in one. */
static int list_item(struct fill *g, const avro_value_t *list, const char *field, size_t i,
                     avro_value_t *item, const char **key)
{
    if (avro_value_get_by_index(list, i, item, key))
        return mismatch(g, field, "list");
    return unwrap(g, item, field);
}

static int list_size(struct fill *g, const avro_value_t *value, const char *field, avro_type_t type,
                     size_t *count)
{
    if (avro_value_get_type(value) != type || avro_value_get_size(value, count))
        return mismatch(g, field, type == AVRO_MAP ? "map" : "array");
    return 0;
}

static int get_ints(struct fill *g, const avro_value_t *value, const char *field,
                    const int32_t **out, size_t *count)
{
    int32_t *items;

    if (list_size(g, value, field, AVRO_ARRAY, count))
        return -1;
    items = arena_calloc(g->arena, *count, sizeof *items);
    if (!items)
        return fill_no_memory(g);
    for (size_t i = 0; i < *count; i++) {
        avro_value_t item;

        if (list_item(g, value, field, i, &item, NULL))
            return -1;
        if (get_int(g, &item, field, &items[i]))
            return -1;
    }
    *out = items;
    return 0;
}

static int get_texts(struct fill *g, const avro_value_t *value, const char *field,
                     const struct text **out, size_t *count)
{
    struct text *items;

    if (list_size(g, value, field, AVRO_ARRAY, count))
        return -1;
    items = arena_calloc(g->arena, *count, sizeof *items);
    if (!items)
        return fill_no_memory(g);
    for (size_t i = 0; i < *count; i++) {
        avro_value_t item;

        if (list_item(g, value, field, i, &item, NULL))
            return -1;
        if (get_text(g, &item, field, &items[i]))
            return -1;
    }
    *out = items;
    return 0;
}

static int get_map(struct fill *g, const avro_value_t *value, const char *field,
                   const struct text_pair **out, size_t *count)
{
    struct text_pair *pairs;

    if (list_size(g, value, field, AVRO_MAP, count))
        return -1;
    pairs = arena_calloc(g->arena, *count, sizeof *pairs);
    if (!pairs)
        return fill_no_memory(g);
    for (size_t i = 0; i < *count; i++) {
        avro_value_t item;
        const char *key;

        if (list_item(g, value, field, i, &item, &key))
            return -1;
        if (fill_text(g, field, key, strlen(key), &pairs[i].key) ||
            get_text(g, &item, field, &pairs[i].value))
            return -1;
    }
    *out = pairs;
    return 0;
}

static int get_fixed16(struct fill *g, const avro_value_t *value, const char *field, uint8_t *out)
{
    const void *data;
    size_t size;

    if (avro_value_get_type(value) != AVRO_FIXED || avro_value_get_fixed(value, &data, &size) ||
        size != 16)
        return mismatch(g, field, "fixed of 16 bytes");
    memcpy(out, data, 16);
    return 0;
}

static int get_records(struct fill *g, const avro_value_t *value, const struct field_binding *f,
                       const void **out, size_t *count)
{
    char *items;

    if (list_size(g, value, f->name, AVRO_ARRAY, count))
        return -1;
    items = arena_calloc(g->arena, *count, f->record->size);
    if (!items)
        return fill_no_memory(g);
    for (size_t i = 0; i < *count; i++) {
        avro_value_t item;

        if (list_item(g, value, f->name, i, &item, NULL))
            return -1;
        if (get_record(g, &item, f->record, items + i * f->record->size))
            return -1;
    }
    *out = items;
    return 0;
}

static int get_field(struct fill *g, const avro_value_t *value, const struct field_binding *f,
                     char *base)
{
    char *member = base + f->offset;
    size_t *count = (size_t *)(base + f->count);

    switch (f->kind) {
    case BIND_TEXT:
        return get_text(g, value, f->name, (struct text *)member);
    case BIND_LITERAL:
    case BIND_OPT_LITERAL:
        return get_literal(g, value, f->name, (const char **)member);
    case BIND_INT:
        return get_int(g, value, f->name, (int32_t *)member);
    case BIND_LONG:
    case BIND_OPT_LONG:
        return get_long(g, value, f->name, (int64_t *)member);
    case BIND_BOOL:
        return get_bool(g, value, f->name, (bool *)member);
    case BIND_FLOAT:
        return get_float(g, value, f->name, (float *)member);
    case BIND_DOUBLE:
        return get_double(g, value, f->name, (double *)member);
    case BIND_INTS:
    case BIND_OPT_INTS:
        return get_ints(g, value, f->name, (const int32_t **)member, count);
    case BIND_TEXTS:
        return get_texts(g, value, f->name, (const struct text **)member, count);
    case BIND_MAP:
        return get_map(g, value, f->name, (const struct text_pair **)member, count);
    case BIND_FIXED16:
        return get_fixed16(g, value, f->name, (uint8_t *)member);
    case BIND_RECORD:
    case BIND_OPT_RECORD:
        return get_record(g, value, f->record, member);
    case BIND_RECORDS:
        return get_records(g, value, f, (const void **)member, count);
    }
    return mismatch(g, f->name, "known type");
}

/* Steps into a union; null leaves the default in place. */
static int get_present(struct fill *g, avro_value_t *value, const struct field_binding *f,
                       char *base)
{
    if (unwrap(g, value, f->name))
        return -1;
    if (avro_value_get_type(value) == AVRO_NULL) {
        if (!f->required)
            return 0;
        return mismatch(g, f->name, "value (it is null)");
    }
    if (get_field(g, value, f, base))
        return -1;
    fill_flag(f, base);
    return 0;
}

/* The field of that name, looked for first in its place in the product's own schema. */
static int find_field(const avro_value_t *value, const char *name, size_t place,
                      avro_value_t *field)
{
    const char *found;

    if (!avro_value_get_by_index(value, place, field, &found) && !strcmp(found, name))
        return 0;
    return avro_value_get_by_name(value, name, field, NULL);
}

static int get_record(struct fill *g, const avro_value_t *value,
                      const struct record_binding *binding, void *record)
{
    if (avro_value_get_type(value) != AVRO_RECORD)
        return mismatch(g, binding->name, "record");
    fill_defaults(binding, record);
    for (size_t i = 0; i < binding->field_count; i++) {
        const struct field_binding *f = &binding->fields[i];
        avro_value_t field;

        if (find_field(value, f->name, i, &field)) {
            if (!f->required)
                continue;
            g->status = CODEC_BAD_PAYLOAD;
            return error_set(g->error, "field %s: the writer's schema does not have it", f->name);
        }
        if (get_present(g, &field, f, record))
            return -1;
    }
    return 0;
}

enum codec_status avro_value_to_struct(const avro_value_t *value,
                                       const struct record_binding *binding, struct arena *arena,
                                       void *record, struct error *error)
{
    struct fill g = {arena, error, CODEC_OK};

    if (get_record(&g, value, binding, record))
        return g.status;
    return CODEC_OK;
}
