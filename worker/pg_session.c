/* SPDX-License-Identifier: MIT */
#include "worker/pg_session.h"

#include <errno.h>
#include <poll.h>
#include <string.h>

#include "kernels/base/clock.h"

enum { WAIT_LIMIT_MS = 40000, STOPPING_WAIT_MS = 3000 };

/* ---- talking, with an end to every wait ---- */

static int fail(struct pg_session *s, struct error *error, const char *what, const PGresult *result)
{
    const char *reason = result ? PQresultErrorMessage(result) : PQerrorMessage(s->connection);
    int size = (int)strcspn(reason, "\n");

    return error_set(error, "PostgreSQL: %s: %.*s", what, size, reason);
}

static int fail_wait(struct pg_session *s, struct error *error, const char *what, bool timeout)
{
    return timeout ? error_set(error, "PostgreSQL: %s: no answer within the time limit", what)
                   : fail(s, error, what, NULL);
}

/* Waits until the connection can be read, or written when something is left to send. */
static int wait_io(struct pg_session *s, int64_t begun_us, bool *timeout)
{
    bool stopping = s->stopping && atomic_load(s->stopping);
    int64_t limit_ms = stopping ? STOPPING_WAIT_MS : WAIT_LIMIT_MS;
    int unsent = PQflush(s->connection);
    struct pollfd fd = {PQsocket(s->connection), (short)(POLLIN | (unsent > 0 ? POLLOUT : 0)), 0};

    if (unsent < 0)
        return -1;
    if (clock_mono_us() - begun_us > limit_ms * 1000) {
        *timeout = true;
        return -1;
    }
    if (poll(&fd, 1, 200) < 0 && errno != EINTR)
        return -1;
    return fd.revents & (POLLIN | POLLERR | POLLHUP) && !PQconsumeInput(s->connection) ? -1 : 0;
}

/* The next result of what was sent; NULL with the reason after a timeout or a broken connection. */
static PGresult *result_next(struct pg_session *s, const char *what, struct error *error)
{
    int64_t begun_us = clock_mono_us();
    bool timeout = false;

    while (PQflush(s->connection) > 0 || PQisBusy(s->connection)) {
        if (wait_io(s, begun_us, &timeout)) {
            fail_wait(s, error, what, timeout);
            return NULL;
        }
    }
    return PQgetResult(s->connection);
}

/* Takes the results of one statement; the first is kept, NULL with the reason when it is an error.
 */
static PGresult *results_take(struct pg_session *s, const char *what, struct error *error)
{
    PGresult *first, *more;
    ExecStatusType status;

    error_set(error, "PostgreSQL: %s: no result", what);
    first = result_next(s, what, error);
    if (!first)
        return NULL;
    status = PQresultStatus(first);
    if (status == PGRES_COPY_IN)
        return first;
    while ((more = result_next(s, what, error))) { /* further statements of one text */
        if (PQresultStatus(more) == PGRES_FATAL_ERROR && status != PGRES_FATAL_ERROR) {
            PQclear(first);
            first = more;
            status = PGRES_FATAL_ERROR;
        } else {
            PQclear(more);
        }
    }
    if (status == PGRES_COMMAND_OK || status == PGRES_TUPLES_OK)
        return first;
    fail(s, error, what, first);
    PQclear(first);
    return NULL;
}

/* ---- connecting ---- */

static void notice_drop(void *opaque, const PGresult *result)
{
    (void)opaque;
    (void)result;
}

int pg_session_connect(struct pg_session *s, const char *application, struct error *error)
{
    /* What comes after dbname wins over the URL, what comes before yields to it. */
    const char *const names[] = {"connect_timeout",  "tcp_user_timeout", "keepalives_idle",
                                 "application_name", "dbname",           NULL};
    const char *const values[] = {"5", "15000", "10", application, s->url, NULL};

    pg_session_disconnect(s);
    s->connection = PQconnectdbParams(names, values, 1);
    if (!s->connection)
        return error_set(error, "PostgreSQL: out of memory");
    if (PQstatus(s->connection) != CONNECTION_OK || PQsetnonblocking(s->connection, 1)) {
        fail(s, error, "connecting (database_url)", NULL);
        pg_session_disconnect(s);
        return -1;
    }
    PQsetNoticeProcessor(s->connection, NULL, NULL);
    PQsetNoticeReceiver(s->connection, notice_drop, NULL);
    return 0;
}

void pg_session_disconnect(struct pg_session *s)
{
    if (s->connection)
        PQfinish(s->connection);
    s->connection = NULL;
}

void pg_session_close(struct pg_session *s)
{
    pg_session_disconnect(s);
    for (int i = 0; i < PG_SESSION_ARRAYS_MAX; i++)
        pg_buffer_free(&s->arrays[i]);
}

/* ---- statements ---- */

int pg_session_prepare(struct pg_session *s, const char *name, const char *sql, struct error *error)
{
    PGresult *result;

    if (!PQsendPrepare(s->connection, name, sql, 0, NULL))
        return fail(s, error, name, NULL);
    result = results_take(s, name, error);
    PQclear(result);
    return result ? 0 : -1;
}

PGresult *pg_session_query(struct pg_session *s, const char *sql, const char *what,
                           struct error *error)
{
    if (PQsendQuery(s->connection, sql))
        return results_take(s, what, error);
    fail(s, error, what, NULL);
    return NULL;
}

int pg_session_run(struct pg_session *s, const char *sql, const char *what, struct error *error)
{
    PGresult *result = pg_session_query(s, sql, what, error);

    PQclear(result);
    return result ? 0 : -1;
}

void pg_session_arrays(struct pg_session *s, const enum pg_type *types, int arrays, size_t count)
{
    for (int i = 0; i < arrays; i++) {
        pg_buffer_reset(&s->arrays[i]);
        pg_put_array(&s->arrays[i], types[i], count);
    }
}

PGresult *pg_session_run_arrays(struct pg_session *s, const char *name, int arrays,
                                struct error *error)
{
    const char *values[PG_SESSION_ARRAYS_MAX];
    int lengths[PG_SESSION_ARRAYS_MAX], formats[PG_SESSION_ARRAYS_MAX];

    for (int i = 0; i < arrays; i++) {
        if (s->arrays[i].failed) {
            error_set(error, "PostgreSQL: %s: out of memory for its parameters", name);
            return NULL;
        }
        values[i] = s->arrays[i].data;
        lengths[i] = (int)s->arrays[i].size;
        formats[i] = 1;
    }
    if (!PQsendQueryPrepared(s->connection, name, arrays, values, lengths, formats, 1)) {
        fail(s, error, name, NULL);
        return NULL;
    }
    return results_take(s, name, error);
}

/* Hands all of the data over; in non-blocking mode libpq may ask to come again. */
static int copy_send(struct pg_session *s, const struct pg_buffer *data, const char *what,
                     struct error *error)
{
    int64_t begun_us = clock_mono_us();
    bool timeout = false;
    int sent;

    while (!(sent = PQputCopyData(s->connection, data->data, (int)data->size)))
        if (wait_io(s, begun_us, &timeout))
            return fail_wait(s, error, what, timeout);
    if (sent > 0)
        while (!(sent = PQputCopyEnd(s->connection, NULL)))
            if (wait_io(s, begun_us, &timeout))
                return fail_wait(s, error, what, timeout);
    return sent > 0 ? 0 : fail(s, error, what, NULL);
}

int pg_session_copy(struct pg_session *s, const char *copy, const struct pg_buffer *data,
                    const char *what, struct error *error)
{
    PGresult *result;

    if (pg_session_run(s, copy, what, error) || copy_send(s, data, what, error))
        return -1;
    result = results_take(s, what, error);
    PQclear(result);
    return result ? 0 : -1;
}
