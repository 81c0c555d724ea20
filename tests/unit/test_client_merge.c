/* SPDX-License-Identifier: MIT
 *
 * Streams as random attempts may send them, merged, against a model that keeps whole buffers.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "producer/id_map.h"
#include "producer/merge.h"

enum { ENGINES = 3, TEXT_MAX = 160, CHUNKS_MAX = 40, RUNS = 20000 };

static uint64_t random_state;

static uint32_t random_below(uint32_t bound)
{
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(random_state >> 33) % bound;
}

/* What one engine makes of the job: its chunks are a function of the request alone. */
struct engine {
    char id[16];
    char text[TEXT_MAX];
    int32_t tokens[TEXT_MAX];
    int chunk_count;
    int text_end[CHUNKS_MAX], token_end[CHUNKS_MAX];
};

static struct engine engines[ENGINES];

static void engines_make(void)
{
    for (int e = 0; e < ENGINES; e++) {
        struct engine *g = &engines[e];
        int text = 0, token = 0;

        snprintf(g->id, sizeof g->id, "engine-%d", e);
        g->chunk_count = 1 + (int)random_below(12);
        for (int c = 0; c < g->chunk_count; c++) {
            text += (int)random_below(8); /* chunks without text happen: held-back characters */
            token += (int)random_below(3);
            g->text_end[c] = text;
            g->token_end[c] = token;
        }
        for (int i = 0; i < TEXT_MAX; i++) {
            g->text[i] = (char)('a' + random_below(26));
            g->tokens[i] = (int32_t)random_below(3000);
        }
    }
}

static struct generation_chunk chunk_of(int e, int attempt, int c)
{
    const struct engine *g = &engines[e];
    int text = c ? g->text_end[c - 1] : 0, token = c ? g->token_end[c - 1] : 0;

    return (struct generation_chunk){.attempt = attempt,
                                     .seq = c,
                                     .token_start = token,
                                     .text_start = text,
                                     .token_ids = g->tokens + token,
                                     .token_count = (size_t)(g->token_end[c] - token),
                                     .text = {g->text + text, (size_t)(g->text_end[c] - text)},
                                     .finish_reason = c == g->chunk_count - 1 ? "eos" : NULL,
                                     .engine_id = {g->id, strlen(g->id)}};
}

/* What a reader shows. */
struct shown {
    char text[TEXT_MAX];
    int32_t tokens[TEXT_MAX];
    int64_t text_size;
    int32_t token_count;
    int finishes;
};

static void show(struct shown *s, const struct merge_piece *p)
{
    if (p->restart)
        *s = (struct shown){.finishes = 0};
    assert_int_equal(p->text_start, s->text_size); /* no gap, no repeat */
    assert_int_equal(p->token_start, s->token_count);
    memcpy(s->text + s->text_size, p->text.data, p->text.size);
    if (p->token_count)
        memcpy(s->tokens + s->token_count, p->token_ids, p->token_count * sizeof *p->token_ids);
    s->text_size += (int64_t)p->text.size;
    s->token_count += (int32_t)p->token_count;
    s->finishes += p->finish_reason != NULL;
}

/* Where the first `chunks` chunks end, as an empty chunk there. */
static struct generation_chunk end_of(int e, int chunks)
{
    struct generation_chunk last = {.text_start = 0};

    if (!chunks)
        return last;
    last = chunk_of(e, 1, chunks - 1);
    last.text_start += (int64_t)last.text.size;
    last.token_start += (int32_t)last.token_count;
    return last;
}

/* The model: whose stream counts, and how many of its chunks arrived in a row since then. */
struct model {
    int engine, attempt, chunks;
};

static void model_take(struct model *m, int e, int attempt, int c)
{
    if (e != m->engine &&
        (m->engine < 0 || attempt > m->attempt || (attempt == m->attempt && c == 0)))
        *m = (struct model){e, attempt, 0};
    if (e != m->engine)
        return;
    if (attempt > m->attempt)
        m->attempt = attempt;
    /* A chunk that holds nothing is not missed: two workers' chunks may join around it. */
    if (c >= m->chunks && chunk_of(e, 1, c).text_start == end_of(e, m->chunks).text_start &&
        chunk_of(e, 1, c).token_start == end_of(e, m->chunks).token_start)
        m->chunks = c + 1;
}

static void shown_is_model(const struct shown *s, const struct model *m)
{
    const struct engine *g = &engines[m->engine < 0 ? 0 : m->engine];
    int text = m->chunks ? g->text_end[m->chunks - 1] : 0;
    int token = m->chunks ? g->token_end[m->chunks - 1] : 0;

    assert_int_equal(s->text_size, text);
    assert_memory_equal(s->text, g->text, (size_t)text);
    assert_int_equal(s->token_count, token);
    assert_memory_equal(s->tokens, g->tokens, (size_t)token * sizeof *g->tokens);
    assert_int_equal(s->finishes, m->chunks == g->chunk_count);
}

/* One worker's run of the job: chunks next..end-1 are still to come. */
struct attempt {
    int engine, number, next, end;
};

/* A worker that dies is followed by one with a higher attempt, and may still have records on their
 * way (a zombie); one that hands back is done before another starts with the same number. */
static int attempts_make(struct attempt attempts[6])
{
    int count = 1 + (int)random_below(5), number = 1;

    for (int i = 0; i < count; i++) {
        int e = (int)random_below(ENGINES);

        number += i && random_below(3) ? 1 : 0;
        attempts[i] =
            (struct attempt){e, number, 0, (int)random_below((uint32_t)engines[e].chunk_count + 1)};
    }
    attempts[count - 1].end = engines[attempts[count - 1].engine].chunk_count;
    return count;
}

static void result_check(struct merge *merge, struct shown *shown, int e)
{
    const struct engine *g = &engines[e];
    int last = g->chunk_count - 1;
    struct generation_sequence sequence = {.text = {g->text, (size_t)g->text_end[last]},
                                           .token_ids = g->tokens,
                                           .token_count = (size_t)g->token_end[last],
                                           .finish_reason = "eos"};
    struct generation_result result = {.engine_id = {g->id, strlen(g->id)},
                                       .attempt = 1,
                                       .sequences = &sequence,
                                       .sequence_count = 1};
    struct merge_piece piece;

    if (merge_result(merge, &result, 0, &piece)) {
        assert_true(piece.from_result);
        show(shown, &piece);
    }
    assert_int_equal(shown->text_size, g->text_end[last]);
    assert_memory_equal(shown->text, g->text, (size_t)shown->text_size);
    assert_int_equal(shown->token_count, g->token_end[last]);
    assert_int_equal(shown->finishes, 1);
    assert_false(merge_result(merge, &result, 0, &piece));
}

static void run_once(bool miss_some)
{
    struct attempt attempts[6];
    struct merge merge = {.begun = false};
    struct shown shown = {.finishes = 0};
    struct model model = {-1, 0, 0};
    int count = attempts_make(attempts), first = 0, begun = 1;

    while (first < count) {
        /* one of the attempts that run now; a later one may begin when no handing back is under way
         */
        int i = first + (int)random_below((uint32_t)(begun - first));
        struct attempt *a = &attempts[i];
        struct merge_piece piece;

        if (begun < count && random_below(4) == 0 &&
            (attempts[begun].number > attempts[begun - 1].number ||
             attempts[begun - 1].next == attempts[begun - 1].end))
            begun++;
        if (a->next < a->end) {
            struct generation_chunk chunk = chunk_of(a->engine, a->number, a->next);

            if (miss_some && random_below(5) == 0) {
                a->next++; /* expired before this reader came */
                continue;
            }
            if (merge_chunk(&merge, &chunk, &piece))
                show(&shown, &piece);
            if (!miss_some) {
                model_take(&model, a->engine, a->number, a->next);
                /* Empty chunks change nothing that is seen. */
                shown_is_model(&shown, &model);
            }
            a->next++;
        }
        while (first < begun && attempts[first].next == attempts[first].end) {
            if (first + 1 == begun && begun < count)
                begun++;
            first++;
        }
    }
    result_check(&merge, &shown, attempts[count - 1].engine);
}

static void test_random_attempts(void **state)
{
    (void)state;
    for (uint64_t seed = 1; seed <= RUNS; seed++) {
        random_state = seed * 0x9E3779B97F4A7C15u;
        engines_make();
        run_once(false);
    }
}

static void test_chunks_missing(void **state)
{
    (void)state;
    for (uint64_t seed = 1; seed <= RUNS; seed++) {
        random_state = seed * 0xD1B54A32D192ED03u;
        engines_make();
        run_once(true);
    }
}

static void test_overlapping_chunk_brings_its_rest(void **state)
{
    const int32_t ids[] = {7, 8, 9};
    struct generation_chunk chunk = {
        .text = {"abc", 3}, .token_ids = ids, .token_count = 1, .engine_id = {"e", 1}};
    struct merge merge = {.begun = false};
    struct merge_piece piece;

    (void)state;
    assert_true(merge_chunk(&merge, &chunk, &piece));
    chunk.text = (struct text){"abcdef", 6};
    chunk.token_count = 3;
    chunk.finish_reason = "length";
    assert_true(merge_chunk(&merge, &chunk, &piece));
    assert_int_equal(piece.text_start, 3);
    assert_int_equal(piece.text.size, 3);
    assert_memory_equal(piece.text.data, "def", 3);
    assert_int_equal(piece.token_start, 1);
    assert_int_equal(piece.token_ids[0], 8);
    assert_string_equal(piece.finish_reason, "length");
    assert_false(merge_chunk(&merge, &chunk, &piece));
}

static void test_shorter_result_takes_nothing_back(void **state)
{
    struct generation_chunk chunk = {.text = {"abcdef", 6}, .engine_id = {"e", 1}};
    struct generation_sequence sequence = {.text = {"abc", 3}, .finish_reason = "cancelled"};
    struct generation_result result = {
        .engine_id = {"e", 1}, .sequences = &sequence, .sequence_count = 1};
    struct merge merge = {.begun = false};
    struct merge_piece piece;

    (void)state;
    assert_true(merge_chunk(&merge, &chunk, &piece));
    assert_false(merge_result(&merge, &result, 0, &piece));
}

static void test_hostile_positions_are_passed_over(void **state)
{
    struct generation_chunk chunk = {.text = {"abc", 3}, .engine_id = {"e", 1}};
    struct merge merge = {.begun = false};
    struct merge_piece piece;

    (void)state;
    chunk.text_start = -1;
    assert_false(merge_chunk(&merge, &chunk, &piece));
    chunk.text_start = INT64_MAX - 1;
    assert_false(merge_chunk(&merge, &chunk, &piece));
    chunk.text_start = 0;
    chunk.token_start = -5;
    assert_false(merge_chunk(&merge, &chunk, &piece));
    chunk.token_start = 0;
    assert_true(merge_chunk(&merge, &chunk, &piece));
}

/* ---- the map of watched jobs, against a plain array ---- */

enum { IDS = 300 };

static void id_make(uint8_t id[16], uint32_t n)
{
    memset(id, 0, 16);
    memcpy(id + (n & 1 ? 0 : 12), &n, 4); /* equal halves: many chains collide */
}

static void test_map_against_array(void **state)
{
    struct id_map *map = id_map_create(IDS / 2);
    static int values[IDS];
    bool in[IDS] = {false};
    size_t count = 0;
    uint8_t id[16];

    (void)state;
    assert_non_null(map);
    random_state = 5;
    for (int step = 0; step < 200000; step++) {
        uint32_t n = random_below(IDS);

        id_make(id, n);
        assert_ptr_equal(id_map_get(map, id), in[n] ? &values[n] : NULL);
        if (random_below(2)) {
            enum id_map_status expected = in[n]              ? ID_MAP_TAKEN
                                          : count == IDS / 2 ? ID_MAP_FULL
                                                             : ID_MAP_OK;

            assert_int_equal(id_map_put(map, id, &values[n]), expected);
            count += expected == ID_MAP_OK;
            in[n] = in[n] || expected == ID_MAP_OK;
        } else {
            assert_ptr_equal(id_map_remove(map, id), in[n] ? &values[n] : NULL);
            count -= in[n];
            in[n] = false;
        }
        assert_int_equal(id_map_count(map), count);
    }
    id_map_destroy(map);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_random_attempts),
        cmocka_unit_test(test_chunks_missing),
        cmocka_unit_test(test_overlapping_chunk_brings_its_rest),
        cmocka_unit_test(test_shorter_result_takes_nothing_back),
        cmocka_unit_test(test_hostile_positions_are_passed_over),
        cmocka_unit_test(test_map_against_array),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
