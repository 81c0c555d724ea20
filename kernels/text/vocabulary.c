/* SPDX-License-Identifier: MIT */
#include "kernels/text/vocabulary.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>

struct vocabulary {
    json_t *ids;         /* piece -> id; only read */
    struct text *pieces; /* (size) point into ids' keys */
    int32_t size;
};

static int pieces_fill(struct vocabulary *vocabulary, const char *path, struct error *error)
{
    const char *piece;
    json_t *value;

    json_object_foreach(vocabulary->ids, piece, value)
    {
        json_int_t id = json_is_integer(value) ? json_integer_value(value) : -1;

        if (id < 0 || id >= vocabulary->size)
            return error_set(error,
                             "%s: piece \"%.64s\" has id %lld; ids are 0..%d, as in the "
                             "model's vocab_size",
                             path, piece, (long long)id, vocabulary->size - 1);
        vocabulary->pieces[id] = (struct text){piece, strlen(piece)};
    }
    return 0;
}

struct vocabulary *vocabulary_open(const char *path, int32_t size, struct error *error)
{
    struct vocabulary *vocabulary = calloc(1, sizeof *vocabulary);
    json_error_t json;

    if (!vocabulary) {
        error_set(error, "%s: out of memory", path);
        return NULL;
    }
    vocabulary->size = size;
    vocabulary->pieces = calloc((size_t)size, sizeof *vocabulary->pieces);
    vocabulary->ids = json_load_file(path, JSON_REJECT_DUPLICATES, &json);
    if (!vocabulary->pieces)
        error_set(error, "%s: out of memory", path);
    else if (!vocabulary->ids)
        error_set(error, "%s: line %d: %s", path, json.line, json.text);
    else if (!json_is_object(vocabulary->ids))
        error_set(error, "%s: not a JSON object of pieces and ids", path);
    else if (!pieces_fill(vocabulary, path, error))
        return vocabulary;
    vocabulary_close(vocabulary);
    return NULL;
}

void vocabulary_close(struct vocabulary *vocabulary)
{
    if (!vocabulary)
        return;
    json_decref(vocabulary->ids);
    free(vocabulary->pieces);
    free(vocabulary);
}

int32_t vocabulary_find(const struct vocabulary *vocabulary, const char *piece, size_t size)
{
    json_t *value = json_object_getn(vocabulary->ids, piece, size);

    return value ? (int32_t)json_integer_value(value) : -1;
}

struct text vocabulary_piece(const struct vocabulary *vocabulary, int32_t id)
{
    return vocabulary->pieces[id];
}

int32_t vocabulary_size(const struct vocabulary *vocabulary)
{
    return vocabulary->size;
}
