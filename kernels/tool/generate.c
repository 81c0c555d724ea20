/* SPDX-License-Identifier: MIT
 *
 * Requests in, results out. A window of lines, kept as a ring, moves over the input:
 *
 *   printed .. admitted   running or done, in order of the input
 *   admitted .. read      waiting for free rows (or refused, already done)
 *
 * Lines are read while the window has room, admitted as rows free up, and written from its front,
 * so memory is bounded however long the input is.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/base/clock.h"
#include "kernels/tool/cli.h"
#include "kernels/tool/line_job.h"
#include "kernels/tool/lines.h"
#include "kernels/tool/progress.h"

static int generate_run(int argc, char **argv);

const struct cli_command command_generate = {
    .name = "generate",
    .summary = "reads requests as JSON lines, writes results as JSON lines",
    .text =
        "Each line is an object with the fields of schema/GenerationRequest.avsc; a missing field\n"
        "takes its default, so {\"prompt\": \"Hello.\", \"target_language\": \"ru\"} is enough:\n"
        "  job_id prompt source_tokens target_language author max_length min_length do_sample\n"
        "  temperature top_k top_p repetition_penalty length_penalty num_beams\n"
        "  num_return_sequences early_stopping stop seed stream stream_interval priority\n"
        "  deadline_us tenant model created_at_us metadata\n"
        "A missing job_id is made from the line's number (line 7: 00000000-0000-0007-0000-\n"
        "000000000000), which also makes the number the seed where none is given. stream,\n"
        "priority and tenant are checked and have no effect here.\n\n"
        "Each result has the fields of schema/GenerationResult.avsc. A line that cannot run gives\n"
        "a result with status \"failed\" that names every bad field, its value and its range; so\n"
        "does a line that is no JSON or above 4 MiB (it names the line). Blank lines are skipped.\n"
        "Results come in the order of the input. Lines are batched continuously: each is\n"
        "admitted as soon as rows are free, and gives the same bits as it would alone.\n\n"
        "exit codes: 0 every line completed, 1 some line did not, 2 bad options, model or input,\n"
        "            3 the device or the output failed\n",
    .examples =
        "  echo '{\"prompt\": \"Good morning.\", \"target_language\": \"ru\"}' |\n"
        "    pgpt-engine generate --model models/prometheus-mini\n"
        "  pgpt-engine generate --model models/prometheus-mini --input requests.jsonl \\\n"
        "    --output results.jsonl --compute int8 --rows 64\n"
        "  # four samples of one prompt\n"
        "  echo '{\"prompt\": \"Hello.\", \"target_language\": \"ru\", \"do_sample\": true,\n"
        "         \"num_return_sequences\": 4, \"top_p\": 0.9, \"seed\": 1}' | tr -d '\\n' |\n"
        "    pgpt-engine generate --model models/prometheus-mini\n"
        "  # token ids in and out, no SentencePiece needed\n"
        "  echo '{\"source_tokens\": [4, 1366, 284, 3]}' |\n"
        "    pgpt-engine generate --model models/prometheus-mini --tokens\n",
    .run = generate_run,
};

enum {
    ADMIT_MAX = 256,     /* requests a call of engine_admit() */
    HELD_MAX = 64 << 20, /* bytes of input lines in the window */
    WINDOW_MIN = 64,
    WINDOW_ROWS = 4 /* lines in the window for each row of the engine */
};

struct generate {
    struct line_setup setup;
    struct lines *lines;
    FILE *output;
    bool unordered;
    int32_t steps;           /* a call */
    struct line_job *window; /* (size) */
    size_t *held;            /* (size) bytes of each line */
    int64_t size;
    int64_t printed, admitted, read; /* lines; window[n % size] is line n */
    size_t held_bytes;
    int64_t running, results, failures, tokens;
    bool ended;
    struct progress progress;
};

static struct line_job *job_at(struct generate *g, int64_t line)
{
    return &g->window[line % g->size];
}

static bool blank(const char *line, size_t size)
{
    for (size_t i = 0; i < size; i++)
        if (!strchr(" \t\r", line[i]) || !line[i])
            return false;
    return true;
}

static void line_take(struct generate *g, enum lines_status status, const char *line, size_t size)
{
    struct line_job *job = job_at(g, g->read);
    int64_t number = lines_number(g->lines), now = clock_mono_us();
    char message[128];

    if (status == LINES_LINE && blank(line, size))
        return;
    if (status == LINES_TOO_LONG) {
        snprintf(message, sizeof message, "line %lld: it has more than %d bytes", (long long)number,
                 LINES_BYTES_MAX);
        line_job_refuse(job, &g->setup, number, "invalid", message, now);
    } else {
        line_job_read(job, &g->setup, line, size, number, now);
    }
    g->held[g->read % g->size] = size;
    g->held_bytes += size;
    g->read++;
}

/* Fills the window; waits for input only when nothing else is to do. */
static int window_fill(struct generate *g, struct error *error)
{
    while (!g->ended && g->read - g->printed < g->size && g->held_bytes < HELD_MAX) {
        bool idle = g->running == 0 && g->admitted == g->read;
        char *line;
        size_t size;
        enum lines_status status = lines_next(g->lines, idle, &line, &size, error);

        if (status == LINES_ERROR)
            return -1;
        if (status == LINES_NONE_YET)
            return 0;
        g->ended = status == LINES_END;
        if (!g->ended)
            line_take(g, status, line, size);
        if (idle && g->read > g->admitted && job_at(g, g->admitted)->state == LINE_DONE)
            return 0; /* a refused line is not kept back by a slow writer of the next */
    }
    return 0;
}

/* Offers waiting lines to the engine, in order, as many as it takes. */
static int window_admit(struct generate *g, struct error *error)
{
    while (g->admitted < g->read) {
        struct engine_request requests[ADMIT_MAX];
        int32_t slots[ADMIT_MAX], count = 0, taken;
        int64_t now = clock_mono_us();

        for (; g->admitted < g->read && job_at(g, g->admitted)->state != LINE_WAITING;)
            g->admitted++;
        for (int64_t i = g->admitted; i < g->read && count < ADMIT_MAX; i++) {
            if (job_at(g, i)->state != LINE_WAITING)
                break;
            line_job_request(job_at(g, i), &requests[count++]);
        }
        if (!count)
            return 0;
        taken = engine_admit(g->setup.engine, count, requests, slots, error);
        if (taken < 0)
            return -1;
        for (int32_t i = 0; i < taken; i++)
            line_job_admitted(job_at(g, g->admitted + i), slots[i], now);
        g->admitted += taken;
        g->running += taken;
        if (taken == 0 && g->running == 0)
            return error_set(error, "--memory or --rows leave no room for line %lld of the input",
                             (long long)job_at(g, g->admitted)->number);
        if (taken < count)
            return 0;
    }
    return 0;
}

static int step(struct generate *g, struct error *error)
{
    struct engine_output output;
    int64_t now;

    if (!g->running)
        return 0;
    if (engine_step(g->setup.engine, g->steps, &output, error))
        return -1;
    now = clock_mono_us();
    for (int64_t i = g->printed; i < g->admitted; i++)
        if (job_at(g, i)->state == LINE_RUNNING)
            line_job_stepped(job_at(g, i), &output);
    for (int32_t i = 0; i < output.item_count; i++) {
        struct line_job *job = (struct line_job *)(uintptr_t)output.items[i].tag;
        bool was_running = job->state == LINE_RUNNING;

        line_job_take(job, &g->setup, &output.items[i], &output, now);
        if (was_running && job->state == LINE_DONE)
            g->running--;
    }
    return 0;
}

static void expire(struct generate *g)
{
    int64_t wall = clock_wall_us(), now = clock_mono_us();

    for (int64_t i = g->printed; i < g->read; i++) {
        struct line_job *job = job_at(g, i);
        bool was_running = job->state == LINE_RUNNING;

        if (job->state == LINE_WAITING || was_running)
            line_job_expire(job, &g->setup, wall, now);
        if (was_running && job->state == LINE_DONE)
            g->running--;
    }
}

static int line_print(struct generate *g, int64_t line, struct error *error)
{
    struct line_job *job = job_at(g, line);

    if (!job->out)
        return error_set(error, "line %lld: out of memory for its result", (long long)job->number);
    if (fwrite(job->out, 1, job->out_size, g->output) != job->out_size ||
        putc('\n', g->output) == EOF)
        return error_set(error, "the output could not be written: %s", strerror(errno));
    g->results++;
    g->failures += job->failed;
    g->tokens += job->generated_tokens;
    g->held_bytes -= g->held[line % g->size];
    line_job_free(job);
    return 0;
}

/* Writes what is done, from the front; --unordered writes all of it. The front moves past what is
 * written. */
static int window_print(struct generate *g, struct error *error)
{
    int64_t before = g->results;

    for (int64_t i = g->printed; i < g->read; i++) {
        enum line_state state = job_at(g, i)->state;

        if (state == LINE_DONE && line_print(g, i, error))
            return -1;
        if (state != LINE_DONE && state != LINE_FREE && !g->unordered)
            break;
    }
    while (g->printed < g->admitted && job_at(g, g->printed)->state == LINE_FREE)
        g->printed++;
    if (g->results > before && fflush(g->output))
        return error_set(error, "the output could not be written: %s", strerror(errno));
    return 0;
}

static int loop(struct generate *g, struct error *error)
{
    for (;;) {
        if (window_fill(g, error))
            return -1;
        expire(g);
        if (window_admit(g, error) || step(g, error) || window_print(g, error))
            return -1;
        progress_show(&g->progress, lines_share(g->lines), g->results, g->tokens, g->running,
                      clock_mono_us());
        if (g->ended && g->printed == g->read)
            return 0;
    }
}

static int window_create(struct generate *g, struct error *error)
{
    g->size = (int64_t)engine_limits(g->setup.engine)->max_rows * WINDOW_ROWS;
    if (g->size < WINDOW_MIN)
        g->size = WINDOW_MIN;
    g->window = calloc((size_t)g->size, sizeof *g->window);
    g->held = calloc((size_t)g->size, sizeof *g->held);
    return g->window && g->held
               ? 0
               : error_set(error, "out of memory for %lld lines", (long long)g->size);
}

struct settings {
    struct cli_engine engine;
    const char *input, *output;
    bool tokens, unordered;
    int32_t steps;
    char name[256];
};

static int setup_open(struct generate *g, struct settings *settings, struct prompt_codec **codec,
                      struct error *error)
{
    g->unordered = settings->unordered;
    g->steps = settings->steps;
    g->output = stdout;
    g->setup.engine = cli_engine_open(&settings->engine, error);
    if (!g->setup.engine)
        return -1;
    g->setup.model_name = cli_model_name(&settings->engine, settings->name, sizeof settings->name);
    if (!settings->tokens) {
        *codec = prompt_codec_open(settings->engine.model,
                                   engine_limits(g->setup.engine)->vocabulary, error);
        if (!*codec) {
            struct error why = *error;

            return error_set(error, "%.900s (--tokens works without texts)", why.message);
        }
        g->setup.codec = *codec;
    }
    g->lines = lines_open(settings->input, error);
    if (!g->lines || window_create(g, error))
        return -1;
    if (settings->output && !(g->output = fopen(settings->output, "w")))
        return error_set(error, "%s: cannot be written: %s", settings->output, strerror(errno));
    progress_init(&g->progress, "lines", clock_mono_us());
    return 0;
}

static int run(struct settings *settings, struct error *error)
{
    struct generate g = {0};
    struct prompt_codec *codec = NULL;
    int status = TOOL_BAD_INPUT;

    if (setup_open(&g, settings, &codec, error))
        goto out;
    status = TOOL_BROKEN;
    if (loop(&g, error))
        goto out;
    progress_end(&g.progress, g.results, g.tokens, clock_mono_us());
    status = g.failures ? TOOL_MISMATCH : TOOL_OK;
out:
    if (g.output && g.output != stdout && fclose(g.output) && status <= TOOL_MISMATCH) {
        error_set(error, "%s: cannot be written: %s", settings->output, strerror(errno));
        status = TOOL_BROKEN;
    }
    for (int64_t i = 0; g.window && i < g.size; i++)
        line_job_destroy(&g.window[i]);
    free(g.window);
    free(g.held);
    lines_close(g.lines);
    prompt_codec_close(codec);
    engine_close(g.setup.engine);
    return status;
}

static int generate_run(int argc, char **argv)
{
    struct settings settings = {.steps = 4};
    bool helped;
    enum { OWN = 5, COUNT = CLI_ENGINE_OPTIONS + OWN };
    struct cli_option table[COUNT];
    const struct cli_option own[OWN] = {
        {"--input", "FILE", CLI_TEXT, &settings.input, 0, 0, "requests (standard input)"},
        {"--output", "FILE", CLI_TEXT, &settings.output, 0, 0, "results (standard output)"},
        {"--tokens", NULL, CLI_FLAG, &settings.tokens, 0, 0,
         "token ids in and out: source_tokens instead of prompts, empty texts"},
        {"--unordered", NULL, CLI_FLAG, &settings.unordered, 0, 0,
         "results as they finish, not in the order of the input"},
        {"--steps", "K", CLI_INT, &settings.steps, 1, 1024,
         "decode steps between looks at input and stop strings (4)"},
    };
    struct error error;
    int status;

    cli_engine_init(&settings.engine);
    cli_engine_options(&settings.engine, table);
    memcpy(table + CLI_ENGINE_OPTIONS, own, sizeof own);
    if (cli_parse(&command_generate, table, COUNT, argc, argv, &helped, &error))
        return cli_fail(TOOL_BAD_INPUT, &error);
    if (helped)
        return TOOL_OK;
    status = run(&settings, &error);
    return status >= TOOL_BAD_INPUT ? cli_fail(status, &error) : status;
}
