/* SPDX-License-Identifier: MIT
 *
 * codec_tool: the codec for tests in other languages. Usage: codec_tool [SCHEMA_DIRECTORY].
 * Each line of stdin is a record's name and a framed payload in hex; each line of stdout is "0" and
 * the same record encoded again with the product's own schema, in hex, or the codec's status and
 * the message.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "schema/codec.h"
#include "tests/schema/any_record.h"

enum { LINE_BYTES = 8 << 20, ARENA_BYTES = 256 << 20 };

static int type_find(const char *name)
{
    for (int type = 0; type < RECORD_TYPE_COUNT; type++)
        if (!strcmp(codec_record_name((enum record_type)type), name))
            return type;
    return -1;
}

/* In place; returns the number of bytes. */
static size_t unhex(char *text)
{
    size_t size = strspn(text, "0123456789abcdef") / 2;

    for (size_t i = 0; i < size; i++) {
        char pair[3] = {text[2 * i], text[2 * i + 1], '\0'};

        text[i] = (char)strtoul(pair, NULL, 16);
    }
    return size;
}

static int answer(struct codec *codec, struct arena *arena, struct buffer *buffer, int type,
                  char *hex)
{
    union any_record record;
    struct error error = {""};
    size_t size = unhex(hex);
    char *exact = malloc(size ? size : 1); /* so that a sanitizer sees a read past it */
    enum codec_status status;

    if (!exact)
        return -1;
    memcpy(exact, hex, size);
    arena_reset(arena);
    status = codec_decode(codec, (enum record_type)type, exact, size, arena, &record, &error);
    free(exact);
    if (!status && codec_encode(codec, (enum record_type)type, &record, buffer, &error))
        return -1;
    printf("%d ", status);
    for (size_t i = 0; !status && i < buffer->size; i++)
        printf("%02x", buffer->data[i]);
    printf("%s\n", status ? error.message : "");
    fflush(stdout);
    return 0;
}

int main(int argc, char **argv)
{
    const char *directories[] = {argc > 1 ? argv[1] : NULL, NULL};
    struct error error = {""};
    struct codec *codec = codec_open(directories, &error);
    struct arena *arena = arena_create(1 << 16, ARENA_BYTES);
    char *line = malloc(LINE_BYTES);
    struct buffer buffer = {NULL, 0, 0};
    int status = codec && arena && line ? 0 : 1;

    if (status)
        fprintf(stderr, "codec_tool: %s\n", error.message);
    while (!status && fgets(line, LINE_BYTES, stdin)) {
        char *space = strchr(line, ' ');

        if (space)
            *space = '\0';
        status = !space || type_find(line) < 0 ||
                 answer(codec, arena, &buffer, type_find(line), space + 1);
    }
    buffer_free(&buffer);
    free(line);
    arena_destroy(arena);
    codec_close(codec);
    return status;
}
