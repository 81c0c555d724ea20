/* SPDX-License-Identifier: MIT */
#include "kernels/cuda/backend_state.h"
#include "kernels/cuda/check.h"

const int32_t graph_lengths[GRAPH_LENGTHS] = {8, 4, 1};

/* Bounds of active rows that have graphs of their own: a step costs what its bucket costs. */
static const int32_t buckets[] = {1,   2,   4,    8,    16,   28,   32,   48,   56,
                                  64,  90,  120,  128,  192,  256,  384,  512,  640,
                                  768, 896, 1024, 1280, 1536, 1792, 2048, 3072, 4096};

struct network_step backend_step_of(const struct backend *backend, int32_t n_most, bool full)
{
    const struct backend_memory *m = &backend->memory;
    struct network_step step;

    step.n = m->n;
    step.active = m->active;
    step.n_most = n_most;
    step.rows = m->rows;
    step.rules = backend->rules;
    step.space = m->step_space;
    step.self = m->self;
    step.cross = m->cross;
    step.units = m->units;
    step.special = m->special;
    step.logits = full ? m->logits : NULL;
    return step;
}

/* One step as launches; first: nothing of the chain stands in front. */
static cudaError_t step_enqueue(struct backend *backend, int32_t n_most, enum backend_rows kind,
                                bool first)
{
    struct backend_memory *m = &backend->memory;
    struct network_step step = backend_step_of(backend, n_most, kind != ROWS_PLAIN);
    struct choose_plain_rows plain = {backend->rules, m->units, m->special};

    if (n_most <= backend->fused.step_rows)
        CUDA_PASS(fused_step_enqueue(backend->network, &step, &backend->fused, backend->pdl, !first,
                                     backend->decode));
    else
        CUDA_PASS(network_step(backend->network, &step, backend->pdl, !first, backend->decode));
    if (kind == ROWS_PLAIN)
        return step_choose_enqueue(m->rows, backend->rules, m->units, m->special, m->active, m->n,
                                   n_most, backend->pdl, backend->decode);
    CUDA_PASS(choose_full(m->rows, backend->choose_rules, &plain, m->logits, m->active, m->n,
                          n_most, backend->pdl, backend->decode));
    if (kind == ROWS_FULL)
        return cudaSuccess;
    return choose_beams(m->rows, backend->choose_rules, m->logits, m->groups, m->n + 1,
                        (n_most + 1) / 2, m->place, m->choose_work, backend->pdl, backend->decode);
}

static int graph_capture(struct backend *backend, int32_t n_most, enum backend_rows kind,
                         int32_t steps, cudaGraphExec_t *exec, struct error *error)
{
    cudaGraph_t graph = NULL;
    cudaError_t status = cudaSuccess;
    int result = -1;

    CUDA_TRY(cudaStreamBeginCapture(backend->decode, cudaStreamCaptureModeThreadLocal), error, out);
    for (int32_t i = 0; i < steps && status == cudaSuccess; i++)
        status = step_enqueue(backend, n_most, kind, i == 0);
    CUDA_TRY(cudaStreamEndCapture(backend->decode, &graph), error, out);
    CUDA_TRY(status, error, out);
    CUDA_TRY(cudaGraphInstantiate(exec, graph, 0), error, out);
    CUDA_TRY(cudaGraphUpload(*exec, backend->decode), error, out);
    result = 0;
out:
    if (graph)
        (void)cudaGraphDestroy(graph);
    return result;
}

int backend_graphs_open(struct backend *backend, struct error *error)
{
    struct backend_graphs *graphs = &backend->graphs;
    int32_t most = backend->limits.max_rows;

    for (size_t i = 0; i < sizeof buckets / sizeof buckets[0] && buckets[i] < most; i++)
        graphs->n_most[graphs->bucket_count++] = buckets[i];
    graphs->n_most[graphs->bucket_count++] = most;
    for (int32_t b = 0; b < graphs->bucket_count; b++)
        for (int kind = 0; kind < ROWS_KINDS; kind++)
            for (int l = 0; l < GRAPH_LENGTHS && kind != ROWS_SAMPLED; l++)
                if (graph_capture(backend, graphs->n_most[b], (enum backend_rows)kind,
                                  graph_lengths[l], &graphs->exec[b][kind][l], error))
                    return -1;
    CUDA_TRY(cudaStreamSynchronize(backend->decode), error, fail);
    return 0;
fail:
    return -1;
}

void backend_graphs_close(struct backend *backend)
{
    for (int32_t b = 0; b < backend->graphs.bucket_count; b++)
        for (int kind = 0; kind < ROWS_KINDS; kind++)
            for (int l = 0; l < GRAPH_LENGTHS; l++)
                if (backend->graphs.exec[b][kind][l])
                    (void)cudaGraphExecDestroy(backend->graphs.exec[b][kind][l]);
}

cudaError_t backend_graphs_run(struct backend *backend, int32_t n, enum backend_rows kind,
                               int32_t steps, int64_t keys)
{
    const struct backend_graphs *graphs = &backend->graphs;
    int32_t b = 0;

    backend->running = "fused kernel";
    if (kind <= ROWS_SAMPLED && n <= backend->fused.rows) {
        struct network_step step = backend_step_of(backend, n, false);

        return fused_enqueue(backend->network, &step, n, steps, kind == ROWS_SAMPLED,
                             &backend->fused, backend->decode);
    }
    backend->running = "fused kernel of many rows";
    if (kind == ROWS_PLAIN && fused_rows_suits(backend->fused_rows_clusters, n, keys)) {
        struct network_step step = backend_step_of(backend, n, false);

        return fused_rows_enqueue(backend->network, &step, n, steps, backend->fused_rows_clusters,
                                  backend->decode);
    }
    backend->running =
        kind == ROWS_PLAIN ? "launched steps" : "launched steps, whole rows of logits";
    if (kind == ROWS_SAMPLED)
        kind = ROWS_FULL; /* which have graphs for them */
    while (graphs->n_most[b] < n)
        b++;
    for (int l = 0; l < GRAPH_LENGTHS; l++)
        for (; steps >= graph_lengths[l]; steps -= graph_lengths[l])
            CUDA_PASS(cudaGraphLaunch(graphs->exec[b][kind][l], backend->decode));
    return cudaSuccess;
}
