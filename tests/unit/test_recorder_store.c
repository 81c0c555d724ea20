/* SPDX-License-Identifier: MIT
 *
 * The recorder's store on a real PostgreSQL that migrations/test starts for it: the same rows
 * however events are split into transactions, offsets and rows whole or not at all, one recorder
 * wins.
 */
#include <libpq-fe.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "kernels/base/clock.h"
#include "tests/unit/worker_fixture.h"
#include "worker/recorder_store.h"

#include "tests/unit/pg_proxy.h"
#include "tests/unit/recorder_fixture.h"

static struct error error;
static const char *url;
static PGconn *admin;

/* ---- the database ---- */

static void sql(const char *text)
{
    PGresult *result = PQexec(admin, text);
    ExecStatusType status = PQresultStatus(result);

    if (status != PGRES_COMMAND_OK && status != PGRES_TUPLES_OK)
        fail_msg("%s: %s", text, PQerrorMessage(admin));
    PQclear(result);
}

/* All values of a query, as one text. */
static char *dump(const char *query)
{
    PGresult *result = PQexec(admin, query);
    char *text = NULL;
    size_t size;
    FILE *out = open_memstream(&text, &size);

    if (PQresultStatus(result) != PGRES_TUPLES_OK)
        fail_msg("%s: %s", query, PQerrorMessage(admin));
    for (int row = 0; row < PQntuples(result); row++)
        for (int column = 0; column < PQnfields(result); column++)
            fprintf(out, "%s%c",
                    PQgetisnull(result, row, column) ? "(null)" : PQgetvalue(result, row, column),
                    column + 1 < PQnfields(result) ? '|' : '\n');
    fclose(out);
    PQclear(result);
    return text;
}

static int64_t number(const char *query)
{
    char *text = dump(query);
    int64_t value = strtoll(text, NULL, 10);

    free(text);
    return value;
}

/* Everything that the recorder writes but its offsets. */
static char *dump_tables(void)
{
    static const char *const queries[] = {
        "select * from job order by job_id",
        "select * from job_latency order by job_id, finished_at",
        "select * from latency_histogram order by minute, model, tenant, metric, bucket",
        "select * from job_minute order by minute, model, tenant, worker, status"};
    char *text = NULL;
    size_t size;
    FILE *out = open_memstream(&text, &size);

    for (int i = 0; i < 4; i++) {
        char *one = dump(queries[i]);

        fputs(one, out);
        free(one);
    }
    fclose(out);
    return text;
}

static int group_setup(void **state)
{
    (void)state;
    url = getenv("PGPT_DATABASE_URL");
    if (!url) {
        print_error("run it by: migrations/test build/tests/test_recorder_store\n");
        return -1;
    }
    admin = PQconnectdb(url);
    return PQstatus(admin) == CONNECTION_OK ? 0 : -1;
}

static int group_teardown(void **state)
{
    (void)state;
    PQfinish(admin);
    return 0;
}

static void tables_empty(void)
{
    sql("truncate job, job_latency, latency_histogram, job_minute, recorder_offset");
}

static int setup(void **state)
{
    (void)state;
    tables_empty();
    return 0;
}

/* ---- stores ---- */

static struct recorder_store *store_at(const char *at)
{
    struct recorder_store *s =
        recorder_store_create(&(struct recorder_store_options){at, 14, 400, NULL});

    assert_non_null(s);
    return s;
}

static struct recorder_store *store_new(void)
{
    struct recorder_store *s = store_at(url);

    if (recorder_store_connect(s, &error))
        fail_msg("%s", error.message);
    return s;
}

static int64_t stored(struct recorder_store *s, int32_t partition)
{
    struct recorder_position position = {partition, -1, 0};

    if (recorder_store_positions(s, "events", &position, 1, &error))
        fail_msg("%s", error.message);
    return position.stored;
}

static enum recorder_store_status write_events(struct recorder_store *s,
                                               const struct recorder_fixture *f, int from, int to,
                                               int64_t at)
{
    struct recorder_batch *b = recorder_batch_create(RECORDER_FIXTURE_EVENTS);
    struct recorder_position position = {0, at, at + to - from};
    enum recorder_store_status status;

    assert_non_null(b);
    for (int i = from; i < to; i++)
        if (recorder_batch_add(b, &f->events[i], &error))
            fail_msg("%s", error.message);
    status = recorder_store_write(s, "events", b, &position, 1, &error);
    recorder_batch_destroy(b);
    return status;
}

static void write_ok(struct recorder_store *s, const struct recorder_fixture *f, int from, int to,
                     int64_t at)
{
    if (write_events(s, f, from, to, at) != RECORDER_STORED)
        fail_msg("%s", error.message);
}

/* ---- tests ---- */

/* One transaction for all, one for each, or any other split: the tables are the same. */
static void the_split_into_transactions_does_not_matter(void **state)
{
    struct recorder_fixture *f = malloc(sizeof *f);
    struct recorder_store *s = store_new();

    (void)state;
    fixture_seed(11);
    for (int round = 0; round < 6; round++) {
        char *whole, *split;

        recorder_fixture_make(f, clock_wall_us() - 600000000);
        tables_empty();
        write_ok(s, f, 0, f->count, stored(s, 0));
        whole = dump_tables();
        assert_true(strlen(whole) > 3000);
        for (int most = 1; most <= f->count; most *= 7) {
            tables_empty();
            for (int from = 0, to; from < f->count; from = to) {
                to = from + 1 + (int)fixture_random((uint64_t)most);
                to = to > f->count ? f->count : to;
                write_ok(s, f, from, to, stored(s, 0));
            }
            split = dump_tables();
            if (strcmp(whole, split))
                fail_msg("round %d, at most %d a transaction: the tables differ", round, most);
            free(split);
        }
        free(whole);
    }
    recorder_store_destroy(s);
    free(f);
}

static void a_job_counts_once(void **state)
{
    struct recorder_fixture *f = malloc(sizeof *f);
    struct recorder_store *s = store_new();

    (void)state;
    fixture_seed(12);
    recorder_fixture_make(f, clock_wall_us() - 600000000);
    stored(s, 0);
    write_ok(s, f, 0, f->count, 0);
    write_ok(s, f, 0, f->count, f->count); /* all of them once more */
    assert_int_equal(number("select sum(jobs) from job_minute"),
                     number("select count(*) from job where finals > 0"));
    assert_true(number("select count(*) from job_latency") <=
                number("select count(*) from job where finals > 0"));
    assert_int_equal(number("select count(*) - count(distinct job_id) from job_latency"), 0);
    assert_int_equal(number("select count(*) from job"),
                     number("select count(distinct job_id) from job"));
    recorder_store_destroy(s);
    free(f);
}

static void of_two_recorders_one_wins(void **state)
{
    struct recorder_fixture *f = malloc(sizeof *f);
    struct recorder_store *a = store_new(), *b = store_new();
    char *before, *after;

    (void)state;
    fixture_seed(13);
    recorder_fixture_make(f, clock_wall_us() - 600000000);
    assert_int_equal(stored(a, 0), 0);
    assert_int_equal(stored(b, 0), 0);
    write_ok(a, f, 0, 100, 0);
    before = dump_tables();
    assert_int_equal(write_events(b, f, 0, 200, 0), RECORDER_CONFLICT);
    assert_true(recorder_store_connected(b));
    after = dump_tables();
    assert_string_equal(before, after); /* not a row of it */
    assert_int_equal(stored(b, 0), 100);
    write_ok(b, f, 100, 200, 100);
    assert_int_equal(write_events(a, f, 100, 200, 100), RECORDER_CONFLICT);
    free(before);
    free(after);
    recorder_store_destroy(a);
    recorder_store_destroy(b);
    free(f);
}

static void every_partition_has_its_place(void **state)
{
    struct recorder_store *s = store_new();
    struct recorder_batch *b = recorder_batch_create(4);
    struct recorder_position positions[] = {{0, 0, 5}, {7, 0, 9}, {3, 0, 1}};

    (void)state;
    assert_int_equal(recorder_store_positions(s, "events", positions, 3, &error), 0);
    for (int i = 0; i < 3; i++)
        assert_int_equal(positions[i].stored, 0);
    /* no event of them could be read, but they were passed over */
    assert_int_equal(recorder_store_write(s, "events", b, positions, 3, &error), RECORDER_STORED);
    assert_int_equal(stored(s, 7), 9);
    assert_int_equal(stored(s, 3), 1);
    positions[0].stored = 5;
    positions[0].next = 6;
    positions[1].stored = 8; /* of this one it is wrong */
    positions[1].next = 10;
    assert_int_equal(recorder_store_write(s, "events", b, positions, 2, &error), RECORDER_CONFLICT);
    assert_int_equal(stored(s, 0), 5); /* so none of them moves */
    recorder_batch_destroy(b);
    recorder_store_destroy(s);
}

static void a_broken_connection_writes_nothing(void **state)
{
    struct recorder_fixture *f = malloc(sizeof *f);
    struct recorder_store *s = store_new();

    (void)state;
    fixture_seed(14);
    recorder_fixture_make(f, clock_wall_us() - 600000000);
    assert_int_equal(stored(s, 0), 0);
    sql("select pg_terminate_backend(pid) from pg_stat_activity "
        "where application_name = 'pgpt-recorder'");
    assert_int_equal(write_events(s, f, 0, 50, 0), RECORDER_FAILED);
    assert_false(recorder_store_connected(s));
    assert_true(strlen(error.message) > 12);
    assert_int_equal(number("select count(*) from job"), 0);
    assert_int_equal(recorder_store_connect(s, &error), 0);
    write_ok(s, f, 0, 50, stored(s, 0));
    assert_int_equal(stored(s, 0), 50);
    recorder_store_destroy(s);
    free(f);
}

/* Something in the transaction is refused: rows and offsets stay as they were. */
static void a_refused_row_takes_all_back(void **state)
{
    struct recorder_fixture *f = malloc(sizeof *f);
    struct recorder_store *s = store_new();

    (void)state;
    fixture_seed(15);
    recorder_fixture_make(f, clock_wall_us() - 600000000);
    assert_int_equal(stored(s, 0), 0);
    sql("alter table job_minute add constraint refused check (jobs < 0)");
    assert_int_equal(write_events(s, f, 0, f->count, 0), RECORDER_FAILED);
    assert_non_null(strstr(error.message, "refused"));
    sql("alter table job_minute drop constraint refused");
    assert_int_equal(number("select count(*) from job"), 0);
    assert_int_equal(number("select count(*) from job_latency"), 0);
    assert_int_equal(number("select next_offset from recorder_offset"), 0);
    assert_int_equal(recorder_store_connect(s, &error), 0);
    write_ok(s, f, 0, f->count, 0);
    recorder_store_destroy(s);
    free(f);
}

/* Emptied tables come back the same from the same events. */
static void a_rebuild_is_the_same(void **state)
{
    struct recorder_fixture *f = malloc(sizeof *f);
    struct recorder_store *s = store_new();
    char *before, *after;

    (void)state;
    fixture_seed(16);
    recorder_fixture_make(f, clock_wall_us() - 600000000);
    stored(s, 0);
    write_ok(s, f, 0, f->count, 0);
    before = dump_tables();
    tables_empty();
    assert_int_equal(stored(s, 0), 0);
    write_ok(s, f, 0, f->count, 0);
    after = dump_tables();
    assert_string_equal(before, after);
    free(before);
    free(after);
    recorder_store_destroy(s);
    free(f);
}

static void events_of_any_time_find_their_place(void **state)
{
    static const int64_t days[] = {-4000, -15, -13, 0, 1, 3, 4000};
    struct recorder_fixture *f = malloc(sizeof *f);
    struct recorder_store *s = store_new();

    (void)state;
    fixture_seed(17);
    recorder_fixture_make(f, 0);
    for (int i = 0; i < 7; i++) {
        struct job_event *e = &f->events[i];

        e->job_id = (struct text){f->ids[i], 36};
        e->state = "completed";
        e->has_timings = e->has_usage = true;
        e->at_us = clock_wall_us() + days[i] * 86400000000;
        e->accepted_at_us = e->started_at_us = 0;
    }
    stored(s, 0);
    write_ok(s, f, 0, 7, 0);
    assert_int_equal(number("select count(*) from job"), 7);
    assert_int_equal(number("select count(*) from job_latency"), 3); /* kept days, and tomorrow */
    recorder_store_destroy(s);
    free(f);
}

static void maintenance_makes_partitions_ahead(void **state)
{
    struct recorder_store *s = store_new();
    bool more = true;

    (void)state;
    for (int i = 0; i < 100 && more; i++)
        if (recorder_store_maintain(s, &more, &error))
            fail_msg("%s", error.message);
    assert_false(more);
    assert_true(
        number("select count(*) from pg_inherits where inhparent = 'job_latency'::regclass") > 1);
    recorder_store_destroy(s);
}

static void who_cannot_connect_says_why(void **state)
{
    struct recorder_store *s = recorder_store_create(&(struct recorder_store_options){
        "host=127.0.0.1 port=1 user=u password=hunter2 dbname=d", 14, 400, NULL});

    (void)state;
    assert_int_equal(recorder_store_connect(s, &error), -1);
    assert_non_null(strstr(error.message, "database_url"));
    assert_non_null(strstr(error.message, "127.0.0.1"));
    assert_null(strstr(error.message, "hunter2"));
    assert_false(recorder_store_connected(s));
    recorder_store_destroy(s);
}

/* All that a recorder does with its connection; false as soon as something fails. */
static bool record_all(struct recorder_store *s, const struct recorder_fixture *f)
{
    struct recorder_position position = {0, -1, 0};
    bool more;

    return !recorder_store_connect(s, &error) &&
           !recorder_store_positions(s, "events", &position, 1, &error) && !position.stored &&
           write_events(s, f, 0, f->count, 0) == RECORDER_STORED &&
           !recorder_store_maintain(s, &more, &error);
}

/* The connection ends after the server's n-th message, for every step-th n until all is said:
 * whatever it cuts off, the error has words, and rows and place are both there or both not. */
static void cut_everywhere(bool tells, int step)
{
    struct recorder_fixture *f = malloc(sizeof *f);
    struct recorder_store *direct = store_new();
    struct pg_proxy proxy;
    char *whole;
    bool over = false;
    int kept = 0, lost = 0;

    fixture_seed(21);
    recorder_fixture_make(f, clock_wall_us() - 600000000);
    assert_int_equal(stored(direct, 0), 0);
    write_ok(direct, f, 0, f->count, 0);
    whole = dump_tables();
    pg_proxy_open(&proxy, PQhost(admin));
    atomic_store(&proxy.tells, tells);
    for (int cut = 0; !over; cut += step) {
        struct recorder_store *s = store_at(proxy.url);
        char *found;

        tables_empty();
        atomic_store(&proxy.passing, cut);
        strcpy(error.message, "");
        over = record_all(s, f);
        if (!over)
            assert_true(strlen(error.message) > strlen("PostgreSQL: "));
        recorder_store_destroy(s);
        if (stored(direct, 0) == f->count) {
            kept++;
        } else {
            lost++;
            assert_int_equal(stored(direct, 0), 0);
            assert_int_equal(number("select count(*) from job"), 0);
            write_ok(direct, f, 0, f->count, 0);
        }
        found = dump_tables();
        assert_string_equal(found, whole);
        free(found);
    }
    assert_true(lost > 40 / step && kept >= 1); /* the latter: cut after the commit */
    pg_proxy_close(&proxy);
    recorder_store_destroy(direct);
    free(whole);
    free(f);
}

static void a_connection_may_end_at_any_message(void **state)
{
    (void)state;
    cut_everywhere(false, 1);
}

static void a_server_may_end_it_with_an_error_at_any_message(void **state)
{
    (void)state;
    cut_everywhere(true, 4);
}

#define TEST(name) cmocka_unit_test_setup(name, setup)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(the_split_into_transactions_does_not_matter),
        TEST(a_job_counts_once),
        TEST(of_two_recorders_one_wins),
        TEST(every_partition_has_its_place),
        TEST(a_broken_connection_writes_nothing),
        TEST(a_refused_row_takes_all_back),
        TEST(a_rebuild_is_the_same),
        TEST(events_of_any_time_find_their_place),
        TEST(maintenance_makes_partitions_ahead),
        TEST(who_cannot_connect_says_why),
        TEST(a_connection_may_end_at_any_message),
        TEST(a_server_may_end_it_with_an_error_at_any_message),
    };

    return cmocka_run_group_tests(tests, group_setup, group_teardown);
}
