/* SPDX-License-Identifier: MIT
 *
 * generation: what a caller asks for and what comes back, as plain structs whose fields carry the
 * names and meanings of the wire contract (schema/GenerationRequest.avsc, GenerationResult.avsc).
 * The lowest layer that knows texts; the engine below it sees token ids only. All pointers live in
 * an arena that the holder of the struct owns. Reading is safe from any thread.
 */
#ifndef PGPT_KERNELS_GENERATE_GENERATION_H
#define PGPT_KERNELS_GENERATE_GENERATION_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "kernels/base/arena.h"

#ifdef __cplusplus
extern "C" {
#endif

struct generation_request {
    struct text job_id; /* a UUID in text form, 36 characters */
    struct text prompt;
    bool has_source_tokens; /* then they replace the prompt: the whole encoder input */
    const int32_t *source_tokens;
    size_t source_token_count;
    struct text target_language; /* "" or a control token without brackets: "en" is >>en<< */
    struct text author;          /* "" or a control token without brackets: "author_3" */
    int32_t max_length;          /* new tokens, EOS included */
    int32_t min_length;          /* new tokens before EOS may come */
    bool do_sample;
    float temperature;
    int32_t top_k; /* 0 = off */
    float top_p;   /* 1 = off */
    float repetition_penalty;
    float length_penalty;
    int32_t num_beams;
    int32_t num_return_sequences;
    bool early_stopping;
    const struct text *stop;
    size_t stop_count;
    bool has_seed;
    int64_t seed; /* absent: the first 8 bytes of job_id's UUID, big-endian */
    bool stream;
    int32_t stream_interval; /* tokens a chunk */
    int32_t priority;
    bool has_deadline;
    int64_t deadline_us; /* Unix time, microseconds */
    struct text tenant;
    struct text model;
    int64_t created_at_us;
    const struct text_pair *metadata;
    size_t metadata_count;
};

/* Sets every field to the wire contract's default (empty texts point at ""). */
void generation_request_init(struct generation_request *request);

struct generation_sequence {
    struct text text;
    const int32_t *token_ids; /* without start, padding and the EOS that ended it */
    size_t token_count;
    const char *finish_reason; /* eos, length, stop, cancelled, expired; a literal, or decoded */
    double score;              /* see the wire contract; natural logarithms */
};

struct generation_usage {
    int32_t prompt_tokens;
    int32_t generated_tokens; /* counts the EOS that ended a sequence */
};

struct generation_timings {
    int64_t queue_us;       /* request record's timestamp to admission into the batch, at least 0 */
    int64_t encode_us;      /* admission to the end of encoding */
    int64_t first_token_us; /* admission to the first token on the host */
    int64_t decode_us;      /* end of encoding to the last token */
    int64_t total_us;       /* request record's timestamp to the result */
    double batch_size_mean; /* sequences in the steps this job took part in */
};

/* class is "invalid", "poison" or "internal"; both texts empty = no error. */
struct generation_error {
    struct text error_class;
    struct text message;
};

struct generation_result {
    struct text job_id;
    int32_t attempt;    /* 1 for the first run */
    const char *status; /* completed, failed, cancelled, expired */
    const struct generation_sequence *sequences;
    size_t sequence_count;
    struct generation_usage usage;
    struct generation_timings timings;
    struct text model;
    struct text model_version;
    struct text engine_id;
    struct text worker;
    bool has_error;
    struct generation_error error;
    const struct text_pair *metadata;
    size_t metadata_count;
};

#ifdef __cplusplus
}
#endif
#endif
