/* SPDX-License-Identifier: MIT */
#include "worker/recorder_store.h"

#include <endian.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/base/clock.h"
#include "worker/fault.h"
#include "worker/pg_session.h"
#include "worker/recorder_columns.h"

enum { DAYS_KNOWN = 64 };
_Static_assert((int)RECORDER_COLUMNS <= (int)PG_SESSION_ARRAYS_MAX, "a column is a parameter");

struct recorder_store {
    struct recorder_store_options options;
    struct pg_session session;
    struct pg_buffer copy;
    int64_t days[DAYS_KNOWN]; /* ring of days since 1970 + 1 whose partitions exist, 0 = none */
    size_t day_next;
};

/* ---- connecting ---- */

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
        status = pg_session_prepare(&s->session, "job rows", sql, error);
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
        if (pg_session_prepare(&s->session, statements[i].name, statements[i].sql, error))
            return -1;
    return prepare_upsert(s, error);
}

struct recorder_store *recorder_store_create(const struct recorder_store_options *options)
{
    struct recorder_store *s = calloc(1, sizeof *s);

    if (!s)
        return NULL;
    s->options = *options;
    s->session.url = options->url;
    s->session.stopping = options->stopping;
    return s;
}

void recorder_store_destroy(struct recorder_store *s)
{
    if (!s)
        return;
    pg_session_close(&s->session);
    pg_buffer_free(&s->copy);
    free(s);
}

bool recorder_store_connected(const struct recorder_store *s)
{
    return s->session.connection != NULL;
}

void recorder_store_disconnect(struct recorder_store *s)
{
    pg_session_disconnect(&s->session);
    memset(s->days, 0, sizeof s->days);
}

int recorder_store_connect(struct recorder_store *s, struct error *error)
{
    recorder_store_disconnect(s);
    if (pg_session_connect(&s->session, "pgpt-recorder", error))
        return -1;
    if (pg_session_run(
            &s->session,
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

static const enum pg_type offset_types[] = {PG_TEXT, PG_INT4, PG_INT8, PG_INT8};

/* topic, partition, stored (or 0), next */
static void offsets_put(struct recorder_store *s, const char *topic,
                        const struct recorder_position *positions, size_t count, bool zero)
{
    pg_session_arrays(&s->session, offset_types, 4, count);
    for (size_t i = 0; i < count; i++) {
        pg_put_literal(&s->session.arrays[0], topic);
        pg_put_int4(&s->session.arrays[1], positions[i].partition);
        pg_put_int8(&s->session.arrays[2], zero ? 0 : positions[i].stored);
        pg_put_int8(&s->session.arrays[3], positions[i].next);
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
    result = pg_session_run_arrays(&s->session, "offset rows", 3, error);
    if (!result)
        return -1;
    PQclear(result);
    result = pg_session_run_arrays(&s->session, "positions", 2, error);
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
    result = pg_session_run_arrays(&s->session, "offsets", 4, error);
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
        pg_buffer_reset(&s->session.arrays[c]);
        recorder_column_begin(&s->session.arrays[c], c, b->row_count);
        for (size_t i = 0; i < b->row_count; i++)
            recorder_column_put(&s->session.arrays[c], c, b->sorted[i]);
    }
    result = pg_session_run_arrays(&s->session, "job rows", RECORDER_COLUMNS, error);
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
    if (pg_session_run(&s->session, sql, "making a partition of job_latency", error))
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
    return pg_session_copy(
        &s->session,
        "copy job_latency (finished_at, job_id, status, model, tenant, worker, prompt_tokens,"
        " generated_tokens, queue_us, encode_us, first_token_us, decode_us, total_us,"
        " batch_size_mean) from stdin (format binary)",
        &s->copy, "copying into job_latency", error);
}

static int histogram_write(struct recorder_store *s, const struct recorder_batch *b,
                           struct error *error)
{
    static const enum pg_type types[] = {PG_TIMESTAMPTZ, PG_TEXT, PG_TEXT,
                                         PG_TEXT,        PG_INT2, PG_INT8};
    PGresult *result;

    if (!b->bucket_count)
        return 0;
    pg_session_arrays(&s->session, types, 6, b->bucket_count);
    for (size_t i = 0; i < b->bucket_count; i++) {
        const struct recorder_bucket *bucket = &b->buckets[i];

        pg_put_time(&s->session.arrays[0], bucket->minute_us);
        pg_put_text(&s->session.arrays[1], bucket->model);
        pg_put_text(&s->session.arrays[2], bucket->tenant);
        pg_put_literal(&s->session.arrays[3], recorder_metric_name(bucket->metric));
        pg_put_int2(&s->session.arrays[4], bucket->bucket);
        pg_put_int8(&s->session.arrays[5], bucket->count);
    }
    result = pg_session_run_arrays(&s->session, "histogram", 6, error);
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
    pg_session_arrays(&s->session, types, 9, b->minute_count);
    for (size_t i = 0; i < b->minute_count; i++) {
        const struct recorder_minute *minute = &b->minutes[i];

        pg_put_time(&s->session.arrays[0], minute->minute_us);
        pg_put_text(&s->session.arrays[1], minute->model);
        pg_put_text(&s->session.arrays[2], minute->tenant);
        pg_put_text(&s->session.arrays[3], minute->worker);
        pg_put_literal(&s->session.arrays[4], minute->status);
        pg_put_int8(&s->session.arrays[5], minute->jobs);
        pg_put_int8(&s->session.arrays[6], minute->prompt_tokens);
        pg_put_int8(&s->session.arrays[7], minute->generated_tokens);
        pg_put_time(&s->session.arrays[8], minute->last_us);
    }
    result = pg_session_run_arrays(&s->session, "minutes", 9, error);
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
    if (days_make(s, b, error) || pg_session_run(&s->session, "begin", "begin", error))
        goto failed;
    moved = offsets_move(s, topic, positions, count, error);
    if (moved < 0)
        goto failed;
    if (!moved) {
        if (pg_session_run(&s->session, "rollback", "rollback", error))
            goto failed;
        error_set(error, "another recorder has written these events");
        return RECORDER_CONFLICT;
    }
    FAULT_POINT("sql_offsets");
    if (rows_write(s, b, error))
        goto failed;
    FAULT_POINT("sql_commit");
    if (pg_session_run(&s->session, "commit", "commit", error))
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
    result = pg_session_query(&s->session, sql, "maintenance", error);
    if (!result) {
        if (PQtransactionStatus(s->session.connection) != PQTRANS_IDLE)
            recorder_store_disconnect(s);
        return -1;
    }
    *more = PQgetvalue(result, 0, 0)[0] == 't';
    PQclear(result);
    return 0;
}
