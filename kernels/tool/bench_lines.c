/* SPDX-License-Identifier: MIT
 *
 * Lines of natural text, text in and text out: what a user of the engine gets, cutting into pieces
 * and putting together included. Throughput with all rows in use, then one line at a time.
 */
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/base/clock.h"
#include "kernels/generate/run.h"
#include "kernels/generate/validate.h"
#include "kernels/text/prompt.h"
#include "kernels/tool/bench.h"
#include "kernels/tool/lines.h"
#include "kernels/tool/stats.h"

enum { ROUNDS_MAX = 50, LATENCY_LINES_MAX = 1000, ARENA_MAX = 64 << 20, TEXTS_MAX = 1 << 30 };

/* One line being translated; its arena is used again by the next. */
struct place {
    struct arena *arena;
    struct generation_request request;
    struct generation_run *run;
    int32_t slot;
    bool used;
};

struct natural {
    struct bench *b;
    struct prompt_codec *codec;
    struct arena *texts;
    struct text *lines; /* (count) */
    int32_t count;
    struct place *places; /* (place_count) */
    int32_t place_count;
    int64_t tokens, source_tokens;
};

static struct text text_of(const char *string)
{
    return (struct text){string ? string : "", string ? strlen(string) : 0};
}

static int lines_load(struct natural *n, struct error *error)
{
    struct lines *lines = lines_open(n->b->lines, error);
    enum lines_status status = LINES_LINE;
    int32_t room = n->b->limit;
    char *line;
    size_t size;

    n->texts = arena_create(1 << 20, TEXTS_MAX);
    n->lines = calloc((size_t)room, sizeof *n->lines);
    if (lines && (!n->texts || !n->lines)) {
        error_set(error, "out of memory for the lines");
        status = LINES_ERROR;
    }
    while (lines && status != LINES_ERROR && n->count < room) {
        status = lines_next(lines, true, &line, &size, error);
        if (status == LINES_END || status == LINES_ERROR)
            break;
        if (status == LINES_TOO_LONG || !size)
            continue;
        n->lines[n->count] = arena_text(n->texts, line, size);
        if (!n->lines[n->count++].data) {
            error_set(error, "%s: more than %d bytes; use --limit", n->b->lines, TEXTS_MAX);
            status = LINES_ERROR;
        }
    }
    lines_close(lines);
    if (!lines || status == LINES_ERROR)
        return -1;
    return n->count ? 0 : error_set(error, "%s: it has no lines", n->b->lines);
}

/* Cuts the line into tokens and offers it to the engine. 1 = no room now. */
static int place_start(struct natural *n, int32_t at, struct text line, struct error *error)
{
    struct place *place = &n->places[at];
    struct validate_problems problems;
    struct engine_request request;
    const int32_t *source;
    int32_t count, taken;

    arena_reset(place->arena);
    generation_request_init(&place->request);
    place->request.prompt = line;
    place->request.target_language = text_of(n->b->language);
    place->request.author = text_of(n->b->author);
    place->request.num_beams = n->b->beams;
    if (n->b->sample) {
        place->request.do_sample = true;
        place->request.temperature = 0.8f;
        place->request.top_k = 50;
        place->request.top_p = 0.95f;
    }
    if (place->request.max_length > engine_limits(n->b->engine)->max_new)
        place->request.max_length = engine_limits(n->b->engine)->max_new;
    count = generation_prepare(&place->request, engine_limits(n->b->engine), n->codec, n->b->name,
                               place->arena, &source, &problems);
    if (count < 0)
        return error_set(error, "\"%.60s\": %.900s", line.data, problems.message);
    place->run = generation_run_create(&place->request, count, prompt_codec_detokeniser(n->codec),
                                       place->arena);
    if (!place->run)
        return error_set(error, "\"%.60s\": out of memory", line.data);
    generation_run_request(&place->request, source, count, (uint64_t)at, &request);
    taken = engine_admit(n->b->engine, 1, &request, &place->slot, error);
    if (taken < 0)
        return -1;
    place->used = taken == 1;
    n->source_tokens += taken == 1 ? count : 0;
    return place->used ? 0 : 1;
}

static int item_take(struct natural *n, const struct engine_item *item, int32_t *finished,
                     struct error *error)
{
    struct place *place = &n->places[item->tag];
    struct generation_result result = {0};

    if (generation_run_take(place->run, item) == GENERATION_TOOK_NOMEM)
        return error_set(error, "out of memory for a line's text");
    if (!generation_run_finished(place->run))
        return 0;
    if (generation_run_result(place->run, &result))
        return error_set(error, "out of memory for a line's text");
    engine_release(n->b->engine, place->slot);
    n->tokens += (int64_t)result.usage.generated_tokens * n->b->beams;
    place->used = false;
    ++*finished;
    return 0;
}

/* Fills free places with the next lines. */
static int places_fill(struct natural *n, int32_t places, int32_t *next, int32_t count,
                       struct error *error)
{
    for (int32_t at = 0; at < places && *next < count; at++) {
        int status;

        if (n->places[at].used)
            continue;
        status = place_start(n, at, n->lines[*next], error);
        if (status)
            return status < 0 ? -1 : 0;
        ++*next;
    }
    return 0;
}

/* Translates `count` lines from `first` on, at most `places` of them at once. */
static int lines_translate(struct natural *n, int32_t first, int32_t count, int32_t places,
                           int32_t steps, struct error *error)
{
    int32_t next = first, finished = 0;
    struct engine_output output;

    while (finished < count) {
        if (places_fill(n, places, &next, first + count, error) ||
            engine_step(n->b->engine, steps, &output, error))
            return -1;
        for (int32_t i = 0; i < output.item_count; i++)
            if (item_take(n, &output.items[i], &finished, error))
                return -1;
        if (!output.steps && !output.item_count && finished < count)
            return error_set(error, "a line does not fit into the engine; more --memory is needed");
    }
    return 0;
}

static json_t *rounded(double value, int decimals)
{
    return json_real(stats_round(value, decimals));
}

struct natural_figures {
    double tok_per_s[ROUNDS_MAX], lines_per_s[ROUNDS_MAX];
    double latency_ms[LATENCY_LINES_MAX];
    size_t rounds, latencies;
    int64_t tokens, source_tokens;
};

static int measure(struct natural *n, struct natural_figures *f, struct error *error)
{
    int32_t alone = n->count < LATENCY_LINES_MAX ? n->count : LATENCY_LINES_MAX;
    size_t rounds = n->b->rounds < ROUNDS_MAX ? (size_t)n->b->rounds : ROUNDS_MAX;

    if (lines_translate(n, 0, n->count, n->place_count, n->b->steps, error)) /* warm-up */
        return -1;
    for (; f->rounds < rounds; f->rounds++) {
        int64_t begun = clock_mono_us();
        double seconds;

        n->tokens = n->source_tokens = 0;
        if (lines_translate(n, 0, n->count, n->place_count, n->b->steps, error))
            return -1;
        seconds = (double)(clock_mono_us() - begun) / 1e6;
        f->tok_per_s[f->rounds] = (double)n->tokens / seconds;
        f->lines_per_s[f->rounds] = (double)n->count / seconds;
    }
    f->tokens = n->tokens;
    f->source_tokens = n->source_tokens;
    for (; f->latencies < (size_t)alone; f->latencies++) {
        int64_t begun = clock_mono_us();

        if (lines_translate(n, (int32_t)f->latencies, 1, 1, n->b->steps, error))
            return -1;
        f->latency_ms[f->latencies] = (double)(clock_mono_us() - begun) / 1e3;
    }
    stats_sort(f->tok_per_s, f->rounds);
    stats_sort(f->lines_per_s, f->rounds);
    stats_sort(f->latency_ms, f->latencies);
    return 0;
}

static int print(const struct natural *n, const struct natural_figures *f, struct error *error)
{
    struct bench *b = n->b;
    json_t *line = json_pack(
        "{s:s, s:s, s:s, s:i, s:i, s:i, s:I, s:I, s:i, s:o, s:o, s:o, s:o, s:i, s:o, s:o, s:o}",
        "model", b->name, "device", engine_info(b->engine)->device, "compute",
        engine_info(b->engine)->compute, "threads", (int)cli_threads(&b->options), "rows",
        (int)engine_limits(b->engine)->max_rows, "lines", (int)n->count, "source_tokens",
        (json_int_t)f->source_tokens, "tokens", (json_int_t)f->tokens, "rounds", (int)f->rounds,
        "tok_per_s", rounded(stats_median(f->tok_per_s, f->rounds), 1), "tok_per_s_min",
        rounded(f->tok_per_s[0], 1), "tok_per_s_max", rounded(f->tok_per_s[f->rounds - 1], 1),
        "lines_per_s", rounded(stats_median(f->lines_per_s, f->rounds), 1), "latency_lines",
        (int)f->latencies, "p50_ms",
        rounded(stats_percentile(f->latency_ms, f->latencies, 0.50), 3), "p95_ms",
        rounded(stats_percentile(f->latency_ms, f->latencies, 0.95), 3), "p99_ms",
        rounded(stats_percentile(f->latency_ms, f->latencies, 0.99), 3));
    int status = line ? json_dumpf(line, stdout, JSON_COMPACT | JSON_REAL_PRECISION(9)) : -1;

    json_decref(line);
    putchar('\n');
    return status ? error_set(error, "out of memory") : 0;
}

static int places_create(struct natural *n, struct error *error)
{
    n->place_count = engine_limits(n->b->engine)->max_rows / n->b->beams;
    n->places = calloc((size_t)n->place_count + 1, sizeof *n->places);
    for (int32_t i = 0; n->places && i < n->place_count; i++)
        if (!(n->places[i].arena = arena_create(16 << 10, ARENA_MAX)))
            return error_set(error, "out of memory for the rows");
    return n->places && n->place_count ? 0 : error_set(error, "no room for one line: --rows");
}

int bench_lines(struct bench *b, struct error *error)
{
    struct natural n = {.b = b};
    struct natural_figures *figures = calloc(1, sizeof *figures);
    int status = -1;

    n.codec = prompt_codec_open(b->options.model, engine_limits(b->engine)->vocabulary, error);
    if (!n.codec || lines_load(&n, error) || places_create(&n, error))
        goto out;
    if (!figures)
        error_set(error, "out of memory");
    else if (!measure(&n, figures, error) && !print(&n, figures, error))
        status = 0;
out:
    for (int32_t i = 0; n.places && i < n.place_count; i++)
        arena_destroy(n.places[i].arena);
    free(n.places);
    free(n.lines);
    arena_destroy(n.texts);
    prompt_codec_close(n.codec);
    free(figures);
    return status;
}
