/* SPDX-License-Identifier: MIT */
#include "producer/viewer.h"

enum { JOBS_MAX = 100000 };

static int run(struct cli *cli, const struct command *command, int argc, char **argv)
{
    struct follow_options options = {.client = &cli->client, .chunks = true, .max_jobs = JOBS_MAX};
    struct option_positionals ids;
    const char *since = "10m";
    bool results_only = false;
    struct follow *follow = NULL;
    struct error error;
    enum client_status status;
    int code;
    const struct option own[] = {
        {"since", '\0', OPTION_TEXT, &since, "TIME",
         "look back this far, e.g. 30s, 2h, or all (10m)", 0, 0, NULL},
        {"results", '\0', OPTION_FLAG, &results_only, NULL, "results alone, no chunks", 0, 0, NULL},
        {"attempt", '\0', OPTION_INT, &options.attempt, "N",
         "from this attempt on, e.g. after dlq replay", 1, INT32_MAX, NULL},
        {0}};
    const struct option *const tables[] = {own, NULL};

    cli->timeout_us = 30 * 1000000ll;
    if (!cli_parse(cli, command, tables, argc, argv, &ids, &code))
        return code;
    if (!cli_job_ids_ok(command, &ids))
        return EXIT_WRONG_USE;
    if (cli_since(since, &options.since_us, &error))
        return cli_failed(command, CLIENT_WRONG, &error);
    options.chunks = !results_only;
    status = follow_open(&options, &follow, &error);
    for (size_t i = 0; i < ids.count && !status; i++)
        status = follow_watch(follow, ids.items[i], (void *)ids.items[i], &error);
    code = status ? cli_failed(command, status, &error)
                  : viewer_run(cli, command, follow, ids.items, ids.count, results_only);
    follow_close(follow);
    return code;
}

const struct command command_follow = {
    "follow", "Shows the text of jobs as it is generated, and their results.",
    "[OPTION]... JOB_ID...",
    "\nOne job: its text grows on standard output. Several: a line each as they finish, job id and "
    "text.\n"
    "--json writes each piece and each result as a JSON line. The stream has no gaps and no "
    "repeats,\n"
    "also when a worker died and another one ran the job again. --timeout (30s) is the longest "
    "time\n"
    "without any news.\n"
    "\nExamples\n"
    "  pgpt follow 6f1e0c2a-9a54-4c0e-8d0b-0d5b1c8f7a11\n"
    "  pgpt follow --since 2h --results --json \"$id\" | jq -r '.sequences[0].text'\n",
    run};
