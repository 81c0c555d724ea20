/* SPDX-License-Identifier: MIT */
#include "schema/binding.h"

#define COUNT(table) (sizeof(table) / sizeof *(table))

/* A field whose member has the same name; the wire's defaults are set by the record's defaults().
 */
#define FIELD(type, kind, member)                                                                  \
    {                                                                                              \
#member, kind, offsetof(struct type, member), 0, 0, false, NULL                            \
    }
#define REQUIRED(type, kind, member)                                                               \
    {                                                                                              \
#member, kind, offsetof(struct type, member), 0, 0, true, NULL                             \
    }
#define LIST(type, kind, name, member, count)                                                      \
    {                                                                                              \
        name, kind, offsetof(struct type, member), offsetof(struct type, count), 0, false, NULL    \
    }

static void request_defaults(void *record)
{
    generation_request_init(record);
}

static const struct field_binding request_fields[] = {
    REQUIRED(generation_request, BIND_TEXT, job_id),
    REQUIRED(generation_request, BIND_TEXT, prompt),
    {"source_tokens", BIND_OPT_INTS, offsetof(struct generation_request, source_tokens),
     offsetof(struct generation_request, source_token_count),
     offsetof(struct generation_request, has_source_tokens), false, NULL},
    FIELD(generation_request, BIND_TEXT, target_language),
    FIELD(generation_request, BIND_TEXT, author),
    FIELD(generation_request, BIND_INT, max_length),
    FIELD(generation_request, BIND_INT, min_length),
    FIELD(generation_request, BIND_BOOL, do_sample),
    FIELD(generation_request, BIND_FLOAT, temperature),
    FIELD(generation_request, BIND_INT, top_k),
    FIELD(generation_request, BIND_FLOAT, top_p),
    FIELD(generation_request, BIND_FLOAT, repetition_penalty),
    FIELD(generation_request, BIND_FLOAT, length_penalty),
    FIELD(generation_request, BIND_INT, num_beams),
    FIELD(generation_request, BIND_INT, num_return_sequences),
    FIELD(generation_request, BIND_BOOL, early_stopping),
    LIST(generation_request, BIND_TEXTS, "stop", stop, stop_count),
    {"seed", BIND_OPT_LONG, offsetof(struct generation_request, seed), 0,
     offsetof(struct generation_request, has_seed), false, NULL},
    FIELD(generation_request, BIND_BOOL, stream),
    FIELD(generation_request, BIND_INT, stream_interval),
    FIELD(generation_request, BIND_INT, priority),
    {"deadline_us", BIND_OPT_LONG, offsetof(struct generation_request, deadline_us), 0,
     offsetof(struct generation_request, has_deadline), false, NULL},
    FIELD(generation_request, BIND_TEXT, tenant),
    FIELD(generation_request, BIND_TEXT, model),
    REQUIRED(generation_request, BIND_LONG, created_at_us),
    LIST(generation_request, BIND_MAP, "metadata", metadata, metadata_count),
};
static const struct record_binding request_binding = {
    "GenerationRequest", sizeof(struct generation_request), request_defaults, request_fields,
    COUNT(request_fields)};

static const struct field_binding chunk_fields[] = {
    REQUIRED(generation_chunk, BIND_TEXT, job_id),
    REQUIRED(generation_chunk, BIND_INT, attempt),
    REQUIRED(generation_chunk, BIND_INT, sequence),
    REQUIRED(generation_chunk, BIND_INT, seq),
    REQUIRED(generation_chunk, BIND_INT, token_start),
    REQUIRED(generation_chunk, BIND_LONG, text_start),
    LIST(generation_chunk, BIND_INTS, "token_ids", token_ids, token_count),
    REQUIRED(generation_chunk, BIND_TEXT, text),
    FIELD(generation_chunk, BIND_OPT_LITERAL, finish_reason),
    FIELD(generation_chunk, BIND_TEXT, engine_id),
    FIELD(generation_chunk, BIND_LONG, created_at_us),
};
static const struct record_binding chunk_binding = {
    "GenerationChunk", sizeof(struct generation_chunk), NULL, chunk_fields, COUNT(chunk_fields)};

static const struct field_binding usage_fields[] = {
    FIELD(generation_usage, BIND_INT, prompt_tokens),
    FIELD(generation_usage, BIND_INT, generated_tokens),
};
static const struct record_binding usage_binding = {"Usage", sizeof(struct generation_usage), NULL,
                                                    usage_fields, COUNT(usage_fields)};

static const struct field_binding timings_fields[] = {
    FIELD(generation_timings, BIND_LONG, queue_us),
    FIELD(generation_timings, BIND_LONG, encode_us),
    FIELD(generation_timings, BIND_LONG, first_token_us),
    FIELD(generation_timings, BIND_LONG, decode_us),
    FIELD(generation_timings, BIND_LONG, total_us),
    FIELD(generation_timings, BIND_DOUBLE, batch_size_mean),
};
static const struct record_binding timings_binding = {"Timings", sizeof(struct generation_timings),
                                                      NULL, timings_fields, COUNT(timings_fields)};

static const struct field_binding error_fields[] = {
    {"class", BIND_TEXT, offsetof(struct generation_error, error_class), 0, 0, true, NULL},
    REQUIRED(generation_error, BIND_TEXT, message),
};
static const struct record_binding error_binding = {"JobError", sizeof(struct generation_error),
                                                    NULL, error_fields, COUNT(error_fields)};

static const struct field_binding sequence_fields[] = {
    REQUIRED(generation_sequence, BIND_TEXT, text),
    LIST(generation_sequence, BIND_INTS, "token_ids", token_ids, token_count),
    REQUIRED(generation_sequence, BIND_LITERAL, finish_reason),
    FIELD(generation_sequence, BIND_DOUBLE, score),
};
static const struct record_binding sequence_binding = {
    "Sequence", sizeof(struct generation_sequence), NULL, sequence_fields, COUNT(sequence_fields)};

static const struct field_binding result_fields[] = {
    REQUIRED(generation_result, BIND_TEXT, job_id),
    FIELD(generation_result, BIND_INT, attempt),
    REQUIRED(generation_result, BIND_LITERAL, status),
    {"sequences", BIND_RECORDS, offsetof(struct generation_result, sequences),
     offsetof(struct generation_result, sequence_count), 0, false, &sequence_binding},
    {"usage", BIND_RECORD, offsetof(struct generation_result, usage), 0, 0, false, &usage_binding},
    {"timings", BIND_RECORD, offsetof(struct generation_result, timings), 0, 0, false,
     &timings_binding},
    FIELD(generation_result, BIND_TEXT, model),
    FIELD(generation_result, BIND_TEXT, model_version),
    FIELD(generation_result, BIND_TEXT, engine_id),
    FIELD(generation_result, BIND_TEXT, worker),
    {"error", BIND_OPT_RECORD, offsetof(struct generation_result, error), 0,
     offsetof(struct generation_result, has_error), false, &error_binding},
    LIST(generation_result, BIND_MAP, "metadata", metadata, metadata_count),
};

static void result_defaults(void *record)
{
    ((struct generation_result *)record)->attempt = 1;
}

static const struct record_binding result_binding = {
    "GenerationResult", sizeof(struct generation_result), result_defaults, result_fields,
    COUNT(result_fields)};

static const struct field_binding event_fields[] = {
    REQUIRED(job_event, BIND_TEXT, job_id),
    REQUIRED(job_event, BIND_INT, attempt),
    REQUIRED(job_event, BIND_LITERAL, state),
    REQUIRED(job_event, BIND_LONG, at_us),
    FIELD(job_event, BIND_TEXT, worker),
    FIELD(job_event, BIND_TEXT, tenant),
    FIELD(job_event, BIND_TEXT, model),
    FIELD(job_event, BIND_INT, source_partition),
    FIELD(job_event, BIND_LONG, source_offset),
    {"usage", BIND_OPT_RECORD, offsetof(struct job_event, usage), 0,
     offsetof(struct job_event, has_usage), false, &usage_binding},
    {"timings", BIND_OPT_RECORD, offsetof(struct job_event, timings), 0,
     offsetof(struct job_event, has_timings), false, &timings_binding},
    FIELD(job_event, BIND_LONG, accepted_at_us),
    FIELD(job_event, BIND_LONG, started_at_us),
    FIELD(job_event, BIND_BOOL, dead_lettered),
    {"error", BIND_OPT_RECORD, offsetof(struct job_event, error), 0,
     offsetof(struct job_event, has_error), false, &error_binding},
};

static void event_defaults(void *record)
{
    ((struct job_event *)record)->source_partition = -1;
    ((struct job_event *)record)->source_offset = -1;
}

static const struct record_binding event_binding = {
    "JobEvent", sizeof(struct job_event), event_defaults, event_fields, COUNT(event_fields)};

static const struct field_binding entry_fields[] = {
    REQUIRED(job_index_entry, BIND_FIXED16, id),
    REQUIRED(job_index_entry, BIND_LONG, source_offset),
};
static const struct record_binding entry_binding = {"IndexEntry", sizeof(struct job_index_entry),
                                                    NULL, entry_fields, COUNT(entry_fields)};

static const struct field_binding index_fields[] = {
    REQUIRED(job_index, BIND_LONG, at_us),
    {"jobs", BIND_RECORDS, offsetof(struct job_index, jobs), offsetof(struct job_index, job_count),
     0, false, &entry_binding},
};
static const struct record_binding index_binding = {"JobIndex", sizeof(struct job_index), NULL,
                                                    index_fields, COUNT(index_fields)};

static const struct field_binding control_fields[] = {
    REQUIRED(job_control, BIND_TEXT, job_id),
    REQUIRED(job_control, BIND_TEXT, action),
    FIELD(job_control, BIND_TEXT, reason),
    FIELD(job_control, BIND_LONG, created_at_us),
};
static const struct record_binding control_binding = {"JobControl", sizeof(struct job_control),
                                                      NULL, control_fields, COUNT(control_fields)};

const struct record_binding *const record_bindings[RECORD_TYPE_COUNT] = {
    [RECORD_GENERATION_REQUEST] = &request_binding,
    [RECORD_GENERATION_CHUNK] = &chunk_binding,
    [RECORD_GENERATION_RESULT] = &result_binding,
    [RECORD_JOB_EVENT] = &event_binding,
    [RECORD_JOB_INDEX] = &index_binding,
    [RECORD_JOB_CONTROL] = &control_binding,
};
