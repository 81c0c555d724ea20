/* SPDX-License-Identifier: MIT
 *
 * What `pgpt` and its library do when calls of librdkafka, libpq and the allocator fail: each
 * attempt is the command itself in a process of its own, on copies of the libraries whose calls go
 * through tests/worker/failing.h, against a mock cluster and a fake server. It must end with its
 * exit code, say what is wrong and what can be done, and leave nothing behind (which
 * AddressSanitizer sees). tests/unit/errors.txt lists every call and its test.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "producer/topic_admin.h"
#include "tests/unit/mock_brokers.h"
#include "tests/unit/pg_fake.h"
#include "tests/worker/failing.h"

int pgpt_main(int argc, char **argv);
#define main pgpt_main
#include "producer/main.c"
#undef main

enum { PARTITIONS = 2, WORDS_MAX = 12 };
/* Numbers of the protocol's requests. */
enum { API_PRODUCE = 0, API_FETCH = 1, API_LIST_OFFSETS = 2, API_INIT_PRODUCER_ID = 22 };

#define ID "6f1e0c2a-9a54-4c0e-8d0b-0d5b1c8f7a11"

static struct mock_brokers brokers;
static struct pg_fake database;
static struct client_options options;
static struct error error;

/* ---- brokers with one dead letter and one result, a database without rows ---- */

static void produce_records(void)
{
    static const enum topic topics[] = {TOPIC_DLQ, TOPIC_RESULTS};
    rd_kafka_conf_t *conf = rd_kafka_conf_new();
    char reason[256];
    rd_kafka_t *producer;

    assert_int_equal(rd_kafka_conf_set(conf, "bootstrap.servers", options.brokers, NULL, 0), 0);
    producer = rd_kafka_new(RD_KAFKA_PRODUCER, conf, reason, sizeof reason);
    assert_non_null(producer);
    for (int t = 0; t < 2; t++)
        assert_int_equal(
            rd_kafka_producev(producer, RD_KAFKA_V_TOPIC(topic_table[topics[t]].name),
                              RD_KAFKA_V_PARTITION(0), RD_KAFKA_V_KEY(ID, sizeof ID - 1),
                              RD_KAFKA_V_VALUE("x", 1),
                              RD_KAFKA_V_HEADER("traceparent", "00-aa-bb-01", -1),
                              RD_KAFKA_V_MSGFLAGS(RD_KAFKA_MSG_F_COPY), RD_KAFKA_V_END),
            0);
    assert_int_equal(rd_kafka_flush(producer, 10000), 0);
    rd_kafka_destroy(producer);
}

static int setup(void **state)
{
    (void)state;
    mock_brokers_start(&brokers, PARTITIONS);
    options = (struct client_options){.brokers = brokers.bootstrap, .timeout_ms = 5000};
    produce_records();
    pg_fake_open(&database);
    setenv("PGPT_BROKERS", options.brokers, 1);
    setenv("PGPT_DATABASE_URL", database.url, 1);
    return 0;
}

static int wrong; /* attempts that went another way: all of a table are made */

static int begin(void **state)
{
    (void)state;
    wrong = 0;
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    pg_fake_close(&database);
    mock_brokers_stop(&brokers);
    return 0;
}

/* ---- the command in a process of its own ---- */

/* `call` NULL = none fails. */
struct attempt {
    const char *call;
    int at;
    rd_kafka_resp_err_t code;
    const char *words; /* pgpt ... */
    int exit_code;
    const char *says, *remedy; /* NULL = nothing in particular */
};

struct outcome {
    int exit_code; /* -1 = it crashed */
    int hits;      /* calls that failed */
    char told[16384];
};

static void become_pgpt(const struct attempt *a, int in, int out)
{
    const char *tsan = getenv("TSAN_OPTIONS");
    char words[256], number[2][16], all[1024], *argv[WORDS_MAX + 3] = {"test", "pgpt"}, *rest;
    int argc = 2;

    /* It would wait a second for other threads' reports, in each of a hundred processes. */
    snprintf(all, sizeof all, "%s atexit_sleep_ms=0", tsan ? tsan : "");
    setenv("TSAN_OPTIONS", all, 1);
    snprintf(words, sizeof words, "%s", a->words);
    for (char *w = strtok_r(words, " ", &rest); w && argc < WORDS_MAX;
         w = strtok_r(NULL, " ", &rest))
        argv[argc++] = w;
    snprintf(number[0], sizeof number[0], "%d", a->at);
    snprintf(number[1], sizeof number[1], "%d", (int)a->code);
    setenv("FAILING_CALL", a->call ? a->call : "none", 1);
    setenv("FAILING_AT", number[0], 1);
    setenv("FAILING_CODE", number[1], 1);
    dup2(in, 0);
    dup2(out, 1);
    dup2(out, 2);
    execv("/proc/self/exe", argv);
    _exit(127);
}

/* In that process. */
static int pgpt(int argc, char **argv)
{
    int code;

    failing_set_code(getenv("FAILING_CALL"), atoi(getenv("FAILING_AT")), 1,
                     (rd_kafka_resp_err_t)atoi(getenv("FAILING_CODE")));
    code = pgpt_main(argc, argv);
    fflush(stdout);
    fprintf(stderr, "\nfailed calls: %d\n", failing_clear());
    return code;
}

static void (*meanwhile)(void); /* called once while an attempt is made; NULL = nothing */

static struct outcome run_attempt(const struct attempt *a)
{
    static const char lines[] = "one\n\ntwo\n";
    int in = memfd_create("in", MFD_CLOEXEC), out = memfd_create("out", MFD_CLOEXEC), status;
    struct outcome outcome = {.exit_code = -1};
    const char *hits;
    pid_t child;

    assert_int_equal(write(in, lines, sizeof lines - 1), sizeof lines - 1);
    lseek(in, 0, SEEK_SET);
    child = fork();
    if (!child)
        become_pgpt(a, in, out);
    if (meanwhile)
        meanwhile();
    assert_int_equal(waitpid(child, &status, 0), child);
    if (WIFEXITED(status))
        outcome.exit_code = WEXITSTATUS(status);
    assert_true(pread(out, outcome.told, sizeof outcome.told - 1, 0) >= 0);
    hits = strstr(outcome.told, "\nfailed calls: ");
    outcome.hits = hits ? atoi(hits + 15) : 0;
    close(in);
    close(out);
    return outcome;
}

static void attempt(const struct attempt *a)
{
    struct outcome o = run_attempt(a);

    if (o.exit_code == a->exit_code && o.hits == (a->call ? 1 : 0) &&
        (!a->says || strstr(o.told, a->says)) && (!a->remedy || strstr(o.told, a->remedy)))
        return;
    wrong++;
    print_error("pgpt %s: exit %d, not %d, without \"%s\" and \"%s\", %s failed %d times:\n%s",
                a->words, o.exit_code, a->exit_code, a->says ? a->says : "",
                a->remedy ? a->remedy : "", a->call ? a->call : "none", o.hits, o.told);
}

/* ---- calls of librdkafka ---- */

static const char denied[] = "Topic authorization failed; grant this user";

static void a_failing_call_is_told_with_what_to_do(void **state)
{
    static const struct attempt attempts[] = {
        {"rd_kafka_headers_new", 1, 0, "dlq replay --all", 1, "out of memory", NULL},
        {"rd_kafka_header_add", 2, RD_KAFKA_RESP_ERR__STATE, "dlq replay --all", 1, "out of memory",
         NULL},
        {"rd_kafka_produceva", 1, RD_KAFKA_RESP_ERR__UNKNOWN_TOPIC, "submit x", 1,
         "sending to pgpt.requests", "pgpt topics --create"},
        {"rd_kafka_produceva", 1, RD_KAFKA_RESP_ERR__QUEUE_FULL, "submit x", 0, NULL, NULL},
        {"rd_kafka_produceva", 1, RD_KAFKA_RESP_ERR__QUEUE_FULL, "cancel " ID, 0, NULL, NULL},
        {"rd_kafka_metadata", 1, RD_KAFKA_RESP_ERR__TIMED_OUT, "submit x", 3,
         "pgpt.requests: the brokers (127.0.0.1:", "do not answer"},
        {"rd_kafka_metadata", 2, RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED, "submit x", 1,
         "pgpt.control: ", denied},
        /* Without the number of partitions, a replay would not know where a request was. */
        {"rd_kafka_metadata", 4, RD_KAFKA_RESP_ERR__TIMED_OUT, "dlq replay --all", 3,
         "0 of 1 requests sent again", "pgpt.requests: the brokers"},
        {"rd_kafka_metadata", 1, RD_KAFKA_RESP_ERR__TIMED_OUT, "topics --check", 3,
         "reading topics: the brokers", "do not answer"},
        {"rd_kafka_offsets_for_times", 1, RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED,
         "follow " ID, 1, "offsets of pgpt.results: ", denied},
        {"rd_kafka_offsets_for_times", 2, RD_KAFKA_RESP_ERR__TIMED_OUT, "dlq list --since 1h", 3,
         "offsets of pgpt.dlq: the brokers", "do not answer"},
        {"rd_kafka_assign", 1, RD_KAFKA_RESP_ERR__STATE, "follow " ID, 1,
         "pgpt.results: Local: Erroneous state", NULL},
        {"rd_kafka_assign", 1, RD_KAFKA_RESP_ERR__STATE, "dlq list", 1,
         "pgpt.dlq: Local: Erroneous state", NULL},
        {"codec_decode", 1, 0, "follow --since all " ID, 1, "out of memory for a record of job " ID,
         NULL},
        {"pthread_create", 1, 0, "load --rate 9 --count 1 x", 1, "the thread that reads results",
         "Resource temporarily unavailable"},
        {NULL, 0, 0, "submit -X security.protocol=ssl -X ssl.ca.location=/no/such x", 2,
         "Kafka client: ssl.ca.location", NULL},
    };

    (void)state;
    for (size_t i = 0; i < sizeof attempts / sizeof *attempts; i++)
        attempt(&attempts[i]);
    assert_int_equal(wrong, 0);
}

static void a_topics_name_that_cannot_be_is_told_with_its_setting(void **state)
{
    static const struct attempt a = {NULL, 0, 0, "submit x", 2, "PGPT_TOPIC_REQUESTS", "Invalid"};
    char name[600] = "";

    (void)state;
    memset(name, 'x', sizeof name - 1);
    setenv("PGPT_TOPIC_REQUESTS", name, 1);
    attempt(&a);
    unsetenv("PGPT_TOPIC_REQUESTS");
    assert_int_equal(wrong, 0);
}

/* The brokers answer the next requests of this kind with `code`. */
static void what_brokers_refuse_is_told_with_what_to_do(void **state)
{
    static const struct {
        int api;
        rd_kafka_resp_err_t code;
        struct attempt attempt;
    } refusals[] = {
        {API_PRODUCE,
         RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE,
         {NULL, 0, 0, "submit x", 1, "was not accepted: ", "max.message.bytes"}},
        {API_PRODUCE,
         RD_KAFKA_RESP_ERR_NOT_ENOUGH_REPLICAS, /* tried again and again */
         {NULL, 0, 0, "submit --timeout 1s x", 3, "not all jobs were acknowledged", NULL}},
        {API_INIT_PRODUCER_ID,
         RD_KAFKA_RESP_ERR_CLUSTER_AUTHORIZATION_FAILED,
         {NULL, 0, 0, "submit x", 1, "Cluster authorization failed", "IDEMPOTENT_WRITE"}},
        {API_LIST_OFFSETS,
         RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED,
         {NULL, 0, 0, "dlq list --since 1h", 1, "offsets of pgpt.dlq: ", denied}},
        {API_FETCH,
         RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED,
         {NULL, 0, 0, "follow --results --since all " ID, 1, "reading pgpt.results: ", denied}},
        {API_FETCH,
         RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED,
         {NULL, 0, 0, "dlq list", 1, "pgpt.dlq: ", denied}},
    };

    (void)state;
    for (size_t i = 0; i < sizeof refusals / sizeof *refusals; i++) {
        for (int n = 0; n < 100; n++)
            rd_kafka_mock_push_request_errors(brokers.cluster, (int16_t)refusals[i].api, 1,
                                              refusals[i].code);
        attempt(&refusals[i].attempt);
        rd_kafka_mock_clear_request_errors(brokers.cluster, (int16_t)refusals[i].api);
    }
    assert_int_equal(wrong, 0);
}

static int last_asked; /* then the brokers go down */

static void brokers_go_down(void)
{
    bool asked = false;

    for (int i = 0; i < 3000 && !asked; i++) {
        size_t count;
        rd_kafka_mock_request_t **requests = rd_kafka_mock_get_requests(brokers.cluster, &count);

        for (size_t r = 0; r < count; r++)
            asked = asked || rd_kafka_mock_request_api_key(requests[r]) == last_asked;
        rd_kafka_mock_request_destroy_array(requests, count);
        usleep(5000);
    }
    assert_true(asked);
    rd_kafka_mock_broker_set_down(brokers.cluster, 1);
}

/* Nothing may come for other reasons: the last one that is known is told. */
static void who_waits_in_vain_is_told_of_brokers_that_are_gone(void **state)
{
    static const struct attempt attempts[] = {
        {NULL, 0, 0, "follow --timeout 1s 00000000-9a54-4c0e-8d0b-0d5b1c8f7a11", 4,
         "the last connection error: ", "127.0.0.1:"},
        {NULL, 0, 0, "translate --timeout 1s", 4, "the last connection error: ", "127.0.0.1:"},
        {NULL, 0, 0, "load --rate 99 --count 1 --timeout 1s x", 4,
         "the last connection error: ", "127.0.0.1:"}};

    (void)state;
    meanwhile = brokers_go_down;
    for (size_t i = 0; i < sizeof attempts / sizeof *attempts; i++) {
        last_asked = i ? API_PRODUCE : API_FETCH;
        rd_kafka_mock_start_request_tracking(brokers.cluster);
        attempt(&attempts[i]);
        rd_kafka_mock_stop_request_tracking(brokers.cluster);
        rd_kafka_mock_broker_set_up(brokers.cluster, 1);
    }
    meanwhile = NULL;
    assert_int_equal(wrong, 0);
}

/* ---- topics: these brokers leave when they are asked to change one ---- */

static void says(const char *words)
{
    if (!strstr(error.message, words))
        fail_msg("\"%s\" does not say \"%s\"", error.message, words);
}

static void topics_that_cannot_be_changed_are_told(void **state)
{
    struct client_options short_options = options;
    struct topic_admin admin;

    (void)state;
    short_options.timeout_ms = 300;
    assert_int_equal(topic_admin_open(&admin, &short_options, &error), CLIENT_OK);
    failing_set("rd_kafka_NewTopic_new", 1, 1);
    assert_int_equal(topic_admin_create(&admin, TOPIC_DLQ, 1, 1, &error), CLIENT_WRONG);
    says("topic pgpt.dlq");
    failing_set("rd_kafka_NewPartitions_new", 1, 1);
    assert_int_equal(topic_admin_grow(&admin, TOPIC_REQUESTS, 9, &error), CLIENT_WRONG);
    says("topic pgpt.requests");
    assert_int_equal(failing_clear(), 1);
    assert_int_equal(topic_admin_create(&admin, TOPIC_DLQ, 1, 1, &error), CLIENT_UNREACHABLE);
    says("creating topics: the brokers (127.0.0.1:");
    assert_int_equal(topic_admin_grow(&admin, TOPIC_REQUESTS, 9, &error), CLIENT_UNREACHABLE);
    says("adding partitions: the brokers (127.0.0.1:");
    assert_int_equal(topic_admin_alter(&admin, TOPIC_REQUESTS, 1, &error), CLIENT_UNREACHABLE);
    says("setting topics: the brokers (127.0.0.1:");
    assert_int_equal(topic_admin_read(&admin, &error), CLIENT_UNREACHABLE);
    says("reading topics' settings: the brokers (127.0.0.1:");
    topic_admin_close(&admin);
}

/* ---- libpq ---- */

static void a_database_that_fails_is_told(void **state)
{
    static const struct attempt attempts[] = {
        {"PQconnectdbParams", 1, 0, "status", 3, "PGPT_DATABASE_URL", "out of memory"},
        {"PQsendQueryParams", 1, 0, "status", 1, "the database", NULL},
        {"PQsendQueryParams", 2, 0, "status " ID, 1, "the database", NULL},
        {"PQconsumeInput", 1, 0, "status", 1, "the database", NULL},
        {"PQgetResult", 1, 0, "status", 1, "the database", NULL},
        {NULL, 0, 0, "status", 1, "answers without rows", "is it PostgreSQL?"},
        {NULL, 0, 0, "status " ID, 1, "answers without rows", "is it PostgreSQL?"},
        {NULL, 0, 0, "status --database postgresql://app@127.0.0.1:1/x", 3, "PGPT_DATABASE_URL",
         "Connection refused"},
    };

    (void)state;
    for (size_t i = 0; i < sizeof attempts / sizeof *attempts; i++)
        attempt(&attempts[i]);
    assert_int_equal(wrong, 0);
}

static void a_database_that_leaves_or_falls_silent_has_an_end(void **state)
{
    static const struct attempt leaves = {NULL, 0, 0, "status", 3, "server closed the connection",
                                          NULL},
                                silent = {NULL, 0,
                                          0,    "status --timeout 100ms " ID,
                                          3,    "does not answer within --timeout",
                                          NULL};

    (void)state;
    atomic_store(&database.leave_at, 'S');
    attempt(&leaves);
    atomic_store(&database.leave_at, 0);
    atomic_store(&database.silent_at, 'S'); /* all is told but the end */
    attempt(&silent);
    atomic_store(&database.silent_at, 0);
    atomic_store(&database.silent, false);
    assert_int_equal(wrong, 0);
}

/* ---- memory ---- */

/* Each allocation of the command fails once: it ends, and says so. */
static void without_memory_a_command_ends_and_says_so(void **state)
{
    /* follow, cancel and dlq list allocate what these do */
    static const char *const commands[] = {"submit --follow --timeout 1s x",
                                           "translate --timeout 1s",
                                           "load --rate 99 --count 2 --timeout 1s --file -",
                                           "status " ID,
                                           "topics --check --timeout 300ms",
                                           "dlq show --json 0",
                                           "dlq replay --all"};

    (void)state;
    for (size_t i = 0; i < sizeof commands / sizeof *commands; i++)
        for (struct attempt a = {"memory", 1, 0, commands[i], 0, NULL, NULL};; a.at++) {
            struct outcome o = run_attempt(&a);

            if (o.exit_code < 0 || o.exit_code > EXIT_DIFFERENT ||
                (o.hits && (!o.exit_code || !strstr(o.told, "memory"))))
                wrong++, print_error("pgpt %s without its allocation %d: exit %d:\n%s", a.words,
                                     a.at, o.exit_code, o.told);
            if (!o.hits) {
                if (a.at == 1)
                    fail_msg("pgpt %s allocates nothing:\n%s", a.words, o.told);
                break;
            }
        }
    assert_int_equal(wrong, 0);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(a_failing_call_is_told_with_what_to_do, begin),
        cmocka_unit_test_setup(a_topics_name_that_cannot_be_is_told_with_its_setting, begin),
        cmocka_unit_test_setup(what_brokers_refuse_is_told_with_what_to_do, begin),
        cmocka_unit_test_setup(who_waits_in_vain_is_told_of_brokers_that_are_gone, begin),
        cmocka_unit_test_setup(topics_that_cannot_be_changed_are_told, begin),
        cmocka_unit_test_setup(a_database_that_fails_is_told, begin),
        cmocka_unit_test_setup(a_database_that_leaves_or_falls_silent_has_an_end, begin),
        cmocka_unit_test_setup(without_memory_a_command_ends_and_says_so, begin),
    };

    return argc > 1 ? pgpt(argc - 1, argv + 1) : cmocka_run_group_tests(tests, setup, teardown);
}
