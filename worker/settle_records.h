/* SPDX-License-Identifier: MIT
 *
 * settle_records: what a job leaves behind, produced into the open transaction of settle's
 * producer. Used by the settle thread alone.
 */
#ifndef PGPT_WORKER_SETTLE_RECORDS_H
#define PGPT_WORKER_SETTLE_RECORDS_H

#include <librdkafka/rdkafka.h>

#include "schema/codec.h"
#include "worker/assignment.h"
#include "worker/config.h"

struct settle_records {
    const struct config *config;
    struct codec *codec;
    struct buffer buffer;
    rd_kafka_t *producer;   /* settle's; changes when it is recreated */
    int timeout_ms;         /* how long a full queue may take */
    size_t dead_letter_max; /* what the DLQ topic accepts, as far as is known */
};

/* The records of one job, by its outcome. */
int settle_records_job(struct settle_records *records, struct job *job,
                       struct error *error) PGPT_MUST_CHECK;
/* The brokers refused a dead letter as too large: later ones are cut further. */
void settle_records_cut_further(struct settle_records *records);
/* One JobIndex a part: the jobs of that partition that have an id and were no duplicates. */
int settle_records_index(struct settle_records *records, const struct assignment_part *part,
                         const struct job_list *jobs, struct error *error) PGPT_MUST_CHECK;

#endif
