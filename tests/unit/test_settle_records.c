/* SPDX-License-Identifier: MIT
 *
 * What settle publishes for each outcome, and what becomes of records that no topic takes. How its
 * transactions go is in test_settle.c.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "tests/unit/worker_fixture.h"

#include "schema/codec.h"
#include "tests/unit/kafka_fixture.h"
#include "tests/unit/settle_fixture.h"
#include "worker/dead_letter.h"

/* The record's value into *out, whose texts lie in the arena that is returned. */
static struct arena *decoded(const rd_kafka_message_t *record, enum record_type type, void *out)
{
    struct codec *codec = codec_open(NULL, &error);
    struct arena *arena = arena_create(4096, 1 << 20);

    assert_int_equal(codec_decode(codec, type, record->payload, record->len, arena, out, &error),
                     CODEC_OK);
    codec_close(codec);
    return arena;
}

/* ---- what is published ---- */

static void see_index(const rd_kafka_message_t *record, void *user)
{
    struct job_index index;
    struct arena *arena = decoded(record, RECORD_JOB_INDEX, &index);
    uint8_t id[16];

    for (size_t i = 0; i < index.job_count; i++) {
        fixture_id((uint64_t)index.jobs[i].source_offset, id);
        assert_memory_equal(index.jobs[i].id, id, 16);
        *(uint64_t *)user |= (uint64_t)1 << index.jobs[i].source_offset;
    }
    arena_destroy(arena);
}

static void header_is(const rd_kafka_message_t *record, const char *name, const char *wanted)
{
    rd_kafka_headers_t *headers;
    const void *value;
    size_t size;

    assert_int_equal(rd_kafka_message_headers(record, &headers), 0);
    if (rd_kafka_header_get_last(headers, name, &value, &size))
        fail_msg("no header %s", name);
    assert_int_equal(size, strlen(wanted));
    assert_memory_equal(value, wanted, size);
}

static void see_dead_letter(const rd_kafka_message_t *record, void *user)
{
    (void)user;
    header_is(record, "dlq.topic", "pgpt.requests");
    header_is(record, "dlq.partition", "0");
    header_is(record, "dlq.worker", "worker-1");
    assert_int_equal(record->len, 4);
    assert_memory_equal(record->payload, "\0ab\xff", 4); /* untouched */
    assert_int_equal(record->key_len, 3);
}

static void see_result(const rd_kafka_message_t *record, void *user)
{
    (void)user;
    header_is(record, "traceparent", "00-trace");
    assert_int_equal(record->key_len, 36);
}

static void each_outcome_leaves_its_records(void **state)
{
    static const enum job_outcome outcomes[] = {JOB_COMPLETED, JOB_FAILED, JOB_CANCELLED,
                                                JOB_EXPIRED,   JOB_POISON, JOB_DEAD_LETTER,
                                                JOB_DUPLICATE};
    uint64_t indexed = 0;

    (void)state;
    for (int i = 0; i < 7; i++) {
        struct job *job = outcome_of(0, i, outcomes[i]);

        job->traceparent = (struct text){"00-trace", 8};
        job->original = (struct text){"\0ab\xff", 4};
        job->original_key = (struct text){"key", 3};
        job->dead_letter.error_class = "why";
        settle_push(settle, job);
    }
    assert_true(settles_within(10000));
    assert_int_equal(kafka_fixture_read(&k, k.config->topic_results, 0, see_result, NULL), 5);
    assert_int_equal(kafka_fixture_read(&k, k.config->topic_events, 0, NULL, NULL), 5);
    assert_int_equal(kafka_fixture_read(&k, k.config->topic_dlq, 0, see_dead_letter, NULL), 2);
    kafka_fixture_read(&k, k.config->topic_index, 0, see_index, &indexed);
    assert_int_equal(indexed, 0x3f); /* all but the duplicate */
    for (int i = 0; i < 7; i++)
        assert_int_equal(kafka_fixture_ask(&k, 0, i), LEDGER_DONE);
    assert_int_equal(grown(METRIC_JOBS_POISON), 1);
    assert_int_equal(grown(METRIC_JOBS_DUPLICATE), 1);
    assert_int_equal(grown(METRIC_TRANSACTIONS_ABORTED), 0);
}

/* ---- sizes ---- */

static struct text big_text(struct job *job, size_t size)
{
    char *data = arena_alloc(job->arena, size + 1);

    assert_non_null(data);
    memset(data, 'x', size);
    data[size] = '\0';
    return (struct text){data, size};
}

static struct job *big_dead_letter(int64_t offset)
{
    struct job *job = outcome_of(0, offset, JOB_DEAD_LETTER);

    job->original = big_text(job, 1 << 20); /* a request of the greatest size */
    job->dead_letter.error_class = "undecodable";
    return job;
}

struct seen {
    size_t bytes;
    bool cut;
};

static void see_size(const rd_kafka_message_t *record, void *user)
{
    struct seen *seen = user;
    rd_kafka_headers_t *headers;
    const void *value;
    size_t size;

    assert_int_equal(rd_kafka_message_headers(record, &headers), 0);
    seen->cut = !rd_kafka_header_get_last(headers, "dlq.sha256", &value, &size);
    seen->bytes = record->len;
}

static void the_largest_request_fits_the_dlq(void **state)
{
    struct seen seen = {0, false};

    (void)state;
    settle_push(settle, big_dead_letter(0));
    assert_true(settles_within(10000));
    assert_int_equal(kafka_fixture_read(&k, k.config->topic_dlq, 0, see_size, &seen), 1);
    assert_int_equal(seen.bytes, 1 << 20);
    assert_false(seen.cut);
}

static void a_refused_dead_letter_is_cut(void **state)
{
    struct seen seen = {0, false};

    (void)state;
    rd_kafka_mock_partition_push_request_errors(k.cluster, k.config->topic_dlq, 0, API_PRODUCE, 1,
                                                RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE);
    settle_push(settle, big_dead_letter(0));
    assert_true(settles_within(15000));
    assert_true(grown(METRIC_TRANSACTIONS_ABORTED) >= 1);
    assert_int_equal(kafka_fixture_read(&k, k.config->topic_dlq, 0, see_size, &seen), 1);
    assert_true(seen.cut);
    assert_true(seen.bytes > 500000 && seen.bytes < DEAD_LETTER_RECORD_MAX / 2);
}

static void a_result_that_no_topic_takes_is_a_failure(void **state)
{
    struct job *job = outcome_of(0, 0, JOB_COMPLETED);
    struct generation_sequence sequence = {.finish_reason = "eos"};

    (void)state;
    sequence.text = big_text(job, (1 << 20) - 500);
    job->result.sequences = &sequence;
    job->result.sequence_count = 1;
    settle_push(settle, job);
    assert_true(settles_within(10000));
    assert_int_equal(grown(METRIC_JOBS_FAILED), 1);
    assert_int_equal(grown(METRIC_TRANSACTIONS_ABORTED), 0);
    assert_int_equal(results(0), 1);
}

static void see_failure(const rd_kafka_message_t *record, void *user)
{
    struct generation_result result;
    struct arena *arena = decoded(record, RECORD_GENERATION_RESULT, &result);

    (void)user;
    assert_string_equal(result.error.error_class.data, "invalid");
    assert_string_equal(result.error.message.data, "because");
    assert_int_equal(result.metadata_count, 0);
    arena_destroy(arena);
}

static void see_tenant(const rd_kafka_message_t *record, void *user)
{
    struct job_event event;
    struct arena *arena = decoded(record, RECORD_JOB_EVENT, &event);

    (void)user;
    assert_int_equal(event.tenant.size, 64);
    arena_destroy(arena);
}

/* Texts of any length may be in a request that is refused, more so in a compressed one. */
static void an_invalid_request_of_any_size_gets_its_result(void **state)
{
    struct job *job = outcome_of(0, 0, JOB_FAILED);
    struct text_pair pair;

    (void)state;
    job->request.tenant = big_text(job, 2 << 20);
    pair = (struct text_pair){{"key", 3}, big_text(job, 2 << 20)};
    job->result.metadata = &pair;
    job->result.metadata_count = 1;
    settle_push(settle, job);
    assert_true(settles_within(10000));
    assert_int_equal(grown(METRIC_JOBS_FAILED), 1);
    assert_int_equal(grown(METRIC_TRANSACTIONS_ABORTED), 0);
    assert_int_equal(kafka_fixture_read(&k, k.config->topic_results, 0, see_failure, NULL), 1);
    assert_int_equal(kafka_fixture_read(&k, k.config->topic_events, 0, see_tenant, NULL), 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(each_outcome_leaves_its_records),
        TEST(the_largest_request_fits_the_dlq),
        TEST(a_refused_dead_letter_is_cut),
        TEST(a_result_that_no_topic_takes_is_a_failure),
        TEST(an_invalid_request_of_any_size_gets_its_result),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
