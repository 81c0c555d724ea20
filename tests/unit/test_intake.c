/* SPDX-License-Identifier: MIT
 *
 * The intake as a member of a group on a mock cluster, with a double of admission: what it does
 * when its client or the brokers fail. What it reads and gives up is the end-to-end tests'.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <pthread.h>

#include "tests/unit/worker_fixture.h"

#include "tests/unit/kafka_fixture.h"
#include "tests/unit/own_process.h"
#include "tests/worker/failing.h"
#include "worker/admission.h"
#include "worker/control.h"
#include "worker/intake.h"
#include "worker/ledger_metadata.h"

enum { RECORDS = 5 };

static struct kafka_fixture k;
static struct intake *intake;
static struct error error;

/* ---- doubles ---- */

static struct {
    _Atomic int seen[KAFKA_FIXTURE_PARTITIONS][256]; /* times that a record was admitted */
    _Atomic int total, retries, limit;
    _Atomic int runs[3]; /* how they were to run */
    _Atomic bool hold;   /* what is admitted stays in the worker */
    pthread_mutex_t lock;
    struct job_list held;
} world;

struct admission *admission_create(struct pipeline *pipeline, struct error *e)
{
    (void)e;
    return (struct admission *)pipeline;
}

void admission_destroy(struct admission *admission)
{
    (void)admission;
}

bool admission_is_full(const struct config *config, bool was_full)
{
    (void)config;
    (void)was_full;
    return false;
}

enum admission_status admission_run(struct admission *admission, const rd_kafka_message_t *message,
                                    const struct assignment_admission *answer)
{
    (void)admission;
    if (atomic_fetch_sub(&world.retries, 1) > 0)
        return ADMISSION_RETRY;
    assert_in_range(message->offset, 0, 255);
    if (atomic_load(&world.hold)) {
        pthread_mutex_lock(&world.lock);
        job_list_push(&world.held, job_create(1));
        pthread_mutex_unlock(&world.lock);
    }
    world.runs[answer->runs]++;
    world.seen[message->partition][message->offset]++;
    world.total++;
    return atomic_load(&world.limit) ? ADMISSION_LIMIT : ADMISSION_OK;
}

bool control_caught_up(const struct control *control)
{
    (void)control;
    return true;
}

/* ---- */

static int setup(void **state)
{
    (void)state;
    kafka_fixture_open(&k);
    memset(&world, 0, sizeof world);
    pthread_mutex_init(&world.lock, NULL);
    job_list_init(&world.held);
    k.pipeline.scheduler = scheduler_create(64, 1000, &error);
    intake = intake_create(&k.pipeline, &error);
    assert_non_null(intake);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    failing_clear();
    intake_stop(intake);
    intake_destroy(intake);
    scheduler_destroy(k.pipeline.scheduler);
    kafka_fixture_close(&k);
    return 0;
}

static void request_send(int32_t partition)
{
    kafka_fixture_produce(&k, k.config->topic_requests, partition, "record", 6);
}

static void start(void)
{
    if (intake_start(intake, &error))
        fail_msg("%s", error.message);
}

static void wait_total(int total)
{
    for (int i = 0; i < 3000 && atomic_load(&world.total) < total; i++)
        usleep(10000);
    assert_int_equal(atomic_load(&world.total), total);
}

static void wait_hits(int count)
{
    for (int i = 0; i < 2000 && failing_hits() < count; i++)
        usleep(10000);
    assert_int_equal(failing_clear(), count);
}

static bool failed(void)
{
    return health_failed(k.pipeline.health, error.message, sizeof error.message);
}

static void wait_failed(const char *words)
{
    for (int i = 0; i < 2000 && !failed(); i++)
        usleep(10000);
    assert_true(failed());
    if (!strstr(error.message, words))
        fail_msg("\"%s\" does not say \"%s\"", error.message, words);
}

static bool blocked(const char *words)
{
    char reasons[2048];

    health_ready(k.pipeline.health, reasons, sizeof reasons);
    return strstr(reasons, words) != NULL;
}

static void each_seen_once(int32_t partition, int count)
{
    for (int i = 0; i < count; i++)
        assert_int_equal(world.seen[partition][i], 1);
}

/* ---- */

static void records_are_admitted_once_whatever_fails_before(void **state)
{
    (void)state;
    for (int i = 0; i < RECORDS; i++)
        request_send(0);
    world.retries = 2;
    failing_set("rd_kafka_committed", 1, 2); /* of the other engines, or of the takeover */
    start();
    wait_total(RECORDS);
    wait_hits(2);
    each_seen_once(0, RECORDS);
    failing_set("rd_kafka_seek_partitions", 1, 2);
    world.retries = 1; /* it is sought again */
    request_send(0);
    wait_total(RECORDS + 1);
    wait_hits(2);
    each_seen_once(0, RECORDS + 1);
    assert_false(failed());
}

static void topics_that_do_not_answer_are_asked_for_again(void **state)
{
    (void)state;
    request_send(1);
    failing_set("rd_kafka_topic_new", 1, 3); /* of the engines, of each look at the topics */
    start();
    wait_hits(3);
    wait_total(1);
    assert_false(blocked("does not answer"));
}

static void an_offset_out_of_range_stops_its_partition(void **state)
{
    (void)state;
    for (int i = 0; i < RECORDS; i++)
        request_send(2);
    start();
    wait_total(RECORDS);
    rd_kafka_mock_push_request_errors(k.cluster, API_FETCH, 1,
                                      RD_KAFKA_RESP_ERR_OFFSET_OUT_OF_RANGE);
    for (int i = 0; i < 1000 && !blocked("Offset out of range"); i++)
        usleep(10000);
    assert_true(blocked("Offset out of range"));
    assert_false(failed());
}

static void too_many_dead_letters_stop_it(void **state)
{
    (void)state;
    world.limit = 1;
    request_send(0);
    request_send(0);
    start();
    wait_total(1);
    for (int i = 0; i < 500 && !blocked("dead-lettered"); i++)
        usleep(10000);
    assert_true(blocked("dead-lettered"));
    assert_int_equal(world.total, 1);
}

static void an_intake_without_its_client_or_thread_is_not_started(void **state)
{
    static const struct {
        const char *call;
        int at;
        const char *words;
    } calls[] = {{"rd_kafka_subscribe", 1, "subscribing"},
                 {"pthread_create", 1, "engines: its thread"},
                 {"pthread_create", 2, "intake: its thread"}};

    (void)state;
    for (size_t i = 0; i < sizeof calls / sizeof *calls; i++) {
        failing_set(calls[i].call, calls[i].at, 1);
        assert_int_equal(intake_start(intake, &error), -1);
        assert_int_equal(failing_clear(), 1);
        if (!strstr(error.message, calls[i].words))
            fail_msg("\"%s\" does not say \"%s\"", error.message, calls[i].words);
        intake_destroy(intake);
        intake = intake_create(&k.pipeline, &error);
    }
}

static void an_intake_with_wrong_settings_is_not_started(void **state)
{
    char protocol[] = "security.protocol", ssl[] = "ssl";
    char authority[] = "ssl.ca.location", nowhere[] = "/no/such/file", unknown[] = "no.such";
    struct config_kafka_property no_setting[] = {{unknown, ssl}};
    struct config_kafka_property no_client[] = {{protocol, ssl}, {authority, nowhere}};
    struct config_kafka_property *kept = k.config->kafka;
    size_t count = k.config->kafka_count;

    (void)state;
    k.config->kafka = no_setting;
    k.config->kafka_count = 1;
    assert_int_equal(intake_start(intake, &error), -1);
    assert_non_null(strstr(error.message, "kafka.no.such"));
    k.config->kafka = no_client;
    k.config->kafka_count = 2;
    assert_int_equal(intake_start(intake, &error), -1);
    assert_non_null(strstr(error.message, "Kafka client:"));
    k.config->kafka = kept;
    k.config->kafka_count = count;
}

/* A late commit must not come after the next owner's: the client keeps its partitions until then.
 */
static void partitions_are_kept_until_the_last_commit_is_answered(void **state)
{
    int64_t begun;

    (void)state;
    k.config->kafka_call_timeout_ms = 500;
    request_send(0);
    start();
    wait_total(1);
    rd_kafka_mock_broker_push_request_error_rtts(k.cluster, 1, API_OFFSET_COMMIT, 1,
                                                 RD_KAFKA_RESP_ERR_NO_ERROR, 3000);
    begun = clock_mono_us();
    intake_stop(intake);
    assert_in_range(clock_mono_us() - begun, 2500000, 20000000);
    assert_false(failed());
}

/* Without the memory for it the next owner sees a death, no more. */
static void giving_up_needs_no_memory(void **state)
{
    (void)state;
    request_send(0);
    start();
    wait_total(1);
    failing_set("calloc", 1, 1);
    intake_stop(intake);
    assert_int_equal(failing_clear(), 1);
    assert_false(failed());
}

/* ---- suspects ---- */

/* Owners of partitions died that had begun all that is there, and one in a group of [0,
 * single_end).
 */
static void left_by_deaths(int32_t partitions, int records, int64_t single_end)
{
    rd_kafka_topic_partition_list_t *list = rd_kafka_topic_partition_list_new(4);

    for (int32_t p = 0; p < partitions; p++) {
        rd_kafka_topic_partition_t *entry =
            rd_kafka_topic_partition_list_add(list, k.config->topic_requests, p);
        struct ledger ledger;
        char *text = malloc(LEDGER_METADATA_MAX);

        for (int i = 0; i < records; i++)
            request_send(p);
        ledger_init(&ledger, 0, 1000);
        ledger.open = true;
        ledger.takeovers = 1;
        ledger.single_end = single_end;
        entry->offset = 0;
        entry->metadata_size = ledger_metadata_write(&ledger, text);
        entry->metadata = text;
    }
    assert_int_equal(rd_kafka_commit(k.consumer, list, 0), 0);
    rd_kafka_topic_partition_list_destroy(list);
}

static void committed_ledger(int32_t partition, struct ledger *ledger)
{
    rd_kafka_topic_partition_list_t *list = rd_kafka_topic_partition_list_new(1);
    rd_kafka_topic_partition_t *entry =
        rd_kafka_topic_partition_list_add(list, k.config->topic_requests, partition);

    assert_int_equal(rd_kafka_committed(k.consumer, list, 5000), 0);
    assert_int_equal(
        ledger_metadata_read(entry->metadata, entry->metadata_size, entry->offset, ledger, &error),
        0);
    rd_kafka_topic_partition_list_destroy(list);
}

static void let_go(void)
{
    pthread_mutex_lock(&world.lock);
    fixture_jobs_destroy(&world.held);
    pthread_mutex_unlock(&world.lock);
}

static void assert_nothing_more(int total)
{
    usleep(400000);
    assert_int_equal(atomic_load(&world.total), total);
}

/* Of two partitions in one group, each marked before; nothing beside it, and the rest behind it:
 * what was read meanwhile and what was not. */
static void suspects_run_in_one_group(void **state)
{
    struct ledger ledger;

    (void)state;
    left_by_deaths(2, 3, 0);
    world.hold = true;
    start();
    wait_total(6);
    assert_int_equal(world.runs[LEDGER_GROUP], 6);
    for (int32_t p = 0; p < 2; p++) {
        committed_ledger(p, &ledger);
        assert_int_equal(ledger.takeovers, 2);
        assert_int_equal(ledger.runs, LEDGER_GROUP);
        assert_int_equal(ledger.alone_offset, 0);
        assert_int_equal(ledger.alone_end, 3);
    }
    for (int i = 0; i < 70; i++)
        request_send(2);
    for (int i = 0; i < 2000 && metrics_value(METRIC_PARTITIONS_PAUSED) < KAFKA_FIXTURE_PARTITIONS;
         i++)
        usleep(10000);
    assert_true(metrics_value(METRIC_PARTITIONS_PAUSED) == KAFKA_FIXTURE_PARTITIONS);
    assert_nothing_more(6);
    world.hold = false;
    let_go();
    wait_total(76);
    each_seen_once(0, 3);
    each_seen_once(1, 3);
    each_seen_once(2, 70);
    assert_int_equal(world.runs[LEDGER_FREE], 70);
    assert_false(failed());
}

static void single_ones_run_one_at_a_time(void **state)
{
    struct ledger ledger;

    (void)state;
    left_by_deaths(1, 5, 2);
    world.hold = true;
    start();
    for (int n = 1; n <= 2; n++) {
        wait_total(n);
        committed_ledger(0, &ledger);
        assert_int_equal(ledger.runs, LEDGER_SINGLE);
        assert_int_equal(ledger.alone_offset, n - 1);
        assert_nothing_more(n);
        assert_int_equal(world.runs[LEDGER_SINGLE], n);
        let_go();
    }
    wait_total(5);
    assert_int_equal(world.runs[LEDGER_GROUP], 3);
    each_seen_once(0, 5);
    let_go();
}

/* A mark that is not committed, and records that cannot be admitted yet. */
static void a_group_whose_start_fails_is_tried_again(void **state)
{
    (void)state;
    left_by_deaths(2, 3, 0);
    failing_set("rd_kafka_commit_queue", 2, 2); /* the first takes the partitions over */
    world.retries = 3;
    start();
    wait_total(6);
    wait_hits(2);
    each_seen_once(0, 3);
    each_seen_once(1, 3);
    assert_int_equal(world.runs[LEDGER_GROUP], 6);
    assert_false(failed());
}

/* More than are read ahead of one partition: it pauses, others go on, nothing is left out. */
static void many_suspects_are_read_in_steps(void **state)
{
    (void)state;
    left_by_deaths(2, 160, 0);
    for (int i = 0; i < 20; i++)
        request_send(3);
    start();
    wait_total(340);
    each_seen_once(0, 160);
    each_seen_once(1, 160);
    each_seen_once(3, 20);
    assert_int_equal(world.runs[LEDGER_GROUP] + world.runs[LEDGER_SINGLE], 320);
}

/* Suspects that wait for the worker to get empty when it is told to end: the next owner's. */
static void waiting_suspects_are_given_up(void **state)
{
    struct job *job = job_create(1);
    struct ledger ledger;

    (void)state;
    left_by_deaths(2, 3, 0);
    start();
    for (int i = 0; i < 1000; i++) {
        committed_ledger(0, &ledger);
        if (ledger.takeovers == 2) /* taken over */
            break;
        usleep(10000);
    }
    assert_nothing_more(0);
    intake_stop(intake);
    committed_ledger(0, &ledger);
    assert_int_equal(ledger.takeovers, 2);
    assert_int_equal(ledger.base, 0);
    assert_false(ledger.open);
    assert_int_equal(world.total, 0);
    job_destroy(job);
}

static void assignment_fails(void)
{
    failing_set("rd_kafka_incremental_assign", 1, 1);
    start();
    wait_failed("intake: assign");
    wait_hits(1);
}

static void an_assignment_that_fails_ends_the_worker(void **state)
{
    (void)state;
    in_a_process("assignment_fails");
}

static void unassignment_fails(void)
{
    struct intake *second = intake_create(&k.pipeline, &error);

    start();
    request_send(0);
    wait_total(1);
    failing_set("rd_kafka_incremental_unassign", 1, 1);
    assert_int_equal(intake_start(second, &error), 0);
    wait_failed("intake: unassign");
    wait_hits(1);
}

static void giving_up_that_fails_ends_the_worker(void **state)
{
    (void)state;
    in_a_process("unassignment_fails");
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(int argc, char **argv)
{
    void (*const scenarios[])(void) = {assignment_fails, unassignment_fails};
    const char *const names[] = {"assignment_fails", "unassignment_fails"};
    const struct CMUnitTest tests[] = {
        TEST(records_are_admitted_once_whatever_fails_before),
        TEST(topics_that_do_not_answer_are_asked_for_again),
        TEST(an_offset_out_of_range_stops_its_partition),
        TEST(too_many_dead_letters_stop_it),
        TEST(an_intake_without_its_client_or_thread_is_not_started),
        TEST(an_intake_with_wrong_settings_is_not_started),
        TEST(partitions_are_kept_until_the_last_commit_is_answered),
        TEST(giving_up_needs_no_memory),
        TEST(suspects_run_in_one_group),
        TEST(single_ones_run_one_at_a_time),
        TEST(a_group_whose_start_fails_is_tried_again),
        TEST(many_suspects_are_read_in_steps),
        TEST(waiting_suspects_are_given_up),
        cmocka_unit_test(an_assignment_that_fails_ends_the_worker),
        cmocka_unit_test(giving_up_that_fails_ends_the_worker),
    };

    for (int i = 0; i < 2; i++)
        if (argc == 2 && !strcmp(argv[1], names[i])) {
            setup(NULL);
            scenarios[i]();
            own_process_end();
        }
    return cmocka_run_group_tests(tests, NULL, NULL);
}
