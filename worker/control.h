/* SPDX-License-Identifier: MIT
 *
 * control: reads all of pgpt.control (every worker does, without a group) and remembers cancelled
 * job ids, at most cancel.max_ids, oldest out and counted. It has read to the end before intake
 * admits its first job, and later no completed job is published before the end of the log that was
 * asked for after its request was read has been reached: so a cancel sent before its request, or
 * while no worker ran, counts, also where the brokers answer this reader later than another.
 */
#ifndef PGPT_WORKER_CONTROL_H
#define PGPT_WORKER_CONTROL_H

#include "worker/pipeline.h"

struct control *control_create(struct pipeline *pipeline, struct error *error) PGPT_MUST_CHECK;
int control_start(struct control *control, struct error *error) PGPT_MUST_CHECK;
void control_stop(struct control *control);
void control_destroy(struct control *control); /* NULL is allowed */

/* control_is_cancelled(), control_look(), control_knows(): worker/pipeline.h, any thread.
 * HEALTH_CONTROL clears at the end, and is blocked while results wait for long. */
bool control_caught_up(const struct control *control);

#endif
