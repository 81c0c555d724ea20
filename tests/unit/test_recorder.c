/* SPDX-License-Identifier: MIT
 *
 * The recorder between a mock cluster and a double of its store: what it does when PostgreSQL, the
 * brokers or its client fail. What it writes is test_recorder_store's and the end-to-end tests'.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "tests/unit/worker_fixture.h"

#include "schema/codec.h"
#include "tests/unit/kafka_fixture.h"
#include "tests/unit/own_process.h"
#include "tests/worker/failing.h"
#include "worker/recorder.h"
#include "worker/recorder_store.h"

static struct kafka_fixture k;
static struct recorder *recorder;
static struct error error;

/* ---- the store's double ---- */

static struct {
    _Atomic bool connected;
    _Atomic int connects, positions, writes, maintained; /* calls */
    _Atomic int connect_fails, positions_fail, write_fails, conflicts, maintain_fails, more;
    _Atomic bool maintain_disconnects;
    _Atomic int64_t stored[KAFKA_FIXTURE_PARTITIONS];
    _Atomic int events;
} db;

static bool fails(_Atomic int *times, struct error *e)
{
    error_set(e, "the double fails");
    if (atomic_load(times) <= 0)
        return false;
    atomic_fetch_sub(times, 1);
    return true;
}

struct recorder_store *recorder_store_create(const struct recorder_store_options *options)
{
    assert_non_null(options->stopping);
    return (struct recorder_store *)&db;
}

void recorder_store_destroy(struct recorder_store *store)
{
    (void)store;
}

bool recorder_store_connected(const struct recorder_store *store)
{
    (void)store;
    return atomic_load(&db.connected);
}

int recorder_store_connect(struct recorder_store *store, struct error *e)
{
    (void)store;
    db.connects++;
    atomic_store(&db.connected, !fails(&db.connect_fails, e));
    return atomic_load(&db.connected) ? 0 : -1;
}

void recorder_store_disconnect(struct recorder_store *store)
{
    (void)store;
    atomic_store(&db.connected, false);
}

int recorder_store_positions(struct recorder_store *store, const char *topic,
                             struct recorder_position *positions, size_t count, struct error *e)
{
    (void)store;
    assert_string_equal(topic, k.config->topic_events);
    db.positions++;
    if (fails(&db.positions_fail, e))
        return -1;
    for (size_t i = 0; i < count; i++)
        positions[i].stored = db.stored[positions[i].partition];
    return 0;
}

enum recorder_store_status recorder_store_write(struct recorder_store *store, const char *topic,
                                                struct recorder_batch *batch,
                                                const struct recorder_position *positions,
                                                size_t count, struct error *e)
{
    (void)topic;
    db.writes++;
    if (fails(&db.conflicts, e))
        return RECORDER_CONFLICT;
    if (fails(&db.write_fails, e)) {
        recorder_store_disconnect(store);
        return RECORDER_FAILED;
    }
    for (size_t i = 0; i < count; i++) {
        assert_int_equal(positions[i].stored, db.stored[positions[i].partition]);
        db.stored[positions[i].partition] = positions[i].next;
    }
    db.events += (int)batch->event_count;
    return RECORDER_STORED;
}

int recorder_store_maintain(struct recorder_store *store, bool *more, struct error *e)
{
    db.maintained++;
    *more = atomic_fetch_sub(&db.more, 1) > 0;
    if (!fails(&db.maintain_fails, e))
        return 0;
    if (db.maintain_disconnects)
        recorder_store_disconnect(store);
    return -1;
}

/* ---- the recorder ---- */

static int setup(void **state)
{
    (void)state;
    kafka_fixture_open(&k);
    memset(&db, 0, sizeof db);
    k.config->recorder_flush_ms = 20;
    recorder = recorder_create(&k.pipeline, &error);
    assert_non_null(recorder);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    recorder_stop(recorder);
    recorder_destroy(recorder);
    failing_clear();
    kafka_fixture_close(&k);
    return 0;
}

static void event_send(int32_t partition)
{
    struct job_event event = {.job_id = {"00000000-0000-0000-0000-000000000001", 36},
                              .attempt = 1,
                              .state = "completed",
                              .at_us = clock_wall_us(),
                              .worker = {"w", 1},
                              .tenant = {"", 0},
                              .model = {"m", 1}};
    struct codec *codec = codec_open(NULL, &error);
    struct buffer buffer = {0};

    assert_int_equal(codec_encode(codec, RECORD_JOB_EVENT, &event, &buffer, &error), 0);
    kafka_fixture_produce(&k, k.config->topic_events, partition, buffer.data, buffer.size);
    buffer_free(&buffer);
    codec_close(codec);
}

static void start(void)
{
    if (recorder_start(recorder, &error))
        fail_msg("%s", error.message);
}

static void wait_events(int count)
{
    for (int i = 0; i < 3000 && atomic_load(&db.events) < count; i++)
        usleep(10000);
    assert_int_equal(atomic_load(&db.events), count);
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

/* ---- */

static void events_are_written_once_however_often_the_database_fails(void **state)
{
    (void)state;
    event_send(0);
    event_send(3);
    db.connect_fails = 2;
    db.positions_fail = 1;
    db.write_fails = 1;
    db.conflicts = 1;
    start();
    wait_events(2);
    assert_int_equal(db.stored[0], 1);
    assert_int_equal(db.stored[3], 1);
    assert_in_range(db.connects, 5, 5); /* two in vain, after positions, after a failed write */
    event_send(0);
    wait_events(3);
    assert_false(failed());
}

static void maintenance_that_fails_holds_nothing_up(void **state)
{
    (void)state;
    db.maintain_fails = 1;
    db.maintain_disconnects = true;
    db.more = 2; /* and is asked for again soon while there is more */
    start();
    event_send(1);
    wait_events(1);
    for (int i = 0; i < 500 && db.maintained < 3; i++)
        usleep(10000);
    assert_int_equal(db.maintained, 3);
    assert_int_equal(db.connects, 2);
}

static void maintenance_may_fail_by_itself(void **state)
{
    uint64_t errors = metrics_value(METRIC_RECORDER_ERRORS);

    (void)state;
    db.maintain_fails = 1;
    start();
    event_send(1);
    wait_events(1);
    assert_int_equal(metrics_value(METRIC_RECORDER_ERRORS) - errors, 1);
    assert_int_equal(db.connects, 1); /* the connection stands */
}

static void places_are_read_again_when_the_brokers_fail(void **state)
{
    static const char *const calls[] = {"rd_kafka_query_watermark_offsets",
                                        "rd_kafka_seek_partitions", "rd_kafka_commit"};

    (void)state;
    event_send(0);
    for (int i = 0; i < 3; i++) {
        failing_set(calls[i], 1, 1);
        if (!i) {
            start();
        } else {
            db.conflicts = i == 1; /* so that places are read again */
            event_send(0);
        }
        wait_events(i + 1);
        wait_hits(1);
    }
    assert_false(failed());
}

/* The log was deleted in part, or made anew: it goes on where there is something. */
static void a_place_that_the_log_does_not_have_is_left(void **state)
{
    (void)state;
    for (int i = 0; i < 5; i++)
        event_send(0);
    event_send(1);
    assert_int_equal(
        rd_kafka_mock_partition_delete_records(k.cluster, k.config->topic_events, 0, 3), 0);
    db.stored[0] = 1; /* 1 and 2 are gone */
    db.stored[1] = 7; /* it ends at 1 */
    start();
    wait_events(3);
    assert_int_equal(db.stored[0], 5);
    assert_int_equal(db.stored[1], 1);
}

/* The log is cut under it while it reads: the client ends to fetch there, and takes no seek. */
static void an_offset_out_of_range_is_found_again(void **state)
{
    (void)state;
    start();
    event_send(2);
    wait_events(1);
    rd_kafka_mock_push_request_errors(k.cluster, API_FETCH, 1,
                                      RD_KAFKA_RESP_ERR_OFFSET_OUT_OF_RANGE);
    event_send(2);
    wait_events(2);
    kafka_fixture_produce(&k, k.config->topic_events, 2, "junk", 4); /* is passed over */
    event_send(2);
    wait_events(3);
    assert_int_equal(db.stored[2], 4);
    assert_false(failed());
}

static void an_offset_out_of_range_is_found_again_whatever_fails(void **state)
{
    static const char *const calls[] = {"rd_kafka_incremental_unassign",
                                        "rd_kafka_incremental_assign"};

    (void)state;
    start();
    event_send(2);
    wait_events(1);
    for (int i = 0; i < 2; i++) {
        failing_set(calls[i], 1, 1);
        rd_kafka_mock_push_request_errors(k.cluster, API_FETCH, 1,
                                          RD_KAFKA_RESP_ERR_OFFSET_OUT_OF_RANGE);
        event_send(2);
        wait_events(2 + i);
        wait_hits(1);
    }
    assert_false(failed());
}

static void a_recorder_without_its_client_or_thread_is_not_started(void **state)
{
    (void)state;
    failing_set("rd_kafka_subscribe", 1, 1);
    assert_int_equal(recorder_start(recorder, &error), -1);
    assert_int_equal(failing_clear(), 1);
    assert_non_null(strstr(error.message, "subscribing"));
    recorder_destroy(recorder);
    recorder = recorder_create(&k.pipeline, &error);
    failing_set("pthread_create", 1, 1);
    assert_int_equal(recorder_start(recorder, &error), -1);
    assert_int_equal(failing_clear(), 1);
    assert_non_null(strstr(error.message, "thread"));
}

static void a_recorder_with_wrong_settings_is_not_started(void **state)
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
    assert_int_equal(recorder_start(recorder, &error), -1);
    assert_non_null(strstr(error.message, "kafka.no.such"));
    k.config->kafka = no_client;
    k.config->kafka_count = 2;
    assert_int_equal(recorder_start(recorder, &error), -1);
    assert_non_null(strstr(error.message, "Kafka client:"));
    k.config->kafka = kept;
    k.config->kafka_count = count;
}

static void assignment_fails(void)
{
    failing_set("rd_kafka_incremental_assign", 1, 1);
    start();
    for (int i = 0; i < 1000 && !failed(); i++)
        usleep(10000);
    assert_true(failed());
    assert_non_null(strstr(error.message, "recorder: assign"));
    wait_hits(1);
}

/* Its partitions would wait for ever: nobody else has them. */
static void an_assignment_that_fails_ends_the_worker(void **state)
{
    (void)state;
    in_a_process("assignment_fails");
}

static void unassignment_fails(void)
{
    struct recorder *second = recorder_create(&k.pipeline, &error);

    start();
    event_send(0);
    wait_events(1);
    failing_set("rd_kafka_incremental_unassign", 1, 1);
    assert_int_equal(recorder_start(second, &error), 0);
    for (int i = 0; i < 1500 && !failed(); i++)
        usleep(10000);
    assert_true(failed());
    assert_non_null(strstr(error.message, "recorder: unassign"));
    wait_hits(1);
}

/* Somebody else waits for them. */
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
        TEST(events_are_written_once_however_often_the_database_fails),
        TEST(maintenance_that_fails_holds_nothing_up),
        TEST(maintenance_may_fail_by_itself),
        TEST(places_are_read_again_when_the_brokers_fail),
        TEST(a_place_that_the_log_does_not_have_is_left),
        TEST(an_offset_out_of_range_is_found_again),
        TEST(an_offset_out_of_range_is_found_again_whatever_fails),
        TEST(a_recorder_without_its_client_or_thread_is_not_started),
        TEST(a_recorder_with_wrong_settings_is_not_started),
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
