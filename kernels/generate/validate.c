/* SPDX-License-Identifier: MIT */
#include "kernels/generate/validate.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "kernels/text/assemble.h"
#include "kernels/text/utf8.h"

enum {
    PROMPT_BYTES_A_TOKEN = 256, /* more than any text has; a longer prompt is not even tokenised */
    NAME_MAX_BYTES = 64,
    METADATA_MAX_PAIRS = 16,
    METADATA_MAX_VALUE = 1024,
    INTERVAL_MAX = 64,
    PRIORITY_MAX = 10,
};

void validate_problem(struct validate_problems *problems, const char *format, ...)
{
    size_t room = sizeof problems->message;
    size_t at = problems->size;
    va_list args;
    int size;

    if (problems->count++)
        at += (size_t)snprintf(problems->message + at, room - at, "; ");
    if (at >= room)
        at = room - 1;
    va_start(args, format);
    size = vsnprintf(problems->message + at, room - at, format, args);
    va_end(args);
    at += size > 0 ? (size_t)size : 0;
    if (at >= room) {
        at = utf8_cut(problems->message, room - 1, room - 4);
        at += (size_t)snprintf(problems->message + at, room - at, "...");
    }
    problems->size = at;
}

static void check_int(struct validate_problems *problems, const char *field, int64_t value,
                      int64_t min, int64_t max)
{
    if (value < min || value > max)
        validate_problem(problems, "%s: %lld is outside %lld..%lld", field, (long long)value,
                         (long long)min, (long long)max);
}

/* Written so that NaN is out of every range. */
static void check_real(struct validate_problems *problems, const char *field, double value,
                       bool in_range, const char *range)
{
    if (!in_range)
        validate_problem(problems, "%s: %g is outside %s", field, value, range);
}

/* "%.*s" arguments: the first bytes of a text, whole characters. */
static int shown(struct text text)
{
    return (int)utf8_cut(text.data, text.size, NAME_MAX_BYTES);
}

static bool text_is(struct text text, const char *wanted)
{
    return text.size == strlen(wanted) && !memcmp(text.data, wanted, text.size);
}

static bool check_text(struct validate_problems *problems, const char *field, struct text text,
                       size_t max)
{
    if (!utf8_valid(text.data, text.size)) {
        validate_problem(problems, "%s: its %zu bytes are not valid UTF-8", field, text.size);
        return false;
    }
    if (text.size <= max)
        return true;
    validate_problem(problems, "%s: \"%.*s...\" has %zu bytes, the limit is %zu", field,
                     shown(text), text.data, text.size, max);
    return false;
}

/* Tokenising costs about 1 us a byte: what cannot fit must not hold up others for a second. */
static bool prompt_is_long(const struct generation_request *request,
                           const struct engine_limits *limits)
{
    return request->prompt.size > (size_t)limits->max_source * PROMPT_BYTES_A_TOKEN;
}

static void check_source(const struct generation_request *request,
                         const struct engine_limits *limits, struct validate_problems *problems)
{
    if (!request->has_source_tokens) {
        if (!request->prompt.size)
            validate_problem(problems,
                             "prompt: it is empty, text is needed unless source_tokens is "
                             "given");
        else if (!utf8_valid(request->prompt.data, request->prompt.size))
            validate_problem(problems, "prompt: its %zu bytes are not valid UTF-8",
                             request->prompt.size);
        else if (prompt_is_long(request, limits))
            validate_problem(problems, "prompt: it has %zu bytes, the limit is %d for %d tokens",
                             request->prompt.size, limits->max_source * PROMPT_BYTES_A_TOKEN,
                             limits->max_source);
        return;
    }
    if (request->source_token_count < 1 || request->source_token_count > (size_t)limits->max_source)
        validate_problem(problems, "source_tokens: %zu tokens are outside 1..%d",
                         request->source_token_count, limits->max_source);
    for (size_t i = 0; i < request->source_token_count; i++) {
        int32_t token = request->source_tokens[i];

        if (token < 0 || token >= limits->vocabulary) {
            validate_problem(problems, "source_tokens[%zu]: %d is outside 0..%d", i, token,
                             limits->vocabulary - 1);
            break; /* the first of them is enough */
        }
    }
}

static void check_controls(const struct generation_request *request,
                           const struct prompt_codec *codec, struct validate_problems *problems)
{
    struct text language = request->target_language, author = request->author;

    if (check_text(problems, "target_language", language, NAME_MAX_BYTES) && language.size &&
        prompt_codec_language(codec, language) < 0)
        validate_problem(
            problems,
            "target_language: \"%s\" is no language of the model (\"\" or a control token "
            "without its brackets: en for >>en<<)",
            language.data);
    if (check_text(problems, "author", author, NAME_MAX_BYTES) && author.size &&
        prompt_codec_author(codec, author) < 0)
        validate_problem(
            problems,
            "author: \"%s\" is no author of the model (\"\" or a control token without its "
            "brackets: author_3 for <author_3>)",
            author.data);
}

static void check_sampling(const struct generation_request *request,
                           const struct engine_limits *limits, struct validate_problems *problems)
{
    const struct generation_request *r = request;

    check_real(problems, "temperature", r->temperature, r->temperature > 0 && r->temperature <= 100,
               "> 0..100");
    check_int(problems, "top_k", r->top_k, 0, limits->vocabulary);
    check_real(problems, "top_p", r->top_p, r->top_p > 0 && r->top_p <= 1, "> 0..1");
    check_real(problems, "repetition_penalty", r->repetition_penalty,
               r->repetition_penalty > 0 && r->repetition_penalty <= 10, "> 0..10");
    check_real(problems, "length_penalty", r->length_penalty,
               r->length_penalty >= -10 && r->length_penalty <= 10, "-10..10");
}

static int32_t smaller(int32_t a, int32_t b)
{
    return a < b ? a : b;
}

static void check_sequences(const struct generation_request *request,
                            const struct engine_limits *limits, struct validate_problems *problems)
{
    int32_t beams = request->num_beams, sequences = request->num_return_sequences;

    check_int(problems, "num_beams", beams, 1, smaller(limits->max_beams, limits->max_rows));
    check_int(problems, "num_return_sequences", sequences, 1,
              smaller(limits->max_sequences, limits->max_rows));
    if (beams > 1 && request->do_sample)
        validate_problem(problems, "do_sample: true excludes num_beams %d, one of them must be off",
                         beams);
    else if (beams > 1 && sequences > beams)
        validate_problem(problems, "num_return_sequences: %d is outside 1..%d (num_beams)",
                         sequences, beams);
    else if (beams == 1 && sequences > 1 && !request->do_sample)
        validate_problem(
            problems,
            "num_return_sequences: %d needs do_sample or num_beams, without them the range "
            "is 1..1",
            sequences);
}

static void check_stops(const struct generation_request *request,
                        struct validate_problems *problems)
{
    if (request->stop_count > ASSEMBLE_MAX_STOPS)
        validate_problem(problems, "stop: %zu strings, the range is 0..%d", request->stop_count,
                         ASSEMBLE_MAX_STOPS);
    for (size_t i = 0; i < request->stop_count && i < ASSEMBLE_MAX_STOPS; i++) {
        char field[16];

        snprintf(field, sizeof field, "stop[%zu]", i);
        if (!request->stop[i].size)
            validate_problem(problems, "%s: \"\" is outside 1..%d bytes", field,
                             ASSEMBLE_MAX_STOP_BYTES);
        else
            check_text(problems, field, request->stop[i], ASSEMBLE_MAX_STOP_BYTES);
    }
}

static void check_metadata(const struct generation_request *request,
                           struct validate_problems *problems)
{
    if (request->metadata_count > METADATA_MAX_PAIRS)
        validate_problem(problems, "metadata: %zu pairs, the range is 0..%d",
                         request->metadata_count, METADATA_MAX_PAIRS);
    for (size_t i = 0; i < request->metadata_count && i < METADATA_MAX_PAIRS; i++) {
        const struct text_pair *pair = &request->metadata[i];
        char field[NAME_MAX_BYTES + 16];

        if (!check_text(problems, "metadata key", pair->key, NAME_MAX_BYTES))
            continue;
        snprintf(field, sizeof field, "metadata[\"%s\"]", pair->key.data);
        check_text(problems, field, pair->value, METADATA_MAX_VALUE);
    }
}

void generation_validate(const struct generation_request *request,
                         const struct engine_limits *limits, const struct prompt_codec *codec,
                         const char *model_name, struct validate_problems *problems)
{
    check_source(request, limits, problems);
    check_controls(request, codec, problems);
    check_int(problems, "max_length", request->max_length, 1, limits->max_new);
    check_int(problems, "min_length", request->min_length, 0,
              request->max_length < 0 ? 0 : request->max_length);
    check_sampling(request, limits, problems);
    check_sequences(request, limits, problems);
    check_stops(request, problems);
    check_int(problems, "stream_interval", request->stream_interval, 1, INTERVAL_MAX);
    check_int(problems, "priority", request->priority, -PRIORITY_MAX, PRIORITY_MAX);
    check_text(problems, "tenant", request->tenant, NAME_MAX_BYTES);
    if (check_text(problems, "model", request->model, NAME_MAX_BYTES) && request->model.size &&
        !text_is(request->model, model_name))
        validate_problem(problems, "model: \"%s\" is not served here, the choice is \"\" or \"%s\"",
                         request->model.data, model_name);
    check_metadata(request, problems);
}

int32_t generation_prepare(const struct generation_request *request,
                           const struct engine_limits *limits, const struct prompt_codec *codec,
                           const char *model_name, struct arena *arena, const int32_t **source,
                           struct validate_problems *problems)
{
    struct generation_request plain = *request; /* unknown control tokens are reported already */
    struct error error;
    int32_t count;

    memset(problems, 0, sizeof *problems);
    generation_validate(request, limits, codec, model_name, problems);
    if (request->has_source_tokens) {
        *source = request->source_tokens;
        return problems->count ? -1 : (int32_t)request->source_token_count;
    }
    if (!utf8_valid(request->prompt.data, request->prompt.size) || prompt_is_long(request, limits))
        return -1;
    if (prompt_codec_language(codec, plain.target_language) < 0)
        plain.target_language.size = 0;
    if (prompt_codec_author(codec, plain.author) < 0)
        plain.author.size = 0;
    count = prompt_encode(codec, &plain, arena, source, &error);
    if (count < 0) {
        if (!problems->count)
            snprintf(problems->message, sizeof problems->message, "%s", error.message);
        return -1;
    }
    if (count > limits->max_source)
        validate_problem(problems, "prompt: %d tokens are outside 1..%d", count,
                         limits->max_source);
    return problems->count ? -1 : count;
}
