/* SPDX-License-Identifier: MIT
 *
 * pgpt-worker: options, signals and exit codes; the work is service.c's.
 */
#include <getopt.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "worker/fault.h"
#include "worker/offsets_call.h"
#include "worker/service.h"

enum { EXIT_OK = 0, EXIT_FAILED = 1, EXIT_USAGE = 2, EXIT_SIGNAL = 128 };

static const char help[] =
    "usage: pgpt-worker [--config FILE] [--check-config]\n"
    "\n"
    "Consumes generation requests from Kafka, runs them in one continuous batch on the CPU or a "
    "GPU,\n"
    "publishes chunks and results exactly once and records job status in PostgreSQL.\n"
    "\n"
    "  --config FILE          settings as `name = value` lines; without it defaults and "
    "environment\n"
    "  --check-config         print the effective settings (secrets masked) and what is wrong "
    "with\n"
    "                         them, start nothing\n"
    "  --print-sample-config  print a documented file with every setting, its default and range\n"
    "  --version              print the version\n"
    "  --help                 this page\n"
    "\n"
    "Every setting has a name in the environment as well: queue.max_jobs is PGPT_QUEUE_MAX_JOBS, "
    "and\n"
    "the environment wins over the file. kafka.NAME = VALUE passes NAME to the Kafka client, as "
    "in\n"
    "kafka.security.protocol = sasl_ssl.\n"
    "\n"
    "examples\n"
    "  pgpt-worker --print-sample-config > worker.conf\n"
    "  pgpt-worker --config worker.conf --check-config\n"
    "  PGPT_RECORDER_ENABLED=false PGPT_BROKERS=127.0.0.1:9192 pgpt-worker\n"
    "  curl -s 127.0.0.1:9464/readyz     why it is not ready; /healthz and /metrics are there too\n"
    "\n"
    "SIGTERM or SIGINT drains: running jobs end within worker.drain_ms, what is finished is "
    "committed,\n"
    "the rest goes to other workers. A second signal ends the worker at once; nothing is lost "
    "then\n"
    "either, but the jobs wait until the group notices.\n"
    "\n"
    "exit codes: 0 drained; 1 it failed, the last log line says why, its jobs run elsewhere;\n"
    "2 options, settings or model will not do; 128 + N ended by a second signal N\n";

struct options {
    const char *config;
    bool check_config;
};

/* -1 = go on; else the exit code. */
static int options_read(int argc, char **argv, struct options *options)
{
    static const struct option known[] = {{"config", required_argument, NULL, 'c'},
                                          {"check-config", no_argument, NULL, 'k'},
                                          {"print-sample-config", no_argument, NULL, 's'},
                                          {"version", no_argument, NULL, 'v'},
                                          {"help", no_argument, NULL, 'h'},
                                          {NULL, 0, NULL, 0}};
    int c;

    while ((c = getopt_long(argc, argv, "c:h", known, NULL)) >= 0) {
        switch (c) {
        case 'c':
            options->config = optarg;
            break;
        case 'k':
            options->check_config = true;
            break;
        case 's':
            config_print_sample(stdout);
            return EXIT_OK;
        case 'v':
            puts("pgpt-worker " PGPT_VERSION);
            return EXIT_OK;
        case 'h':
            fputs(help, stdout);
            return EXIT_OK;
        default:
            fputs("pgpt-worker --help says more\n", stderr);
            return EXIT_USAGE;
        }
    }
    if (optind == argc)
        return -1;
    fprintf(stderr, "pgpt-worker: %s is no option; a file of settings is given by --config %s\n",
            argv[optind], argv[optind]);
    return EXIT_USAGE;
}

static void log_open(const struct config *config)
{
    static const char *const levels[] = {"error", "warn", "info", "debug"};
    enum log_level level = LOG_ERROR;

    while (level < LOG_DEBUG && strcmp(levels[level], config->log_level) != 0)
        level++;
    log_configure(level, strcmp(config->log_format, "json") ? LOG_LOGFMT : LOG_JSON,
                  config->worker_name);
}

/* ---- signals ---- */

static sigset_t ending;     /* SIGTERM, SIGINT; blocked in all threads until the first came */
static bool ending_arrived; /* main thread's */

static void second_signal(int number)
{
    _exit(EXIT_SIGNAL + number);
}

static void signals_block(void)
{
    signal(SIGPIPE, SIG_IGN);
    sigemptyset(&ending);
    sigaddset(&ending, SIGTERM);
    sigaddset(&ending, SIGINT);
    pthread_sigmask(SIG_BLOCK, &ending, NULL);
}

/* Waits up to wait_ms for the first signal; true from then on. The second ends the process. */
static bool signal_arrived(int wait_ms)
{
    struct timespec wait = {wait_ms / 1000, wait_ms % 1000 * 1000000L};

    if (ending_arrived || sigtimedwait(&ending, NULL, &wait) < 0)
        return ending_arrived;
    ending_arrived = true;
    signal(SIGTERM, second_signal);
    signal(SIGINT, second_signal);
    pthread_sigmask(SIG_UNBLOCK, &ending, NULL);
    return true;
}

static bool stopped(void)
{
    return signal_arrived(0);
}

/* ---- the run ---- */

/* Ends the process: threads still run, and the partitions' marks must stay as a death leaves them.
 */
static int failed(const char *reason)
{
    log_write(LOG_ERROR, "main", NULL, "failed: %s", reason);
    _exit(EXIT_FAILED);
}

/* A thread that stands still for worker.stall_ms will not come back: a call of librdkafka can
 * outlive every timeout when a coordinator goes away (its issues 5456 and 5511). The jobs move on
 * when the process ends. Seen again and again for a while, since a process that was itself stopped
 * finds all threads late at first. */
static bool stalled(struct service *service, int *seen, struct error *reason)
{
    enum { SEEN_ENOUGH = 20 };

    *seen = service_stalled(service, reason) ? *seen + 1 : 0;
    return *seen >= SEEN_ENOUGH;
}

static void overdue(const char *text, size_t size, int code)
{
    ssize_t written = write(STDERR_FILENO, text, size);

    (void)written;
    _exit(code);
}

static void drain_overdue(int number)
{
    static const char text[] = "pgpt-worker: the drain does not end; giving up\n";

    (void)number;
    overdue(text, sizeof text - 1, EXIT_FAILED);
}

static void end_overdue(int number)
{
    static const char text[] = "pgpt-worker: it was drained, but does not end; ended\n";

    (void)number;
    overdue(text, sizeof text - 1, EXIT_OK);
}

/* The grace period, and for each stage after it what its last call may take. */
static void drain_limit(const struct config *config)
{
    enum { LAST_CALLS = 3, STAGES_MS = 6000 };

    signal(SIGALRM, drain_overdue);
    alarm((unsigned)((config->worker_drain_ms + LAST_CALLS * config->kafka_call_timeout_ms +
                      STAGES_MS) /
                     1000));
}

/* All is committed and given back: what hangs now, such as a Kafka client that is destroyed,
 * changes nothing any more. */
static void end_limit(const struct config *config)
{
    signal(SIGALRM, end_overdue);
    alarm((unsigned)(2 * config->kafka_call_timeout_ms / 1000 + 1));
}

static int run(const struct config *config)
{
    struct error error;
    bool usable;
    struct service *service = service_create(config, &usable, &error);
    int status, seen = 0;

    if (!service) {
        log_write(LOG_ERROR, "main", NULL, "%s", error.message);
        return usable ? EXIT_FAILED : EXIT_USAGE;
    }
    status = service_start(service, stopped, &error);
    if (status < 0) {
        service_failed(service, &error); /* what a stage said of itself says more */
        return failed(error.message);
    }
    while (!signal_arrived(100))
        if (service_failed(service, &error) || stalled(service, &seen, &error))
            return failed(error.message);
    drain_limit(config);
    service_drain(service);
    if (service_failed(service, &error))
        return failed(error.message);
    end_limit(config);
    FAULT_POINT("drained");
    service_destroy(service);
    log_write(LOG_INFO, "main", NULL, "ended in order");
    FAULT_POINT("ended");
    if (offsets_calls_left()) /* threads of the client still run: nothing may be torn down */
        _exit(EXIT_OK);
    return EXIT_OK;
}

int main(int argc, char **argv)
{
    struct options options = {NULL, false};
    int code = options_read(argc, argv, &options);
    struct config *config;

    if (code >= 0)
        return code;
    config = config_load(options.config, stderr);
    if (!config)
        return EXIT_USAGE;
    if (options.check_config) {
        config_print(config, stdout);
        code = EXIT_OK;
    } else {
        signals_block();
        log_open(config);
        code = run(config);
    }
    config_free(config);
    return code;
}
