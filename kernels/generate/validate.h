/* SPDX-License-Identifier: MIT
 *
 * validate: a request's fields against the wire contract's ranges, the model's limits and its
 * tokens. The problems name every bad field, its value and its range, separated by "; ". Pure
 * functions; any thread may call.
 */
#ifndef PGPT_KERNELS_GENERATE_VALIDATE_H
#define PGPT_KERNELS_GENERATE_VALIDATE_H

#include "kernels/engine.h"
#include "kernels/generate/generation.h"
#include "kernels/text/prompt.h"

#ifdef __cplusplus
extern "C" {
#endif

struct validate_problems {
    char message[4096]; /* UTF-8, NUL-terminated; ends in "..." when cut */
    size_t size;
    int32_t count;
};

/* Adds one problem: "FIELD: value and range". For readers of other formats than Avro, whose fields
 * can have wrong types. */
void validate_problem(struct validate_problems *problems, const char *format, ...)
    PGPT_PRINTF(2, 3);

/* model_name: what `model` may be beside "". Adds to problems (zeroed by the caller). The prompt's
 * length in tokens is checked by generation_prepare(). */
void generation_validate(const struct generation_request *request,
                         const struct engine_limits *limits, const struct prompt_codec *codec,
                         const char *model_name, struct validate_problems *problems);

/* Validates and makes the encoder input: *source (arena, or the request's source_tokens). Returns
 * its length; -1 when the request is invalid (problems->count > 0) or memory is out (count == 0,
 * the message says so). */
int32_t generation_prepare(const struct generation_request *request,
                           const struct engine_limits *limits, const struct prompt_codec *codec,
                           const char *model_name, struct arena *arena, const int32_t **source,
                           struct validate_problems *problems) PGPT_MUST_CHECK;

#ifdef __cplusplus
}
#endif
#endif
