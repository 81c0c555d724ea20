/* SPDX-License-Identifier: MIT
 *
 * kafka_client: what all of the worker's Kafka clients share: their configuration from the settings
 * (kafka.* passes through), log lines, fatal errors that fail the worker, and error classes.
 */
#ifndef PGPT_WORKER_KAFKA_CLIENT_H
#define PGPT_WORKER_KAFKA_CLIENT_H

#include <librdkafka/rdkafka.h>
#include <stdbool.h>

#include "kernels/base/arena.h"
#include "worker/config.h"
#include "worker/health.h"

/* A configuration with brokers, client.id "<worker>-<role>", logging and the pass-through settings.
 * `settings` are name, value pairs ended by NULL; the guarantees rest on them, so they win over the
 * pass-through. NULL with the reason. */
struct kafka_client_options {
    const struct config *config;
    struct health *health; /* fatal errors go here */
    const char *role;      /* "intake", "settle", ...; a literal */
    const char *const *settings;
    void *opaque;
};
rd_kafka_conf_t *kafka_client_conf(const struct kafka_client_options *options,
                                   struct error *error) PGPT_MUST_CHECK;

/* Makes the client; takes conf in any case. */
rd_kafka_t *kafka_client_new(rd_kafka_type_t type, rd_kafka_conf_t *conf,
                             struct error *error) PGPT_MUST_CHECK;

/* True for a message's error that says that its client is broken for good, such as a member whose
 * group's rights were taken away; the worker fails then. Consumers get these by poll alone. */
bool kafka_client_broken(rd_kafka_t *client, rd_kafka_resp_err_t code);

/* What may be done after a failed transactional call. */
enum kafka_class {
    KAFKA_OK,
    KAFKA_ABORT,         /* abort the transaction, run the same jobs in a new one */
    KAFKA_INDETERMINATE, /* nobody knows: recreate the producer and read what was committed */
    KAFKA_FENCED,        /* by another producer of its name, or by its transaction's timeout */
    KAFKA_FATAL          /* broken: the worker must end */
};
/* Takes the error (NULL is KAFKA_OK), logs it with the call's name. */
enum kafka_class kafka_client_classify(rd_kafka_error_t *error, const char *call);

/* traceparent and tracestate as headers of a record; NULL when both are empty (or without memory).
 */
rd_kafka_headers_t *kafka_client_trace_headers(struct text traceparent, struct text tracestate);

/* Partitions of a topic, or -1 when it is missing or the brokers do not answer. */
int32_t kafka_client_partitions(rd_kafka_t *client, const char *topic, int timeout_ms);

#endif
