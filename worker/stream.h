/* SPDX-License-Identifier: MIT
 *
 * stream: the producer outside transactions: chunks and live events. Idempotent, retries without
 * end; a fatal error of the client fails the worker. Never waits: when the client's queue is full
 * the caller keeps its chunk and tries again. stream_chunk() and stream_event() are called by one
 * thread at a time (the engine stage's text thread); delivery reports come on a thread of the
 * stream's own.
 */
#ifndef PGPT_WORKER_STREAM_H
#define PGPT_WORKER_STREAM_H

#include "worker/pipeline.h"

struct stream *stream_create(struct pipeline *pipeline, struct error *error) PGPT_MUST_CHECK;
int stream_start(struct stream *stream, struct error *error) PGPT_MUST_CHECK;
/* Flushes for at most worker.drain_ms, then joins the thread. */
void stream_stop(struct stream *stream);
void stream_destroy(struct stream *stream); /* NULL is allowed */

enum stream_status {
    STREAM_SENT,
    STREAM_FULL,  /* the client's queue is full: try again later, whatever the partition */
    STREAM_LATER, /* this partition takes no more for now; others may */
    STREAM_FAILED /* the worker has been failed (health_fail) */
};

/* Sends one chunk of the job, to its request's partition number with its key and trace headers.
 * Adds 1 to job->chunks_unacked; its delivery report takes 1 off and pokes settle at 0. The job
 * must live until then. */
enum stream_status stream_chunk(struct stream *stream, struct job *job,
                                const struct generation_chunk *chunk) PGPT_MUST_CHECK;

/* Sends an `accepted` or `started` event; nobody waits for it, a full queue drops it. */
void stream_event(struct stream *stream, const struct job *job, const char *state, int64_t at_us);

#endif
