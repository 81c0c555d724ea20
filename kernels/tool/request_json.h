/* SPDX-License-Identifier: MIT
 *
 * request_json: a request as one line of JSON, with the names of schema/GenerationRequest.avsc. A
 * field that is missing takes the wire contract's default; job_id may be missing. Pure functions.
 */
#ifndef PGPT_KERNELS_TOOL_REQUEST_JSON_H
#define PGPT_KERNELS_TOOL_REQUEST_JSON_H

#include "kernels/generate/validate.h"

/* Fills request; its texts lie in the arena. Unknown fields and values of a wrong type are added to
 * problems (zeroed here), and the field keeps its default. -1 when the line is no JSON object or
 * memory is out. */
int request_json_read(const char *line, size_t size, struct arena *arena,
                      struct generation_request *request, struct validate_problems *problems,
                      struct error *error) PGPT_MUST_CHECK;

/* The id of a request without one: the line's number in the first 8 bytes of a UUID, so that the
 * seed that follows from it is the number. out: 37 bytes. */
void request_json_id(int64_t number, char *out);

#endif
