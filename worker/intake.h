/* SPDX-License-Identifier: MIT
 *
 * intake: the consumer of requests. One thread polls, takes partitions over and gives them up,
 * turns records into jobs and pushes them to prepare (or, when there is nothing to run, to settle).
 * It never stops polling: when the worker is full it pauses partitions, with hysteresis.
 */
#ifndef PGPT_WORKER_INTAKE_H
#define PGPT_WORKER_INTAKE_H

#include "worker/pipeline.h"

struct intake *intake_create(struct pipeline *pipeline, struct error *error) PGPT_MUST_CHECK;
int intake_start(struct intake *intake, struct error *error) PGPT_MUST_CHECK;
/* Admits nothing more, keeps polling and its partitions. Any thread. */
void intake_drain(struct intake *intake);
/* Gives the partitions up in order (settle must still run), leaves the group, joins the thread. */
void intake_stop(struct intake *intake);
/* Destroys the consumer: call it when settle has stopped. NULL is allowed. */
void intake_destroy(struct intake *intake);

#endif
