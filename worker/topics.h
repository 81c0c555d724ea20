/* SPDX-License-Identifier: MIT
 *
 * topics: do the topics that a worker reads and writes exist, and with how many partitions. Asks
 * the brokers and waits for them; intake thread only.
 */
#ifndef PGPT_WORKER_TOPICS_H
#define PGPT_WORKER_TOPICS_H

#include <librdkafka/rdkafka.h>

#include "worker/config.h"

/* The least number of partitions of the topics that a worker writes a request's records to; -1 when
 * one of all the topics is missing or nobody answers, with a reason that names it. */
int32_t topics_outputs(rd_kafka_t *client, const struct config *config,
                       struct error *reason) PGPT_MUST_CHECK;

#endif
