/* SPDX-License-Identifier: MIT
 *
 * Rules of token choice: rules_apply() against Hugging Face's processors, written out here one
 * after the other in its order and over whole vectors, on random rows; and cases worked by hand.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

#include "kernels/search/rules.h"

enum { V = 40, LONGEST = 12, PHRASES = 4, TRIALS = 20000 };

static uint32_t state = 7;

static int32_t random_below(int32_t limit)
{
    state = state * 1664525u + 1013904223u;
    return (int32_t)((state >> 8) % (uint32_t)limit);
}

struct words { /* one bad word */
    int32_t size;
    int32_t tokens[3];
};

struct scene {
    struct words bad[PHRASES];
    int32_t suppress[3], suppress_count;
    int32_t bos, eos; /* forced; -1 = none */
    int32_t length, min_new, max_new;
    float penalty;
    int32_t ids[LONGEST + 1];
};

enum { EOS = 3 };

static struct scene scene_random(void)
{
    static const float penalties[] = {1.0f, 1.3f, 0.7f};
    struct scene s = {.bos = -1, .eos = -1};

    for (int i = 0; i < PHRASES; i++) {
        s.bad[i].size = 1 + random_below(3);
        for (int j = 0; j < 3; j++)
            s.bad[i].tokens[j] = 4 + random_below(3); /* few tokens: phrases do match */
    }
    s.suppress_count = random_below(4);
    for (int i = 0; i < 3; i++)
        s.suppress[i] = random_below(V);
    if (random_below(2))
        s.bos = random_below(V);
    if (random_below(2))
        s.eos = EOS;
    s.max_new = 1 + random_below(LONGEST);
    s.length = random_below(s.max_new);
    s.min_new = random_below(s.max_new + 1);
    s.penalty = penalties[random_below(3)];
    s.ids[0] = 4 + random_below(3); /* a start token that phrases hold */
    for (int i = 1; i <= s.length; i++)
        s.ids[i] = random_below(3) ? 4 + random_below(3) : random_below(V);
    return s;
}

/* The processors of transformers 5.17, in the order of _get_logits_processor(). */
static void expected_apply(const struct scene *s, float *scores)
{
    float raw[V];
    int32_t count = s->length + 1;

    memcpy(raw, scores, sizeof raw);
    for (int i = 0; i < count && s->penalty != 1.0f; i++) /* scatter: once a token */
        scores[s->ids[i]] =
            raw[s->ids[i]] < 0.0f ? raw[s->ids[i]] * s->penalty : raw[s->ids[i]] / s->penalty;
    for (int i = 0; i < PHRASES; i++) {
        int32_t size = s->bad[i].size;

        if (size == 1)
            scores[s->bad[i].tokens[0]] += -INFINITY;
        else if (size <= count && !memcmp(s->ids + count - (size - 1), s->bad[i].tokens,
                                          (size_t)(size - 1) * sizeof(int32_t)))
            scores[s->bad[i].tokens[size - 1]] += -INFINITY;
    }
    if (s->length < s->min_new)
        scores[EOS] = -INFINITY;
    if (s->bos >= 0 && count == 1) {
        for (int t = 0; t < V; t++)
            scores[t] = -INFINITY;
        scores[s->bos] = 0.0f;
    }
    if (s->eos >= 0 && count == s->max_new) { /* max_length - 1, the start token counted */
        for (int t = 0; t < V; t++)
            scores[t] = -INFINITY;
        scores[s->eos] = 0.0f;
    }
    for (int i = 0; i < s->suppress_count; i++)
        scores[s->suppress[i]] = -INFINITY;
}

struct tables {
    uint32_t suppressed[2], banned[2], seen[2];
    int32_t phrases[3 * PHRASES], sizes[PHRASES];
};

static struct rules rules_of(const struct scene *s, struct tables *t)
{
    struct rules r = {.vocabulary = V,
                      .eos_token = EOS,
                      .forced_bos_token = s->bos,
                      .forced_eos_token = s->eos,
                      .suppressed = t->suppressed,
                      .banned = t->banned,
                      .phrases = t->phrases,
                      .phrase_sizes = t->sizes};
    int32_t used = 0;

    memset(t, 0, sizeof *t);
    for (int i = 0; i < s->suppress_count; i++) {
        rules_add(t->suppressed, s->suppress[i]);
        rules_add(t->banned, s->suppress[i]);
    }
    for (int i = 0; i < PHRASES; i++) {
        if (s->bad[i].size == 1) {
            rules_add(t->banned, s->bad[i].tokens[0]);
            continue;
        }
        for (int j = 0; j < s->bad[i].size; j++)
            t->phrases[used++] = s->bad[i].tokens[j];
        t->sizes[r.phrase_count++] = s->bad[i].size;
    }
    for (int i = 0; i <= s->length; i++)
        rules_add(t->seen, s->ids[i]);
    return r;
}

static void scores_follow_the_processors_in_their_order(void **unused)
{
    int32_t matched = 0;

    (void)unused;
    for (int trial = 0; trial < TRIALS; trial++) {
        struct scene s = scene_random();
        struct tables tables;
        struct rules rules = rules_of(&s, &tables);
        struct rules_row row = {s.length, s.min_new, s.max_new, s.penalty, tables.seen, s.ids};
        float scores[V], expected[V];

        for (int t = 0; t < V; t++)
            scores[t] = (float)(random_below(2001) - 1000) / 64.0f;
        memcpy(expected, scores, sizeof scores);
        expected_apply(&s, expected);
        for (int32_t p = 0, first = 0; p < rules.phrase_count; first += rules.phrase_sizes[p++])
            matched += rules_phrase(&rules, &row, p, first) >= 0;
        rules_apply(&rules, &row, scores);
        for (int t = 0; t < V; t++)
            assert_true(scores[t] == expected[t]);
    }
    assert_true(matched > TRIALS / 20); /* the phrases were put to the test */
}

static void a_row_ends_by_eos_or_by_length(void **unused)
{
    struct rules forced = {
        .vocabulary = V, .eos_token = EOS, .forced_bos_token = -1, .forced_eos_token = EOS};
    struct rules free_end = forced;
    struct rules_row row = {.length = 3, .max_new = 5, .repetition_penalty = 1.0f};

    (void)unused;
    free_end.forced_eos_token = -1;
    assert_int_equal(rules_after(&forced, &row, 9), RULES_RUNNING);
    assert_int_equal(rules_after(&forced, &row, EOS), RULES_EOS);
    row.length = 4;
    assert_int_equal(rules_after(&forced, &row, EOS), RULES_LENGTH);
    assert_int_equal(rules_after(&free_end, &row, EOS), RULES_EOS);
    assert_int_equal(rules_after(&free_end, &row, 9), RULES_LENGTH);
    assert_int_equal(rules_forced(&forced, &row), EOS);
    assert_int_equal(rules_forced(&free_end, &row), -1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(scores_follow_the_processors_in_their_order),
        cmocka_unit_test(a_row_ends_by_eos_or_by_length),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
