/* SPDX-License-Identifier: MIT */
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/base/clock.h"
#include "kernels/cuda/attention.h"
#include "kernels/cuda/backend_state.h"
#include "kernels/cuda/check.h"
#include "kernels/search/rules_create.h"

enum { DEFAULT_ROWS = 512, MAX_ROWS = 4096, GENERIC_CAPABILITY = 80, GENERIC_SMALL = 86 };

/* ---- opening ---- */

static int device_parse(const char *name, struct error *error)
{
    int count = 0, device = -1;
    char rest;
    cudaError_t status;

    if (!strcmp(name, "cuda"))
        name = "cuda:0";
    if (sscanf(name, "cuda:%d%c", &device, &rest) != 1 || device < 0) {
        (void)error_set(error, "device %s: not cpu or cuda:N", name);
        return -1;
    }
    status = cudaGetDeviceCount(&count);
    if (status != cudaSuccess) {
        (void)error_set(
            error, "device %s: %s: is there an NVIDIA GPU with a driver for CUDA %d.%d?", name,
            cudaGetErrorString(status), CUDART_VERSION / 1000, CUDART_VERSION % 1000 / 10);
        return -1;
    }
    if (device >= count) {
        (void)error_set(error, "device %s: this machine has %d, cuda:0 to cuda:%d", name, count,
                        count - 1);
        return -1;
    }
    return device;
}

/* Where a pointer into the host's tables points in their copy on the device; NULL stays NULL. */
static const void *table_at(const void *device, const struct rules_tables *host,
                            const void *pointer)
{
    return pointer ? (const char *)device + ((const char *)pointer - (const char *)host) : NULL;
}

/* The rules' tables and, behind them, plain rows' mask (V): one piece of device memory. */
static int rules_open(struct backend *backend, const struct model_config *config,
                      struct error *error)
{
    size_t mask_bytes = (size_t)config->vocabulary * sizeof(float);
    struct rules_tables *tables = rules_create(config, error);
    float *mask = (float *)calloc(1, mask_bytes);
    struct rules *rules = &backend->choose_rules.rules;
    char *device;
    int result = -1;

    if (!tables)
        goto out;
    if (!mask) {
        error_set(error, "rules: out of memory");
        goto out;
    }
    for (int32_t i = 0; i < tables->banned_count; i++)
        mask[tables->banned_list[i]] = -INFINITY;
    CUDA_TRY(cudaMalloc(&backend->rule_tables, tables->bytes + mask_bytes), error, out);
    device = (char *)backend->rule_tables;
    CUDA_TRY(cudaMemcpy(device, tables, tables->bytes, cudaMemcpyHostToDevice), error, out);
    CUDA_TRY(cudaMemcpy(device + tables->bytes, mask, mask_bytes, cudaMemcpyHostToDevice), error,
             out);
    *rules = tables->rules;
    rules->suppressed = (const uint32_t *)table_at(device, tables, rules->suppressed);
    rules->banned = (const uint32_t *)table_at(device, tables, rules->banned);
    rules->phrases = (const int32_t *)table_at(device, tables, rules->phrases);
    rules->phrase_sizes = (const int32_t *)table_at(device, tables, rules->phrase_sizes);
    backend->choose_rules.start_token = config->start_token;
    backend->rules.vocabulary = rules->vocabulary;
    backend->rules.start_token = config->start_token;
    backend->rules.eos_token = rules->eos_token;
    backend->rules.forced_bos = rules->forced_bos_token;
    backend->rules.forced_eos = rules->forced_eos_token;
    backend->rules.mask = (const float *)(device + tables->bytes);
    result = 0;
out:
    rules_destroy(tables);
    free(mask);
    return result;
}

static int streams_open(struct backend *backend, struct error *error)
{
    int low, high;

    CUDA_TRY(cudaDeviceGetStreamPriorityRange(&low, &high), error, fail);
    CUDA_TRY(cudaStreamCreateWithPriority(&backend->decode, cudaStreamNonBlocking, high), error,
             fail);
    CUDA_TRY(cudaStreamCreateWithPriority(&backend->encode, cudaStreamNonBlocking, low), error,
             fail);
    CUDA_TRY(cudaEventCreateWithFlags(&backend->stepped, cudaEventDisableTiming), error, fail);
    for (int i = 0; i < MEMORY_BATCHES; i++)
        CUDA_TRY(cudaEventCreateWithFlags(&backend->batches[i].done, cudaEventDisableTiming), error,
                 fail);
    return 0;
fail:
    return -1;
}

static int tables_open(struct backend *backend, struct error *error)
{
    size_t rows = (size_t)backend->limits.max_rows;

    backend->slots = (struct backend_slot *)calloc(rows, sizeof *backend->slots);
    backend->rows = (struct backend_row *)calloc(rows, sizeof *backend->rows);
    backend->free_rows = (int32_t *)calloc(rows, sizeof *backend->free_rows);
    backend->active = (int32_t *)calloc(rows, sizeof *backend->active);
    backend->items = (struct engine_item *)calloc(2 * rows, sizeof *backend->items);
    if (!backend->slots || !backend->rows || !backend->free_rows || !backend->active ||
        !backend->items)
        return error_set(error, "out of memory for %zu rows", rows);
    for (int i = 0; i < MEMORY_BATCHES; i++) {
        backend->batches[i].slots = (int32_t *)calloc(rows, sizeof(int32_t));
        backend->batches[i].generations = (uint32_t *)calloc(rows, sizeof(uint32_t));
        if (!backend->batches[i].slots || !backend->batches[i].generations)
            return error_set(error, "out of memory for %zu rows", rows);
    }
    for (size_t i = 0; i < rows; i++)
        backend->free_rows[i] = (int32_t)(rows - 1 - i);
    backend->free_count = (int32_t)rows;
    return 0;
}

static int limits_fill(const struct model_config *config, const struct engine_options *options,
                       struct engine_limits *limits, struct error *error)
{
    int32_t positions = config->positions;

    limits->max_rows = options->max_rows ? options->max_rows : DEFAULT_ROWS;
    limits->max_source = options->max_source ? options->max_source : positions;
    limits->max_new = options->max_new ? options->max_new : positions;
    if (limits->max_rows < 1 || limits->max_rows > MAX_ROWS)
        return error_set(error, "max_rows %d: the CUDA back end takes 1 to %d", limits->max_rows,
                         MAX_ROWS);
    if (limits->max_source > ATTENTION_POSITIONS)
        limits->max_source = ATTENTION_POSITIONS;
    if (limits->max_new > ATTENTION_POSITIONS)
        limits->max_new = ATTENTION_POSITIONS;
    return 0;
}

static void info_fill(const struct backend *backend, const struct cudaDeviceProp *properties,
                      const char *compute, bool cache_int8, struct engine_info *info)
{
    int capability = properties->major * 10 + properties->minor;

    snprintf(info->device, sizeof info->device, "cuda:%d (%.80s, sm_%d%s)", backend->device,
             properties->name, capability,
             backend->capability < capability ? ", generic kernels" : "");
    snprintf(info->compute, sizeof info->compute, "%s%s", compute,
             cache_int8 ? ", caches int8" : "");
    info->weight_bytes = backend->network->bytes;
    info->cache_bytes = backend->memory.cache_bytes;
    info->work_bytes =
        backend->memory.device_bytes - backend->memory.cache_bytes + backend->memory.pinned_bytes;
}

/* PGPT_CUDA_GENERIC=1 runs as if the device had nothing of Hopper's, 86 with the shared memory of
 * compute capability 8.6, too. */
static int capability_of(const struct cudaDeviceProp *properties)
{
    int capability = properties->major * 10 + properties->minor;
    const char *generic = getenv("PGPT_CUDA_GENERIC");

    if (!generic || capability <= GENERIC_CAPABILITY)
        return capability;
    return atoi(generic) == GENERIC_SMALL ? GENERIC_SMALL : GENERIC_CAPABILITY;
}

/* Most bytes of shared memory that a block of such a device can ask for. */
static int shared_generic(int capability)
{
    return capability == GENERIC_SMALL        ? 99 * 1024
           : capability == GENERIC_CAPABILITY ? 163 * 1024
                                              : INT_MAX;
}

static void cuda_close(struct backend *backend);

static struct backend *cuda_open(const struct model *model, const struct engine_options *options,
                                 struct engine_limits *limits, struct engine_info *info,
                                 struct error *error)
{
    const char *compute = options->compute ? options->compute : "fp16";
    struct backend *backend = (struct backend *)calloc(1, sizeof *backend);
    struct backend_memory_sizes sizes;
    struct cudaDeviceProp properties;
    int shared = 0;

    if (!backend) {
        error_set(error, "out of memory");
        return NULL;
    }
    backend->device = device_parse(options->device, error);
    backend->spin = options->spin;
    backend->wait_most_us = BACKEND_WAIT_MOST_US;
    if (backend->device < 0)
        goto fail;
    CUDA_TRY(cudaSetDevice(backend->device), error, fail);
    CUDA_TRY(cudaGetDeviceProperties(&properties, backend->device), error, fail);
    backend->capability = capability_of(&properties);
    backend->pdl = backend->capability >= 90 && !getenv("PGPT_CUDA_NO_PDL");
    if (backend->capability < GENERIC_CAPABILITY) {
        error_set(error, "device %s (%s) has compute capability %d.%d, 8.0 or later is needed",
                  options->device, properties.name, properties.major, properties.minor);
        goto fail;
    }
    CUDA_TRY(
        cudaDeviceGetAttribute(&shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, backend->device),
        error, fail);
    if (shared > shared_generic(backend->capability))
        shared = shared_generic(backend->capability);
    if (limits_fill(&model->config, options, limits, error))
        goto fail;
    CUDA_TRY(product_prepare(backend->capability, shared), error, fail);
    backend->limits = *limits;
    backend->network = network_open(model, compute, error);
    if (!backend->network)
        goto fail;
    if (!getenv("PGPT_CUDA_NO_FUSED") && !options->cache_int8) {
        CUDA_TRY(fused_prepare(backend->network, backend->capability, &backend->fused), error,
                 fail);
        CUDA_TRY(fused_rows_prepare(backend->network, backend->capability,
                                    &backend->fused_rows_clusters),
                 error, fail);
        CUDA_TRY(fused_step_prepare(backend->network, backend->capability, &backend->fused_step),
                 error, fail);
    }
    sizes.max_rows = limits->max_rows;
    sizes.max_source = limits->max_source;
    sizes.max_new = limits->max_new;
    sizes.cache_int8 = options->cache_int8;
    sizes.budget = options->memory;
    if (backend_memory_open(&backend->memory, backend->network, &sizes, error) ||
        rules_open(backend, &model->config, error) || streams_open(backend, error) ||
        tables_open(backend, error) || backend_graphs_open(backend, error))
        goto fail;
    backend->limits.eos_token = model->config.eos_token;
    info_fill(backend, &properties, compute, options->cache_int8, info);
    return backend;
fail:
    cuda_close(backend);
    return NULL;
}

static void cuda_close(struct backend *backend)
{
    if (!backend || backend->hung)
        return; /* every call would wait for the kernel: the process ends, and all this with it */
    if (backend->decode)
        (void)cudaStreamSynchronize(backend->decode);
    if (backend->encode)
        (void)cudaStreamSynchronize(backend->encode);
    backend_graphs_close(backend);
    for (int i = 0; i < MEMORY_BATCHES; i++) {
        if (backend->batches[i].done)
            (void)cudaEventDestroy(backend->batches[i].done);
        free(backend->batches[i].slots);
        free(backend->batches[i].generations);
    }
    if (backend->stepped)
        (void)cudaEventDestroy(backend->stepped);
    if (backend->decode)
        (void)cudaStreamDestroy(backend->decode);
    if (backend->encode)
        (void)cudaStreamDestroy(backend->encode);
    if (backend->rule_tables)
        (void)cudaFree(backend->rule_tables);
    backend_memory_close(&backend->memory);
    network_close(backend->network);
    free(backend->slots);
    free(backend->rows);
    free(backend->free_rows);
    free(backend->active);
    free(backend->items);
    free(backend);
}

/* ---- admission ---- */

static int32_t cuda_free_rows(const struct backend *backend)
{
    return backend->free_count;
}

static int32_t request_rows(const struct engine_request *request)
{
    return request->num_beams > request->num_sequences ? request->num_beams
                                                       : request->num_sequences;
}

static void slot_fill(struct backend *backend, int32_t s, const struct engine_request *request)
{
    struct backend_slot *slot = &backend->slots[s];
    struct cuda_row *start = &slot->start;

    slot->state = SLOT_PENDING;
    slot->generation++;
    slot->tag = request->tag;
    slot->row_count = request_rows(request);
    slot->sequences = request->num_sequences;
    slot->num_beams = request->num_beams;
    slot->max_new = request->max_new;
    slot->reported = false;
    slot->early_stopping = request->early_stopping;
    slot->length_penalty = request->length_penalty;
    for (int32_t i = 0; i < slot->row_count; i++)
        slot->rows[i] = backend->free_rows[--backend->free_count];
    memset(start, 0, sizeof *start);
    start->seed = request->seed;
    start->token = backend->rules.start_token;
    start->max_new = request->max_new;
    start->min_new = request->min_new;
    start->source_len = request->source_len;
    start->cross = slot->rows[0];
    start->group = slot->rows[0];
    start->top_k = request->top_k;
    start->temperature = request->temperature;
    start->top_p = request->top_p;
    start->repetition_penalty = request->repetition_penalty;
    if (request->num_beams > 1)
        start->flags |= CUDA_ROW_BEAM;
    if (request->do_sample)
        start->flags |= CUDA_ROW_SAMPLE;
    if (request->repetition_penalty != 1.0f)
        start->flags |= CUDA_ROW_PENALTY;
    if (backend->choose_rules.rules.phrase_count)
        start->flags |= CUDA_ROW_WORDS;
    for (int32_t i = 0; i < slot->row_count; i++) {
        struct backend_row *row = &backend->rows[slot->rows[i]];

        row->slot = s;
        row->sequence = i;
        row->position = 0;
        row->max_new = request->max_new;
        row->full = start->flags & CUDA_ROW_FULL;
        row->running = false;
    }
}

/* `count` requests of `tokens` source tokens together, side by side. */
static void batch_pack(struct backend *backend, const struct engine_request *requests,
                       const int32_t *slots, int32_t count, int32_t tokens)
{
    int32_t index = (backend->batch_first + backend->batch_count) % MEMORY_BATCHES;
    struct backend_batch *batch = &backend->batches[index];
    int32_t *host = backend->memory.batches[index].host;
    int32_t *host_tokens = host + 1, *positions = host_tokens + tokens, *rows = positions + tokens;
    int32_t *starts = rows + tokens, at = 0;

    host[0] = tokens;
    batch->longest = batch->rows = 0;
    for (int32_t i = 0; i < count; i++) {
        starts[i] = at;
        batch->slots[i] = slots[i];
        batch->rows += backend->slots[slots[i]].row_count;
        batch->generations[i] = backend->slots[slots[i]].generation;
        if (requests[i].source_len > batch->longest)
            batch->longest = requests[i].source_len;
        for (int32_t t = 0; t < requests[i].source_len; t++, at++) {
            host_tokens[at] = requests[i].source[t];
            positions[at] = t;
            rows[at] = backend->slots[slots[i]].rows[0];
        }
    }
    starts[count] = at;
    batch->count = count;
    batch->tokens = tokens;
    batch->enqueued = false;
    backend->batch_count++;
}

/* Sources as batch_pack() laid them out, in device memory. */
static struct network_sources sources_of(const struct memory_batch *m, int32_t tokens,
                                         int32_t count, int32_t longest)
{
    struct network_sources sources;

    sources.n = m->device;
    sources.tokens = m->device + 1;
    sources.positions = sources.tokens + tokens;
    sources.rows = sources.positions + tokens;
    sources.starts = sources.rows + tokens;
    sources.token_count = tokens;
    sources.count = count;
    sources.longest = longest;
    return sources;
}

static cudaError_t batch_enqueue(struct backend *backend, int32_t index)
{
    struct backend_batch *batch = &backend->batches[index];
    const struct memory_batch *m = &backend->memory.batches[index];
    size_t tokens = (size_t)batch->tokens;
    struct network_sources sources = sources_of(m, batch->tokens, batch->count, batch->longest);

    CUDA_PASS(cudaMemcpyAsync(m->device, m->host,
                              (2 + 3 * tokens + (size_t)batch->count) * sizeof(int32_t),
                              cudaMemcpyHostToDevice, backend->encode));
    CUDA_PASS(network_encode(backend->network, &sources, &backend->memory.encode_space,
                             &backend->memory.cross, false, backend->encode));
    batch->enqueued = true;
    return cudaEventRecord(batch->done, backend->encode);
}

cudaError_t backend_encode(struct backend *backend)
{
    for (int32_t i = 0; i < backend->batch_count; i++) {
        int32_t index = (backend->batch_first + i) % MEMORY_BATCHES;

        if (!backend->batches[index].enqueued)
            CUDA_PASS(batch_enqueue(backend, index));
    }
    return cudaSuccess;
}

static int32_t cuda_admit(struct backend *backend, int32_t n, const struct engine_request *requests,
                          const int32_t *slots, struct error *error)
{
    int32_t admitted = 0;
    cudaError_t status = cudaSetDevice(backend->device);

    if (backend->failed)
        return error_set(error, "%s", backend->failure);
    if (status != cudaSuccess)
        return backend_fail(backend, status, "choosing the device", error);
    while (admitted < n && request_rows(&requests[admitted]) <= backend->free_count) {
        int32_t count = 0, tokens = 0;
        int64_t waited = 0;

        if (backend->batch_count == MEMORY_BATCHES && backend_join_first(backend, &waited, error))
            return -1;
        while (admitted + count < n) {
            const struct engine_request *request = &requests[admitted + count];

            if (request_rows(request) > backend->free_count ||
                tokens + request->source_len > backend->memory.batch_tokens)
                break;
            slot_fill(backend, slots[admitted + count], request);
            tokens += request->source_len;
            count++;
        }
        batch_pack(backend, requests + admitted, slots + admitted, count, tokens);
        admitted += count;
        /* nothing decodes: the device encodes these while the next are packed */
        status = backend->active_count ? cudaSuccess : backend_encode(backend);
        if (status != cudaSuccess)
            return backend_fail(backend, status, "enqueueing an encoding", error);
    }
    return admitted;
}

/* ---- slots ---- */

static void row_deactivate(struct backend *backend, int32_t row)
{
    int32_t kept = 0;

    if (!backend->rows[row].running)
        return;
    backend->rows[row].running = false;
    for (int32_t i = 0; i < backend->active_count; i++)
        if (backend->active[i] != row)
            backend->active[kept++] = backend->active[i];
    backend->active_count = kept;
    backend->active_changed = true;
}

static void cuda_stop_sequence(struct backend *backend, int32_t slot, int32_t sequence)
{
    const struct backend_slot *s = &backend->slots[slot];

    if (s->state == SLOT_RUNNING && s->num_beams == 1 && sequence < s->row_count)
        row_deactivate(backend, s->rows[sequence]);
}

static void cuda_release(struct backend *backend, int32_t slot)
{
    struct backend_slot *s = &backend->slots[slot];

    if (s->state == SLOT_FREE)
        return;
    for (int32_t i = 0; i < s->row_count; i++) {
        row_deactivate(backend, s->rows[i]);
        backend->free_rows[backend->free_count++] = s->rows[i];
    }
    s->state = SLOT_FREE;
}

/* ---- looking inside ---- */

static int trace_encode(struct backend *backend, const struct backend_trace *trace,
                        struct error *error)
{
    struct memory_batch *m = &backend->memory.batches[0];
    int32_t tokens = trace->source_len, *host = m->host;
    struct network_sources sources = sources_of(m, tokens, 1, tokens);
    float *output = backend->memory.encode_space.x;
    size_t width = (size_t)backend->network->config.d_model * sizeof(float);

    host[0] = tokens;
    for (int32_t t = 0; t < tokens; t++) {
        host[1 + t] = trace->source[t];
        host[1 + tokens + t] = t;
        host[1 + 2 * tokens + t] = 0;
    }
    host[1 + 3 * tokens] = 0;
    host[2 + 3 * tokens] = tokens;
    CUDA_TRY(cudaMemcpyAsync(m->device, host, (3 + 3 * (size_t)tokens) * sizeof(int32_t),
                             cudaMemcpyHostToDevice, backend->decode),
             error, fail);
    CUDA_TRY(network_encode(backend->network, &sources, &backend->memory.encode_space,
                            &backend->memory.cross, true, backend->decode),
             error, fail);
    if (trace->encoder)
        CUDA_TRY(cudaMemcpy2DAsync(trace->encoder, width, output,
                                   (size_t)backend->network->sizes.width * sizeof(float), width,
                                   (size_t)tokens, cudaMemcpyDeviceToHost, backend->decode),
                 error, fail);
    CUDA_TRY(cudaStreamSynchronize(backend->decode), error, fail);
    return 0;
fail:
    return -1;
}

/* Row 0 at `position`, with prefix[position] as its input. */
static int trace_position(struct backend *backend, const struct backend_trace *trace,
                          int32_t position, struct error *error)
{
    struct backend_memory *m = &backend->memory;
    struct network_step step = backend_step_of(backend, 1, true);
    int32_t V = backend->network->config.vocabulary;
    struct cuda_row row;

    memset(&row, 0, sizeof row);
    row.token = trace->prefix[position];
    row.position = position;
    row.max_new = trace->prefix_len + 1;
    row.source_len = trace->source_len;
    row.temperature = row.top_p = row.repetition_penalty = 1.0f;
    if (trace->warp) {
        row.flags = CUDA_ROW_SAMPLE | CUDA_ROW_PENALTY | CUDA_ROW_WORDS;
        row.max_new = trace->warp->max_new;
        row.min_new = trace->warp->min_new;
        row.top_k = trace->warp->top_k;
        row.temperature = trace->warp->temperature;
        row.top_p = trace->warp->top_p;
        row.repetition_penalty = trace->warp->repetition_penalty;
    }
    m->host_joins[0].row = row;
    m->host_joins[0].index = 0;
    CUDA_TRY(cudaMemcpy(m->rows.row, &m->host_joins[0].row, sizeof row, cudaMemcpyHostToDevice),
             error, fail);
    CUDA_TRY(network_step(backend->network, &step, backend->pdl, false, backend->decode), error,
             fail);
    if (trace->logits)
        CUDA_TRY(cudaMemcpyAsync(trace->logits + (size_t)position * V, m->logits,
                                 (size_t)V * sizeof(float), cudaMemcpyDeviceToHost,
                                 backend->decode),
                 error, fail);
    CUDA_TRY(cudaStreamSynchronize(backend->decode), error, fail);
    return 0;
fail:
    return -1;
}

static int trace_probabilities(struct backend *backend, const struct backend_trace *trace,
                               struct error *error)
{
    struct backend_memory *m = &backend->memory;
    size_t V = (size_t)backend->network->config.vocabulary;

    if (trace->prefix_len > 1)
        CUDA_TRY(cudaMemcpy(m->rows.tokens, trace->prefix + 1,
                            (size_t)(trace->prefix_len - 1) * sizeof(int32_t),
                            cudaMemcpyHostToDevice),
                 error, fail);
    {
        int32_t position = trace->prefix_len - 1;

        CUDA_TRY(cudaMemcpy(&m->rows.row[0].position, &position, sizeof position,
                            cudaMemcpyHostToDevice),
                 error, fail);
    }
    CUDA_TRY(choose_probabilities(m->rows, backend->choose_rules, 0, m->logits, m->probabilities,
                                  backend->decode),
             error, fail);
    CUDA_TRY(cudaMemcpyAsync(trace->probabilities, m->probabilities, V * sizeof(float),
                             cudaMemcpyDeviceToHost, backend->decode),
             error, fail);
    CUDA_TRY(cudaStreamSynchronize(backend->decode), error, fail);
    return 0;
fail:
    return -1;
}

static int cuda_trace(struct backend *backend, const struct backend_trace *trace,
                      struct error *error)
{
    struct backend_memory *m = &backend->memory;

    if (backend->failed)
        return error_set(error, "%s", backend->failure);
    CUDA_TRY(cudaSetDevice(backend->device), error, fail);
    m->host_lists[0] = 1;
    m->host_lists[1] = 0;
    m->host_lists[2] = 0;
    CUDA_TRY(cudaMemcpy(m->n, m->host_lists, 3 * sizeof(int32_t), cudaMemcpyHostToDevice), error,
             fail);
    backend->active_changed = true;
    if (trace_encode(backend, trace, error))
        return -1;
    if (!trace->logits && !trace->probabilities)
        return 0;
    for (int32_t i = 0; i < trace->prefix_len; i++)
        if (trace_position(backend, trace, i, error))
            return -1;
    return trace->probabilities ? trace_probabilities(backend, trace, error) : 0;
fail:
    return -1;
}

extern "C" const struct backend_ops backend_cuda = {
    "cuda",       cuda_open,          cuda_close,   cuda_free_rows, cuda_admit,
    backend_step, cuda_stop_sequence, cuda_release, cuda_trace,
};
