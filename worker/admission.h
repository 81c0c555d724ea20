/* SPDX-License-Identifier: MIT
 *
 * admission: one record of the requests topic becomes a job and goes to the stage it belongs to:
 * prepare when it is to run; settle when it cannot be decoded, is poison or a duplicate. Intake
 * thread only.
 */
#ifndef PGPT_WORKER_ADMISSION_H
#define PGPT_WORKER_ADMISSION_H

#include <librdkafka/rdkafka.h>

#include "worker/assignment.h"
#include "worker/pipeline.h"

struct admission; /* opaque: a decoder and the window of dead letters */

struct admission *admission_create(struct pipeline *pipeline, struct error *error) PGPT_MUST_CHECK;
void admission_destroy(struct admission *admission); /* NULL is allowed */

/* The bounds on what a worker has read and not yet committed, in jobs and in bytes, with
 * hysteresis. Any thread. */
bool admission_is_full(const struct config *config, bool was_full);

enum admission_status {
    ADMISSION_OK,
    ADMISSION_RETRY, /* no memory, or a registry that does not answer: the same record again later
                      */
    ADMISSION_LIMIT  /* done, but too many of the last records were dead letters */
};
enum admission_status admission_run(struct admission *admission, const rd_kafka_message_t *message,
                                    const struct assignment_admission *answer) PGPT_MUST_CHECK;

#endif
