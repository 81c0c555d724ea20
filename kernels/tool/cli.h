/* SPDX-License-Identifier: MIT
 *
 * cli: options of the commands as one table each, from which arguments are read and the help is
 * printed; and what every command shares: the model and the engine's settings. Targets of a table
 * belong to the command. Main thread only.
 */
#ifndef PGPT_KERNELS_TOOL_CLI_H
#define PGPT_KERNELS_TOOL_CLI_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "kernels/engine.h"

enum {
    TOOL_OK = 0,
    TOOL_MISMATCH = 1,  /* verify: a check failed; generate: a line failed */
    TOOL_BAD_INPUT = 2, /* options, model directory, input file */
    TOOL_BROKEN = 3,    /* the device or the output failed during the run */
};

enum cli_kind { CLI_FLAG, CLI_TEXT, CLI_INT, CLI_BYTES, CLI_INTS };

enum { CLI_INTS_MAX = 32 };

struct cli_ints {
    int32_t values[CLI_INTS_MAX];
    int32_t count;
};

struct cli_option {
    const char *name;  /* "--threads" */
    const char *value; /* how the help calls its value; NULL for a flag */
    enum cli_kind kind;
    void *target;        /* bool, const char *, int32_t, uint64_t, struct cli_ints */
    int64_t least, most; /* of numbers */
    const char *help;
};

struct cli_command {
    const char *name;
    const char *summary;
    const char *text;                  /* below the summary */
    const char *examples;              /* below the options */
    int (*run)(int argc, char **argv); /* argv[0] is the command */
};

/* --help prints the help and sets *helped. -1 with a message that names the option. */
int cli_parse(const struct cli_command *command, const struct cli_option *options, size_t count,
              int argc, char **argv, bool *helped, struct error *error) PGPT_MUST_CHECK;

/* Prints "pgpt-engine: MESSAGE" on stderr; returns status. */
int cli_fail(int status, const struct error *error);

/* ---- what every command shares ---- */

struct cli_engine {
    const char *model;
    struct engine_options options;
};

void cli_engine_init(struct cli_engine *engine);

enum { CLI_ENGINE_OPTIONS = 7 };
/* Fills the entries of the options below. */
void cli_engine_options(struct cli_engine *engine, struct cli_option *options);
/* Checks that --model was given and opens it. NULL with the reason. */
struct engine *cli_engine_open(const struct cli_engine *engine,
                               struct error *error) PGPT_MUST_CHECK;
/* The model's name: the last part of its directory. */
const char *cli_model_name(const struct cli_engine *engine, char *buffer, size_t size);
/* Threads that the options mean: 0 is all cores. */
int32_t cli_threads(const struct cli_engine *engine);

extern const struct cli_command command_info, command_verify, command_bench, command_generate;

#endif
