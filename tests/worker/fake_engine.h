/* SPDX-License-Identifier: MIT
 *
 * fake_engine: a test double of kernels/engine.h. It runs no model: tokens are a function of the
 * request alone (source, seed where it samples, sequence, position), so replays are identical as
 * they are with a real engine, and steps take the time they are told to. It reads sizes and token
 * ids from the model directory and ends the process on misuse of the seam (calls from two threads
 * at once, unknown slots, rows over the limit). Environment:
 * PGPT_FAKE_ENGINE="rows=64,step_us=200,encode_us=300,length=20,seed=1": delays are drawn between 0
 * and twice these, lengths about `length` tokens; slow=N makes requests for 200 tokens and more
 * take N steps a token.
 */
#ifndef PGPT_TESTS_WORKER_FAKE_ENGINE_H
#define PGPT_TESTS_WORKER_FAKE_ENGINE_H

#include "kernels/engine.h"

/* For unit tests; they win over the environment and are read at each call. Any thread. */
struct fake_engine_control {
    _Atomic int32_t rows;          /* at the next engine_open(); 0 = the environment's */
    _Atomic int32_t memory_jobs;   /* jobs that memory is there for; 0 = no limit */
    _Atomic int32_t step_us;       /* exactly this long; 0 = the environment's */
    _Atomic int32_t length;        /* every sequence exactly this long; 0 = by hash */
    _Atomic int32_t fail_in_steps; /* engine_step() fails at the Nth call from now; 0 = never */
    _Atomic bool holds;            /* engine_step() does not come back */
    /* What was seen. */
    _Atomic int32_t most_rows, most_jobs, stopped_sequences;
};
extern struct fake_engine_control fake_engine_control;

#endif
