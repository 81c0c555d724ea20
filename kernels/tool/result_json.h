/* SPDX-License-Identifier: MIT
 *
 * result_json: a result as one line of JSON, with the names and the order of
 * schema/GenerationResult.avsc. Pure.
 */
#ifndef PGPT_KERNELS_TOOL_RESULT_JSON_H
#define PGPT_KERNELS_TOOL_RESULT_JSON_H

#include "kernels/generate/generation.h"

/* A malloc'ed line without its line feed, *size bytes; NULL when memory is out. */
char *result_json_write(const struct generation_result *result, size_t *size) PGPT_MUST_CHECK;

#endif
