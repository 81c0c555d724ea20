/* SPDX-License-Identifier: MIT
 *
 * output: records as JSON with the wire contract's field names, JSON lines on standard output, and
 * figures for people. The JSON makers return NULL without memory. One thread prints.
 */
#ifndef PGPT_PRODUCER_OUTPUT_H
#define PGPT_PRODUCER_OUTPUT_H

#include <jansson.h>

#include "producer/client.h"

json_t *output_text(const struct text *text); /* what is no UTF-8: "hex:..." */
json_t *output_request(const struct generation_request *request);
json_t *output_result(const struct generation_result *result);
json_t *output_piece(const struct follow_event *event);

/* Prints and releases it; one line, at once. NULL is a lack of memory. */
void output_line(json_t *json);
/* Add to an array, to an object; they take the value over. */
void output_add(json_t *array, json_t *value);
void output_set(json_t *object, const char *key, json_t *value);
/* True when something is missing in what was printed; the reason was told. */
bool output_lost(void);

/* "870 us", "12.3 ms", "4.56 s". */
void output_duration(double us, char out[32]);

#endif
