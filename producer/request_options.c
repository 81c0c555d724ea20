/* SPDX-License-Identifier: MIT */
#include "producer/request_options.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

void request_options_init(struct request_options *o)
{
    struct generation_request *r = &o->request;

    memset(o, 0, sizeof *o);
    generation_request_init(r);
    o->temperature = r->temperature;
    o->top_p = r->top_p;
    o->repetition_penalty = r->repetition_penalty;
    o->length_penalty = r->length_penalty;
    const struct option rows[] = {
        {"to", '\0', OPTION_TEXT, &o->language, "LANGUAGE", "target language: en or ru", 0, 0,
         NULL},
        {"author", '\0', OPTION_TEXT, &o->author, "NAME", "author token, e.g. author_3", 0, 0,
         NULL},
        {"max-length", '\0', OPTION_INT, &r->max_length, "N", "most new tokens (128)", 0, 0, NULL},
        {"min-length", '\0', OPTION_INT, &r->min_length, "N", "fewest new tokens (0)", 0, 0, NULL},
        {"sample", '\0', OPTION_FLAG, &r->do_sample, NULL, "sample instead of the most probable", 0,
         0, NULL},
        {"temperature", '\0', OPTION_REAL, &o->temperature, "X", "of sampling (1)", 0, 0, NULL},
        {"top-k", '\0', OPTION_INT, &r->top_k, "N", "sample among the N most probable (0 = all)", 0,
         0, NULL},
        {"top-p", '\0', OPTION_REAL, &o->top_p, "X", "sample among this share (1 = all)", 0, 0,
         NULL},
        {"seed", '\0', OPTION_LONG, &r->seed, "N", "of sampling (made from the job id)", 0, 0,
         &r->has_seed},
        {"repetition-penalty", '\0', OPTION_REAL, &o->repetition_penalty, "X",
         "against repeats (1 = none)", 0, 0, NULL},
        {"beams", '\0', OPTION_INT, &r->num_beams, "N", "beams (1 = no beam search)", 0, 0, NULL},
        {"length-penalty", '\0', OPTION_REAL, &o->length_penalty, "X", "of beams (1)", 0, 0, NULL},
        {"early-stopping", '\0', OPTION_FLAG, &r->early_stopping, NULL,
         "stop when enough beams are finished", 0, 0, NULL},
        {"sequences", 'n', OPTION_INT, &r->num_return_sequences, "N", "sequences returned (1)", 0,
         0, NULL},
        {"stop", '\0', OPTION_LIST, &o->stop, "TEXT", "the text ends before it; may be repeated", 0,
         0, NULL},
        {"stream", '\0', OPTION_FLAG, &r->stream, NULL, "send chunks while generating", 0, 0, NULL},
        {"stream-interval", '\0', OPTION_INT, &r->stream_interval, "N", "tokens a chunk (1)", 0, 0,
         NULL},
        {"priority", '\0', OPTION_INT, &r->priority, "N", "-10..10, higher first (0)", 0, 0, NULL},
        {"deadline", '\0', OPTION_DURATION, &o->deadline_us, "TIME",
         "the job expires this long after the submit", 0, 0, &r->has_deadline},
        {"tenant", '\0', OPTION_TEXT, &o->tenant, "NAME", "who shares fairly with whom", 0, 0,
         NULL},
        {"model", '\0', OPTION_TEXT, &o->model, "NAME", "model (the worker's)", 0, 0, NULL},
        {"metadata", '\0', OPTION_LIST, &o->metadata, "KEY=VALUE",
         "copied to the result; may be repeated", 0, 0, NULL},
        {"source-tokens", '\0', OPTION_TEXT, &o->source_tokens, "N,N,...",
         "encoder input as token ids instead of a text", 0, 0, NULL},
        {0}};

    _Static_assert(sizeof rows / sizeof *rows <= REQUEST_OPTIONS_MAX, "the table is too small");
    memcpy(o->table, rows, sizeof rows);
}

static struct text text_of(const char *string)
{
    return string ? (struct text){string, strlen(string)} : (struct text){"", 0};
}

static int split_metadata(struct request_options *o, struct error *error)
{
    for (size_t i = 0; i < o->metadata.count; i++) {
        const char *item = o->metadata.items[i];
        char *equals = strchr(item, '=');

        if (!equals || equals == item)
            return error_set(error, "--metadata %s: must be key=value", item);
        *equals = '\0'; /* it lies in argv, which is ours */
        o->metadata_pairs[i].key = (struct text){item, (size_t)(equals - item)};
        o->metadata_pairs[i].value = text_of(equals + 1);
    }
    o->request.metadata = o->metadata_pairs;
    o->request.metadata_count = o->metadata.count;
    return 0;
}

static int split_tokens(struct request_options *o, struct error *error)
{
    const char *at = o->source_tokens;
    size_t count = 0;

    if (!at)
        return 0;
    for (;;) {
        char *end;
        long value;

        errno = 0;
        value = strtol(at, &end, 10);
        if (end == at || errno || value < 0 || value > INT32_MAX || (*end && *end != ','))
            return error_set(error, "--source-tokens %s: must be token ids separated by commas",
                             o->source_tokens);
        if (count == REQUEST_SOURCE_TOKENS_MAX)
            return error_set(error, "--source-tokens: at most %d", REQUEST_SOURCE_TOKENS_MAX);
        o->tokens[count++] = (int32_t)value;
        if (!*end)
            break;
        at = end + 1;
    }
    o->request.has_source_tokens = true;
    o->request.source_tokens = o->tokens;
    o->request.source_token_count = count;
    return 0;
}

int request_options_finish(struct request_options *o, struct error *error)
{
    struct generation_request *r = &o->request;

    r->target_language = text_of(o->language);
    r->author = text_of(o->author);
    r->tenant = text_of(o->tenant);
    r->model = text_of(o->model);
    r->temperature = (float)o->temperature;
    r->top_p = (float)o->top_p;
    r->repetition_penalty = (float)o->repetition_penalty;
    r->length_penalty = (float)o->length_penalty;
    for (size_t i = 0; i < o->stop.count; i++)
        o->stop_texts[i] = text_of(o->stop.items[i]);
    r->stop = o->stop_texts;
    r->stop_count = o->stop.count;
    return split_metadata(o, error) || split_tokens(o, error) ? -1 : 0;
}

struct generation_request request_options_make(const struct request_options *o, const char *job_id,
                                               struct text prompt, int64_t now_us)
{
    struct generation_request request = o->request;

    request.job_id = text_of(job_id);
    request.prompt = prompt;
    request.created_at_us = now_us;
    if (request.has_deadline)
        request.deadline_us = now_us + o->deadline_us;
    return request;
}
