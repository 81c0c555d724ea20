/* SPDX-License-Identifier: MIT
 *
 * binding: for each record, which Avro field belongs to which member of its C struct. One table a
 * record drives both directions, so a field is named in one place. Constant data.
 */
#ifndef PGPT_SCHEMA_BINDING_H
#define PGPT_SCHEMA_BINDING_H

#include <stdbool.h>
#include <stddef.h>

#include "schema/codec.h"

enum binding_kind {
    BIND_TEXT,        /* struct text */
    BIND_LITERAL,     /* const char *: string */
    BIND_OPT_LITERAL, /* const char * or NULL: ["null","string"] */
    BIND_INT,         /* int32_t */
    BIND_LONG,        /* int64_t */
    BIND_BOOL,        /* bool */
    BIND_FLOAT,       /* float */
    BIND_DOUBLE,      /* double */
    BIND_OPT_LONG,    /* int64_t + bool flag: ["null","long"] */
    BIND_INTS,        /* const int32_t * + size_t count */
    BIND_OPT_INTS,    /* the same + bool flag */
    BIND_TEXTS,       /* const struct text * + size_t count */
    BIND_MAP,         /* const struct text_pair * + size_t count */
    BIND_FIXED16,     /* uint8_t[16] */
    BIND_RECORD,      /* an embedded struct */
    BIND_OPT_RECORD,  /* the same + bool flag */
    BIND_RECORDS      /* const struct * + size_t count */
};

struct record_binding;

struct field_binding {
    const char *name;
    enum binding_kind kind;
    size_t offset;                       /* of the member */
    size_t count;                        /* offset of its size_t count */
    size_t flag;                         /* offset of its bool "has" */
    bool required;                       /* no default: a writer without it is refused */
    const struct record_binding *record; /* BIND_RECORD* */
};

struct record_binding {
    const char *name;
    size_t size;                    /* sizeof the struct */
    void (*defaults)(void *record); /* NULL: all zero, texts empty */
    const struct field_binding *fields;
    size_t field_count;
};

extern const struct record_binding *const record_bindings[RECORD_TYPE_COUNT];

#endif
