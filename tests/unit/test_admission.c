/* SPDX-License-Identifier: MIT
 * A record becomes a job and goes where it belongs. The records come through a mock cluster; the
 * stages behind are played here. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "tests/unit/worker_fixture.h"

#include <avro.h>

#include "schema/codec.h"
#include "tests/schema/twin_schemas.h"
#include "tests/unit/kafka_fixture.h"
#include "tests/worker/failing.h"
#include "worker/admission.h"

#define ID "00000000-0000-4000-8000-000000000001"

static struct job_list prepared, settled;

void prepare_push(struct prepare *prepare, struct job *job)
{
    (void)prepare;
    job_list_push(&prepared, job);
}

void settle_push(struct settle *settle, struct job *job)
{
    (void)settle;
    job_list_push(&settled, job);
}

static int64_t looked_at; /* what control was told of the last request */

void control_look(struct control *control, int64_t read_mono_us)
{
    (void)control;
    looked_at = read_mono_us;
}

static struct kafka_fixture k;
static rd_kafka_t *producer;
static struct admission *admission;
static struct codec *codec;
static struct twin_schemas twins; /* in schema.dir */
static struct error error;
static const struct assignment_admission first = {.answer = LEDGER_ADMIT, .epoch = 1, .attempt = 1};

static int group_setup(void **state)
{
    rd_kafka_topic_partition_list_t *list = rd_kafka_topic_partition_list_new(1);

    (void)state;
    kafka_fixture_open(&k);
    producer = kafka_fixture_client(RD_KAFKA_PRODUCER, k.config->kafka_brokers, NULL);
    rd_kafka_topic_partition_list_add(list, k.config->topic_requests, 0)->offset =
        RD_KAFKA_OFFSET_BEGINNING;
    assert_int_equal(rd_kafka_assign(k.consumer, list), 0);
    rd_kafka_topic_partition_list_destroy(list);
    codec = codec_open(NULL, &error);
    if (twin_schemas_make(&twins, 4096))
        return -1;
    free(k.config->schema_dir);
    k.config->schema_dir = strdup(twins.directory);
    return codec ? 0 : -1;
}

static int group_teardown(void **state)
{
    (void)state;
    assert_int_equal(twin_schemas_remove(&twins), 0);
    twin_schemas_free(&twins);
    codec_close(codec);
    rd_kafka_destroy(producer);
    kafka_fixture_close(&k);
    return 0;
}

static int setup(void **state)
{
    (void)state;
    job_list_init(&prepared);
    job_list_init(&settled);
    kafka_fixture_take(&k, 0); /* a fresh window of duplicates */
    admission = admission_create(&k.pipeline, &error);
    return admission ? 0 : -1;
}

static int teardown(void **state)
{
    (void)state;
    fixture_jobs_destroy(&prepared);
    fixture_jobs_destroy(&settled);
    admission_destroy(admission);
    assert_int_equal(job_alive(), 0);
    return 0;
}

/* ---- records ---- */

static int64_t record_timestamp_ms; /* of the next records; 0 = now */

static rd_kafka_message_t *through_kafka(const void *payload, size_t size,
                                         rd_kafka_headers_t *headers)
{
    int64_t until = clock_mono_us() + 10000000;
    rd_kafka_message_t *message = NULL;
    rd_kafka_vu_t args[] = {{.vtype = RD_KAFKA_VTYPE_TOPIC, .u.cstr = k.config->topic_requests},
                            {.vtype = RD_KAFKA_VTYPE_PARTITION, .u.i32 = 0},
                            {.vtype = RD_KAFKA_VTYPE_KEY, .u.mem = {(void *)"key", 3}},
                            {.vtype = RD_KAFKA_VTYPE_VALUE, .u.mem = {(void *)payload, size}},
                            {.vtype = RD_KAFKA_VTYPE_MSGFLAGS, .u.i = RD_KAFKA_MSG_F_COPY},
                            {.vtype = RD_KAFKA_VTYPE_TIMESTAMP, .u.i64 = record_timestamp_ms},
                            {.vtype = RD_KAFKA_VTYPE_HEADERS, .u.headers = headers}};

    assert_null(rd_kafka_produceva(producer, args, headers ? 7 : 6));
    assert_int_equal(rd_kafka_flush(producer, 10000), 0);
    while (!message && clock_mono_us() < until) {
        message = rd_kafka_consumer_poll(k.consumer, 100);
        if (message && message->err) {
            rd_kafka_message_destroy(message);
            message = NULL;
        }
    }
    assert_non_null(message);
    return message;
}

static enum admission_status admit(const void *payload, size_t size, rd_kafka_headers_t *headers,
                                   const struct assignment_admission *answer)
{
    rd_kafka_message_t *message = through_kafka(payload, size, headers);
    enum admission_status status = admission_run(admission, message, answer);

    rd_kafka_message_destroy(message);
    return status;
}

static enum admission_status admit_request(const char *job_id, rd_kafka_headers_t *headers,
                                           const struct assignment_admission *answer)
{
    struct generation_request request;
    struct buffer buffer = {0};
    enum admission_status status;

    generation_request_init(&request);
    request.job_id = (struct text){job_id, strlen(job_id)};
    request.prompt = (struct text){"Hello.", 6};
    assert_int_equal(codec_encode(codec, RECORD_GENERATION_REQUEST, &request, &buffer, &error), 0);
    status = admit(buffer.data, buffer.size, headers, answer);
    buffer_free(&buffer);
    return status;
}

static rd_kafka_headers_t *header(const char *name, const char *value)
{
    rd_kafka_headers_t *headers = rd_kafka_headers_new(1);

    assert_int_equal(rd_kafka_header_add(headers, name, -1, value, -1), 0);
    return headers;
}

/* ---- where jobs go ---- */

static void a_good_request_goes_to_prepare(void **state)
{
    rd_kafka_headers_t *headers = header("traceparent", "00-first");
    struct job *job;

    (void)state;
    rd_kafka_header_add(headers, "traceparent", -1, "00-last", -1);
    rd_kafka_header_add(headers, "tracestate", -1, "v=1", -1);
    assert_int_equal(admit_request(ID, headers, &first), ADMISSION_OK);
    assert_int_equal(prepared.count, 1);
    job = prepared.head;
    assert_string_equal(job->job_id, ID);
    assert_true(job->has_id);
    assert_int_equal(job->attempt, 1);
    assert_int_equal(job->epoch, 1);
    assert_int_equal(job->outcome, JOB_OPEN);
    assert_int_equal(looked_at, job->accepted_mono_us); /* cancels sent before it are looked for */
    assert_string_equal(job->request.prompt.data, "Hello.");
    assert_string_equal(job->traceparent.data, "00-last");
    assert_string_equal(job->tracestate.data, "v=1");
    assert_string_equal(job->log.job_id, ID);
    assert_true(job->record_timestamp_us > 1600000000000000); /* the record's, not 0 */
    assert_true(job->accepted_at_us >= job->record_timestamp_us);
    assert_int_equal(job->original_key.size, 3);
}

/* A sender may write any 64 bits as a record's timestamp. */
static void a_timestamp_that_means_nothing_is_the_time_of_reading(void **state)
{
    static const int64_t nothing[] = {-2, INT64_MIN + 1, INT64_MAX / 1000 + 1, INT64_MAX};
    static const int64_t something[] = {1, INT64_MAX / 1000};
    struct job *job;

    (void)state;
    for (int i = 0; i < 6; i++) {
        char id[37];

        snprintf(id, sizeof id, "00000000-0000-4000-8000-0000000001%02d", i);
        record_timestamp_ms = i < 4 ? nothing[i] : something[i - 4];
        assert_int_equal(admit_request(id, NULL, &first), ADMISSION_OK);
        job = job_list_pop(&prepared);
        assert_int_equal(job->record_timestamp_us,
                         i < 4 ? job->accepted_at_us : something[i - 4] * 1000);
        job_finish(job, JOB_COMPLETED, NULL, NULL, job->accepted_at_us + 1);
        assert_in_range(job->result.timings.queue_us, 0, job->accepted_at_us + 1);
        assert_in_range(job->result.timings.total_us, 0, job->accepted_at_us + 1);
        job_destroy(job);
    }
    record_timestamp_ms = 0;
}

static void long_trace_headers_are_dropped(void **state)
{
    static char longest[4097], longer[4098];

    (void)state;
    memset(longest, 'x', 4096);
    memset(longer, 'x', 4097);
    assert_int_equal(admit_request(ID, header("traceparent", longest), &first), ADMISSION_OK);
    assert_int_equal(prepared.head->traceparent.size, 4096);
    assert_int_equal(admit_request("00000000-0000-4000-8000-000000000002",
                                   header("traceparent", longer), &first),
                     ADMISSION_OK);
    assert_int_equal(prepared.head->next->traceparent.size, 0);
}

static void dead_letter_is(const char *class, const void *payload, size_t size)
{
    struct job *job = job_list_pop(&settled);

    assert_non_null(job);
    assert_int_equal(job->outcome, JOB_DEAD_LETTER);
    assert_string_equal(job->dead_letter.error_class, class);
    assert_true(strlen(job->dead_letter.error_message) > 0);
    assert_int_equal(job->original.size, size);
    if (size)
        assert_memory_equal(job->original.data, payload, size);
    assert_false(job->has_id);
    assert_int_equal(prepared.count, 0);
    job_destroy(job);
}

static void bytes_that_nobody_can_decode_are_dead_letters(void **state)
{
    static const char junk[] = "\x00junk\xff that is no record";
    struct buffer buffer = {0};
    struct generation_request request;

    (void)state;
    assert_int_equal(admit(junk, sizeof junk, NULL, &first), ADMISSION_OK);
    dead_letter_is("undecodable", junk, sizeof junk);
    assert_int_equal(admit("", 0, NULL, &first), ADMISSION_OK);
    dead_letter_is("undecodable", "", 0);
    assert_int_equal(admit(NULL, 0, NULL, &first), ADMISSION_OK); /* no value at all */
    dead_letter_is("undecodable", NULL, 0);
    generation_request_init(&request);
    request.job_id = (struct text){ID, 36};
    assert_int_equal(codec_encode(codec, RECORD_GENERATION_REQUEST, &request, &buffer, &error), 0);
    for (size_t cut = 0; cut < buffer.size; cut += 7) {
        assert_int_equal(admit(buffer.data, cut, NULL, &first), ADMISSION_OK);
        dead_letter_is("undecodable", buffer.data, cut);
    }
    buffer_free(&buffer);
}

/* Decodable, though of no use: prepare will say what is wrong with it. */
static void a_request_that_decodes_into_much_is_no_dead_letter(void **state)
{
    enum { STOPS = 500000 };
    struct generation_request request;
    struct buffer buffer = {0};
    struct text *stops = calloc(STOPS, sizeof *stops);

    (void)state;
    assert_non_null(stops);
    for (int i = 0; i < STOPS; i++)
        stops[i] = (struct text){"", 0};
    generation_request_init(&request);
    request.job_id = (struct text){ID, 36};
    request.stop = stops;
    request.stop_count = STOPS;
    assert_int_equal(codec_encode(codec, RECORD_GENERATION_REQUEST, &request, &buffer, &error), 0);
    assert_int_equal(admit(buffer.data, buffer.size, NULL, &first), ADMISSION_OK);
    assert_int_equal(settled.count, 0);
    assert_int_equal(prepared.count, 1);
    assert_int_equal(prepared.head->request.stop_count, STOPS);
    buffer_free(&buffer);
    free(stops);
}

/* Avro C's memory, of which there may be no large piece. */
static bool memory_out;

static void *avro_memory(void *user, void *old, size_t old_size, size_t size)
{
    (void)user;
    (void)old_size;
    if (size)
        return memory_out && size > 65536 ? NULL : realloc(old, size);
    free(old);
    return NULL;
}

static void comes_again_and_is_read(const struct buffer *buffer, enum admission_status status)
{
    assert_int_equal(status, ADMISSION_RETRY);
    assert_int_equal(settled.count + prepared.count, 0);
    assert_int_equal(job_alive(), 0);
    assert_int_equal(admit(buffer->data, buffer->size, NULL, &first), ADMISSION_OK);
    assert_int_equal(prepared.count, 1);
}

/* Nothing is wrong with the record: it must come again, not go to the dead letters. */
static void a_record_without_memory_comes_again(void **state)
{
    static struct text
        stops[2000]; /* a byte there, 32 here: they take more than is made at first */
    struct generation_request request;
    struct buffer buffer = {0};
    enum admission_status status;

    (void)state;
    for (size_t i = 0; i < 2000; i++)
        stops[i] = (struct text){"", 0};
    generation_request_init(&request);
    request.job_id = (struct text){ID, 36};
    request.prompt = (struct text){"x", 1};
    request.stop = stops;
    request.stop_count = 2000;
    assert_int_equal(codec_encode(codec, RECORD_GENERATION_REQUEST, &request, &buffer, &error), 0);
    for (int at = 1; at <= 2; at++) { /* the job, the list */
        failing_set("memory", at, 1);
        status = admit(buffer.data, buffer.size, NULL, &first);
        assert_int_equal(failing_clear(), 1);
        comes_again_and_is_read(&buffer, status);
        fixture_jobs_destroy(&prepared);
        kafka_fixture_take(&k, 0);
    }
    buffer_free(&buffer);
}

static void a_record_of_another_schema_without_memory_comes_again(void **state)
{
    static char prompt[100001]; /* texts have a byte behind them */
    struct generation_request request;
    struct buffer buffer = {0};
    enum admission_status status;

    (void)state;
    memset(prompt, 'x', sizeof prompt - 1);
    generation_request_init(&request);
    request.job_id = (struct text){ID, 36};
    request.prompt = (struct text){prompt, sizeof prompt - 1};
    assert_int_equal(codec_encode(codec, RECORD_GENERATION_REQUEST, &request, &buffer, &error), 0);
    framing_write_single_object(buffer.data, twins.fingerprints[RECORD_GENERATION_REQUEST]);
    memory_out = true;
    status = admit(buffer.data, buffer.size, NULL, &first);
    memory_out = false;
    comes_again_and_is_read(&buffer, status);
    buffer_free(&buffer);
}

static void an_id_that_is_no_uuid_is_a_dead_letter(void **state)
{
    static const char *const ids[] = {"", "7", "00000000-0000-4000-8000-00000000000",
                                      "00000000-0000-4000-8000-0000000000011",
                                      "00000000x0000-4000-8000-000000000001"};

    (void)state;
    for (int i = 0; i < 5; i++) {
        struct job *job;

        assert_int_equal(admit_request(ids[i], NULL, &first), ADMISSION_OK);
        job = job_list_pop(&settled);
        assert_non_null(job);
        assert_string_equal(job->dead_letter.error_class, "no_job_id");
        job_destroy(job);
    }
    assert_int_equal(prepared.count, 0);
}

static void a_retry_is_a_duplicate(void **state)
{
    (void)state;
    assert_int_equal(admit_request(ID, NULL, &first), ADMISSION_OK);
    assert_int_equal(admit_request(ID, NULL, &first), ADMISSION_OK);
    assert_int_equal(prepared.count, 1);
    assert_int_equal(settled.count, 1);
    assert_int_equal(settled.head->outcome, JOB_DUPLICATE);
}

/* ---- attempts, replays, poison ---- */

static void a_replay_is_no_duplicate_and_counts_on(void **state)
{
    static const struct assignment_admission after_two = {
        .answer = LEDGER_ADMIT, .epoch = 1, .attempt = 3};

    (void)state;
    assert_int_equal(admit_request(ID, NULL, &first), ADMISSION_OK);
    assert_int_equal(admit_request(ID, header("dlq.attempt", "4"), &first), ADMISSION_OK);
    assert_int_equal(admit_request(ID, header("dlq.attempt", "4"), &after_two), ADMISSION_OK);
    assert_int_equal(prepared.count, 3);
    assert_false(prepared.head->replayed);
    assert_true(prepared.head->next->replayed);
    assert_int_equal(prepared.head->next->attempt, 5);
    assert_int_equal(prepared.head->next->next->attempt, 7); /* its own two deaths on top */
}

/* A retry by the upstream, while a replay of a job that nobody remembers runs, is a duplicate. */
static void a_replay_stands_in_the_window(void **state)
{
    (void)state;
    assert_int_equal(admit_request(ID, header("dlq.attempt", "3"), &first), ADMISSION_OK);
    assert_int_equal(admit_request(ID, NULL, &first), ADMISSION_OK);
    assert_int_equal(prepared.count, 1);
    assert_int_equal(settled.head->outcome, JOB_DUPLICATE);
}

static void a_replay_header_that_is_no_number_is_ignored(void **state)
{
    static const char *const values[] = {
        "", "x", "-1", "3x", "99999999999", "2147483647", "123456789012345678"};

    (void)state;
    assert_int_equal(admit_request(ID, NULL, &first), ADMISSION_OK);
    for (int i = 0; i < 7; i++)
        assert_int_equal(admit_request(ID, header("dlq.attempt", values[i]), &first), ADMISSION_OK);
    assert_int_equal(prepared.count, 1);
    assert_int_equal(settled.count, 7); /* duplicates, all of them */
}

static void poison_is_answered_and_dead_lettered(void **state)
{
    static const struct assignment_admission poison = {
        .answer = LEDGER_ADMIT, .epoch = 1, .attempt = 6, .runs = LEDGER_SINGLE, .poison = true};

    (void)state;
    assert_int_equal(admit_request(ID, NULL, &poison), ADMISSION_OK);
    assert_int_equal(prepared.count, 0);
    assert_int_equal(settled.head->outcome, JOB_POISON);
    assert_string_equal(settled.head->dead_letter.error_class, "poison");
    assert_string_equal(settled.head->result.status, "failed");
    assert_string_equal(settled.head->result.error.error_class.data, "poison");
    assert_int_equal(settled.head->result.attempt, 6);
}

/* It kills even its decoder: then nobody decodes it. */
static void unreadable_poison_is_not_decoded(void **state)
{
    static const struct assignment_admission poison = {.answer = LEDGER_ADMIT,
                                                       .attempt = 9,
                                                       .runs = LEDGER_SINGLE,
                                                       .poison = true,
                                                       .unreadable = true};

    (void)state;
    assert_int_equal(admit_request(ID, NULL, &poison), ADMISSION_OK);
    assert_int_equal(settled.head->outcome, JOB_DEAD_LETTER);
    assert_string_equal(settled.head->dead_letter.error_class, "poison");
    assert_false(settled.head->has_id);
    assert_int_equal(settled.head->request.prompt.size, 0);
}

/* ---- the limit ---- */

static void too_many_dead_letters_stop_the_intake(void **state)
{
    rd_kafka_message_t *message = through_kafka("junk", 4, NULL);
    static const struct assignment_admission poison = {
        .answer = LEDGER_ADMIT, .poison = true, .unreadable = true};

    (void)state;
    for (int i = 0; i < 500; i++) /* poison does not count */
        assert_int_equal(admission_run(admission, message, &poison), ADMISSION_OK);
    for (int i = 0; i < 199; i++)
        assert_int_equal(admission_run(admission, message, &first), ADMISSION_OK);
    assert_int_equal(admission_run(admission, message, &first), ADMISSION_LIMIT);
    assert_int_equal(settled.count, 700); /* each of them is dead-lettered all the same */
    rd_kafka_message_destroy(message);
}

/* ---- bounds ---- */

static void full_by_jobs_or_by_bytes_until_it_has_fallen_a_good_deal(void **state)
{
    struct config config = {.queue_max_jobs = 4, .queue_max_mb = 1, .queue_resume_ratio = 0.5};
    struct job *jobs[4];

    (void)state;
    for (int i = 0; i < 4; i++) {
        assert_false(admission_is_full(&config, false));
        jobs[i] = job_create(100);
    }
    assert_true(admission_is_full(&config, false));
    job_destroy(jobs[3]);
    assert_false(admission_is_full(&config, false)); /* below the bound ... */
    assert_true(admission_is_full(&config, true));   /* ... but not yet far enough */
    job_destroy(jobs[2]);
    assert_false(admission_is_full(&config, true));
    /* The same with bytes, as they grow. */
    assert_non_null(arena_alloc(jobs[0]->arena, 600 << 10));
    assert_false(admission_is_full(&config, false)); /* not charged yet */
    job_charge(jobs[0]);
    assert_true(job_bytes() > 600 << 10);
    assert_false(admission_is_full(&config, false));
    assert_true(admission_is_full(&config, true));
    assert_non_null(arena_alloc(jobs[1]->arena, 600 << 10));
    job_charge(jobs[1]);
    assert_true(admission_is_full(&config, false));
    job_destroy(jobs[0]);
    assert_false(admission_is_full(&config, false));
    job_destroy(jobs[1]);
    assert_false(admission_is_full(&config, true));
    assert_int_equal(job_bytes(), 0);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(a_good_request_goes_to_prepare),
        TEST(a_timestamp_that_means_nothing_is_the_time_of_reading),
        TEST(long_trace_headers_are_dropped),
        TEST(bytes_that_nobody_can_decode_are_dead_letters),
        TEST(a_request_that_decodes_into_much_is_no_dead_letter),
        TEST(a_record_without_memory_comes_again),
        TEST(a_record_of_another_schema_without_memory_comes_again),
        TEST(an_id_that_is_no_uuid_is_a_dead_letter),
        TEST(a_retry_is_a_duplicate),
        TEST(a_replay_is_no_duplicate_and_counts_on),
        TEST(a_replay_stands_in_the_window),
        TEST(a_replay_header_that_is_no_number_is_ignored),
        TEST(poison_is_answered_and_dead_lettered),
        TEST(unreadable_poison_is_not_decoded),
        TEST(too_many_dead_letters_stop_the_intake),
        TEST(full_by_jobs_or_by_bytes_until_it_has_fallen_a_good_deal),
    };

    avro_set_allocator(avro_memory, NULL);
    return cmocka_run_group_tests(tests, group_setup, group_teardown);
}
