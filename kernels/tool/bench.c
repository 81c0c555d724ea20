/* SPDX-License-Identifier: MIT */
#include "kernels/tool/bench.h"

#include <jansson.h>
#include <stdio.h>
#include <string.h>

#include "kernels/tool/floor.h"
#include "kernels/tool/stats.h"

static int bench_run(int argc, char **argv);

const struct cli_command command_bench = {
    .name = "bench",
    .summary = "measures decode steps, tokens a second and the share of the device's floor",
    .text =
        "For each batch a JSON line:\n"
        "  us_per_step   a decode step alone, of calls in which all rows run and nothing is being\n"
        "                encoded; median of the rounds (with _min and _max)\n"
        "  tok_per_s     generated tokens over wall time, encoding and host work included\n"
        "  floor_us      below it no implementation can be here: bytes over the bandwidth or\n"
        "                operations over the rate, whichever is longer, plus the dependent phases\n"
        "                times the cheapest barrier, all measured in this run; null where the\n"
        "                device has no measurement. floor_share = floor_us / us_per_step\n"
        "  phases        steps of the chain that depend on one another\n"
        "Sources are random tokens and every sequence has its full length; with beams, tokens of\n"
        "all beams are counted.\n"
        "--traffic keeps the rows full of requests of 5 to 200 source and 1 to 250 new tokens,\n"
        "admitting at every step; traffic_share is its tok_per_s over the fixed-length one.\n"
        "--lines translates a text file instead: tok_per_s through continuous batching and the\n"
        "latency of one line at a time (p50_ms, p95_ms, p99_ms), text in and text out.\n",
    .examples =
        "  pgpt-engine bench --model models/prometheus-mini --batch 1,32,512 --threads 2\n"
        "  pgpt-engine bench --model models/prometheus-mini --device cuda:0 --compute fp16 \\\n"
        "    --batch 512 --traffic\n"
        "  pgpt-engine bench --model models/prometheus-mini --batch 32 --beams 4\n"
        "  pgpt-engine bench --model models/prometheus-mini --compute int8 --rows 32 \\\n"
        "    --lines dev.en --language ru\n",
    .run = bench_run,
};

static json_t *rounded(double value, int decimals)
{
    return json_real(stats_round(value, decimals));
}

/* floor_us and what it is made of; nulls where the device has no measurement. */
static int floor_add(struct bench *b, const struct bench_figures *figures, double source,
                     double target, json_t *line)
{
    bool cuda = !strncmp(b->options.options.device, "cuda", 4);
    struct engine_batch batch = {(int32_t)figures->rows_mean, source, target};
    struct engine_floor_need need = {b->options.options.device, b->compute,
                                     cli_threads(&b->options), 0};
    struct engine_floor floor;
    struct engine_work work;
    struct error why;
    double us;

    engine_work_step(engine_config(b->engine), b->compute, cuda, b->options.options.cache_int8,
                     &batch, &work);
    need.bytes = work.bytes;
    if (engine_floor_measure(&need, &floor, &why))
        return json_object_update_new(
            line, json_pack("{s:n, s:n, s:i}", "floor_us", "floor_share", "phases", work.phases));
    us = engine_floor_us(&floor, &work);
    return json_object_update_new(
        line,
        json_pack("{s:o, s:o, s:i, s:o, s:o, s:o, s:o, s:o}", "floor_us", rounded(us, 2),
                  "floor_share", rounded(us / figures->us_per_step, 4), "phases", work.phases,
                  "barrier_us", rounded(floor.barrier_us, 3), "step_mb",
                  rounded(work.bytes / 1e6, 3), "gb_per_s", rounded(floor.bytes_per_us / 1e3, 2),
                  "step_mop", rounded(work.operations / 1e6, 2), "gop_per_s",
                  rounded(floor.operations_per_us / 1e3, 1)));
}

static int traffic_add(struct bench *b, int32_t batch, const struct bench_figures *fixed,
                       json_t *line, struct error *error)
{
    struct bench_figures traffic;

    if (bench_traffic(b, batch, &traffic, error))
        return -1;
    if (json_object_update_new(
            line, json_pack("{s:o, s:o, s:o, s:o, s:o}", "traffic_tok_per_s",
                            rounded(traffic.tok_per_s, 1), "traffic_share",
                            rounded(traffic.tok_per_s / fixed->tok_per_s, 4), "traffic_us_per_step",
                            rounded(traffic.us_per_step, 2), "traffic_encode_us_per_step",
                            rounded(traffic.encode_us, 2), "traffic_rows_mean",
                            rounded(traffic.rows_mean, 2))))
        return error_set(error, "out of memory");
    return 0;
}

static json_t *line_make(struct bench *b, int32_t batch, const struct bench_figures *f)
{
    const struct engine_info *info = engine_info(b->engine);

    return json_pack(
        "{s:s, s:s, s:s, s:i, s:i, s:i, s:i, s:i, s:b, s:i, s:o, s:o, s:o, s:o, s:o, s:o, s:o}",
        "model", b->name, "device", info->device, "compute", info->compute, "threads",
        (int)cli_threads(&b->options), "batch", (int)batch, "source", (int)b->source, "new",
        (int)b->new_tokens, "beams", (int)b->beams, "sample", b->sample, "rounds", (int)f->rounds,
        "us_per_step", rounded(f->us_per_step, 2), "us_per_step_min",
        rounded(f->us_per_step_min, 2), "us_per_step_max", rounded(f->us_per_step_max, 2),
        "tok_per_s", rounded(f->tok_per_s, 1), "tok_per_s_min", rounded(f->tok_per_s_min, 1),
        "tok_per_s_max", rounded(f->tok_per_s_max, 1), "encode_us", rounded(f->encode_us, 1));
}

static int batch_measure(struct bench *b, int32_t batch, struct error *error)
{
    struct bench_figures figures;
    json_t *line;
    int status = -1;

    if (bench_fixed(b, batch, &figures, error))
        return -1;
    line = line_make(b, batch, &figures);
    if (!line || floor_add(b, &figures, b->source, (b->new_tokens + 1) / 2.0, line))
        error_set(error, "out of memory");
    else if (!b->traffic || !traffic_add(b, batch, &figures, line, error))
        status = json_dumpf(line, stdout, JSON_COMPACT | JSON_REAL_PRECISION(9));
    putchar('\n');
    fflush(stdout);
    json_decref(line);
    return status;
}

/* Rows for the largest batch, lengths as they are needed. */
static void sizes_set(struct bench *b)
{
    struct engine_options *o = &b->options.options;
    int32_t largest = 0;

    for (int32_t i = 0; i < b->batches.count; i++)
        if (b->batches.values[i] > largest)
            largest = b->batches.values[i];
    if (b->lines)
        return;
    if (!o->max_rows)
        o->max_rows = largest * b->beams;
    if (!b->traffic) {
        o->max_source = b->source;
        o->max_new = b->new_tokens;
    }
}

static int limits_check(const struct bench *b, struct error *error)
{
    const struct engine_limits *limits = engine_limits(b->engine);

    if (b->source > limits->max_source || b->new_tokens > limits->max_new)
        return error_set(error, "--source %d, --new %d: the model allows %d and %d", b->source,
                         b->new_tokens, limits->max_source, limits->max_new);
    if (b->beams > limits->max_beams)
        return error_set(error, "--beams: %d is outside 1..%d", b->beams, limits->max_beams);
    return 0;
}

static int run(struct bench *b, struct error *error)
{
    int status = 0;

    sizes_set(b);
    b->engine = cli_engine_open(&b->options, error);
    if (!b->engine)
        return TOOL_BAD_INPUT;
    if (limits_check(b, error)) {
        engine_close(b->engine);
        return TOOL_BAD_INPUT;
    }
    cli_model_name(&b->options, b->name, sizeof b->name);
    snprintf(b->compute, sizeof b->compute, "%.*s",
             (int)strcspn(engine_info(b->engine)->compute, " (,:"),
             engine_info(b->engine)->compute);
    if (b->lines)
        status = bench_lines(b, error);
    for (int32_t i = 0; !b->lines && !status && i < b->batches.count; i++)
        status = batch_measure(b, b->batches.values[i], error);
    engine_close(b->engine);
    return status ? TOOL_BROKEN : TOOL_OK;
}

static int bench_run(int argc, char **argv)
{
    struct bench b = {.batches = {{1, 32, 512}, 3},
                      .source = 32,
                      .new_tokens = 50,
                      .beams = 1,
                      .rounds = 5,
                      .steps = 16,
                      .seconds = 3,
                      .limit = 2000};
    bool helped;
    enum { OWN = 13, COUNT = CLI_ENGINE_OPTIONS + OWN };
    struct cli_option table[COUNT];
    const struct cli_option own[OWN] = {
        {"--batch", "LIST", CLI_INTS, &b.batches, 1, 65536, "requests at once (1,32,512)"},
        {"--source", "N", CLI_INT, &b.source, 1, 65536, "source tokens (32)"},
        {"--new", "N", CLI_INT, &b.new_tokens, 1, 65536, "new tokens (50)"},
        {"--beams", "N", CLI_INT, &b.beams, 1, 8, "beams (1: none)"},
        {"--sample", NULL, CLI_FLAG, &b.sample, 0, 0,
         "sample with temperature 0.8, top-k 50, top-p 0.95"},
        {"--traffic", NULL, CLI_FLAG, &b.traffic, 0, 0, "continuous traffic as well"},
        {"--seconds", "N", CLI_INT, &b.seconds, 1, 600, "of continuous traffic (3)"},
        {"--rounds", "N", CLI_INT, &b.rounds, 1, 200, "rounds at least (5)"},
        {"--steps", "K", CLI_INT, &b.steps, 1, 1024, "decode steps a call (16)"},
        {"--lines", "FILE", CLI_TEXT, &b.lines, 0, 0, "one text a line, instead of --batch"},
        {"--limit", "N", CLI_INT, &b.limit, 1, 1000000, "lines of it (2000)"},
        {"--language", "NAME", CLI_TEXT, &b.language, 0, 0, "target_language of the lines"},
        {"--author", "NAME", CLI_TEXT, &b.author, 0, 0, "author of the lines"},
    };
    struct error error;
    int status;

    cli_engine_init(&b.options);
    cli_engine_options(&b.options, table);
    memcpy(table + CLI_ENGINE_OPTIONS, own, sizeof own);
    if (cli_parse(&command_bench, table, COUNT, argc, argv, &helped, &error))
        return cli_fail(TOOL_BAD_INPUT, &error);
    if (helped)
        return TOOL_OK;
    if (b.sample && b.beams > 1) {
        error_set(&error, "--sample excludes --beams");
        return cli_fail(TOOL_BAD_INPUT, &error);
    }
    status = run(&b, &error);
    return status >= TOOL_BAD_INPUT ? cli_fail(status, &error) : status;
}
