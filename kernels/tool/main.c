/* SPDX-License-Identifier: MIT
 *
 * pgpt-engine: the engine alone: what a model directory is (info), whether it computes what it
 * should (verify), how fast (bench), and requests in, results out (generate).
 */
#include <stdio.h>
#include <string.h>

#include "kernels/tool/cli.h"

static const struct cli_command *const commands[] = {&command_info, &command_verify, &command_bench,
                                                     &command_generate};
enum { COMMAND_COUNT = sizeof commands / sizeof commands[0] };

static void usage_print(FILE *to)
{
    fprintf(to, "usage: pgpt-engine COMMAND --model DIR [option]...\n\n"
                "Runs a Hugging Face Marian translation model without any service around it.\n\n"
                "commands:\n");
    for (size_t i = 0; i < COMMAND_COUNT; i++)
        fprintf(to, "  %-10s %s\n", commands[i]->name, commands[i]->summary);
    fprintf(to, "\npgpt-engine COMMAND --help teaches each one, with examples.\n"
                "exit codes: 0 all well, 1 a check or a line failed, 2 bad options, model or "
                "input,\n            3 the device or the output failed during the run\n");
}

int main(int argc, char **argv)
{
    struct error error;

    if (argc < 2 || !strcmp(argv[1], "--help") || !strcmp(argv[1], "-h")) {
        usage_print(argc < 2 ? stderr : stdout);
        return argc < 2 ? TOOL_BAD_INPUT : TOOL_OK;
    }
    for (size_t i = 0; i < COMMAND_COUNT; i++) {
        if (!strcmp(argv[1], commands[i]->name)) {
            int status = commands[i]->run(argc - 1, argv + 1);

            if (fflush(stdout) == 0 && !ferror(stdout))
                return status;
            error_set(&error, "the output could not be written");
            return cli_fail(TOOL_BROKEN, &error);
        }
    }
    error_set(&error,
              "%.100s: no such command; there are info, verify, bench, generate (see "
              "pgpt-engine --help)",
              argv[1]);
    return cli_fail(TOOL_BAD_INPUT, &error);
}
