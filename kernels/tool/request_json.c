/* SPDX-License-Identifier: MIT */
#include "kernels/tool/request_json.h"

#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/text/utf8.h"

enum field_kind {
    FIELD_ID,
    FIELD_TEXT,
    FIELD_BOOLEAN,
    FIELD_INT,
    FIELD_LONG,
    FIELD_OPTIONAL_LONG,
    FIELD_FLOAT,
    FIELD_TOKENS,
    FIELD_TEXTS,
    FIELD_MAP,
};

struct field {
    const char *name;
    enum field_kind kind;
    size_t offset;
    size_t has_offset; /* of the flag or the count beside it */
};

#define AT(member) offsetof(struct generation_request, member)

static const struct field fields[] = {
    {"job_id", FIELD_ID, AT(job_id), 0},
    {"prompt", FIELD_TEXT, AT(prompt), 0},
    {"source_tokens", FIELD_TOKENS, AT(source_tokens), AT(source_token_count)},
    {"target_language", FIELD_TEXT, AT(target_language), 0},
    {"author", FIELD_TEXT, AT(author), 0},
    {"max_length", FIELD_INT, AT(max_length), 0},
    {"min_length", FIELD_INT, AT(min_length), 0},
    {"do_sample", FIELD_BOOLEAN, AT(do_sample), 0},
    {"temperature", FIELD_FLOAT, AT(temperature), 0},
    {"top_k", FIELD_INT, AT(top_k), 0},
    {"top_p", FIELD_FLOAT, AT(top_p), 0},
    {"repetition_penalty", FIELD_FLOAT, AT(repetition_penalty), 0},
    {"length_penalty", FIELD_FLOAT, AT(length_penalty), 0},
    {"num_beams", FIELD_INT, AT(num_beams), 0},
    {"num_return_sequences", FIELD_INT, AT(num_return_sequences), 0},
    {"early_stopping", FIELD_BOOLEAN, AT(early_stopping), 0},
    {"stop", FIELD_TEXTS, AT(stop), AT(stop_count)},
    {"seed", FIELD_OPTIONAL_LONG, AT(seed), AT(has_seed)},
    {"stream", FIELD_BOOLEAN, AT(stream), 0},
    {"stream_interval", FIELD_INT, AT(stream_interval), 0},
    {"priority", FIELD_INT, AT(priority), 0},
    {"deadline_us", FIELD_OPTIONAL_LONG, AT(deadline_us), AT(has_deadline)},
    {"tenant", FIELD_TEXT, AT(tenant), 0},
    {"model", FIELD_TEXT, AT(model), 0},
    {"created_at_us", FIELD_LONG, AT(created_at_us), 0},
    {"metadata", FIELD_MAP, AT(metadata), AT(metadata_count)},
};

/* What a field of this kind must be. */
static const char *field_need(enum field_kind kind)
{
    switch (kind) {
    case FIELD_ID:
        return "a UUID of 36 characters";
    case FIELD_TEXT:
        return "a string";
    case FIELD_BOOLEAN:
        return "true or false";
    case FIELD_INT:
        return "an integer in -2147483648..2147483647";
    case FIELD_LONG:
        return "an integer of 64 bits";
    case FIELD_OPTIONAL_LONG:
        return "null or an integer of 64 bits";
    case FIELD_FLOAT:
        return "a number";
    case FIELD_TOKENS:
        return "null or a list of integers in -2147483648..2147483647";
    case FIELD_TEXTS:
        return "a list of strings";
    case FIELD_MAP:
        return "an object of strings";
    }
    return "of its type";
}

struct reader {
    struct arena *arena;
    char *request; /* the struct, by bytes */
    struct validate_problems *problems;
};

enum { READ_OK = 0, READ_WRONG = 1, READ_NO_MEMORY = -1 };

/* ---- one kind each: READ_... ---- */

static int text_read(const struct reader *reader, const json_t *value, struct text *out)
{
    struct text copy;

    if (!json_is_string(value))
        return READ_WRONG;
    copy = arena_text(reader->arena, json_string_value(value), json_string_length(value));
    if (!copy.data)
        return READ_NO_MEMORY;
    *out = copy;
    return READ_OK;
}

static bool id_valid(struct text id)
{
    if (id.size != 36)
        return false;
    for (size_t i = 0; i < 36; i++) {
        bool dash = i == 8 || i == 13 || i == 18 || i == 23;

        if (dash ? id.data[i] != '-' : !strchr("0123456789abcdefABCDEF", id.data[i]) || !id.data[i])
            return false;
    }
    return true;
}

static int id_read(const struct reader *reader, const json_t *value, struct text *out)
{
    int status = text_read(reader, value, out);

    return status ? status : id_valid(*out) ? READ_OK : READ_WRONG;
}

static bool int_fits(const json_t *value)
{
    return json_is_integer(value) && json_integer_value(value) >= INT32_MIN &&
           json_integer_value(value) <= INT32_MAX;
}

static int tokens_read(const struct reader *reader, const json_t *value, const int32_t **out,
                       size_t *count)
{
    struct generation_request *request = (struct generation_request *)reader->request;
    size_t size = json_array_size(value);
    int32_t *tokens;

    if (json_is_null(value))
        return READ_OK;
    if (!json_is_array(value))
        return READ_WRONG;
    for (size_t i = 0; i < size; i++)
        if (!int_fits(json_array_get(value, i)))
            return READ_WRONG;
    tokens = arena_calloc(reader->arena, size + 1, sizeof *tokens);
    if (!tokens)
        return READ_NO_MEMORY;
    for (size_t i = 0; i < size; i++)
        tokens[i] = (int32_t)json_integer_value(json_array_get(value, i));
    *out = tokens;
    *count = size;
    request->has_source_tokens = true;
    return READ_OK;
}

static int texts_read(const struct reader *reader, const json_t *value, const struct text **out,
                      size_t *count)
{
    size_t size = json_array_size(value);
    struct text *texts = arena_calloc(reader->arena, size + 1, sizeof *texts);

    if (!texts)
        return READ_NO_MEMORY;
    if (!json_is_array(value))
        return READ_WRONG;
    for (size_t i = 0; i < size; i++) {
        int status = text_read(reader, json_array_get(value, i), &texts[i]);

        if (status)
            return status;
    }
    *out = texts;
    *count = size;
    return READ_OK;
}

static int map_read(const struct reader *reader, const json_t *value, const struct text_pair **out,
                    size_t *count)
{
    struct text_pair *pairs =
        arena_calloc(reader->arena, json_object_size(value) + 1, sizeof *pairs);
    const char *key;
    json_t *item;
    size_t at = 0;

    if (!pairs)
        return READ_NO_MEMORY;
    if (!json_is_object(value))
        return READ_WRONG;
    json_object_foreach((json_t *)value, key, item)
    {
        int status = text_read(reader, item, &pairs[at].value);

        if (status)
            return status;
        pairs[at].key = arena_text(reader->arena, key, strlen(key));
        if (!pairs[at++].key.data)
            return READ_NO_MEMORY;
    }
    *out = pairs;
    *count = at;
    return READ_OK;
}

static int long_read(const json_t *value, int64_t *out)
{
    if (!json_is_integer(value))
        return READ_WRONG;
    *out = json_integer_value(value);
    return READ_OK;
}

static int field_read(const struct reader *reader, const struct field *field, const json_t *value)
{
    char *out = reader->request + field->offset, *beside = reader->request + field->has_offset;

    switch (field->kind) {
    case FIELD_ID:
        return id_read(reader, value, (struct text *)out);
    case FIELD_TEXT:
        return text_read(reader, value, (struct text *)out);
    case FIELD_BOOLEAN:
        if (!json_is_boolean(value))
            return READ_WRONG;
        *(bool *)out = json_is_true(value);
        return READ_OK;
    case FIELD_INT:
        if (!int_fits(value))
            return READ_WRONG;
        *(int32_t *)out = (int32_t)json_integer_value(value);
        return READ_OK;
    case FIELD_LONG:
        return long_read(value, (int64_t *)out);
    case FIELD_OPTIONAL_LONG:
        *(bool *)beside = json_is_integer(value);
        return json_is_null(value) ? READ_OK : long_read(value, (int64_t *)out);
    case FIELD_FLOAT:
        if (!json_is_number(value))
            return READ_WRONG;
        *(float *)out = (float)json_number_value(value);
        return READ_OK;
    case FIELD_TOKENS:
        return tokens_read(reader, value, (const int32_t **)out, (size_t *)beside);
    case FIELD_TEXTS:
        return texts_read(reader, value, (const struct text **)out, (size_t *)beside);
    case FIELD_MAP:
        return map_read(reader, value, (const struct text_pair **)out, (size_t *)beside);
    }
    return READ_WRONG;
}

/* ---- problems ---- */

enum { SHOWN_BYTES = 64 };

/* FORMAT's %.*s%s shows the value, cut at a character. */
static void problem(struct validate_problems *problems, const char *name, const json_t *value,
                    const char *need)
{
    char *text = json_dumps(value, JSON_ENCODE_ANY | JSON_COMPACT);
    size_t size = text ? strlen(text) : 0, shown = text ? utf8_cut(text, size, SHOWN_BYTES) : 0;
    size_t name_size = utf8_cut(name, strlen(name), SHOWN_BYTES);

    validate_problem(problems, "%.*s: %.*s%s %s", (int)name_size, name, (int)shown,
                     text ? text : "", shown < size ? "..." : "", need);
    free(text);
}

static int member_read(const struct reader *reader, const char *name, const json_t *value)
{
    char need[128];
    int status;

    for (size_t i = 0; i < sizeof fields / sizeof fields[0]; i++) {
        if (strcmp(fields[i].name, name))
            continue;
        status = field_read(reader, &fields[i], value);
        snprintf(need, sizeof need, "is not %s", field_need(fields[i].kind));
        if (status == READ_WRONG)
            problem(reader->problems, name, value, need);
        return status == READ_NO_MEMORY ? -1 : 0;
    }
    problem(reader->problems, name, value,
            "is given, but GenerationRequest has no such field (pgpt-engine generate --help lists "
            "them)");
    return 0;
}

/* jansson shows the text near a fault, which may be cut within a character or be none. */
static int unreadable(struct error *error, const json_error_t *why)
{
    size_t size;

    error_set(error, "it is no JSON: %.200s (column %d)", why->text, why->column);
    size = strlen(error->message);
    for (size_t at = 0; at < size;) {
        uint32_t code;
        int length = utf8_decode(error->message + at, size - at, &code);

        if (!length)
            error->message[at] = '?';
        at += length ? (size_t)length : 1;
    }
    return -1;
}

int request_json_read(const char *line, size_t size, struct arena *arena,
                      struct generation_request *request, struct validate_problems *problems,
                      struct error *error)
{
    struct reader reader = {arena, (char *)request, problems};
    json_error_t why;
    json_t *object = json_loadb(line, size, JSON_REJECT_DUPLICATES | JSON_ALLOW_NUL, &why), *value;
    const char *name;
    int status = 0;

    memset(problems, 0, sizeof *problems);
    generation_request_init(request);
    if (!object)
        return unreadable(error, &why);
    if (!json_is_object(object)) {
        json_decref(object);
        return error_set(error, "it is no JSON object");
    }
    json_object_foreach(object, name, value)
    {
        if (member_read(&reader, name, value)) {
            status = error_set(error, "the request needs too much memory");
            break;
        }
    }
    json_decref(object);
    return status;
}

void request_json_id(int64_t number, char *out)
{
    uint64_t n = (uint64_t)number;

    snprintf(out, 37, "%08" PRIx32 "-%04x-%04x-0000-000000000000", (uint32_t)(n >> 32),
             (unsigned)(n >> 16 & 0xffff), (unsigned)(n & 0xffff));
}
