/* SPDX-License-Identifier: MIT
 *
 * topic_admin: the topics on the brokers: read, compare with the table, create, grow, set. One
 * thread.
 */
#ifndef PGPT_PRODUCER_TOPIC_ADMIN_H
#define PGPT_PRODUCER_TOPIC_ADMIN_H

#include "producer/connection.h"

enum { TOPIC_SETTINGS_MAX = 5, TOPIC_VALUE_MAX = 64 };

struct topic_setting {
    const char *name;
    char value[TOPIC_VALUE_MAX];
};

/* What is there. */
struct topic_state {
    bool exists;
    int32_t partitions, replication;
    struct topic_setting settings[TOPIC_SETTINGS_MAX]; /* those that the table knows */
    size_t setting_count;
};

struct topic_admin {
    struct connection connection;
    rd_kafka_queue_t *queue;
    int32_t brokers; /* after topic_admin_read() */
    struct topic_state topics[TOPIC_COUNT];
};

enum client_status topic_admin_open(struct topic_admin *admin, const struct client_options *options,
                                    struct error *error) PGPT_MUST_CHECK;
void topic_admin_close(struct topic_admin *admin);

enum client_status topic_admin_read(struct topic_admin *admin, struct error *error) PGPT_MUST_CHECK;

/* What the table wants of one topic with this replication; returns how many. */
size_t topic_settings_wanted(enum topic topic, int32_t replication,
                             struct topic_setting settings[TOPIC_SETTINGS_MAX]);

enum client_status topic_admin_create(struct topic_admin *admin, enum topic topic,
                                      int32_t partitions, int32_t replication,
                                      struct error *error) PGPT_MUST_CHECK;
enum client_status topic_admin_grow(struct topic_admin *admin, enum topic topic, int32_t partitions,
                                    struct error *error) PGPT_MUST_CHECK;
/* Sets what the table wants, nothing else. */
enum client_status topic_admin_alter(struct topic_admin *admin, enum topic topic,
                                     int32_t replication, struct error *error) PGPT_MUST_CHECK;

/* One difference for each call of `tell`: what (e.g. "retention.ms"), as wanted, as found.
 * partitions, replication 0 = whatever the requests have. Returns how many. */
typedef void topic_tell(void *opaque, const char *topic, const char *what, const char *wanted,
                        const char *found);
size_t topic_compare(const struct topic_state topics[TOPIC_COUNT],
                     const char *const names[TOPIC_COUNT], int32_t partitions, int32_t replication,
                     topic_tell *tell, void *opaque);

#endif
