/* SPDX-License-Identifier: MIT
 *
 * scheduler: the bounded queue of admitted jobs. The jobs of one priority form a class; the class
 * whose priority plus its oldest job's wait (one level for each ageing_us) is highest goes next, so
 * nothing starves; within a class the tenants take turns, each in its own order of arrival. Every
 * call but scheduler_drop_stale() is O(log n) a job. Owns the jobs it holds. Any thread may call.
 */
#ifndef PGPT_WORKER_SCHEDULER_H
#define PGPT_WORKER_SCHEDULER_H

#include "worker/job.h"

struct scheduler; /* opaque: has a lock */

struct scheduler *scheduler_create(size_t max_jobs, int64_t ageing_us,
                                   struct error *error) PGPT_MUST_CHECK;
void scheduler_destroy(struct scheduler *scheduler); /* destroys the jobs still inside */

/* Takes ownership. The intake pauses before the bound is reached, so a push past it still succeeds
 * (the bound counts what the intake has read); scheduler_depth() is what the intake looks at. */
void scheduler_push(struct scheduler *scheduler, struct job *job, int64_t now_mono_us);

/* Moves up to max_jobs jobs, best first, whose rows (max(num_return_sequences, num_beams)) fit into
 * max_rows, to `out`; stops at the first that does not fit, which so gets its rows in the end. A
 * job with run_alone comes alone and only when engine_idle; until then nothing else is taken
 * either. Waits up to wait_us when the queue is empty. */
void scheduler_take(struct scheduler *scheduler, int32_t max_jobs, int32_t max_rows,
                    bool engine_idle, int64_t wait_us, struct job_list *out);

/* Moves jobs that have expired (deadline <= now) or were cancelled to `out`. */
void scheduler_sweep(struct scheduler *scheduler, int64_t now_wall_us, struct job_list *out);

/* Marks a queued job cancelled (scheduler_sweep returns it). False when it is not queued here. */
bool scheduler_cancel(struct scheduler *scheduler, const uint8_t id[16]);

/* Destroys the queued jobs of a partition whose epoch is not `epoch` (it was revoked or lost). */
void scheduler_drop_stale(struct scheduler *scheduler, int32_t partition, uint32_t epoch);

/* Calls `announce` for at most max_jobs queued jobs that were pushed before `before_mono_us` and
 * have no `accepted` event yet, oldest first, each once; sets accepted_sent. Under the lock: be
 * brief. */
typedef void (*scheduler_announce_fn)(void *user, struct job *job);
void scheduler_announce(struct scheduler *scheduler, int64_t before_mono_us, int32_t max_jobs,
                        scheduler_announce_fn announce, void *user);

size_t scheduler_depth(struct scheduler *scheduler);
void scheduler_wake(struct scheduler *scheduler); /* ends a wait in scheduler_take() early */

#endif
