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
    backend->rules.banned = rules->banned;
    backend->rules.suppressed = rules->suppressed;
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
    for (int i = 0; i < MEMORY_PARTS; i++) {
        if (i)
            CUDA_TRY(cudaStreamCreateWithPriority(&backend->parts[i].stream, cudaStreamNonBlocking,
                                                  high),
                     error, fail);
        CUDA_TRY(cudaEventCreateWithFlags(&backend->parts[i].event, cudaEventDisableTiming), error,
                 fail);
    }
    backend->parts[0].stream = backend->decode;
    for (int i = 0; i < MEMORY_BATCHES; i++)
        CUDA_TRY(cudaEventCreateWithFlags(&backend->batches[i].done, cudaEventDisableTiming), error,
                 fail);
    for (int i = 0; i < MEMORY_CALLS; i++)
        CUDA_TRY(cudaEventCreateWithFlags(&backend->calls[i].done, cudaEventDisableTiming), error,
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
    for (int i = 0; i < MEMORY_CALLS; i++) {
        backend->calls[i].rows = (struct call_row *)calloc(rows, sizeof(struct call_row));
        if (!backend->calls[i].rows)
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
    for (int i = 0; i < MEMORY_CALLS; i++) {
        if (backend->calls[i].done)
            (void)cudaEventDestroy(backend->calls[i].done);
        free(backend->calls[i].rows);
    }
    if (backend->stepped)
        (void)cudaEventDestroy(backend->stepped);
    for (int i = 0; i < MEMORY_PARTS; i++) {
        if (i && backend->parts[i].stream)
            (void)cudaStreamDestroy(backend->parts[i].stream);
        if (backend->parts[i].event)
            (void)cudaEventDestroy(backend->parts[i].event);
    }
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

/* ---- slots ---- */

static int32_t cuda_free_rows(const struct backend *backend)
{
    return backend->free_count;
}

/* A row that has joined since the last call was told will not be: it may be somebody else's when
 * the next one is, and must not join twice. */
static void join_drop(struct backend *backend, int32_t row)
{
    struct step_join *joins = backend->memory.calls[backend_call_next(backend)].joins;
    int32_t kept = 0;

    for (int32_t i = 0; i < backend->join_count; i++)
        if (joins[i].index != row)
            joins[kept++] = joins[i];
    backend->join_count = kept;
}

static void row_deactivate(struct backend *backend, int32_t row)
{
    int32_t kept = 0;

    if (!backend->rows[row].running)
        return;
    backend->rows[row].running = false;
    join_drop(backend, row);
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

extern "C" const struct backend_ops backend_cuda = {
    "cuda",       cuda_open,          cuda_close,   cuda_free_rows,    backend_admit,
    backend_step, cuda_stop_sequence, cuda_release, backend_trace_run,
};
