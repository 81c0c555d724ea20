/* SPDX-License-Identifier: MIT
 *
 * engines: does every worker of the group run the same engine? Owners commit their engine_id with
 * their ledgers; the brokers are asked for all of them now and then, waiting a second at most for
 * the answer. Another engine_id on an owned partition is a metric and a warning: a job that moves
 * between the two is not replayed byte for byte. Intake thread only.
 */
#ifndef PGPT_WORKER_ENGINES_H
#define PGPT_WORKER_ENGINES_H

#include "worker/pipeline.h"

struct engines; /* opaque: has a client of its own */

struct engines *engines_create(struct pipeline *pipeline, struct error *error) PGPT_MUST_CHECK;
void engines_destroy(struct engines *engines); /* NULL is allowed */

/* Asks again when it is time. */
void engines_review(struct engines *engines, int64_t now_mono_us);

#endif
