/* SPDX-License-Identifier: MIT
 *
 * service: all stages of one worker: made, started from the bottom up, drained from the top down.
 * The main thread's alone.
 */
#ifndef PGPT_WORKER_SERVICE_H
#define PGPT_WORKER_SERVICE_H

#include "worker/pipeline.h"

struct service; /* opaque: the pipeline */

/* Loads the model and makes every stage; /healthz and /readyz answer from then on. config must
 * outlive it. NULL with the reason: *usable is false when the settings or the model will not do. */
struct service *service_create(const struct config *config, bool *usable,
                               struct error *error) PGPT_MUST_CHECK;

/* Starts the stages. Waits for the brokers as long as `stopped` (asked about once a second) returns
 * false. 1 = stopped before that, -1 = failed. */
int service_start(struct service *service, bool (*stopped)(void),
                  struct error *error) PGPT_MUST_CHECK;

/* True when the worker has failed: then it must end at once, without a drain, so that the `open`
 * marks of its partitions tell the next owner of a death. */
bool service_failed(struct service *service, struct error *reason);
/* True while a thread makes no progress; the reason is what /healthz says. */
bool service_stalled(struct service *service, struct error *reason);

/* Admits nothing more, lets running jobs end within worker.drain_ms, commits what is finished,
 * hands the partitions back and leaves the group. */
void service_drain(struct service *service);

void service_destroy(struct service *service); /* after a drain, or when nothing was started */

#endif
