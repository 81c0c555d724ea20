/* SPDX-License-Identifier: MIT
 *
 * job_id: where an id stands in a hash table. Senders choose the ids, so the hash has a secret that
 * is drawn once a process: nobody can send ids that all fall into one bucket. Not for anything that
 * is stored or sent. Any thread.
 */
#ifndef PGPT_WORKER_JOB_ID_H
#define PGPT_WORKER_JOB_ID_H

#include <stdint.h>

uint64_t job_id_hash(const uint8_t id[16]);

#endif
