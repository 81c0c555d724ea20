// SPDX-License-Identifier: MIT
//
// The CUDA back end's host side without a device: backend_*.cu as they are, the CUDA runtime and
// all kernels replaced by a device that works through its streams' queues late, in an order of its
// own, and never before it has to. A row's next token is a function of its request, of what its
// source's encoding left in its cross cache and of the token before. So random schedules of
// requests that join, leave and are stopped show whether a row ever steps on somebody else's
// behalf, before its encoding is there, twice or not at all, and whether memory that both see is
// written while the other side still reads it. No beams; kernels themselves are the other tests'
// subject.
#include "simt.h"

#include <deque>
#include <functional>
#include <vector>

#include "kernels/cuda/backend_admit.cu"
#include "kernels/cuda/backend_call.cu"
#include "kernels/cuda/backend_cuda.cu"
#include "kernels/cuda/backend_graph.cu"
#include "kernels/cuda/backend_memory.cu"
#include "kernels/cuda/backend_step.cu"
extern "C" {
#include "kernels/tool/replay.h"
}

enum { REQUESTS = 5000, ROWS = 2100, FEW = 4, SOURCE_MOST = 60, NEW_MOST = 40, ROUNDS = 6 };

/* ---- the device ---- */

typedef std::function<bool()> work; /* false: not yet */
struct queue {
    std::deque<work> works;
};
struct mark {
    long recorded, done;
};
static std::vector<queue *> queues;
static std::vector<std::function<void()>> *captured;
static uint64_t chance = 1;
static long idle;

static uint64_t mixed(uint64_t x)
{
    return replay_random(&x);
}

static bool queue_work(queue *q)
{
    if (q->works.empty() || !q->works.front()())
        return false;
    q->works.pop_front();
    return true;
}

/* One piece of work of some stream that can go on; false when none can. For a while one stream
 * always comes last. */
static bool device_work(void)
{
    static queue *last;
    const size_t first = replay_random(&chance) % queues.size();

    if (replay_random(&chance) % 200 == 0)
        last = queues[replay_random(&chance) % queues.size()];
    for (size_t i = 0; i < queues.size(); i++) {
        queue *q = queues[(first + i) % queues.size()];

        if (q != last && queue_work(q))
            return true;
    }
    return last && queue_work(last);
}

static void put(cudaStream_t stream, std::function<void()> what)
{
    if (captured)
        captured->push_back(what);
    else
        ((queue *)stream)->works.push_back([what] {
            what();
            return true;
        });
}

extern "C" {
cudaError_t cudaGetDeviceCount(int *count)
{
    *count = 1;
    return cudaSuccess;
}
cudaError_t cudaSetDevice(int)
{
    return cudaSuccess;
}
cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *properties, int)
{
    memset(properties, 0, sizeof *properties);
    properties->major = 9;
    return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int *value, enum cudaDeviceAttr, int)
{
    *value = 227 * 1024;
    return cudaSuccess;
}
cudaError_t cudaDeviceGetStreamPriorityRange(int *least, int *most)
{
    *least = *most = 0;
    return cudaSuccess;
}
cudaError_t cudaStreamCreateWithPriority(cudaStream_t *stream, unsigned, int)
{
    queues.push_back(new queue);
    *stream = (cudaStream_t)queues.back();
    return cudaSuccess;
}
cudaError_t cudaStreamGetPriority(cudaStream_t, int *priority)
{
    *priority = 0;
    return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t stream)
{
    while (!((queue *)stream)->works.empty())
        if (!device_work())
            abort(); /* streams wait for one another */
    return cudaSuccess;
}
cudaError_t cudaStreamDestroy(cudaStream_t)
{
    return cudaSuccess;
}
cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned)
{
    *event = (cudaEvent_t) new mark();
    return cudaSuccess;
}
cudaError_t cudaEventDestroy(cudaEvent_t)
{
    return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream)
{
    mark *m = (mark *)event;
    const long turn = ++m->recorded;

    if (captured)
        m->done = turn;
    else
        put(stream, [m, turn] { m->done = turn; });
    return cudaSuccess;
}
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned)
{
    mark *m = (mark *)event;
    const long turn = m->recorded;

    if (!captured)
        ((queue *)stream)->works.push_back([m, turn] { return m->done >= turn; });
    return cudaSuccess;
}
/* Who asks waits: now and then something is done meanwhile. */
cudaError_t cudaEventQuery(cudaEvent_t event)
{
    const mark *m = (const mark *)event;

    if (m->done == m->recorded)
        return cudaSuccess;
    if (replay_random(&chance) % 3)
        return cudaErrorNotReady;
    idle = device_work() ? 0 : idle + 1;
    if (idle > 1000)
        abort(); /* it would never be ready */
    return m->done == m->recorded ? cudaSuccess : cudaErrorNotReady;
}
cudaError_t cudaMalloc(void **memory, size_t bytes)
{
    *memory = calloc(1, bytes);
    return *memory ? cudaSuccess : cudaErrorMemoryAllocation;
}
cudaError_t cudaFree(void *memory)
{
    free(memory);
    return cudaSuccess;
}
cudaError_t cudaHostAlloc(void **memory, size_t bytes, unsigned)
{
    return cudaMalloc(memory, bytes);
}
cudaError_t cudaFreeHost(void *memory)
{
    return cudaFree(memory);
}
cudaError_t cudaMemGetInfo(size_t *left, size_t *total)
{
    *left = *total = (size_t)1 << 36;
    return cudaSuccess;
}
cudaError_t cudaMemset(void *, int, size_t)
{
    return cudaSuccess; /* memory comes as zeros */
}
cudaError_t cudaMemcpy(void *to, const void *from, size_t bytes, enum cudaMemcpyKind)
{
    memcpy(to, from, bytes);
    return cudaSuccess;
}
cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, enum cudaMemcpyKind,
                            cudaStream_t stream)
{
    put(stream, [=] { memcpy(to, from, bytes); });
    return cudaSuccess;
}
const char *cudaGetErrorString(cudaError_t)
{
    return "failed";
}
const char *cudaGetErrorName(cudaError_t)
{
    return "failed";
}
cudaError_t cudaStreamBeginCapture(cudaStream_t, enum cudaStreamCaptureMode)
{
    captured = new std::vector<std::function<void()>>;
    return cudaSuccess;
}
cudaError_t cudaStreamEndCapture(cudaStream_t, cudaGraph_t *graph)
{
    *graph = (cudaGraph_t)captured;
    captured = NULL;
    return cudaSuccess;
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t *exec, cudaGraph_t graph, unsigned long long)
{
    *exec = (cudaGraphExec_t)graph;
    return cudaSuccess;
}
cudaError_t cudaGraphUpload(cudaGraphExec_t, cudaStream_t)
{
    return cudaSuccess;
}
cudaError_t cudaGraphDestroy(cudaGraph_t)
{
    return cudaSuccess;
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t)
{
    return cudaSuccess;
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream)
{
    for (const std::function<void()> &what : *(std::vector<std::function<void()>> *)exec)
        put(stream, what);
    return cudaSuccess;
}
}

/* ---- kernels ---- */

static struct network the_network;
static uint64_t encodings[ROWS]; /* by row: what its cross cache holds */
static int32_t end_token;

static uint64_t source_hash(const int32_t *tokens, int32_t count)
{
    uint64_t hash = 1;

    for (int32_t i = 0; i < count; i++)
        hash = mixed(hash ^ (uint64_t)tokens[i]);
    return hash;
}

static int32_t token_after(uint64_t encoding, uint64_t seed, int32_t sequence, int32_t position,
                           int32_t token)
{
    uint64_t x = mixed(encoding ^ seed) + (uint64_t)sequence * 7919 + (uint64_t)position;

    x = mixed(x ^ mixed((uint64_t)token));
    return x % 24 == 0 ? end_token : end_token + 1 + (int32_t)(x % 1000);
}

/* full: rows that sample, too, which other kernels leave alone. */
static void rows_step(struct cuda_rows rows, const int32_t *active, int32_t n, bool full)
{
    for (int32_t i = 0; i < n; i++) {
        struct cuda_row *r = rows.row + active[i];
        const size_t at = (size_t)active[i] * (size_t)rows.P + (size_t)r->position;

        if (r->finished || ((r->flags & CUDA_ROW_FULL) && !full))
            continue;
        r->token = token_after(encodings[r->cross], r->seed, r->sequence, r->position, r->token);
        rows.tokens[at] = r->token;
        rows.logprobs[at] = (float)r->token;
        r->finished = ++r->position >= r->max_new || r->token == end_token;
    }
}

const char *launch_failure(cudaError_t)
{
    return "";
}
cudaError_t product_prepare(int, int)
{
    return cudaSuccess;
}
struct network *network_open(const struct model *model, const char *, struct error *)
{
    the_network.config = model->config;
    the_network.sizes.width = the_network.sizes.decoder_ffn = 256;
    the_network.sizes.decoder_heads = 1;
    return &the_network;
}
void network_close(struct network *)
{
}
size_t network_space_bytes(const struct network *, int32_t, bool)
{
    return 256;
}
void network_space_carve(const struct network *, int32_t, bool, char *, struct network_space *)
{
}
cudaError_t network_encode(const struct network *, const struct network_sources *sources,
                           const struct network_space *, const struct network_cache *, bool, bool,
                           cudaStream_t stream)
{
    const struct network_sources s = *sources;

    put(stream, [s] {
        for (int32_t i = 0; i < s.count; i++)
            if (s.starts[i] < s.starts[i + 1]) /* a shape may have room for more sources */
                encodings[s.rows[s.starts[i]]] =
                    source_hash(s.tokens + s.starts[i], s.starts[i + 1] - s.starts[i]);
    });
    return cudaSuccess;
}
cudaError_t network_step(const struct network *, const struct network_step *, bool, bool,
                         cudaStream_t)
{
    return cudaSuccess;
}
bool network_many(const struct network *, int32_t)
{
    return true;
}
struct network_step network_step_part(const struct network *, const struct network_step *step,
                                      const int32_t *n, int32_t first, int32_t count)
{
    struct network_step part = *step;

    part.n = n;
    part.n_most = count;
    part.active += first;
    return part;
}
cudaError_t fused_prepare(const struct network *, int, struct fused_limits *limits)
{
    memset(limits, 0, sizeof *limits);
    limits->rows = limits->step_rows = 40;
    return cudaSuccess;
}
cudaError_t fused_rows_prepare(const struct network *, int, int32_t *clusters)
{
    *clusters = 2;
    return cudaSuccess;
}
static void steps_put(const struct network_step *step, int32_t n, int32_t steps, bool full,
                      cudaStream_t stream)
{
    const struct network_step s = *step;

    put(stream, [=] {
        for (int32_t i = 0; i < steps; i++)
            rows_step(s.rows, s.active, n, full);
    });
}
static void rows_told(struct cuda_rows rows, const int32_t *active, int32_t n, int32_t steps,
                      struct step_output out)
{
    for (int32_t i = 0; i < n; i++) {
        const int32_t row = active[i], from = rows.collected[row];
        const size_t at = (size_t)row * (size_t)rows.P + (size_t)from;

        out.position[i] = rows.row[row].position;
        out.finished[i] = rows.row[row].finished;
        for (int32_t j = 0; from + j < out.position[i] && j < steps; j++) {
            out.tokens[(size_t)i * (size_t)steps + (size_t)j] = rows.tokens[at + (size_t)j];
            out.logprobs[(size_t)i * (size_t)steps + (size_t)j] = rows.logprobs[at + (size_t)j];
        }
        rows.collected[row] = out.position[i];
    }
}
cudaError_t fused_enqueue(const struct network *, const struct network_step *step, int32_t n,
                          int32_t steps, bool sampled, struct step_output out,
                          const struct fused_limits *, bool, cudaStream_t stream)
{
    const struct network_step s = *step;

    steps_put(step, n, steps, sampled, stream);
    put(stream, [=] { rows_told(s.rows, s.active, n, steps, out); });
    return cudaSuccess;
}
cudaError_t fused_rows_enqueue(const struct network *network, const struct network_step *step,
                               int32_t n, int32_t steps, bool sampled, struct step_output out,
                               int32_t, bool pdl, cudaStream_t stream)
{
    return fused_enqueue(network, step, n, steps, sampled, out, NULL, pdl, stream);
}
cudaError_t fused_step_enqueue(const struct network *, const struct network_step *,
                               const struct fused_limits *, bool, bool, cudaStream_t)
{
    return cudaSuccess;
}
cudaError_t step_begin_enqueue(const struct step_begin *begin, bool, cudaStream_t stream)
{
    const struct step_begin b = *begin;

    put(stream, [b] {
        memcpy(b.lists, b.host_lists, (size_t)b.list_count * sizeof *b.lists);
        for (int32_t i = b.join_count - 1; i >= 0; i--) { /* in any order: a thread each */
            b.rows.row[b.host_joins[i].index] = b.host_joins[i].row;
            b.rows.collected[b.host_joins[i].index] = 0;
        }
    });
    return cudaSuccess;
}
cudaError_t step_split_enqueue(const int32_t *n, int32_t *counts, int32_t parts, int32_t each,
                               cudaStream_t stream)
{
    put(stream, [=] {
        for (int32_t p = 0; p < parts; p++)
            counts[p] = *n - p * each < 0 ? 0 : *n - p * each < each ? *n - p * each : each;
    });
    return cudaSuccess;
}
cudaError_t step_choose_enqueue(struct cuda_rows rows, struct cuda_rules,
                                const struct product_unit *, const float *, const int32_t *active,
                                const int32_t *n, int32_t n_most, bool, cudaStream_t stream)
{
    put(stream, [=] { rows_step(rows, active, *n < n_most ? *n : n_most, false); });
    return cudaSuccess;
}
cudaError_t choose_full(struct cuda_rows rows, struct choose_rules,
                        const struct choose_plain_rows *, float *, const int32_t *active,
                        const int32_t *n, int32_t n_most, bool, cudaStream_t stream)
{
    put(stream, [=] { rows_step(rows, active, *n < n_most ? *n : n_most, true); });
    return cudaSuccess;
}
cudaError_t step_collect_enqueue(struct cuda_rows rows, const int32_t *active, int32_t n,
                                 int32_t steps, struct step_output out, bool, cudaStream_t stream)
{
    put(stream, [=] { rows_told(rows, active, n, steps, out); });
    return cudaSuccess;
}
size_t choose_beams_work(int32_t)
{
    return 256;
}
cudaError_t choose_beams(struct cuda_rows, struct choose_rules, float *, const int32_t *,
                         const int32_t *, int32_t, const int32_t *, void *, bool, cudaStream_t)
{
    return cudaSuccess;
}
cudaError_t choose_beams_collect(struct cuda_rows, const int32_t *, int32_t, int32_t *, float *,
                                 int32_t *, cudaStream_t)
{
    return cudaErrorUnknown;
}
int backend_trace_run(struct backend *, const struct backend_trace *, struct error *)
{
    return -1;
}

/* ---- the test ---- */

static int32_t sources[REQUESTS][SOURCE_MOST];

static void requests_make(struct engine_request *requests)
{
    for (int i = 0; i < REQUESTS; i++) {
        engine_request_init(&requests[i]);
        requests[i].source = sources[i];
        requests[i].source_len = 1 + (int32_t)(replay_random(&chance) % SOURCE_MOST);
        for (int32_t t = 0; t < requests[i].source_len; t++)
            sources[i][t] = (int32_t)(replay_random(&chance) % 3000);
        requests[i].max_new = 1 + (int32_t)(replay_random(&chance) % NEW_MOST);
        requests[i].seed = replay_random(&chance);
        requests[i].do_sample = i % 8 == 7;
        if (i % 8 == 3)
            requests[i].repetition_penalty = 1.2f; /* asks for other kernels, which is all here */
        requests[i].num_sequences = i % 5 == 4 ? 3 : 1;
    }
}

static bool sequence_right(const struct engine_request *request, int32_t sequence,
                           const struct replay_sequence *s, int32_t start)
{
    const uint64_t encoding = source_hash(request->source, request->source_len);
    int32_t token = start, at = 0;

    while (at < request->max_new) {
        token = token_after(encoding, request->seed, sequence, at, token);
        if (token == end_token)
            return s->token_count == at && s->ended_with_eos && s->finished;
        if (at >= s->token_count || s->tokens[at] != token || s->logprobs[at] != (float)token)
            return false;
        at++;
    }
    return s->token_count == at && !s->ended_with_eos && s->finished;
}

/* few: at once, or 0 */
static int round_run(struct engine *engine, int round, int32_t few,
                     const struct engine_request *requests)
{
    static const int32_t steps[] = {1, 4, 16};
    const bool plain = round % 2; /* rows of one kind take other kernels */
    const struct replay_schedule schedule = {
        .k = steps[round % 3], .batch = few, .random = round < ROUNDS - 1, .seed = (uint64_t)round};
    std::vector<struct engine_request> own(requests, requests + REQUESTS);
    std::vector<struct replay_output> outputs(REQUESTS);
    struct error error;
    int wrong = 0;

    for (struct engine_request &request : own)
        if (plain) {
            request.do_sample = false;
            request.repetition_penalty = 1.0f;
        }
    if (replay_run(engine, own.data(), REQUESTS, &schedule, outputs.data(), &error)) {
        printf("host, round %d: %s FAILED\n", round, error.message);
        return 1;
    }
    for (int i = 0; i < REQUESTS; i++)
        for (int32_t s = 0; s < own[(size_t)i].num_sequences; s++)
            wrong += !sequence_right(&own[(size_t)i], s, &outputs[(size_t)i].sequences[s],
                                     engine_limits(engine)->start_token);
    replay_free(outputs.data(), REQUESTS);
    printf("host, round %d, k %2d%s%s%s: %d sequences wrong %s\n", round, schedule.k,
           few ? ", few" : "", plain ? ", greedy" : "", schedule.random ? ", joining" : "", wrong,
           wrong ? "FAILED" : "ok");
    return wrong != 0;
}

int main(void)
{
    struct engine_request requests[REQUESTS];
    struct engine_options options;
    struct engine *engine;
    struct error error;
    int failures = 0;

    engine_options_init(&options);
    options.device = "cuda:0";
    options.max_rows = ROWS;
    options.max_source = SOURCE_MOST;
    options.max_new = NEW_MOST;
    options.spin = true;
    engine = engine_open("models/prometheus-mini", &options, &error);
    if (!engine) {
        printf("host: %s FAILED\n", error.message);
        return 1;
    }
    end_token = engine_limits(engine)->eos_token;
    requests_make(requests);
    for (int round = 0; round < ROUNDS; round++)
        failures += round_run(engine, round, 0, requests) + round_run(engine, round, FEW, requests);
    engine_close(engine);
    return failures != 0;
}
