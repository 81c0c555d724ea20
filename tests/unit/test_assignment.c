/* SPDX-License-Identifier: MIT
 * The races of worker/assignment.h, one by one and with threads that run into one another. */
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <unistd.h>
#include <cmocka.h>

#include "kernels/base/clock.h"
#include "tests/unit/worker_fixture.h"
#include "worker/assignment.h"
#include "worker/pipeline.h"

static struct error error;
static rd_kafka_t *consumer; /* never connects; it has group metadata to give */

static int group_setup(void **state)
{
    rd_kafka_conf_t *conf = rd_kafka_conf_new();
    char reason[256];

    (void)state;
    if (rd_kafka_conf_set(conf, "group.id", "g", reason, sizeof reason))
        return -1;
    consumer = rd_kafka_new(RD_KAFKA_CONSUMER, conf, reason, sizeof reason);
    return consumer ? 0 : -1;
}

static int group_teardown(void **state)
{
    (void)state;
    rd_kafka_destroy(consumer);
    return 0;
}

static struct assignment *create(void)
{
    struct assignment *a = assignment_create(&error);

    assert_non_null(a);
    assignment_set_consumer(a, consumer);
    return a;
}

static void take(struct assignment *a, int32_t partition, const struct ledger *ledger)
{
    struct duplicates *d = duplicates_create((struct duplicates_limits){1000000, 100, 1000});
    struct ledger fresh;

    ledger_init(&fresh, 0, 16);
    assert_non_null(d);
    assert_int_equal(assignment_take(a, partition, ledger ? ledger : &fresh, d), 0);
}

/* Reads a record that must be admitted; the job that it becomes. */
static struct job *admit(struct assignment *a, int32_t partition, int64_t offset)
{
    struct assignment_admission answer;

    assert_true(assignment_begin(a, partition, offset, LEDGER_SPAN, 3, &answer));
    assert_int_equal(answer.answer, LEDGER_ADMIT);
    return fixture_job(partition, offset, answer.epoch, (uint64_t)(partition * 100000 + offset));
}

static void open_ok(struct assignment *a, struct job_list *jobs, struct job_list *stale,
                    struct assignment_transaction *t)
{
    job_list_init(stale);
    if (assignment_open(a, jobs, stale, t, &error))
        fail_msg("%s", error.message);
}

static void a_transaction_prepares_and_a_commit_applies(void **state)
{
    struct assignment *a = create();
    struct assignment_transaction t;
    struct assignment_admission answer;
    struct job_list jobs, stale;

    (void)state;
    take(a, 3, NULL);
    take(a, 5, NULL);
    job_list_init(&jobs);
    job_list_push(&jobs, admit(a, 3, 0));
    job_list_push(&jobs, admit(a, 5, 0));
    fixture_jobs_destroy(&jobs); /* two that still run elsewhere */
    job_list_push(&jobs, admit(a, 3, 1));
    job_list_push(&jobs, admit(a, 5, 1));
    job_list_push(&jobs, admit(a, 3, 2));
    open_ok(a, &jobs, &stale, &t);
    assert_int_equal(t.part_count, 2);
    assert_non_null(t.group);
    assert_int_equal(stale.count, 0);
    assert_int_equal(jobs.count, 3);
    assert_true(ledger_is_finished(&t.parts[0].ledger, 2));
    assert_int_equal(t.parts[0].ledger.base, 0); /* 0 is not finished */
    assert_true(assignment_still_owned(a, &t));
    /* Not yet for anybody else. */
    assert_true(assignment_begin(a, 3, 1, LEDGER_SPAN, 3, &answer));
    assert_int_equal(answer.answer, LEDGER_RUNNING);
    assert_int_equal(assignment_ahead(a), 0);
    assignment_committed(a, &jobs, 1000);
    assignment_close(a, &t);
    assert_null(t.group);
    assert_int_equal(assignment_ahead(a), 2);
    assert_true(assignment_begin(a, 3, 1, LEDGER_SPAN, 3, &answer));
    assert_int_equal(answer.answer, LEDGER_DONE);
    fixture_jobs_destroy(&jobs);
    assignment_destroy(a);
}

static void jobs_of_an_earlier_ownership_are_stale(void **state)
{
    struct assignment *a = create();
    struct assignment_transaction t;
    struct job_list jobs, stale;
    struct assignment_admission answer;
    struct ledger ledger;
    struct job *old, *new;

    (void)state;
    take(a, 1, NULL);
    old = admit(a, 1, 0);
    assert_true(assignment_current(a, 1, old->epoch));
    assert_true(assignment_give_up(a, 1, 0, &ledger));
    assert_false(assignment_current(a, 1, old->epoch));
    assert_false(assignment_current(a, 1, old->epoch + 1)); /* nobody's */
    take(a, 1, &ledger);                                    /* the same partition comes back */
    new = admit(a, 1, 0);
    assert_int_not_equal(new->epoch, old->epoch);
    assert_false(assignment_current(a, 1, old->epoch));
    assert_true(assignment_current(a, 1, new->epoch));
    job_list_init(&jobs);
    job_list_push(&jobs, old);
    job_list_push(&jobs, fixture_job(2, 0, 1, 9)); /* never owned */
    job_list_push(&jobs, new);
    open_ok(a, &jobs, &stale, &t);
    assert_int_equal(stale.count, 2);
    assert_ptr_equal(stale.head, old);
    assert_int_equal(jobs.count, 1);
    assert_ptr_equal(jobs.head, new);
    assert_int_equal(t.part_count, 1);
    assignment_close(a, &t);
    /* A late commit of the earlier ownership does not touch the present one. */
    assignment_committed(a, &stale, 1000);
    assert_ptr_equal(new, jobs.head);
    assert_true(assignment_begin(a, 1, 0, LEDGER_SPAN, 3, &answer));
    assert_int_equal(answer.answer, LEDGER_RUNNING);
    fixture_jobs_destroy(&jobs);
    fixture_jobs_destroy(&stale);
    assignment_destroy(a);
}

static void nothing_to_commit_opens_nothing(void **state)
{
    struct assignment *a = create();
    struct assignment_transaction t;
    struct job_list jobs, stale;

    (void)state;
    job_list_init(&jobs);
    job_list_push(&jobs, fixture_job(2, 0, 1, 9));
    open_ok(a, &jobs, &stale, &t);
    assert_int_equal(t.part_count, 0);
    assert_null(t.group);
    assert_int_equal(stale.count, 1);
    assignment_close(a, &t);
    fixture_jobs_destroy(&stale);
    assignment_destroy(a);
}

static void without_a_consumer_nothing_is_opened(void **state)
{
    struct assignment *a = create();
    struct assignment_transaction t;
    struct job_list jobs, stale;
    struct ledger ledger;

    (void)state;
    take(a, 0, NULL);
    job_list_init(&jobs);
    job_list_init(&stale);
    job_list_push(&jobs, admit(a, 0, 0));
    job_list_push(&jobs, fixture_job(2, 0, 1, 9));
    assignment_set_consumer(a, NULL);
    assert_int_equal(assignment_open(a, &jobs, &stale, &t, &error), -1);
    assert_int_equal(jobs.count + stale.count, 2);     /* nothing is lost */
    assert_true(assignment_give_up(a, 0, 0, &ledger)); /* nor open */
    fixture_jobs_destroy(&jobs);
    fixture_jobs_destroy(&stale);
    assignment_destroy(a);
}

/* ---- revokes ---- */

struct closer {
    struct assignment *assignment;
    struct assignment_transaction *transaction;
    struct job_list *jobs;
    _Atomic bool closed;
};

static void *close_later(void *argument)
{
    struct closer *c = argument;

    usleep(150000);
    assignment_committed(c->assignment, c->jobs, 1000);
    atomic_store(&c->closed, true);
    assignment_close(c->assignment, c->transaction);
    return NULL;
}

static void a_revoke_waits_for_the_transaction(void **state)
{
    struct assignment *a = create();
    struct assignment_transaction t;
    struct job_list jobs, stale;
    struct closer closer = {a, &t, &jobs, false};
    struct ledger ledger;
    pthread_t thread;

    (void)state;
    take(a, 4, NULL);
    take(a, 6, NULL);
    job_list_init(&jobs);
    job_list_push(&jobs, admit(a, 4, 0));
    open_ok(a, &jobs, &stale, &t);
    assert_true(assignment_give_up(a, 6, 10000, &ledger)); /* not in it: at once */
    assert_int_equal(pthread_create(&thread, NULL, close_later, &closer), 0);
    assert_true(assignment_give_up(a, 4, 10000, &ledger));
    assert_true(atomic_load(&closer.closed));
    assert_int_equal(ledger.base, 1); /* what was committed is in the ledger that is handed on */
    pthread_join(thread, NULL);
    fixture_jobs_destroy(&jobs);
    assignment_destroy(a);
}

static void a_revoke_does_not_wait_for_ever(void **state)
{
    struct assignment *a = create();
    struct assignment_transaction t;
    struct job_list jobs, stale;
    struct ledger ledger;
    int64_t begun = clock_mono_us();

    (void)state;
    take(a, 4, NULL);
    job_list_init(&jobs);
    job_list_push(&jobs, admit(a, 4, 0));
    open_ok(a, &jobs, &stale, &t);
    assert_true(assignment_still_owned(a, &t));
    assert_false(assignment_give_up(a, 4, 120, &ledger)); /* not in order */
    assert_true(clock_mono_us() - begun >= 100000);
    assert_false(assignment_still_owned(a, &t)); /* so it aborts */
    take(a, 4, NULL);
    assert_false(assignment_still_owned(a, &t)); /* coming back does not help */
    assignment_close(a, &t);
    assert_true(assignment_give_up(a, 4, 0, &ledger));
    fixture_jobs_destroy(&jobs);
    assignment_destroy(a);
}

static void a_lost_partition_is_given_up_at_once(void **state)
{
    struct assignment *a = create();
    struct assignment_transaction t;
    struct job_list jobs, stale;
    struct ledger ledger;
    int64_t begun = clock_mono_us();

    (void)state;
    take(a, 4, NULL);
    job_list_init(&jobs);
    job_list_push(&jobs, admit(a, 4, 0));
    open_ok(a, &jobs, &stale, &t);
    assert_false(assignment_give_up(a, 4, 0, &ledger));
    assert_true(clock_mono_us() - begun < 2000000);
    assert_false(assignment_still_owned(a, &t));
    assert_false(assignment_give_up(a, 4, 0, &ledger)); /* not owned: nothing to give */
    assignment_close(a, &t);
    fixture_jobs_destroy(&jobs);
    assignment_destroy(a);
}

/* ---- admission ---- */

static enum ledger_answer begin(struct assignment *a, int64_t offset)
{
    struct assignment_admission answer;

    assert_true(assignment_begin(a, 0, offset, LEDGER_SPAN, 3, &answer));
    return answer.answer;
}

/* The client delivers from further back all by itself: what runs does not run beside itself. */
static void a_record_that_runs_is_not_begun_again(void **state)
{
    struct assignment *a = create();
    struct ledger ledger;

    (void)state;
    ledger_init(&ledger, 10, 16);
    ledger_finish(&ledger, 12); /* by an owner before */
    take(a, 0, &ledger);
    for (int64_t o = 10; o < 14; o++)
        assert_int_equal(begin(a, o), o == 12 ? LEDGER_DONE : LEDGER_ADMIT);
    for (int64_t o = 0; o < 14; o++)
        assert_int_equal(begin(a, o), o < 10 || o == 12 ? LEDGER_DONE : LEDGER_RUNNING);
    assert_int_equal(begin(a, 14), LEDGER_ADMIT);
    /* That came to nothing: it alone is begun once more, once, whatever is delivered before it. */
    assignment_again(a, 0, 14);
    assert_int_equal(begin(a, 13), LEDGER_RUNNING);
    assert_int_equal(begin(a, 14), LEDGER_ADMIT);
    assert_int_equal(begin(a, 14), LEDGER_RUNNING);
    assert_true(assignment_give_up(a, 0, 0, &ledger));
    assignment_again(a, 0, 14); /* not owned: nothing happens */
    ledger_init(&ledger, 13, 16);
    take(a, 0, &ledger); /* another ownership starts at what is committed */
    assert_int_equal(begin(a, 13), LEDGER_ADMIT);
    assignment_destroy(a);
}

static void only_owned_partitions_are_read(void **state)
{
    struct assignment *a = create();
    struct assignment_admission answer;
    uint8_t id[16];

    (void)state;
    fixture_id(1, id);
    assert_false(assignment_begin(a, 0, 0, 64, 3, &answer));
    assert_false(assignment_begin(a, -1, 0, 64, 3, &answer));
    assert_false(assignment_begin(a, ASSIGNMENT_PARTITIONS_MAX, 0, 64, 3, &answer));
    assert_false(assignment_has_room(a, 0, 64));
    take(a, 0, NULL);
    for (int64_t o = 0; o < 64; o++) {
        assert_true(assignment_begin(a, 0, o, 64, 3, &answer));
        assert_int_equal(answer.answer, LEDGER_ADMIT);
        assert_int_equal(answer.attempt, 1);
        assert_int_equal(answer.runs, LEDGER_FREE);
    }
    assert_true(assignment_begin(a, 0, 64, 64, 3, &answer));
    assert_int_equal(answer.answer, LEDGER_TOO_FAR);
    assert_false(assignment_has_room(a, 0, 64));
    assert_true(assignment_is_new(a, 0, id, 0));
    assert_false(assignment_is_new(a, 0, id, 1));
    assert_int_equal(assignment_unfinished(a, 0, 70), 70);
    assignment_destroy(a);
}

static void room_comes_back_with_hysteresis(void **state)
{
    struct assignment *a = create();
    struct job_list jobs;

    (void)state;
    take(a, 0, NULL);
    job_list_init(&jobs);
    for (int64_t o = 0; o < 64; o++)
        job_list_push(&jobs, admit(a, 0, o));
    for (int i = 0; i < 16; i++) {
        struct job_list one;

        job_list_init(&one);
        job_list_push(&one, job_list_pop(&jobs));
        assert_false(assignment_has_room(a, 0, 64));
        assignment_committed(a, &one, 1);
        fixture_jobs_destroy(&one);
    }
    assert_false(assignment_has_room(a, 0, 64)); /* 48 of 64 are left: exactly three quarters */
    assignment_committed(a, &jobs, 1);
    assert_true(assignment_has_room(a, 0, 64));
    fixture_jobs_destroy(&jobs);
    assignment_destroy(a);
}

/* Deaths alone, each found by the next owner through what was committed. */
static void poison_after_the_last_death_alone(void **state)
{
    const struct assignment_mark mark = {0, 0, 1, LEDGER_SINGLE};
    struct ledger ledger, marked;
    struct assignment_admission answer;

    (void)state;
    ledger_init(&ledger, 0, 16);
    ledger.open = true;
    for (int deaths = 0; deaths < 2; deaths++)
        ledger_take_over(&ledger, 16, 100);
    for (int deaths = 0; deaths <= 6; deaths++) {
        struct assignment *a = create();

        take(a, 0, &ledger);
        assert_true(assignment_begin(a, 0, 0, 64, 3, &answer));
        assert_int_equal(answer.runs, deaths ? LEDGER_SINGLE : LEDGER_GROUP);
        assert_int_equal(answer.attempt, 3 + deaths);
        assert_int_equal(answer.poison, deaths >= 3);
        assert_int_equal(answer.unreadable, deaths >= 6);
        assert_true(assignment_begin(a, 0, 1, 64, 3, &answer));
        assert_false(answer.poison); /* its neighbour is not */
        assert_true(assignment_begin(a, 0, 0, 64, 3, &answer));
        assert_int_equal(answer.answer, LEDGER_RUNNING); /* it waits for its turn */
        assert_true(assignment_mark_alone(a, &mark, &marked));
        assignment_destroy(a); /* it dies */
        ledger = marked;
        assert_true(ledger_take_over(&ledger, 16, 100));
    }
}

/* Suspects of any partition are waited for until they are read; marks are of owned ones. */
static void suspects_are_expected_until_they_are_read(void **state)
{
    const struct assignment_mark group = {2, 0, 2, LEDGER_GROUP}, other = {3, 0, 1, LEDGER_GROUP};
    struct assignment *a = create();
    struct assignment_admission answer;
    struct ledger ledger;

    (void)state;
    take(a, 0, NULL);
    assert_false(assignment_expects_suspects(a));
    ledger_init(&ledger, 0, 16);
    ledger.open = true;
    for (int deaths = 0; deaths < 2; deaths++) {
        assert_false(assignment_expects_suspects(a));
        ledger_take_over(&ledger, 16, 2);
    }
    take(a, 2, &ledger);
    for (int64_t o = 0; o < 2; o++) {
        assert_true(assignment_expects_suspects(a));
        assert_true(assignment_begin(a, 2, o, 64, 3, &answer));
        assert_int_equal(answer.answer, LEDGER_ADMIT);
        assert_int_equal(answer.runs, LEDGER_GROUP);
    }
    assert_false(assignment_expects_suspects(a));
    assert_false(assignment_mark_alone(a, &other, &ledger));
    assert_true(assignment_mark_alone(a, &group, &ledger));
    assert_int_equal(ledger.runs, LEDGER_GROUP);
    assert_int_equal(ledger.alone_end, 2);
    assignment_destroy(a);
}

static void duplicates_of_a_committed_job(void **state)
{
    struct assignment *a = create();
    struct job_list jobs;
    uint8_t id[16], retry[16];

    (void)state;
    take(a, 0, NULL);
    job_list_init(&jobs);
    job_list_push(&jobs, admit(a, 0, 0));
    job_list_push(&jobs, admit(a, 0, 1));
    jobs.head->next->outcome = JOB_DUPLICATE; /* its id is not to be remembered at its offset */
    memcpy(id, jobs.head->id, 16);
    memcpy(retry, jobs.head->next->id, 16);
    assignment_committed(a, &jobs, 1000);
    assert_false(assignment_is_new(a, 0, id, 7));
    assert_true(assignment_is_new(a, 0, retry, 7));
    fixture_jobs_destroy(&jobs);
    assignment_destroy(a);
}

/* ---- threads ---- */

enum { STRESS_PARTITIONS = 6, STRESS_ROUNDS = 4000 };

struct stress {
    struct assignment *assignment;
    _Atomic bool inside[STRESS_PARTITIONS]; /* in an open transaction, as settle sees it */
    _Atomic int violations;
    _Atomic bool done;
    pthread_mutex_t lock;
    struct job_list finished; /* under the lock: intake -> settle */
    _Atomic int64_t committed, aborted;
};

/* settle: opens, looks, "commits" and closes. */
static void *stress_settle(void *argument)
{
    struct stress *s = argument;

    while (!atomic_load(&s->done)) {
        struct assignment_transaction t;
        struct job_list jobs, stale;

        job_list_init(&jobs);
        job_list_init(&stale);
        pthread_mutex_lock(&s->lock);
        job_list_splice(&jobs, &s->finished);
        pthread_mutex_unlock(&s->lock);
        if (assignment_open(s->assignment, &jobs, &stale, &t, NULL))
            atomic_fetch_add(&s->violations, 1);
        for (size_t i = 0; i < t.part_count; i++)
            atomic_store(&s->inside[t.parts[i].partition], true);
        if (t.part_count && assignment_still_owned(s->assignment, &t)) {
            assignment_committed(s->assignment, &jobs, 1000);
            atomic_fetch_add(&s->committed, 1);
        } else if (t.part_count) {
            atomic_fetch_add(&s->aborted, 1);
        }
        for (size_t i = 0; i < t.part_count; i++)
            atomic_store(&s->inside[t.parts[i].partition], false);
        assignment_close(s->assignment, &t);
        fixture_jobs_destroy(&jobs);
        fixture_jobs_destroy(&stale);
    }
    return NULL;
}

static void *stress_reader(void *argument)
{
    struct stress *s = argument;

    while (!atomic_load(&s->done)) {
        if (assignment_current(s->assignment, 0, 2))
            atomic_fetch_add(&s->violations, 1); /* an even epoch is nobody's */
        assignment_ahead(s->assignment);
    }
    return NULL;
}

static void stress_intake(struct stress *s, int64_t *read)
{
    int32_t p = (int32_t)fixture_random(STRESS_PARTITIONS);
    struct assignment_admission answer;
    struct ledger ledger;

    if (assignment_begin(s->assignment, p, read[p], LEDGER_SPAN, 3, &answer)) {
        struct job *job = fixture_job(p, read[p], answer.epoch, (uint64_t)read[p]);

        read[p]++;
        pthread_mutex_lock(&s->lock);
        job_list_push(&s->finished, job);
        pthread_mutex_unlock(&s->lock);
    }
    if (fixture_random(8))
        return;
    bool in_order = assignment_give_up(s->assignment, p, fixture_random(3) ? 5000 : 0, &ledger);

    /* Given up in order: no transaction holds it, and what it committed is in the ledger. */
    if (in_order && atomic_load(&s->inside[p]))
        atomic_fetch_add(&s->violations, 1);
    if (in_order)
        read[p] = ledger.base;
    else
        ledger_init(&ledger, read[p], 16);
    take(s->assignment, p, &ledger);
}

static void revokes_and_transactions_side_by_side(void **state)
{
    struct stress s = {.assignment = create(), .lock = PTHREAD_MUTEX_INITIALIZER};
    int64_t read[STRESS_PARTITIONS] = {0};
    pthread_t settle, reader;

    (void)state;
    fixture_seed(5);
    job_list_init(&s.finished);
    for (int32_t p = 0; p < STRESS_PARTITIONS; p++)
        take(s.assignment, p, NULL);
    assert_int_equal(pthread_create(&settle, NULL, stress_settle, &s), 0);
    assert_int_equal(pthread_create(&reader, NULL, stress_reader, &s), 0);
    for (int round = 0; round < STRESS_ROUNDS; round++)
        stress_intake(&s, read);
    atomic_store(&s.done, true);
    pthread_join(settle, NULL);
    pthread_join(reader, NULL);
    assert_int_equal(atomic_load(&s.violations), 0);
    assert_true(atomic_load(&s.committed) > 0);
    fixture_jobs_destroy(&s.finished);
    assignment_destroy(s.assignment);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_transaction_prepares_and_a_commit_applies),
        cmocka_unit_test(jobs_of_an_earlier_ownership_are_stale),
        cmocka_unit_test(nothing_to_commit_opens_nothing),
        cmocka_unit_test(without_a_consumer_nothing_is_opened),
        cmocka_unit_test(a_revoke_waits_for_the_transaction),
        cmocka_unit_test(a_revoke_does_not_wait_for_ever),
        cmocka_unit_test(a_lost_partition_is_given_up_at_once),
        cmocka_unit_test(a_record_that_runs_is_not_begun_again),
        cmocka_unit_test(only_owned_partitions_are_read),
        cmocka_unit_test(room_comes_back_with_hysteresis),
        cmocka_unit_test(poison_after_the_last_death_alone),
        cmocka_unit_test(suspects_are_expected_until_they_are_read),
        cmocka_unit_test(duplicates_of_a_committed_job),
        cmocka_unit_test(revokes_and_transactions_side_by_side),
    };

    return cmocka_run_group_tests(tests, group_setup, group_teardown);
}
