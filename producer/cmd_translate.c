/* SPDX-License-Identifier: MIT
 *
 * One thread: takes lines in while the window has room, sends each as a job, writes the results of
 * the window's front. A slow job holds back later lines, never the order.
 */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "kernels/base/clock.h"
#include "producer/command.h"
#include "producer/order.h"
#include "producer/output.h"
#include "producer/progress.h"
#include "producer/request_options.h"
#include "producer/text_input.h"

enum { WINDOW_MAX = 10000, INPUT_WAIT_MS = 5, RESULT_WAIT_MS = 5 };

struct line {
    uint64_t number; /* from 1 */
    char job_id[37]; /* "" = an empty line: no job */
    int64_t sent_us; /* monotonic */
    struct order_slot *slot;
    char *text;      /* NULL = none */
    char error[256]; /* "" = none */
    char status[16];
};

struct translate {
    struct cli *cli;
    const struct command *command;
    struct request_options request;
    int32_t in_flight;
    struct client *client;
    struct follow *follow;
    struct order order;
    struct text_lines input;
    bool input_ended;
    uint64_t read, written, tokens;
    int64_t begun_us;
    struct progress progress;
    int code;
};

static void finish(struct line *line, const char *status, const char *error)
{
    snprintf(line->status, sizeof line->status, "%s", status);
    snprintf(line->error, sizeof line->error, "%.255s", error ? error : "");
    line->slot->finished = true;
}

static void on_ack(const struct client_ack *ack, void *opaque)
{
    struct translate *t = opaque;

    /* Not watched any more: its result came first, or it timed out; then the line may be gone. */
    if (ack->error && follow_forget(t->follow, ack->job_id))
        finish(ack->user, "lost", ack->error);
}

/* ---- in ---- */

static enum client_status send_line(struct translate *t, struct line *line, char *prompt,
                                    struct error *error)
{
    struct text text = {prompt, strlen(prompt)};
    struct generation_request request;
    enum client_status status;

    if (client_new_id(line->job_id, error))
        return CLIENT_FAILED;
    request = request_options_make(&t->request, line->job_id, text, clock_wall_us());
    line->sent_us = clock_mono_us();
    status = follow_watch(t->follow, line->job_id, line, error);
    if (status)
        return status;
    while ((status = client_submit(t->client, &request, line, error)) == CLIENT_FULL &&
           !cli_interrupted())
        client_poll(t->client, 10);
    if (status)
        follow_forget(t->follow, line->job_id);
    if (status == CLIENT_WRONG) { /* this line's fault: the others go on */
        finish(line, "failed", error->message);
        status = CLIENT_OK;
    }
    return status;
}

static enum client_status take_in(struct translate *t, struct error *error)
{
    bool idle = t->order.count == 0;
    char *prompt;
    struct line *line;
    enum text_lines_status got;

    if (t->input_ended || t->order.count == t->order.capacity)
        return CLIENT_OK;
    got = text_lines_next(&t->input, idle ? 100 : 0, &prompt, error);
    t->input_ended = got == TEXT_ENDED;
    if (got == TEXT_ERROR)
        return CLIENT_FAILED;
    if (got != TEXT_LINE)
        return CLIENT_OK;
    line = calloc(1, sizeof *line);
    if (!line) {
        error_set(error, "out of memory");
        return CLIENT_FAILED;
    }
    line->number = ++t->read;
    line->slot = order_add(&t->order, line);
    if (!*prompt) { /* nothing to translate */
        finish(line, "completed", NULL);
        return CLIENT_OK;
    }
    return send_line(t, line, prompt, error);
}

/* ---- out ---- */

/* One line in, one line out: line breaks within a text become spaces. */
static char *one_line(const struct text *text)
{
    char *copy = malloc(text->size + 1);

    for (size_t i = 0; copy && i < text->size; i++)
        copy[i] =
            text->data[i] == '\n' || text->data[i] == '\r' || !text->data[i] ? ' ' : text->data[i];
    if (copy)
        copy[text->size] = '\0';
    return copy;
}

static void take_result(struct translate *t, const struct follow_event *event)
{
    const struct generation_result *r = event->result;
    struct line *line = event->user;

    t->tokens += (uint64_t)r->usage.generated_tokens;
    if (r->sequence_count && !(line->text = one_line(&r->sequences[0].text)))
        finish(line, "lost", "out of memory");
    else
        finish(line, r->status, r->has_error ? r->error.message.data : NULL);
}

static void line_free(struct line *line)
{
    free(line->text);
    free(line);
}

static void write_line(struct translate *t, struct line *line)
{
    bool failed = strcmp(line->status, "completed") != 0;

    if (failed && strcmp(line->status, "late") != 0)
        t->code = EXIT_JOB_FAILED;
    if (failed) {
        progress_clear(&t->progress);
        cli_say(t->command, "line %llu %s%s%s (job %s)", (unsigned long long)line->number,
                line->status, *line->error ? ": " : "", line->error, line->job_id);
    }
    if (t->cli->json) {
        struct text text = {line->text ? line->text : "", line->text ? strlen(line->text) : 0};
        struct text error = {line->error, strlen(line->error)};

        output_line(json_pack("{sI ss ss so so}", "line", (json_int_t)line->number, "job_id",
                              line->job_id, "status", line->status, "text", output_text(&text),
                              "error", *line->error ? output_text(&error) : json_null()));
    } else {
        puts(line->text && !failed ? line->text : "");
    }
    t->written++;
}

/* The oldest line is the first whose time is over. */
static void expire(struct translate *t)
{
    struct line *line = order_peek(&t->order, 0);
    const char *trouble;
    char reason[256];

    if (!line || line->slot->finished || clock_mono_us() - line->sent_us < t->cli->timeout_us)
        return;
    follow_forget(t->follow, line->job_id);
    trouble = follow_trouble(t->follow, line->sent_us);
    snprintf(reason, sizeof reason, "no result within --timeout%s%s",
             *trouble ? "; the last connection error: " : "", trouble);
    finish(line, "late", reason);
    t->code = t->code ? t->code : EXIT_NOT_FOUND;
}

static void show_progress(struct translate *t)
{
    int64_t now = clock_mono_us();
    double seconds = (double)(now - t->begun_us) / 1e6;

    if (progress_due(&t->progress, now) && seconds > 0)
        progress_draw(&t->progress, t->written, t->input_ended ? t->read : 0, now,
                      "%llu lines, %.0f lines/s, %.0f tokens/s, %zu in flight",
                      (unsigned long long)t->written, (double)t->written / seconds,
                      (double)t->tokens / seconds, t->order.count);
}

static enum client_status put_out(struct translate *t, struct error *error)
{
    bool may_read = !t->input_ended && t->order.count < t->order.capacity;
    int wait = t->order.count ? may_read ? RESULT_WAIT_MS : 20 : 0;
    enum follow_kind kind;
    struct follow_event event;
    struct line *line;

    do {
        kind = follow_next(t->follow, wait, &event, error);
        if (kind == FOLLOW_ERROR)
            return CLIENT_FAILED;
        if (kind == FOLLOW_RESULT)
            take_result(t, &event);
        wait = 0;
    } while (kind != FOLLOW_NOTHING);
    expire(t);
    while ((line = order_take(&t->order))) {
        write_line(t, line);
        line_free(line);
    }
    if (fflush(stdout)) {
        error_set(error, "standard output could not be written");
        return CLIENT_FAILED;
    }
    return CLIENT_OK;
}

/* ---- all ---- */

static enum client_status translate_lines(struct translate *t, struct error *error)
{
    enum client_status status = CLIENT_OK;

    while (!status && !cli_interrupted() && (!t->input_ended || t->order.count)) {
        size_t before;

        do { /* whatever lies ready is sent before results are waited for */
            before = t->order.count;
            status = take_in(t, error);
        } while (!status && t->order.count > before);
        client_poll(t->client, 0);
        if (!status)
            status = put_out(t, error);
        show_progress(t);
    }
    progress_clear(&t->progress);
    return status;
}

static enum client_status translate_open(struct translate *t, struct error *error)
{
    struct client_options options = t->cli->client;
    struct follow_options follow = {.client = &t->cli->client, .max_jobs = WINDOW_MAX};
    enum client_status status;

    options.on_ack = on_ack;
    options.opaque = t;
    if (order_init(&t->order, (size_t)t->in_flight) ||
        text_lines_init(&t->input, STDIN_FILENO, error)) {
        error_set(error, "out of memory");
        return CLIENT_FAILED;
    }
    status = follow_open(&follow, &t->follow, error);
    return status ? status : client_open(&options, &t->client, error);
}

static void translate_close(struct translate *t)
{
    struct line *line;

    /* on_ack() is no longer called once the client is closed. */
    client_close(t->client);
    follow_close(t->follow);
    for (size_t i = 0; t->order.slots && (line = order_peek(&t->order, i)); i++)
        line_free(line);
    order_free(&t->order);
    text_lines_free(&t->input);
}

static int run(struct cli *cli, const struct command *command, int argc, char **argv)
{
    static struct translate t; /* large, and zeroed */
    const struct option own[] = {{"in-flight", '\0', OPTION_INT, &t.in_flight, "N",
                                  "lines on their way at once (64)", 1, WINDOW_MAX, NULL},
                                 {0}};
    const struct option *const tables[] = {own, t.request.table, NULL};
    struct option_positionals positionals;
    struct error error;
    enum client_status status;
    int code;

    t.cli = cli;
    t.command = command;
    t.in_flight = 64;
    cli->timeout_us = 120 * 1000000ll;
    request_options_init(&t.request);
    if (!cli_parse(cli, command, tables, argc, argv, &positionals, &code))
        return code;
    if (positionals.count) {
        cli_say(command, "%s: the text comes from standard input; use submit for an argument",
                positionals.items[0]);
        return EXIT_WRONG_USE;
    }
    if (request_options_finish(&t.request, &error))
        return cli_failed(command, CLIENT_WRONG, &error);
    if (isatty(STDIN_FILENO))
        cli_say(command, "type lines, end with Ctrl-D");
    progress_init(&t.progress);
    t.progress.on = t.progress.on && !isatty(STDOUT_FILENO); /* the lines are progress enough */
    t.begun_us = clock_mono_us();
    status = translate_open(&t, &error);
    if (!status)
        status = translate_lines(&t, &error);
    translate_close(&t);
    if (status)
        return cli_failed(command, status, &error);
    return cli_interrupted() ? EXIT_INTERRUPTED : t.code;
}

const struct command command_translate = {
    "translate", "Translates lines: one in, one out, in the same order.", "[OPTION]... <IN >OUT",
    "\nEach line of standard input is a job; its translation is written at the same place, however "
    "the\n"
    "jobs finish. An empty line stays empty. Where a job fails, an empty line is written, the "
    "reason\n"
    "goes to standard error with the line's number, and the exit code is 5. --timeout (120s) "
    "bounds the\n"
    "wait for a single line.\n"
    "\nExamples\n"
    "  pgpt translate --to ru <english.txt >russian.txt\n"
    "  tail -f chat.log | pgpt translate --to en --in-flight 8\n"
    "  pgpt translate --to en --beams 4 --json <in.txt | jq -r .text\n",
    run};
