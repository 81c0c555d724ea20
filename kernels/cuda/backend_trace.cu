/* SPDX-License-Identifier: MIT */
#include <string.h>

#include "kernels/cuda/backend_state.h"
#include "kernels/cuda/check.h"

static int trace_encode(struct backend *backend, const struct backend_trace *trace,
                        struct error *error)
{
    int32_t tokens = trace->source_len, *host = backend->memory.batch_sources[0];
    const struct encode_shape shape = {tokens, 1, tokens, -1};
    struct network_sources sources = backend_sources_of(backend->memory.sources, &shape);
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
    CUDA_TRY(cudaMemcpyAsync(backend->memory.sources, host,
                             (3 + 3 * (size_t)tokens) * sizeof(int32_t), cudaMemcpyHostToDevice,
                             backend->decode),
             error, fail);
    CUDA_TRY(network_encode(backend->network, &sources, &backend->memory.encode_space,
                            &backend->memory.cross, true, backend->pdl, backend->decode),
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
    m->calls[0].joins[0].row = row;
    m->calls[0].joins[0].index = 0;
    CUDA_TRY(cudaMemcpy(m->rows.row, &m->calls[0].joins[0].row, sizeof row, cudaMemcpyHostToDevice),
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

int backend_trace_run(struct backend *backend, const struct backend_trace *trace,
                      struct error *error)
{
    struct backend_memory *m = &backend->memory;
    int64_t waited = 0;

    if (backend->failed)
        return error_set(error, "%s", backend->failure);
    CUDA_TRY(cudaSetDevice(backend->device), error, fail);
    /* nothing runs, but encodings of requests that were given up may: their sources' memory is used
     * here */
    if (backend_calls_forget(backend, error))
        return -1;
    while (backend->batch_count)
        if (backend_join_first(backend, &waited, error))
            return -1;
    m->calls[0].lists[0] = 1;
    m->calls[0].lists[1] = 0;
    m->calls[0].lists[2] = 0;
    CUDA_TRY(cudaMemcpy(m->n, m->calls[0].lists, 3 * sizeof(int32_t), cudaMemcpyHostToDevice),
             error, fail);
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
