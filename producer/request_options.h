/* SPDX-License-Identifier: MIT
 *
 * request_options: the fields of a generation request as options, shared by the commands that send
 * requests. Ranges are the worker's to judge: it names every bad field in the result.
 */
#ifndef PGPT_PRODUCER_REQUEST_OPTIONS_H
#define PGPT_PRODUCER_REQUEST_OPTIONS_H

#include "producer/options.h"
#include "schema/records.h"

enum { REQUEST_OPTIONS_MAX = 32, REQUEST_SOURCE_TOKENS_MAX = 4096 };

/* Options point into it: it must stay where it is. */
struct request_options {
    struct option table[REQUEST_OPTIONS_MAX];
    struct generation_request request; /* what the options say, without job_id and prompt */
    const char *language, *author, *tenant, *model, *source_tokens;
    double temperature, top_p, repetition_penalty, length_penalty;
    int64_t deadline_us; /* from the submit on */
    struct option_list stop, metadata;
    struct text stop_texts[OPTION_LIST_MAX];
    struct text_pair metadata_pairs[OPTION_LIST_MAX];
    int32_t tokens[REQUEST_SOURCE_TOKENS_MAX];
};

void request_options_init(struct request_options *options); /* defaults of the contract */
/* After parsing: fills options->request. -1 with the reason. */
int request_options_finish(struct request_options *options, struct error *error) PGPT_MUST_CHECK;
/* One request: a copy with id, prompt, creation time and deadline. The texts must outlive it. */
struct generation_request request_options_make(const struct request_options *options,
                                               const char *job_id, struct text prompt,
                                               int64_t now_us);

#endif
