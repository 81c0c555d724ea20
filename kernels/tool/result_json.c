/* SPDX-License-Identifier: MIT */
#include "kernels/tool/result_json.h"

#include <jansson.h>
#include <string.h>

/* Texts come from checked JSON or from the detokeniser: valid UTF-8. */
static json_t *text_json(struct text text)
{
    return json_stringn(text.data ? text.data : "", text.size);
}

static json_t *sequence_json(const struct generation_sequence *sequence)
{
    json_t *tokens = json_array();

    for (size_t i = 0; tokens && i < sequence->token_count; i++)
        if (json_array_append_new(tokens, json_integer(sequence->token_ids[i]))) {
            json_decref(tokens);
            return NULL;
        }
    return json_pack("{s:o, s:o, s:s, s:f}", "text", text_json(sequence->text), "token_ids", tokens,
                     "finish_reason", sequence->finish_reason, "score", sequence->score);
}

static json_t *sequences_json(const struct generation_result *result)
{
    json_t *list = json_array();

    for (size_t i = 0; list && i < result->sequence_count; i++)
        if (json_array_append_new(list, sequence_json(&result->sequences[i]))) {
            json_decref(list);
            return NULL;
        }
    return list;
}

static json_t *timings_json(const struct generation_timings *t)
{
    return json_pack("{s:I, s:I, s:I, s:I, s:I, s:f}", "queue_us", (json_int_t)t->queue_us,
                     "encode_us", (json_int_t)t->encode_us, "first_token_us",
                     (json_int_t)t->first_token_us, "decode_us", (json_int_t)t->decode_us,
                     "total_us", (json_int_t)t->total_us, "batch_size_mean", t->batch_size_mean);
}

static json_t *error_json(const struct generation_result *result)
{
    if (!result->has_error)
        return json_null();
    return json_pack("{s:o, s:o}", "class", text_json(result->error.error_class), "message",
                     text_json(result->error.message));
}

static json_t *metadata_json(const struct generation_result *result)
{
    json_t *object = json_object();

    for (size_t i = 0; object && i < result->metadata_count; i++)
        if (json_object_set_new(object, result->metadata[i].key.data,
                                text_json(result->metadata[i].value))) {
            json_decref(object);
            return NULL;
        }
    return object;
}

char *result_json_write(const struct generation_result *result, size_t *size)
{
    json_t *usage = json_pack("{s:i, s:i}", "prompt_tokens", (int)result->usage.prompt_tokens,
                              "generated_tokens", (int)result->usage.generated_tokens);
    /* "o" takes the values over, and fails when one of them could not be made. */
    json_t *object = json_pack(
        "{s:o, s:i, s:s, s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:o}", "job_id",
        text_json(result->job_id), "attempt", (int)result->attempt, "status", result->status,
        "sequences", sequences_json(result), "usage", usage, "timings",
        timings_json(&result->timings), "model", text_json(result->model), "model_version",
        text_json(result->model_version), "engine_id", text_json(result->engine_id), "worker",
        text_json(result->worker), "error", error_json(result), "metadata", metadata_json(result));
    char *line = object ? json_dumps(object, JSON_COMPACT) : NULL;

    json_decref(object);
    *size = line ? strlen(line) : 0;
    return line;
}
