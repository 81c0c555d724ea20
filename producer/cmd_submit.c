/* SPDX-License-Identifier: MIT */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "kernels/base/clock.h"
#include "producer/command.h"
#include "producer/output.h"
#include "producer/request_options.h"
#include "producer/text_input.h"
#include "producer/viewer.h"

enum { JOBS_MAX = 10000, ID_SIZE = 37 };

struct submit {
    struct cli *cli;
    const struct command *command;
    struct request_options request;
    const char *job_id; /* --job-id */
    bool follow;
    struct option_positionals texts;
    char *from_stdin;
    struct client *client;
    struct follow *reader;
    struct job {
        char id[ID_SIZE];
        bool accepted;
        int32_t partition;
        int64_t offset;
    } * jobs; /* (count) */
    const char **ids;
    size_t count;
};

static void on_ack(const struct client_ack *ack, void *opaque)
{
    struct submit *s = opaque;
    struct job *job = ack->user;

    job->accepted = !ack->error;
    job->partition = ack->partition;
    job->offset = ack->offset;
    if (ack->error)
        cli_say(s->command, "job %s was not accepted: %s", job->id, ack->error);
}

/* In the order of the texts, whatever order the brokers answered in. Returns how many were refused.
 */
static size_t show_accepted(const struct submit *s)
{
    size_t refused = 0;

    for (size_t i = 0; i < s->count; i++) {
        const struct job *job = &s->jobs[i];

        if (!job->accepted)
            refused++;
        else if (s->cli->json)
            output_line(json_pack("{ss si sI}", "job_id", job->id, "partition", job->partition,
                                  "offset", (json_int_t)job->offset));
        else if (!s->follow)
            puts(job->id);
    }
    fflush(stdout);
    return refused;
}

/* The texts: arguments, or all of standard input as one. */
static int gather(struct submit *s, struct error *error)
{
    static const char *one[1];
    bool only_tokens = s->request.request.has_source_tokens && !s->texts.count;

    if (only_tokens) {
        one[0] = "";
        s->texts = (struct option_positionals){one, 1};
    } else if (!s->texts.count || (s->texts.count == 1 && !strcmp(s->texts.items[0], "-"))) {
        if (isatty(STDIN_FILENO))
            cli_say(s->command, "type the text, end it with Ctrl-D");
        s->from_stdin = text_input_all(stdin, TEXT_INPUT_MAX, error);
        if (!s->from_stdin)
            return -1;
        one[0] = s->from_stdin;
        s->texts = (struct option_positionals){one, 1};
    }
    if (s->texts.count > JOBS_MAX)
        return error_set(error, "more than %d texts; use translate", JOBS_MAX);
    if (s->job_id && s->texts.count > 1)
        return error_set(error, "--job-id names one job, but there are %zu texts", s->texts.count);
    for (size_t i = 0; i < s->texts.count && !only_tokens; i++)
        if (!*s->texts.items[i])
            return s->from_stdin ? error_set(error, "standard input holds no text")
                                 : error_set(error, "text %zu is empty", i + 1);
    return 0;
}

static int make_ids(struct submit *s, struct error *error)
{
    uint8_t id[16];

    s->count = s->texts.count;
    s->jobs = calloc(s->count, sizeof *s->jobs);
    s->ids = calloc(s->count, sizeof *s->ids);
    if (!s->jobs || !s->ids)
        return error_set(error, "out of memory");
    for (size_t i = 0; i < s->count; i++) {
        s->ids[i] = s->jobs[i].id;
        if (!s->job_id && client_new_id(s->jobs[i].id, error))
            return -1;
        if (s->job_id && uuid_parse((struct text){s->job_id, strlen(s->job_id)}, id))
            return error_set(error, "--job-id %s: must be a UUID of 36 characters", s->job_id);
        if (s->job_id)
            memcpy(s->jobs[i].id, s->job_id, ID_SIZE);
    }
    return 0;
}

static enum client_status send_one(struct submit *s, const struct generation_request *request,
                                   struct job *job, struct error *error)
{
    enum client_status status;

    while ((status = client_submit(s->client, request, job, error)) == CLIENT_FULL &&
           !cli_interrupted())
        client_poll(s->client, 10);
    return status;
}

static enum client_status send_all(struct submit *s, struct error *error)
{
    enum client_status status = CLIENT_OK;

    for (size_t i = 0; i < s->count && !status; i++) {
        struct text prompt = {s->texts.items[i], strlen(s->texts.items[i])};
        struct generation_request request =
            request_options_make(&s->request, s->ids[i], prompt, clock_wall_us());

        if (s->reader)
            status = follow_watch(s->reader, s->ids[i], &s->jobs[i], error);
        if (!status)
            status = send_one(s, &request, &s->jobs[i], error);
    }
    if (!status && client_flush(s->client, cli_timeout_ms(s->cli))) {
        error_set(error, "not all jobs were acknowledged within --timeout; they may still arrive");
        status = CLIENT_UNREACHABLE;
    }
    return status;
}

static enum client_status submit_open(struct submit *s, struct error *error)
{
    struct client_options options = s->cli->client;
    struct follow_options follow = {
        .client = &s->cli->client, .chunks = true, .max_jobs = JOBS_MAX};
    enum client_status status = CLIENT_OK;

    options.on_ack = on_ack;
    options.opaque = s;
    if (s->follow)
        status = follow_open(&follow, &s->reader, error);
    return status ? status : client_open(&options, &s->client, error);
}

static int submit_run(struct submit *s)
{
    struct error error;
    enum client_status status;

    if (request_options_finish(&s->request, &error) || gather(s, &error) || make_ids(s, &error))
        return cli_failed(s->command, CLIENT_WRONG, &error);
    status = submit_open(s, &error);
    if (!status)
        status = send_all(s, &error);
    if (s->jobs && show_accepted(s) && !status)
        return EXIT_TROUBLE;
    if (status)
        return cli_failed(s->command, status, &error);
    return s->follow ? viewer_run(s->cli, s->command, s->reader, s->ids, s->count, false) : EXIT_OK;
}

static int run(struct cli *cli, const struct command *command, int argc, char **argv)
{
    static struct submit s; /* large, and zeroed */
    const struct option own[] = {
        {"follow", 'f', OPTION_FLAG, &s.follow, NULL,
         "show the text as it is generated; wait for the result", 0, 0, NULL},
        {"job-id", '\0', OPTION_TEXT, &s.job_id, "UUID",
         "the idempotency key (random); sent again, it runs once", 0, 0, NULL},
        {0}};
    const struct option *const tables[] = {own, s.request.table, NULL};
    int code;

    s.cli = cli;
    s.command = command;
    cli->timeout_us = 60 * 1000000ll;
    request_options_init(&s.request);
    if (!cli_parse(cli, command, tables, argc, argv, &s.texts, &code))
        return code;
    if (s.follow && s.request.request.num_beams == 1)
        s.request.request.stream = true;
    code = submit_run(&s);
    client_close(s.client);
    follow_close(s.reader);
    free(s.from_stdin);
    free(s.jobs);
    free(s.ids);
    return code;
}

const struct command command_submit = {
    "submit", "Sends jobs and prints their ids once the brokers have them.",
    "[OPTION]... [TEXT]...",
    "\nEach TEXT is a job; without one, standard input is. Without --follow the ids are printed, "
    "one a\n"
    "line. --timeout (60s) bounds the wait for the brokers, and with --follow for news of the "
    "job.\n"
    "\nExamples\n"
    "  pgpt submit --to en \"Доброе утро\"\n"
    "  pgpt submit --to ru --follow \"The train leaves at nine.\"\n"
    "  pgpt submit --to ru --sample --top-k 10 -n 3 --json --follow \"Good evening\"\n"
    "  id=$(pgpt submit --to ru <letter.txt) && pgpt follow \"$id\"\n",
    run};
