/* SPDX-License-Identifier: MIT */
#include "kernels/tool/cli.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void help_print(const struct cli_command *command, const struct cli_option *options,
                       size_t count)
{
    printf("usage: pgpt-engine %s --model DIR [option]...\n\n%s\n\n%s\noptions:\n", command->name,
           command->summary, command->text);
    for (size_t i = 0; i < count; i++) {
        char name[40];
        const char *line = options[i].help, *end;

        snprintf(name, sizeof name, "%s%s%s", options[i].name, options[i].value ? " " : "",
                 options[i].value ? options[i].value : "");
        while ((end = strchr(line, '\n'))) { /* further lines of help are indented like the first */
            printf("  %-20s %.*s\n", name, (int)(end - line), line);
            name[0] = '\0';
            line = end + 1;
        }
        printf("  %-20s %s\n", name, line);
    }
    printf("  %-20s %s\n\nexamples:\n%s", "--help", "this text", command->examples);
}

/* Digits, and for bytes one of k, m, g (powers of 1,024). */
static int number_parse(const struct cli_option *option, const char *text, size_t size,
                        int64_t *out, struct error *error)
{
    char copy[32], *end;
    int64_t value, unit = 1;

    snprintf(copy, sizeof copy, "%.*s", (int)(size < sizeof copy ? size : sizeof copy - 1), text);
    errno = 0;
    value = strtoll(copy, &end, 10);
    if (option->kind == CLI_BYTES && *end) {
        const char *units = "kmg", *found = strchr(units, *end | 0x20);

        if (found && !end[1]) {
            unit = (int64_t)1 << (10 * (found - units + 1));
            end++;
        }
    }
    if (end == copy || *end || errno || size >= sizeof copy)
        return error_set(error, "%s: \"%.*s\" is no number", option->name, (int)size, text);
    if (value > INT64_MAX / unit || value * unit < option->least || value * unit > option->most)
        return error_set(error, "%s: %.*s is outside %lld..%lld", option->name, (int)size, text,
                         (long long)option->least, (long long)option->most);
    *out = value * unit;
    return 0;
}

static int ints_parse(const struct cli_option *option, const char *text, struct cli_ints *out,
                      struct error *error)
{
    out->count = 0;
    for (;;) {
        size_t size = strcspn(text, ",");
        int64_t value;

        if (out->count == CLI_INTS_MAX)
            return error_set(error, "%s: more than %d numbers", option->name, CLI_INTS_MAX);
        if (number_parse(option, text, size, &value, error))
            return -1;
        out->values[out->count++] = (int32_t)value;
        if (!text[size])
            return 0;
        text += size + 1;
    }
}

static int value_set(const struct cli_option *option, const char *text, struct error *error)
{
    int64_t number;

    switch (option->kind) {
    case CLI_FLAG:
        *(bool *)option->target = true;
        return 0;
    case CLI_TEXT:
        *(const char **)option->target = text;
        return 0;
    case CLI_INTS:
        return ints_parse(option, text, option->target, error);
    case CLI_INT:
    case CLI_BYTES:
        if (number_parse(option, text, strlen(text), &number, error))
            return -1;
        if (option->kind == CLI_INT)
            *(int32_t *)option->target = (int32_t)number;
        else
            *(uint64_t *)option->target = (uint64_t)number;
        return 0;
    }
    return 0;
}

/* "--name value" and "--name=value". */
static const struct cli_option *option_find(const struct cli_option *options, size_t count,
                                            const char *argument, size_t size)
{
    for (size_t i = 0; i < count; i++)
        if (strlen(options[i].name) == size && !memcmp(options[i].name, argument, size))
            return &options[i];
    return NULL;
}

int cli_parse(const struct cli_command *command, const struct cli_option *options, size_t count,
              int argc, char **argv, bool *helped, struct error *error)
{
    *helped = false;
    for (int i = 1; i < argc; i++) {
        size_t size = strcspn(argv[i], "=");
        const struct cli_option *option = option_find(options, count, argv[i], size);
        const char *value = argv[i][size] ? argv[i] + size + 1 : NULL;

        if (!strcmp(argv[i], "--help") || !strcmp(argv[i], "-h")) {
            help_print(command, options, count);
            *helped = true;
            return 0;
        }
        if (!option)
            return error_set(error, "%.200s: no such option; see pgpt-engine %s --help", argv[i],
                             command->name);
        if (option->kind == CLI_FLAG && value)
            return error_set(error, "%s: takes no value", option->name);
        if (option->kind != CLI_FLAG && !value && ++i < argc)
            value = argv[i];
        if (option->kind != CLI_FLAG && !value)
            return error_set(error, "%s: its value %s is missing", option->name, option->value);
        if (value_set(option, value, error))
            return -1;
    }
    return 0;
}

int cli_fail(int status, const struct error *error)
{
    fflush(stdout);
    fprintf(stderr, "pgpt-engine: %s\n", error->message);
    return status;
}

void cli_engine_init(struct cli_engine *engine)
{
    engine->model = NULL;
    engine_options_init(&engine->options);
}

void cli_engine_options(struct cli_engine *engine, struct cli_option *options)
{
    struct engine_options *o = &engine->options;
    const struct cli_option table[CLI_ENGINE_OPTIONS] = {
        {"--model", "DIR", CLI_TEXT, &engine->model, 0, 0,
         "a Hugging Face Marian directory (config.json, model.safetensors, ...)"},
        {"--device", "NAME", CLI_TEXT, &o->device, 0, 0, "cpu, cuda:0, cuda:1, ... (cpu)"},
        {"--compute", "FORMAT", CLI_TEXT, &o->compute, 0, 0,
         "fp32, fp16, bf16, int8 or dynamic (the device's default)"},
        {"--threads", "N", CLI_INT, &o->threads, 0, 256, "CPU threads, 0 = all cores (0)"},
        {"--rows", "N", CLI_INT, &o->max_rows, 0, 65536,
         "sequences held at once, 0 = the device's default (0)"},
        {"--memory", "BYTES", CLI_BYTES, &o->memory, 0, INT64_MAX,
         "budget for caches and work space, e.g. 512m, 6g; 0 = what is needed (0)"},
        {"--cache-int8", NULL, CLI_FLAG, &o->cache_int8, 0, 0, "attention caches in int8 (CUDA)"},
    };

    memcpy(options, table, sizeof table);
}

struct engine *cli_engine_open(const struct cli_engine *engine, struct error *error)
{
    if (engine->model)
        return engine_open(engine->model, &engine->options, error);
    error_set(error, "--model is missing: the directory of the model");
    return NULL;
}

const char *cli_model_name(const struct cli_engine *engine, char *buffer, size_t size)
{
    char path[PATH_MAX];
    const char *whole = realpath(engine->model, path) ? path : engine->model;
    const char *slash = strrchr(whole, '/');

    snprintf(buffer, size, "%s", slash ? slash + 1 : whole);
    return buffer;
}

int32_t cli_threads(const struct cli_engine *engine)
{
    long cores = sysconf(_SC_NPROCESSORS_ONLN);

    if (engine->options.threads)
        return engine->options.threads;
    return cores < 1 ? 1 : cores > 256 ? 256 : (int32_t)cores;
}
