/* SPDX-License-Identifier: MIT
 *
 * command: what the subcommands of `pgpt` share: their description, the common options and
 * environment, exit codes, and interruption. A subcommand is a struct command in its own cmd_*.c,
 * listed once in main.c.
 */
#ifndef PGPT_PRODUCER_COMMAND_H
#define PGPT_PRODUCER_COMMAND_H

#include "producer/client.h"
#include "producer/options.h"

enum exit_code {
    EXIT_OK = 0,
    EXIT_TROUBLE = 1,     /* something failed on the way */
    EXIT_WRONG_USE = 2,   /* options, arguments, settings */
    EXIT_UNREACHABLE = 3, /* brokers or database do not answer, or a topic is missing */
    EXIT_NOT_FOUND = 4,   /* not found, or not finished within --timeout */
    EXIT_JOB_FAILED = 5,  /* a job ended failed, cancelled or expired */
    EXIT_DIFFERENT = 6,   /* topics --check found differences */
    EXIT_INTERRUPTED = 130
};

enum { CLI_PROPERTIES_MAX = 256 };

/* The process's settings: environment first, options later. */
struct cli {
    struct client_options client;
    const char *database_url; /* NULL = none */
    bool json;
    int64_t timeout_us;
    const char *properties[CLI_PROPERTIES_MAX * 2 + 1];
    size_t property_count;
    char *environment_names; /* memory of names taken from PGPT_KAFKA_* */
};

struct command {
    const char *name;
    const char *summary; /* one line */
    const char *usage;   /* what follows "pgpt NAME" */
    const char *text;    /* what it does, examples; lines of at most 100 columns */
    int (*run)(struct cli *cli, const struct command *command, int argc, char **argv);
};

extern const struct command command_topics, command_submit, command_follow, command_cancel,
    command_status, command_translate, command_load, command_dlq;

/* Parses own options beside the common ones. False = the command ends here with *exit_code: --help
 * was printed, or the reason was. tables: up to 3, ended by NULL. */
bool cli_parse(struct cli *cli, const struct command *command, const struct option *const *tables,
               int argc, char **argv, struct option_positionals *positionals, int *exit_code);

/* "pgpt NAME: message" on stderr. */
void cli_say(const struct command *command, const char *format, ...) PGPT_PRINTF(2, 3);
/* The same for a failed call; returns the exit code that its status means. */
int cli_failed(const struct command *command, enum client_status status, const struct error *error);

/* SIGINT and SIGTERM ask a command to stop; a second one ends the process. */
void cli_catch_signals(void);
bool cli_interrupted(void);

/* True when there is at least one and each is a UUID; otherwise the reason was printed. */
bool cli_job_ids_ok(const struct command *command, const struct option_positionals *ids);

int cli_timeout_ms(const struct cli *cli); /* at most INT_MAX */
/* --since: a duration back from now, or `all`. -1 with the reason. */
int cli_since(const char *text, int64_t *since_us, struct error *error) PGPT_MUST_CHECK;

#endif
