/* SPDX-License-Identifier: MIT
 *
 * Two threads. The sender keeps to the plan of arrivals whatever the answers do; the reader takes
 * results, counts and draws. A job's record passes from one to the other by way of follow: the
 * sender fills it before follow_watch(), the reader gives it back to the pool. When all records are
 * in use the sender waits, and the wait counts: latencies run from when a job was due.
 */
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "kernels/base/clock.h"
#include "producer/arrivals.h"
#include "producer/command.h"
#include "producer/load_report.h"
#include "producer/output.h"
#include "producer/progress.h"
#include "producer/request_options.h"
#include "producer/text_input.h"

enum { TEXTS_MAX = 100000, OUTSTANDING_MAX = 1000000, FILE_MAX = 64 << 20, FULL_PAUSE_US = 500 };

struct load_job {
    int64_t due_us, sent_us; /* monotonic */
    bool measured;           /* due after the warm-up */
    bool first_seen;
    struct load_job *next_free;
};

struct load {
    struct cli *cli;
    const struct command *command;
    struct request_options request;
    /* options */
    double rate;
    int64_t duration_us, warmup_us, count, seed;
    int32_t outstanding;
    const char *arrivals, *file;
    bool send_only;
    /* what is sent */
    char *file_text;
    const char **texts;
    size_t text_count;
    struct client *client;
    struct arrivals plan;
    int64_t begun_us;
    _Atomic uint64_t sent, acknowledged, refused;
    struct latency late;     /* the sender's until it is done, as is the next one */
    char first_refusal[256]; /* "" = none */
    /* records */
    pthread_mutex_t lock;
    struct load_job *jobs, *free; /* free: under the lock */
    /* what is read */
    struct follow *follow;
    pthread_t reader;
    _Atomic bool sender_done;
    _Atomic bool reader_failed;
    struct load_report report;
    int64_t last_result_us;
    struct progress progress;
};

/* ---- records ---- */

static struct load_job *job_take(struct load *l)
{
    struct load_job *job;

    pthread_mutex_lock(&l->lock);
    job = l->free;
    if (job)
        l->free = job->next_free;
    pthread_mutex_unlock(&l->lock);
    return job;
}

static void job_give(struct load *l, struct load_job *job)
{
    pthread_mutex_lock(&l->lock);
    job->next_free = l->free;
    l->free = job;
    pthread_mutex_unlock(&l->lock);
}

static int jobs_init(struct load *l, struct error *error)
{
    pthread_mutex_init(&l->lock, NULL);
    l->jobs = calloc((size_t)l->outstanding, sizeof *l->jobs);
    if (!l->jobs)
        return error_set(error, "no memory for %d jobs; lower --outstanding", l->outstanding);
    for (int32_t i = l->outstanding; i-- > 0;)
        job_give(l, &l->jobs[i]);
    return 0;
}

/* ---- the reader ---- */

static void count_result(struct load *l, const struct load_job *job,
                         const struct generation_result *result, int64_t now_us)
{
    struct load_report *r = &l->report;

    l->last_result_us = now_us;
    if (!job->measured)
        return;
    r->tokens += (uint64_t)result->usage.generated_tokens;
    if (!strcmp(result->status, "completed")) {
        r->completed++;
        latency_add(&r->result, now_us - job->due_us);
        latency_add(&r->from_sent, now_us - job->sent_us);
    } else if (!strcmp(result->status, "cancelled")) {
        r->cancelled++;
    } else if (!strcmp(result->status, "expired")) {
        r->expired++;
    } else {
        r->failed++;
        if (r->failed == 1 && result->has_error) {
            progress_clear(&l->progress);
            cli_say(l->command, "the first failed job, %s: %s", result->job_id.data,
                    result->error.message.data);
        }
    }
}

static void take_event(struct load *l, const struct follow_event *event)
{
    struct load_job *job = event->user;
    int64_t now = clock_mono_us();

    if (event->kind == FOLLOW_RESULT) {
        count_result(l, job, event->result, now);
        job_give(l, job);
        return;
    }
    if (!l->request.request.stream || !job->measured)
        return;
    /* A result may be read before the last chunks: the text that it brings came then. */
    l->report.chunks += !event->piece.from_result;
    if (!job->first_seen)
        latency_add(&l->report.first, now - job->due_us);
    job->first_seen = true;
}

static void show_progress(struct load *l)
{
    const struct load_report *r = &l->report;
    int64_t now = clock_mono_us();
    double seconds = (double)(now - l->begun_us) / 1e6;
    uint64_t sent = atomic_load(&l->sent);
    char p50[32], p99[32];

    if (!progress_due(&l->progress, now) || seconds <= 0)
        return;
    output_duration(latency_percentile(&r->result, 0.50), p50);
    output_duration(latency_percentile(&r->result, 0.99), p99);
    progress_draw(&l->progress, l->count ? sent : (uint64_t)(now - l->begun_us),
                  (uint64_t)(l->count ? l->count : l->duration_us), now,
                  "%llu sent, %llu on their way, %.0f jobs/s, p50 %s, p99 %s",
                  (unsigned long long)sent, (unsigned long long)follow_count(l->follow),
                  (double)r->completed / seconds, p50, p99);
}

static void *reader_main(void *argument)
{
    struct load *l = argument;
    int64_t heard_us = clock_mono_us();
    struct follow_event event;
    struct error error;

    for (;;) {
        enum follow_kind kind = follow_next(l->follow, 50, &event, &error);
        bool done = atomic_load(&l->sender_done);

        if (kind == FOLLOW_ERROR) {
            progress_clear(&l->progress);
            cli_say(l->command, "%s", error.message);
            atomic_store(&l->reader_failed, true);
            break;
        }
        if (kind != FOLLOW_NOTHING)
            take_event(l, &event);
        if (kind != FOLLOW_NOTHING || !done)
            heard_us = clock_mono_us();
        show_progress(l);
        if (done && (!follow_count(l->follow) || cli_interrupted() ||
                     clock_mono_us() - heard_us > l->cli->timeout_us))
            break;
    }
    progress_clear(&l->progress);
    return NULL;
}

/* ---- the sender ---- */

static void on_ack(const struct client_ack *ack, void *opaque)
{
    struct load *l = opaque;

    if (!ack->error) {
        atomic_fetch_add(&l->acknowledged, 1);
    } else if (!atomic_fetch_add(&l->refused, 1)) {
        snprintf(l->first_refusal, sizeof l->first_refusal, "%s: %s", ack->job_id, ack->error);
    }
}

static void sleep_until(struct load *l, int64_t due_us)
{
    int64_t left;

    /* Long waits serve acknowledgements, the last two milliseconds belong to the clock. */
    while ((left = due_us - clock_mono_us()) > 2000 && !cli_interrupted())
        client_poll(l->client, left - 2000 < 100000 ? (int)((left - 2000) / 1000) + 1 : 100);
    if (left > 0) {
        struct timespec until = {due_us / 1000000, due_us % 1000000 * 1000};

        clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL);
    }
}

static bool stopped(const struct load *l)
{
    return cli_interrupted() || atomic_load(&l->reader_failed);
}

static void pause_full(struct load *l)
{
    client_poll(l->client, 0);
    usleep(FULL_PAUSE_US);
}

/* Waits for a free record: the job is late then, which its latency shows. */
static enum client_status watch(struct load *l, const char *id, int64_t due_us, struct error *error)
{
    struct load_job *job;
    enum client_status status;

    while (!(job = job_take(l)) && !stopped(l))
        pause_full(l);
    if (!job)
        return CLIENT_OK;
    *job = (struct load_job){.due_us = due_us,
                             .sent_us = clock_mono_us(),
                             .measured = due_us - l->begun_us >= l->warmup_us};
    status = follow_watch(l->follow, id, job, error);
    if (status)
        job_give(l, job);
    return status;
}

static enum client_status send_one(struct load *l, uint64_t number, int64_t due_us,
                                   struct error *error)
{
    const char *text = l->texts[number % l->text_count];
    struct text prompt = {text, strlen(text)};
    struct generation_request request;
    enum client_status status;
    char id[37];

    if (client_new_id(id, error))
        return CLIENT_FAILED;
    if (!l->send_only) {
        status = watch(l, id, due_us, error);
        if (status || stopped(l))
            return status;
    }
    request = request_options_make(&l->request, id, prompt, clock_wall_us());
    while ((status = client_submit(l->client, &request, NULL, error)) == CLIENT_FULL && !stopped(l))
        pause_full(l);
    if (!status) {
        latency_add(&l->late, clock_mono_us() - due_us);
        atomic_fetch_add(&l->sent, 1);
    } else if (!l->send_only) {
        follow_forget(l->follow, id); /* nothing to wait for */
    }
    return status;
}

static enum client_status sender_main(struct load *l, struct error *error)
{
    enum client_status status = CLIENT_OK;

    for (uint64_t i = 0; !status && !stopped(l) && (!l->count || i < (uint64_t)l->count); i++) {
        int64_t due = arrivals_next(&l->plan);

        if (!l->count && due >= l->duration_us)
            break;
        l->report.planned++;
        sleep_until(l, l->begun_us + due);
        if (!stopped(l))
            status = send_one(l, i, l->begun_us + due, error);
    }
    if (!status && client_flush(l->client, cli_timeout_ms(l->cli))) {
        error_set(error, "not all jobs were acknowledged within --timeout");
        status = CLIENT_UNREACHABLE;
    }
    return status;
}

/* ---- all ---- */

static int texts_from_file(struct load *l, struct error *error)
{
    FILE *file = strcmp(l->file, "-") != 0 ? fopen(l->file, "r") : stdin;
    char *line, *rest;

    if (!file)
        return error_set(error, "--file %s cannot be opened", l->file);
    l->file_text = text_input_all(file, FILE_MAX, error);
    if (file != stdin)
        fclose(file);
    if (!l->file_text)
        return -1;
    for (line = strtok_r(l->file_text, "\r\n", &rest); line && l->text_count < TEXTS_MAX;
         line = strtok_r(NULL, "\r\n", &rest))
        l->texts[l->text_count++] = line;
    return 0;
}

static int gather_texts(struct load *l, const struct option_positionals *texts, struct error *error)
{
    l->texts = calloc(TEXTS_MAX, sizeof *l->texts);
    if (!l->texts)
        return error_set(error, "out of memory");
    for (size_t i = 0; i < texts->count && i < TEXTS_MAX; i++)
        l->texts[l->text_count++] = texts->items[i];
    if (l->file && texts_from_file(l, error))
        return -1;
    if (!l->text_count && l->request.request.has_source_tokens)
        l->texts[l->text_count++] = "";
    return l->text_count ? 0
                         : error_set(error, "nothing to send: give texts, --file FILE (a text a "
                                            "line) or --source-tokens");
}

static int check_options(struct load *l, struct error *error)
{
    if (l->rate <= 0)
        return error_set(error, "--rate is missing: jobs a second");
    if (!l->count && !l->duration_us)
        l->duration_us = 10 * 1000000ll;
    if (l->count && l->duration_us)
        return error_set(error, "--count and --duration: give one of them");
    if (strcmp(l->arrivals, "poisson") != 0 && strcmp(l->arrivals, "constant") != 0)
        return error_set(error, "--arrivals %s: must be poisson or constant", l->arrivals);
    return request_options_finish(&l->request, error);
}

static enum client_status load_open(struct load *l, struct error *error)
{
    struct client_options options = l->cli->client;
    struct follow_options follow = {.client = &l->cli->client,
                                    .chunks = l->request.request.stream,
                                    .max_jobs = (size_t)l->outstanding};
    enum client_status status = CLIENT_OK;

    options.on_ack = on_ack;
    options.opaque = l;
    if (jobs_init(l, error))
        return CLIENT_FAILED;
    if (!l->send_only)
        status = follow_open(&follow, &l->follow, error);
    return status ? status : client_open(&options, &l->client, error);
}

static enum client_status load_run(struct load *l, struct error *error)
{
    enum client_status status;
    int failed;

    arrivals_init(&l->plan, l->rate, !strcmp(l->arrivals, "poisson"), (uint64_t)l->seed);
    progress_init(&l->progress);
    l->begun_us = clock_mono_us();
    l->last_result_us = l->begun_us;
    if (!l->send_only && (failed = pthread_create(&l->reader, NULL, reader_main, l))) {
        error_set(error, "the thread that reads results could not be started: %s",
                  strerror(failed));
        return CLIENT_FAILED;
    }
    status = sender_main(l, error);
    atomic_store(&l->sender_done, true);
    if (!l->send_only)
        pthread_join(l->reader, NULL);
    return status;
}

static int load_report_all(struct load *l)
{
    struct load_report *r = &l->report;
    const char *trouble;

    r->rate = l->rate;
    r->arrivals = l->arrivals;
    r->sent = atomic_load(&l->sent);
    r->acknowledged = atomic_load(&l->acknowledged);
    r->refused = atomic_load(&l->refused);
    r->unfinished = l->send_only ? 0 : follow_count(l->follow);
    r->late = l->late;
    r->seconds = (double)(l->last_result_us - l->begun_us - l->warmup_us) / 1e6;
    if (l->cli->json)
        output_line(load_report_json(r));
    else
        load_report_print(r);
    if (*l->first_refusal)
        cli_say(l->command, "the first job not accepted, %s", l->first_refusal);
    if (r->unfinished && *(trouble = follow_trouble(l->follow, l->last_result_us)))
        cli_say(l->command, "the last connection error: %s", trouble);
    if (cli_interrupted())
        return EXIT_INTERRUPTED;
    if (atomic_load(&l->reader_failed) || r->refused)
        return EXIT_TROUBLE;
    if (r->unfinished)
        return EXIT_NOT_FOUND;
    return r->failed || r->cancelled || r->expired ? EXIT_JOB_FAILED : EXIT_OK;
}

static int run(struct cli *cli, const struct command *command, int argc, char **argv)
{
    static struct load l; /* large, and zeroed */
    const struct option own[] = {
        {"rate", 'r', OPTION_REAL, &l.rate, "N", "jobs a second; needed", 1e-3, 1e6, NULL},
        {"duration", 'd', OPTION_DURATION, &l.duration_us, "TIME", "how long to send (10s)", 1e3,
         7 * 86400e6, NULL},
        {"count", 'c', OPTION_LONG, &l.count, "N", "how many to send, instead", 1, 1e12, NULL},
        {"arrivals", '\0', OPTION_TEXT, &l.arrivals, "KIND",
         "poisson (as independent users; default) or constant", 0, 0, NULL},
        {"warmup", '\0', OPTION_DURATION, &l.warmup_us, "TIME", "leave the first ones out (0)", 0,
         86400e6, NULL},
        {"file", '\0', OPTION_TEXT, &l.file, "FILE", "a text a line, sent in turn; - = stdin", 0, 0,
         NULL},
        {"outstanding", '\0', OPTION_INT, &l.outstanding, "N", "most jobs on their way (100000)", 1,
         OUTSTANDING_MAX, NULL},
        {"send-only", '\0', OPTION_FLAG, &l.send_only, NULL, "do not wait for results", 0, 0, NULL},
        {"plan-seed", '\0', OPTION_LONG, &l.seed, "N", "of the poisson plan (1)", 0, 0, NULL},
        {0}};
    const struct option *const tables[] = {own, l.request.table, NULL};
    struct option_positionals texts;
    struct error error;
    enum client_status status;
    int code;

    l.cli = cli;
    l.command = command;
    l.arrivals = "poisson";
    l.outstanding = 100000;
    l.seed = 1;
    cli->timeout_us = 60 * 1000000ll;
    request_options_init(&l.request);
    if (!cli_parse(cli, command, tables, argc, argv, &texts, &code))
        return code;
    if (check_options(&l, &error) || gather_texts(&l, &texts, &error)) {
        code = cli_failed(command, CLIENT_WRONG, &error);
    } else {
        status = load_open(&l, &error);
        if (!status)
            status = load_run(&l, &error);
        code = cli_failed(command, status, &error);
        if (!status || l.report.planned) {
            int told = load_report_all(&l);

            code = code ? code : told;
        }
    }
    client_close(l.client);
    follow_close(l.follow);
    free(l.jobs);
    free(l.texts);
    free(l.file_text);
    return code;
}

const struct command command_load = {
    "load", "Sends jobs at a fixed rate and measures: latency percentiles, rates.",
    "--rate N [OPTION]... [TEXT]...",
    "\nAn open loop: jobs are due by a plan that does not wait for answers, as with independent "
    "users.\n"
    "Latencies count from when a job was due, so a stall is charged to every job that it delayed\n"
    "(no coordinated omission); `result since sent` shows what the usual way would have said.\n"
    "--stream measures first chunks too. --timeout (60s) is the longest time without any news "
    "after\n"
    "the last job was sent; what is unfinished then makes the exit code 4.\n"
    "\nExamples\n"
    "  pgpt load --rate 50 --duration 30s --to en --stream \"Доброе утро\"\n"
    "  pgpt load --rate 2000 --count 100000 --to ru --file lines.txt --warmup 5s --json\n"
    "  pgpt load --rate 5000 --count 1000000 --send-only --to ru --file lines.txt\n",
    run};
