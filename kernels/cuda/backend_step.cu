/* SPDX-License-Identifier: MIT */
#include <math.h>
#include <string.h>
#include <time.h>

#include "kernels/base/clock.h"
#include "kernels/cuda/backend_state.h"
#include "kernels/cuda/check.h"

enum {
    WAIT_WAKE_US = 80, /* a sleep may last this much longer than it was told */
    WAIT_SPIN_US = 200,
    WAIT_NAP_US = 20,
    CALL_US = 100,      /* of a call are not its steps */
    ENCODING_STEPS = 2, /* an encoding takes about so many steps */
};
#define WAIT_SLEEP_SHARE 0.8 /* of the expected time is slept through */

int backend_fail(struct backend *backend, cudaError_t status, const char *what, struct error *error)
{
    if (!backend->failed) {
        struct error first;

        error_set(&first, "CUDA device %d: %s (%s) failed with %d rows of %d: %s (%s)%s",
                  backend->device, what, backend->running ? backend->running : "the first",
                  backend->active_count, backend->limits.max_rows, cudaGetErrorString(status),
                  cudaGetErrorName(status), launch_failure(status));
        memcpy(backend->failure, first.message, sizeof backend->failure);
        backend->failed = true;
    }
    return error_set(error, "%s", backend->failure);
}

static void nap(double us)
{
    struct timespec time = {(time_t)(us / 1e6), (long)fmod(us * 1e3, 1e9)};

    nanosleep(&time, NULL);
}

int backend_wait(struct backend *backend, cudaEvent_t event, double expected_us, const char *what,
                 struct error *error)
{
    int64_t begun = clock_mono_us(), waited = 0;
    cudaError_t status;

    if (!backend->spin && WAIT_SLEEP_SHARE * expected_us > WAIT_WAKE_US)
        nap(WAIT_SLEEP_SHARE * expected_us - WAIT_WAKE_US);
    while ((status = cudaEventQuery(event)) == cudaErrorNotReady) {
        waited = clock_mono_us() - begun;
        if (waited > backend->wait_most_us) {
            error_set(error, "CUDA device %d: %s (%s) did not end in %.1f s with %d rows: it hangs",
                      backend->device, what, backend->running ? backend->running : "the first",
                      (double)backend->wait_most_us / 1e6, backend->active_count);
            memcpy(backend->failure, error->message, sizeof backend->failure);
            backend->failed = backend->hung = true;
            return -1;
        }
        if (!backend->spin && (double)waited > 2.0 * expected_us + WAIT_SPIN_US)
            nap(WAIT_NAP_US);
    }
    return status == cudaSuccess ? 0 : backend_fail(backend, status, what, error);
}

/* The rows of an admitted request, whose encoding is done, will join at this step. */
static void slot_join(struct backend *backend, int32_t s)
{
    struct backend_slot *slot = &backend->slots[s];
    struct backend_memory *m = &backend->memory;

    slot->state = SLOT_RUNNING;
    for (int32_t i = 0; i < slot->row_count; i++) {
        struct step_join *join = &m->host_joins[backend->join_count++];
        struct backend_row *row = &backend->rows[slot->rows[i]];

        join->index = slot->rows[i];
        join->row = slot->start;
        join->row.sequence = i;
        join->row.beam = i;
        row->running = true;
        backend->active[backend->active_count++] = slot->rows[i];
    }
    backend->active_changed = true;
}

int backend_join_first(struct backend *backend, int64_t *waited_us, struct error *error)
{
    struct backend_batch *batch = &backend->batches[backend->batch_first];
    int64_t begun = clock_mono_us();
    /* where it is under way, those behind it wait for their turn behind the next decode steps */
    cudaError_t status = batch->enqueued ? cudaSuccess : backend_encode(backend);

    if (status != cudaSuccess)
        return backend_fail(backend, status, "enqueueing an encoding", error);
    if (backend_wait(backend, batch->done, 0.0, "encoding", error))
        return -1;
    *waited_us += clock_mono_us() - begun;
    for (int32_t i = 0; i < batch->count; i++) {
        int32_t s = batch->slots[i];

        if (backend->slots[s].state == SLOT_PENDING &&
            backend->slots[s].generation == batch->generations[i])
            slot_join(backend, s);
    }
    backend->batch_first = (backend->batch_first + 1) % MEMORY_BATCHES;
    backend->batch_count--;
    return 0;
}

/* Rows of encodings that have not joined. */
static int32_t newcomers(const struct backend *backend)
{
    int32_t rows = 0;

    for (int32_t i = 0; i < backend->batch_count; i++)
        rows += backend->batches[(backend->batch_first + i) % MEMORY_BATCHES].rows;
    return rows;
}

/* Takes finished encodings off the ring. Waits for the others only while more is lost without: rows
 * that do not join now have this call's k steps still before them when the others have ended; that
 * weighs against the time for which the running rows stand still. */
static int batches_join(struct backend *backend, int32_t k, int64_t *waited_us, struct error *error)
{
    while (backend->batch_count) {
        const struct backend_batch *batch = &backend->batches[backend->batch_first];
        cudaError_t status = batch->enqueued ? cudaEventQuery(batch->done) : cudaErrorNotReady;

        if (status == cudaErrorNotReady &&
            (int64_t)ENCODING_STEPS * backend->active_count > (int64_t)k * newcomers(backend))
            return 0;
        if (status != cudaSuccess && status != cudaErrorNotReady)
            return backend_fail(backend, status, "encoding", error);
        if (backend_join_first(backend, waited_us, error))
            return -1;
    }
    return 0;
}

/* How long a step takes, from below: what a call costs beside its steps is left out, of a short
 * call at most half, and one slow call does not count, for a wait that sleeps too long delays
 * everything. */
static void step_time_learn(struct backend *backend, int64_t call_us, int32_t k)
{
    const int64_t beside = call_us > 2 * CALL_US ? (int64_t)CALL_US : call_us / 2;
    double us = (double)(call_us - beside) / k;

    if (backend->step_us > 0.0 && us > 1.1 * backend->step_us)
        us = 1.1 * backend->step_us;
    backend->step_us = us > 1.0 ? us : 1.0;
}

/* Beam searches that join go straight into the group table. */
static cudaError_t groups_upload(struct backend *backend)
{
    struct backend_memory *m = &backend->memory;

    for (int32_t i = 0; i < backend->join_count; i++) {
        const struct backend_slot *slot =
            &backend->slots[backend->rows[m->host_joins[i].index].slot];
        struct cuda_beam_group *group;

        if (slot->num_beams == 1 || m->host_joins[i].index != slot->rows[0])
            continue;
        group = &m->host_groups[slot->rows[0]];
        beam_init(&group->state, slot->num_beams, slot->max_new, backend->limits.eos_token,
                  slot->length_penalty, slot->early_stopping);
        memcpy(group->rows, slot->rows, sizeof group->rows);
        group->num_beams = slot->num_beams;
        group->finished = 0;
        CUDA_PASS(cudaMemcpyAsync(m->rows.groups + slot->rows[0], group, sizeof *group,
                                  cudaMemcpyHostToDevice, backend->decode));
    }
    return cudaSuccess;
}

/* Who is active, at which place, and which groups are, as the device will read it. */
static void lists_fill(struct backend *backend)
{
    struct backend_memory *m = &backend->memory;
    int32_t *active = m->host_lists + 2, *place = active + backend->limits.max_rows;
    int32_t *groups = place + backend->limits.max_rows;
    int32_t count = 0;

    for (int32_t i = 0; i < backend->active_count; i++) {
        int32_t row = backend->active[i];
        const struct backend_slot *slot = &backend->slots[backend->rows[row].slot];

        active[i] = row;
        place[row] = i;
        if (slot->num_beams > 1 && slot->rows[0] == row)
            groups[count++] = row;
    }
    m->host_lists[0] = backend->active_count;
    m->host_lists[1] = count;
    backend->active_groups = count;
}

/* Tells the device who joins and who is active, where that has changed. */
static cudaError_t changes_upload(struct backend *backend)
{
    struct backend_memory *m = &backend->memory;
    struct step_begin begin;

    if (!backend->join_count && !backend->active_changed)
        return cudaSuccess;
    CUDA_PASS(groups_upload(backend));
    begin.rows = m->rows;
    begin.collected = m->collected;
    begin.host_joins = m->host_joins;
    begin.host_lists = m->host_lists;
    begin.lists = m->n;
    begin.join_count = backend->join_count;
    begin.list_count = 0;
    if (backend->active_changed) {
        lists_fill(backend);
        begin.list_count = 2 + 3 * backend->limits.max_rows;
    }
    backend->join_count = 0;
    backend->active_changed = false;
    return step_begin_enqueue(&begin, backend->decode);
}

/* A row's news as an item. Tokens lie in the memory that the device wrote. */
static void item_fill(struct backend *backend, int32_t i, int32_t k, struct engine_item *item)
{
    struct backend_memory *m = &backend->memory;
    struct backend_row *row = &backend->rows[backend->active[i]];
    const struct backend_slot *slot = &backend->slots[row->slot];
    int32_t count = m->out.position[i] - row->position;
    const int32_t *tokens = m->out.tokens + (size_t)i * (size_t)k;
    bool eos = count > 0 && tokens[count - 1] == backend->limits.eos_token;
    bool at_limit = m->out.position[i] >= row->max_new;

    memset(item, 0, sizeof *item);
    item->tag = slot->tag;
    item->slot = row->slot;
    item->sequence = row->sequence;
    item->tokens = tokens;
    item->logprobs = m->out.logprobs + (size_t)i * (size_t)k;
    item->token_count = count - (eos ? 1 : 0);
    item->ended_with_eos = eos;
    if (eos && !(at_limit && backend->rules.forced_eos >= 0))
        item->finish = ENGINE_FINISH_EOS;
    else if (eos || at_limit)
        item->finish = ENGINE_FINISH_LENGTH;
}

/* Finished beam searches, read back in one go; items of group's returned sequences. */
static int groups_report(struct backend *backend, int32_t count, int32_t *item_count,
                         struct error *error)
{
    struct backend_memory *m = &backend->memory;
    cudaError_t status;

    if (!count)
        return 0;
    status = choose_beams_collect(m->rows, m->beam_groups, count, m->beam_lengths, m->beam_scores,
                                  m->beam_tokens, backend->decode);
    if (status == cudaSuccess)
        status = cudaEventRecord(backend->stepped, backend->decode);
    if (status != cudaSuccess)
        return backend_fail(backend, status, "reading beams", error);
    if (backend_wait(backend, backend->stepped, 0.0, "reading beams", error))
        return -1;
    for (int32_t g = 0; g < count; g++) {
        int32_t first = m->beam_groups[g];
        struct backend_slot *slot = &backend->slots[backend->rows[first].slot];

        for (int32_t h = 0; h < slot->sequences; h++) {
            struct engine_item *item = &backend->items[(*item_count)++];
            size_t at = (size_t)first * BEAM_MAX + (size_t)h;
            int32_t length = m->beam_lengths[at];
            const int32_t *tokens = m->beam_tokens + at * (size_t)m->rows.P;
            bool eos = length > 0 && tokens[length - 1] == backend->limits.eos_token;

            memset(item, 0, sizeof *item);
            item->tag = slot->tag;
            item->slot = backend->rows[first].slot;
            item->sequence = h;
            item->tokens = tokens;
            item->token_count = length - (eos ? 1 : 0);
            item->ended_with_eos = eos;
            item->finish = eos && !(length >= slot->max_new && backend->rules.forced_eos >= 0)
                               ? ENGINE_FINISH_EOS
                               : ENGINE_FINISH_LENGTH;
            item->beam_score = m->beam_scores[at];
        }
        slot->reported = true;
    }
    return 0;
}

/* What the device wrote into items, the active list shrunk to the rows that still run. */
static int results_read(struct backend *backend, int32_t k, struct engine_output *out,
                        struct error *error)
{
    struct backend_memory *m = &backend->memory;
    int32_t kept = 0, items = 0, ended = 0, steps = 0;
    int64_t advanced = 0;

    for (int32_t i = 0; i < backend->active_count; i++) {
        struct backend_row *row = &backend->rows[backend->active[i]];
        struct backend_slot *slot = &backend->slots[row->slot];
        int32_t count = m->out.position[i] - row->position;

        advanced += count;
        if (count > steps)
            steps = count;
        if (slot->num_beams == 1)
            item_fill(backend, i, k, &backend->items[items++]);
        else if (m->out.finished[i] && slot->rows[0] == backend->active[i] && !slot->reported)
            m->beam_groups[ended++] = backend->active[i];
        row->position = m->out.position[i];
        row->running = !m->out.finished[i];
        if (row->running)
            backend->active[kept++] = backend->active[i];
    }
    if (kept != backend->active_count)
        backend->active_changed = true;
    backend->active_count = kept;
    out->steps = steps;
    out->rows_mean = steps ? (double)advanced / steps : 0.0;
    if (groups_report(backend, ended, &items, error))
        return -1;
    out->items = backend->items;
    out->item_count = items;
    return 0;
}

/* keys: positions that an attention of all rows looks at, sources included, at the call's start. */
static void steps_plan(const struct backend *backend, int32_t *k, bool *full, int64_t *keys)
{
    int32_t left = 0;

    *full = false;
    *keys = 0;
    for (int32_t i = 0; i < backend->active_count; i++) {
        const struct backend_row *row = &backend->rows[backend->active[i]];

        if (row->max_new - row->position > left)
            left = row->max_new - row->position;
        *full = *full || row->full;
        *keys += row->position + backend->slots[row->slot].start.source_len;
    }
    if (*k > left)
        *k = left;
    if (*k > MEMORY_STEPS_MOST)
        *k = MEMORY_STEPS_MOST;
}

int backend_step(struct backend *backend, int32_t k, struct engine_output *out, struct error *error)
{
    struct backend_memory *m = &backend->memory;
    int64_t waited = 0, begun, keys;
    cudaError_t status;
    bool full;

    memset(out, 0, sizeof *out);
    if (backend->failed)
        return error_set(error, "%s", backend->failure);
    status = cudaSetDevice(backend->device);
    if (status != cudaSuccess)
        return backend_fail(backend, status, "choosing the device", error);
    if (batches_join(backend, k, &waited, error))
        return -1;
    out->encode_us = waited;
    if (!backend->active_count)
        return 0;
    begun = clock_mono_us();
    steps_plan(backend, &k, &full, &keys);
    status = changes_upload(backend);
    if (status == cudaSuccess)
        status = backend_graphs_run(backend, backend->active_count,
                                    backend->active_groups ? ROWS_BEAMS
                                    : full                 ? ROWS_FULL
                                                           : ROWS_PLAIN,
                                    k, keys);
    if (status == cudaSuccess)
        status = backend_encode(backend); /* newcomers, while the device is busy */
    if (status == cudaSuccess)
        status = step_collect_enqueue(m->rows, m->collected, m->active, backend->active_count, k,
                                      m->out, backend->decode);
    if (status == cudaSuccess)
        status = cudaEventRecord(backend->stepped, backend->decode);
    if (status != cudaSuccess)
        return backend_fail(backend, status, "enqueueing decode steps", error);
    if (backend_wait(backend, backend->stepped, backend->step_us * k, "decode steps", error))
        return -1;
    step_time_learn(backend, clock_mono_us() - begun, k);
    if (results_read(backend, k, out, error))
        return -1;
    out->decode_us = clock_mono_us() - begun;
    return 0;
}
