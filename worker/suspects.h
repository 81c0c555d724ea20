/* SPDX-License-Identifier: MIT
 *
 * suspects: what the intake has read and may not admit yet, and whose turn it is. Suspects of
 * deaths run in rounds: a group of up to SUSPECTS_GROUP_MAX, of any partitions, or single ones one
 * after the other; nothing else is in the worker meanwhile. While a round waits for the worker to
 * get empty, and while it runs, the intake reads on: that is kept here, too.
 *
 * The order, and so the bounds on waiting:
 *   - Between two rounds up to SUSPECTS_BESIDE_MAX others are admitted, first those that were read
 *     during the round. So others wait for one round at most, and suspects for that many others.
 *   - Suspects go in the order of reading, and of one partition at most SUSPECTS_HELD_MAX are read
 *     ahead: a suspect waits for no more of each other partition, nor do others behind them.
 *   - Of one partition single ones go before its groups: they are the older ones.
 *
 * Plain policy: no Kafka, no clock of its own. It owns the messages. Intake thread only.
 */
#ifndef PGPT_WORKER_SUSPECTS_H
#define PGPT_WORKER_SUSPECTS_H

#include <librdkafka/rdkafka.h>

#include "worker/assignment.h"

enum {
    SUSPECTS_GROUP_MAX = 32,
    SUSPECTS_BESIDE_MAX = 64,
    SUSPECTS_HELD_MAX = 128,           /* of one partition */
    SUSPECTS_BYTES_MAX = 16 << 20,     /* of all: from there on they go in smaller steps */
    SUSPECTS_GATHER_US = 200000,       /* for a whole group, unless all suspects are read before */
    SUSPECTS_SINGLE_ROUND_US = 2000000 /* then others have their turn */
};

struct suspects; /* opaque */

struct suspects *suspects_create(struct error *error) PGPT_MUST_CHECK;
void suspects_destroy(struct suspects *suspects); /* NULL is allowed */

/* A record that was begun: true = admit it now; suspects, and others in a round, are to be kept. */
bool suspects_passes(struct suspects *suspects, const struct assignment_admission *answer);
/* Takes ownership of the message. -1 = no memory. */
int suspects_keep(struct suspects *suspects, rd_kafka_message_t *message,
                  const struct assignment_admission *answer, int64_t now_us) PGPT_MUST_CHECK;
/* The partition was given up. */
void suspects_forget(struct suspects *suspects, int32_t partition);

/* No more of the partition shall be read; the caller says whether that is so now. */
bool suspects_has_enough(const struct suspects *suspects, int32_t partition, bool had_enough);
/* Nothing more shall be read at all, until the round goes on. */
bool suspects_is_full(const struct suspects *suspects);
/* Something is kept or runs: the caller reviews, and comes often. */
bool suspects_is_busy(const struct suspects *suspects);

/* Where the rounds stand. `jobs` are in the worker; more_expected: suspects may still be read.
 * Returns the number of marks that are to be committed, one a partition, before
 * suspects_start(). */
int suspects_review(struct suspects *suspects, size_t jobs, bool more_expected, int64_t now_us,
                    struct assignment_mark marks[SUSPECTS_GROUP_MAX]);
/* The marks are committed: the round's records may be admitted. */
void suspects_start(struct suspects *suspects);

/* One that may be admitted now. */
struct suspect {
    rd_kafka_message_t *message;
    struct assignment_admission answer;
};
/* NULL = none; stays the next one until suspects_admitted(), which frees it. */
const struct suspect *suspects_next(struct suspects *suspects);
void suspects_admitted(struct suspects *suspects);

#endif
