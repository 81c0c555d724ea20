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
    ENCODING_STEPS = 2, /* an encoding takes about so many steps */
    AHEAD_ROWS = 32,    /* so many rows are not all about to end */
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
    struct memory_call *m = &backend->memory.calls[backend_call_next(backend)];

    slot->state = SLOT_RUNNING;
    for (int32_t i = 0; i < slot->row_count; i++) {
        struct step_join *join = &m->joins[backend->join_count++];
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
    if (backend->call_count) { /* the device waits, behind the steps under way */
        status = cudaStreamWaitEvent(backend->decode, batch->done, 0);
        if (status != cudaSuccess)
            return backend_fail(backend, status, "waiting for an encoding", error);
    } else if (backend_wait(backend, batch->done, 0.0, "encoding", error)) {
        return -1;
    }
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

/* Is the device to be told of the next call, too, before this one's end is waited for? What the
 * host does between two calls then costs nothing. A row that ends by an EOS in the one is led
 * through the other for nothing, so not where it might be the only one, unless a kernel that finds
 * all rows ended leaves at once. (One that the host stops is led through it in any case.) */
static bool ahead_wanted(const struct backend *backend, int32_t k)
{
    const struct backend_call *call = &backend->calls[backend->call_first];
    int32_t flags = 0;

    if (backend->call_count != 1 || call->groups || k != backend->k_last || !backend->active_count)
        return false;
    for (int32_t i = 0; i < backend->active_count; i++) {
        const struct backend_row *row = &backend->rows[backend->active[i]];

        if (backend->slots[row->slot].num_beams > 1)
            return false;
        flags |= row->flags;
    }
    return backend->active_count >= AHEAD_ROWS ||
           backend_graphs_fused(backend, backend->active_count, backend_rows_kind(flags));
}

int backend_step(struct backend *backend, int32_t k, struct engine_output *out, struct error *error)
{
    cudaError_t status;
    bool ahead;

    memset(out, 0, sizeof *out);
    if (backend->failed)
        return error_set(error, "%s", backend->failure);
    status = cudaSetDevice(backend->device);
    if (status != cudaSuccess)
        return backend_fail(backend, status, "choosing the device", error);
    if (backend_calls_forget(backend, error) || batches_join(backend, k, &out->encode_us, error))
        return -1;
    if (!backend->call_count) {
        if (!backend->active_count)
            return 0;
        if (backend_call_begin(backend, k, error))
            return -1;
    }
    ahead = ahead_wanted(backend, k);
    backend->k_last = k;
    if (ahead && backend_call_begin(backend, k, error))
        return -1;
    return backend_call_end(backend, out, error);
}
