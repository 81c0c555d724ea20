/* SPDX-License-Identifier: MIT */
#include "producer/command.h"

#include <ctype.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/base/clock.h"

extern char **environ;

static volatile sig_atomic_t interrupted;

static void on_signal(int number)
{
    if (interrupted) {
        signal(number, SIG_DFL);
        raise(number);
    }
    interrupted = 1;
}

void cli_catch_signals(void)
{
    struct sigaction action = {.sa_handler = on_signal};

    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
}

bool cli_interrupted(void)
{
    return interrupted;
}

/* Messages quote what others wrote: nothing in them may steer a terminal. */
void cli_say(const struct command *command, const char *format, ...)
{
    char message[8192];
    va_list args;
    int size;

    va_start(args, format);
    size = vsnprintf(message, sizeof message, format, args);
    va_end(args);
    if (size >= (int)sizeof message)
        size = (int)sizeof message - 1;
    while (size > 0 && message[size - 1] == '\n')
        message[--size] = '\0';
    for (int i = 0; i < size; i++)
        if (((unsigned char)message[i] < 0x20 && message[i] != '\n' && message[i] != '\t') ||
            message[i] == 0x7f)
            message[i] = '?';
    fprintf(stderr, "pgpt %s: %s\n", command->name, message);
}

int cli_failed(const struct command *command, enum client_status status, const struct error *error)
{
    static const int codes[] = {[CLIENT_OK] = EXIT_OK,
                                [CLIENT_WRONG] = EXIT_WRONG_USE,
                                [CLIENT_UNREACHABLE] = EXIT_UNREACHABLE,
                                [CLIENT_NO_TOPIC] = EXIT_UNREACHABLE,
                                [CLIENT_FULL] = EXIT_TROUBLE,
                                [CLIENT_FAILED] = EXIT_TROUBLE};

    if (status)
        cli_say(command, "%s", error->message);
    return codes[status];
}

bool cli_job_ids_ok(const struct command *command, const struct option_positionals *ids)
{
    uint8_t id[16];

    if (!ids->count)
        cli_say(command, "which job? Name at least one JOB_ID");
    for (size_t i = 0; i < ids->count; i++)
        if (uuid_parse((struct text){ids->items[i], strlen(ids->items[i])}, id)) {
            cli_say(command, "job id \"%s\" is not a UUID of 36 characters", ids->items[i]);
            return false;
        }
    return ids->count > 0;
}

int cli_timeout_ms(const struct cli *cli)
{
    return cli->timeout_us / 1000 > INT_MAX ? INT_MAX : (int)(cli->timeout_us / 1000);
}

int cli_since(const char *text, int64_t *since_us, struct error *error)
{
    int64_t back_us;

    if (!strcmp(text, "all")) {
        *since_us = FOLLOW_FROM_START;
        return 0;
    }
    if (option_duration(text, &back_us))
        return error_set(error, "--since %s: must be a duration such as 30s, 10m, 2h, 7d, or all",
                         text);
    *since_us = clock_wall_us() - back_us;
    return 0;
}

/* ---- settings ---- */

static int property_add(struct cli *cli, const char *name, const char *value, struct error *error)
{
    if (cli->property_count == CLI_PROPERTIES_MAX)
        return error_set(error, "more than %d settings for librdkafka", CLI_PROPERTIES_MAX);
    cli->properties[2 * cli->property_count] = name;
    cli->properties[2 * cli->property_count + 1] = value;
    cli->property_count++;
    return 0;
}

/* PGPT_KAFKA_SASL_PASSWORD is sasl.password, as for the worker: a password does not belong on a
 * command line. */
static int properties_from_environment(struct cli *cli, struct error *error)
{
    static const char prefix[] = "PGPT_KAFKA_";
    size_t bytes = 1;
    char *at;

    for (char **entry = environ; *entry; entry++)
        if (!strncmp(*entry, prefix, sizeof prefix - 1))
            bytes += strlen(*entry) + 1;
    at = cli->environment_names = malloc(bytes);
    if (!at)
        return error_set(error, "out of memory");
    for (char **entry = environ; *entry; entry++) {
        const char *from = *entry + sizeof prefix - 1, *name = at;

        /* PGPT_KAFKA_CALL_* are settings of the worker, PGPT_KAFKA_PORT one of deploy/local. */
        if (strncmp(*entry, prefix, sizeof prefix - 1) || !strncmp(from, "CALL_", 5) ||
            !strncmp(from, "PORT=", 5) || !strchr(from, '='))
            continue;
        for (; *from != '='; from++)
            *at++ = *from == '_' ? '.' : (char)tolower((unsigned char)*from);
        *at++ = '\0';
        if (property_add(cli, name, from + 1, error))
            return -1;
    }
    return 0;
}

static int properties_from_options(struct cli *cli, struct option_list *list, struct error *error)
{
    for (size_t i = 0; i < list->count; i++) {
        char *equals = strchr(list->items[i], '=');

        if (!equals || equals == list->items[i])
            return error_set(error, "-X %s: must be name=value, a setting of librdkafka",
                             list->items[i]);
        *equals = '\0'; /* it lies in argv, which is ours */
        if (property_add(cli, list->items[i], equals + 1, error))
            return -1;
    }
    return 0;
}

static void print_help(const struct command *command, const struct option *const *tables,
                       const struct option *common)
{
    printf("usage: pgpt %s %s\n\n%s\n%s", command->name, command->usage, command->summary,
           command->text);
    for (; *tables; tables++) {
        putchar('\n');
        options_print(*tables, stdout);
    }
    printf("\nCommon options\n");
    options_print(common, stdout);
    printf("\nExit codes: 0 done, 1 trouble, 2 wrong use, 3 brokers or database not reachable,\n"
           "  4 not found or not finished within --timeout, 5 a job ended failed, cancelled or "
           "expired,\n  6 topics differ, 130 interrupted\n");
}

bool cli_parse(struct cli *cli, const struct command *command, const struct option *const *tables,
               int argc, char **argv, struct option_positionals *positionals, int *exit_code)
{
    struct option_list x = {.count = 0};
    bool help = false;
    const struct option common[] = {
        {"brokers", 'b', OPTION_TEXT, &cli->client.brokers, "HOST:PORT,...",
         "Kafka brokers (PGPT_BROKERS, else 127.0.0.1:9192)", 0, 0, NULL},
        {"timeout", 't', OPTION_DURATION, &cli->timeout_us, "TIME",
         "give up after this long, e.g. 500ms, 30s, 5m", 1e3, 86400e6, NULL},
        {"json", '\0', OPTION_FLAG, &cli->json, NULL, "JSON on standard output", 0, 0, NULL},
        {"property", 'X', OPTION_LIST, &x, "NAME=VALUE",
         "setting for librdkafka (SASL, TLS); also by PGPT_KAFKA_<NAME>", 0, 0, NULL},
        {"verbose", 'v', OPTION_FLAG, &cli->client.verbose, NULL, "librdkafka's log on stderr", 0,
         0, NULL},
        {"help", 'h', OPTION_FLAG, &help, NULL, "this text", 0, 0, NULL},
        {0}};
    const struct option *all[5] = {common};
    struct error error;
    size_t count = 1;

    for (; tables[count - 1] && count < 4; count++)
        all[count] = tables[count - 1];
    *exit_code = EXIT_WRONG_USE;
    if (options_parse(all, argc, argv, positionals, &error)) {
        cli_say(command, "%s", error.message);
        return false;
    }
    if (help) {
        print_help(command, tables, common);
        *exit_code = EXIT_OK;
        return false;
    }
    if (properties_from_environment(cli, &error) || properties_from_options(cli, &x, &error)) {
        cli_say(command, "%s", error.message);
        return false;
    }
    cli->client.properties = cli->properties;
    cli->client.timeout_ms = cli_timeout_ms(cli) < 10000 ? cli_timeout_ms(cli) : 10000;
    return true;
}
