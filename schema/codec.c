/* SPDX-License-Identifier: MIT */
#include "schema/codec.h"

#include <avro.h>
#include <dirent.h>
#include <errno.h>
#include <jansson.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "schema/avro_read.h"
#include "schema/avro_value.h"
#include "schema/avro_write.h"
#include "schema/canonical.h"
#include "schema/embedded.h"
#include "schema/framing.h"
#include "schema/skim.h"

enum { WRITERS_MAX = 1024, SCHEMA_FILE_MAX = 1 << 20, BODY_MAX = SKIM_PAYLOAD_MAX };

/* One writer's schema: how to skim it and a value to read it into. */
struct writer {
    uint64_t fingerprint;
    enum record_type type;
    struct skim_schema *skim;
    avro_schema_t schema;
    avro_value_iface_t *iface;
    avro_value_t value;
};

struct codec {
    struct writer writers[WRITERS_MAX]; /* the first RECORD_TYPE_COUNT are the product's own */
    size_t count;
    avro_reader_t reader;
};

static void writer_close(struct writer *w)
{
    if (w->iface) {
        avro_value_decref(&w->value);
        avro_value_iface_decref(w->iface);
    }
    if (w->schema)
        avro_schema_decref(w->schema);
    skim_free(w->skim);
}

static int fingerprint_of(const char *json, size_t size, uint64_t *fingerprint, struct error *error)
{
    char *canonical = canonical_form(json, size, error);

    if (!canonical)
        return -1;
    *fingerprint = canonical_crc64(canonical, strlen(canonical));
    free(canonical);
    return 0;
}

static int writer_add(struct codec *codec, enum record_type type, const char *json, size_t size,
                      struct error *error)
{
    struct writer w = {.type = type};

    if (codec->count == WRITERS_MAX)
        return error_set(error, "more than %d schemas", WRITERS_MAX);
    if (fingerprint_of(json, size, &w.fingerprint, error))
        return -1;
    for (size_t i = 0; i < codec->count; i++)
        if (codec->writers[i].fingerprint == w.fingerprint)
            return 0; /* the same schema in another file */
    w.skim = skim_compile(json, size, error);
    if (!w.skim)
        return -1;
    if (avro_schema_from_json_length(json, size, &w.schema)) {
        error_set(error, "schema: %s", avro_strerror());
        w.schema = NULL;
        goto fail;
    }
    if (!is_avro_record(w.schema) ||
        strcmp(avro_schema_name(w.schema), record_bindings[type]->name)) {
        error_set(error, "schema: it is no record of the name %s", record_bindings[type]->name);
        goto fail;
    }
    w.iface = avro_generic_class_from_schema(w.schema);
    if (!w.iface) {
        error_set(error, "schema: %s", avro_strerror());
        goto fail;
    }
    if (avro_generic_value_new(w.iface, &w.value)) {
        error_set(error, "schema: %s", avro_strerror());
        avro_value_iface_decref(w.iface);
        w.iface = NULL;
        goto fail;
    }
    codec->writers[codec->count++] = w;
    return 0;
fail:
    writer_close(&w);
    return -1;
}

static int file_add(struct codec *codec, const char *directory, const char *name,
                    struct error *error)
{
    struct error inner;
    char path[4096];
    char *text = malloc(SCHEMA_FILE_MAX + 1);
    FILE *file = NULL;
    size_t size, prefix = strcspn(name, ".");
    int status = -1;

    snprintf(path, sizeof path, "%s/%s", directory, name);
    file = text ? fopen(path, "rb") : NULL;
    if (!file) {
        error_set(error, "%s: %s", path, strerror(errno));
        goto done;
    }
    size = fread(text, 1, SCHEMA_FILE_MAX + 1, file);
    if (ferror(file) || size > SCHEMA_FILE_MAX) {
        error_set(error, "%s: cannot be read or is larger than %d bytes", path, SCHEMA_FILE_MAX);
        goto done;
    }
    for (int type = 0; type < RECORD_TYPE_COUNT; type++)
        if (strlen(record_bindings[type]->name) == prefix &&
            !strncmp(record_bindings[type]->name, name, prefix)) {
            status = writer_add(codec, (enum record_type)type, text, size, &inner);
            if (status)
                error_set(error, "%s: %s", path, inner.message);
            goto done;
        }
    error_set(error, "%s: its name must begin with a record's, as in GenerationRequest.v2.avsc",
              path);
done:
    if (file)
        fclose(file);
    free(text);
    return status;
}

static int directory_add(struct codec *codec, const char *path, struct error *error)
{
    DIR *directory = opendir(path);
    struct dirent *entry;
    int status = 0;

    if (!directory)
        return error_set(error, "%s: %s", path, strerror(errno));
    while (!status && (entry = readdir(directory))) {
        size_t size = strlen(entry->d_name);

        if (size > 5 && !strcmp(entry->d_name + size - 5, ".avsc"))
            status = file_add(codec, path, entry->d_name, error);
    }
    closedir(directory);
    return status;
}

struct codec *codec_open(const char *const *schema_dirs, struct error *error)
{
    struct codec *codec = calloc(1, sizeof *codec);

    if (!codec || !(codec->reader = avro_reader_memory("", 0))) {
        error_set(error, "codec: out of memory");
        goto fail;
    }
    for (int type = 0; type < RECORD_TYPE_COUNT; type++)
        if (writer_add(codec, (enum record_type)type, embedded_schemas[type],
                       strlen(embedded_schemas[type]), error))
            goto fail;
    for (; schema_dirs && *schema_dirs; schema_dirs++)
        if (directory_add(codec, *schema_dirs, error))
            goto fail;
    return codec;
fail:
    codec_close(codec);
    return NULL;
}

void codec_close(struct codec *codec)
{
    if (!codec)
        return;
    for (size_t i = 0; i < codec->count; i++)
        writer_close(&codec->writers[i]);
    if (codec->reader)
        avro_reader_free(codec->reader);
    free(codec);
}

void buffer_free(struct buffer *buffer)
{
    free(buffer->data);
    *buffer = (struct buffer){NULL, 0, 0};
}

int codec_encode(struct codec *codec, enum record_type type, const void *record,
                 struct buffer *buffer, struct error *error)
{
    const size_t head = FRAMING_SINGLE_OBJECT_SIZE;

    if (buffer->capacity < head) {
        uint8_t *grown = realloc(buffer->data, head);

        if (!grown)
            return error_set(error, "%s: out of memory", record_bindings[type]->name);
        buffer->data = grown;
        buffer->capacity = head;
    }
    framing_write_single_object(buffer->data, codec->writers[type].fingerprint);
    buffer->size = head;
    return avro_write_struct(buffer, head + BODY_MAX, record_bindings[type], record, error);
}

/* The writer's schema a frame names. A registry client for Confluent framing belongs here: it would
 * add the writer it fetched, or return CODEC_RETRY while the registry does not answer. */
static enum codec_status writer_find(struct codec *codec, const struct frame *frame,
                                     struct writer **out, struct error *error)
{
    if (frame->kind == FRAMING_CONFLUENT) {
        error_set(error, "the payload names schema id %u of a registry, but none is configured",
                  frame->schema_id);
        return CODEC_UNKNOWN_SCHEMA;
    }
    for (size_t i = 0; i < codec->count; i++)
        if (codec->writers[i].fingerprint == frame->fingerprint) {
            *out = &codec->writers[i];
            return CODEC_OK;
        }
    error_set(error,
              "no schema with fingerprint %016llx is known; put the writer's .avsc into "
              "schema.dir",
              (unsigned long long)frame->fingerprint);
    return CODEC_UNKNOWN_SCHEMA;
}

enum codec_status codec_decode(struct codec *codec, enum record_type type, const void *data,
                               size_t size, struct arena *arena, void *record, struct error *error)
{
    struct frame frame;
    struct writer *writer = NULL;
    enum codec_status status;
    bool plain;

    if (framing_read(data, size, &frame, error))
        return CODEC_BAD_FRAME;
    status = writer_find(codec, &frame, &writer, error);
    if (status)
        return status;
    if (writer->type != type) {
        error_set(error, "the payload is a %s, not a %s", record_bindings[writer->type]->name,
                  record_bindings[type]->name);
        return CODEC_UNKNOWN_SCHEMA;
    }
    if (skim_check(writer->skim, frame.body, frame.body_size, &plain, error))
        return CODEC_BAD_PAYLOAD;
    if (plain && writer->fingerprint == codec->writers[type].fingerprint)
        return avro_read_struct(frame.body, record_bindings[type], arena, record, error);
    avro_reader_memory_set_source(codec->reader, (const char *)frame.body,
                                  (int64_t)frame.body_size);
    if (avro_value_reset(&writer->value) || avro_value_read(codec->reader, &writer->value)) {
        /* The skim left it no other reason to fail. */
        error_set(error, "out of memory: Avro C: %s", avro_strerror());
        return CODEC_NO_MEMORY;
    }
    return avro_value_to_struct(&writer->value, record_bindings[type], arena, record, error);
}

const char *codec_schema_json(enum record_type type)
{
    return embedded_schemas[type];
}

static uint64_t own_fingerprints[RECORD_TYPE_COUNT];

static void own_fingerprints_compute(void)
{
    for (int type = 0; type < RECORD_TYPE_COUNT; type++)
        if (fingerprint_of(embedded_schemas[type], strlen(embedded_schemas[type]),
                           &own_fingerprints[type], NULL))
            abort(); /* a schema compiled into the program is broken */
}

uint64_t codec_schema_fingerprint(enum record_type type)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;

    pthread_once(&once, own_fingerprints_compute);
    return own_fingerprints[type];
}

const char *codec_record_name(enum record_type type)
{
    return record_bindings[type]->name;
}
