/* SPDX-License-Identifier: MIT */
#include "schema/skim.h"

#include <jansson.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { NODES_MAX = 4096, NAME_BYTES = 256, COMPILE_DEPTH_MAX = 64 };

enum node_kind {
    NODE_NULL,
    NODE_BOOLEAN,
    NODE_INT,
    NODE_LONG,
    NODE_FLOAT,
    NODE_DOUBLE,
    NODE_BYTES, /* string too */
    NODE_FIXED,
    NODE_ENUM,
    NODE_ARRAY,
    NODE_MAP,
    NODE_UNION,
    NODE_RECORD
};

struct node {
    enum node_kind kind;
    char name[NAME_BYTES]; /* full name of records, enums, fixed; else empty */
    int64_t size;          /* fixed: bytes; enum: symbols; union, record: parts */
    int64_t width;         /* values that Avro C makes at once for it; 0 = not known yet */
    struct node **parts;   /* union: branches; record: fields; array, map: one */
    char (*labels)[64];    /* record: field names, cut */
};

struct skim_schema {
    struct node *nodes[NODES_MAX]; /* owns all; they refer to each other */
    int count;
    struct node *root;
};

/* ---- compiling ---- */

static struct node *compile(struct skim_schema *s, const json_t *json, const char *space, int depth,
                            struct error *error);

static struct node *node_add(struct skim_schema *s, enum node_kind kind, size_t parts,
                             struct error *error)
{
    struct node *node = s->count < NODES_MAX ? calloc(1, sizeof *node) : NULL;

    if (node)
        node->parts = calloc(parts + 1, sizeof *node->parts);
    if (!node || !node->parts) {
        error_set(error, "schema: more than %d types, or out of memory", NODES_MAX);
        free(node);
        return NULL;
    }
    node->kind = kind;
    node->size = (int64_t)parts;
    s->nodes[s->count++] = node;
    return node;
}

static struct node *node_find(const struct skim_schema *s, const char *name, const char *space)
{
    char full[NAME_BYTES];

    if (strchr(name, '.') || !*space)
        snprintf(full, sizeof full, "%s", name);
    else
        snprintf(full, sizeof full, "%s.%s", space, name);
    for (int i = 0; i < s->count; i++)
        if (s->nodes[i]->name[0] && !strcmp(s->nodes[i]->name, full))
            return s->nodes[i];
    return NULL;
}

static struct node *compile_name(struct skim_schema *s, const char *name, const char *space,
                                 struct error *error)
{
    static const struct {
        const char *name;
        enum node_kind kind;
    } primitives[] = {{"null", NODE_NULL},   {"boolean", NODE_BOOLEAN}, {"int", NODE_INT},
                      {"long", NODE_LONG},   {"float", NODE_FLOAT},     {"double", NODE_DOUBLE},
                      {"bytes", NODE_BYTES}, {"string", NODE_BYTES}};
    struct node *node;

    for (size_t i = 0; i < sizeof primitives / sizeof *primitives; i++)
        if (!strcmp(name, primitives[i].name))
            return node_add(s, primitives[i].kind, 0, error);
    node = node_find(s, name, space);
    if (!node)
        error_set(error, "schema: type %s is not defined", name);
    return node;
}

/* Sets the node's full name; `space` becomes the namespace of what is inside. */
static int name_set(struct node *node, const json_t *json, const char *enclosing, char *space,
                    struct error *error)
{
    const char *name = json_string_value(json_object_get(json, "name"));
    const char *own = json_string_value(json_object_get(json, "namespace"));
    const char *dot = name ? strrchr(name, '.') : NULL;
    int written;

    if (!name || !*name)
        return error_set(error, "schema: a record, enum or fixed has no name");
    if (dot)
        snprintf(space, NAME_BYTES, "%.*s", (int)(dot - name), name);
    else
        snprintf(space, NAME_BYTES, "%s", own ? own : enclosing);
    written = dot || !*space ? snprintf(node->name, NAME_BYTES, "%s", name)
                             : snprintf(node->name, NAME_BYTES, "%s.%s", space, name);
    if (written >= NAME_BYTES)
        return error_set(error, "schema: a name is longer than %d bytes", NAME_BYTES - 1);
    return 0;
}

static struct node *compile_record(struct skim_schema *s, const json_t *json, const char *enclosing,
                                   int depth, struct error *error)
{
    const json_t *fields = json_object_get(json, "fields");
    struct node *node = node_add(s, NODE_RECORD, json_array_size(fields), error);
    char space[NAME_BYTES];

    if (!node || name_set(node, json, enclosing, space, error))
        return NULL;
    node->labels = calloc(json_array_size(fields) + 1, sizeof *node->labels);
    if (!node->labels || !json_is_array(fields)) {
        error_set(error, "schema: record %s has no list of fields", node->name);
        return NULL;
    }
    if (!node->size) { /* Avro C cannot hold an array of values of no size */
        error_set(error, "schema: record %s has no fields, which is not supported", node->name);
        return NULL;
    }
    for (size_t i = 0; i < json_array_size(fields); i++) {
        const json_t *field = json_array_get(fields, i);
        const char *label = json_string_value(json_object_get(field, "name"));

        snprintf(node->labels[i], sizeof *node->labels, "%s", label ? label : "?");
        node->parts[i] = compile(s, json_object_get(field, "type"), space, depth + 1, error);
        if (!node->parts[i])
            return NULL;
    }
    return node;
}

static struct node *compile_union(struct skim_schema *s, const json_t *json, const char *space,
                                  int depth, struct error *error)
{
    struct node *node = node_add(s, NODE_UNION, json_array_size(json), error);

    for (size_t i = 0; node && i < json_array_size(json); i++) {
        node->parts[i] = compile(s, json_array_get(json, i), space, depth + 1, error);
        if (!node->parts[i])
            return NULL;
    }
    return node;
}

static struct node *compile_sized(struct skim_schema *s, const json_t *json, const char *space,
                                  enum node_kind kind, struct error *error)
{
    struct node *node = node_add(s, kind, 0, error);
    const json_t *size = json_object_get(json, "size");
    char ignored[NAME_BYTES];

    if (!node || name_set(node, json, space, ignored, error))
        return NULL;
    node->size = kind == NODE_ENUM ? (int64_t)json_array_size(json_object_get(json, "symbols"))
                                   : json_integer_value(size);
    if (node->size < 1 || node->size > SKIM_PAYLOAD_MAX) {
        error_set(error, "schema: %s has a bad size or no symbols", node->name);
        return NULL;
    }
    return node;
}

static struct node *compile_object(struct skim_schema *s, const json_t *json, const char *space,
                                   int depth, struct error *error)
{
    const json_t *inner = json_object_get(json, "type");
    const char *type = json_string_value(inner);
    bool array = type && !strcmp(type, "array"), map = type && !strcmp(type, "map");
    struct node *node;

    if (type && (!strcmp(type, "record") || !strcmp(type, "error")))
        return compile_record(s, json, space, depth, error);
    if (type && !strcmp(type, "enum"))
        return compile_sized(s, json, space, NODE_ENUM, error);
    if (type && !strcmp(type, "fixed"))
        return compile_sized(s, json, space, NODE_FIXED, error);
    if (!array && !map)
        return compile(s, inner, space, depth + 1, error);
    node = node_add(s, array ? NODE_ARRAY : NODE_MAP, 1, error);
    if (!node)
        return NULL;
    node->parts[0] =
        compile(s, json_object_get(json, array ? "items" : "values"), space, depth + 1, error);
    return node->parts[0] ? node : NULL;
}

static struct node *compile(struct skim_schema *s, const json_t *json, const char *space, int depth,
                            struct error *error)
{
    if (depth > COMPILE_DEPTH_MAX) {
        error_set(error, "schema: nested deeper than %d", COMPILE_DEPTH_MAX);
        return NULL;
    }
    if (json_is_string(json))
        return compile_name(s, json_string_value(json), space, error);
    if (json_is_array(json))
        return compile_union(s, json, space, depth, error);
    if (json_is_object(json))
        return compile_object(s, json, space, depth, error);
    error_set(error, "schema: a type is missing or no string, list or object");
    return NULL;
}

/* Avro C makes the values of a record's fields at once, those of records inside it too: a record
 * must not contain itself (but in a union, array or map), and their number is bounded. */
static int measure_width(struct node *node, struct error *error)
{
    enum { IN_PROGRESS = -1 };
    int64_t width = 1;

    if (node->width > 0)
        return 0;
    if (node->width == IN_PROGRESS)
        return error_set(error, "schema: record %s contains itself", node->name);
    node->width = IN_PROGRESS;
    for (int64_t i = 0; node->kind == NODE_RECORD && i < node->size; i++) {
        if (measure_width(node->parts[i], error))
            return -1;
        width += node->parts[i]->width;
        if (width > SKIM_RECORD_MAX)
            return error_set(error, "schema: record %s holds more than %d values", node->name,
                             SKIM_RECORD_MAX);
    }
    node->width = width;
    return 0;
}

static int measure_widths(struct skim_schema *s, struct error *error)
{
    for (int i = 0; i < s->count; i++)
        if (measure_width(s->nodes[i], error))
            return -1;
    return 0;
}

struct skim_schema *skim_compile(const char *json, size_t size, struct error *error)
{
    struct skim_schema *s = calloc(1, sizeof *s);
    json_error_t problem;
    json_t *document = json_loadb(json, size, JSON_DECODE_ANY, &problem);

    if (!document)
        error_set(error, "schema: line %d: %s", problem.line, problem.text);
    else if (!s)
        error_set(error, "schema: out of memory");
    else
        s->root = compile(s, document, "", 0, error);
    json_decref(document);
    if (s && (!s->root || measure_widths(s, error))) {
        skim_free(s);
        s = NULL;
    }
    return s;
}

void skim_free(struct skim_schema *s)
{
    if (!s)
        return;
    for (int i = 0; i < s->count; i++) {
        free(s->nodes[i]->parts);
        free(s->nodes[i]->labels);
        free(s->nodes[i]);
    }
    free(s);
}

/* ---- checking ---- */

struct cursor {
    const unsigned char *at, *end, *start;
    int64_t empty_items; /* left */
    int64_t values;      /* left */
    bool plain;
    const char *field; /* the record field last entered, for messages */
    struct error *error;
};

static int bad(const struct cursor *c, const char *what)
{
    return error_set(c->error, "payload: field %s, byte %zu: %s", c->field,
                     (size_t)(c->at - c->start), what);
}

/* Zig-zag varint of at most 10 bytes. */
static int varint(struct cursor *c, int64_t *value)
{
    uint64_t bits = 0;

    for (int shift = 0; shift < 70; shift += 7) {
        unsigned char byte;

        if (c->at == c->end)
            return bad(c, "it ends within a number");
        byte = *c->at++;
        if (shift == 63 && byte > 1)
            return bad(c, "a number is longer than 64 bits");
        bits |= (uint64_t)(byte & 0x7f) << shift;
        if (!(byte & 0x80)) {
            *value = (int64_t)(bits >> 1) ^ -(int64_t)(bits & 1);
            return 0;
        }
    }
    return bad(c, "a number is longer than 10 bytes");
}

static int skip(struct cursor *c, int64_t bytes)
{
    if (bytes < 0)
        return bad(c, "a length is negative");
    if (bytes > c->end - c->at)
        return bad(c, "a length reaches past the end");
    c->at += bytes;
    return 0;
}

static int sized_bytes(struct cursor *c)
{
    int64_t size;

    return varint(c, &size) || skip(c, size) ? -1 : 0;
}

/* Avro C takes keys for C strings and would cut one at a NUL. */
static int map_key(struct cursor *c)
{
    int64_t size;

    if (varint(c, &size) || skip(c, size))
        return -1;
    return size && memchr(c->at - size, 0, (size_t)size) ? bad(c, "a map's key contains a NUL") : 0;
}

static int value(struct cursor *c, const struct node *node, int depth);

static int items(struct cursor *c, const struct node *node, int64_t count, int depth)
{
    for (int64_t i = 0; i < count; i++) {
        const unsigned char *before = c->at;

        if (node->kind == NODE_MAP && map_key(c))
            return -1;
        if (value(c, node->parts[0], depth + 1))
            return -1;
        if (c->at == before && --c->empty_items < 0)
            return bad(c, "too many items of no bytes");
    }
    return 0;
}

/* Blocks until a count of 0; a negative count is followed by the block's size in bytes. */
static int blocks(struct cursor *c, const struct node *node, int depth)
{
    for (bool first = true;; first = false) {
        int64_t count, bytes = -1;
        const unsigned char *begin;

        if (varint(c, &count))
            return -1;
        if (count == 0)
            return 0;
        if (!first || count < 0 || (node->kind == NODE_MAP && count > SKIM_PLAIN_PAIRS))
            c->plain = false;
        if (count < 0) {
            if (count == INT64_MIN || varint(c, &bytes))
                return bad(c, "a block's count is out of range");
            if (bytes < 0 || bytes > c->end - c->at)
                return bad(c, "a block's size reaches past the end");
            count = -count;
        }
        begin = c->at;
        if (items(c, node, count, depth))
            return -1;
        if (bytes >= 0 && c->at - begin != bytes)
            return bad(c, "a block's size differs from its items");
    }
}

static int record(struct cursor *c, const struct node *node, int depth)
{
    for (int64_t i = 0; i < node->size; i++) {
        c->field = node->labels[i];
        if (value(c, node->parts[i], depth + 1))
            return -1;
    }
    return 0;
}

static int value(struct cursor *c, const struct node *node, int depth)
{
    int64_t n;

    if (depth > SKIM_DEPTH_MAX)
        return bad(c, "nested too deeply");
    if (--c->values < 0)
        return bad(c, "too many values");
    switch (node->kind) {
    case NODE_NULL:
        return 0;
    case NODE_BOOLEAN:
        if (c->at<c->end && * c->at> 1)
            return bad(c, "a boolean is neither 0 nor 1");
        return skip(c, 1);
    case NODE_INT:
        if (varint(c, &n))
            return -1;
        return n < INT32_MIN || n > INT32_MAX ? bad(c, "an int exceeds 32 bits") : 0;
    case NODE_LONG:
        return varint(c, &n);
    case NODE_FLOAT:
        return skip(c, 4);
    case NODE_DOUBLE:
        return skip(c, 8);
    case NODE_BYTES:
        return sized_bytes(c);
    case NODE_FIXED:
        return skip(c, node->size);
    case NODE_ENUM:
        if (varint(c, &n))
            return -1;
        return n < 0 || n >= node->size ? bad(c, "an enum's index is out of range") : 0;
    case NODE_UNION:
        if (varint(c, &n))
            return -1;
        if (n < 0 || n >= node->size)
            return bad(c, "a union's branch is out of range");
        return value(c, node->parts[n], depth + 1);
    case NODE_ARRAY:
    case NODE_MAP:
        return blocks(c, node, depth);
    case NODE_RECORD:
        return record(c, node, depth);
    }
    return bad(c, "unknown type");
}

int skim_check(const struct skim_schema *schema, const void *data, size_t size, bool *plain,
               struct error *error)
{
    struct cursor c = {.at = data,
                       .end = (const unsigned char *)data + size,
                       .start = data,
                       .empty_items = SKIM_EMPTY_ITEMS_MAX,
                       .values = SKIM_VALUES_MAX,
                       .plain = true,
                       .field = "-",
                       .error = error};

    if (size > SKIM_PAYLOAD_MAX)
        return error_set(error, "payload: %zu bytes exceed the limit of %d", size,
                         SKIM_PAYLOAD_MAX);
    if (value(&c, schema->root, 0))
        return -1;
    if (c.at != c.end)
        return bad(&c, "bytes are left after the record");
    if (plain)
        *plain = c.plain;
    return 0;
}
