/* SPDX-License-Identifier: MIT
 *
 * pipeline: what the stages may call on one another; data flows down the list, only numbers flow
 * up. main.c creates each stage, hands every stage this table, starts them from the bottom up and
 * stops them from the top down. The table is constant while threads run; each stage guards itself.
 */
#ifndef PGPT_WORKER_PIPELINE_H
#define PGPT_WORKER_PIPELINE_H

#include "worker/config.h"
#include "worker/job.h"
#include "worker/metrics.h"
#include "worker/scheduler.h"

struct assignment;   /* worker/assignment.h: owned partitions, epochs, ledgers of offsets */
struct intake;       /* worker/intake.h: consumer of requests, rebalances, duplicates, attempts */
struct prepare;      /* worker/prepare.h: validation and tokenising threads */
struct engine_stage; /* worker/engine_stage.h: the engine's thread */
struct stream;       /* worker/stream.h: producer outside transactions: chunks, live events */
struct settle;       /* worker/settle.h: transactions: results, events, index, DLQ, offsets */
struct control;      /* worker/control.h: cancel records */
struct recorder;     /* worker/recorder.h: events into PostgreSQL */
struct http;         /* worker/http.h: metrics and health */
struct health;       /* worker/health.h: ready or not, and why */
struct prompt_codec; /* kernels/text/prompt.h: SentencePiece and control tokens; thread-safe */
struct engine;       /* kernels/engine.h */

struct pipeline {
    const struct config *config;
    struct health *health;
    struct engine *engine;
    const struct prompt_codec *prompts;
    struct assignment *assignment;
    struct intake *intake;
    struct prepare *prepare;
    struct scheduler *scheduler;
    struct engine_stage *engine_stage;
    struct stream *stream;
    struct settle *settle;
    struct control *control;
    struct recorder *recorder;
    struct http *http;
};

/* Down. Each takes ownership of the job. */
void prepare_push(struct prepare *prepare, struct job *job); /* intake -> prepare */
/* Any stage; the outcome is set, unless the job's partition was given up: such a job is dropped
 * once its chunks are acknowledged. */
void settle_push(struct settle *settle, struct job *job);

/* Settle waits for chunks_unacked == 0: called by the delivery report that reached 0. */
void settle_poke(struct settle *settle);

/* Jobs inside the worker from intake to commit: what intake's bounds look at. */
size_t settle_depth(struct settle *settle);
size_t engine_stage_depth(struct engine_stage *stage);
size_t prepare_depth(struct prepare *prepare);

/* True while the job's partition is owned under the job's epoch; else its work is dropped. */
bool assignment_current(const struct assignment *assignment, int32_t partition, uint32_t epoch);

/* A cancel record for this job arrived: marks it wherever it is before settle. False = not here. */
bool engine_stage_cancel(struct engine_stage *stage, const uint8_t id[16]);
/* Was it cancelled before it came? Asked by prepare and by the engine stage before admission, and
 * by settle. */
bool control_is_cancelled(struct control *control, const uint8_t id[16]);
/* A request was read at this time of the monotonic clock: cancels that were acknowledged before it
 * was sent are in the log, and control looks how far that goes. Intake alone, when it admits. */
void control_look(struct control *control, int64_t read_mono_us);
/* True when all these have been applied: settle publishes no completed job before, and is poked. */
bool control_knows(struct control *control, int64_t read_mono_us);

#endif
