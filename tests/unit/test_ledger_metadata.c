/* SPDX-License-Identifier: MIT
 * A ledger survives the commit's metadata, the longest one fits, and any text has an answer. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "tests/unit/worker_fixture.h"
#include "worker/ledger_metadata.h"

static struct error error;

/* Reads from an exact allocation without a NUL, as librdkafka hands metadata over. */
static int read_exactly(const char *text, size_t size, int64_t base, struct ledger *out)
{
    char *copy = malloc(size ? size : 1);
    int status;

    assert_non_null(copy);
    memcpy(copy, text, size);
    status = ledger_metadata_read(copy, size, base, out, &error);
    free(copy);
    return status;
}

static void random_ledger(struct ledger *l)
{
    int64_t base = (int64_t)fixture_random(1u << 30);
    int64_t width = 1 + (int64_t)fixture_random(fixture_random(3) ? 100 : LEDGER_SPAN);
    int finishes = (int)fixture_random(300);

    ledger_init(l, base, (int32_t)fixture_random(100000));
    for (int64_t o = base; o < base + width; o++)
        assert_int_equal(ledger_begin(l, o, LEDGER_SPAN), LEDGER_ADMIT);
    for (int i = 0; i < finishes; i++)
        ledger_finish(l, base + (int64_t)fixture_random((uint64_t)width));
    for (uint64_t i = fixture_random(4); i > 0; i--) {
        ledger_take_over(l, (int32_t)fixture_random(5000), base + width);
        if (fixture_random(2))
            ledger_mark_alone(l, l->base, l->base + 1, LEDGER_SINGLE);
        else if (fixture_random(2))
            ledger_mark_alone(l, l->base, l->base + 1 + (int64_t)fixture_random(32), LEDGER_GROUP);
        for (uint64_t n = fixture_random(3); n > 0; n--)
            ledger_finish(l, l->base);
    }
    if (fixture_random(2))
        ledger_give_up(l);
    if (fixture_random(2))
        snprintf(l->engine_id, sizeof l->engine_id, "%016llx",
                 (unsigned long long)fixture_random(UINT64_MAX));
}

static void assert_same(const struct ledger *a, const struct ledger *b)
{
    assert_int_equal(a->base, b->base);
    assert_int_equal(b->next, b->base); /* it is read again from there */
    assert_int_equal(a->highest_finished, b->highest_finished);
    assert_memory_equal(a->bits, b->bits, sizeof a->bits);
    assert_int_equal(a->open, b->open);
    assert_int_equal(a->takeovers, b->takeovers);
    assert_int_equal(a->bound, b->bound);
    assert_int_equal(a->suspect_end, b->suspect_end);
    assert_int_equal(a->alone_offset, b->alone_offset);
    assert_int_equal(a->alone_end, b->alone_end);
    assert_int_equal(a->alone_deaths, b->alone_deaths);
    assert_int_equal(a->runs, b->runs);
    assert_int_equal(a->single_end, b->single_end);
    assert_string_equal(a->engine_id, b->engine_id);
}

static void random_ledgers_come_back_the_same(void **state)
{
    char text[LEDGER_METADATA_MAX];
    struct ledger written, found;

    (void)state;
    fixture_seed(2);
    for (int i = 0; i < 2000; i++) {
        size_t size;

        random_ledger(&written);
        size = ledger_metadata_write(&written, text);
        assert_int_equal(size, strlen(text));
        assert_true(size < LEDGER_METADATA_MAX);
        if (read_exactly(text, size, written.base, &found))
            fail_msg("ledger %d: %s", i, error.message);
        assert_same(&written, &found);
    }
}

static void the_longest_fits(void **state)
{
    char text[LEDGER_METADATA_MAX];
    struct ledger written, found;
    int64_t base = INT64_MAX / 2 - LEDGER_SPAN;
    size_t size;

    (void)state;
    ledger_init(&written, base, INT32_MAX);
    for (int64_t o = base + 1; o < base + LEDGER_SPAN; o++)
        ledger_finish(&written, o);
    written.takeovers = written.alone_deaths = LEDGER_COUNT_MAX;
    written.suspect_end = written.single_end = INT64_MAX / 2;
    written.alone_offset = base;
    written.alone_end = base + 1;
    written.open = true;
    written.runs = LEDGER_SINGLE;
    memset(written.engine_id, 'f', sizeof written.engine_id - 1);
    memset(text, 'x', sizeof text);
    size = ledger_metadata_write(&written, text);
    assert_true(size < LEDGER_METADATA_MAX);
    assert_true(size > 2731);
    assert_int_equal(strlen(text), size);
    assert_int_equal(read_exactly(text, size, base, &found), 0);
    assert_same(&written, &found);
}

/* Older workers read the first form alone: it is left only where it cannot say what holds. */
static void the_second_form_is_for_groups(void **state)
{
    char text[LEDGER_METADATA_MAX];
    struct ledger l;

    (void)state;
    assert_int_equal(read_exactly("1;2;2;9;20;7;1;", 15, 7, &l), 0);
    assert_int_equal(l.runs, LEDGER_SINGLE);
    assert_int_equal(l.alone_end, 8);
    assert_int_equal(l.single_end, 8); /* a death was counted: it stays a single one */
    assert_int_equal(ledger_runs(&l, 8), LEDGER_GROUP);
    assert_int_equal(read_exactly("1;2;2;9;20;7;0;", 15, 7, &l), 0);
    assert_int_equal(l.single_end, 0);
    ledger_metadata_write(&l, text);
    assert_string_equal(text, "1;2;2;9;20;7;0;");
    ledger_mark_alone(&l, 7, 12, LEDGER_GROUP);
    ledger_metadata_write(&l, text);
    assert_string_equal(text, "2;3;2;9;20;7;0;12;0;");
    ledger_take_over(&l, 9, 30);
    ledger_metadata_write(&l, text);
    assert_string_equal(text, "2;1;3;9;20;-1;0;0;12;");
    for (int64_t o = 7; o < 12; o++)
        ledger_finish(&l, o);
    ledger_metadata_write(&l, text);
    assert_string_equal(text, "1;1;3;9;20;-1;0;");
    /* Of the group only what is not finished matters. */
    assert_int_equal(read_exactly("2;3;2;9;20;5;0;12;0;", 20, 7, &l), 0);
    assert_int_equal(l.runs, LEDGER_GROUP);
    assert_int_equal(read_exactly("2;3;2;9;20;5;0;7;0;", 19, 7, &l), 0);
    assert_int_equal(l.runs, LEDGER_FREE);
    assert_int_equal(l.alone_offset, -1);
}

static void no_metadata_is_a_fresh_closed_ledger(void **state)
{
    struct ledger l;

    (void)state;
    assert_int_equal(ledger_metadata_read(NULL, 0, 42, &l, &error), 0);
    assert_int_equal(l.base, 42);
    assert_false(l.open);
    assert_int_equal(l.suspect_end, 0);
    assert_int_equal(l.alone_offset, -1);
}

/* Never a crash, never an offset marked that the text does not mark; a failure leaves a fresh one.
 */
static void check_any(const char *text, size_t size)
{
    struct ledger l, fresh;

    ledger_init(&fresh, 5, 0);
    memset(&l, 0xA5, sizeof l);
    if (read_exactly(text, size, 5, &l)) {
        assert_memory_equal(l.bits, fresh.bits, sizeof l.bits);
        assert_int_equal(l.highest_finished, -1);
        assert_false(l.open);
        assert_true(strlen(error.message) > 0);
    }
    assert_int_equal(l.base, 5);
    assert_false(ledger_is_finished(&l, 5));
}

static void every_truncation_has_an_answer(void **state)
{
    char text[LEDGER_METADATA_MAX];
    struct ledger written, found;
    size_t size;

    (void)state;
    ledger_init(&written, 5, 100);
    ledger_take_over(&written, 5120, 50);
    for (int64_t o = 6; o < 5 + LEDGER_SPAN; o += 3)
        ledger_finish(&written, o);
    size = ledger_metadata_write(&written, text);
    for (size_t cut = 0; cut <= size; cut++)
        check_any(text, cut);
    /* A cut that is accepted knows less, never more. */
    for (size_t cut = size - 64; cut < size; cut++) {
        assert_int_equal(read_exactly(text, cut, 5, &found), 0);
        for (int64_t o = 5; o < 5 + LEDGER_SPAN; o++)
            assert_true(!ledger_is_finished(&found, o) || ledger_is_finished(&written, o));
    }
}

static void random_bytes_have_an_answer(void **state)
{
    static const char likely[] = "0123456789;-AZaz+/=\n ";
    char text[256];

    (void)state;
    fixture_seed(3);
    for (int i = 0; i < 200000; i++) {
        size_t size = fixture_random(sizeof text);

        for (size_t j = 0; j < size; j++)
            text[j] = fixture_random(4) ? likely[fixture_random(sizeof likely - 1)]
                                        : (char)fixture_random(256);
        if (size > 14 && fixture_random(2))
            memcpy(text, "1;1;0;9;0;-1;0;", 15);
        else if (size > 18 && fixture_random(2))
            memcpy(text, "2;3;4;9;40;6;0;9;8;", 19);
        check_any(text, size);
    }
}

static void assert_refused(const char *text)
{
    struct ledger l;

    if (!read_exactly(text, strlen(text), 100, &l))
        fail_msg("\"%s\" was accepted", text);
    assert_non_null(strstr(error.message, "offset 100"));
}

static void wrong_texts_are_refused(void **state)
{
    (void)state;
    assert_refused("1");
    assert_refused("3;1;0;9;0;-1;0;0;0;");                /* another version */
    assert_refused("1;3;0;9;0;-1;0;");                    /* open is 0, 1 or 2 */
    assert_refused("2;4;0;9;0;-1;0;0;0;");                /* ... or 3 */
    assert_refused("2;1;0;9;0;-1;0;");                    /* two numbers are missing, */
    assert_refused("2;1;0;9;0;-1;0;0;");                  /* one is, */
    assert_refused("2;1;0;9;0;-1;0;0;-1;");               /* one is negative */
    assert_refused("1;1;-1;9;0;-1;0;");                   /* a negative count */
    assert_refused("1;1;99999999999;9;0;-1;0;");          /* beyond its type */
    assert_refused("1;1;0;9;99999999999999999999;-1;0;"); /* beyond 64 bits */
    assert_refused("1;1;0;9;0;-2;0;");
    assert_refused("1;1;0;;0;-1;0;");                    /* empty */
    assert_refused("1;1;0;9;0;-1;0");                    /* no end */
    assert_refused("1;1;0;9;0;-1;0;A=");                 /* not of the alphabet */
    assert_refused("1;1;0;9;0;-1;0;AQ");                 /* base itself is marked */
    assert_refused("1;1;0;9;0;-1;0;;");                  /* an engine_id without digits, */
    assert_refused("1;1;0;9;0;-1;0;;12345678901234567"); /* with too many, */
    assert_refused("1;1;0;9;0;-1;0;;12x4");              /* with others, */
    assert_refused("1;1;0;9;0;-1;0;;12;3");              /* and something after it */
    assert_refused("some other program's \"metadata\"");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(random_ledgers_come_back_the_same),
        cmocka_unit_test(the_longest_fits),
        cmocka_unit_test(the_second_form_is_for_groups),
        cmocka_unit_test(no_metadata_is_a_fresh_closed_ledger),
        cmocka_unit_test(every_truncation_has_an_answer),
        cmocka_unit_test(random_bytes_have_an_answer),
        cmocka_unit_test(wrong_texts_are_refused),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
