/* SPDX-License-Identifier: MIT */
#include "producer/output.h"

#include <stdlib.h>
#include <string.h>

enum { DOUBLE_DIGITS = 15 };

/* Headers and keys may hold any bytes. */
static json_t *hex_text(const struct text *text)
{
    static const char digits[] = "0123456789abcdef";
    size_t size = 4 + 2 * text->size;
    char *hex = malloc(size + 1);
    json_t *json;

    if (!hex)
        return NULL;
    memcpy(hex, "hex:", 4);
    for (size_t i = 0; i < text->size; i++) {
        hex[4 + 2 * i] = digits[(unsigned char)text->data[i] >> 4];
        hex[5 + 2 * i] = digits[(unsigned char)text->data[i] & 15];
    }
    json = json_stringn(hex, size);
    free(hex);
    return json;
}

json_t *output_text(const struct text *text)
{
    json_t *json = json_stringn(text->data, text->size);

    return json ? json : hex_text(text);
}

/* The shortest of a float's decimal forms: 0.7, not 0.69999998807907104. */
static double shortened(float value)
{
    char text[32];

    snprintf(text, sizeof text, "%.7g", (double)value);
    return strtod(text, NULL);
}

static json_t *literal(const char *string)
{
    return string ? json_string(string) : json_null();
}

static json_t *tokens(const int32_t *ids, size_t count)
{
    json_t *array = json_array();

    for (size_t i = 0; i < count; i++)
        if (json_array_append_new(array, json_integer(ids[i]))) {
            json_decref(array);
            return NULL;
        }
    return array;
}

static json_t *texts(const struct text *items, size_t count)
{
    json_t *array = json_array();

    for (size_t i = 0; i < count; i++)
        if (json_array_append_new(array, output_text(&items[i]))) {
            json_decref(array);
            return NULL;
        }
    return array;
}

static json_t *pairs(const struct text_pair *items, size_t count)
{
    json_t *object = json_object();

    for (size_t i = 0; i < count; i++)
        if (json_object_set_new(object, items[i].key.data, output_text(&items[i].value))) {
            json_decref(object);
            return NULL;
        }
    return object;
}

json_t *output_request(const struct generation_request *r)
{
    json_t *json = json_pack(
        "{so so so so so si si sb sf si sf sf sf si si sb so so sb si si so so so sI so}", "job_id",
        output_text(&r->job_id), "prompt", output_text(&r->prompt), "source_tokens",
        r->has_source_tokens ? tokens(r->source_tokens, r->source_token_count) : json_null(),
        "target_language", output_text(&r->target_language), "author", output_text(&r->author),
        "max_length", r->max_length, "min_length", r->min_length, "do_sample", r->do_sample,
        "temperature", shortened(r->temperature), "top_k", r->top_k, "top_p", shortened(r->top_p),
        "repetition_penalty", shortened(r->repetition_penalty), "length_penalty",
        shortened(r->length_penalty), "num_beams", r->num_beams, "num_return_sequences",
        r->num_return_sequences, "early_stopping", r->early_stopping, "stop",
        texts(r->stop, r->stop_count), "seed", r->has_seed ? json_integer(r->seed) : json_null(),
        "stream", r->stream, "stream_interval", r->stream_interval, "priority", r->priority,
        "deadline_us", r->has_deadline ? json_integer(r->deadline_us) : json_null(), "tenant",
        output_text(&r->tenant), "model", output_text(&r->model), "created_at_us",
        (json_int_t)r->created_at_us, "metadata", pairs(r->metadata, r->metadata_count));

    return json;
}

static json_t *sequences(const struct generation_result *r)
{
    json_t *array = json_array();

    for (size_t i = 0; i < r->sequence_count; i++) {
        const struct generation_sequence *s = &r->sequences[i];
        json_t *one = json_pack("{so so so sf}", "text", output_text(&s->text), "token_ids",
                                tokens(s->token_ids, s->token_count), "finish_reason",
                                literal(s->finish_reason), "score", s->score);

        if (json_array_append_new(array, one)) {
            json_decref(array);
            return NULL;
        }
    }
    return array;
}

json_t *output_result(const struct generation_result *r)
{
    const struct generation_timings *t = &r->timings;
    json_t *usage = json_pack("{si si}", "prompt_tokens", r->usage.prompt_tokens,
                              "generated_tokens", r->usage.generated_tokens);
    json_t *timings =
        json_pack("{sI sI sI sI sI sf}", "queue_us", (json_int_t)t->queue_us, "encode_us",
                  (json_int_t)t->encode_us, "first_token_us", (json_int_t)t->first_token_us,
                  "decode_us", (json_int_t)t->decode_us, "total_us", (json_int_t)t->total_us,
                  "batch_size_mean", t->batch_size_mean);
    json_t *error = r->has_error ? json_pack("{so so}", "class", output_text(&r->error.error_class),
                                             "message", output_text(&r->error.message))
                                 : json_null();

    return json_pack("{so si so so so so so so so so so so}", "job_id", output_text(&r->job_id),
                     "attempt", r->attempt, "status", literal(r->status), "sequences", sequences(r),
                     "usage", usage, "timings", timings, "model", output_text(&r->model),
                     "model_version", output_text(&r->model_version), "engine_id",
                     output_text(&r->engine_id), "worker", output_text(&r->worker), "error", error,
                     "metadata", pairs(r->metadata, r->metadata_count));
}

json_t *output_piece(const struct follow_event *e)
{
    const struct merge_piece *p = &e->piece;

    return json_pack("{ss si si sb sI so si so so}", "job_id", e->job_id, "attempt", e->attempt,
                     "sequence", p->sequence, "restart", p->restart, "text_start",
                     (json_int_t)p->text_start, "text", output_text(&p->text), "token_start",
                     p->token_start, "token_ids", tokens(p->token_ids, p->token_count),
                     "finish_reason", literal(p->finish_reason));
}

static bool lost;

static void lose(void)
{
    if (!lost)
        fprintf(stderr, "pgpt: out of memory while writing JSON; the output is not whole\n");
    lost = true;
}

bool output_lost(void)
{
    return lost;
}

void output_line(json_t *json)
{
    bool printed =
        json && !json_dumpf(json, stdout,
                            JSON_COMPACT | JSON_ENCODE_ANY | JSON_REAL_PRECISION(DOUBLE_DIGITS));

    json_decref(json);
    if (printed)
        putchar('\n');
    else if (!ferror(stdout)) /* which the end of the command tells */
        lose();
    fflush(stdout);
}

void output_add(json_t *array, json_t *value)
{
    if (json_array_append_new(array, value))
        lose();
}

void output_set(json_t *object, const char *key, json_t *value)
{
    if (json_object_set_new(object, key, value))
        lose();
}

void output_duration(double us, char out[32])
{
    if (us < 1000)
        snprintf(out, 32, "%.0f us", us);
    else if (us < 1e6)
        snprintf(out, 32, "%.3g ms", us / 1e3);
    else
        snprintf(out, 32, "%.3g s", us / 1e6);
}
