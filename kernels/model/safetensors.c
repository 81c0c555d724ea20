/* SPDX-License-Identifier: MIT */
#include "kernels/model/safetensors.h"

#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

enum {
    HEADER_MAX = 4 << 20, /* bytes of JSON: a 12-layer model has about 40 KiB */
    TENSORS_MAX = 65536
};

struct entry {
    char *name;
    struct model_tensor tensor;
    uint64_t begin, end;
};

struct safetensors {
    const unsigned char *bytes;
    size_t size;
    void *mapping;         /* NULL when the bytes are the caller's */
    struct entry *entries; /* (count) by name */
    size_t count;
};

static size_t dtype_size(enum model_dtype dtype)
{
    return dtype == MODEL_F32 ? 4 : 2;
}

static int dtype_parse(const char *text, enum model_dtype *dtype)
{
    if (!strcmp(text, "F32"))
        *dtype = MODEL_F32;
    else if (!strcmp(text, "F16"))
        *dtype = MODEL_F16;
    else if (!strcmp(text, "BF16"))
        *dtype = MODEL_BF16;
    else
        return -1;
    return 0;
}

/* rows and cols from a shape of 1 or 2 dimensions, each 1..2^31-1. */
static int shape_parse(const json_t *shape, struct model_tensor *tensor)
{
    size_t n = json_array_size(shape);
    int64_t dims[2] = {1, 1};

    if (!json_is_array(shape) || n < 1 || n > 2)
        return -1;
    for (size_t i = 0; i < n; i++) {
        const json_t *dim = json_array_get(shape, i);

        if (!json_is_integer(dim) || json_integer_value(dim) < 1 ||
            json_integer_value(dim) > INT32_MAX)
            return -1;
        dims[2 - n + i] = json_integer_value(dim);
    }
    tensor->rows = dims[0];
    tensor->cols = dims[1];
    return 0;
}

static int entry_parse(const struct safetensors *file, size_t data_start, const char *name,
                       const json_t *value, struct entry *entry, const char *where,
                       struct error *error)
{
    const char *dtype = json_string_value(json_object_get(value, "dtype"));
    const json_t *offsets = json_object_get(value, "data_offsets");
    const json_t *first = json_array_get(offsets, 0), *last = json_array_get(offsets, 1);
    uint64_t bytes;

    if (!dtype || json_array_size(offsets) != 2 || !json_is_integer(first) ||
        !json_is_integer(last))
        return error_set(error, "%s: tensor %.200s: dtype, shape or data_offsets is missing", where,
                         name);
    if (dtype_parse(dtype, &entry->tensor.dtype))
        return error_set(error,
                         "%s: tensor %.200s: dtype %s is not supported; convert to F32, F16 or "
                         "BF16",
                         where, name, dtype);
    if (shape_parse(json_object_get(value, "shape"), &entry->tensor))
        return error_set(error,
                         "%s: tensor %.200s: its shape must have 1 or 2 dimensions of 1..2^31-1",
                         where, name);
    entry->begin = (uint64_t)json_integer_value(first);
    entry->end = (uint64_t)json_integer_value(last);
    bytes = (uint64_t)entry->tensor.rows * (uint64_t)entry->tensor.cols *
            dtype_size(entry->tensor.dtype);
    if (json_integer_value(first) < 0 || entry->end < entry->begin ||
        entry->end > file->size - data_start)
        return error_set(error,
                         "%s: tensor %.200s: data_offsets lie outside the file of %zu bytes; it "
                         "is truncated or damaged",
                         where, name, file->size);
    if (entry->end - entry->begin != bytes)
        return error_set(
            error, "%s: tensor %.200s: data_offsets span %llu bytes, its shape needs %llu", where,
            name, (unsigned long long)(entry->end - entry->begin), (unsigned long long)bytes);
    entry->tensor.data = file->bytes + data_start + entry->begin;
    entry->name = strdup(name);
    if (!entry->name)
        return error_set(error, "%s: out of memory", where);
    return 0;
}

static int entry_by_name(const void *a, const void *b)
{
    return strcmp(((const struct entry *)a)->name, ((const struct entry *)b)->name);
}

static int entry_by_begin(const void *a, const void *b)
{
    uint64_t x = ((const struct entry *)a)->begin, y = ((const struct entry *)b)->begin;

    return (x > y) - (x < y);
}

/* The tensors must cover the data exactly once: no overlap, no hole, nothing behind. */
static int coverage_check(struct safetensors *file, size_t data_size, const char *where,
                          struct error *error)
{
    uint64_t at = 0;

    qsort(file->entries, file->count, sizeof *file->entries, entry_by_begin);
    for (size_t i = 0; i < file->count; at = file->entries[i++].end)
        if (file->entries[i].begin != at)
            return error_set(error,
                             "%s: tensor %.200s overlaps another or leaves a hole before it; "
                             "the file is damaged",
                             where, file->entries[i].name);
    if (at != data_size)
        return error_set(error, "%s: %zu bytes at the end belong to no tensor; the file is damaged",
                         where, data_size - (size_t)at);
    qsort(file->entries, file->count, sizeof *file->entries, entry_by_name);
    return 0;
}

static int table_read(struct safetensors *file, const char *where, struct error *error)
{
    uint64_t header_size = 0;
    json_t *header = NULL, *value;
    json_error_t problem;
    const char *name;
    int status = -1;

    if (file->size < 8)
        return error_set(error, "%s: %zu bytes are too few for a safetensors file", where,
                         file->size);
    for (int i = 7; i >= 0; i--)
        header_size = header_size << 8 | file->bytes[i];
    if (header_size > HEADER_MAX || header_size > file->size - 8)
        return error_set(error,
                         "%s: a header of %llu bytes does not fit (file %zu bytes, limit %d); "
                         "it is truncated or no safetensors file",
                         where, (unsigned long long)header_size, file->size, HEADER_MAX);
    header =
        json_loadb((const char *)file->bytes + 8, header_size, JSON_REJECT_DUPLICATES, &problem);
    if (!json_is_object(header)) {
        error_set(error, "%s: the header is not a JSON object: %s", where,
                  header ? "wrong type" : problem.text);
        goto done;
    }
    if (json_object_size(header) > TENSORS_MAX) {
        error_set(error, "%s: %zu tensors exceed the limit of %d", where, json_object_size(header),
                  TENSORS_MAX);
        goto done;
    }
    file->entries = calloc(json_object_size(header) + 1, sizeof *file->entries);
    if (!file->entries) {
        error_set(error, "%s: out of memory", where);
        goto done;
    }
    json_object_foreach(header, name, value)
    {
        if (!strcmp(name, "__metadata__"))
            continue;
        if (entry_parse(file, 8 + header_size, name, value, &file->entries[file->count], where,
                        error))
            goto done;
        file->count++;
    }
    status = coverage_check(file, file->size - 8 - header_size, where, error);
done:
    json_decref(header);
    return status;
}

struct safetensors *safetensors_parse(const void *data, size_t size, const char *name,
                                      struct error *error)
{
    struct safetensors *file = calloc(1, sizeof *file);

    if (!file) {
        error_set(error, "%s: out of memory", name);
        return NULL;
    }
    file->bytes = data;
    file->size = size;
    if (table_read(file, name, error)) {
        safetensors_close(file);
        return NULL;
    }
    return file;
}

struct safetensors *safetensors_open(const char *path, struct error *error)
{
    struct safetensors *file = NULL;
    struct stat info;
    void *mapping = MAP_FAILED;
    int fd = open(path, O_RDONLY | O_CLOEXEC);

    if (fd < 0 || fstat(fd, &info)) {
        error_set(error, "%s: cannot be opened: %s", path, strerror(errno));
        goto done;
    }
    if (!S_ISREG(info.st_mode) || info.st_size == 0) {
        error_set(error, "%s: is empty or no regular file", path);
        goto done;
    }
    mapping = mmap(NULL, (size_t)info.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
    if (mapping == MAP_FAILED) {
        error_set(error, "%s: cannot be mapped: %s", path, strerror(errno));
        goto done;
    }
    file = safetensors_parse(mapping, (size_t)info.st_size, path, error);
    if (file)
        file->mapping = mapping;
    else
        munmap(mapping, (size_t)info.st_size);
done:
    if (fd >= 0)
        close(fd);
    return file;
}

void safetensors_close(struct safetensors *file)
{
    if (!file)
        return;
    for (size_t i = 0; i < file->count; i++)
        free(file->entries[i].name);
    free(file->entries);
    if (file->mapping)
        munmap(file->mapping, file->size);
    free(file);
}

bool safetensors_find(const struct safetensors *file, const char *name, struct model_tensor *tensor)
{
    struct entry key = {.name = (char *)name};
    const struct entry *found =
        bsearch(&key, file->entries, file->count, sizeof *file->entries, entry_by_name);

    if (!found)
        return false;
    *tensor = found->tensor;
    return true;
}

size_t safetensors_count(const struct safetensors *file)
{
    return file->count;
}

/* FNV-1a over 8-byte words, the tail by bytes: fast enough to hash at every start. */
uint64_t safetensors_hash(const struct safetensors *file)
{
    uint64_t hash = 0xcbf29ce484222325u, word;
    size_t i = 0;

    for (; i + 8 <= file->size; i += 8) {
        memcpy(&word, file->bytes + i, 8);
        hash = (hash ^ word) * 0x100000001b3u;
        hash ^= hash >> 29;
    }
    for (; i < file->size; i++)
        hash = (hash ^ file->bytes[i]) * 0x100000001b3u;
    return hash;
}
