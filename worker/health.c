/* SPDX-License-Identifier: MIT */
#include "worker/health.h"

#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "worker/metrics.h"

enum { REASON_BYTES = 256 };

struct health {
    pthread_mutex_t lock;
    bool blocked[HEALTH_GATE_COUNT];
    char reasons[HEALTH_GATE_COUNT][REASON_BYTES];
    _Atomic int64_t beats[HEALTH_BEAT_COUNT]; /* 0 = that thread has not begun */
    int64_t limits_us[HEALTH_BEAT_COUNT];
    _Atomic bool failed;
    char failure[512];
};

static const char *const beat_names[HEALTH_BEAT_COUNT] = {"intake", "prepare", "text", "engine",
                                                          "settle"};

static const enum metric gate_metrics[HEALTH_GATE_COUNT] = {
    [HEALTH_ENGINE] = METRIC_NOT_READY_ENGINE,
    [HEALTH_CONTROL] = METRIC_NOT_READY_CONTROL,
    [HEALTH_ASSIGNMENT] = METRIC_NOT_READY_ASSIGNMENT,
    [HEALTH_TOPICS] = METRIC_NOT_READY_TOPICS,
    [HEALTH_DLQ_LIMIT] = METRIC_NOT_READY_DLQ_LIMIT,
    [HEALTH_OFFSETS] = METRIC_NOT_READY_OFFSETS,
    [HEALTH_COMMITS] = METRIC_NOT_READY_COMMITS,
    [HEALTH_DRAINING] = METRIC_NOT_READY_DRAINING,
};

struct health *health_create(int64_t stall_limit_us)
{
    static const char *const at_first[HEALTH_GATE_COUNT] = {
        [HEALTH_ENGINE] = "the model is not loaded yet",
        [HEALTH_CONTROL] = "control records are not read yet",
        [HEALTH_ASSIGNMENT] = "no partition is assigned yet",
        [HEALTH_TOPICS] = "the topics are not checked yet"};
    struct health *h = calloc(1, sizeof *h);

    if (!h)
        return NULL;
    pthread_mutex_init(&h->lock, NULL);
    for (int beat = 0; beat < HEALTH_BEAT_COUNT; beat++)
        h->limits_us[beat] = stall_limit_us;
    for (int gate = 0; gate < HEALTH_GATE_COUNT; gate++)
        if (at_first[gate])
            health_block(h, (enum health_gate)gate, at_first[gate]);
    return h;
}

void health_destroy(struct health *h)
{
    if (!h)
        return;
    pthread_mutex_destroy(&h->lock);
    free(h);
}

/* Under the lock. */
static void gate_set(struct health *h, enum health_gate gate, bool blocked)
{
    bool ready = true;

    h->blocked[gate] = blocked;
    metrics_set(gate_metrics[gate], blocked);
    for (int i = 0; i < HEALTH_GATE_COUNT; i++)
        ready = ready && !h->blocked[i];
    metrics_set(METRIC_READY, ready);
}

void health_block(struct health *h, enum health_gate gate, const char *reason)
{
    pthread_mutex_lock(&h->lock);
    gate_set(h, gate, true);
    snprintf(h->reasons[gate], REASON_BYTES, "%s", reason);
    pthread_mutex_unlock(&h->lock);
}

void health_clear(struct health *h, enum health_gate gate)
{
    pthread_mutex_lock(&h->lock);
    gate_set(h, gate, false);
    pthread_mutex_unlock(&h->lock);
}

bool health_ready(struct health *h, char *reasons, size_t reasons_size)
{
    size_t size = 0;
    bool ready = true;

    if (reasons_size)
        reasons[0] = '\0';
    pthread_mutex_lock(&h->lock);
    for (int gate = 0; gate < HEALTH_GATE_COUNT; gate++) {
        if (!h->blocked[gate])
            continue;
        ready = false;
        if (size < reasons_size)
            size += (size_t)snprintf(reasons + size, reasons_size - size, "%s\n", h->reasons[gate]);
    }
    pthread_mutex_unlock(&h->lock);
    return ready;
}

void health_beat(struct health *h, enum health_beat beat, int64_t now_mono_us)
{
    atomic_store_explicit(&h->beats[beat], now_mono_us, memory_order_relaxed);
}

void health_limit(struct health *h, enum health_beat beat, int64_t limit_us)
{
    if (limit_us < h->limits_us[beat])
        h->limits_us[beat] = limit_us;
}

bool health_alive(struct health *h, int64_t now_mono_us, char *reason, size_t reason_size)
{
    for (int beat = 0; beat < HEALTH_BEAT_COUNT; beat++) {
        int64_t last = atomic_load_explicit(&h->beats[beat], memory_order_relaxed);

        if (last && now_mono_us - last > h->limits_us[beat]) {
            snprintf(reason, reason_size, "the %s thread has made no progress for %lld ms\n",
                     beat_names[beat], (long long)(now_mono_us - last) / 1000);
            return false;
        }
    }
    return !health_failed(h, reason, reason_size);
}

void health_fail(struct health *h, const char *format, ...)
{
    va_list args;

    pthread_mutex_lock(&h->lock);
    if (!atomic_load(&h->failed)) {
        va_start(args, format);
        vsnprintf(h->failure, sizeof h->failure, format, args);
        va_end(args);
        atomic_store(&h->failed, true);
    }
    pthread_mutex_unlock(&h->lock);
}

bool health_failed(struct health *h, char *reason, size_t reason_size)
{
    if (!atomic_load(&h->failed))
        return false;
    pthread_mutex_lock(&h->lock);
    snprintf(reason, reason_size, "%s", h->failure);
    pthread_mutex_unlock(&h->lock);
    return true;
}
