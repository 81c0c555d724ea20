/* SPDX-License-Identifier: MIT */
#include "kernels/cuda/backend_memory.h"

#include <string.h>

#include "kernels/cuda/cache.cuh"
#include "kernels/cuda/check.h"

enum { CACHE_SCALED = 32 }; /* values of an int8 cache that share a scale */

/* Hands out consecutive pieces of a block; with base NULL it only adds up. */
struct carver {
    char *base;
    size_t at;
};

static void *carve(struct carver *carver, size_t count, size_t size)
{
    void *piece = carver->base ? carver->base + carver->at : NULL;

    carver->at += (count * size + 255) / 256 * 256;
    return piece;
}

static size_t cache_carve(struct carver *carver, const struct network *network,
                          const struct backend_memory_sizes *sizes, int32_t positions,
                          struct network_cache *cache)
{
    size_t element = sizes->cache_int8 ? 1 : network->activations == CUDA_F32 ? 4 : 2;
    size_t layers = (size_t)network->config.decoder_layers;
    size_t chunks = ((size_t)positions + CACHE_CHUNK - 1) / CACHE_CHUNK;
    size_t chunk_places =
        (size_t)sizes->max_rows * (size_t)network->sizes.decoder_heads * CACHE_CHUNK;
    size_t values = chunks * chunk_places * CACHE_HEAD;

    cache->chunk_places = (uint32_t)chunk_places;
    cache->layer_stride = values * element;
    cache->k = (char *)carve(carver, layers, cache->layer_stride);
    cache->v = (char *)carve(carver, layers, cache->layer_stride);
    cache->k_scales = cache->v_scales = NULL;
    cache->scale_stride = 0;
    if (sizes->cache_int8) {
        cache->scale_stride = values / CACHE_SCALED;
        cache->k_scales =
            (__nv_bfloat16 *)carve(carver, layers * cache->scale_stride, sizeof(__nv_bfloat16));
        cache->v_scales =
            (__nv_bfloat16 *)carve(carver, layers * cache->scale_stride, sizeof(__nv_bfloat16));
    }
    return 2 * layers * (cache->layer_stride + cache->scale_stride * sizeof(__nv_bfloat16));
}

static size_t batch_ints(const struct backend_memory *memory, int32_t max_rows)
{
    return 1 + 3 * (size_t)memory->batch_tokens + (size_t)max_rows + 1;
}

static size_t device_layout(struct backend_memory *memory, const struct network *network,
                            const struct backend_memory_sizes *sizes, char *base)
{
    struct carver carver = {base, 0};
    size_t R = (size_t)sizes->max_rows, P = (size_t)sizes->max_new;
    size_t V = (size_t)network->config.vocabulary;
    size_t bytes;
    char *space;

    memory->rows.P = sizes->max_new;
    memory->rows.max_rows = sizes->max_rows;
    memory->rows.row = (struct cuda_row *)carve(&carver, R, sizeof(struct cuda_row));
    memory->rows.tokens = (int32_t *)carve(&carver, R * P, sizeof(int32_t));
    memory->rows.logprobs = (float *)carve(&carver, R * P, sizeof(float));
    memory->rows.source_row = (int32_t *)carve(&carver, R * P, sizeof(int32_t));
    memory->rows.groups =
        (struct cuda_beam_group *)carve(&carver, R, sizeof(struct cuda_beam_group));
    memory->rows.beam_tokens = (int32_t *)carve(&carver, R * P * BEAM_MAX, sizeof(int32_t));
    memory->rows.beam_parents = (int32_t *)carve(&carver, R * P * BEAM_MAX, sizeof(int32_t));
    memory->rows.collected = (int32_t *)carve(&carver, R, sizeof(int32_t));
    /* one piece: the lists go up in one copy */
    memory->n = (int32_t *)carve(&carver, 2 + 3 * R, sizeof(int32_t));
    memory->active = memory->n + 2;
    memory->place = memory->active + R;
    memory->groups = memory->place + R;
    memory->parts = (int32_t *)carve(&carver, MEMORY_PARTS, sizeof(int32_t));
    memory->units =
        (struct product_unit *)carve(&carver, R * (size_t)product_units(network->config.vocabulary),
                                     sizeof(struct product_unit));
    memory->special = (float *)carve(&carver, R * 2, sizeof(float));
    memory->logits = (float *)carve(
        &carver, R * (size_t)product_units(network->config.vocabulary) * PRODUCT_UNIT,
        sizeof(float)); /* fused_rows.h keeps rows of whole units there, all others (max_rows, V) */
    memory->probabilities = (float *)carve(&carver, V, sizeof(float));
    memory->choose_work = carve(&carver, 1, choose_beams_work(sizes->max_rows));
    bytes = network_space_bytes(network, sizes->max_rows, false);
    space = (char *)carve(&carver, 1, bytes);
    network_space_carve(network, sizes->max_rows, false, space, &memory->step_space);
    bytes = network_space_bytes(network, memory->batch_tokens, true);
    space = (char *)carve(&carver, 1, bytes);
    network_space_carve(network, memory->batch_tokens, true, space, &memory->encode_space);
    memory->sources =
        (int32_t *)carve(&carver, batch_ints(memory, sizes->max_rows), sizeof(int32_t));
    memory->cache_bytes = cache_carve(&carver, network, sizes, sizes->max_new, &memory->self);
    memory->cache_bytes += cache_carve(&carver, network, sizes, sizes->max_source, &memory->cross);
    return carver.at;
}

static size_t pinned_layout(struct backend_memory *memory, const struct backend_memory_sizes *sizes,
                            char *base)
{
    struct carver carver = {base, 0};
    size_t R = (size_t)sizes->max_rows, P = (size_t)sizes->max_new;

    for (int i = 0; i < MEMORY_CALLS; i++) {
        struct memory_call *call = &memory->calls[i];

        call->lists = (int32_t *)carve(&carver, 2 + 3 * R, sizeof(int32_t));
        call->joins = (struct step_join *)carve(&carver, R, sizeof(struct step_join));
        call->out.position = (int32_t *)carve(&carver, R, sizeof(int32_t));
        call->out.finished = (int32_t *)carve(&carver, R, sizeof(int32_t));
        call->out.tokens = (int32_t *)carve(&carver, R * MEMORY_STEPS_MOST, sizeof(int32_t));
        call->out.logprobs = (float *)carve(&carver, R * MEMORY_STEPS_MOST, sizeof(float));
    }
    memory->host_groups =
        (struct cuda_beam_group *)carve(&carver, R, sizeof(struct cuda_beam_group));
    memory->beam_groups = (int32_t *)carve(&carver, R, sizeof(int32_t));
    memory->beam_lengths = (int32_t *)carve(&carver, R * BEAM_MAX, sizeof(int32_t));
    memory->beam_scores = (float *)carve(&carver, R * BEAM_MAX, sizeof(float));
    memory->beam_tokens = (int32_t *)carve(&carver, R * BEAM_MAX * P, sizeof(int32_t));
    for (int i = 0; i < MEMORY_BATCHES; i++)
        memory->batch_sources[i] =
            (int32_t *)carve(&carver, batch_ints(memory, sizes->max_rows), sizeof(int32_t));
    return carver.at;
}

int backend_memory_open(struct backend_memory *memory, const struct network *network,
                        const struct backend_memory_sizes *sizes, struct error *error)
{
    size_t free_bytes = 0, total = 0;
    cudaError_t status;

    memset(memory, 0, sizeof *memory);
    memory->batch_tokens =
        sizes->max_source > MEMORY_BATCH_TOKENS ? sizes->max_source : MEMORY_BATCH_TOKENS;
    memory->device_bytes = device_layout(memory, network, sizes, NULL);
    memory->pinned_bytes = pinned_layout(memory, sizes, NULL);
    CUDA_TRY(cudaMemGetInfo(&free_bytes, &total), error, fail);
    if (sizes->budget && memory->device_bytes > sizes->budget) {
        error_set(
            error,
            "memory: %d rows with sources up to %d and %d new tokens need %zu MiB (%zu MiB of them "
            "attention caches), the budget is %zu MiB: raise it, or lower max_rows, max_source or "
            "max_new",
            sizes->max_rows, sizes->max_source, sizes->max_new, memory->device_bytes >> 20,
            memory->cache_bytes >> 20, (size_t)(sizes->budget >> 20));
        goto fail;
    }
    status = cudaMalloc((void **)&memory->device, memory->device_bytes);
    if (status != cudaSuccess) {
        error_set(
            error,
            "CUDA: %d rows with sources up to %d and %d new tokens need %zu MiB (%zu MiB of them "
            "attention caches), %zu of %zu MiB of the device are free: lower max_rows, max_source "
            "or "
            "max_new (%s)",
            sizes->max_rows, sizes->max_source, sizes->max_new, memory->device_bytes >> 20,
            memory->cache_bytes >> 20, free_bytes >> 20, total >> 20, cudaGetErrorString(status));
        goto fail;
    }
    /* kernels read places of caches where nothing was written yet (cache.cuh) */
    CUDA_TRY(cudaMemset(memory->device, 0, memory->device_bytes), error, fail);
    CUDA_TRY(cudaHostAlloc((void **)&memory->pinned, memory->pinned_bytes, cudaHostAllocMapped),
             error, fail);
    memset(memory->pinned, 0, memory->pinned_bytes);
    (void)device_layout(memory, network, sizes, memory->device);
    (void)pinned_layout(memory, sizes, memory->pinned);
    return 0;
fail:
    backend_memory_close(memory);
    return -1;
}

void backend_memory_close(struct backend_memory *memory)
{
    if (memory->device)
        (void)cudaFree(memory->device);
    if (memory->pinned)
        (void)cudaFreeHost(memory->pinned);
    memset(memory, 0, sizeof *memory);
}
