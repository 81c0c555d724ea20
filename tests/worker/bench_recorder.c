/* SPDX-License-Identifier: MIT
 *
 * bench_recorder: events a second into PostgreSQL, through the recorder's own decoding, merging and
 * store, beside the naive way: one event, one upsert, one commit. Run it on a database of its own:
 *   migrations/test build/tests/bench_recorder [EVENTS]
 */
#include <libpq-fe.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/base/clock.h"
#include "schema/codec.h"
#include "worker/recorder_store.h"

enum { BATCH = 8192, NAIVE_SHARE = 40, TENANTS = 8 };

static uint64_t state = 88172645463325252u;

static uint64_t next_random(void)
{
    state ^= state << 13;
    state ^= state >> 7;
    return state ^= state << 17;
}

static void die(const char *what, const char *why)
{
    fprintf(stderr, "bench_recorder: %s: %s\n", what, why);
    exit(1);
}

/* A final event as the worker sends it: times, usage and timings, spread over tenants. */
static void event_make(struct job_event *event, char id[37], char tenant[16])
{
    uint8_t bytes[16];
    uint64_t random[2] = {next_random(), next_random()};
    int64_t now = clock_wall_us();

    memcpy(bytes, random, 16);
    uuid_format(bytes, id);
    snprintf(tenant, 16, "tenant-%d", (int)(next_random() % TENANTS));
    memset(event, 0, sizeof *event);
    event->job_id = (struct text){id, 36};
    event->attempt = 1;
    event->state = "completed";
    event->at_us = now;
    event->worker = (struct text){"worker-0", 8};
    event->tenant = (struct text){tenant, strlen(tenant)};
    event->model = (struct text){"prometheus-mini", 15};
    event->has_usage = event->has_timings = true;
    event->usage = (struct generation_usage){32, 20 + (int)(next_random() % 60)};
    event->timings.queue_us = (int64_t)(next_random() % 20000);
    event->timings.encode_us = 300;
    event->timings.first_token_us = 500 + (int64_t)(next_random() % 2000);
    event->timings.decode_us = 5000 + (int64_t)(next_random() % 30000);
    event->timings.total_us = event->timings.queue_us + event->timings.decode_us + 900;
    event->timings.batch_size_mean = 31.5;
    event->accepted_at_us = now - event->timings.decode_us;
    event->started_at_us = event->accepted_at_us + 10;
}

struct encoded {
    uint8_t *data;
    size_t *ends; /* (count) */
    size_t count;
};

static struct encoded events_make(struct codec *codec, size_t count)
{
    struct encoded all = {NULL, calloc(count, sizeof *all.ends), count};
    struct buffer buffer = {0};
    struct error error;
    size_t size = 0;

    for (size_t i = 0; i < count; i++) {
        struct job_event event;
        char id[37], tenant[16];

        event_make(&event, id, tenant);
        if (codec_encode(codec, RECORD_JOB_EVENT, &event, &buffer, &error))
            die("encoding", error.message);
        if (!i)
            all.data = malloc(count * (buffer.size + 64));
        if (!all.data || !all.ends)
            die("memory", "out");
        memcpy(all.data + size, buffer.data, buffer.size);
        size += buffer.size;
        all.ends[i] = size;
    }
    buffer_free(&buffer);
    return all;
}

static double seconds_since(int64_t begun_us)
{
    return (double)(clock_mono_us() - begun_us) / 1e6;
}

/* Decode, merge, write, `batch` events in a transaction. Returns events a second. */
static double run(const char *url, struct codec *codec, const struct encoded *all, size_t begin,
                  size_t end, size_t batch_size, const char *topic)
{
    struct recorder_store *store =
        recorder_store_create(&(struct recorder_store_options){url, 14, 400, NULL});
    struct recorder_batch *batch = recorder_batch_create(batch_size);
    struct recorder_position position = {0, 0, 0};
    struct error error;
    int64_t begun_us;

    if (!store || !batch || recorder_store_connect(store, &error) ||
        recorder_store_positions(store, topic, &position, 1, &error))
        die("connecting", error.message);
    begun_us = clock_mono_us();
    for (size_t i = begin; i < end; i++) {
        size_t from = i ? all->ends[i - 1] : 0;
        struct job_event event;

        if (codec_decode(codec, RECORD_JOB_EVENT, all->data + from, all->ends[i] - from,
                         batch->arena, &event, &error) ||
            recorder_batch_add(batch, &event, &error))
            die("decoding", error.message);
        position.next++;
        if (!recorder_batch_full(batch) && i + 1 < end)
            continue;
        if (recorder_store_write(store, topic, batch, &position, 1, &error) != RECORDER_STORED)
            die("writing", error.message);
        position.stored = position.next;
        recorder_batch_reset(batch);
    }
    double rate = (double)(end - begin) / seconds_since(begun_us);

    recorder_batch_destroy(batch);
    recorder_store_destroy(store);
    return rate;
}

/* What a first version would do: a prepared upsert of one row for each event, committed by itself.
 */
static double run_naive(const char *url, struct codec *codec, const struct encoded *all,
                        size_t begin, size_t end)
{
    PGconn *connection = PQconnectdb(url);
    struct arena *arena = arena_create(65536, 1 << 20);
    struct error error;
    int64_t begun_us;

    if (!arena || PQstatus(connection) != CONNECTION_OK)
        die("connecting", PQerrorMessage(connection));
    PQclear(PQprepare(connection, "one",
                      "insert into job as j (job_id, status, state_rank, attempt, finals, tenant,"
                      " model, worker, source_partition, source_offset, finished_at, updated_at,"
                      " prompt_tokens, generated_tokens, total_us) values ($1, $2, 3, 1, 1, $3, $4,"
                      " $5, 0, 0, now(), now(), $6, $7, $8) on conflict (job_id) do update set"
                      " status = excluded.status where (j.attempt, j.state_rank) <"
                      " (excluded.attempt, excluded.state_rank)",
                      0, NULL));
    begun_us = clock_mono_us();
    for (size_t i = begin; i < end; i++) {
        size_t from = i ? all->ends[i - 1] : 0;
        struct job_event event;
        char prompt[16], generated[16], total[24];
        PGresult *result;

        arena_reset(arena);
        if (codec_decode(codec, RECORD_JOB_EVENT, all->data + from, all->ends[i] - from, arena,
                         &event, &error))
            die("decoding", error.message);
        snprintf(prompt, sizeof prompt, "%d", event.usage.prompt_tokens);
        snprintf(generated, sizeof generated, "%d", event.usage.generated_tokens);
        snprintf(total, sizeof total, "%lld", (long long)event.timings.total_us);
        const char *values[] = {event.job_id.data, event.state, event.tenant.data, event.model.data,
                                event.worker.data, prompt,      generated,         total};

        result = PQexecPrepared(connection, "one", 8, values, NULL, NULL, 0);
        if (PQresultStatus(result) != PGRES_COMMAND_OK)
            die("writing", PQerrorMessage(connection));
        PQclear(result);
    }
    double rate = (double)(end - begin) / seconds_since(begun_us);

    PQfinish(connection);
    arena_destroy(arena);
    return rate;
}

int main(int argc, char **argv)
{
    const char *url = getenv("PGPT_DATABASE_URL");
    size_t count = argc > 1 ? strtoul(argv[1], NULL, 10) : 400000;
    size_t naive = count / NAIVE_SHARE;
    struct error error;
    struct codec *codec = codec_open(NULL, &error);

    if (!url || !count)
        die("usage", "migrations/test build/tests/bench_recorder [EVENTS]");
    if (!codec)
        die("codec", error.message);
    struct encoded all = events_make(codec, count + naive);
    double batched = run(url, codec, &all, 0, count, BATCH, "bench");
    double single = run_naive(url, codec, &all, count, count + naive);

    printf("{\"events\": %zu, \"batch\": %d, \"events_per_s\": %.0f, \"row_by_row_per_s\": %.0f, "
           "\"ratio\": %.1f}\n",
           count, BATCH, batched, single, batched / single);
    free(all.data);
    free(all.ends);
    codec_close(codec);
    return 0;
}
