/* SPDX-License-Identifier: MIT
 *
 * load_report: what a load run counted, and how it is told. All latencies count from the moment a
 * job was due, not from when it was sent; `sent` has the other ones for comparison. Owned by the
 * reader thread while the run lasts.
 */
#ifndef PGPT_PRODUCER_LOAD_REPORT_H
#define PGPT_PRODUCER_LOAD_REPORT_H

#include <jansson.h>

#include "producer/latency.h"

struct load_report {
    double rate;
    const char *arrivals; /* "poisson" or "constant" */
    uint64_t planned, sent, acknowledged, refused;
    uint64_t completed, failed, cancelled, expired, unfinished; /* of measured jobs */
    uint64_t tokens, chunks;
    double seconds;           /* from the first measured job being due to the last result */
    struct latency late;      /* sent after due: the sender's own delay */
    struct latency first;     /* due to first chunk */
    struct latency result;    /* due to result */
    struct latency from_sent; /* sent to result: hides what waited before it was sent */
};

json_t *load_report_json(const struct load_report *report);
void load_report_print(const struct load_report *report);

#endif
