/* SPDX-License-Identifier: MIT
 *
 * recorder: projects pgpt.events into PostgreSQL. A consumer group of its own; rows and offsets go
 * into one SQL transaction, so the tables follow the topic exactly once: truncate them all and
 * start again, and they come back the same. While PostgreSQL is away it keeps polling Kafka with
 * its partitions paused and tries again; nothing else in the worker notices. One thread.
 */
#ifndef PGPT_WORKER_RECORDER_H
#define PGPT_WORKER_RECORDER_H

#include "worker/pipeline.h"

/* Uses pipeline->config and ->health alone. */
struct recorder *recorder_create(struct pipeline *pipeline, struct error *error) PGPT_MUST_CHECK;
int recorder_start(struct recorder *recorder, struct error *error) PGPT_MUST_CHECK;
void recorder_stop(struct recorder *recorder);    /* writes what it holds, within seconds */
void recorder_destroy(struct recorder *recorder); /* NULL is allowed */

#endif
