/* SPDX-License-Identifier: MIT */
#include "worker/recorder_store.h"

#include <endian.h>
#include <errno.h>
#include <libpq-fe.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/base/clock.h"
#include "worker/fault.h"
#include "worker/recorder_columns.h"

enum { WAIT_LIMIT_MS = 40000, STOPPING_WAIT_MS = 3000, DAYS_KNOWN = 64 };
enum { ARRAYS_MAX = RECORDER_COLUMNS };

struct recorder_store {
    struct recorder_store_options options;
    PGconn *connection; /* NULL = not connected */
    struct pg_buffer arrays[ARRAYS_MAX], copy;
    int64_t days[DAYS_KNOWN]; /* ring of days since 1970 + 1 whose partitions exist, 0 = none */
    size_t day_next;
};

/* ---- talking, with an end to every wait ---- */

static int fail(struct recorder_store *s, struct error *error, const char *what,
                const PGresult *result)
{
    const char *reason = result ? PQresultErrorMessage(result) : PQerrorMessage(s->connection);
    int size = (int)strcspn(reason, "\n");

    return error_set(error, "PostgreSQL: %s: %.*s", what, size, reason);
}

/* Waits until the connection can be read, or written when something is left to send. */
static int wait_io(struct recorder_store *s, int64_t begun_us, bool *timeout)
{
    bool stopping = s->options.stopping && atomic_load(s->options.stopping);
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
static PGresult *result_next(struct recorder_store *s, const char *what, struct error *error)
{
    int64_t begun_us = clock_mono_us();
    bool timeout = false;

    while (PQflush(s->connection) > 0 || PQisBusy(s->connection)) {
        if (wait_io(s, begun_us, &timeout)) {
            if (timeout)
                error_set(error, "PostgreSQL: %s: no answer within the time limit", what);
            else
                fail(s, error, what, NULL);
            return NULL;
        }
    }
    return PQgetResult(s->connection);
}

/* Takes the results of one statement; the first is kept, NULL with the reason when it is an error.
 */
static PGresult *results_take(struct recorder_store *s, const char *what, struct error *error)
{
    PGresult *first = result_next(s, what, error), *more;
    ExecStatusType status = PQresultStatus(first);

    if (!first)
        return NULL;
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

static int run(struct recorder_store *s, const char *sql, const char *what, struct error *error)
{
    PGresult *result;

    if (!PQsendQuery(s->connection, sql))
        return fail(s, error, what, NULL);
    result = results_take(s, what, error);
    PQclear(result);
    return result ? 0 : -1;
}

/* Runs a prepared statement whose parameters are the first `count` array buffers, all binary. */
static PGresult *run_arrays(struct recorder_store *s, const char *name, int count,
                            struct error *error)
{
    const char *values[ARRAYS_MAX];
    int lengths[ARRAYS_MAX], formats[ARRAYS_MAX];

    for (int i = 0; i < count; i++) {
        if (s->arrays[i].failed) {
            error_set(error, "PostgreSQL: %s: out of memory for its parameters", name);
            return NULL;
        }
        values[i] = s->arrays[i].data;
        lengths[i] = (int)s->arrays[i].size;
        formats[i] = 1;
    }
    if (!PQsendQueryPrepared(s->connection, name, count, values, lengths, formats, 1)) {
        fail(s, error, name, NULL);
        return NULL;
    }
    return results_take(s, name, error);
}

/* ---- connecting ---- */

static int prepare(struct recorder_store *s, const char *name, const char *sql, struct error *error)
{
    PGresult *result;

    if (!PQsendPrepare(s->connection, name, sql, 0, NULL))
        return fail(s, error, name, NULL);
    result = results_take(s, name, error);
    PQclear(result);
    return result ? 0 : -1;
}

static int prepare_upsert(struct recorder_store *s, struct error *error)
{
    char *sql = NULL;
    size_t size;
    FILE *out = open_memstream(&sql, &size);
    int status = -1;

    if (!out)
        return error_set(error, "PostgreSQL: out of memory");
    recorder_upsert_print(out);
    if (fclose(out))
        error_set(error, "PostgreSQL: out of memory");
    else
        status = prepare(s, "job rows", sql, error);
    free(sql);
    return status;
}

static int prepare_all(struct recorder_store *s, struct error *error)
{
    static const struct {
        const char *name, *sql;
    } statements[] = {
        {"offsets", "update recorder_offset o set next_offset = n.next_offset, updated_at = now()"
                    " from unnest($1::text[], $2::int4[], $3::int8[], $4::int8[])"
                    " n (topic, partition, stored, next_offset) where o.topic = n.topic"
                    " and o.partition = n.partition and o.next_offset = n.stored returning 1"},
        {"offset rows", "insert into recorder_offset (topic, partition, next_offset)"
                        " select * from unnest($1::text[], $2::int4[], $3::int8[])"
                        " on conflict do nothing"},
        {"positions", "select o.next_offset from unnest($1::text[], $2::int4[]) with ordinality"
                      " n (topic, partition, place) join recorder_offset o using (topic, partition)"
                      " order by place"},
        {"histogram", "insert into latency_histogram as h select * from unnest($1::timestamptz[],"
                      " $2::text[], $3::text[], $4::text[], $5::int2[], $6::int8[])"
                      " on conflict (minute, model, tenant, metric, bucket)"
                      " do update set count = h.count + excluded.count"},
        {"minutes",
         "insert into job_minute as m select * from unnest($1::timestamptz[], $2::text[],"
         " $3::text[], $4::text[], $5::text[], $6::int8[], $7::int8[], $8::int8[],"
         " $9::timestamptz[]) on conflict (minute, model, tenant, worker, status)"
         " do update set jobs = m.jobs + excluded.jobs,"
         " prompt_tokens = m.prompt_tokens + excluded.prompt_tokens,"
         " generated_tokens = m.generated_tokens + excluded.generated_tokens,"
         " last_finished_at = greatest(m.last_finished_at, excluded.last_finished_at)"}};

    for (size_t i = 0; i < sizeof statements / sizeof *statements; i++)
        if (prepare(s, statements[i].name, statements[i].sql, error))
            return -1;
    return prepare_upsert(s, error);
}

struct recorder_store *recorder_store_create(const struct recorder_store_options *options)
{
    struct recorder_store *s = calloc(1, sizeof *s);

    if (s)
        s->options = *options;
    return s;
}

void recorder_store_destroy(struct recorder_store *s)
{
    if (!s)
        return;
    recorder_store_disconnect(s);
    for (int i = 0; i < ARRAYS_MAX; i++)
        pg_buffer_free(&s->arrays[i]);
    pg_buffer_free(&s->copy);
    free(s);
}

bool recorder_store_connected(const struct recorder_store *s)
{
    return s->connection != NULL;
}

void recorder_store_disconnect(struct recorder_store *s)
{
    if (s->connection)
        PQfinish(s->connection);
    s->connection = NULL;
    memset(s->days, 0, sizeof s->days);
}

static void notice_drop(void *opaque, const PGresult *result)
{
    (void)opaque;
    (void)result;
}

int recorder_store_connect(struct recorder_store *s, struct error *error)
{
    /* What comes after dbname wins over the URL, what comes before yields to it. */
    const char *const names[] = {"connect_timeout",  "tcp_user_timeout", "keepalives_idle",
                                 "application_name", "dbname",           NULL};
    const char *const values[] = {"5", "15000", "10", "pgpt-recorder", s->options.url, NULL};

    recorder_store_disconnect(s);
    s->connection = PQconnectdbParams(names, values, 1);
    if (!s->connection)
        return error_set(error, "PostgreSQL: out of memory");
    if (PQstatus(s->connection) != CONNECTION_OK) {
        fail(s, error, "connecting (database_url)", NULL);
        recorder_store_disconnect(s);
        return -1;
    }
    PQsetNoticeProcessor(s->connection, NULL, NULL);
    PQsetNoticeReceiver(s->connection, notice_drop, NULL);
    if (PQsetnonblocking(s->connection, 1) ||
        run(s,
            "set statement_timeout = '30s'; set lock_timeout = '10s'; set timezone = 'UTC';"
            "set idle_in_transaction_session_timeout = '60s'; set client_encoding = 'UTF8';"
            "set plan_cache_mode = force_generic_plan",
            "session settings", error) ||
        prepare_all(s, error)) {
        recorder_store_disconnect(s);
        return -1;
    }
    return 0;
}

/* ---- offsets ---- */

static void arrays_begin(struct recorder_store *s, const enum pg_type *types, int arrays,
                         size_t count)
{
    for (int i = 0; i < arrays; i++) {
        pg_buffer_reset(&s->arrays[i]);
        pg_put_array(&s->arrays[i], types[i], count);
    }
}

static const enum pg_type offset_types[] = {PG_TEXT, PG_INT4, PG_INT8, PG_INT8};

/* topic, partition, stored (or 0), next */
static void offsets_put(struct recorder_store *s, const char *topic,
                        const struct recorder_position *positions, size_t count, bool zero)
{
    arrays_begin(s, offset_types, 4, count);
    for (size_t i = 0; i < count; i++) {
        pg_put_literal(&s->arrays[0], topic);
        pg_put_int4(&s->arrays[1], positions[i].partition);
        pg_put_int8(&s->arrays[2], zero ? 0 : positions[i].stored);
        pg_put_int8(&s->arrays[3], positions[i].next);
    }
}

static int64_t int8_at(const PGresult *result, int row, int column)
{
    uint64_t big;

    memcpy(&big, PQgetvalue(result, row, column), sizeof big);
    return (int64_t)be64toh(big);
}

int recorder_store_positions(struct recorder_store *s, const char *topic,
                             struct recorder_position *positions, size_t count, struct error *error)
{
    PGresult *result;

    offsets_put(s, topic, positions, count, true);
    result = run_arrays(s, "offset rows", 3, error);
    if (!result)
        return -1;
    PQclear(result);
    result = run_arrays(s, "positions", 2, error);
    if (!result)
        return -1;
    if (PQntuples(result) != (int)count) {
        PQclear(result);
        return error_set(error, "PostgreSQL: recorder_offset changed while it was read");
    }
    for (size_t i = 0; i < count; i++)
        positions[i].stored = int8_at(result, (int)i, 0);
    PQclear(result);
    return 0;
}

/* 1 = moved, 0 = another recorder was here, -1 = error */
static int offsets_move(struct recorder_store *s, const char *topic,
                        const struct recorder_position *positions, size_t count,
                        struct error *error)
{
    PGresult *result;
    int moved;

    offsets_put(s, topic, positions, count, false);
    result = run_arrays(s, "offsets", 4, error);
    if (!result)
        return -1;
    moved = PQntuples(result) == (int)count;
    PQclear(result);
    return moved;
}

/* ---- rows ---- */

static struct recorder_row *row_by_id(struct recorder_batch *b, const char *id)
{
    size_t low = 0, high = b->row_count;

    while (low < high) {
        size_t middle = (low + high) / 2;
        int order = memcmp(b->sorted[middle]->id, id, 16);

        if (!order)
            return b->sorted[middle];
        if (order < 0)
            low = middle + 1;
        else
            high = middle;
    }
    return NULL;
}

/* Upserts the rows and learns which jobs had no final state before. */
static int jobs_write(struct recorder_store *s, struct recorder_batch *b, struct error *error)
{
    PGresult *result;

    for (int c = 0; c < RECORDER_COLUMNS; c++) {
        pg_buffer_reset(&s->arrays[c]);
        recorder_column_begin(&s->arrays[c], c, b->row_count);
        for (size_t i = 0; i < b->row_count; i++)
            recorder_column_put(&s->arrays[c], c, b->sorted[i]);
    }
    result = run_arrays(s, "job rows", RECORDER_COLUMNS, error);
    if (!result)
        return -1;
    for (size_t i = 0; i < b->row_count; i++)
        b->rows[i].final_is_new = false;
    for (int i = 0; i < PQntuples(result); i++) {
        struct recorder_row *row = row_by_id(b, PQgetvalue(result, i, 0));
        uint32_t finals;

        memcpy(&finals, PQgetvalue(result, i, 1), sizeof finals);
        if (row)
            row->final_is_new = row->finals > 0 && (int32_t)be32toh(finals) == row->finals;
    }
    PQclear(result);
    return 0;
}

static int64_t day_of(int64_t at_us)
{
    return at_us / 86400000000;
}

/* Exact values are kept for latency_days; a day past them, or one that has not come, has no place.
 */
static bool day_kept(const struct recorder_store *s, int64_t day)
{
    int64_t today = day_of(clock_wall_us());

    return day >= today - s->options.latency_days && day <= today + 2;
}

static bool has_latency(const struct recorder_store *s, const struct recorder_row *row)
{
    return row->final_is_new && row->first_final.has_timings &&
           day_kept(s, day_of(row->first_final.at_us));
}

/* The day's partition is there, made now if need be. Runs before the transaction. */
static int day_make(struct recorder_store *s, int64_t day, struct error *error)
{
    char sql[128];

    for (int i = 0; i < DAYS_KNOWN; i++)
        if (s->days[i] == day + 1)
            return 0;
    snprintf(sql, sizeof sql, "select job_latency_partition_make(date '1970-01-01' + %lld)",
             (long long)day);
    if (run(s, sql, "making a partition of job_latency", error))
        return -1;
    s->days[s->day_next++ % DAYS_KNOWN] = day + 1;
    return 0;
}

static int days_make(struct recorder_store *s, const struct recorder_batch *b, struct error *error)
{
    int64_t last = -1;

    for (size_t i = 0; i < b->row_count; i++) {
        int64_t day = day_of(b->rows[i].first_final.at_us);

        if (!b->rows[i].finals || day == last || !day_kept(s, day))
            continue;
        if (day_make(s, day, error))
            return -1;
        last = day;
    }
    return 0;
}

static void latency_put(struct pg_buffer *b, const struct recorder_row *row)
{
    const struct recorder_state *f = &row->first_final;

    pg_put_raw16(b, 14); /* fields */
    pg_put_time(b, f->at_us);
    pg_put_uuid(b, row->id);
    pg_put_literal(b, f->status);
    pg_put_text(b, f->model);
    pg_put_text(b, f->tenant);
    pg_put_text(b, f->worker);
    pg_put_int4(b, f->usage.prompt_tokens);
    pg_put_int4(b, f->usage.generated_tokens);
    pg_put_int8(b, f->timings.queue_us);
    pg_put_int8(b, f->timings.encode_us);
    pg_put_int8(b, f->timings.first_token_us);
    pg_put_int8(b, f->timings.decode_us);
    pg_put_int8(b, f->timings.total_us);
    pg_put_float8(b, f->timings.batch_size_mean);
}

/* Hands all of the copy buffer over; in non-blocking mode libpq may ask to come again. */
static int copy_send(struct recorder_store *s, struct error *error)
{
    int64_t begun_us = clock_mono_us();
    bool timeout = false;
    int sent;

    while (!(sent = PQputCopyData(s->connection, s->copy.data, (int)s->copy.size)))
        if (wait_io(s, begun_us, &timeout))
            return fail(s, error, "copying into job_latency", NULL);
    while (sent > 0 && !(sent = PQputCopyEnd(s->connection, NULL)))
        if (wait_io(s, begun_us, &timeout))
            return fail(s, error, "copying into job_latency", NULL);
    return sent > 0 ? 0 : fail(s, error, "copying into job_latency", NULL);
}

static int latencies_write(struct recorder_store *s, const struct recorder_batch *b,
                           struct error *error)
{
    size_t rows = 0;

    pg_buffer_reset(&s->copy);
    pg_put_raw(&s->copy, "PGCOPY\n\377\r\n\0", 11);
    pg_put_raw32(&s->copy, 0); /* flags */
    pg_put_raw32(&s->copy, 0); /* no header extension */
    for (size_t i = 0; i < b->row_count; i++) {
        if (has_latency(s, &b->rows[i])) {
            latency_put(&s->copy, &b->rows[i]);
            rows++;
        }
    }
    pg_put_raw16(&s->copy, -1);
    if (s->copy.failed)
        return error_set(error, "PostgreSQL: out of memory for a batch; lower recorder.batch");
    if (!rows)
        return 0;
    if (run(s,
            "copy job_latency (finished_at, job_id, status, model, tenant, worker, prompt_tokens,"
            " generated_tokens, queue_us, encode_us, first_token_us, decode_us, total_us,"
            " batch_size_mean) from stdin (format binary)",
            "copying into job_latency", error) ||
        copy_send(s, error))
        return -1;
    PGresult *result = results_take(s, "copying into job_latency", error);

    PQclear(result);
    return result ? 0 : -1;
}

static int histogram_write(struct recorder_store *s, const struct recorder_batch *b,
                           struct error *error)
{
    static const enum pg_type types[] = {PG_TIMESTAMPTZ, PG_TEXT, PG_TEXT,
                                         PG_TEXT,        PG_INT2, PG_INT8};
    PGresult *result;

    if (!b->bucket_count)
        return 0;
    arrays_begin(s, types, 6, b->bucket_count);
    for (size_t i = 0; i < b->bucket_count; i++) {
        const struct recorder_bucket *bucket = &b->buckets[i];

        pg_put_time(&s->arrays[0], bucket->minute_us);
        pg_put_text(&s->arrays[1], bucket->model);
        pg_put_text(&s->arrays[2], bucket->tenant);
        pg_put_literal(&s->arrays[3], recorder_metric_name(bucket->metric));
        pg_put_int2(&s->arrays[4], bucket->bucket);
        pg_put_int8(&s->arrays[5], bucket->count);
    }
    result = run_arrays(s, "histogram", 6, error);
    PQclear(result);
    return result ? 0 : -1;
}

static int minutes_write(struct recorder_store *s, const struct recorder_batch *b,
                         struct error *error)
{
    static const enum pg_type types[] = {PG_TIMESTAMPTZ, PG_TEXT, PG_TEXT, PG_TEXT,       PG_TEXT,
                                         PG_INT8,        PG_INT8, PG_INT8, PG_TIMESTAMPTZ};
    PGresult *result;

    if (!b->minute_count)
        return 0;
    arrays_begin(s, types, 9, b->minute_count);
    for (size_t i = 0; i < b->minute_count; i++) {
        const struct recorder_minute *minute = &b->minutes[i];

        pg_put_time(&s->arrays[0], minute->minute_us);
        pg_put_text(&s->arrays[1], minute->model);
        pg_put_text(&s->arrays[2], minute->tenant);
        pg_put_text(&s->arrays[3], minute->worker);
        pg_put_literal(&s->arrays[4], minute->status);
        pg_put_int8(&s->arrays[5], minute->jobs);
        pg_put_int8(&s->arrays[6], minute->prompt_tokens);
        pg_put_int8(&s->arrays[7], minute->generated_tokens);
        pg_put_time(&s->arrays[8], minute->last_us);
    }
    result = run_arrays(s, "minutes", 9, error);
    PQclear(result);
    return result ? 0 : -1;
}

static int rows_write(struct recorder_store *s, struct recorder_batch *b, struct error *error)
{
    if (!b->row_count)
        return 0;
    if (jobs_write(s, b, error))
        return -1;
    recorder_batch_count(b);
    return latencies_write(s, b, error) || histogram_write(s, b, error) ||
                   minutes_write(s, b, error)
               ? -1
               : 0;
}

enum recorder_store_status recorder_store_write(struct recorder_store *s, const char *topic,
                                                struct recorder_batch *b,
                                                const struct recorder_position *positions,
                                                size_t count, struct error *error)
{
    int moved;

    recorder_batch_sort(b);
    if (days_make(s, b, error) || run(s, "begin", "begin", error))
        goto failed;
    moved = offsets_move(s, topic, positions, count, error);
    if (moved < 0)
        goto failed;
    if (!moved) {
        if (run(s, "rollback", "rollback", error))
            goto failed;
        error_set(error, "another recorder has written these events");
        return RECORDER_CONFLICT;
    }
    FAULT_POINT("sql_offsets");
    if (rows_write(s, b, error))
        goto failed;
    FAULT_POINT("sql_commit");
    if (run(s, "commit", "commit", error))
        goto failed;
    FAULT_POINT("sql_committed");
    return RECORDER_STORED;
failed:
    recorder_store_disconnect(s); /* a new connection knows where it stands */
    return RECORDER_FAILED;
}

int recorder_store_maintain(struct recorder_store *s, bool *more, struct error *error)
{
    char sql[128];
    PGresult *result;

    snprintf(sql, sizeof sql, "select recorder_maintain(%d, %d)", s->options.latency_days,
             s->options.history_days);
    if (!PQsendQuery(s->connection, sql)) {
        fail(s, error, "maintenance", NULL);
        goto failed;
    }
    result = results_take(s, "maintenance", error);
    if (!result)
        goto failed;
    *more = PQgetvalue(result, 0, 0)[0] == 't';
    PQclear(result);
    return 0;
failed:
    if (PQtransactionStatus(s->connection) != PQTRANS_IDLE)
        recorder_store_disconnect(s);
    return -1;
}
