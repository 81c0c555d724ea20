/* SPDX-License-Identifier: MIT
 *
 * connection: a librdkafka handle configured from client_options, with the last thing that went
 * wrong with the brokers, so that a timeout can say why. Used within the library and by `pgpt
 * topics` and `pgpt dlq`.
 */
#ifndef PGPT_PRODUCER_CONNECTION_H
#define PGPT_PRODUCER_CONNECTION_H

#include <librdkafka/rdkafka.h>

#include "producer/client.h"

struct connection {
    rd_kafka_t *kafka;
    const struct client_options *options;
    void *owner;        /* for the callbacks of the owner */
    char trouble[512];  /* last connection error, "" = none; under librdkafka's own serialising */
    int64_t trouble_us; /* when, monotonic */
};

struct connection_settings {
    rd_kafka_type_t type;
    const char *const *defaults; /* name, value, ..., NULL: properties may change these */
    const char *const *fixed;    /* and these not: the guarantees rest on them */
    void (*on_delivery)(rd_kafka_t *kafka, const rd_kafka_message_t *message, void *connection);
};

/* Fills *connection, which must stay where it is; options must live as long. */
enum client_status connection_open(struct connection *connection,
                                   const struct client_options *options,
                                   const struct connection_settings *settings, void *owner,
                                   struct error *error) PGPT_MUST_CHECK;
void connection_close(struct connection *connection);

const char *connection_topic(const struct connection *connection, enum topic topic);

/* Partitions of a topic: CLIENT_NO_TOPIC when it is missing, CLIENT_UNREACHABLE with the reason. */
enum client_status connection_partitions(struct connection *connection, enum topic topic,
                                         int32_t *count, struct error *error) PGPT_MUST_CHECK;

enum { CONNECTION_REASON_MAX = 1024 };
/* What a code of librdkafka says, with a fatal error's own text, and what can be done about it. */
void connection_reason(const struct connection *connection, rd_kafka_resp_err_t code,
                       char reason[CONNECTION_REASON_MAX]);

/* "...: reason (last connection error)" for a call that failed with `code`. */
enum client_status connection_failed(struct connection *connection, rd_kafka_resp_err_t code,
                                     const char *what, struct error *error);

/* The first offset of each partition in list at or after since_us (or a name of client.h). */
enum client_status connection_offsets(struct connection *connection,
                                      rd_kafka_topic_partition_list_t *list, int64_t since_us,
                                      struct error *error) PGPT_MUST_CHECK;

/* Partitions of `found` without an answer (offset below 0) begin where `ends`, of the same
 * partitions in the same order and taken before, says. */
void connection_fill_ends(rd_kafka_topic_partition_list_t *found,
                          const rd_kafka_topic_partition_list_t *ends);

#endif
