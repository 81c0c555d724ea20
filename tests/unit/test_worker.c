/* SPDX-License-Identifier: MIT
 *
 * The worker's program on a mock cluster: its options, its start with and without brokers, what it
 * answers over HTTP, a job, and how it ends. What it does with real brokers is the end-to-end
 * tests'.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "tests/unit/worker_fixture.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/wait.h>

#include "schema/codec.h"
#include "tests/unit/kafka_fixture.h"

enum { READY_MS = 60000, ANSWER_MAX = 65536 };

static struct kafka_fixture k;
static struct error error;
static int port;
static char output[ANSWER_MAX]; /* of the last program that ended */
static pid_t running;           /* 0 = none */

static int free_port(void)
{
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof a;
    int s = socket(AF_INET, SOCK_STREAM, 0);

    assert_int_equal(bind(s, (struct sockaddr *)&a, sizeof a), 0);
    assert_int_equal(getsockname(s, (struct sockaddr *)&a, &size), 0);
    close(s);
    return ntohs(a.sin_port);
}

static int setup(void **state)
{
    char text[16];

    (void)state;
    unsetenv("PGPT_FAULT");
    kafka_fixture_open(&k);
    snprintf(text, sizeof text, "%d", port = free_port());
    setenv("PGPT_HTTP_PORT", text, 1);
    setenv("PGPT_MODEL", PGPT_SOURCE_DIR "/models/prometheus-mini", 1);
    setenv("PGPT_ENGINE_THREADS", "1", 1);
    setenv("PGPT_ENGINE_MAX_ROWS", "8", 1);
    setenv("PGPT_WORKER_DRAIN_MS", "3000", 1);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    if (running) /* the test failed */
        kill(running, SIGKILL);
    running = 0;
    kafka_fixture_close(&k);
    return 0;
}

/* ---- the program ---- */

struct program {
    pid_t child;
    int output;
};

static struct program run(const char *const *arguments)
{
    struct program p;
    int ends[2];

    assert_int_equal(pipe2(ends, O_CLOEXEC), 0);
    p.output = ends[0];
    p.child = fork();
    if (!p.child) {
        const char *argv[8] = {PGPT_WORKER};

        for (int i = 0; arguments[i]; i++)
            argv[i + 1] = arguments[i];
        dup2(ends[1], STDOUT_FILENO);
        dup2(ends[1], STDERR_FILENO);
        execv(PGPT_WORKER, (char *const *)argv);
        _exit(127);
    }
    close(ends[1]);
    running = p.child;
    return p;
}

/* Its exit code; its output lies in `output`. */
static int ended(struct program *p)
{
    size_t size = 0;
    ssize_t got;
    int status;

    while ((got = read(p->output, output + size, sizeof output - 1 - size)) > 0)
        size += (size_t)got;
    output[size] = '\0';
    close(p->output);
    assert_int_equal(waitpid(p->child, &status, 0), p->child);
    running = 0;
    return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
}

static int result_of(const char *const *arguments)
{
    struct program p = run(arguments);

    return ended(&p);
}

static void says(const char *words)
{
    if (!strstr(output, words))
        fail_msg("it does not say \"%s\": %s", words, output);
}

static struct program start(void)
{
    const char *const none[] = {NULL};

    return run(none);
}

/* ---- http ---- */

/* The status of the answer to one request, -1 without any; all of it lies in `answer`. */
static int asked(const char *method, const char *path, char answer[ANSWER_MAX])
{
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int s = socket(AF_INET, SOCK_STREAM, 0), status = -1;
    size_t size = 0;
    ssize_t got;

    a.sin_port = htons((uint16_t)port);
    if (!connect(s, (struct sockaddr *)&a, sizeof a)) {
        dprintf(s, "%s %s HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", method, path);
        while ((got = recv(s, answer + size, ANSWER_MAX - 1 - size, 0)) > 0)
            size += (size_t)got;
        answer[size] = '\0';
        sscanf(answer, "HTTP/1.1 %d", &status);
    }
    close(s);
    return status;
}

static void answers(const char *method, const char *path, int status, const char *words)
{
    static char answer[ANSWER_MAX];

    assert_int_equal(asked(method, path, answer), status);
    if (!strstr(answer, words))
        fail_msg("%s %s: %s", method, path, answer);
}

static bool tells(const char *path, int status, const char *words)
{
    static char answer[ANSWER_MAX];

    return asked("GET", path, answer) == status && strstr(answer, words);
}

static bool becomes(int status, const char *words)
{
    int64_t until = clock_mono_us() + (int64_t)READY_MS * 1000;

    while (clock_mono_us() < until) {
        if (tells("/readyz", status, words))
            return true;
        usleep(20000);
    }
    return false;
}

/* ---- */

static void options_are_answered(void **state)
{
    static const struct {
        const char *arguments[4];
        int code;
        const char *words;
    } cases[] = {{{"--help"}, 0, "exit codes"},
                 {{"-h"}, 0, "usage: pgpt-worker"},
                 {{"--version"}, 0, "pgpt-worker "},
                 {{"--print-sample-config"}, 0, "queue.max_jobs"},
                 {{"--check-config"}, 0, "brokers"},
                 {{"--nothing"}, 2, "--help says more"},
                 {{"worker.conf"}, 2, "--config worker.conf"},
                 {{"--config", "/no/such/file"}, 2, "/no/such/file"},
                 {{"-c", "/no/such/file", "--check-config"}, 2, "/no/such/file"}};

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        assert_int_equal(result_of(cases[i].arguments), cases[i].code);
        says(cases[i].words);
    }
}

static void what_cannot_start_says_why(void **state)
{
    static const char *const none[] = {NULL};
    char taken[16];
    int s = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};

    (void)state;
    setenv("PGPT_MODEL", "/no/such/model", 1);
    assert_int_equal(result_of(none), 2);
    says("/no/such/model");
    setenv("PGPT_MODEL", PGPT_SOURCE_DIR "/models/prometheus-mini", 1);
    setenv("PGPT_HTTP_ADDRESS", "no address", 1);
    assert_int_equal(result_of(none), 1);
    says("http.address no address");
    setenv("PGPT_HTTP_ADDRESS", "127.0.0.1", 1);
    a.sin_port = htons((uint16_t)port);
    assert_int_equal(bind(s, (struct sockaddr *)&a, sizeof a), 0);
    assert_int_equal(listen(s, 1), 0);
    snprintf(taken, sizeof taken, "port %d", port);
    assert_int_equal(result_of(none), 1);
    says(taken);
    close(s);
    setenv("PGPT_KAFKA_SECURITY_PROTOCOL", "nonsense", 1);
    assert_int_equal(result_of(none), 1);
    says("kafka.security.protocol");
    unsetenv("PGPT_KAFKA_SECURITY_PROTOCOL");
}

static void see_result(const rd_kafka_message_t *record, void *user)
{
    (void)user;
    assert_int_equal(record->key_len, 36);
}

static void request_send(int32_t partition, int number)
{
    char id[37];
    struct generation_request request;
    struct codec *codec = codec_open(NULL, &error);
    struct buffer buffer = {0};

    snprintf(id, sizeof id, "00000000-0000-4000-8000-%012d", number);
    generation_request_init(&request);
    request.job_id = (struct text){id, 36};
    request.prompt = (struct text){"The train leaves at nine.", 25};
    request.target_language = (struct text){"ru", 2};
    request.max_length = 4;
    request.created_at_us = clock_wall_us();
    assert_int_equal(codec_encode(codec, RECORD_GENERATION_REQUEST, &request, &buffer, &error), 0);
    kafka_fixture_produce(&k, k.config->topic_requests, partition, buffer.data, buffer.size);
    buffer_free(&buffer);
    codec_close(codec);
}

static void a_worker_serves_and_drains(void **state)
{
    struct program p = start();
    int results = 0;

    (void)state;
    assert_true(becomes(200, "ready"));
    answers("GET", "/healthz", 200, "ok");
    answers("GET", "/nothing", 404, "/metrics, /healthz");
    answers("POST", "/metrics", 405, "use GET");
    request_send(1, 1);
    request_send(1, 2);
    kafka_fixture_produce(&k, k.config->topic_requests, 1, "junk", 4);
    for (int i = 0; i < 200 && results < 2; i++) {
        usleep(50000);
        results = kafka_fixture_read(&k, k.config->topic_results, 1, see_result, NULL);
    }
    assert_int_equal(results, 2); /* which are in the log before their transaction ends */
    for (int i = 0; i < 500 && !tells("/metrics", 200, "pgpt_jobs_total{outcome=\"completed\"} 2");
         i++)
        usleep(20000);
    answers("GET", "/metrics", 200, "pgpt_jobs_total{outcome=\"completed\"} 2");
    kill(p.child, SIGTERM);
    assert_int_equal(ended(&p), 0);
    says("ended in order");
    assert_int_equal(kafka_fixture_read(&k, k.config->topic_dlq, 0, NULL, NULL), 1);
}

static void a_worker_without_brokers_waits_and_can_be_ended(void **state)
{
    struct program p;

    (void)state;
    rd_kafka_mock_broker_set_down(k.cluster, 1);
    p = start();
    assert_true(becomes(503, "no transactional producer"));
    answers("GET", "/healthz", 200, "ok");
    kill(p.child, SIGINT);
    assert_int_equal(ended(&p), 0);
    rd_kafka_mock_broker_set_up(k.cluster, 1);
}

/* The group's coordinator says that it is fenced: another worker of its name. */
static void a_worker_that_fails_ends_with_1(void **state)
{
    struct program p;

    (void)state;
    rd_kafka_mock_push_request_errors(k.cluster, API_INIT_PRODUCER_ID, 1,
                                      RD_KAFKA_RESP_ERR_TRANSACTIONAL_ID_AUTHORIZATION_FAILED);
    p = start();
    assert_int_equal(ended(&p), 1);
    says("refuse a transactional producer");
}

static void one_that_fails_while_it_runs_does_too(void **state)
{
    struct program p = start();

    (void)state;
    assert_true(becomes(200, "ready"));
    rd_kafka_mock_push_request_errors(k.cluster, API_END_TXN, 1,
                                      RD_KAFKA_RESP_ERR_INVALID_PRODUCER_EPOCH);
    request_send(0, 3);
    assert_int_equal(ended(&p), 1);
    says("is another worker running as worker-1?");
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(options_are_answered),
        TEST(what_cannot_start_says_why),
        TEST(a_worker_serves_and_drains),
        TEST(a_worker_without_brokers_waits_and_can_be_ended),
        TEST(a_worker_that_fails_ends_with_1),
        TEST(one_that_fails_while_it_runs_does_too),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
