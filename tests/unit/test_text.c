/* SPDX-License-Identifier: MIT
 *
 * Tokenising, detokenising and assembling against Hugging Face's words (golden cases, vectors.json)
 * and against plain, slow definitions on random input.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <jansson.h>

#include "kernels/generate/run.h"
#include "kernels/text/prompt.h"
#include "kernels/text/utf8.h"

#define MODEL PGPT_SOURCE_DIR "/models/prometheus-mini"
enum { VOCABULARY = 3000, ARENA = 8 << 20, MAX_IDS = 512, BYTE0 = 20 };

static struct prompt_codec *codec;
static uint64_t random_state = 88172645463325252u;

static uint32_t random_below(uint32_t n)
{
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return (uint32_t)(random_state >> 11) % n;
}

static struct text text_of(const char *s)
{
    return (struct text){s, strlen(s)};
}

static struct text text_of_json(const json_t *s)
{
    return (struct text){json_string_value(s), json_string_length(s)};
}

static json_t *json_read(const char *path)
{
    json_error_t error;
    json_t *json = json_load_file(path, JSON_ALLOW_NUL, &error);

    if (!json)
        fail_msg("%s:%d: %s", path, error.line, error.text);
    return json;
}

static int32_t ids_read(const json_t *array, int32_t *ids)
{
    size_t n = json_array_size(array);

    assert_true(n <= MAX_IDS);
    for (size_t i = 0; i < n; i++)
        ids[i] = (int32_t)json_integer_value(json_array_get(array, i));
    return (int32_t)n;
}

static void assert_ids(const json_t *want, const int32_t *got, int32_t count, const char *what)
{
    int32_t ids[MAX_IDS];
    int32_t n = ids_read(want, ids);

    if (n != count || memcmp(ids, got, (size_t)n * sizeof *ids))
        fail_msg("%s: ids differ (%d, wanted %d)", what, count, n);
}

static int32_t encode(struct arena *arena, struct text prompt, const char *language,
                      const char *author, const int32_t **ids)
{
    struct generation_request request;
    struct error error;
    int32_t n;

    generation_request_init(&request);
    request.prompt = prompt;
    request.target_language = text_of(language);
    request.author = text_of(author);
    n = prompt_encode(codec, &request, arena, ids, &error);
    if (n < 0)
        fail_msg("%s: %s", prompt.data, error.message);
    return n;
}

static void golden_prompts_become_input_ids(void **state)
{
    json_t *cases = json_read(PGPT_SOURCE_DIR "/tests/golden/prometheus-mini/cases.json");
    struct arena *arena = arena_create(4096, ARENA);
    size_t i;
    json_t *c;

    (void)state;
    assert_int_equal(json_array_size(cases), 300);
    json_array_foreach(cases, i, c)
    {
        const char *brackets = json_string_value(json_object_get(c, "author"));
        char author[64] = "";
        const int32_t *ids;
        int32_t n;

        if (brackets && *brackets)
            snprintf(author, sizeof author, "%.*s", (int)strlen(brackets) - 2, brackets + 1);
        n = encode(arena, text_of_json(json_object_get(c, "prompt")),
                   json_string_value(json_object_get(c, "target_language")), author, &ids);
        assert_ids(json_object_get(c, "input_ids"), ids, n, "golden");
        arena_reset(arena);
    }
    arena_destroy(arena);
    json_decref(cases);
}

static void prompts_are_cut_as_the_oracle_does(void **state)
{
    json_t *vectors = json_read(PGPT_SOURCE_DIR "/tests/text/vectors.json");
    struct arena *arena = arena_create(4096, ARENA);
    size_t i;
    json_t *c;

    (void)state;
    json_array_foreach(json_object_get(vectors, "encode"), i, c)
    {
        const int32_t *ids;
        int32_t n = encode(arena, text_of_json(json_array_get(c, 0)), "", "", &ids);

        assert_ids(json_array_get(c, 1), ids, n, json_string_value(json_array_get(c, 0)));
    }
    arena_destroy(arena);
    json_decref(vectors);
}

/* The text of ids by the detokeniser alone, in out; returns its length. */
static size_t decode(const int32_t *ids, int32_t n, char *out)
{
    const struct detokeniser *detokeniser = prompt_codec_detokeniser(codec);
    struct detokenise_state state = {0};
    size_t size = 0;

    for (int32_t i = 0; i < n; i++) {
        size_t added = detokenise_token(detokeniser, &state, ids[i], out + size);

        assert_true(added <= detokeniser_room(detokeniser));
        assert_true(utf8_valid(out + size, added));
        size += added;
    }
    size += detokenise_end(&state, out + size);
    return size - state.trailing;
}

static void ids_read_as_the_oracle_says(void **state)
{
    json_t *vectors = json_read(PGPT_SOURCE_DIR "/tests/text/vectors.json");
    json_t *golden = json_read(PGPT_SOURCE_DIR "/tests/golden/prometheus-mini/cases.json");
    static const char *const kinds[][2] = {{"greedy_ids", "greedy_text"},
                                           {"beam4_ids", "beam4_text"}};
    static char out[1 << 20];
    int32_t ids[MAX_IDS];
    size_t i, checked = 0;
    json_t *c;

    (void)state;
    json_array_foreach(json_object_get(vectors, "decode"), i, c)
    {
        struct text want = text_of_json(json_array_get(c, 1));
        size_t size = decode(ids, ids_read(json_array_get(c, 0), ids), out);

        if (size != want.size || memcmp(out, want.data, size))
            fail_msg("decode case %zu: \"%.*s\", wanted \"%s\"", i, (int)size, out, want.data);
    }
    json_array_foreach(golden, i, c)
    {
        for (int k = 0; k < 2; k++) {
            struct text want = text_of_json(json_object_get(c, kinds[k][1]));
            size_t size;

            if (!want.data)
                continue;
            size = decode(ids, ids_read(json_object_get(c, kinds[k][0]), ids), out);
            assert_int_equal(size, want.size);
            assert_memory_equal(out, want.data, size);
            checked++;
        }
    }
    assert_int_equal(checked, 360);
    json_decref(vectors);
    json_decref(golden);
}

static void control_tokens_have_names(void **state)
{
    (void)state;
    assert_int_equal(prompt_codec_language(codec, text_of("en")), 5);
    assert_int_equal(prompt_codec_language(codec, text_of("ru")), 4);
    assert_int_equal(prompt_codec_author(codec, text_of("author_3")), 10);
    assert_int_equal(prompt_codec_author(codec, text_of("city_Krasnodar")), 18);
    static const char *const wrong[] = {"",    "xx",  ">>en<<", "en ", "a<<b",     "0x41",
                                        "pad", "unk", "s",      "/s",  "author_99"};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        assert_int_equal(prompt_codec_language(codec, text_of(wrong[i])), -1);
        assert_int_equal(prompt_codec_author(codec, text_of(wrong[i])), -1);
    }
}

/* ---- assembling against a slow definition ---- */

struct wanted {
    int32_t tokens;
    char text[64 * 1024];
    size_t size;
    enum assemble_finish finish;
};

static size_t first_stop(const struct generation_request *r, const char *text, size_t size)
{
    size_t first = size;

    for (size_t i = 0; i < r->stop_count; i++) {
        const char *at = memmem(text, size, r->stop[i].data, r->stop[i].size);

        if (at && (size_t)(at - text) < first)
            first = (size_t)(at - text);
    }
    return first;
}

/* The text so far is what decoding the tokens so far gives without characters still open; the first
 * token after which it holds a stop string ends the sequence. */
static void define(const struct generation_request *r, const int32_t *ids, int32_t n,
                   struct wanted *w)
{
    const struct detokeniser *detokeniser = prompt_codec_detokeniser(codec);

    for (int32_t k = 1; k <= n; k++) {
        struct detokenise_state state = {0};
        size_t size = 0;

        for (int32_t i = 0; i < k; i++)
            size += detokenise_token(detokeniser, &state, ids[i], w->text + size);
        size -= state.trailing;
        w->size = first_stop(r, w->text, size);
        w->tokens = k;
        w->finish = ASSEMBLE_STOP;
        if (w->size < size)
            return;
    }
    w->tokens = n;
    w->size = decode(ids, n, w->text);
    w->finish = ASSEMBLE_EOS;
    if (first_stop(r, w->text, w->size) < w->size) {
        w->size = first_stop(r, w->text, w->size);
        w->finish = ASSEMBLE_STOP;
    }
}

static int32_t random_sequence(int32_t *ids)
{
    static const int32_t bytes[] = {0xE2, 0x96, 0x81, 0xF0, 0x9F, 0x98, 0x80, 0x20, 0x41, 0xFF};
    int32_t n = (int32_t)random_below(60);

    for (int32_t i = 0; i < n; i++) {
        uint32_t pick = random_below(10);

        ids[i] = pick < 3   ? BYTE0 + bytes[random_below(10)]
                 : pick < 4 ? (int32_t)random_below(BYTE0)
                 : pick < 5 ? (int32_t)random_below(VOCABULARY)
                            : 2853 + (int32_t)random_below(30); /* single letters */
    }
    return n;
}

/* Stops that have a chance: pieces of the text itself. */
static void random_stops(const int32_t *ids, int32_t n, struct text *stops, size_t *count)
{
    static char store[8][65];
    static char text[64 * 1024];
    size_t size = decode(ids, n, text);

    *count = random_below(5);
    for (size_t i = 0; i < *count; i++) {
        size_t start, length;

        if (size == 0 || random_below(3) == 0) {
            strcpy(store[i], random_below(2) ? "zz" : "ая");
            stops[i] = text_of(store[i]);
            continue;
        }
        start = utf8_cut(text, size, random_below((uint32_t)size));
        length = utf8_cut(text + start, size - start, 4 + random_below(12));
        memcpy(store[i], text + start, length);
        store[i][length] = 0;
        stops[i] = (struct text){store[i], length};
    }
}

static void assemble_split(struct assembly *a, const int32_t *ids, const float *logprobs, int32_t n,
                           bool one_by_one)
{
    for (int32_t at = 0; at < n;) {
        int32_t step = one_by_one ? 1 : 1 + (int32_t)random_below((uint32_t)(n - at));

        assert_int_equal(assembly_add(a, ids + at, logprobs + at, step, false), 0);
        at += step;
    }
    assert_int_equal(assembly_end(a, ASSEMBLE_EOS, true, -0.5f), 0);
}

static void check_chunks(const struct assembly *a, int32_t interval)
{
    int32_t tokens = 0;
    size_t text = 0;

    assert_true(a->chunk_count > 0);
    for (int32_t i = 0; i < a->chunk_count; i++) {
        const struct assemble_chunk *c = &a->chunks[i];

        assert_int_equal(c->token_start, tokens);
        assert_int_equal(c->text_start, text);
        assert_true(utf8_valid(a->text + c->text_start, c->text_size));
        assert_int_equal(c->last, i == a->chunk_count - 1);
        if (c->last)
            assert_true(c->token_count <= interval);
        else
            assert_int_equal(c->token_count, interval);
        tokens += c->token_count;
        text += c->text_size;
    }
    assert_int_equal(tokens, a->token_count);
    assert_int_equal(text, a->text_size);
}

static void assembling_agrees_with_its_definition(void **state)
{
    static struct wanted want;
    static int32_t ids[64];
    static float logprobs[64];
    struct arena *arena = arena_create(1 << 16, ARENA);
    int stopped = 0;

    (void)state;
    for (int round = 0; round < 20000; round++) {
        struct generation_request request;
        struct text stops[8];
        struct assemble_rules rules;
        struct assembly a, b;
        double score = 0;
        int32_t n = random_sequence(ids);

        arena_reset(arena);
        generation_request_init(&request);
        request.stream = true;
        request.stream_interval = 1 + (int32_t)random_below(5);
        request.stop = stops;
        random_stops(ids, n, stops, &request.stop_count);
        for (int32_t i = 0; i < n; i++)
            logprobs[i] = -(float)random_below(1000) / 100;
        define(&request, ids, n, &want);
        assemble_rules_init(&rules, prompt_codec_detokeniser(codec), &request);
        assembly_init(&a, &rules, arena);
        assembly_init(&b, &rules, arena);
        assemble_split(&a, ids, logprobs, n, true);
        assemble_split(&b, ids, logprobs, n, false);

        for (int32_t i = 0; i < want.tokens; i++)
            score += (double)logprobs[i];
        assert_int_equal(a.token_count, want.tokens);
        assert_memory_equal(a.tokens ? a.tokens : ids, ids, (size_t)want.tokens * sizeof *ids);
        assert_int_equal(a.text_size, want.size);
        assert_memory_equal(a.text, want.text, want.size);
        assert_int_equal(a.finish, want.finish);
        assert_true(a.score == score + (a.has_eos ? -0.5 : 0));
        check_chunks(&a, request.stream_interval);
        assert_int_equal(a.chunk_count, b.chunk_count);
        for (int32_t i = 0; i < a.chunk_count; i++) {
            assert_int_equal(a.chunks[i].token_count, b.chunks[i].token_count);
            assert_int_equal(a.chunks[i].text_size, b.chunks[i].text_size);
        }
        check_chunks(&b, request.stream_interval);
        assert_true(a.score == b.score && a.text_size == b.text_size && a.finish == b.finish);
        stopped += a.finish == ASSEMBLE_STOP;
    }
    assert_in_range(stopped, 2000, 18000);
    arena_destroy(arena);
}

/* ---- runs ---- */

static struct generation_run *run_of(const struct generation_request *request, struct arena *arena)
{
    struct generation_run *run =
        generation_run_create(request, 7, prompt_codec_detokeniser(codec), arena);

    assert_non_null(run);
    return run;
}

static void runs_map_items_to_results(void **state)
{
    static const int32_t tokens[] = {606, 353, 1954};
    static const float logprobs[] = {-1, -2, -4, -8};
    struct arena *arena = arena_create(1 << 12, ARENA);
    struct generation_request request;
    struct generation_result result = {0};
    struct generation_run *run;
    struct engine_item item = {.token_count = 3, .tokens = tokens, .logprobs = logprobs};

    (void)state;
    generation_request_init(&request);
    request.num_return_sequences = 3;
    request.do_sample = request.stream = true;
    request.max_length = 4;
    run = run_of(&request, arena);
    assert_int_equal(generation_run_take(run, &item), GENERATION_TOOK_SOME);
    item.sequence = 1;
    item.finish = ENGINE_FINISH_LENGTH;
    item.ended_with_eos = true; /* forced */
    assert_int_equal(generation_run_take(run, &item), GENERATION_TOOK_FINISHED);
    assert_int_equal(generation_run_take(run, &item), GENERATION_TOOK_SOME);
    item.sequence = 2;
    item.ended_with_eos = false;
    assert_int_equal(generation_run_take(run, &item), GENERATION_TOOK_FINISHED);
    assert_false(generation_run_finished(run));
    assert_int_equal(generation_run_end(run, ASSEMBLE_CANCELLED), 0);
    assert_true(generation_run_finished(run));
    assert_int_equal(generation_run_result(run, &result), 0);
    assert_int_equal(result.sequence_count, 3);
    assert_string_equal(result.sequences[0].finish_reason, "cancelled");
    assert_string_equal(result.sequences[1].finish_reason, "length");
    assert_true(result.sequences[0].score == -7 && result.sequences[1].score == -15);
    assert_int_equal(result.usage.prompt_tokens, 7);
    assert_int_equal(result.usage.generated_tokens, 3 + 4 + 3);
    assert_int_equal(run->sequences[1].chunk_count, 4); /* the last one empty */
    assert_int_equal(run->sequences[2].chunk_count, 3); /* the limit fell on its token */
    arena_destroy(arena);
}

static void beams_make_one_chunk_each(void **state)
{
    static const int32_t tokens[] = {606, 353, 1954};
    struct arena *arena = arena_create(1 << 12, ARENA);
    struct generation_request request;
    struct generation_run *run;
    struct engine_item item = {.token_count = 3,
                               .tokens = tokens,
                               .finish = ENGINE_FINISH_EOS,
                               .ended_with_eos = true,
                               .beam_score = -0.25};

    (void)state;
    generation_request_init(&request);
    request.num_beams = 4;
    request.stream = true;
    run = run_of(&request, arena);
    assert_int_equal(generation_run_rows(&request), 4);
    assert_int_equal(generation_run_take(run, &item), GENERATION_TOOK_FINISHED);
    assert_true(run->sequences[0].score == -0.25);
    assert_int_equal(run->sequences[0].chunk_count, 1);
    assert_int_equal(run->sequences[0].chunks[0].token_count, 3);
    arena_destroy(arena);
}

static void seeds_come_from_the_uuid(void **state)
{
    struct generation_request request;
    struct engine_request out;

    (void)state;
    generation_request_init(&request);
    request.job_id = text_of("01234567-89aB-cdef-0000-000000000000");
    generation_run_request(&request, NULL, 0, 9, &out);
    assert_true(out.seed == 0x0123456789abcdefu && out.tag == 9);
    request.has_seed = true;
    request.seed = -1;
    generation_run_request(&request, NULL, 0, 9, &out);
    assert_true(out.seed == UINT64_MAX);
}

/* The bound that a job's arena is made for holds for the worst text. */
static void memory_stays_under_the_bound(void **state)
{
    struct generation_request request;

    (void)state;
    for (int32_t longest = 1; longest <= 256; longest = longest * 2 + 1) {
        struct generation_run *run;
        struct arena *arena;

        generation_request_init(&request);
        request.max_length = longest;
        request.num_return_sequences = 8;
        request.stream = true;
        arena = arena_create(64, 1 << 24);
        run = run_of(&request, arena);
        for (int32_t s = 0; s < 8; s++)
            for (int32_t i = 0; i < longest; i++) {
                int32_t token = BYTE0 + 0xFF; /* U+FFFD each */
                struct engine_item item = {.sequence = s, .token_count = 1, .tokens = &token};

                assert_int_equal(generation_run_take(run, &item), GENERATION_TOOK_SOME);
            }
        assert_int_equal(generation_run_end(run, ASSEMBLE_EXPIRED), 0);
        assert_true(arena_used(arena) <=
                    generation_run_memory(&request, prompt_codec_detokeniser(codec)));
        arena_destroy(arena);
    }
}

static void bad_directories_are_refused(void **state)
{
    struct error error;

    (void)state;
    assert_null(prompt_codec_open("/nowhere", VOCABULARY, &error));
    assert_non_null(strstr(error.message, "/nowhere/source.spm"));
    assert_null(prompt_codec_open(MODEL, 100, &error));
    assert_non_null(strstr(error.message, "0..99"));
}

static int open_codec(void **state)
{
    struct error error;

    (void)state;
    codec = prompt_codec_open(MODEL, VOCABULARY, &error);
    if (!codec)
        fprintf(stderr, "%s\n", error.message);
    return codec ? 0 : -1;
}

static int close_codec(void **state)
{
    (void)state;
    prompt_codec_close(codec);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(golden_prompts_become_input_ids),
        cmocka_unit_test(prompts_are_cut_as_the_oracle_does),
        cmocka_unit_test(ids_read_as_the_oracle_says),
        cmocka_unit_test(control_tokens_have_names),
        cmocka_unit_test(assembling_agrees_with_its_definition),
        cmocka_unit_test(runs_map_items_to_results),
        cmocka_unit_test(beams_make_one_chunk_each),
        cmocka_unit_test(seeds_come_from_the_uuid),
        cmocka_unit_test(memory_stays_under_the_bound),
        cmocka_unit_test(bad_directories_are_refused),
    };

    return cmocka_run_group_tests(tests, open_codec, close_codec);
}
