/* SPDX-License-Identifier: MIT
 *
 * Fuzz target of the codec. The first byte says what the rest is: the body of a payload of writer
 * schema number N (the product's own, then those of tests/schema_versions in order of name), or
 * FRAMED bytes as they come from Kafka, or the JSON text of a SCHEMA. Whatever decodes must encode
 * again, and to the same bytes twice; whatever the skim lets through, Avro C must read, and what is
 * read without it, of the product's own schemas, must be what it reads.
 */
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "schema/canonical.h"
#include "schema/codec.h"
#include "schema/framing.h"
#include "schema/skim.h"
#include "tests/schema/twin_schemas.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
const char *__lsan_default_options(void);

/* Avro C packs a record's fields: pointers to what a map holds may lie at odd addresses. */
const char *__lsan_default_options(void)
{
    return "use_unaligned=1";
}

#define DIRECTORY PGPT_SOURCE_DIR "/tests/schema_versions"

enum { KIND_FRAMED = 255, KIND_SCHEMA = 254, WRITERS_MAX = 64, ARENA_MAX = 256 << 20 };

static struct {
    struct codec *codec;
    struct arena *arena, *second_arena;
    struct buffer first, second;
    struct twin_schemas twins;
    struct {
        enum record_type type;
        uint64_t fingerprint;
    } writers[WRITERS_MAX];
    int count;
} fuzz;

static void require(int condition, const char *what, const struct error *error)
{
    if (condition)
        return;
    fprintf(stderr, "%s: %s\n", what, error->message);
    abort();
}

static void writer_add(const char *name)
{
    static char text[1 << 16];
    struct error error = {""};
    char path[4096], *canonical;
    size_t size;
    FILE *file;

    snprintf(path, sizeof path, "%s/%s", DIRECTORY, name);
    file = fopen(path, "rb");
    require(file != NULL && fuzz.count < WRITERS_MAX, path, &error);
    size = fread(text, 1, sizeof text, file);
    fclose(file);
    canonical = canonical_form(text, size, &error);
    require(canonical != NULL, path, &error);
    for (int type = 0; type < RECORD_TYPE_COUNT; type++) {
        const char *record = codec_record_name((enum record_type)type);

        if (!strncmp(name, record, strlen(record)) && name[strlen(record)] == '.')
            fuzz.writers[fuzz.count].type = (enum record_type)type;
    }
    fuzz.writers[fuzz.count++].fingerprint = canonical_crc64(canonical, strlen(canonical));
    free(canonical);
}

static int is_schema(const struct dirent *entry)
{
    return strstr(entry->d_name, ".avsc") != NULL;
}

static void setup(void)
{
    const char *directories[] = {DIRECTORY, fuzz.twins.directory, NULL};
    struct error error = {""};
    struct dirent **entries;
    int count = scandir(DIRECTORY, &entries, is_schema, alphasort);

    require(!twin_schemas_make(&fuzz.twins, ARENA_MAX), "twin schemas", &error);
    fuzz.codec = codec_open(directories, &error);
    (void)twin_schemas_remove(&fuzz.twins);
    require(fuzz.codec != NULL && count > 0, "codec_open", &error);
    fuzz.arena = arena_create(1 << 16, ARENA_MAX);
    fuzz.second_arena = arena_create(1 << 16, ARENA_MAX);
    require(fuzz.arena && fuzz.second_arena, "arena_create", &error);
    for (; fuzz.count < RECORD_TYPE_COUNT; fuzz.count++) {
        fuzz.writers[fuzz.count].type = (enum record_type)fuzz.count;
        fuzz.writers[fuzz.count].fingerprint =
            codec_schema_fingerprint((enum record_type)fuzz.count);
    }
    for (int i = 0; i < count; i++) {
        writer_add(entries[i]->d_name);
        free(entries[i]);
    }
    free(entries);
}

static void check_framed(enum record_type type, const uint8_t *data, size_t size)
{
    union any_record record, again;
    struct error error = {""};
    enum codec_status status;

    arena_reset(fuzz.arena);
    status = codec_decode(fuzz.codec, type, data, size, fuzz.arena, &record, &error);
    require(status != CODEC_NO_MEMORY, "what the skim let through could not be read", &error);
    require(status == CODEC_OK || error.message[0], "a failure without a message", &error);
    if (status)
        return;
    require(!codec_encode(fuzz.codec, type, &record, &fuzz.first, &error), "encode", &error);
    arena_reset(fuzz.second_arena);
    status = codec_decode(fuzz.codec, type, fuzz.first.data, fuzz.first.size, fuzz.second_arena,
                          &again, &error);
    require(status == CODEC_OK, "decode of what was encoded", &error);
    require(!codec_encode(fuzz.codec, type, &again, &fuzz.second, &error), "encode", &error);
    require(fuzz.first.size == fuzz.second.size &&
                !memcmp(fuzz.first.data, fuzz.second.data, fuzz.first.size),
            "the second encoding differs", &error);
}

static void check_twin(enum record_type type, const uint8_t *body, size_t size)
{
    const char *differs = twin_differs(&fuzz.twins, fuzz.codec, type, body, size);

    require(!differs, differs, &fuzz.twins.errors[0]);
}

static void check_schema(const uint8_t *data, size_t size)
{
    struct error error = {""};
    char *canonical = canonical_form((const char *)data, size, &error);
    struct skim_schema *skim;

    if (canonical) {
        char *again = canonical_form(canonical, strlen(canonical), &error);

        require(again && !strcmp(canonical, again), "the canonical form is not its own", &error);
        free(again);
    }
    free(canonical);
    skim = skim_compile((const char *)data, size, &error);
    if (skim)
        (void)!skim_check(skim, data, size, NULL, &error);
    skim_free(skim);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (!fuzz.codec)
        setup();
    if (!size)
        return 0;
    if (data[0] == KIND_FRAMED) {
        check_framed((enum record_type)(size > 1 ? data[size - 1] % RECORD_TYPE_COUNT : 0),
                     data + 1, size - 1);
    } else if (data[0] == KIND_SCHEMA) {
        check_schema(data + 1, size - 1);
    } else {
        int writer = data[0] % fuzz.count;
        size_t framed = FRAMING_SINGLE_OBJECT_SIZE + size - 1;
        uint8_t *bytes = malloc(framed);

        if (!bytes)
            return 0;
        framing_write_single_object(bytes, fuzz.writers[writer].fingerprint);
        memcpy(bytes + FRAMING_SINGLE_OBJECT_SIZE, data + 1, size - 1);
        check_framed(fuzz.writers[writer].type, bytes, framed);
        free(bytes);
        if (writer < RECORD_TYPE_COUNT)
            check_twin(fuzz.writers[writer].type, data + 1, size - 1);
    }
    return 0;
}
