/* SPDX-License-Identifier: MIT
 *
 * Generated histories of two workers that share three partitions: reads, finishes, transactions
 * that commit, abort or lose their answer, revokes, lost partitions, drains and deaths, on the
 * worker's own assignment, ledger and metadata; the broker is a few arrays. What must hold at every
 * step:
 *   - no record's result is published twice,
 *   - no committed offset or ledger passes a record without a result,
 *   - a worker never dead-letters a job for deaths in which it did not run alone,
 *   - what a dead owner had begun is suspect to the next one, and a group that an owner died in
 *     comes back in single ones.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "tests/unit/worker_fixture.h"
#include "worker/assignment.h"
#include "worker/ledger_metadata.h"

enum { WORKERS = 2, PARTITIONS = 3, RECORDS = 400, AHEAD = 64, BOUND = 40, DEATHS_MAX = 3 };

/* The broker. */
struct partition {
    bool record[RECORDS]; /* false = a hole: a marker, or compacted away */
    int results[RECORDS]; /* committed results */
    int deaths[RECORDS];  /* of owners while it ran alone: the truth */
    bool poisoned[RECORDS];
    bool doubtful[RECORDS]; /* an owner died that had begun it */
    bool grouped[RECORDS];  /* ... in a group */
    int64_t committed;      /* -1 = nothing yet */
    char metadata[LEDGER_METADATA_MAX];
    size_t metadata_size;
    int owner;    /* -1 = nobody */
    int64_t read; /* its owner's position */
};
static struct partition log_of[PARTITIONS];

struct worker {
    struct assignment *assignment;
    struct job_list running, ready;
    enum ledger_run round; /* how what runs was marked */
    bool member[PARTITIONS][RECORDS];
    bool begun[PARTITIONS][RECORDS]; /* since it owns the partition */
};
static struct worker workers[WORKERS];

static rd_kafka_t *consumer;
static struct error error;
static uint64_t seed;
static bool quiet; /* no faults any more */
static int counts[10];
enum {
    COMMITS,
    ABORTS,
    LOST_ANSWERS,
    REVOKES,
    LOSSES,
    CRASHES,
    ALONE,
    POISON,
    GROUPS,
    GROUP_DEATHS
};

#define CHECK(condition)                                                                           \
    do {                                                                                           \
        if (!(condition))                                                                          \
            fail_msg("seed %" PRIu64 ": %s", seed, #condition);                                    \
    } while (0)

/* ---- the broker ---- */

static void broker_read(int32_t p, struct ledger *ledger)
{
    const struct partition *l = &log_of[p];

    if (l->committed < 0)
        ledger_init(ledger, 0, 0);
    else
        CHECK(!ledger_metadata_read(l->metadata, l->metadata_size, l->committed, ledger, &error));
}

/* Every commit goes through here, so the second rule is checked here. */
static void broker_commit(int32_t p, const struct ledger *ledger)
{
    struct partition *l = &log_of[p];

    for (int64_t o = 0; o < RECORDS; o++)
        CHECK(!ledger_is_finished(ledger, o) || !l->record[o] || l->results[o] == 1);
    CHECK(ledger->base >= l->committed);
    l->committed = ledger->base;
    l->metadata_size = ledger_metadata_write(ledger, l->metadata);
}

static void broker_publish(const struct job_list *jobs)
{
    for (const struct job *job = jobs->head; job; job = job->next) {
        CHECK(log_of[job->partition].results[job->offset] == 0);
        log_of[job->partition].results[job->offset] = 1;
    }
}

static void broker_apply(const struct assignment_transaction *t, const struct job_list *jobs)
{
    broker_publish(jobs);
    for (size_t i = 0; i < t->part_count; i++)
        broker_commit(t->parts[i].partition, &t->parts[i].ledger);
}

/* ---- a worker ---- */

static void worker_start(struct worker *w)
{
    w->assignment = assignment_create(&error);
    assert_non_null(w->assignment);
    assignment_set_consumer(w->assignment, consumer);
    job_list_init(&w->running);
    job_list_init(&w->ready);
    w->round = LEDGER_FREE;
    memset(w->member, 0, sizeof w->member);
    memset(w->begun, 0, sizeof w->begun);
}

static void take(int i, int32_t p)
{
    struct duplicates *d = duplicates_create((struct duplicates_limits){1000, 10, 100});
    struct ledger ledger;

    broker_read(p, &ledger);
    ledger_take_over(&ledger, BOUND, RECORDS);
    for (int64_t o = 0; o < RECORDS; o++) {
        CHECK(!log_of[p].doubtful[o] || log_of[p].results[o] || ledger_attempt(&ledger, o) > 1);
        CHECK(!log_of[p].grouped[o] || log_of[p].results[o] ||
              ledger_runs(&ledger, o) == LEDGER_SINGLE);
    }
    broker_commit(p, &ledger);
    assert_int_equal(assignment_take(workers[i].assignment, p, &ledger, d), 0);
    log_of[p].owner = i;
    log_of[p].read = ledger.base;
}

static bool idle(const struct worker *w)
{
    return !w->running.head && !w->ready.head;
}

/* The partition's next record, RECORDS = none. */
static int64_t next_record(int32_t p)
{
    int64_t offset = log_of[p].read;

    while (offset < RECORDS && !log_of[p].record[offset])
        offset++;
    return offset;
}

/* Begins it; false when it is not to run: finished, or too far ahead. */
static bool begin(struct worker *w, int32_t p, int64_t offset, struct assignment_admission *answer)
{
    struct partition *l = &log_of[p];

    CHECK(assignment_begin(w->assignment, p, offset, AHEAD, DEATHS_MAX, answer));
    CHECK(answer->answer != LEDGER_RUNNING);
    if (answer->answer == LEDGER_TOO_FAR)
        return false;
    l->read = offset + 1;
    if (answer->answer == LEDGER_DONE) {
        CHECK(l->results[offset] == 1);
        return false;
    }
    CHECK(l->results[offset] == 0); /* no finished job runs again */
    CHECK(answer->poison == (l->deaths[offset] >= DEATHS_MAX));
    return true;
}

static void run(struct worker *w, int32_t p, int64_t offset,
                const struct assignment_admission *answer)
{
    struct partition *l = &log_of[p];

    if (answer->poison && !l->poisoned[offset])
        counts[POISON]++;
    l->poisoned[offset] = answer->poison;
    w->begun[p][offset] = true;
    w->member[p][offset] = answer->runs != LEDGER_FREE;
    job_list_push(&w->running, fixture_job(p, offset, answer->epoch, (uint64_t)offset));
}

static void mark(struct worker *w, int32_t p, int64_t first, int64_t end, enum ledger_run runs)
{
    const struct assignment_mark mark = {p, first, end, runs};
    struct ledger marked;

    CHECK(assignment_mark_alone(w->assignment, &mark, &marked));
    broker_commit(p, &marked);
    w->round = runs;
}

/* Begins up to `wanted` suspects of a partition for a group; finished ones are passed over. */
static int gather(struct worker *w, int32_t p, int wanted, int64_t offsets[],
                  struct assignment_admission answers[])
{
    struct ledger now;
    int count = 0;

    broker_read(p, &now);
    for (int64_t o = next_record(p); o < RECORDS && count < wanted; o = next_record(p)) {
        if (!ledger_is_finished(&now, o) && ledger_runs(&now, o) != LEDGER_GROUP)
            break;
        if (begin(w, p, o, &answers[count]))
            offsets[count++] = o;
        else if (answers[count].answer == LEDGER_TOO_FAR)
            break;
    }
    return count;
}

/* A group of the worker's partitions: all are marked before one of it runs, as intake does. */
static void group(int i)
{
    enum { MOST = 8 };
    struct assignment_admission answers[PARTITIONS][MOST];
    int64_t offsets[PARTITIONS][MOST];
    int members[PARTITIONS] = {0}, left = 1 + (int)fixture_random(MOST);

    for (int32_t p = 0; p < PARTITIONS; p++)
        if (log_of[p].owner == i && fixture_random(4)) {
            members[p] = gather(&workers[i], p, left, offsets[p], answers[p]);
            left -= members[p];
        }
    for (int32_t p = 0; p < PARTITIONS; p++)
        if (members[p])
            mark(&workers[i], p, offsets[p][0], offsets[p][members[p] - 1] + 1, LEDGER_GROUP);
    for (int32_t p = 0; p < PARTITIONS; p++)
        for (int n = 0; n < members[p]; n++)
            run(&workers[i], p, offsets[p][n], &answers[p][n]);
    counts[GROUPS]++;
}

static void read_one(int i)
{
    struct worker *w = &workers[i];
    int32_t p = (int32_t)fixture_random(PARTITIONS);
    int64_t offset = next_record(p);
    struct assignment_admission answer;
    struct ledger now;

    if (log_of[p].owner != i || offset == RECORDS || (w->round && !idle(w)) ||
        w->running.count >= BOUND)
        return;
    w->round = LEDGER_FREE;
    broker_read(p, &now);
    if (!ledger_is_finished(&now, offset) && ledger_runs(&now, offset) != LEDGER_FREE) {
        if (!idle(w))
            return;
        if (ledger_runs(&now, offset) == LEDGER_GROUP) {
            group(i);
            return;
        }
    }
    if (!begin(w, p, offset, &answer))
        return;
    CHECK(answer.runs != LEDGER_GROUP);
    if (answer.runs == LEDGER_SINGLE) {
        mark(w, p, offset, offset + 1, LEDGER_SINGLE);
        counts[ALONE]++;
    }
    run(w, p, offset, &answer);
}

static void finish_some(int i)
{
    struct worker *w = &workers[i];
    struct job_list still;
    struct job *job;

    job_list_init(&still);
    while ((job = job_list_pop(&w->running)))
        job_list_push(fixture_random(3) ? &still : &w->ready, job);
    job_list_splice(&w->running, &still);
}

static void loses(int i, int32_t p, bool in_order);
static void transaction(int i);

/* After an answer that never came: what the broker shows as done is done, the rest stays. */
static void recover(struct worker *w, const struct assignment_transaction *t, struct job_list *jobs)
{
    struct job_list done, rest;
    struct ledger ledger;
    struct job *job;

    job_list_init(&done);
    for (size_t i = 0; i < t->part_count; i++) {
        job_list_init(&rest);
        broker_read(t->parts[i].partition, &ledger);
        while ((job = job_list_pop(jobs)))
            job_list_push(job->partition == t->parts[i].partition &&
                                  ledger_is_finished(&ledger, job->offset)
                              ? &done
                              : &rest,
                          job);
        job_list_splice(jobs, &rest);
    }
    assignment_committed(w->assignment, &done, 1);
    fixture_jobs_destroy(&done);
}

/* While worker i is slow in its transaction, the partition goes to the other one, which works on.
 */
static void moves_on(int i, int32_t p)
{
    int other = 1 - i;

    loses(i, p, false);
    if (fixture_random(2))
        return;
    take(other, p);
    for (int n = 0; n < 20; n++)
        read_one(other);
    finish_some(other);
    transaction(other);
}

static void transaction(int i)
{
    struct worker *w = &workers[i];
    struct assignment_transaction t;
    struct job_list jobs, stale;
    int32_t lost = quiet ? PARTITIONS : (int32_t)fixture_random(10 * PARTITIONS);

    if (!w->ready.head)
        return;
    job_list_init(&jobs);
    job_list_init(&stale);
    job_list_splice(&jobs, &w->ready);
    CHECK(!assignment_open(w->assignment, &jobs, &stale, &t, &error));
    fixture_jobs_destroy(&stale);
    if (lost < PARTITIONS && log_of[lost].owner == i)
        moves_on(i, lost);
    if (!assignment_still_owned(w->assignment, &t) || fixture_random(5) == 0) {
        counts[ABORTS]++;
    } else if (fixture_random(5)) {
        broker_apply(&t, &jobs);
        assignment_committed(w->assignment, &jobs, 1);
        fixture_jobs_destroy(&jobs);
        counts[COMMITS]++;
    } else {
        if (fixture_random(2))
            broker_apply(&t, &jobs);
        recover(w, &t, &jobs);
        counts[LOST_ANSWERS]++;
    }
    assignment_close(w->assignment, &t);
    job_list_splice(&w->ready, &jobs);
}

/* The partition is gone without a word: to the next owner that is a death. */
static void cut_off(struct worker *w, int32_t p)
{
    bool in_group = false;

    for (int64_t o = 0; o < RECORDS; o++) {
        struct partition *l = &log_of[p];
        bool left = w->begun[p][o] && !l->results[o];

        if (!left)
            continue;
        l->doubtful[o] = true;
        l->deaths[o] += w->member[p][o] && w->round == LEDGER_SINGLE;
        if (w->member[p][o] && w->round == LEDGER_GROUP)
            in_group = l->grouped[o] = true;
    }
    counts[GROUP_DEATHS] += in_group;
}

/* The partition goes: in order with its ledger committed and closed, or lost. */
static void loses(int i, int32_t p, bool in_order)
{
    struct worker *w = &workers[i];
    struct ledger ledger;

    if (assignment_give_up(w->assignment, p, 0, &ledger) && in_order) {
        ledger_give_up(&ledger);
        broker_commit(p, &ledger);
    } else {
        cut_off(w, p);
    }
    memset(w->begun[p], 0, sizeof w->begun[p]);
    memset(w->member[p], 0, sizeof w->member[p]);
    log_of[p].owner = -1;
    counts[in_order ? REVOKES : LOSSES]++;
}

static void crash(int i)
{
    struct worker *w = &workers[i];

    for (int32_t p = 0; p < PARTITIONS; p++)
        if (log_of[p].owner == i) {
            cut_off(w, p);
            log_of[p].owner = -1;
        }
    fixture_jobs_destroy(&w->running);
    fixture_jobs_destroy(&w->ready);
    assignment_destroy(w->assignment);
    worker_start(w);
    counts[CRASHES]++;
}

/* ---- histories ---- */

static void log_make(void)
{
    for (int32_t p = 0; p < PARTITIONS; p++) {
        memset(&log_of[p], 0, sizeof log_of[p]);
        for (int64_t o = 0; o < RECORDS; o++)
            log_of[p].record[o] = fixture_random(6) != 0;
        log_of[p].committed = log_of[p].owner = -1;
    }
}

static void step(void)
{
    int i = (int)fixture_random(WORKERS);
    int32_t p = (int32_t)fixture_random(PARTITIONS);
    uint64_t what = fixture_random(quiet ? 960 : 1000);

    if (log_of[p].owner < 0)
        take(i, p);
    if (what < 600)
        read_one(i);
    else if (what < 800)
        finish_some(i);
    else if (what < 960)
        transaction(i);
    else if (what < 975 && log_of[p].owner >= 0)
        loses(log_of[p].owner, p, true);
    else if (what < 990 && log_of[p].owner >= 0)
        loses(log_of[p].owner, p, false);
    else if (what >= 990)
        crash(i);
}

static bool all_done(void)
{
    for (int32_t p = 0; p < PARTITIONS; p++)
        for (int64_t o = 0; o < RECORDS; o++)
            if (log_of[p].record[o] && !log_of[p].results[o])
                return false;
    return true;
}

static void history(void)
{
    struct ledger ledger;

    quiet = false;
    log_make();
    for (int i = 0; i < WORKERS; i++)
        worker_start(&workers[i]);
    for (int n = 0; n < 3000; n++)
        step();
    quiet = true; /* now everything gets done */
    for (int n = 0; n < 100000 && !all_done(); n++)
        step();
    CHECK(all_done());
    for (int i = 0; i < WORKERS; i++) {
        fixture_jobs_destroy(&workers[i].running);
        fixture_jobs_destroy(&workers[i].ready);
        assignment_destroy(workers[i].assignment);
    }
    for (int32_t p = 0; p < PARTITIONS; p++) {
        broker_read(p, &ledger);
        CHECK(ledger.takeovers == 0 || ledger.suspect_end > ledger.base);
        for (int64_t o = 0; o < RECORDS; o++)
            CHECK(!log_of[p].record[o] || ledger_is_finished(&ledger, o));
    }
}

static void every_history_is_exactly_once(void **state)
{
    const char *wanted = getenv("PGPT_TEST_SEED");

    (void)state;
    for (int i = 0; i < (wanted ? 1 : 100); i++) {
        seed = wanted ? strtoull(wanted, NULL, 10) : (uint64_t)i + 100;
        fixture_seed(seed);
        history();
    }
    for (size_t i = 0; !wanted && i < sizeof counts / sizeof *counts; i++)
        if (!counts[i])
            fail_msg("the histories never did number %zu", i);
    print_message("%d commits, %d aborts, %d answers lost, %d revokes, %d losses, %d crashes, "
                  "%d alone, %d poison, %d groups, %d deaths in one\n",
                  counts[0], counts[1], counts[2], counts[3], counts[4], counts[5], counts[6],
                  counts[7], counts[8], counts[9]);
}

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

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(every_history_is_exactly_once)};

    return cmocka_run_group_tests(tests, group_setup, group_teardown);
}
