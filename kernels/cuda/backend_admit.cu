/* SPDX-License-Identifier: MIT */
#include <string.h>

#include "kernels/cuda/backend_state.h"
#include "kernels/cuda/check.h"

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
        row->ahead = 0;
        row->max_new = request->max_new;
        row->flags = start->flags;
        row->running = false;
    }
}

static int32_t batch_next(const struct backend *backend)
{
    return (backend->batch_first + backend->batch_count) % MEMORY_BATCHES;
}

/* The next encoding's memory may be that of one whose rows joined before its end (it had to end
 * before the call that they joined). */
static int batch_wait(struct backend *backend, struct error *error)
{
    return backend_wait(backend, backend->batches[batch_next(backend)].done, 0.0, "encoding",
                        error);
}

static int32_t source_longest(const struct engine_request *requests, int32_t count)
{
    int32_t longest = 0;

    for (int32_t i = 0; i < count; i++)
        if (requests[i].source_len > longest)
            longest = requests[i].source_len;
    return longest;
}

/* `count` requests of `tokens` source tokens together, side by side. */
static void batch_pack(struct backend *backend, const struct engine_request *requests,
                       const int32_t *slots, int32_t count, int32_t tokens)
{
    int32_t index = batch_next(backend);
    struct backend_batch *batch = &backend->batches[index];
    const struct encode_shape shape =
        backend_graphs_shape(tokens, count, source_longest(requests, count));
    int32_t *host = backend->memory.batch_sources[index], *host_tokens = host + 1;
    int32_t *positions = host_tokens + shape.tokens, *rows = positions + shape.tokens;
    int32_t *starts = rows + shape.tokens, at = 0;

    host[0] = tokens;
    batch->rows = 0;
    for (int32_t i = 0; i < count; i++) {
        starts[i] = at;
        batch->slots[i] = slots[i];
        batch->rows += backend->slots[slots[i]].row_count;
        batch->generations[i] = backend->slots[slots[i]].generation;
        for (int32_t t = 0; t < requests[i].source_len; t++, at++) {
            host_tokens[at] = requests[i].source[t];
            positions[at] = t;
            rows[at] = backend->slots[slots[i]].rows[0];
        }
    }
    for (int32_t i = count; i <= shape.sources; i++)
        starts[i] = at; /* those that are not there are empty */
    batch->count = count;
    batch->shape = shape;
    batch->enqueued = false;
    backend->batch_count++;
}

struct network_sources backend_sources_of(int32_t *memory, const struct encode_shape *shape)
{
    struct network_sources sources;

    sources.n = memory;
    sources.tokens = memory + 1;
    sources.positions = sources.tokens + shape->tokens;
    sources.rows = sources.positions + shape->tokens;
    sources.starts = sources.rows + shape->tokens;
    sources.token_count = shape->tokens;
    sources.count = shape->sources;
    sources.longest = shape->longest;
    return sources;
}

static cudaError_t batch_enqueue(struct backend *backend, int32_t index)
{
    struct backend_batch *batch = &backend->batches[index];
    const struct backend_memory *m = &backend->memory;
    const size_t ints = 2 + 3 * (size_t)batch->shape.tokens + (size_t)batch->shape.sources;

    CUDA_PASS(cudaMemcpyAsync(m->sources, m->batch_sources[index], ints * sizeof(int32_t),
                              cudaMemcpyHostToDevice, backend->encode));
    CUDA_PASS(backend_graphs_encode(backend, &batch->shape));
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

int32_t backend_admit(struct backend *backend, int32_t n, const struct engine_request *requests,
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
        if (batch_wait(backend, error))
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
        /* nothing decodes, or nobody's rows do: the device encodes these while the next are packed
         */
        status = backend->active_count ? cudaSuccess : backend_encode(backend);
        if (status != cudaSuccess)
            return backend_fail(backend, status, "enqueueing an encoding", error);
    }
    return admitted;
}
