/* SPDX-License-Identifier: MIT */
#include "kernels/tool/golden.h"

#include <jansson.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "kernels/model/safetensors.h"

enum { ARENA_MAX = 1 << 30, MAX_NEW = 128, CASES_MAX = 100000 };

struct loader {
    struct golden *golden;
    const struct engine_limits *limits;
    int32_t at; /* case */
    struct error *error;
};

static int wrong(const struct loader *l, const char *key, const char *need)
{
    return error_set(l->error, "cases.json: case %d: %.64s must be %s", l->at, key, need);
}

static int no_memory(const struct loader *l)
{
    return error_set(l->error, "cases.json: case %d: out of memory", l->at);
}

/* A list of least..most token ids. */
static int ids_read(const struct loader *l, const char *key, const json_t *list, int32_t least,
                    int32_t most, struct golden_ids *out)
{
    size_t count = json_array_size(list);
    char need[96];
    int32_t *ids;

    snprintf(need, sizeof need, "a list of %d to %d token ids below %d", least, most,
             l->limits->vocabulary);
    if (!json_is_array(list) || count < (size_t)least || count > (size_t)most)
        return wrong(l, key, need);
    ids = arena_calloc(l->golden->arena, count + 1, sizeof *ids);
    if (!ids)
        return no_memory(l);
    for (size_t i = 0; i < count; i++) {
        const json_t *id = json_array_get(list, i);

        if (!json_is_integer(id) || json_integer_value(id) < 0 ||
            json_integer_value(id) >= l->limits->vocabulary)
            return wrong(l, key, need);
        ids[i] = (int32_t)json_integer_value(id);
    }
    out->ids = ids;
    out->count = (int32_t)count;
    return 0;
}

static int int_read(const struct loader *l, const json_t *object, const char *key, int64_t least,
                    int64_t most, int64_t absent, int32_t *out)
{
    const json_t *value = json_object_get(object, key);
    int64_t number = value ? json_integer_value(value) : absent;
    char need[64];

    snprintf(need, sizeof need, "an integer in %lld..%lld", (long long)least, (long long)most);
    if ((value && !json_is_integer(value)) || number < least || number > most)
        return wrong(l, key, need);
    *out = (int32_t)number;
    return 0;
}

static int real_read(const struct loader *l, const json_t *object, const char *key, double *out)
{
    const json_t *value = json_object_get(object, key);

    if (!json_is_number(value))
        return wrong(l, key, "a number");
    *out = json_number_value(value);
    return 0;
}

/* Absent and null leave data NULL. */
static int text_read(const struct loader *l, const json_t *object, const char *key,
                     struct text *out)
{
    const json_t *value = json_object_get(object, key);

    if (!value || json_is_null(value))
        return 0;
    if (!json_is_string(value))
        return wrong(l, key, "a string");
    *out = arena_text(l->golden->arena, json_string_value(value), json_string_length(value));
    return out->data ? 0 : no_memory(l);
}

static int top_read(const struct loader *l, const json_t *list, struct golden_warped *out)
{
    size_t count = json_array_size(list);
    int32_t *ids = arena_calloc(l->golden->arena, count + 1, sizeof *ids);
    double *probabilities = arena_calloc(l->golden->arena, count + 1, sizeof *probabilities);

    if (!ids || !probabilities)
        return no_memory(l);
    if (!count || count > (size_t)l->limits->vocabulary)
        return wrong(l, "warped.top", "a list of [id, probability]");
    for (size_t i = 0; i < count; i++) {
        const json_t *pair = json_array_get(list, i);
        const json_t *id = json_array_get(pair, 0), *probability = json_array_get(pair, 1);

        if (!json_is_integer(id) || !json_is_number(probability) || json_integer_value(id) < 0 ||
            json_integer_value(id) >= l->limits->vocabulary)
            return wrong(l, "warped.top", "a list of [id, probability]");
        ids[i] = (int32_t)json_integer_value(id);
        probabilities[i] = json_number_value(probability);
    }
    out->top_ids = ids;
    out->top_probabilities = probabilities;
    out->top_count = (int32_t)count;
    return 0;
}

static int warped_read(const struct loader *l, const json_t *list, struct golden_case *out)
{
    size_t count = json_array_size(list);
    struct golden_warped *warped = arena_calloc(l->golden->arena, count + 1, sizeof *warped);
    int32_t V = l->limits->vocabulary;

    if (!warped)
        return no_memory(l);
    for (size_t i = 0; i < count; i++) {
        const json_t *from = json_array_get(list, i);
        struct golden_warped *w = &warped[i];

        if (ids_read(l, "warped.prefix", json_object_get(from, "prefix"), 1, l->limits->max_new,
                     &w->prefix) ||
            real_read(l, from, "temperature", &w->temperature) ||
            real_read(l, from, "top_p", &w->top_p) ||
            real_read(l, from, "repetition_penalty", &w->repetition_penalty) ||
            int_read(l, from, "top_k", 0, INT32_MAX, 0, &w->top_k) ||
            int_read(l, from, "support", 1, V, 0, &w->support) ||
            top_read(l, json_object_get(from, "top"), w))
            return -1;
        w->top_k = w->top_k > V ? V : w->top_k; /* as Hugging Face takes it */
    }
    out->warped = warped;
    out->warped_count = (int32_t)count;
    return 0;
}

/* The kind that a key like "beam4_ids" names, added when it is new; -1 = the key names none. */
static int32_t kind_find(struct golden *golden, const char *key)
{
    struct golden_kind kind = {.mode = GOLDEN_GREEDY, .value = 1};
    const char *suffix = strrchr(key, '_');
    char *end;

    if (!suffix || strcmp(suffix, "_ids") || suffix - key >= (ptrdiff_t)sizeof kind.name)
        return -1;
    snprintf(kind.name, sizeof kind.name, "%.*s", (int)(suffix - key), key);
    if (!strncmp(kind.name, "greedy_rep", 10)) {
        kind.mode = GOLDEN_PENALTY;
        kind.value = strtod(kind.name + 10, &end);
    } else if (!strncmp(kind.name, "beam", 4)) {
        kind.mode = GOLDEN_BEAM;
        kind.value = (double)strtol(kind.name + 4, &end, 10);
    } else if (!strcmp(kind.name, "greedy")) {
        end = "";
    } else {
        return -1;
    }
    if (*end || !(kind.value > 0))
        return -1;
    for (int32_t i = 0; i < golden->kind_count; i++)
        if (!strcmp(golden->kinds[i].name, kind.name))
            return i;
    if (golden->kind_count == GOLDEN_KINDS_MAX)
        return -1;
    golden->kinds[golden->kind_count] = kind;
    return golden->kind_count++;
}

static int case_read(const struct loader *l, json_t *from, struct golden_case *out)
{
    const json_t *warped = json_object_get(from, "warped");
    const char *key;
    json_t *value;

    if (!json_is_object(from))
        return wrong(l, "the case", "an object");
    if (ids_read(l, "input_ids", json_object_get(from, "input_ids"), 1, l->limits->max_source,
                 &out->source) ||
        int_read(l, from, "max_new_tokens", 1, l->limits->max_new,
                 MAX_NEW < l->limits->max_new ? MAX_NEW : l->limits->max_new, &out->max_new) ||
        text_read(l, from, "prompt", &out->prompt) ||
        text_read(l, from, "target_language", &out->target_language) ||
        text_read(l, from, "author", &out->author) ||
        text_read(l, from, "greedy_text", &out->greedy_text) ||
        (warped && warped_read(l, warped, out)))
        return -1;
    json_object_foreach(from, key, value)
    {
        int32_t kind = strcmp(key, "input_ids") ? kind_find(l->golden, key) : -1;

        if (kind >= 0 && ids_read(l, key, value, 2, l->limits->max_new + 1, &out->outputs[kind]))
            return -1;
    }
    return 0;
}

static int cases_load(struct loader *l, const char *directory)
{
    struct golden *golden = l->golden;
    char path[PATH_MAX];
    json_error_t why;
    json_t *list;
    int status = 0;

    if ((size_t)snprintf(path, sizeof path, "%s/cases.json", directory) >= sizeof path)
        return error_set(l->error, "%.200s: the path is too long", directory);
    list = json_load_file(path, JSON_REJECT_DUPLICATES, &why);
    if (!list)
        return error_set(l->error, "%s: %s (line %d)", path, why.text, why.line);
    golden->count = (int32_t)json_array_size(list);
    if (!json_is_array(list) || !golden->count || golden->count > CASES_MAX)
        status = error_set(l->error, "%s: must be a list of 1 to %d cases", path, CASES_MAX);
    else if (!(golden->cases =
                   arena_calloc(golden->arena, (size_t)golden->count, sizeof *golden->cases)))
        status = no_memory(l);
    for (l->at = 0; !status && l->at < golden->count; l->at++)
        status = case_read(l, json_array_get(list, (size_t)l->at), &golden->cases[l->at]);
    json_decref(list);
    return status;
}

/* caseN.NAME, when it is there, must have this shape. */
static int tensor_find(const struct golden *golden, int32_t at, const char *name, int64_t rows,
                       int64_t cols, struct model_tensor *out, struct error *error)
{
    char full[48];

    snprintf(full, sizeof full, "case%d.%s", at, name);
    if (!safetensors_find(golden->tensors, full, out)) {
        *out = (struct model_tensor){0};
        return 0;
    }
    if (out->rows == rows && out->cols == cols)
        return 0;
    return error_set(error, "tensors.safetensors: %s has shape (%lld, %lld), not (%lld, %lld)",
                     full, (long long)out->rows, (long long)out->cols, (long long)rows,
                     (long long)cols);
}

static int tensors_load(struct golden *golden, const char *directory,
                        const struct engine_limits *limits, int32_t d_model, struct error *error)
{
    char path[PATH_MAX];
    int32_t greedy = kind_find(golden, "greedy_ids");

    if ((size_t)snprintf(path, sizeof path, "%s/tensors.safetensors", directory) >= sizeof path)
        return error_set(error, "%.200s: the path is too long", directory);
    if (access(path, F_OK))
        return 0;
    golden->tensors = safetensors_open(path, error);
    if (!golden->tensors)
        return -1;
    for (int32_t i = 0; i < golden->count; i++) {
        struct golden_case *c = &golden->cases[i];
        int64_t prefix = greedy >= 0 ? c->outputs[greedy].count - 1 : 0;

        if (tensor_find(golden, i, "encoder", c->source.count, d_model, &c->encoder, error) ||
            tensor_find(golden, i, "logits", prefix, limits->vocabulary, &c->logits, error))
            return -1;
    }
    return 0;
}

struct golden *golden_open(const char *directory, const struct engine_limits *limits,
                           int32_t d_model, struct error *error)
{
    struct golden *golden = calloc(1, sizeof *golden);
    struct loader loader = {golden, limits, 0, error};

    if (golden)
        golden->arena = arena_create(1 << 20, ARENA_MAX);
    if (!golden || !golden->arena)
        error_set(error, "out of memory");
    else if (!cases_load(&loader, directory) &&
             !tensors_load(golden, directory, limits, d_model, error))
        return golden;
    golden_close(golden);
    return NULL;
}

void golden_close(struct golden *golden)
{
    if (!golden)
        return;
    safetensors_close(golden->tensors);
    arena_destroy(golden->arena);
    free(golden);
}
