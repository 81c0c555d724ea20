/* SPDX-License-Identifier: MIT
 *
 * Every range of a request: the edges pass, one step past them fails with field, value and range.
 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "kernels/generate/validate.h"

#define MODEL PGPT_SOURCE_DIR "/models/prometheus-mini"

static const struct engine_limits limits = {.max_rows = 64,
                                            .max_source = 256,
                                            .max_new = 256,
                                            .vocabulary = 3000,
                                            .positions = 256,
                                            .max_beams = 8,
                                            .max_sequences = 8,
                                            .eos_token = 3,
                                            .unk_token = 1};
static struct prompt_codec *codec;
static struct arena *arena;

static struct text text_of(const char *s)
{
    return (struct text){s, strlen(s)};
}

static struct generation_request good(void)
{
    struct generation_request r;

    generation_request_init(&r);
    r.job_id = text_of("01234567-89ab-cdef-0123-456789abcdef");
    r.prompt = text_of("Hello.");
    r.target_language = text_of("ru");
    return r;
}

static int32_t check(const struct generation_request *r, struct validate_problems *problems)
{
    const int32_t *source;

    arena_reset(arena);
    return generation_prepare(r, &limits, codec, "prometheus-mini", arena, &source, problems);
}

static void accept(const struct generation_request *r)
{
    struct validate_problems problems;

    if (check(r, &problems) < 1)
        fail_msg("refused: %s", problems.message);
}

/* Refused with one problem that opens with the field and holds value and range. */
static void refuse(const struct generation_request *r, const char *field, const char *value,
                   const char *range)
{
    struct validate_problems problems;

    assert_int_equal(check(r, &problems), -1);
    if (problems.count != 1 || strncmp(problems.message, field, strlen(field)) ||
        !strstr(problems.message, value) || !strstr(problems.message, range))
        fail_msg("%d problems: %s", problems.count, problems.message);
}

#define EDGE_OK(member, v)                                                                         \
    do {                                                                                           \
        struct generation_request r = good();                                                      \
        r.member = (v);                                                                            \
        accept(&r);                                                                                \
    } while (0)
#define EDGE_BAD(member, v, value, range)                                                          \
    do {                                                                                           \
        struct generation_request r = good();                                                      \
        r.member = (v);                                                                            \
        refuse(&r, #member ":", value, range);                                                     \
    } while (0)

static void numbers_keep_to_their_ranges(void **state)
{
    (void)state;
    EDGE_OK(max_length, 1);
    EDGE_OK(max_length, 256);
    EDGE_BAD(max_length, 0, "0", "1..256");
    EDGE_BAD(max_length, 257, "257", "1..256");
    EDGE_OK(min_length, 128);
    EDGE_BAD(min_length, 129, "129", "0..128");
    EDGE_BAD(min_length, -1, "-1", "0..128");
    EDGE_OK(temperature, 100);
    EDGE_OK(temperature, 1e-6f);
    EDGE_BAD(temperature, 0, "0", "> 0..100");
    EDGE_BAD(temperature, 100.5f, "100.5", "> 0..100");
    EDGE_BAD(temperature, NAN, "nan", "> 0..100");
    EDGE_OK(top_k, 3000);
    EDGE_BAD(top_k, 3001, "3001", "0..3000");
    EDGE_BAD(top_k, -1, "-1", "0..3000");
    EDGE_OK(top_p, 1);
    EDGE_BAD(top_p, 0, "0", "> 0..1");
    EDGE_BAD(top_p, 1.25f, "1.25", "> 0..1");
    EDGE_BAD(repetition_penalty, 0, "0", "> 0..10");
    EDGE_BAD(repetition_penalty, 11, "11", "> 0..10");
    EDGE_OK(length_penalty, -10);
    EDGE_BAD(length_penalty, -10.5f, "-10.5", "-10..10");
    EDGE_BAD(length_penalty, INFINITY, "inf", "-10..10");
    EDGE_OK(num_beams, 8);
    EDGE_BAD(num_beams, 9, "9", "1..8");
    EDGE_BAD(num_beams, 0, "0", "1..8");
    EDGE_OK(stream_interval, 64);
    EDGE_BAD(stream_interval, 65, "65", "1..64");
    EDGE_BAD(stream_interval, 0, "0", "1..64");
    EDGE_OK(priority, -10);
    EDGE_BAD(priority, 11, "11", "-10..10");
    EDGE_BAD(num_return_sequences, 2, "2", "1..1");
}

static void sequences_need_sampling_or_beams(void **state)
{
    struct generation_request r = good();

    (void)state;
    r.do_sample = true;
    r.num_return_sequences = 8;
    accept(&r);
    r.num_return_sequences = 9;
    refuse(&r, "num_return_sequences:", "9", "1..8");
    r = good();
    r.num_beams = 4;
    r.num_return_sequences = 4;
    accept(&r);
    r.num_return_sequences = 5;
    refuse(&r, "num_return_sequences:", "5", "1..4");
    r.num_return_sequences = 1;
    r.do_sample = true;
    refuse(&r, "do_sample:", "true", "num_beams");
}

static void texts_keep_to_their_sizes(void **state)
{
    static char text[2048];
    struct text_pair pairs[17];
    struct text stops[9];
    struct generation_request r = good();

    (void)state;
    memset(text, 'x', sizeof text);
    for (size_t i = 0; i < 17; i++)
        pairs[i] = (struct text_pair){{"k", 1}, {text, 1024}};
    for (size_t i = 0; i < 9; i++)
        stops[i] = (struct text){text, 64};
    r.metadata = pairs;
    r.metadata_count = 16;
    r.stop = stops;
    r.stop_count = 8;
    r.tenant = (struct text){text, 64};
    r.model = text_of("prometheus-mini");
    accept(&r);
    r.metadata_count = 17;
    refuse(&r, "metadata:", "17", "0..16");
    r.metadata_count = 1;
    pairs[0].value.size = 1025;
    refuse(&r, "metadata[\"k\"]:", "1025", "1024");
    pairs[0] = (struct text_pair){{text, 65}, {"", 0}};
    refuse(&r, "metadata key:", "65", "64");
    r.metadata_count = 0;
    r.stop_count = 9;
    refuse(&r, "stop:", "9", "0..8");
    r.stop_count = 1;
    stops[0].size = 65;
    refuse(&r, "stop[0]:", "65", "64");
    stops[0].size = 0;
    refuse(&r, "stop[0]:", "\"\"", "1..64");
    stops[0] = (struct text){"\xff", 1};
    refuse(&r, "stop[0]:", "1 bytes", "UTF-8");
    r.stop_count = 0;
    r.tenant.size = 65;
    refuse(&r, "tenant:", "65", "64");
    EDGE_BAD(model, text_of("gpt"), "gpt", "prometheus-mini");
    EDGE_BAD(model, ((struct text){"prometheus-mini\0or not", 22}), "prometheus-mini", "served");
    EDGE_BAD(target_language, text_of("xx"), "xx", "control token");
    EDGE_BAD(author, text_of("author_77"), "author_77", "control token");
    EDGE_BAD(prompt, text_of(""), "empty", "source_tokens");
    EDGE_BAD(prompt, text_of("\xc3("), "2 bytes", "UTF-8");
}

static void prompts_fit_the_model(void **state)
{
    static char text[4096];
    struct generation_request r = good();

    (void)state;
    for (size_t i = 0; i + 2 < sizeof text; i += 2)
        memcpy(text + i, "q ", 2);
    r.prompt = text_of(text);
    refuse(&r, "prompt:", "tokens", "1..256");
}

/* Past 256 bytes a position nothing is tokenised; up to there the tokens count, not the bytes. */
static void a_prompt_that_cannot_fit_is_not_tokenised(void **state)
{
    static char text[256 * 256 + 2];
    struct generation_request r = good();

    (void)state;
    memset(text, ' ', sizeof text - 1);
    text[0] = 'q';
    r.prompt = text_of(text);
    refuse(&r, "prompt:", "65537 bytes", "65536");
    r.prompt.size--;
    accept(&r);
}

static void source_tokens_replace_the_prompt(void **state)
{
    static int32_t tokens[257] = {5, 606, 3};
    struct generation_request r = good();

    (void)state;
    r.prompt = text_of("");
    r.has_source_tokens = true;
    r.source_tokens = tokens;
    r.source_token_count = 256;
    accept(&r);
    r.source_token_count = 257;
    refuse(&r, "source_tokens:", "257", "1..256");
    r.source_token_count = 0;
    refuse(&r, "source_tokens:", "0", "1..256");
    r.source_token_count = 3;
    tokens[1] = 3000;
    refuse(&r, "source_tokens[1]:", "3000", "0..2999");
    tokens[1] = -1;
    refuse(&r, "source_tokens[1]:", "-1", "0..2999");
}

static void all_problems_are_named(void **state)
{
    struct generation_request r = good();
    struct validate_problems problems;
    static const char *const fields[] = {"prompt", "target_language", "max_length",
                                         "top_p",  "priority",        "model"};

    (void)state;
    r.prompt = text_of("");
    r.target_language = text_of("xx");
    r.max_length = 1000;
    r.top_p = 2;
    r.priority = 99;
    r.model = text_of("m");
    assert_int_equal(check(&r, &problems), -1);
    assert_int_equal(problems.count, 6);
    for (size_t i = 0; i < sizeof fields / sizeof *fields; i++)
        assert_non_null(strstr(problems.message, fields[i]));
}

static int open_codec(void **state)
{
    struct error error;

    (void)state;
    arena = arena_create(1 << 16, 1 << 20);
    codec = prompt_codec_open(MODEL, limits.vocabulary, &error);
    return arena && codec ? 0 : -1;
}

static int close_codec(void **state)
{
    (void)state;
    arena_destroy(arena);
    prompt_codec_close(codec);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(numbers_keep_to_their_ranges),
        cmocka_unit_test(sequences_need_sampling_or_beams),
        cmocka_unit_test(texts_keep_to_their_sizes),
        cmocka_unit_test(prompts_fit_the_model),
        cmocka_unit_test(a_prompt_that_cannot_fit_is_not_tokenised),
        cmocka_unit_test(source_tokens_replace_the_prompt),
        cmocka_unit_test(all_problems_are_named),
    };

    return cmocka_run_group_tests(tests, open_codec, close_codec);
}
