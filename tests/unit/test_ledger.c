/* SPDX-License-Identifier: MIT
 * Generated sequences of reads, holes and finishes against a plain array of flags; takeovers. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "tests/unit/worker_fixture.h"
#include "worker/ledger.h"

enum { OFFSETS = 60000, FIRST = 1000 };

/* The model: a flag for each offset; the watermark is the first that is not set. */
struct model {
    bool finished[OFFSETS];
    bool begun[OFFSETS];
    int64_t base, next;
};

static void model_finish(struct model *m, int64_t offset)
{
    m->finished[offset] = true;
    while (m->finished[m->base])
        m->base++;
    if (m->next < m->base)
        m->next = m->base;
}

/* What a read may answer, said without bits and rings. */
static enum ledger_answer model_begin(struct model *m, int64_t offset, int64_t ahead)
{
    if (m->finished[offset] || offset < m->base)
        return LEDGER_DONE;
    while (m->next < offset && m->next - m->base < ahead) {
        int64_t hole = m->next++;

        model_finish(m, hole);
    }
    if (offset - m->base >= ahead)
        return LEDGER_TOO_FAR;
    if (m->next <= offset)
        m->next = offset + 1;
    m->begun[offset] = true;
    return LEDGER_ADMIT;
}

static void assert_equals(const struct ledger *l, const struct model *m)
{
    int64_t highest = -1;

    assert_int_equal(l->base, m->base);
    assert_int_equal(l->next, m->next);
    for (int64_t o = FIRST; o < m->base + LEDGER_SPAN && o < OFFSETS; o++) {
        if (m->finished[o] != ledger_is_finished(l, o) && o >= FIRST)
            fail_msg("offset %lld: the ledger says %d", (long long)o, ledger_is_finished(l, o));
        if (o > m->base && m->finished[o])
            highest = o;
    }
    assert_int_equal(ledger_ahead(l), highest < 0 ? 0 : highest - m->base);
    assert_int_equal(l->highest_finished, highest);
}

static void one_sequence(struct ledger *l, struct model *m, int64_t ahead, int steps)
{
    int64_t read = FIRST; /* the next record of the log */

    for (int step = 0; step < steps && read < OFFSETS - LEDGER_SPAN - 64; step++) {
        if (fixture_random(20) == 0) { /* a record comes again */
            int64_t again =
                m->base - 3 + (int64_t)fixture_random((uint64_t)(m->next - m->base) + 3);

            if (again < FIRST || (again >= m->base && !m->begun[again] && !m->finished[again]))
                continue;
            assert_int_equal(ledger_begin(l, again, ahead), model_begin(m, again, ahead));
        } else if (fixture_random(100) < 55) {
            enum ledger_answer answer = ledger_begin(l, read, ahead);

            assert_int_equal(answer, model_begin(m, read, ahead));
            if (answer != LEDGER_TOO_FAR) /* holes: markers, compaction */
                read += 1 + (fixture_random(10) ? 0 : (int64_t)fixture_random(20));
        } else {
            int64_t width = m->next - m->base;
            int64_t offset = m->base + (width ? (int64_t)fixture_random((uint64_t)width) : 0);

            if (fixture_random(4) == 0)
                offset = m->base; /* or the watermark would hardly ever move */
            if (offset >= m->next || !m->begun[offset])
                continue;
            ledger_finish(l, offset);
            model_finish(m, offset);
        }
        if (step % 97 == 0)
            assert_equals(l, m);
    }
    assert_equals(l, m);
}

static void sequences_agree_with_flags(void **state)
{
    static const int64_t aheads[] = {64, 100, 1000, LEDGER_SPAN};
    struct model *m = calloc(1, sizeof *m);
    struct ledger ledger;

    (void)state;
    fixture_seed(1);
    for (int i = 0; i < 40; i++) {
        memset(m, 0, sizeof *m);
        m->base = m->next = FIRST;
        ledger_init(&ledger, FIRST, 10);
        one_sequence(&ledger, m, aheads[i % 4], 4000);
    }
    free(m);
}

static void the_ring_is_used_to_its_last_bit(void **state)
{
    struct ledger l;

    (void)state;
    ledger_init(&l, 7, 0);
    for (int64_t o = 7; o < 7 + LEDGER_SPAN; o++)
        assert_int_equal(ledger_begin(&l, o, LEDGER_SPAN), LEDGER_ADMIT);
    assert_int_equal(ledger_begin(&l, 7 + LEDGER_SPAN, LEDGER_SPAN), LEDGER_TOO_FAR);
    for (int64_t o = 7 + LEDGER_SPAN - 1; o > 7; o--)
        ledger_finish(&l, o);
    assert_int_equal(l.base, 7);
    assert_int_equal(ledger_ahead(&l), LEDGER_SPAN - 1);
    ledger_finish(&l, 7 + LEDGER_SPAN); /* outside: it was never admitted */
    assert_int_equal(ledger_ahead(&l), LEDGER_SPAN - 1);
    ledger_finish(&l, 7);
    assert_int_equal(l.base, 7 + LEDGER_SPAN);
    assert_int_equal(ledger_ahead(&l), 0);
    assert_int_equal(ledger_unfinished(&l, 7 + LEDGER_SPAN), 0);
    assert_false(ledger_is_finished(&l, 7 + LEDGER_SPAN));
    assert_int_equal(ledger_begin(&l, 7 + LEDGER_SPAN, LEDGER_SPAN), LEDGER_ADMIT);
}

/* A gap without records, wider than may be ahead, must not stop the partition. */
static void a_wide_hole_closes_by_itself(void **state)
{
    struct ledger l;

    (void)state;
    ledger_init(&l, 0, 0);
    assert_int_equal(ledger_begin(&l, 100000, 64), LEDGER_ADMIT);
    assert_int_equal(l.base, 100000);
    assert_int_equal(ledger_begin(&l, 100001, 64), LEDGER_ADMIT);
    assert_int_equal(ledger_begin(&l, 100000 + 64, 64), LEDGER_TOO_FAR); /* 100000 still runs */
    ledger_finish(&l, 100000);
    assert_int_equal(ledger_begin(&l, 100000 + 64, 64), LEDGER_ADMIT);
}

/* ---- takeovers ---- */

static void mark_single(struct ledger *l, int64_t offset)
{
    ledger_mark_alone(l, offset, offset + 1, LEDGER_SINGLE);
}

static void only_a_death_makes_suspects(void **state)
{
    struct ledger l;

    (void)state;
    ledger_init(&l, 10, 0);
    assert_false(ledger_take_over(&l, 5, 100));
    assert_true(l.open);
    assert_int_equal(ledger_attempt(&l, 10), 1);
    ledger_give_up(&l);
    assert_false(ledger_take_over(&l, 5, 100)); /* in order */
    assert_int_equal(l.takeovers, 0);
    ledger_begin(&l, 10, 64);
    ledger_begin(&l, 11, 64);
    ledger_finish(&l, 11);
    assert_true(ledger_take_over(&l, 9, 100)); /* the owner died */
    assert_int_equal(l.takeovers, 1);
    assert_int_equal(l.suspect_end, 12 + 5); /* its bound past the last finished one */
    assert_int_equal(l.bound, 9);
    assert_int_equal(ledger_attempt(&l, 10), 2);
    assert_int_equal(ledger_attempt(&l, 16), 2);
    assert_int_equal(ledger_attempt(&l, 17), 1);
    assert_int_equal(ledger_runs(&l, 10), LEDGER_FREE); /* from the second on */
    assert_false(ledger_expects_suspects(&l));
    assert_true(ledger_take_over(&l, 5, 100));
    assert_int_equal(ledger_runs(&l, 10), LEDGER_GROUP);
    assert_int_equal(ledger_runs(&l, 12 + 8), LEDGER_GROUP);
    assert_int_equal(ledger_runs(&l, 12 + 9), LEDGER_FREE);
    assert_int_equal(ledger_attempt(&l, 10), 3);
    assert_true(ledger_expects_suspects(&l));
    ledger_begin(&l, 12 + 8, 64);
    assert_false(ledger_expects_suspects(&l));
}

/* The dead owner cannot have read what was not written. */
static void records_after_the_death_are_no_suspects(void **state)
{
    struct ledger l;

    (void)state;
    ledger_init(&l, 10, 5000);
    l.open = true;
    assert_true(ledger_take_over(&l, 5000, 12));
    assert_int_equal(l.suspect_end, 12);
    assert_int_equal(ledger_attempt(&l, 11), 2);
    assert_int_equal(ledger_attempt(&l, 12), 1);
    ledger_init(&l, 10, 5000);
    l.open = true;
    assert_true(ledger_take_over(&l, 5000, 10)); /* idle when it died: nothing is suspect */
    assert_int_equal(l.takeovers, 0);
    assert_int_equal(ledger_attempt(&l, 10), 1);
}

static void without_suspects_the_count_returns_to_nothing(void **state)
{
    struct ledger l;

    (void)state;
    ledger_init(&l, 0, 2);
    l.open = true;
    assert_true(ledger_take_over(&l, 2, 100));
    assert_true(ledger_take_over(&l, 2, 100));
    assert_int_equal(l.takeovers, 2);
    for (int64_t o = 0; o < 2; o++) {
        assert_int_equal(ledger_begin(&l, o, 64), LEDGER_ADMIT);
        assert_int_equal(l.takeovers, 2);
        ledger_finish(&l, o);
    }
    assert_int_equal(l.takeovers, 0);
    assert_int_equal(l.suspect_end, 0);
    assert_int_equal(ledger_runs(&l, 2), LEDGER_FREE);
}

/* An owner that died before it ran the suspect says nothing against it. */
static void only_deaths_alone_count_against_a_suspect(void **state)
{
    struct ledger l;

    (void)state;
    ledger_init(&l, 0, 4);
    l.open = true;
    for (int i = 0; i < 20; i++)
        assert_true(ledger_take_over(&l, 4, 100));
    assert_int_equal(l.alone_deaths, 0);
    mark_single(&l, 0);
    assert_true(ledger_take_over(&l, 4, 100));
    assert_int_equal(l.alone_deaths, 1);
    assert_int_equal(ledger_runs(&l, 0), LEDGER_SINGLE);
    assert_int_equal(ledger_runs(&l, 1), LEDGER_GROUP);
    for (int i = 0; i < 20; i++) /* deaths before it runs again */
        assert_true(ledger_take_over(&l, 4, 100));
    assert_int_equal(l.alone_deaths, 1);
    mark_single(&l, 0);
    assert_int_equal(l.alone_deaths, 1);
    ledger_give_up(&l); /* drained while it ran */
    assert_false(ledger_take_over(&l, 4, 100));
    assert_int_equal(l.alone_deaths, 1);
    mark_single(&l, 0);
    assert_true(ledger_take_over(&l, 4, 100));
    assert_int_equal(l.alone_deaths, 2);
    mark_single(&l, 1); /* another one: its count is its own */
    assert_int_equal(l.alone_deaths, 0);
    ledger_begin(&l, 0, 64);
    ledger_begin(&l, 1, 64);
    ledger_finish(&l, 1);
    assert_int_equal(l.alone_offset, -1);
    assert_int_equal(l.runs, LEDGER_FREE);
}

/* Two deaths, ten offsets read by the dead owner of each. */
static void begin_groups(struct ledger *l)
{
    ledger_init(l, 0, 10);
    l->open = true;
    assert_true(ledger_take_over(l, 10, 100));
    assert_true(ledger_take_over(l, 10, 100));
    for (int64_t o = 0; o < 10; o++)
        ledger_begin(l, o, 64);
}

/* It blames nobody, however many were left of it; they run singly from then on, no others. */
static void a_death_of_a_group_makes_its_members_single(void **state)
{
    struct ledger l;

    (void)state;
    for (int left = 1; left <= 4; left++) {
        begin_groups(&l);
        ledger_mark_alone(&l, 0, 4, LEDGER_GROUP);
        for (int64_t o = 0; o < 4 - left; o++)
            ledger_finish(&l, o);
        assert_true(ledger_take_over(&l, 10, 100));
        assert_int_equal(l.alone_deaths, 0);
        assert_int_equal(l.alone_offset, -1);
        for (int64_t o = 4 - left; o < 10; o++)
            assert_int_equal(ledger_runs(&l, o), o < 4 ? LEDGER_SINGLE : LEDGER_GROUP);
        for (int64_t o = 4 - left; o < 4; o++) { /* none of them is guilty */
            mark_single(&l, o);
            ledger_finish(&l, o);
        }
        assert_int_equal(l.single_end, 0);
        assert_int_equal(l.takeovers, 3);
        assert_int_equal(ledger_runs(&l, 4), LEDGER_GROUP);
    }
}

/* Two deaths in company, one in a group, three alone. */
static void the_guilty_one_of_a_group_is_found(void **state)
{
    struct ledger l;
    int deaths = 2;

    (void)state;
    begin_groups(&l);
    ledger_mark_alone(&l, 0, 10, LEDGER_GROUP);
    assert_true(ledger_take_over(&l, 10, 100));
    for (deaths++; l.alone_deaths < 3; deaths++) {
        for (int64_t o = l.base; o < 7; o++) {
            assert_int_equal(ledger_runs(&l, o), LEDGER_SINGLE);
            mark_single(&l, o);
            ledger_finish(&l, o);
        }
        mark_single(&l, 7); /* the killer */
        assert_true(ledger_take_over(&l, 10, 100));
    }
    assert_int_equal(l.alone_offset, 7);
    assert_int_equal(deaths, 6);
}

/* Its owner had nothing else of the partition in its hands; before the mark and after the end it
 * may have. */
static void a_death_of_a_round_makes_no_suspects(void **state)
{
    struct ledger l;

    (void)state;
    for (enum ledger_run runs = LEDGER_SINGLE; runs <= LEDGER_GROUP; runs++) {
        begin_groups(&l);
        ledger_mark_alone(&l, 0, runs == LEDGER_SINGLE ? 1 : 5, runs);
        if (runs == LEDGER_GROUP)
            ledger_finish(&l, 4);
        assert_true(ledger_take_over(&l, 10, 100));
        assert_int_equal(l.suspect_end, 10);
        assert_true(ledger_take_over(&l, 10, 100)); /* this owner had not begun its round */
        assert_int_equal(l.suspect_end, runs == LEDGER_SINGLE ? 10 : 15);
        ledger_mark_alone(&l, 0, 4, LEDGER_GROUP);
        for (int64_t o = 0; o < 5; o++)
            ledger_finish(&l, o);
        assert_int_equal(l.runs, LEDGER_FREE); /* it is over: others may have been begun */
        assert_true(ledger_take_over(&l, 10, 100));
        assert_int_equal(l.suspect_end, 15);
        assert_int_equal(l.single_end, 0);
    }
}

static void a_group_that_is_drained_is_forgotten(void **state)
{
    struct ledger l;

    (void)state;
    begin_groups(&l);
    ledger_mark_alone(&l, 0, 4, LEDGER_GROUP);
    ledger_give_up(&l);
    assert_false(ledger_take_over(&l, 10, 100));
    assert_int_equal(l.alone_offset, -1);
    assert_int_equal(ledger_runs(&l, 0), LEDGER_GROUP);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sequences_agree_with_flags),
        cmocka_unit_test(the_ring_is_used_to_its_last_bit),
        cmocka_unit_test(a_wide_hole_closes_by_itself),
        cmocka_unit_test(only_a_death_makes_suspects),
        cmocka_unit_test(records_after_the_death_are_no_suspects),
        cmocka_unit_test(without_suspects_the_count_returns_to_nothing),
        cmocka_unit_test(only_deaths_alone_count_against_a_suspect),
        cmocka_unit_test(a_death_of_a_group_makes_its_members_single),
        cmocka_unit_test(the_guilty_one_of_a_group_is_found),
        cmocka_unit_test(a_death_of_a_round_makes_no_suspects),
        cmocka_unit_test(a_group_that_is_drained_is_forgotten),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
