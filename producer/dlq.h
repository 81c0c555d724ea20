/* SPDX-License-Identifier: MIT
 *
 * dlq: what the verbs of `pgpt dlq` share. cmd_dlq.c lists and shows, dlq_replay.c sends again.
 */
#ifndef PGPT_PRODUCER_DLQ_H
#define PGPT_PRODUCER_DLQ_H

#include "producer/command.h"
#include "producer/dead_letters.h"
#include "producer/id_map.h"
#include "schema/codec.h"

enum { DLQ_REPLAYS_MAX = 1000000 }; /* requests that one replay may send */

struct dlq {
    struct cli *cli;
    const struct command *command;
    /* options */
    const char *since, *class, *key, *worker;
    int64_t limit, bytes;
    bool all, yes, dry_run;
    struct option_positionals places; /* OFFSET or PARTITION:OFFSET, after the verb */
    /* running */
    struct dead_letters letters;
    uint64_t matched;
    bool *found; /* (places.count) */
    struct codec *codec;
    struct arena *arena;
    struct client *client;
    struct id_map *chosen; /* requests to replay; their entries are malloc'd */
    int32_t partitions;    /* of requests */
    bool full, no_memory;  /* why not all that match could be chosen */
    uint64_t sent, accepted, refused, cut;
    enum client_status send_status;
    struct error error;
};

/* Named by its place, or no place was named, and as the filters say; notes which places were found.
 */
bool dlq_matches(struct dlq *dlq, const struct dead_letter *letter);
/* Tells which named places were not found; returns the exit code that this means. */
int dlq_report_not_found(const struct dlq *dlq);
int dlq_replay(struct dlq *dlq);

#endif
