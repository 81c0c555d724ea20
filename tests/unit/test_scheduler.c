/* SPDX-License-Identifier: MIT
 * The queue of admitted jobs: its rules one by one, and generated sequences against a plain array.
 */
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <unistd.h>
#include <cmocka.h>

#include "kernels/base/clock.h"
#include "tests/unit/worker_fixture.h"
#include "worker/scheduler.h"

enum { AGEING = 1000 };
static struct error error;
static uint64_t numbers;

static struct scheduler *create(void)
{
    struct scheduler *s = scheduler_create(64, AGEING, &error);

    assert_non_null(s);
    return s;
}

static struct job *job_of(const char *tenant, int32_t priority)
{
    struct job *job = fixture_job(0, (int64_t)numbers, 1, numbers);

    numbers++;
    job->request.tenant = (struct text){tenant, strlen(tenant)};
    job->request.priority = priority;
    return job;
}

static struct job *push(struct scheduler *s, const char *tenant, int32_t priority, int64_t now)
{
    struct job *job = job_of(tenant, priority);

    scheduler_push(s, job, now);
    return job;
}

/* The one job that comes next. */
static struct job *take(struct scheduler *s)
{
    struct job_list out;

    job_list_init(&out);
    scheduler_take(s, 1, 1000, true, 0, &out);
    return job_list_pop(&out);
}

static void take_is(struct scheduler *s, struct job *wanted)
{
    struct job *job = take(s);

    assert_ptr_equal(job, wanted);
    job_destroy(job);
}

static void higher_priorities_first_then_arrival(void **state)
{
    struct scheduler *s = create();
    struct job *low = push(s, "", -3, 0), *a = push(s, "", 0, 0), *b = push(s, "", 0, 1),
               *high = push(s, "", 10, 2), *beyond = push(s, "", 2000000000, 3);

    (void)state;
    take_is(s, high);
    take_is(s, beyond); /* out of range counts as the highest */
    take_is(s, a);
    take_is(s, b);
    take_is(s, low);
    assert_null(take(s));
    scheduler_destroy(s);
}

/* The lowest priority waits behind at most (20 levels of ageing) of the highest. */
static void nothing_starves(void **state)
{
    struct scheduler *s = create();
    struct job *low = push(s, "", -10, 0);
    int64_t now;
    bool came = false;

    (void)state;
    push(s, "", 10, 0);
    for (now = 0; now <= 21 * AGEING && !came; now += 10) {
        struct job *job;

        push(s, "", 10, now); /* more than is taken */
        job = take(s);
        came = job == low;
        job_destroy(job);
    }
    assert_true(came);
    assert_true(now >= 20 * AGEING); /* but not before its time */
    scheduler_destroy(s);
}

static void tenants_take_turns(void **state)
{
    struct scheduler *s = create();
    char order[16] = "";

    (void)state;
    for (int i = 0; i < 6; i++)
        push(s, "a", 0, i);
    push(s, "b", 0, 6);
    push(s, "c", 0, 7);
    push(s, "b", 0, 8);
    for (int i = 0; i < 9; i++) {
        struct job *job = take(s);

        strncat(order, job->request.tenant.data, 1);
        job_destroy(job);
    }
    assert_string_equal(order, "abcabaaaa");
    scheduler_destroy(s);
}

static void a_wide_job_gets_its_rows_in_the_end(void **state)
{
    struct scheduler *s = create();
    struct job *wide = job_of("", 0), *small;
    struct job_list out;

    (void)state;
    job_list_init(&out);
    wide->request.num_beams = 8;
    scheduler_push(s, wide, 0);
    small = push(s, "", 0, 1);
    scheduler_take(s, 10, 7, false, 0, &out); /* 7 rows are free: nobody overtakes it */
    assert_int_equal(out.count, 0);
    scheduler_take(s, 10, 8, false, 0, &out);
    assert_int_equal(out.count, 1);
    assert_ptr_equal(out.head, wide);
    scheduler_take(s, 10, 1, false, 0, &out);
    assert_int_equal(out.count, 2);
    assert_ptr_equal(out.head->next, small);
    fixture_jobs_destroy(&out);
    scheduler_destroy(s);
}

static void rows_are_counted(void **state)
{
    struct scheduler *s = create();
    struct job_list out;

    (void)state;
    job_list_init(&out);
    for (int i = 0; i < 5; i++) {
        struct job *job = job_of("", 0);

        job->request.num_return_sequences = 3;
        scheduler_push(s, job, i);
    }
    scheduler_take(s, 10, 10, true, 0, &out);
    assert_int_equal(out.count, 3); /* 9 rows of 10 */
    scheduler_take(s, 1, 100, true, 0, &out);
    assert_int_equal(out.count, 4); /* one job, however many rows */
    fixture_jobs_destroy(&out);
    scheduler_destroy(s);
}

static void a_suspect_runs_alone(void **state)
{
    struct scheduler *s = create();
    struct job *first = push(s, "", 0, 0), *alone = job_of("", 0), *last;
    struct job_list out;

    (void)state;
    job_list_init(&out);
    alone->run_alone = true;
    scheduler_push(s, alone, 1);
    last = push(s, "", 0, 2);
    scheduler_take(s, 10, 100, true, 0, &out);
    assert_int_equal(out.count, 1); /* what stands before it, and nothing beside it */
    assert_ptr_equal(out.head, first);
    scheduler_take(s, 10, 100, false, 0, &out);
    assert_int_equal(out.count, 1); /* the engine is busy */
    scheduler_take(s, 10, 100, true, 0, &out);
    assert_int_equal(out.count, 2);
    assert_ptr_equal(out.head->next, alone);
    scheduler_take(s, 10, 100, true, 0, &out);
    assert_ptr_equal(out.head->next->next, last);
    fixture_jobs_destroy(&out);
    scheduler_destroy(s);
}

static void deadlines_are_swept_in_order(void **state)
{
    static const int64_t deadlines[] = {50, 10, 30, 0, 20, 40};
    struct scheduler *s = create();
    struct job_list out;

    (void)state;
    for (int i = 0; i < 6; i++) {
        struct job *job = job_of("t", i % 3);

        job->request.has_deadline = deadlines[i] != 0;
        job->request.deadline_us = deadlines[i];
        scheduler_push(s, job, i);
    }
    job_list_init(&out);
    scheduler_sweep(s, 9, &out);
    assert_int_equal(out.count, 0);
    scheduler_sweep(s, 30, &out); /* a deadline that is now has passed */
    assert_int_equal(out.count, 3);
    assert_int_equal(out.head->request.deadline_us, 10);
    assert_int_equal(out.head->next->request.deadline_us, 20);
    assert_int_equal(out.head->next->next->request.deadline_us, 30);
    assert_int_equal(scheduler_depth(s), 3);
    fixture_jobs_destroy(&out);
    scheduler_destroy(s);
}

static void a_cancelled_job_is_swept(void **state)
{
    struct scheduler *s = create();
    struct job *a = push(s, "", 0, 0), *b = push(s, "", 0, 1);
    struct job_list out;
    uint8_t unknown[16] = {9};

    (void)state;
    job_list_init(&out);
    assert_false(scheduler_cancel(s, unknown));
    assert_true(scheduler_cancel(s, a->id));
    assert_true(atomic_load(&a->cancel_requested));
    assert_int_equal(scheduler_depth(s), 2); /* still inside */
    assert_false(scheduler_cancel(s, a->id));
    take_is(s, b); /* it does not run any more */
    scheduler_sweep(s, 0, &out);
    assert_int_equal(out.count, 1);
    assert_ptr_equal(out.head, a);
    assert_int_equal(scheduler_depth(s), 0);
    fixture_jobs_destroy(&out);
    scheduler_destroy(s);
}

static void jobs_of_a_revoked_partition_are_dropped(void **state)
{
    struct scheduler *s = create();
    struct job *mine = job_of("", 0), *other = job_of("", 0);
    size_t alive;

    (void)state;
    for (int i = 0; i < 5; i++)
        push(s, i % 2 ? "a" : "b", i, i); /* partition 0, epoch 1 */
    mine->epoch = 3;
    other->partition = 1;
    scheduler_push(s, mine, 0);
    scheduler_push(s, other, 0);
    alive = job_alive();
    scheduler_drop_stale(s, 0, 3);
    assert_int_equal(alive - job_alive(), 5);
    assert_int_equal(scheduler_depth(s), 2);
    scheduler_drop_stale(s, 0, 0);
    assert_int_equal(scheduler_depth(s), 1);
    scheduler_destroy(s);
}

static void announced(void *user, struct job *job)
{
    job_list_push(user, fixture_job(0, job->offset, 1, 0));
}

static void old_jobs_are_announced_once(void **state)
{
    struct scheduler *s = create();
    struct job *first = push(s, "", 0, 10);
    struct job_list seen;

    (void)state;
    job_list_init(&seen);
    push(s, "", 5, 20);
    push(s, "", 0, 30);
    scheduler_announce(s, 10, 100, announced, &seen);
    assert_int_equal(seen.count, 0);
    scheduler_announce(s, 25, 1, announced, &seen);
    assert_int_equal(seen.count, 1); /* one a call, the oldest */
    assert_int_equal(seen.head->offset, first->offset);
    assert_true(first->accepted_sent);
    scheduler_announce(s, 25, 100, announced, &seen);
    scheduler_announce(s, 25, 100, announced, &seen);
    assert_int_equal(seen.count, 2);
    job_destroy(take(s)); /* taken before its time came: never announced */
    job_destroy(take(s));
    job_destroy(take(s));
    scheduler_announce(s, 100, 100, announced, &seen);
    assert_int_equal(seen.count, 2);
    fixture_jobs_destroy(&seen);
    scheduler_destroy(s);
}

/* ---- waiting ---- */

static void *push_later(void *argument)
{
    usleep(50000);
    push(argument, "", 0, 0);
    return NULL;
}

static void *wake_later(void *argument)
{
    usleep(50000);
    scheduler_wake(argument);
    return NULL;
}

static int64_t waited_ms(struct scheduler *s, void *(*other)(void *), struct job_list *out)
{
    int64_t begun = clock_mono_us();
    pthread_t thread;

    if (other)
        assert_int_equal(pthread_create(&thread, NULL, other, s), 0);
    scheduler_take(s, 1, 100, true, other ? 10000000 : 60000, out);
    if (other)
        pthread_join(thread, NULL);
    return (clock_mono_us() - begun) / 1000;
}

static void waits_end_early(void **state)
{
    struct scheduler *s = create();
    struct job_list out;

    (void)state;
    job_list_init(&out);
    assert_true(waited_ms(s, NULL, &out) >= 55);
    assert_int_equal(out.count, 0);
    assert_true(waited_ms(s, wake_later, &out) < 5000);
    assert_int_equal(out.count, 0);
    assert_true(waited_ms(s, push_later, &out) < 5000);
    assert_int_equal(out.count, 1);
    fixture_jobs_destroy(&out);
    scheduler_destroy(s);
}

/* ---- against a plain array ---- */

struct waiting {
    struct job *job;
    int64_t queued;
};
enum { MOST = 400, CLASSES = 21, TENANTS = 5 };

struct model {
    struct waiting jobs[MOST];
    int count;
    int64_t ring[CLASSES][TENANTS]; /* place of a tenant in its class's ring, 0 = not in it */
    int64_t places;
};

static int tenant_of(const struct job *job)
{
    return job->request.tenant.data[0] - 'a';
}

static void model_remove(struct model *m, int i)
{
    int class = m->jobs[i].job->request.priority + 10, tenant = tenant_of(m->jobs[i].job);
    bool last = true;

    memmove(&m->jobs[i], &m->jobs[i + 1], (size_t)(m->count - i - 1) * sizeof *m->jobs);
    m->count--;
    for (int j = 0; j < m->count; j++)
        last = last && !(m->jobs[j].job->request.priority + 10 == class &&
                         tenant_of(m->jobs[j].job) == tenant);
    if (last)
        m->ring[class][tenant] = 0;
}

static void model_push(struct model *m, struct job *job, int64_t now)
{
    int64_t *place = &m->ring[job->request.priority + 10][tenant_of(job)];

    m->jobs[m->count++] = (struct waiting){job, now};
    if (!*place)
        *place = ++m->places;
}

/* The index of the job that is next: the class by age and priority, then the tenant's turn. */
static int model_next(const struct model *m)
{
    int best = -1, next = -1;
    int64_t best_key = 0;

    for (int i = 0; i < m->count; i++) { /* arrival order: the first of a class is its oldest */
        int64_t key = m->jobs[i].queued - (int64_t)(m->jobs[i].job->request.priority + 10) * AGEING;
        bool higher =
            best >= 0 && m->jobs[i].job->request.priority > m->jobs[best].job->request.priority;

        if (best < 0 || key < best_key || (key == best_key && higher)) {
            best = i;
            best_key = key;
        }
    }
    for (int i = 0; best >= 0 && i < m->count; i++) {
        int class = m->jobs[i].job->request.priority + 10;

        if (m->jobs[i].job->request.priority == m->jobs[best].job->request.priority &&
            (next < 0 || m->ring[class][tenant_of(m->jobs[i].job)] <
                             m->ring[class][tenant_of(m->jobs[next].job)]))
            next = i;
    }
    return next;
}

static void model_took(struct model *m, int i)
{
    int class = m->jobs[i].job->request.priority + 10, tenant = tenant_of(m->jobs[i].job);

    m->ring[class][tenant] = ++m->places;
    model_remove(m, i);
}

static void sequence_push(struct scheduler *s, struct model *m, int64_t now)
{
    static const char *const tenants[TENANTS] = {"a", "b", "c", "d", "e"};
    struct job *job = job_of(tenants[fixture_random(TENANTS)], (int32_t)fixture_random(21) - 10);

    if (fixture_random(3) == 0) {
        job->request.has_deadline = true;
        job->request.deadline_us = now + (int64_t)fixture_random(5000);
    }
    job->request.num_return_sequences = 1 + (int32_t)fixture_random(4);
    model_push(m, job, now);
    scheduler_push(s, job, now);
}

static void sequence_take(struct scheduler *s, struct model *m)
{
    int32_t most = 1 + (int32_t)fixture_random(6), rows = (int32_t)fixture_random(12);
    struct job_list out;
    struct job *job;

    job_list_init(&out);
    scheduler_take(s, most, rows, true, 0, &out);
    assert_true((int32_t)out.count <= most);
    while ((job = job_list_pop(&out))) {
        int i = model_next(m);

        assert_true(i >= 0);
        assert_ptr_equal(m->jobs[i].job, job);
        rows -= job->request.num_return_sequences;
        assert_true(rows >= 0);
        most--;
        model_took(m, i);
        job_destroy(job);
    }
    if (most && m->count) /* it stopped because the next one does not fit */
        assert_true(m->jobs[model_next(m)].job->request.num_return_sequences > rows);
}

static void sequence_sweep(struct scheduler *s, struct model *m, int64_t now)
{
    struct job_list out;
    struct job *job;

    job_list_init(&out);
    if (m->count && fixture_random(2)) {
        int i = (int)fixture_random((uint64_t)m->count);

        assert_true(scheduler_cancel(s, m->jobs[i].job->id));
    }
    scheduler_sweep(s, now, &out);
    while ((job = job_list_pop(&out))) {
        int i = 0;

        while (i < m->count && m->jobs[i].job != job)
            i++;
        assert_true(i < m->count);
        assert_true(atomic_load(&job->cancel_requested) ||
                    (job->request.has_deadline && job->request.deadline_us <= now));
        model_remove(m, i);
        job_destroy(job);
    }
    for (int i = 0; i < m->count; i++) {
        assert_false(atomic_load(&m->jobs[i].job->cancel_requested));
        assert_false(m->jobs[i].job->request.has_deadline &&
                     m->jobs[i].job->request.deadline_us <= now);
    }
}

static void sequences_agree_with_an_array(void **state)
{
    struct model *m = calloc(1, sizeof *m);

    (void)state;
    fixture_seed(6);
    for (int round = 0; round < 60; round++) {
        struct scheduler *s = create();
        int64_t now = 0;

        memset(m, 0, sizeof *m);
        for (int step = 0; step < 1500; step++) {
            now += (int64_t)fixture_random(40);
            if (fixture_random(100) < 50 && m->count < MOST)
                sequence_push(s, m, now);
            else if (fixture_random(100) < 70)
                sequence_take(s, m);
            else
                sequence_sweep(s, m, now);
            assert_int_equal(scheduler_depth(s), m->count);
        }
        scheduler_destroy(s);
        assert_int_equal(job_alive(), 0);
    }
    free(m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(higher_priorities_first_then_arrival),
        cmocka_unit_test(nothing_starves),
        cmocka_unit_test(tenants_take_turns),
        cmocka_unit_test(a_wide_job_gets_its_rows_in_the_end),
        cmocka_unit_test(rows_are_counted),
        cmocka_unit_test(a_suspect_runs_alone),
        cmocka_unit_test(deadlines_are_swept_in_order),
        cmocka_unit_test(a_cancelled_job_is_swept),
        cmocka_unit_test(jobs_of_a_revoked_partition_are_dropped),
        cmocka_unit_test(old_jobs_are_announced_once),
        cmocka_unit_test(waits_end_early),
        cmocka_unit_test(sequences_agree_with_an_array),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
