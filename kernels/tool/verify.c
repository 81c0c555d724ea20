/* SPDX-License-Identifier: MIT */
#include "kernels/tool/verify.h"

#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "kernels/tool/cli.h"

static int verify_run(int argc, char **argv);

const struct cli_command command_verify = {
    .name = "verify",
    .summary = "replays a model's golden directory and checks that batches change no bit",
    .text =
        "The golden directory (MODEL/golden, or --golden) holds what Hugging Face computed in\n"
        "float32: cases.json with ids of greedy, penalised and beam search and probabilities,\n"
        "tensors.safetensors with encoder output and logits. What must hold depends on the\n"
        "compute format; the gap is the reference's best score minus its second at the first\n"
        "difference, in logits, computed by the float32 engine on the CPU:\n"
        "  fp32          all ids equal; probabilities within 1e-5 and the same support; encoder\n"
        "                and logits within 2e-4 (CUDA: 1e-2 of the tensor's range)\n"
        "  fp16          ids equal wherever the gap exceeds 0.05, 98 % of all cases equal;\n"
        "                encoder and logits within 1e-2 of the range\n"
        "  bf16          the same with a gap of 0.4, 94 %, 5e-2\n"
        "  int8,dynamic  94 % of greedy cases equal; the rest is shown, not judged\n"
        "In every format: requests of all kinds give the same bits alone and in random batches\n"
        "with neighbours joining and leaving, for 1, 4 and 16 steps a call, and on the CPU for\n"
        "other numbers of threads.\n\n"
        "exit codes: 0 all holds, 1 something does not, 2 bad options, model or golden files,\n"
        "            3 the device failed\n",
    .examples =
        "  pgpt-engine verify --model models/prometheus-mini\n"
        "  pgpt-engine verify --model models/prometheus-mini --compute int8 --json\n"
        "  pgpt-engine verify --model models/prometheus-mini --device cuda:0 --compute fp16\n"
        "  pgpt-engine verify --model DIR --golden tests/golden/NAME --only ids,tensors\n",
    .run = verify_run,
};

struct verify_row *verify_row_add(struct verify *v, const char *kind)
{
    struct verify_row *row = &v->rows[v->row_count];

    if (v->row_count < VERIFY_ROWS_MAX - 1)
        v->row_count++;
    *row = (struct verify_row){.worst = NAN};
    snprintf(row->kind, sizeof row->kind, "%s", kind);
    return row;
}

void verify_difference_add(struct verify_row *row, struct verify_difference difference)
{
    if (row->first_count < VERIFY_FIRST_MAX)
        row->first[row->first_count++] = difference;
}

static bool compute_is(const struct engine_info *info, const char *name)
{
    size_t size = strcspn(info->compute, " (,:");

    return strlen(name) == size && !memcmp(info->compute, name, size);
}

static struct verify_rules rules_of(const struct engine_info *info, const char *device)
{
    const struct verify_rules int8 = {0.94, true, NAN, NAN, true, NAN};
    bool cpu = !strcmp(device, "cpu");

    if (strstr(info->compute, "caches int8"))
        return int8;
    if (compute_is(info, "fp32"))
        return (struct verify_rules){1, false, 0, cpu ? 2e-4 : 1e-2, !cpu, 1e-5};
    if (compute_is(info, "fp16"))
        return (struct verify_rules){0.98, false, 0.05, 1e-2, true, NAN};
    if (compute_is(info, "bf16"))
        return (struct verify_rules){0.94, false, 0.4, 5e-2, true, NAN};
    return int8;
}

/* ---- the report ---- */

static bool all_ok(const struct verify *v)
{
    for (int32_t i = 0; i < v->row_count; i++)
        if (v->rows[i].judged && !v->rows[i].ok)
            return false;
    return true;
}

static void difference_print(const struct verify_difference *d)
{
    printf("    case %d", d->at);
    if (d->position >= 0)
        printf(", place %d", d->position);
    if (d->expected >= 0 || d->got >= 0)
        printf(": expected %d, got %d", d->expected, d->got);
    if (!isnan(d->gap))
        printf(", the reference's gap is %.4f", d->gap);
    putchar('\n');
}

static void row_print(const struct verify_row *row)
{
    char tokens[16] = "-", worst[16] = "-";

    if (row->tokens)
        snprintf(tokens, sizeof tokens, "%.2f %%",
                 100.0 * (double)row->tokens_equal / (double)row->tokens);
    if (!isnan(row->worst))
        snprintf(worst, sizeof worst, "%.2e", row->worst);
    printf("%-17s %8lld %8lld %10s %10s  %-6s  %s\n", row->kind, (long long)row->total,
           (long long)row->equal, tokens, worst,
           !row->judged  ? "shown"
           : !row->total ? "none"
           : row->ok     ? "ok"
                         : "FAILED",
           row->rule);
    for (int32_t i = 0; i < row->first_count; i++)
        difference_print(&row->first[i]);
}

static void human_print(const struct verify *v)
{
    const struct engine_info *info = engine_info(v->engine);

    printf("%s, %s, engine %s\n\n%-17s %8s %8s %10s %10s  %-6s  %s\n", info->device, info->compute,
           info->engine_id, "check", "total", "equal", "tokens", "worst", "", "rule");
    for (int32_t i = 0; i < v->row_count; i++)
        row_print(&v->rows[i]);
    printf("\n%s\n", all_ok(v) ? "ok" : "FAILED");
}

static json_t *number_or_null(double value)
{
    return isfinite(value) ? json_real(value) : json_null();
}

static json_t *row_json(const struct verify_row *row)
{
    json_t *first = json_array();

    for (int32_t i = 0; i < row->first_count; i++) {
        const struct verify_difference *d = &row->first[i];

        json_array_append_new(first,
                              json_pack("{s:i, s:i, s:i, s:i, s:o}", "case", (int)d->at, "position",
                                        (int)d->position, "expected", (int)d->expected, "got",
                                        (int)d->got, "gap", number_or_null(d->gap)));
    }
    return json_pack("{s:s, s:I, s:I, s:I, s:I, s:o, s:b, s:b, s:s, s:o}", "kind", row->kind,
                     "total", (json_int_t)row->total, "equal", (json_int_t)row->equal, "tokens",
                     (json_int_t)row->tokens, "tokens_equal", (json_int_t)row->tokens_equal,
                     "worst", number_or_null(row->worst), "judged", row->judged, "ok", row->ok,
                     "rule", row->rule, "first", first);
}

static int json_print(const struct verify *v, const char *model)
{
    const struct engine_info *info = engine_info(v->engine);
    json_t *rows = json_array(), *object;
    int status;

    for (int32_t i = 0; i < v->row_count; i++)
        json_array_append_new(rows, row_json(&v->rows[i]));
    object = json_pack("{s:s, s:s, s:s, s:s, s:b, s:o}", "model", model, "device", info->device,
                       "compute", info->compute, "engine_id", info->engine_id, "ok", all_ok(v),
                       "checks", rows);
    status = object ? json_dumpf(object, stdout, JSON_COMPACT) : -1;
    json_decref(object);
    putchar('\n');
    return status;
}

/* ---- the command ---- */

struct settings {
    struct cli_engine engine;
    const char *golden, *only;
    int32_t steps, seed;
    bool json;
    char path[4096], name[256];
};

static const char *const part_names[] = {"texts", "ids", "tensors", "batches"};
static int (*const part_runs[])(struct verify *, struct error *) = {verify_texts, verify_ids,
                                                                    verify_tensors, verify_batches};
enum { PARTS = 4 };

static bool named(const char *list, const char *name)
{
    size_t size = strlen(name);

    for (const char *at = list; (at = strstr(at, name)); at += size)
        if ((at == list || at[-1] == ',') && (!at[size] || at[size] == ','))
            return true;
    return false;
}

static int only_check(const char *only, struct error *error)
{
    while (*only) {
        size_t size = strcspn(only, ",");
        bool known = false;

        for (int i = 0; i < PARTS; i++)
            known |= strlen(part_names[i]) == size && !memcmp(only, part_names[i], size);
        if (!known)
            return error_set(error, "--only: \"%.*s\" is none of texts, ids, tensors, batches",
                             (int)size, only);
        only += size + (only[size] == ',');
    }
    return 0;
}

static int parts_run(struct verify *v, const struct settings *settings, struct error *error)
{
    for (int i = 0; i < PARTS; i++) {
        if (settings->only && !named(settings->only, part_names[i]))
            continue;
        if (part_runs[i] == verify_texts && !v->codec)
            continue;
        if (part_runs[i](v, error))
            return -1;
    }
    return 0;
}

static bool file_exists(const char *directory, const char *name)
{
    char path[4096];

    return (size_t)snprintf(path, sizeof path, "%s/%s", directory, name) < sizeof path &&
           !access(path, F_OK);
}

static int run(struct settings *settings, struct error *error)
{
    struct verify *v = calloc(1, sizeof *v);
    struct prompt_codec *codec = NULL;
    struct golden *golden = NULL;
    int status = TOOL_BAD_INPUT;

    if (!v) {
        error_set(error, "out of memory");
        return TOOL_BROKEN;
    }
    v->model_dir = settings->engine.model;
    v->options = &settings->engine.options;
    v->steps = settings->steps;
    v->seed = (uint64_t)settings->seed;
    v->engine = cli_engine_open(&settings->engine, error);
    if (!v->engine)
        goto out;
    v->rules = rules_of(engine_info(v->engine), v->options->device);
    snprintf(settings->path, sizeof settings->path, "%s/golden", v->model_dir);
    golden = golden_open(settings->golden ? settings->golden : settings->path,
                         engine_limits(v->engine), engine_config(v->engine)->d_model, error);
    if (!golden)
        goto out;
    if (file_exists(v->model_dir, "source.spm")) {
        struct error why; /* a build without SentencePiece checks no texts */

        codec = prompt_codec_open(v->model_dir, engine_limits(v->engine)->vocabulary, &why);
    }
    v->golden = golden;
    v->codec = codec;
    status = TOOL_BROKEN;
    if (parts_run(v, settings, error))
        goto out;
    cli_model_name(&settings->engine, settings->name, sizeof settings->name);
    status = all_ok(v) ? TOOL_OK : TOOL_MISMATCH;
    if (!settings->json) {
        human_print(v);
    } else if (json_print(v, settings->name)) {
        error_set(error, "out of memory");
        status = TOOL_BROKEN;
    }
out:
    prompt_codec_close(codec);
    golden_close(golden);
    engine_close(v->reference);
    engine_close(v->engine);
    free(v);
    return status;
}

static int verify_run(int argc, char **argv)
{
    struct settings settings = {.steps = 4, .seed = 1};
    bool helped;
    enum { OWN = 5, COUNT = CLI_ENGINE_OPTIONS + OWN };
    struct cli_option table[COUNT];
    const struct cli_option own[OWN] = {
        {"--golden", "DIR", CLI_TEXT, &settings.golden, 0, 0, "reference vectors (MODEL/golden)"},
        {"--only", "PARTS", CLI_TEXT, &settings.only, 0, 0,
         "some of texts,ids,tensors,batches (all of them)"},
        {"--steps", "K", CLI_INT, &settings.steps, 1, 1024, "decode steps a call for the ids (4)"},
        {"--seed", "N", CLI_INT, &settings.seed, 0, INT32_MAX, "of the random batches (1)"},
        {"--json", NULL, CLI_FLAG, &settings.json, 0, 0, "one JSON object"},
    };
    struct error error;
    int status;

    cli_engine_init(&settings.engine);
    settings.engine.options.max_rows = 64;
    cli_engine_options(&settings.engine, table);
    memcpy(table + CLI_ENGINE_OPTIONS, own, sizeof own);
    if (cli_parse(&command_verify, table, COUNT, argc, argv, &helped, &error) ||
        (settings.only && only_check(settings.only, &error)))
        return cli_fail(TOOL_BAD_INPUT, &error);
    if (helped)
        return TOOL_OK;
    status = run(&settings, &error);
    return status >= TOOL_BAD_INPUT ? cli_fail(status, &error) : status;
}
