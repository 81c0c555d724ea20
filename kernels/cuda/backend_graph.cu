/* SPDX-License-Identifier: MIT */
#include "kernels/cuda/backend_state.h"
#include "kernels/cuda/check.h"

const int32_t graph_lengths[GRAPH_LENGTHS] = {8, 4, 1};

/* Bounds of active rows that have graphs of their own: a step costs what its bucket costs. */
static const int32_t buckets[] = {1,   2,   4,    8,    16,   28,   32,   48,   56,
                                  64,  90,  120,  128,  192,  256,  384,  512,  640,
                                  768, 896, 1024, 1280, 1536, 1792, 2048, 3072, 4096};

/* Shapes of encodings that have graphs: a launch of each of seventeen kernels takes the host
 * longer than the device takes for few tokens. What a graph has room for and is not there costs a
 * block each that ends at once. */
static const struct encode_shape encode_shapes[GRAPH_ENCODINGS] = {
    {32, 8, 32, 0},    {64, 16, 64, 1},   {128, 32, 128, 2},
    {256, 32, 128, 3}, {512, 64, 128, 4}, {1024, 128, 128, 5},
};

/* A run of many rows is cut into parts that go side by side: the products of one work while the
 * attention of another waits for memory. As measured (kernels/cuda/NOTES.md). */
enum {
    PARTS_STEPS = 4,     /* of a run, at least: parts begin and end together */
    PARTS_UNIT = 64,     /* of a part's rows */
    PARTS_EACH = 128,    /* rows of a part, */
    PARTS_MIDDLE = 640,  /* of a third from so many on, */
    PARTS_BESIDE = 1280, /* and from here on, with kernels that leave room, */
    PARTS_EACH_BESIDE = 256,
    PARTS_WIDE = 512,     /* a model with a wide feed-forward: halves, from so many rows on, */
    PARTS_WIDE_END = 1024 /* but not from here on */
};

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
    step.beside = false;
    return step;
}

/* One step, or a part of its rows, as launches; first: nothing of the chain stands in front. */
static cudaError_t step_enqueue(struct backend *backend, const struct network_step *step,
                                enum backend_rows kind, bool first, cudaStream_t stream)
{
    struct backend_memory *m = &backend->memory;
    struct choose_plain_rows plain = {backend->rules, step->units, step->special};

    if (step->n == m->n && step->n_most <= backend->fused.step_rows) /* not a part, beside others */
        CUDA_PASS(fused_step_enqueue(backend->network, step, &backend->fused, backend->pdl, !first,
                                     stream));
    else
        CUDA_PASS(network_step(backend->network, step, backend->pdl, !first, stream));
    if (kind == ROWS_PLAIN)
        return step_choose_enqueue(m->rows, backend->rules, step->units, step->special,
                                   step->active, step->n, step->n_most, backend->pdl, stream);
    CUDA_PASS(choose_full(m->rows, backend->choose_rules, &plain, step->logits, step->active,
                          step->n, step->n_most, backend->pdl, stream));
    if (kind == ROWS_FULL)
        return cudaSuccess;
    return choose_beams(m->rows, backend->choose_rules, m->logits, m->groups, m->n + 1,
                        (step->n_most + 1) / 2, m->place, m->choose_work, backend->pdl, stream);
}

/* Into how many parts a run is cut. */
static int32_t parts_of(const struct backend *backend, int32_t n_most, enum backend_rows kind,
                        int32_t steps)
{
    const struct network_sizes *sizes = &backend->network->sizes;

    if (kind == ROWS_BEAMS || steps < PARTS_STEPS || !network_many(backend->network, n_most))
        return 1;
    if (sizes->decoder_ffn > sizes->width) /* its products fill the device by themselves */
        return n_most >= PARTS_WIDE && n_most < PARTS_WIDE_END ? 2 : 1;
    if (n_most < PARTS_MIDDLE)
        return n_most < 2 * PARTS_EACH ? 1 : n_most / PARTS_EACH;
    if (n_most < PARTS_BESIDE)
        return 3;
    return n_most < PARTS_EACH_BESIDE * MEMORY_PARTS ? n_most / PARTS_EACH_BESIDE : MEMORY_PARTS;
}

/* Each part of the rows goes through all steps in a stream of its own. */
static cudaError_t parts_enqueue(struct backend *backend, const struct network_step *step,
                                 enum backend_rows kind, int32_t steps, int32_t count)
{
    const int32_t units = (step->n_most + count * PARTS_UNIT - 1) / (count * PARTS_UNIT);
    const int32_t each = units * PARTS_UNIT, parts = (step->n_most + each - 1) / each;

    CUDA_PASS(step_split_enqueue(step->n, backend->memory.parts, parts, each, backend->decode));
    CUDA_PASS(cudaEventRecord(backend->parts[0].event, backend->decode));
    for (int32_t p = 0; p < parts; p++) {
        const int32_t first = p * each, left = step->n_most - first;
        const struct backend_part *way = &backend->parts[p];
        const struct network_step part = network_step_part(
            backend->network, step, backend->memory.parts + p, first, left < each ? left : each);

        if (p)
            CUDA_PASS(cudaStreamWaitEvent(way->stream, backend->parts[0].event, 0));
        for (int32_t i = 0; i < steps; i++)
            CUDA_PASS(step_enqueue(backend, &part, kind, i == 0, way->stream));
        if (p)
            CUDA_PASS(cudaEventRecord(way->event, way->stream));
    }
    for (int32_t p = 1; p < parts; p++)
        CUDA_PASS(cudaStreamWaitEvent(backend->decode, backend->parts[p].event, 0));
    return cudaSuccess;
}

static cudaError_t steps_enqueue(struct backend *backend, int32_t n_most, enum backend_rows kind,
                                 int32_t steps)
{
    const int32_t parts = parts_of(backend, n_most, kind, steps);
    struct network_step step = backend_step_of(backend, n_most, kind != ROWS_PLAIN);

    step.beside = parts > 1 && n_most >= PARTS_BESIDE;
    if (parts > 1)
        return parts_enqueue(backend, &step, kind, steps, parts);
    for (int32_t i = 0; i < steps; i++)
        CUDA_PASS(step_enqueue(backend, &step, kind, i == 0, backend->decode));
    return cudaSuccess;
}

/* Ends what a stream captures; status: what came of enqueueing it. */
static int graph_end(cudaStream_t stream, cudaError_t status, cudaGraphExec_t *exec,
                     struct error *error)
{
    cudaGraph_t graph = NULL;
    int result = -1;

    CUDA_TRY(cudaStreamEndCapture(stream, &graph), error, out);
    CUDA_TRY(status, error, out);
    CUDA_TRY(cudaGraphInstantiate(exec, graph, 0), error, out);
    CUDA_TRY(cudaGraphUpload(*exec, stream), error, out);
    result = 0;
out:
    if (graph)
        (void)cudaGraphDestroy(graph);
    return result;
}

static int steps_capture(struct backend *backend, int32_t n_most, enum backend_rows kind,
                         int32_t steps, cudaGraphExec_t *exec, struct error *error)
{
    CUDA_TRY(cudaStreamBeginCapture(backend->decode, cudaStreamCaptureModeThreadLocal), error,
             fail);
    return graph_end(backend->decode, steps_enqueue(backend, n_most, kind, steps), exec, error);
fail:
    return -1;
}

static cudaError_t encoding_enqueue(struct backend *backend, const struct encode_shape *shape)
{
    const struct network_sources sources = backend_sources_of(backend->memory.sources, shape);

    return network_encode(backend->network, &sources, &backend->memory.encode_space,
                          &backend->memory.cross, false, backend->pdl, backend->encode);
}

static int encodings_capture(struct backend *backend, struct error *error)
{
    for (int i = 0; i < GRAPH_ENCODINGS; i++) {
        CUDA_TRY(cudaStreamBeginCapture(backend->encode, cudaStreamCaptureModeThreadLocal), error,
                 fail);
        if (graph_end(backend->encode, encoding_enqueue(backend, &encode_shapes[i]),
                      &backend->graphs.encode[i], error))
            return -1;
    }
    CUDA_TRY(cudaStreamSynchronize(backend->encode), error, fail);
    return 0;
fail:
    return -1;
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
                if (steps_capture(backend, graphs->n_most[b], (enum backend_rows)kind,
                                  graph_lengths[l], &graphs->exec[b][kind][l], error))
                    return -1;
    CUDA_TRY(cudaStreamSynchronize(backend->decode), error, fail);
    return encodings_capture(backend, error);
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
    for (int i = 0; i < GRAPH_ENCODINGS; i++)
        if (backend->graphs.encode[i])
            (void)cudaGraphExecDestroy(backend->graphs.encode[i]);
}

struct encode_shape backend_graphs_shape(int32_t tokens, int32_t count, int32_t longest)
{
    const struct encode_shape exact = {tokens, count, longest, -1};

    for (int i = 0; i < GRAPH_ENCODINGS; i++)
        if (tokens <= encode_shapes[i].tokens && count <= encode_shapes[i].sources &&
            longest <= encode_shapes[i].longest)
            return encode_shapes[i];
    return exact;
}

cudaError_t backend_graphs_encode(struct backend *backend, const struct encode_shape *shape)
{
    return shape->graph < 0
               ? encoding_enqueue(backend, shape)
               : cudaGraphLaunch(backend->graphs.encode[shape->graph], backend->encode);
}

bool backend_graphs_fused(const struct backend *backend, int32_t n, enum backend_rows kind)
{
    return kind <= ROWS_SAMPLED && n <= backend->fused.rows;
}

cudaError_t backend_graphs_run(struct backend *backend, int32_t n, enum backend_rows kind,
                               int32_t steps, int64_t keys, const struct step_output *out,
                               bool *told)
{
    const struct backend_graphs *graphs = &backend->graphs;
    int32_t b = 0;

    *told = true;
    backend->running = "fused kernel";
    if (backend_graphs_fused(backend, n, kind)) {
        struct network_step step = backend_step_of(backend, n, false);

        return fused_enqueue(backend->network, &step, n, steps, kind == ROWS_SAMPLED, *out,
                             &backend->fused, backend->pdl, backend->decode);
    }
    backend->running = "fused kernel of many rows";
    if (kind <= ROWS_SAMPLED && fused_rows_suits(backend->fused_rows_clusters, n, steps, keys)) {
        const bool sampled = kind == ROWS_SAMPLED;
        struct network_step step = backend_step_of(backend, n, sampled);

        return fused_rows_enqueue(backend->network, &step, n, steps, sampled, *out,
                                  backend->fused_rows_clusters, backend->pdl, backend->decode);
    }
    *told = false;
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
