/* SPDX-License-Identifier: MIT
 *
 * control: reads all of pgpt.control (every worker does, without a group) and remembers cancelled
 * job ids, at most cancel.max_ids, oldest out and counted. It has read to the end before intake
 * admits its first job, so a cancel sent before its request, or while no worker ran, counts.
 */
#ifndef PGPT_WORKER_CONTROL_H
#define PGPT_WORKER_CONTROL_H

#include "worker/pipeline.h"

struct control *control_create(struct pipeline *pipeline, struct error *error) PGPT_MUST_CHECK;
int control_start(struct control *control, struct error *error) PGPT_MUST_CHECK;
void control_stop(struct control *control);
void control_destroy(struct control *control); /* NULL is allowed */

/* control_is_cancelled(): worker/pipeline.h, any thread. HEALTH_CONTROL clears at the end. */
bool control_caught_up(const struct control *control);

#endif
