/* SPDX-License-Identifier: MIT */
#include <libpq-fe.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/base/clock.h"
#include "producer/command.h"
#include "producer/output.h"

/* Types of result columns that become JSON numbers and booleans (pg_type.dat). */
enum { PG_BOOL = 16, PG_INT8 = 20, PG_INT2 = 21, PG_INT4 = 23, PG_FLOAT4 = 700, PG_FLOAT8 = 701 };
enum { COLUMNS_MAX = 16 }; /* of the overview's queries */

struct status {
    struct cli *cli;
    const struct command *command;
    PGconn *db;
    bool late; /* an answer did not come within --timeout */
};

static const char job_query[] =
    "select job_id, status, attempt, tenant, model, worker, accepted_at, started_at, finished_at, "
    "prompt_tokens, generated_tokens, queue_us, first_token_us, total_us, dead_lettered, "
    "error_class, error_message from job where job_id = any($1::uuid[]) order by accepted_at";

static const struct {
    const char *title, *name, *query;
} overview[] = {
    {"Latency of completed jobs (milliseconds)", "latency_percentiles",
     "select metric, jobs, round((p50 / 1000)::numeric, 2)::float8 as p50, "
     "round((p90 / 1000)::numeric, 2)::float8 as p90, round((p95 / 1000)::numeric, 2)::float8 as "
     "p95, "
     "round((p99 / 1000)::numeric, 2)::float8 as p99 from latency_percentiles order by metric"},
    {"Throughput of the last minutes", "throughput",
     "select to_char(minute, 'HH24:MI') as minute, jobs, completed, failed, cancelled, expired, "
     "round(jobs_per_s::numeric, 1)::float8 as jobs_per_s, "
     "round(tokens_per_s::numeric, 1)::float8 as tokens_per_s from throughput "
     "where minute > now() - interval '10 minutes' order by throughput.minute"},
    {"Workers of the last day", "workers",
     "select worker, alive_jobs, completed_last_day, failed_last_day, "
     "round(jobs_per_s::numeric, 1)::float8 as jobs_per_s, "
     "round(tokens_per_s::numeric, 1)::float8 as tokens_per_s, "
     "to_char(last_finished_at, 'YYYY-MM-DD HH24:MI:SS') as last_finished "
     "from worker_status order by worker"}};

static json_t *cell(const PGresult *rows, int row, int column)
{
    struct text text = {PQgetvalue(rows, row, column), (size_t)PQgetlength(rows, row, column)};

    if (PQgetisnull(rows, row, column))
        return json_null();
    switch (PQftype(rows, column)) {
    case PG_BOOL:
        return json_boolean(*text.data == 't');
    case PG_INT2:
    case PG_INT4:
    case PG_INT8:
        return json_integer(strtoll(text.data, NULL, 10));
    case PG_FLOAT4:
    case PG_FLOAT8:
        return json_real(strtod(text.data, NULL));
    default:
        return output_text(&text);
    }
}

static json_t *row_object(const PGresult *rows, int row)
{
    json_t *object = json_object();

    for (int c = 0; c < PQnfields(rows); c++)
        output_set(object, PQfname(rows, c), cell(rows, row, c));
    return object;
}

static json_t *row_array(const PGresult *rows)
{
    json_t *array = json_array();

    for (int r = 0; r < PQntuples(rows); r++)
        output_add(array, row_object(rows, r));
    return array;
}

static bool is_number(const PGresult *rows, int column)
{
    Oid type = PQftype(rows, column);

    return type == PG_INT2 || type == PG_INT4 || type == PG_INT8 || type == PG_FLOAT4 ||
           type == PG_FLOAT8;
}

/* One row of a table, -1 = the names of the columns; numbers stand to the right. */
static void print_row(const PGresult *rows, int row, const int *widths)
{
    for (int c = 0; c < PQnfields(rows); c++) {
        const char *text = row < 0 ? PQfname(rows, c) : PQgetvalue(rows, row, c);
        bool last = c + 1 == PQnfields(rows);

        printf("  %*s", is_number(rows, c) ? widths[c] : last ? 0 : -widths[c], text);
    }
    putchar('\n');
}

static void print_table(const PGresult *rows, const char *title)
{
    int widths[COLUMNS_MAX] = {0};

    printf("%s\n", title);
    if (!PQntuples(rows))
        puts("  none yet");
    for (int c = 0; c < PQnfields(rows) && c < COLUMNS_MAX; c++)
        for (int r = -1; r < PQntuples(rows); r++) {
            int width = r < 0 ? (int)strlen(PQfname(rows, c)) : PQgetlength(rows, r, c);

            widths[c] = width > widths[c] ? width : widths[c];
        }
    for (int r = -1; r < PQntuples(rows) && PQntuples(rows); r++)
        print_row(rows, r, widths);
    putchar('\n');
}

/* Field by field: a job has many of them. */
static void print_job(const PGresult *rows, int row)
{
    for (int c = 0; c < PQnfields(rows); c++)
        if (!PQgetisnull(rows, row, c) && *PQgetvalue(rows, row, c))
            printf("%-17s %s\n", PQfname(rows, c),
                   PQftype(rows, c) == PG_BOOL ? *PQgetvalue(rows, row, c) == 't' ? "yes" : "no"
                                               : PQgetvalue(rows, row, c));
    putchar('\n');
}

/* Until libpq can tell more without waiting; false when --timeout is over or the connection is. */
static bool wait_answer(struct status *s, int64_t until_us)
{
    while (PQisBusy(s->db)) {
        struct pollfd wait = {.fd = PQsocket(s->db), .events = POLLIN};
        int64_t left_us = until_us - clock_mono_us();

        s->late = left_us <= 0;
        if (s->late || cli_interrupted())
            return false;
        if (poll(&wait, 1, (int)(left_us / 1000) + 1) > 0 && !PQconsumeInput(s->db))
            return false;
    }
    return true;
}

/* A server may fall silent at any time: PQexec() would wait for it without end. NULL without an
 * answer. */
static PGresult *query(struct status *s, const char *text, const char *const *values, int count)
{
    PGresult *rows = NULL, *next;
    /* A second more than the server has for the statement: it knows better why. */
    int64_t until_us = clock_mono_us() + s->cli->timeout_us + 1000000;

    if (!PQsendQueryParams(s->db, text, count, NULL, values, NULL, NULL, 0))
        return NULL;
    while (wait_answer(s, until_us)) {
        next = PQgetResult(s->db);
        if (!next)
            return rows;
        PQclear(rows);
        rows = next;
    }
    PQclear(rows);
    return NULL;
}

static int query_failed(struct status *s, const PGresult *rows)
{
    static const struct {
        const char *state, *remedy;
    } remedies[] = {{"42P01", "the tables are missing: apply migrations/ (sqitch)"},
                    {"42501", "grant this role what role reader has: grant reader to ..."},
                    {"57014", "--timeout says how long a query may take"}};
    const char *state = PQresultErrorField(rows, PG_DIAG_SQLSTATE), *remedy = "";
    const char *told = PQresultErrorMessage(rows);

    for (size_t i = 0; state && i < sizeof remedies / sizeof *remedies; i++)
        if (!strcmp(state, remedies[i].state))
            remedy = remedies[i].remedy;
    if (s->late)
        told = "the database does not answer within --timeout";
    else if (!*told && *PQerrorMessage(s->db))
        told = PQerrorMessage(s->db);
    else if (!*told)
        told = "the database answers without rows; is it PostgreSQL?";
    cli_say(s->command, "%s%s", told, remedy);
    if (cli_interrupted())
        return EXIT_INTERRUPTED;
    return PQstatus(s->db) == CONNECTION_OK && !s->late ? EXIT_TROUBLE : EXIT_UNREACHABLE;
}

static int show_overview(struct status *s)
{
    json_t *all = json_object();
    int code = EXIT_OK;

    for (size_t i = 0; i < sizeof overview / sizeof *overview && !code; i++) {
        PGresult *rows = query(s, overview[i].query, NULL, 0);

        if (PQresultStatus(rows) != PGRES_TUPLES_OK)
            code = query_failed(s, rows);
        else if (s->cli->json)
            output_set(all, overview[i].name, row_array(rows));
        else
            print_table(rows, overview[i].title);
        PQclear(rows);
    }
    if (s->cli->json && !code)
        output_line(json_incref(all));
    json_decref(all);
    return code;
}

static bool was_found(const PGresult *rows, const char *id)
{
    for (int r = 0; r < PQntuples(rows); r++)
        if (!strcasecmp(PQgetvalue(rows, r, 0), id))
            return true;
    return false;
}

/* "{id,id,...}": ids are checked, so nothing needs quotes. NULL without memory. */
static char *id_array(const struct option_positionals *ids)
{
    char *array = malloc(ids->count * 37 + 3), *at = array;

    if (!array)
        return NULL;
    *at++ = '{';
    for (size_t i = 0; i < ids->count; i++)
        at += sprintf(at, "%s%s", i ? "," : "", ids->items[i]);
    strcpy(at, "}");
    return array;
}

static int show_jobs(struct status *s, const struct option_positionals *ids)
{
    char *array = id_array(ids);
    const char *values[] = {array};
    PGresult *rows = NULL;
    int code = EXIT_OK;

    if (!array) {
        cli_say(s->command, "out of memory");
        return EXIT_TROUBLE;
    }
    rows = query(s, job_query, values, 1);
    free(array);
    if (PQresultStatus(rows) != PGRES_TUPLES_OK)
        code = query_failed(s, rows);
    for (int r = 0; r < PQntuples(rows); r++) {
        if (s->cli->json)
            output_line(row_object(rows, r));
        else
            print_job(rows, r);
    }
    for (size_t i = 0; i < ids->count && (!code || code == EXIT_NOT_FOUND); i++)
        if (!was_found(rows, ids->items[i])) {
            cli_say(s->command, "job %s is not in the database (yet)", ids->items[i]);
            code = EXIT_NOT_FOUND;
        }
    PQclear(rows);
    return code;
}

static int status_open(struct status *s)
{
    char seconds[16];
    const char *const names[] = {"dbname", "connect_timeout", "application_name", NULL};
    const char *const values[] = {s->cli->database_url, seconds, "pgpt", NULL};

    snprintf(seconds, sizeof seconds, "%d", 1 + cli_timeout_ms(s->cli) / 1000);
    s->db = PQconnectdbParams(names, values, 1);
    if (PQstatus(s->db) == CONNECTION_OK) {
        PGresult *answer;
        char command[64];

        snprintf(command, sizeof command, "set statement_timeout = %d", cli_timeout_ms(s->cli));
        answer = query(s, command, NULL, 0); /* where it is refused, queries have no end but ours */
        PQclear(answer);
        return answer ? EXIT_OK : query_failed(s, NULL);
    }
    cli_say(s->command, "database (--database, PGPT_DATABASE_URL): %s",
            s->db ? PQerrorMessage(s->db) : "out of memory");
    return EXIT_UNREACHABLE;
}

static int run(struct cli *cli, const struct command *command, int argc, char **argv)
{
    struct status s = {.cli = cli, .command = command};
    struct option_positionals ids;
    const struct option own[] = {{"database", 'd', OPTION_TEXT, &cli->database_url, "URL",
                                  "PostgreSQL (PGPT_DATABASE_URL)", 0, 0, NULL},
                                 {0}};
    const struct option *const tables[] = {own, NULL};
    int code;

    cli->timeout_us = 10 * 1000000ll;
    if (!cli_parse(cli, command, tables, argc, argv, &ids, &code))
        return code;
    if (ids.count && !cli_job_ids_ok(command, &ids))
        return EXIT_WRONG_USE;
    if (!cli->database_url) {
        cli_say(command, "no database: set PGPT_DATABASE_URL or --database; without one, "
                         "`pgpt follow JOB_ID` reads results from Kafka");
        return EXIT_WRONG_USE;
    }
    code = status_open(&s);
    if (!code)
        code = ids.count ? show_jobs(&s, &ids) : show_overview(&s);
    PQfinish(s.db);
    return code;
}

const struct command command_status = {
    "status", "Shows jobs, or latency percentiles, throughput and workers, from PostgreSQL.",
    "[OPTION]... [JOB_ID]...",
    "\nWith job ids: what the database knows of each. Without: percentiles, throughput of the last "
    "ten\n"
    "minutes and workers. The tables follow the event topic within about a second.\n"
    "\nExamples\n"
    "  pgpt status\n"
    "  pgpt status --json 6f1e0c2a-9a54-4c0e-8d0b-0d5b1c8f7a11 | jq .status\n",
    run};
