/* SPDX-License-Identifier: MIT */
#include <string.h>

#include "kernels/base/clock.h"
#include "kernels/cuda/backend_state.h"
#include "kernels/cuda/check.h"

enum { CALL_US = 100 }; /* of a call are not its steps */

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
    const struct step_join *joins = m->calls[backend_call_next(backend)].joins;

    for (int32_t i = 0; i < backend->join_count; i++) {
        const struct backend_slot *slot = &backend->slots[backend->rows[joins[i].index].slot];
        struct cuda_beam_group *group;

        if (slot->num_beams == 1 || joins[i].index != slot->rows[0])
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
    int32_t *lists = backend->memory.calls[backend_call_next(backend)].lists;
    int32_t *active = lists + 2, *place = active + backend->limits.max_rows;
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
    lists[0] = backend->active_count;
    lists[1] = count;
    backend->active_groups = count;
}

/* Tells the device who joins and who is active, where that has changed. */
static cudaError_t changes_upload(struct backend *backend)
{
    struct backend_memory *m = &backend->memory;
    const struct memory_call *call = &m->calls[backend_call_next(backend)];
    struct step_begin begin;

    if (!backend->join_count && !backend->active_changed)
        return cudaSuccess;
    CUDA_PASS(groups_upload(backend));
    begin.rows = m->rows;
    begin.host_joins = call->joins;
    begin.host_lists = call->lists;
    begin.lists = m->n;
    begin.join_count = backend->join_count;
    begin.list_count = 0;
    if (backend->active_changed) {
        lists_fill(backend);
        /* places and groups are beam searches' */
        begin.list_count =
            backend->active_groups ? 2 + 3 * backend->limits.max_rows : 2 + backend->active_count;
    }
    backend->join_count = 0;
    backend->active_changed = false;
    return step_begin_enqueue(&begin, backend->pdl, backend->decode);
}

/* A row's news as an item; i: its place in the call. Tokens lie in the memory that the device
 * wrote. */
static void item_fill(const struct backend *backend, const struct backend_row *row,
                      const struct step_output *results, int32_t i, int32_t k,
                      struct engine_item *item)
{
    const struct backend_slot *slot = &backend->slots[row->slot];
    int32_t count = results->position[i] - row->position;
    const int32_t *tokens = results->tokens + (size_t)i * (size_t)k;
    bool eos = count > 0 && tokens[count - 1] == backend->limits.eos_token;
    bool at_limit = results->position[i] >= row->max_new;

    memset(item, 0, sizeof *item);
    item->tag = slot->tag;
    item->slot = row->slot;
    item->sequence = row->sequence;
    item->tokens = tokens;
    item->logprobs = results->logprobs + (size_t)i * (size_t)k;
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

/* Is the row still whose it was when the call began, and does it run, as far as the host knows? */
static bool row_lives(const struct backend *backend, const struct call_row *r)
{
    return backend->rows[r->row].slot == r->slot && backend->rows[r->row].running &&
           backend->slots[r->slot].generation == r->generation;
}

static void active_filter(struct backend *backend)
{
    int32_t kept = 0;

    for (int32_t i = 0; i < backend->active_count; i++)
        if (backend->rows[backend->active[i]].running)
            backend->active[kept++] = backend->active[i];
    if (kept != backend->active_count)
        backend->active_changed = true;
    backend->active_count = kept;
}

/* What the device wrote into items, the active list shrunk to the rows that still run. */
static int results_read(struct backend *backend, int32_t index, struct engine_output *out,
                        struct error *error)
{
    const struct backend_call *call = &backend->calls[index];
    const struct step_output *results = &backend->memory.calls[index].out;
    int32_t items = 0, ended = 0, steps = 0;
    int64_t advanced = 0;

    for (int32_t i = 0; i < call->count; i++) {
        struct backend_row *row = &backend->rows[call->rows[i].row];
        struct backend_slot *slot = &backend->slots[call->rows[i].slot];
        int32_t count;

        if (!row_lives(backend, &call->rows[i]))
            continue;
        count = results->position[i] - row->position;
        advanced += count;
        if (count > steps)
            steps = count;
        if (slot->num_beams == 1)
            item_fill(backend, row, results, i, call->k, &backend->items[items++]);
        else if (results->finished[i] && slot->rows[0] == call->rows[i].row && !slot->reported)
            backend->memory.beam_groups[ended++] = call->rows[i].row;
        row->position = results->position[i];
        row->ahead -= call->k;
        row->running = !results->finished[i];
    }
    active_filter(backend);
    out->steps = steps;
    out->rows_mean = steps ? (double)advanced / steps : 0.0;
    if (groups_report(backend, ended, &items, error))
        return -1;
    out->items = backend->items;
    out->item_count = items;
    return 0;
}

enum backend_rows backend_rows_kind(int32_t flags)
{
    return !(flags & CUDA_ROW_FULL)                     ? ROWS_PLAIN
           : (flags & CUDA_ROW_FULL) == CUDA_ROW_SAMPLE ? ROWS_SAMPLED
           : flags & CUDA_ROW_BEAM                      ? ROWS_BEAMS
                                                        : ROWS_FULL;
}

/* keys: positions that an attention of all rows looks at, sources included, at the call's start. */
static void steps_plan(const struct backend *backend, int32_t *k, enum backend_rows *kind,
                       int64_t *keys)
{
    int32_t left = 0, flags = 0;

    *keys = 0;
    for (int32_t i = 0; i < backend->active_count; i++) {
        const struct backend_row *row = &backend->rows[backend->active[i]];

        if (row->max_new - row->position - row->ahead > left)
            left = row->max_new - row->position - row->ahead;
        flags |= row->flags;
        *keys += row->position + row->ahead + backend->slots[row->slot].start.source_len;
    }
    if (*k > left)
        *k = left;
    if (*k > MEMORY_STEPS_MOST)
        *k = MEMORY_STEPS_MOST;
    *kind = backend_rows_kind(flags);
}

/* Notes who steps in the call, and takes those off the active list that will have ended by it. */
static void rows_note(struct backend *backend, struct backend_call *call)
{
    int32_t kept = 0;

    for (int32_t i = 0; i < backend->active_count; i++) {
        struct backend_row *row = &backend->rows[backend->active[i]];
        const struct backend_slot *slot = &backend->slots[row->slot];

        call->rows[i].row = backend->active[i];
        call->rows[i].slot = row->slot;
        call->rows[i].generation = slot->generation;
        row->ahead += call->k;
        if (slot->num_beams > 1 || row->position + row->ahead < row->max_new)
            backend->active[kept++] = backend->active[i];
    }
    if (kept != backend->active_count)
        backend->active_changed = true;
    backend->active_count = kept;
}

int32_t backend_call_next(const struct backend *backend)
{
    return (backend->call_first + backend->call_count) % MEMORY_CALLS;
}

int backend_call_begin(struct backend *backend, int32_t k, struct error *error)
{
    struct backend_memory *m = &backend->memory;
    int32_t index = backend_call_next(backend);
    struct backend_call *call = &backend->calls[index];
    cudaError_t status;
    int64_t keys;
    enum backend_rows kind;
    bool told = false;

    steps_plan(backend, &k, &kind, &keys);
    call->begun_us = clock_mono_us();
    call->k = k;
    call->count = backend->active_count;
    status = changes_upload(backend);
    call->groups = backend->active_groups > 0;
    if (status == cudaSuccess)
        status =
            backend_graphs_run(backend, call->count, kind, k, keys, &m->calls[index].out, &told);
    if (status == cudaSuccess)
        status = backend_encode(backend); /* newcomers, while the device is busy */
    if (status == cudaSuccess && !told)
        status = step_collect_enqueue(m->rows, m->active, call->count, k, m->calls[index].out,
                                      backend->pdl, backend->decode);
    if (status == cudaSuccess)
        status = cudaEventRecord(call->done, backend->decode);
    if (status != cudaSuccess)
        return backend_fail(backend, status, "enqueueing decode steps", error);
    rows_note(backend, call);
    backend->call_count++;
    return 0;
}

/* Waits for the oldest call, which leaves the ring. */
static int call_wait(struct backend *backend, struct error *error)
{
    struct backend_call *call = &backend->calls[backend->call_first];
    int64_t from = call->begun_us > backend->done_us ? call->begun_us : backend->done_us;
    double expected = backend->step_us * call->k - (double)(clock_mono_us() - from);

    if (backend_wait(backend, call->done, expected > 0.0 ? expected : 0.0, "decode steps", error))
        return -1;
    call->took_us = clock_mono_us() - from;
    backend->call_first = (backend->call_first + 1) % MEMORY_CALLS;
    backend->call_count--;
    return 0;
}

int backend_call_end(struct backend *backend, struct engine_output *out, struct error *error)
{
    int32_t index = backend->call_first;
    int64_t begun = backend->calls[index].begun_us, before = backend->done_us;

    if (call_wait(backend, error) || results_read(backend, index, out, error))
        return -1;
    if (out->steps == backend->calls[index].k) /* it did not end early */
        step_time_learn(backend, backend->calls[index].took_us, out->steps);
    backend->done_us = clock_mono_us();
    out->decode_us = backend->done_us - (begun > before ? begun : before);
    return 0;
}

int backend_calls_forget(struct backend *backend, struct error *error)
{
    while (backend->call_count) {
        const struct backend_call *call = &backend->calls[backend->call_first];

        for (int32_t i = 0; i < call->count; i++)
            if (row_lives(backend, &call->rows[i]))
                return 0;
        if (call_wait(backend, error))
            return -1;
    }
    return 0;
}
