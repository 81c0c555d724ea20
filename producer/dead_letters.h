/* SPDX-License-Identifier: MIT
 *
 * dead_letters: reads the dead-letter topic from some time to where it ends now, as read_committed
 * and without a group. One thread.
 */
#ifndef PGPT_PRODUCER_DEAD_LETTERS_H
#define PGPT_PRODUCER_DEAD_LETTERS_H

#include "producer/connection.h"

enum { DEAD_LETTER_HEADERS_MAX = 64 };

/* One record; everything points into the message and lives as long as the call. Headers that are
 * missing are empty texts, numbers -1. */
struct dead_letter {
    int32_t partition;
    int64_t offset;
    int64_t timestamp_us;
    bool has_key;
    struct text key, value;
    struct text topic, error_class, error_message, worker;
    int64_t source_partition, source_offset, attempt, at_us;
    bool cut; /* the value did not fit: these are not the whole original bytes */
    struct text_pair headers[DEAD_LETTER_HEADERS_MAX]; /* all of them, as they are */
    size_t header_count;
};

struct dead_letters {
    struct connection connection;
    rd_kafka_topic_partition_list_t *begin, *end; /* offsets per partition: [begin, end) */
};

/* Fixes the range that dead_letters_read() reads. */
enum client_status dead_letters_open(struct dead_letters *letters,
                                     const struct client_options *options, int64_t since_us,
                                     struct error *error) PGPT_MUST_CHECK;
void dead_letters_close(struct dead_letters *letters);

/* Each record of the range, in the order of a partition; may be called again. `take` returns false
 * to stop. */
enum client_status dead_letters_read(struct dead_letters *letters,
                                     bool (*take)(const struct dead_letter *letter, void *opaque),
                                     void *opaque, struct error *error) PGPT_MUST_CHECK;

#endif
