/* SPDX-License-Identifier: MIT
 *
 * health: is the worker alive, is it ready, and if not, why. Stages report; http and main read. A
 * worker is never ready while it consumes nothing. Any thread may call.
 */
#ifndef PGPT_WORKER_HEALTH_H
#define PGPT_WORKER_HEALTH_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "kernels/base/error.h"

struct health; /* opaque: has a lock */

/* Each is a reason of its own not to be ready; all start as blocked but the last four. */
enum health_gate {
    HEALTH_ENGINE,     /* model loaded */
    HEALTH_CONTROL,    /* control records read to their end */
    HEALTH_ASSIGNMENT, /* an assignment was received, its offsets and index were read */
    HEALTH_TOPICS,     /* topics exist with matching partition counts */
    HEALTH_DLQ_LIMIT,  /* too many messages dead-lettered */
    HEALTH_OFFSETS,    /* an offset was out of range */
    HEALTH_COMMITS,    /* transactions have failed for long */
    HEALTH_DRAINING,   /* SIGTERM was received */
    HEALTH_GATE_COUNT
};

/* Threads that must show progress; one that has not for its limit makes /healthz fail
 * and, soon after, the main thread end the process. */
enum health_beat {
    HEALTH_BEAT_INTAKE,
    HEALTH_BEAT_PREPARE, /* of all its threads, the one that is longest at its job */
    HEALTH_BEAT_TEXT,    /* the engine's thread waits for it: the cause is named first */
    HEALTH_BEAT_ENGINE,
    HEALTH_BEAT_SETTLE,
    HEALTH_BEAT_COUNT
};

struct health *health_create(int64_t stall_limit_us);
void health_destroy(struct health *health);

void health_block(struct health *health, enum health_gate gate, const char *reason);
void health_clear(struct health *health, enum health_gate gate);
/* Ready when no gate is blocked; reasons (one a line) otherwise. */
bool health_ready(struct health *health, char *reasons, size_t reasons_size);

/* now_mono_us 0: it has nothing to do. */
void health_beat(struct health *health, enum health_beat beat, int64_t now_mono_us);
/* For a thread that beats before each call, when no call of it may last so long; the stall limit
 * stays the most. Before the thread starts. */
void health_limit(struct health *health, enum health_beat beat, int64_t limit_us);
bool health_alive(struct health *health, int64_t now_mono_us, char *reason, size_t reason_size);

/* A fatal error: the process shall exit non-zero; the first message is kept. */
void health_fail(struct health *health, const char *format, ...) PGPT_PRINTF(2, 3);
bool health_failed(struct health *health, char *reason, size_t reason_size);

#endif
