/* SPDX-License-Identifier: MIT
 *
 * worker_mock: how much of the engine's own rate comes through the worker, where there is no Kafka:
 * librdkafka's mock cluster in this process stands in for the brokers. First the engine alone, on
 * token ids, at the same rows and steps a call; then a worker process on the same requests, all of
 * them waiting in the topic when it starts. The mock keeps no offsets of transactions and is a
 * single thread, so this measures the worker's stages, not a broker, and proves nothing about
 * delivery. Prints a JSON line each, then processor time by thread.
 */
#include <errno.h>
#include <getopt.h>
#include <librdkafka/rdkafka.h>
#include <librdkafka/rdkafka_mock.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "kernels/base/clock.h"
#include "kernels/engine.h"
#include "kernels/generate/run.h"
#include "kernels/generate/validate.h"
#include "kernels/text/prompt.h"
#include "schema/codec.h"
#include "tests/bench/threads_time.h"

enum {
    PARTITIONS = 12,
    ARENA_SMALL = 1 << 16,
    ARENA_MOST = 2047 << 20,
    STALLED_US = 60 * 1000 * 1000,
};

struct bench {
    const char *worker, *lines, *language, *model, *device, *compute;
    int jobs, rows, steps, min_length, max_length, stream, prepare_threads, hold;
    struct arena *arena;
    struct generation_request *requests; /* (jobs) */
};

static void fail(const char *what, const char *why)
{
    fprintf(stderr, "worker_mock: %s: %s\n", what, why);
    exit(1);
}

static void *must(void *memory)
{
    if (!memory)
        fail("memory", "out of it");
    return memory;
}

/* ---- requests ---- */

static void request_fill(const struct bench *b, int i, struct text prompt,
                         struct generation_request *request)
{
    char id[37];

    generation_request_init(request);
    snprintf(id, sizeof id, "%08x-0000-4000-8000-%012x", (unsigned)i * 2654435761u, (unsigned)i);
    request->job_id = arena_text(b->arena, id, 36);
    request->prompt = prompt;
    request->target_language = (struct text){b->language, strlen(b->language)};
    request->min_length = b->min_length;
    request->max_length = b->max_length;
    request->stream = b->stream > 0;
    request->stream_interval = b->stream > 0 ? b->stream : 1;
    request->created_at_us = clock_wall_us();
    must((void *)request->job_id.data);
}

/* The file's lines in turn, until there are enough. */
static void requests_make(struct bench *b)
{
    FILE *file = fopen(b->lines, "r");
    char *line = NULL;
    size_t room = 0;

    if (!file)
        fail(b->lines, strerror(errno));
    b->arena = must(arena_create(ARENA_SMALL, ARENA_MOST));
    b->requests = must(calloc((size_t)b->jobs, sizeof *b->requests));
    for (int i = 0; i < b->jobs;) {
        ssize_t size = getline(&line, &room, file);

        if (size < 0 && !i)
            fail(b->lines, "it has no lines");
        if (size < 0)
            rewind(file);
        if (size <= 1)
            continue;
        request_fill(b, i, arena_text(b->arena, line, (size_t)size - 1), &b->requests[i]);
        i++;
    }
    free(line);
    fclose(file);
}

/* ---- the engine alone ---- */

static void sources_make(const struct bench *b, const struct engine *engine,
                         struct engine_request *out)
{
    struct error error;
    struct prompt_codec *codec =
        prompt_codec_open(b->model, engine_limits(engine)->vocabulary, &error);

    if (!codec)
        fail(b->model, error.message);
    for (int i = 0; i < b->jobs; i++) {
        struct validate_problems problems;
        const int32_t *source;
        int32_t count = generation_prepare(&b->requests[i], engine_limits(engine), codec, "",
                                           b->arena, &source, &problems);

        if (count < 0)
            fail(b->requests[i].prompt.data, problems.message);
        generation_run_request(&b->requests[i], source, count, (uint64_t)i, &out[i]);
    }
    prompt_codec_close(codec);
}

/* All requests, as many at once as there are rows. Returns generated tokens. */
static int64_t engine_drain(const struct bench *b, struct engine *engine,
                            const struct engine_request *requests, int32_t *slots)
{
    int admitted = 0, finished = 0;
    int64_t tokens = 0;
    struct engine_output out;
    struct error error;

    while (finished < b->jobs) {
        int free_rows = engine_free_rows(engine), n = b->jobs - admitted;
        int taken = 0;

        n = n < free_rows ? n : free_rows;
        if (n && (taken = engine_admit(engine, n, requests + admitted, slots, &error)) < 0)
            fail("engine", error.message);
        admitted += taken;
        if (engine_step(engine, b->steps, &out, &error))
            fail("engine", error.message);
        for (int i = 0; i < out.item_count; i++) {
            tokens += out.items[i].token_count + out.items[i].ended_with_eos;
            if (out.items[i].finish == ENGINE_RUNNING)
                continue;
            engine_release(engine, out.items[i].slot);
            finished++;
        }
    }
    return tokens;
}

static double engine_measure(const struct bench *b)
{
    struct engine_request *requests = must(calloc((size_t)b->jobs, sizeof *requests));
    int32_t *slots = must(calloc((size_t)b->jobs, sizeof *slots));
    struct engine_options options;
    struct engine *engine;
    struct error error;
    double best = 0.0;
    int64_t tokens = 0;

    engine_options_init(&options);
    options.device = b->device;
    options.compute = b->compute;
    options.max_rows = b->rows;
    engine = engine_open(b->model, &options, &error);
    if (!engine)
        fail("engine", error.message);
    sources_make(b, engine, requests);
    for (int round = 0; round < 3; round++) {
        int64_t begun = clock_mono_us();

        tokens = engine_drain(b, engine, requests, slots);
        best = (double)tokens * 1e6 / (double)(clock_mono_us() - begun);
    }
    printf("{\"what\":\"engine\",\"device\":\"%s\",\"compute\":\"%s\",\"rows\":%d,\"jobs\":%d,"
           "\"tokens\":%lld,\"tok_per_s\":%.0f,\"jobs_per_s\":%.0f}\n",
           engine_info(engine)->device, engine_info(engine)->compute, b->rows, b->jobs,
           (long long)tokens, best, best * b->jobs / (double)tokens);
    fflush(stdout);
    engine_close(engine);
    free(requests);
    free(slots);
    return best;
}

/* ---- through the worker ---- */

static rd_kafka_t *client(rd_kafka_type_t type, const char *const (*settings)[2])
{
    rd_kafka_conf_t *conf = rd_kafka_conf_new();
    char reason[256];
    rd_kafka_t *handle;

    for (; settings && (*settings)[0]; settings++)
        if (rd_kafka_conf_set(conf, (*settings)[0], (*settings)[1], reason, sizeof reason))
            fail("client", reason);
    handle = rd_kafka_new(type, conf, reason, sizeof reason);
    if (!handle)
        fail("client", reason);
    return handle;
}

static void topics_create(rd_kafka_mock_cluster_t *cluster)
{
    static const struct {
        const char *name;
        int partitions;
    } topics[] = {{"pgpt.requests", PARTITIONS},
                  {"pgpt.chunks", PARTITIONS},
                  {"pgpt.results", PARTITIONS},
                  {"pgpt.events", PARTITIONS},
                  {"pgpt.index", PARTITIONS},
                  {"pgpt.control", 1},
                  {"pgpt.dlq", 1}};

    for (size_t i = 0; i < sizeof topics / sizeof *topics; i++)
        if (rd_kafka_mock_topic_create(cluster, topics[i].name, topics[i].partitions, 1))
            fail(topics[i].name, "not created");
}

static void requests_produce(const struct bench *b, const char *brokers)
{
    const char *const settings[][2] = {{"bootstrap.servers", brokers},
                                       {"linger.ms", "50"},
                                       {"queue.buffering.max.messages", "1000000"},
                                       {NULL, NULL}};
    rd_kafka_t *producer = client(RD_KAFKA_PRODUCER, settings);
    struct buffer buffer = {0};
    struct error error;
    struct codec *codec = codec_open(NULL, &error);

    if (!codec)
        fail("codec", error.message);
    for (int i = 0; i < b->jobs; i++) {
        const struct generation_request *request = &b->requests[i];

        if (codec_encode(codec, RECORD_GENERATION_REQUEST, request, &buffer, &error))
            fail("codec", error.message);
        while (rd_kafka_producev(producer, RD_KAFKA_V_TOPIC("pgpt.requests"),
                                 RD_KAFKA_V_PARTITION(i % PARTITIONS),
                                 RD_KAFKA_V_KEY(request->job_id.data, request->job_id.size),
                                 RD_KAFKA_V_VALUE(buffer.data, buffer.size),
                                 RD_KAFKA_V_MSGFLAGS(RD_KAFKA_MSG_F_COPY), RD_KAFKA_V_END))
            rd_kafka_poll(producer, 10);
    }
    if (rd_kafka_flush(producer, 60000))
        fail("requests", "not written in a minute");
    rd_kafka_destroy(producer);
    codec_close(codec);
    buffer_free(&buffer);
}

static pid_t worker_start(const struct bench *b, const char *brokers)
{
    char rows[16], steps[16], prepare[16];
    pid_t child;

    snprintf(rows, sizeof rows, "%d", b->rows);
    snprintf(steps, sizeof steps, "%d", b->steps);
    snprintf(prepare, sizeof prepare, "%d", b->prepare_threads);
    setenv("PGPT_BROKERS", brokers, 1);
    setenv("PGPT_MODEL", b->model, 1);
    setenv("PGPT_ENGINE_DEVICE", b->device, 1);
    setenv("PGPT_ENGINE_COMPUTE", b->compute, 1);
    setenv("PGPT_ENGINE_MAX_ROWS", rows, 1);
    setenv("PGPT_ENGINE_STEPS", steps, 1);
    setenv("PGPT_WORKER_PREPARE_THREADS", prepare, 1);
    setenv("PGPT_RECORDER_ENABLED", "false", 1);
    setenv("PGPT_HTTP_PORT", "0", 0);
    child = fork();
    if (child < 0)
        fail("fork", strerror(errno));
    if (!child) {
        execl(b->worker, b->worker, (char *)NULL);
        _exit(127);
    }
    return child;
}

struct counts {
    int64_t results, other, tokens;
    int64_t first_us, last_us; /* of the middle four fifths of the results */
    int64_t middle_tokens, middle_results;
};

static void result_take(const struct bench *b, struct codec *codec, struct arena *arena,
                        const rd_kafka_message_t *message, struct counts *c)
{
    struct generation_result result;
    struct error error;
    int64_t now = clock_mono_us();
    bool middle;

    arena_reset(arena);
    if (codec_decode(codec, RECORD_GENERATION_RESULT, message->payload, message->len, arena,
                     &result, &error))
        fail("a result", error.message);
    c->results++;
    c->other += strcmp(result.status, "completed") != 0;
    c->tokens += result.usage.generated_tokens;
    middle = c->results > b->jobs / 10 && c->results <= b->jobs - b->jobs / 10;
    if (!middle)
        return;
    if (!c->middle_results)
        c->first_us = now;
    c->last_us = now;
    c->middle_results++;
    c->middle_tokens += result.usage.generated_tokens;
}

static rd_kafka_t *results_open(const char *brokers)
{
    const char *const settings[][2] = {{"bootstrap.servers", brokers},
                                       {"group.id", "bench"},
                                       {"enable.auto.commit", "false"},
                                       {"fetch.wait.max.ms", "5"},
                                       {NULL, NULL}};
    rd_kafka_t *consumer = client(RD_KAFKA_CONSUMER, settings);
    rd_kafka_topic_partition_list_t *list = rd_kafka_topic_partition_list_new(PARTITIONS);

    rd_kafka_poll_set_consumer(consumer);
    for (int i = 0; i < PARTITIONS; i++)
        rd_kafka_topic_partition_list_add(list, "pgpt.results", i)->offset =
            RD_KAFKA_OFFSET_BEGINNING;
    if (rd_kafka_assign(consumer, list))
        fail("results", "not assigned");
    rd_kafka_topic_partition_list_destroy(list);
    return consumer;
}

/* Is it still there? */
static void worker_look(pid_t worker)
{
    int status = 0;

    if (waitpid(worker, &status, WNOHANG) != worker)
        return;
    fprintf(stderr, "worker_mock: the worker has ended, %s %d\n",
            WIFEXITED(status) ? "exit status" : "signal",
            WIFEXITED(status) ? WEXITSTATUS(status) : WTERMSIG(status));
    exit(1);
}

static struct counts results_read(const struct bench *b, const char *brokers, pid_t worker)
{
    rd_kafka_t *consumer = results_open(brokers);
    struct arena *arena = must(arena_create(ARENA_SMALL, ARENA_MOST));
    struct counts counts = {0};
    struct error error;
    struct codec *codec = codec_open(NULL, &error);
    int64_t seen_us = clock_mono_us();

    if (!codec)
        fail("codec", error.message);
    while (counts.results < b->jobs) {
        rd_kafka_message_t *message = rd_kafka_consumer_poll(consumer, 100);

        if (!message) {
            worker_look(worker);
            if (clock_mono_us() - seen_us > STALLED_US)
                fail("results", "none came in a minute");
            continue;
        }
        if (!message->err) {
            result_take(b, codec, arena, message, &counts);
            seen_us = clock_mono_us();
        }
        rd_kafka_message_destroy(message);
    }
    rd_kafka_consumer_close(consumer);
    rd_kafka_destroy(consumer);
    arena_destroy(arena);
    codec_close(codec);
    return counts;
}

/* Records that the workers wrote there. */
static int64_t topic_count(const char *brokers, const char *topic)
{
    rd_kafka_t *consumer = results_open(brokers);
    int64_t count = 0, low, high;

    for (int i = 0; i < PARTITIONS; i++) {
        if (rd_kafka_query_watermark_offsets(consumer, topic, i, &low, &high, 5000))
            fail(topic, "no offsets");
        count += high;
    }
    rd_kafka_consumer_close(consumer);
    rd_kafka_destroy(consumer);
    return count;
}

static void worker_measure(const struct bench *b, double engine_rate)
{
    rd_kafka_t *bare = client(RD_KAFKA_PRODUCER, NULL);
    rd_kafka_mock_cluster_t *cluster = rd_kafka_mock_cluster_new(bare, 1);
    const char *brokers;
    struct counts c;
    double seconds, rate;
    int status = 0;
    pid_t worker;

    if (!cluster)
        fail("mock cluster", "not created");
    brokers = rd_kafka_mock_cluster_bootstraps(cluster);
    topics_create(cluster);
    requests_produce(b, brokers);
    worker = worker_start(b, brokers);
    c = results_read(b, brokers, worker);
    seconds = (double)(c.last_us - c.first_us) / 1e6;
    rate = (double)c.middle_tokens / seconds;
    printf("{\"what\":\"worker\",\"jobs\":%lld,\"not_completed\":%lld,\"tokens\":%lld,"
           "\"tok_per_s\":%.0f,\"jobs_per_s\":%.0f,\"chunks_per_s\":%.0f,\"share\":%.3f}\n",
           (long long)c.results, (long long)c.other, (long long)c.tokens, rate,
           (double)c.middle_results / seconds,
           (double)topic_count(brokers, "pgpt.chunks") / (double)c.tokens * rate,
           engine_rate > 0.0 ? rate / engine_rate : 0.0);
    fflush(stdout);
    threads_time_print("worker", worker);
    threads_time_print("worker_mock", getpid());
    sleep((unsigned)b->hold);
    kill(worker, SIGTERM);
    if (waitpid(worker, &status, 0) != worker || !WIFEXITED(status) || WEXITSTATUS(status))
        fprintf(stderr, "worker_mock: the worker ended with status %d\n", status);
    rd_kafka_mock_cluster_destroy(cluster);
    rd_kafka_destroy(bare);
}

/* ---- options ---- */

static const char help[] =
    "usage: worker_mock --worker build/pgpt-worker --lines FILE [option]...\n"
    "  --language ru --model models/prometheus-mini --device cpu --compute auto\n"
    "  --jobs 20000 --rows 512 --steps 4 --min-length 0 --max-length 128 --prepare-threads 4\n"
    "  --stream N      a chunk every N tokens; 0 = none\n"
    "  --no-engine     leave out the engine alone\n"
    "  --hold SECONDS  keep the worker for so long at the end: with PGPT_HTTP_PORT its metrics can "
    "be read\n";

int main(int argc, char **argv)
{
    static const struct option known[] = {{"worker", 1, NULL, 'w'},
                                          {"lines", 1, NULL, 'l'},
                                          {"language", 1, NULL, 'L'},
                                          {"model", 1, NULL, 'm'},
                                          {"device", 1, NULL, 'd'},
                                          {"compute", 1, NULL, 'c'},
                                          {"jobs", 1, NULL, 'j'},
                                          {"rows", 1, NULL, 'r'},
                                          {"steps", 1, NULL, 's'},
                                          {"min-length", 1, NULL, 'n'},
                                          {"max-length", 1, NULL, 'x'},
                                          {"stream", 1, NULL, 't'},
                                          {"prepare-threads", 1, NULL, 'p'},
                                          {"no-engine", 0, NULL, 'e'},
                                          {"hold", 1, NULL, 'h'},
                                          {NULL, 0, NULL, 0}};
    struct bench b = {.language = "ru",
                      .model = "models/prometheus-mini",
                      .device = "cpu",
                      .compute = "fp32",
                      .jobs = 20000,
                      .rows = 512,
                      .steps = 4,
                      .max_length = 128,
                      .prepare_threads = 4};
    bool engine = true;
    int c;

    while ((c = getopt_long(argc, argv, "", known, NULL)) >= 0) {
        switch (c) {
        case 'w':
            b.worker = optarg;
            break;
        case 'l':
            b.lines = optarg;
            break;
        case 'L':
            b.language = optarg;
            break;
        case 'm':
            b.model = optarg;
            break;
        case 'd':
            b.device = optarg;
            break;
        case 'c':
            b.compute = optarg;
            break;
        case 'j':
            b.jobs = atoi(optarg);
            break;
        case 'r':
            b.rows = atoi(optarg);
            break;
        case 's':
            b.steps = atoi(optarg);
            break;
        case 'n':
            b.min_length = atoi(optarg);
            break;
        case 'x':
            b.max_length = atoi(optarg);
            break;
        case 't':
            b.stream = atoi(optarg);
            break;
        case 'p':
            b.prepare_threads = atoi(optarg);
            break;
        case 'e':
            engine = false;
            break;
        case 'h':
            b.hold = atoi(optarg);
            break;
        default:
            fputs(help, stderr);
            return 2;
        }
    }
    if (!b.worker || !b.lines || b.jobs < 100 || b.rows < 1) {
        fputs(help, stderr);
        return 2;
    }
    requests_make(&b);
    worker_measure(&b, engine ? engine_measure(&b) : 0.0);
    return 0;
}
