/* SPDX-License-Identifier: MIT */
#include <stdio.h>

#include "producer/command.h"
#include "producer/output.h"

struct cancel {
    struct cli *cli;
    const struct command *command;
    size_t failed;
};

static void on_ack(const struct client_ack *ack, void *opaque)
{
    struct cancel *c = opaque;

    if (ack->error) {
        c->failed++;
        cli_say(c->command, "the cancel of job %s was not accepted: %s", ack->job_id, ack->error);
    } else if (c->cli->json) {
        output_line(json_pack("{ss ss}", "job_id", ack->job_id, "action", "cancel"));
    }
}

static int run(struct cli *cli, const struct command *command, int argc, char **argv)
{
    struct cancel c = {.cli = cli, .command = command};
    struct option_positionals ids;
    const char *reason = "";
    struct client *client = NULL;
    struct error error;
    enum client_status status;
    int code;
    const struct option own[] = {
        {"reason", '\0', OPTION_TEXT, &reason, "TEXT", "for the workers' logs", 0, 0, NULL}, {0}};
    const struct option *const tables[] = {own, NULL};

    cli->timeout_us = 30 * 1000000ll;
    if (!cli_parse(cli, command, tables, argc, argv, &ids, &code))
        return code;
    if (!cli_job_ids_ok(command, &ids))
        return EXIT_WRONG_USE;
    cli->client.on_ack = on_ack;
    cli->client.opaque = &c;
    status = client_open(&cli->client, &client, &error);
    for (size_t i = 0; i < ids.count && !status; i++)
        while ((status = client_cancel(client, ids.items[i], reason, NULL, &error)) ==
                   CLIENT_FULL &&
               !cli_interrupted())
            client_poll(client, 10);
    if (!status && client_flush(client, cli_timeout_ms(cli))) {
        error_set(&error, "not all cancels were acknowledged within --timeout");
        status = CLIENT_UNREACHABLE;
    }
    code = status ? cli_failed(command, status, &error) : c.failed ? EXIT_TROUBLE : EXIT_OK;
    client_close(client);
    return code;
}

const struct command command_cancel = {
    "cancel", "Cancels jobs, whether they wait, run or are not read yet.", "[OPTION]... JOB_ID...",
    "\nReturns once the brokers have the orders. A job that finished before stays finished; a "
    "cancelled\n"
    "one still has a result, with status cancelled and what was generated so far. Orders are kept "
    "for a\n"
    "day, so a cancel may be sent before its job.\n"
    "\nExamples\n"
    "  pgpt cancel 6f1e0c2a-9a54-4c0e-8d0b-0d5b1c8f7a11\n"
    "  pgpt cancel --reason \"wrong text\" \"$id\" && pgpt follow \"$id\"\n",
    run};
