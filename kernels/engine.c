/* SPDX-License-Identifier: MIT */
#include "kernels/engine.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/backend.h"

struct occupant { /* of a slot */
    bool used;
    int32_t sequences; /* that may be stopped; 0 = a beam search */
};

struct engine {
    const struct backend_ops *ops;
    struct backend *backend;
    struct model *model; /* kept for its configuration */
    struct engine_limits limits;
    struct engine_info info;
    int32_t used_count;
    struct occupant *occupants; /* (max_rows) */
    int32_t *chosen;            /* (max_rows) work of one admission */
};

void engine_options_init(struct engine_options *options)
{
    *options = (struct engine_options){.device = "cpu"};
}

void engine_request_init(struct engine_request *request)
{
    *request = (struct engine_request){.max_new = 128,
                                       .num_sequences = 1,
                                       .num_beams = 1,
                                       .temperature = 1.0f,
                                       .top_p = 1.0f,
                                       .repetition_penalty = 1.0f,
                                       .length_penalty = 1.0f};
}

static const struct backend_ops *ops_find(const char *device, struct error *error)
{
    if (!strcmp(device, "cpu"))
        return &backend_cpu;
    if (!strncmp(device, "cuda", 4) && (device[4] == '\0' || device[4] == ':')) {
#ifdef PGPT_CUDA
        return &backend_cuda;
#else
        error_set(error,
                  "device %.32s: this program was built without CUDA; build with the preset cuda "
                  "(cmake --preset cuda), or choose the device cpu",
                  device);
        return NULL;
#endif
    }
    error_set(error, "device %.32s: not one of cpu, cuda:0, cuda:1, ...", device);
    return NULL;
}

/* FNV-1a over texts, each with its NUL. */
static uint64_t text_hash(uint64_t hash, const char *text)
{
    do
        hash = (hash ^ (unsigned char)*text) * 0x100000001b3u;
    while (*text++);
    return hash;
}

/* What results depend on: weights, the build's sources, the format and the kind of device. */
static void identity_set(struct engine *e)
{
    uint64_t hash = 0xcbf29ce484222325u;

    snprintf(e->info.model_version, sizeof e->info.model_version, "%016" PRIx64,
             e->model->weight_hash);
    hash = text_hash(hash, e->info.model_version);
    hash = text_hash(hash, PGPT_ENGINE_BUILD);
    hash = text_hash(hash, e->info.compute);
    hash = text_hash(hash, e->ops->name);
    snprintf(e->info.engine_id, sizeof e->info.engine_id, "%016" PRIx64, hash);
}

static void limits_begin(const struct model_config *config, struct engine_limits *limits)
{
    *limits = (struct engine_limits){.vocabulary = config->vocabulary,
                                     .positions = config->positions,
                                     .max_beams = 8,
                                     .max_sequences = 8,
                                     .start_token = config->start_token,
                                     .eos_token = config->eos_token,
                                     .pad_token = config->pad_token,
                                     .unk_token = config->unk_token};
}

struct engine *engine_open(const char *model_dir, const struct engine_options *options,
                           struct error *error)
{
    const struct backend_ops *ops = ops_find(options->device ? options->device : "cpu", error);
    struct engine *e = ops ? calloc(1, sizeof *e) : NULL;

    if (ops && !e)
        error_set(error, "engine: out of memory");
    if (!e)
        return NULL;
    e->ops = ops;
    e->model = model_open(model_dir, error);
    if (!e->model)
        goto failed;
    limits_begin(&e->model->config, &e->limits);
    e->backend = ops->open(e->model, options, &e->limits, &e->info, error);
    if (!e->backend)
        goto failed;
    e->occupants = calloc((size_t)e->limits.max_rows, sizeof *e->occupants);
    e->chosen = calloc((size_t)e->limits.max_rows, sizeof *e->chosen);
    if (!e->occupants || !e->chosen) {
        error_set(error, "engine: out of memory");
        goto failed;
    }
    identity_set(e);
    return e;
failed:
    engine_close(e);
    return NULL;
}

void engine_close(struct engine *e)
{
    if (!e)
        return;
    if (e->backend)
        e->ops->close(e->backend);
    model_close(e->model);
    free(e->occupants);
    free(e->chosen);
    free(e);
}

const struct engine_limits *engine_limits(const struct engine *e)
{
    return &e->limits;
}

const struct engine_info *engine_info(const struct engine *e)
{
    return &e->info;
}

const struct model_config *engine_config(const struct engine *e)
{
    return &e->model->config;
}

int32_t engine_free_rows(const struct engine *e)
{
    return e->ops->free_rows(e->backend);
}

static int tokens_check(const struct engine *e, const char *name, const int32_t *tokens,
                        int32_t count, int32_t most, struct error *error)
{
    if (!tokens || count < 1 || count > most)
        return error_set(error, "%s: %d tokens are not in 1..%d", name, (int)count, (int)most);
    for (int32_t i = 0; i < count; i++)
        if (tokens[i] < 0 || tokens[i] >= e->limits.vocabulary)
            return error_set(error, "%s: token %d at %d is not in 0..%d", name, (int)tokens[i],
                             (int)i, (int)e->limits.vocabulary - 1);
    return 0;
}

static int whole_check(const char *name, int32_t value, int32_t least, int32_t most,
                       struct error *error)
{
    if (value < least || value > most)
        return error_set(error, "%s: %d is not in %d..%d", name, (int)value, (int)least, (int)most);
    return 0;
}

/* value > 0 and finite; written so that NaN fails. */
static int positive_check(const char *name, float value, float most, struct error *error)
{
    if (!(value > 0.0f && value <= most))
        return error_set(error, "%s: %g is not above 0 and at most %g", name, (double)value,
                         (double)most);
    return 0;
}

static int warp_check(const struct engine *e, const struct engine_request *r, struct error *error)
{
    if (!(r->length_penalty >= -10.0f && r->length_penalty <= 10.0f))
        return error_set(error, "length_penalty: %g is not in -10..10", (double)r->length_penalty);
    if (whole_check("max_new", r->max_new, 1, e->limits.max_new, error) ||
        whole_check("min_new", r->min_new, 0, r->max_new, error) ||
        whole_check("top_k", r->top_k, 0, e->limits.vocabulary, error) ||
        positive_check("temperature", r->temperature, 100.0f, error) ||
        positive_check("top_p", r->top_p, 1.0f, error) ||
        positive_check("repetition_penalty", r->repetition_penalty, 10.0f, error))
        return -1;
    return 0;
}

static int request_check(const struct engine *e, const struct engine_request *r,
                         struct error *error)
{
    const struct engine_limits *l = &e->limits;
    int32_t sequences = r->num_beams > 1 ? r->num_beams : l->max_sequences;

    if (tokens_check(e, "source", r->source, r->source_len, l->max_source, error) ||
        whole_check("num_beams", r->num_beams, 1, l->max_beams, error) ||
        whole_check("num_sequences", r->num_sequences, 1, sequences, error))
        return -1;
    if (r->do_sample && r->num_beams > 1)
        return error_set(error, "do_sample: sampling excludes beams (num_beams %d)",
                         (int)r->num_beams);
    return warp_check(e, r, error);
}

/* Lists free slots, as many as there are, at most n. */
static int32_t slots_choose(struct engine *e, int32_t n)
{
    int32_t count = 0;

    for (int32_t i = 0; i < e->limits.max_rows && count < n; i++)
        if (!e->occupants[i].used)
            e->chosen[count++] = i;
    return count;
}

int32_t engine_admit(struct engine *e, int32_t n, const struct engine_request *requests,
                     int32_t *slots, struct error *error)
{
    int32_t admitted;

    for (int32_t i = 0; i < n; i++)
        if (request_check(e, &requests[i], error))
            return -1;
    n = slots_choose(e, n);
    admitted = n ? e->ops->admit(e->backend, n, requests, e->chosen, error) : 0;
    for (int32_t i = 0; i < admitted; i++) {
        struct occupant *occupant = &e->occupants[e->chosen[i]];

        slots[i] = e->chosen[i];
        occupant->used = true;
        occupant->sequences = requests[i].num_beams > 1 ? 0 : requests[i].num_sequences;
        e->used_count++;
    }
    return admitted;
}

int engine_step(struct engine *e, int32_t k, struct engine_output *out, struct error *error)
{
    if (k < 1)
        return error_set(error, "steps: %d is less than 1", (int)k);
    return e->ops->step(e->backend, k, out, error);
}

static bool slot_used(const struct engine *e, int32_t slot)
{
    return slot >= 0 && slot < e->limits.max_rows && e->occupants[slot].used;
}

void engine_stop_sequence(struct engine *e, int32_t slot, int32_t sequence)
{
    if (slot_used(e, slot) && sequence >= 0 && sequence < e->occupants[slot].sequences)
        e->ops->stop_sequence(e->backend, slot, sequence);
}

void engine_release(struct engine *e, int32_t slot)
{
    if (!slot_used(e, slot))
        return;
    e->ops->release(e->backend, slot);
    e->occupants[slot].used = false;
    e->used_count--;
}

int engine_trace(struct engine *e, const struct backend_trace *trace, struct error *error)
{
    if (e->used_count)
        return error_set(error, "trace: %d slots are occupied; release them first",
                         (int)e->used_count);
    if (tokens_check(e, "source", trace->source, trace->source_len, e->limits.max_source, error) ||
        tokens_check(e, "prefix", trace->prefix, trace->prefix_len, e->limits.max_new, error))
        return -1;
    if (trace->probabilities && !trace->warp)
        return error_set(error, "trace: probabilities need a request to warp by");
    if (trace->warp && warp_check(e, trace->warp, error))
        return -1;
    return e->ops->trace(e->backend, trace, error);
}
