/* SPDX-License-Identifier: MIT
 *
 * The recorder's session with PostgreSQL when libpq fails, and when the server falls silent. What
 * real servers do is test_recorder_store's.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "tests/unit/pg_fake.h"

#include "kernels/base/clock.h"
#include "tests/worker/failing.h"
#include "worker/pg_session.h"
#include "worker/recorder_store.h"

static struct pg_fake fake;
static struct pg_session session;
static struct error error;
static _Atomic bool stopping;

static int setup(void **state)
{
    (void)state;
    pg_fake_open(&fake);
    memset(&session, 0, sizeof session);
    session.url = fake.url;
    session.stopping = &stopping;
    stopping = false;
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    failing_clear();
    pg_session_close(&session);
    pg_fake_close(&fake);
    return 0;
}

static int connects(void)
{
    return pg_session_connect(&session, "test", &error);
}

static int prepares(void)
{
    return pg_session_prepare(&session, "statement", "select 1", &error);
}

static int queries(void)
{
    return pg_session_run(&session, "begin", "begin", &error);
}

static int runs_arrays(void)
{
    static const enum pg_type types[] = {PG_INT4};
    PGresult *result;

    pg_session_arrays(&session, types, 1, 1);
    pg_put_int4(&session.arrays[0], 7);
    result = pg_session_run_arrays(&session, "statement", 1, &error);
    PQclear(result);
    return result ? 0 : -1;
}

static int copies(void)
{
    struct pg_buffer data = {0};
    int status;

    pg_put_raw(&data, "0123456789abcdef0123456789abcdef", 32);
    status = pg_session_copy(&session, "copy t from stdin", &data, "copying", &error);
    pg_buffer_free(&data);
    return status;
}

/* Each call of libpq fails once: it is said so, and a new connection serves. */
static void what_libpq_refuses_is_told(void **state)
{
    static const struct {
        int (*what)(void);
        const char *call;
        int at;
    } cases[] = {{connects, "PQconnectdbParams", 1}, {connects, "PQsetnonblocking", 1},
                 {prepares, "PQsendPrepare", 1},     {prepares, "PQflush", 2},
                 {prepares, "PQconsumeInput", 1},    {queries, "PQsendQuery", 1},
                 {queries, "PQconsumeInput", 1},     {runs_arrays, "PQsendQueryPrepared", 1},
                 {runs_arrays, "PQgetResult", 1},    {copies, "PQsendQuery", 1},
                 {copies, "PQputCopyData", 1},       {copies, "PQputCopyEnd", 1}};

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        assert_int_equal(connects(), 0);
        *error.message = '\0';
        failing_set(cases[i].call, cases[i].at, 1);
        if (!cases[i].what() || failing_clear() != 1)
            fail_msg("%s, call %d: no failure, or not called", cases[i].call, cases[i].at);
        if (strncmp(error.message, "PostgreSQL: ", 12) != 0)
            fail_msg("%s, call %d: \"%s\"", cases[i].call, cases[i].at, error.message);
        assert_int_equal(connects(), 0);
        assert_int_equal(cases[i].what(), 0);
    }
}

static void parameters_need_memory(void **state)
{
    (void)state;
    assert_int_equal(connects(), 0);
    failing_set("realloc", 1, 1);
    assert_int_equal(runs_arrays(), -1);
    assert_int_equal(failing_clear(), 1);
    assert_non_null(strstr(error.message, "out of memory for its parameters"));
}

/* A store without the memory for its statement does not connect. */
static void a_store_needs_memory(void **state)
{
    struct recorder_store *store =
        recorder_store_create(&(struct recorder_store_options){fake.url, 1, 1, &stopping});

    (void)state;
    assert_non_null(store);
    failing_set("open_memstream", 1, 1);
    assert_int_equal(recorder_store_connect(store, &error), -1);
    assert_int_equal(failing_clear(), 1);
    assert_non_null(strstr(error.message, "out of memory"));
    assert_false(recorder_store_connected(store));
    assert_int_equal(recorder_store_connect(store, &error), 0);
    recorder_store_destroy(store);
}

/* ---- silence ---- */

static void times_out(int (*what)(void))
{
    int64_t begun;

    assert_int_equal(connects(), 0);
    atomic_store(&stopping, true); /* then it waits for 3 s instead of 40 */
    atomic_store(&fake.silent, what == queries);
    begun = clock_mono_us();
    assert_int_equal(what(), -1);
    assert_in_range(clock_mono_us() - begun, 2900000, 15000000);
    assert_non_null(strstr(error.message, "no answer within the time limit"));
}

static void a_server_that_does_not_answer_is_left(void **state)
{
    (void)state;
    times_out(queries);
}

/* libpq has no room for the copy just now. */
static void a_copy_that_has_no_room_comes_again(void **state)
{
    static const char *const calls[] = {"PQputCopyData", "PQputCopyEnd"};

    (void)state;
    assert_int_equal(connects(), 0);
    for (size_t i = 0; i < 2; i++) {
        failing_set_code(calls[i], 1, 3, 0);
        if (copies())
            fail_msg("%s: %s", calls[i], error.message);
        assert_int_equal(failing_clear(), 3);
    }
    failing_set_code(calls[1], 1, 1000000, 0); /* for ever */
    times_out(copies);
    assert_true(failing_clear() > 3);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(what_libpq_refuses_is_told),
        TEST(parameters_need_memory),
        TEST(a_store_needs_memory),
        TEST(a_server_that_does_not_answer_is_left),
        TEST(a_copy_that_has_no_room_comes_again),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
