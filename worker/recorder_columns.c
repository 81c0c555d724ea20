/* SPDX-License-Identifier: MIT */
#include "worker/recorder_columns.h"

enum column {
    C_ID,
    C_STATUS,
    C_RANK,
    C_ATTEMPT,
    C_FINALS,
    C_TENANT,
    C_MODEL,
    C_WORKER,
    C_PARTITION,
    C_OFFSET,
    C_ACCEPTED,
    C_STARTED,
    C_FINISHED,
    C_UPDATED,
    C_PROMPT,
    C_GENERATED,
    C_QUEUE,
    C_ENCODE,
    C_FIRST_TOKEN,
    C_DECODE,
    C_TOTAL,
    C_BATCH_SIZE,
    C_DEAD_LETTERED,
    C_CLASS,
    C_MESSAGE
};
enum merge { KEY, NEWEST, EARLIEST, SUM };

static const struct {
    const char *name;
    const char *array;
    enum pg_type type;
    enum merge merge;
} columns[RECORDER_COLUMNS] = {
    [C_ID] = {"job_id", "uuid[]", PG_UUID, KEY},
    [C_STATUS] = {"status", "text[]", PG_TEXT, NEWEST},
    [C_RANK] = {"state_rank", "int2[]", PG_INT2, NEWEST},
    [C_ATTEMPT] = {"attempt", "int4[]", PG_INT4, NEWEST},
    [C_FINALS] = {"finals", "int4[]", PG_INT4, SUM},
    [C_TENANT] = {"tenant", "text[]", PG_TEXT, NEWEST},
    [C_MODEL] = {"model", "text[]", PG_TEXT, NEWEST},
    [C_WORKER] = {"worker", "text[]", PG_TEXT, NEWEST},
    [C_PARTITION] = {"source_partition", "int4[]", PG_INT4, NEWEST},
    [C_OFFSET] = {"source_offset", "int8[]", PG_INT8, NEWEST},
    [C_ACCEPTED] = {"accepted_at", "timestamptz[]", PG_TIMESTAMPTZ, EARLIEST},
    [C_STARTED] = {"started_at", "timestamptz[]", PG_TIMESTAMPTZ, EARLIEST},
    [C_FINISHED] = {"finished_at", "timestamptz[]", PG_TIMESTAMPTZ, NEWEST},
    [C_UPDATED] = {"updated_at", "timestamptz[]", PG_TIMESTAMPTZ, NEWEST},
    [C_PROMPT] = {"prompt_tokens", "int4[]", PG_INT4, NEWEST},
    [C_GENERATED] = {"generated_tokens", "int4[]", PG_INT4, NEWEST},
    [C_QUEUE] = {"queue_us", "int8[]", PG_INT8, NEWEST},
    [C_ENCODE] = {"encode_us", "int8[]", PG_INT8, NEWEST},
    [C_FIRST_TOKEN] = {"first_token_us", "int8[]", PG_INT8, NEWEST},
    [C_DECODE] = {"decode_us", "int8[]", PG_INT8, NEWEST},
    [C_TOTAL] = {"total_us", "int8[]", PG_INT8, NEWEST},
    [C_BATCH_SIZE] = {"batch_size_mean", "float8[]", PG_FLOAT8, NEWEST},
    [C_DEAD_LETTERED] = {"dead_lettered", "bool[]", PG_BOOL, NEWEST},
    [C_CLASS] = {"error_class", "text[]", PG_TEXT, NEWEST},
    [C_MESSAGE] = {"error_message", "text[]", PG_TEXT, NEWEST},
};

static void put_time_or_null(struct pg_buffer *b, int64_t at_us)
{
    if (at_us)
        pg_put_time(b, at_us);
    else
        pg_put_null(b);
}

static void put_duration(struct pg_buffer *b, const struct recorder_state *s, int64_t micros)
{
    if (s->has_timings)
        pg_put_int8(b, micros);
    else
        pg_put_null(b);
}

static void put_tokens(struct pg_buffer *b, const struct recorder_state *s, int32_t tokens)
{
    if (s->has_usage)
        pg_put_int4(b, tokens);
    else
        pg_put_null(b);
}

static void put_error(struct pg_buffer *b, const struct recorder_state *s, struct text text)
{
    if (s->has_error)
        pg_put_text(b, text);
    else
        pg_put_null(b);
}

void recorder_column_put(struct pg_buffer *b, int column, const struct recorder_row *row)
{
    const struct recorder_state *s = &row->newest;

    switch ((enum column)column) {
    case C_ID:
        pg_put_uuid(b, row->id);
        break;
    case C_STATUS:
        pg_put_literal(b, s->status);
        break;
    case C_RANK:
        pg_put_int2(b, (int16_t)s->rank);
        break;
    case C_ATTEMPT:
        pg_put_int4(b, s->attempt);
        break;
    case C_FINALS:
        pg_put_int4(b, row->finals);
        break;
    case C_TENANT:
        pg_put_text(b, s->tenant);
        break;
    case C_MODEL:
        pg_put_text(b, s->model);
        break;
    case C_WORKER:
        pg_put_text(b, s->worker);
        break;
    case C_PARTITION:
        pg_put_int4(b, s->source_partition);
        break;
    case C_OFFSET:
        pg_put_int8(b, s->source_offset);
        break;
    case C_ACCEPTED:
        put_time_or_null(b, row->accepted_at_us);
        break;
    case C_STARTED:
        put_time_or_null(b, row->started_at_us);
        break;
    case C_FINISHED:
        put_time_or_null(b, s->rank == RECORDER_RANK_FINAL ? s->at_us : 0);
        break;
    case C_UPDATED:
        pg_put_time(b, s->at_us);
        break;
    case C_PROMPT:
        put_tokens(b, s, s->usage.prompt_tokens);
        break;
    case C_GENERATED:
        put_tokens(b, s, s->usage.generated_tokens);
        break;
    case C_QUEUE:
        put_duration(b, s, s->timings.queue_us);
        break;
    case C_ENCODE:
        put_duration(b, s, s->timings.encode_us);
        break;
    case C_FIRST_TOKEN:
        put_duration(b, s, s->timings.first_token_us);
        break;
    case C_DECODE:
        put_duration(b, s, s->timings.decode_us);
        break;
    case C_TOTAL:
        put_duration(b, s, s->timings.total_us);
        break;
    case C_BATCH_SIZE:
        if (s->has_timings)
            pg_put_float8(b, s->timings.batch_size_mean);
        else
            pg_put_null(b);
        break;
    case C_DEAD_LETTERED:
        pg_put_bool(b, s->dead_lettered);
        break;
    case C_CLASS:
        put_error(b, s, s->error.error_class);
        break;
    case C_MESSAGE:
        put_error(b, s, s->error.message);
        break;
    }
}

/* The same merge as recorder_batch_add(): newest (attempt, state_rank) wins, the first of equals;
 * times are the earliest known; final states add up. Rows that change nothing are not touched. */
void recorder_upsert_print(FILE *out)
{
    static const char newer[] =
        "(excluded.attempt, excluded.state_rank) > (j.attempt, j.state_rank)";

    fputs("insert into job as j (", out);
    for (int c = 0; c < RECORDER_COLUMNS; c++)
        fprintf(out, "%s%s", c ? ", " : "", columns[c].name);
    fputs(") select * from unnest(", out);
    for (int c = 0; c < RECORDER_COLUMNS; c++)
        fprintf(out, "%s$%d::%s", c ? ", " : "", c + 1, columns[c].array);
    fputs(") on conflict (job_id) do update set ", out);
    for (int c = 0; c < RECORDER_COLUMNS; c++) {
        const char *name = columns[c].name;

        if (columns[c].merge == NEWEST)
            fprintf(out, "%s = case when %s then excluded.%s else j.%s end, ", name, newer, name,
                    name);
        else if (columns[c].merge == EARLIEST)
            fprintf(out, "%s = least(j.%s, excluded.%s), ", name, name, name);
    }
    fprintf(out,
            "finals = j.finals + excluded.finals where %s or excluded.finals > 0"
            " or excluded.accepted_at < coalesce(j.accepted_at, 'infinity')"
            " or excluded.started_at < coalesce(j.started_at, 'infinity')"
            " returning job_id, finals",
            newer);
}

void recorder_column_begin(struct pg_buffer *b, int column, size_t rows)
{
    pg_buffer_reset(b);
    pg_put_array(b, columns[column].type, rows);
}
