/* SPDX-License-Identifier: MIT
 *
 * output: records as JSON with the wire contract's field names, JSON lines on standard output, and
 * figures for people. The JSON makers return NULL without memory.
 */
#ifndef PGPT_PRODUCER_OUTPUT_H
#define PGPT_PRODUCER_OUTPUT_H

#include <jansson.h>

#include "producer/client.h"

json_t *output_text(const struct text *text); /* what is no UTF-8: "hex:..." */
json_t *output_request(const struct generation_request *request);
json_t *output_result(const struct generation_result *result);
json_t *output_piece(const struct follow_event *event);

/* Prints and releases it (NULL is reported); one line, at once. Returns -1 when that failed. */
int output_line(json_t *json);

/* "870 us", "12.3 ms", "4.56 s". */
void output_duration(double us, char out[32]);

#endif
