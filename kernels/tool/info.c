/* SPDX-License-Identifier: MIT */
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>

#include "kernels/backend.h"
#include "kernels/tool/cli.h"

static int info_run(int argc, char **argv);

const struct cli_command command_info = {
    .name = "info",
    .summary = "says what a model directory is and what it takes on a device",
    .text = "Opens the model as the other commands do and prints its sizes, limits, memory, the\n"
            "device and the identities: model_version (configuration and weights) and engine_id\n"
            "(weights, build, compute format, device class: equal ids give equal bits).\n",
    .examples = "  pgpt-engine info --model models/prometheus-mini\n"
                "  pgpt-engine info --model models/prometheus-mini --compute int8 --rows 512\n"
                "  pgpt-engine info --model models/prometheus-mini --device cuda:0 --json\n",
    .run = info_run,
};

static const char *activation_name(enum model_activation activation)
{
    static const char *const names[] = {
        [MODEL_RELU] = "relu", [MODEL_SWISH] = "swish", [MODEL_GELU] = "gelu"};

    return names[activation];
}

static void human_print(const char *name, const struct engine *engine)
{
    const struct model_config *c = engine_config(engine);
    const struct engine_limits *l = engine_limits(engine);
    const struct engine_info *i = engine_info(engine);
    const double mib = 1024.0 * 1024.0;

    printf("model          %s\n", name);
    printf("layers         %d encoder (%d heads, ffn %d), %d decoder (%d heads, ffn %d)\n",
           c->encoder_layers, c->encoder_heads, c->encoder_ffn, c->decoder_layers, c->decoder_heads,
           c->decoder_ffn);
    printf("width          %d, activation %s, embeddings %s%s%s\n", c->d_model,
           activation_name(c->activation), c->shared_embeddings ? "shared" : "separate",
           c->tied_embeddings ? ", tied to the output" : ", output of its own",
           c->scale_embedding ? ", scaled" : "");
    printf("vocabulary     %d (start %d, eos %d, pad %d, unk %d)\n", l->vocabulary, l->start_token,
           l->eos_token, l->pad_token, l->unk_token);
    printf("limits         %d rows, %d source tokens, %d new tokens, %d positions, %d beams\n",
           l->max_rows, l->max_source, l->max_new, l->positions, l->max_beams);
    printf("device         %s\n", i->device);
    printf("compute        %s\n", i->compute);
    printf("memory         %.1f MiB weights, %.1f MiB caches, %.1f MiB work space\n",
           (double)i->weight_bytes / mib, (double)i->cache_bytes / mib,
           (double)i->work_bytes / mib);
    printf("model_version  %s\n", i->model_version);
    printf("engine_id      %s\n", i->engine_id);
}

static int json_print(const char *name, const struct engine *engine)
{
    const struct model_config *c = engine_config(engine);
    const struct engine_limits *l = engine_limits(engine);
    const struct engine_info *i = engine_info(engine);
    json_t *object = json_pack(
        "{s:s, s:{s:i, s:i, s:i, s:i, s:i, s:i, s:i, s:s, s:b, s:b, s:b}, "
        "s:{s:i, s:i, s:i, s:i, s:i, s:i, s:i}, s:{s:i, s:i, s:i, s:i}, "
        "s:s, s:s, s:s, s:s, s:I, s:I, s:I}",
        "model", name, "config", "d_model", (int)c->d_model, "encoder_layers",
        (int)c->encoder_layers, "encoder_heads", (int)c->encoder_heads, "encoder_ffn",
        (int)c->encoder_ffn, "decoder_layers", (int)c->decoder_layers, "decoder_heads",
        (int)c->decoder_heads, "decoder_ffn", (int)c->decoder_ffn, "activation",
        activation_name(c->activation), "scale_embedding", c->scale_embedding, "shared_embeddings",
        c->shared_embeddings, "tied_embeddings", c->tied_embeddings, "limits", "max_rows",
        (int)l->max_rows, "max_source", (int)l->max_source, "max_new", (int)l->max_new,
        "vocabulary", (int)l->vocabulary, "positions", (int)l->positions, "max_beams",
        (int)l->max_beams, "max_sequences", (int)l->max_sequences, "tokens", "start",
        (int)l->start_token, "eos", (int)l->eos_token, "pad", (int)l->pad_token, "unk",
        (int)l->unk_token, "device", i->device, "compute", i->compute, "model_version",
        i->model_version, "engine_id", i->engine_id, "weight_bytes", (json_int_t)i->weight_bytes,
        "cache_bytes", (json_int_t)i->cache_bytes, "work_bytes", (json_int_t)i->work_bytes);
    int status = object ? json_dumpf(object, stdout, JSON_COMPACT) : -1;

    json_decref(object);
    putchar('\n');
    return status;
}

static int info_run(int argc, char **argv)
{
    struct cli_engine options;
    bool json = false, helped;
    struct cli_option table[CLI_ENGINE_OPTIONS + 1] = {
        [CLI_ENGINE_OPTIONS] = {"--json", NULL, CLI_FLAG, &json, 0, 0, "one JSON object"}};
    struct engine *engine;
    struct error error;
    char name[256];
    int status = TOOL_OK;

    cli_engine_init(&options);
    cli_engine_options(&options, table);
    if (cli_parse(&command_info, table, CLI_ENGINE_OPTIONS + 1, argc, argv, &helped, &error))
        return cli_fail(TOOL_BAD_INPUT, &error);
    if (helped)
        return TOOL_OK;
    engine = cli_engine_open(&options, &error);
    if (!engine)
        return cli_fail(TOOL_BAD_INPUT, &error);
    cli_model_name(&options, name, sizeof name);
    if (!json) {
        human_print(name, engine);
    } else if (json_print(name, engine)) {
        error_set(&error, "out of memory");
        status = cli_fail(TOOL_BROKEN, &error);
    }
    engine_close(engine);
    return status;
}
