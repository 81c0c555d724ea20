/* SPDX-License-Identifier: MIT
 *
 * records: the product's Avro records as plain C structs, one for each schema/<Record>.avsc, with
 * the same field names and meanings (the .avsc documents each field and its unit). Generation
 * request and result come from kernels/generate. Pointers live in an arena that the holder owns.
 * Nothing here knows Avro; schema/codec.h turns these into bytes and back.
 */
#ifndef PGPT_SCHEMA_RECORDS_H
#define PGPT_SCHEMA_RECORDS_H

#include "kernels/generate/generation.h"

#ifdef __cplusplus
extern "C" {
#endif

struct generation_chunk {
    struct text job_id;
    int32_t attempt;
    int32_t sequence;    /* 0..num_return_sequences-1 */
    int32_t seq;         /* 0.. within the sequence */
    int32_t token_start; /* index of the chunk's first token in the sequence */
    int64_t text_start;  /* byte offset of the chunk's text in the result's text */
    const int32_t *token_ids;
    size_t token_count;
    struct text text;
    const char *finish_reason; /* NULL while running */
    struct text engine_id;
    int64_t created_at_us;
};

/* state: accepted, started, completed, failed, cancelled, expired */
struct job_event {
    struct text job_id;
    int32_t attempt;
    const char *state;
    int64_t at_us;
    struct text worker;
    struct text tenant;
    struct text model;
    int32_t source_partition;
    int64_t source_offset;
    bool has_usage;
    struct generation_usage usage;
    bool has_timings;
    struct generation_timings timings;
    int64_t accepted_at_us; /* 0 = not yet */
    int64_t started_at_us;  /* 0 = not yet */
    bool dead_lettered;
    bool has_error;
    struct generation_error error;
};

struct job_index_entry {
    uint8_t id[16]; /* the job's UUID as bytes */
    int64_t source_offset;
};

struct job_index {
    int64_t at_us;
    const struct job_index_entry *jobs;
    size_t job_count;
};

struct job_control {
    struct text job_id;
    struct text action; /* "cancel" */
    struct text reason;
    int64_t created_at_us;
};

/* 36 characters, hex in either case, dashes at 8-4-4-4-12. Returns -1 when text is no UUID. */
int uuid_parse(struct text text, uint8_t id[16]);
/* Lower case, 36 characters and a NUL. */
void uuid_format(const uint8_t id[16], char out[37]);

#ifdef __cplusplus
}
#endif
#endif
