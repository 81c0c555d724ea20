/* SPDX-License-Identifier: MIT
 *
 * pg_session: a connection to PostgreSQL on which every wait has an end, and the buffers of the
 * parameters of its statements. After an error the connection may still stand: whoever does not
 * know where the server is disconnects. One thread.
 */
#ifndef PGPT_WORKER_PG_SESSION_H
#define PGPT_WORKER_PG_SESSION_H

#include <libpq-fe.h>
#include <stdatomic.h>

#include "kernels/base/error.h"
#include "worker/pg_binary.h"

enum { PG_SESSION_ARRAYS_MAX = 32 };

struct pg_session {
    const char *url;              /* libpq connection string or URL; TLS and SCRAM come from it */
    const _Atomic bool *stopping; /* shortens waits; NULL = never */
    PGconn *connection;           /* NULL = not connected */
    struct pg_buffer arrays[PG_SESSION_ARRAYS_MAX]; /* parameters, filled by the caller */
};

/* Connects within 5 s (or the URL's connect_timeout); -1 with the server's reason. */
int pg_session_connect(struct pg_session *session, const char *application,
                       struct error *error) PGPT_MUST_CHECK;
void pg_session_disconnect(struct pg_session *session);
/* Disconnects and frees the buffers. */
void pg_session_close(struct pg_session *session);

/* `what` names the statement in errors. Each returns -1, or NULL, with the reason. */
int pg_session_prepare(struct pg_session *session, const char *name, const char *sql,
                       struct error *error) PGPT_MUST_CHECK;
/* Statements without parameters; a result of the first is the caller's to PQclear(). */
PGresult *pg_session_query(struct pg_session *session, const char *sql, const char *what,
                           struct error *error) PGPT_MUST_CHECK;
int pg_session_run(struct pg_session *session, const char *sql, const char *what,
                   struct error *error) PGPT_MUST_CHECK;

/* Resets the first `arrays` buffers to arrays of `count` elements, which the caller puts. */
void pg_session_arrays(struct pg_session *session, const enum pg_type *types, int arrays,
                       size_t count);
/* Runs a prepared statement whose parameters are the first `arrays` buffers, all binary. */
PGresult *pg_session_run_arrays(struct pg_session *session, const char *name, int arrays,
                                struct error *error) PGPT_MUST_CHECK;

/* `copy` is a COPY ... FROM STDIN in binary format, data what it takes. */
int pg_session_copy(struct pg_session *session, const char *copy, const struct pg_buffer *data,
                    const char *what, struct error *error) PGPT_MUST_CHECK;

#endif
