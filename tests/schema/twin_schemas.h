/* SPDX-License-Identifier: MIT
 *
 * twin_schemas: the product's own schemas in another namespace, so with another fingerprint. A
 * payload of the one is a payload of the other, but the codec reads the twin's with Avro C, and its
 * own straight: what the two make of the same bytes must be the same. For tests of one thread.
 */
#ifndef PGPT_TESTS_TWIN_SCHEMAS_H
#define PGPT_TESTS_TWIN_SCHEMAS_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "schema/canonical.h"
#include "schema/codec.h"
#include "schema/framing.h"
#include "tests/schema/any_record.h"

struct twin_schemas {
    char directory[64]; /* for codec_open(); twin_schemas_remove() when it is open */
    uint64_t fingerprints[RECORD_TYPE_COUNT];
    struct arena *arenas[2];
    struct buffer buffers[2];
    struct error errors[2];
};

static inline void twin_path(const struct twin_schemas *t, int type, char path[128])
{
    snprintf(path, 128, "%s/%s.twin.avsc", t->directory, codec_record_name((enum record_type)type));
}

static inline int twin_write(struct twin_schemas *t, enum record_type type)
{
    static const char own[] = "\"namespace\": \"pgpt\"";
    char path[128], *canonical, *twin = strdup(codec_schema_json(type));
    char *place = twin ? strstr(twin, own) : NULL;
    FILE *file;
    int status;

    if (!place)
        return -1;
    memcpy(place + sizeof own - 6, "twin", 4);
    canonical = canonical_form(twin, strlen(twin), &t->errors[0]);
    t->fingerprints[type] = canonical ? canonical_crc64(canonical, strlen(canonical)) : 0;
    twin_path(t, (int)type, path);
    file = fopen(path, "w");
    status = file && canonical && fputs(twin, file) >= 0 ? 0 : -1;
    if (file && fclose(file))
        status = -1;
    free(canonical);
    free(twin);
    return status;
}

/* -1 when something cannot be made. */
static inline int twin_schemas_make(struct twin_schemas *t, size_t arena_max)
{
    int status = 0;

    *t = (struct twin_schemas){.directory = "/tmp/pgpt-twin-XXXXXX"};
    if (!mkdtemp(t->directory))
        return -1;
    for (int type = 0; type < RECORD_TYPE_COUNT && !status; type++)
        status = twin_write(t, (enum record_type)type);
    for (int i = 0; i < 2; i++)
        if (!(t->arenas[i] = arena_create(1 << 16, arena_max)))
            status = -1;
    return status;
}

static inline int twin_schemas_remove(const struct twin_schemas *t)
{
    char path[128];
    int status = 0;

    for (int type = 0; type < RECORD_TYPE_COUNT; type++) {
        twin_path(t, type, path);
        status |= remove(path);
    }
    return status | remove(t->directory);
}

static inline void twin_schemas_free(struct twin_schemas *t)
{
    for (int i = 0; i < 2; i++) {
        arena_destroy(t->arenas[i]);
        buffer_free(&t->buffers[i]);
    }
}

static inline enum codec_status twin_read(struct twin_schemas *t, struct codec *codec,
                                          enum record_type type, int which, const uint8_t *body,
                                          size_t size, union any_record *record)
{
    uint64_t fingerprint = which ? t->fingerprints[type] : codec_schema_fingerprint(type);
    uint8_t *framed = (uint8_t *)malloc(FRAMING_SINGLE_OBJECT_SIZE + size);
    enum codec_status status;

    if (!framed)
        return CODEC_NO_MEMORY;
    framing_write_single_object(framed, fingerprint);
    if (size)
        memcpy(framed + FRAMING_SINGLE_OBJECT_SIZE, body, size);
    arena_reset(t->arenas[which]);
    t->errors[which].message[0] = '\0';
    status = codec_decode(codec, type, framed, FRAMING_SINGLE_OBJECT_SIZE + size, t->arenas[which],
                          record, &t->errors[which]);
    free(framed); /* what was read must not point into it */
    return status;
}

/* Reads the body both ways. NULL, or what is not the same. */
static inline const char *twin_differs(struct twin_schemas *t, struct codec *codec,
                                       enum record_type type, const uint8_t *body, size_t size)
{
    union any_record records[2];
    enum codec_status own = twin_read(t, codec, type, 0, body, size, &records[0]);
    enum codec_status twin = twin_read(t, codec, type, 1, body, size, &records[1]);

    if (own != twin)
        return "the status";
    if (strcmp(t->errors[0].message, t->errors[1].message))
        return "the message";
    if (own != CODEC_OK)
        return NULL;
    for (int i = 0; i < 2; i++)
        if (codec_encode(codec, type, &records[i], &t->buffers[i], &t->errors[i]))
            return t->errors[i].message;
    return t->buffers[0].size == t->buffers[1].size &&
                   !memcmp(t->buffers[0].data, t->buffers[1].data, t->buffers[0].size)
               ? NULL
               : "the record";
}

#endif
