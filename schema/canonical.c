/* SPDX-License-Identifier: MIT */
#include "schema/canonical.h"

#include <jansson.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { DEPTH_MAX = 64, OUTPUT_MAX = 4 << 20, NAME_MAX_BYTES = 1024 };

struct writer {
    char *data;
    size_t size, capacity;
    bool failed; /* sticky: out of memory or over OUTPUT_MAX */
    struct error *error;
};

static void put(struct writer *w, const char *data, size_t size)
{
    if (w->failed)
        return;
    if (w->size + size + 1 > w->capacity) {
        size_t capacity = (w->capacity + size + 64) * 2;
        char *grown = capacity > OUTPUT_MAX ? NULL : realloc(w->data, capacity);

        if (!grown) {
            w->failed = true;
            error_set(w->error, "schema: its canonical form does not fit into %d bytes",
                      OUTPUT_MAX);
            return;
        }
        w->data = grown;
        w->capacity = capacity;
    }
    memcpy(w->data + w->size, data, size);
    w->size += size;
    w->data[w->size] = '\0';
}

static void put_text(struct writer *w, const char *text)
{
    put(w, text, strlen(text));
}

/* A JSON string with the characters themselves: [STRINGS] keeps UTF-8 unescaped. */
static void put_string(struct writer *w, const char *text)
{
    char escaped[8];

    put_text(w, "\"");
    for (; *text; text++) {
        if (*text == '"' || *text == '\\')
            put(w, "\\", 1);
        if ((unsigned char)*text < 0x20) {
            snprintf(escaped, sizeof escaped, "\\u%04x", (unsigned char)*text);
            put_text(w, escaped);
        } else {
            put(w, text, 1);
        }
    }
    put_text(w, "\"");
}

static int fail(struct writer *w, const char *what)
{
    w->failed = true;
    return error_set(w->error, "schema: %s", what);
}

static bool is_primitive(const char *name)
{
    static const char *const names[] = {"null",  "boolean", "int",   "long",
                                        "float", "double",  "bytes", "string"};

    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (!strcmp(name, names[i]))
            return true;
    return false;
}

/* [FULLNAMES]: a name without a dot takes the enclosing namespace. space gets the name's own. */
static int full_name(struct writer *w, const char *name, const char *explicit_space,
                     const char *enclosing, char *full, char *space)
{
    const char *dot = strrchr(name, '.');
    const char *used = explicit_space ? explicit_space : enclosing;
    int written;

    if (dot) {
        written = snprintf(full, NAME_MAX_BYTES, "%s", name);
        snprintf(space, NAME_MAX_BYTES, "%.*s", (int)(dot - name), name);
    } else {
        written = *used ? snprintf(full, NAME_MAX_BYTES, "%s.%s", used, name)
                        : snprintf(full, NAME_MAX_BYTES, "%s", name);
        snprintf(space, NAME_MAX_BYTES, "%s", used);
    }
    return written >= NAME_MAX_BYTES ? fail(w, "a name is too long") : 0;
}

static int put_schema(struct writer *w, const json_t *schema, const char *space, int depth);

static int put_list(struct writer *w, const json_t *list, const char *space, int depth)
{
    put_text(w, "[");
    for (size_t i = 0; i < json_array_size(list); i++) {
        if (i)
            put_text(w, ",");
        if (put_schema(w, json_array_get(list, i), space, depth + 1))
            return -1;
    }
    put_text(w, "]");
    return 0;
}

static int put_fields(struct writer *w, const json_t *fields, const char *space, int depth)
{
    if (!json_is_array(fields))
        return fail(w, "a record has no list of fields");
    put_text(w, ",\"fields\":[");
    for (size_t i = 0; i < json_array_size(fields); i++) {
        const json_t *field = json_array_get(fields, i);
        const char *name = json_string_value(json_object_get(field, "name"));

        if (!name)
            return fail(w, "a field has no name");
        put_text(w, i ? ",{\"name\":" : "{\"name\":");
        put_string(w, name);
        put_text(w, ",\"type\":");
        if (put_schema(w, json_object_get(field, "type"), space, depth + 1))
            return -1;
        put_text(w, "}");
    }
    put_text(w, "]");
    return 0;
}

static int put_symbols(struct writer *w, const json_t *symbols)
{
    if (!json_is_array(symbols))
        return fail(w, "an enum has no list of symbols");
    put_text(w, ",\"symbols\":[");
    for (size_t i = 0; i < json_array_size(symbols); i++) {
        const char *symbol = json_string_value(json_array_get(symbols, i));

        if (!symbol)
            return fail(w, "an enum's symbol is no string");
        if (i)
            put_text(w, ",");
        put_string(w, symbol);
    }
    put_text(w, "]");
    return 0;
}

/* [ORDER]: name, type, fields, symbols, items, values, size. */
static int put_named(struct writer *w, const json_t *schema, const char *type,
                     const char *enclosing, int depth)
{
    const char *name = json_string_value(json_object_get(schema, "name"));
    const json_t *size = json_object_get(schema, "size");
    char full[NAME_MAX_BYTES], space[NAME_MAX_BYTES], number[32];

    if (!name || !*name)
        return fail(w, "a record, enum or fixed has no name");
    if (full_name(w, name, json_string_value(json_object_get(schema, "namespace")), enclosing, full,
                  space))
        return -1;
    put_text(w, "{\"name\":");
    put_string(w, full);
    put_text(w, ",\"type\":");
    put_string(w, strcmp(type, "error") ? type : "record");
    if (!strcmp(type, "fixed")) {
        if (!json_is_integer(size) || json_integer_value(size) < 0)
            return fail(w, "a fixed has no size");
        snprintf(number, sizeof number, ",\"size\":%lld", (long long)json_integer_value(size));
        put_text(w, number);
    } else if (!strcmp(type, "enum")) {
        if (put_symbols(w, json_object_get(schema, "symbols")))
            return -1;
    } else if (put_fields(w, json_object_get(schema, "fields"), space, depth)) {
        return -1;
    }
    put_text(w, "}");
    return 0;
}

static int put_object(struct writer *w, const json_t *schema, const char *space, int depth)
{
    const json_t *inner = json_object_get(schema, "type");
    const char *type = json_string_value(inner);
    const char *part = NULL;

    if (!type) /* {"type": {...}} and {"type": [...]} stand for what is inside */
        return put_schema(w, inner, space, depth + 1);
    if (!strcmp(type, "record") || !strcmp(type, "error") || !strcmp(type, "enum") ||
        !strcmp(type, "fixed"))
        return put_named(w, schema, type, space, depth);
    if (!strcmp(type, "array"))
        part = "items";
    else if (!strcmp(type, "map"))
        part = "values";
    else /* [PRIMITIVES]: {"type": "int"} is "int" */
        return put_schema(w, inner, space, depth + 1);
    put_text(w, "{\"type\":");
    put_string(w, type);
    put_text(w, ",");
    put_string(w, part);
    put_text(w, ":");
    if (put_schema(w, json_object_get(schema, part), space, depth + 1))
        return -1;
    put_text(w, "}");
    return 0;
}

static int put_schema(struct writer *w, const json_t *schema, const char *space, int depth)
{
    char full[NAME_MAX_BYTES], ignored[NAME_MAX_BYTES];
    const char *name = json_string_value(schema);

    if (depth > DEPTH_MAX)
        return fail(w, "it is nested too deeply");
    if (name && is_primitive(name)) {
        put_string(w, name);
    } else if (name) {
        if (full_name(w, name, NULL, space, full, ignored))
            return -1;
        put_string(w, full);
    } else if (json_is_array(schema)) {
        return put_list(w, schema, space, depth);
    } else if (json_is_object(schema)) {
        return put_object(w, schema, space, depth);
    } else {
        return fail(w, "a type is missing or no string, list or object");
    }
    return w->failed ? -1 : 0;
}

char *canonical_form(const char *json, size_t size, struct error *error)
{
    struct writer w = {.error = error};
    json_error_t problem;
    json_t *schema = json_loadb(json, size, JSON_DECODE_ANY, &problem);

    if (!schema) {
        error_set(error, "schema: line %d: %s", problem.line, problem.text);
        return NULL;
    }
    if (put_schema(&w, schema, "", 0) || w.failed) {
        free(w.data);
        w.data = NULL;
    }
    json_decref(schema);
    return w.data;
}

uint64_t canonical_crc64(const void *data, size_t size)
{
    const uint64_t empty = 0xc15d213aa4d7a795u;
    const unsigned char *bytes = data;
    uint64_t crc = empty;

    for (size_t i = 0; i < size; i++) {
        uint64_t row = (crc ^ bytes[i]) & 0xff;

        for (int bit = 0; bit < 8; bit++)
            row = row >> 1 ^ (empty & -(row & 1));
        crc = crc >> 8 ^ row;
    }
    return crc;
}
