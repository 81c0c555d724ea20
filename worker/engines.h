/* SPDX-License-Identifier: MIT
 *
 * engines: does every worker of the group run the same engine? Owners commit their engine_id with
 * their ledgers; a thread asks the brokers for all of them every 15 s. Another engine_id on an
 * owned partition is a metric and a warning: a job that moves between the two is not replayed byte
 * for byte. A thread of its own, since an answer that does not come must not keep the intake.
 */
#ifndef PGPT_WORKER_ENGINES_H
#define PGPT_WORKER_ENGINES_H

#include "worker/pipeline.h"

struct engines; /* opaque: has a client and a thread of its own */

struct engines *engines_create(struct pipeline *pipeline, struct error *error) PGPT_MUST_CHECK;
/* Waits for a question under way, two seconds at most. NULL is allowed. */
void engines_destroy(struct engines *engines);

#endif
