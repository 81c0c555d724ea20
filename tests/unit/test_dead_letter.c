/* SPDX-License-Identifier: MIT
 * Dead letters: the headers that say why, the cut at the limit, the window that stops the intake.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "tests/unit/worker_fixture.h"
#include "worker/dead_letter.h"

static char topic[] = "pgpt.requests", worker[] = "worker-1";
static struct config config = {.topic_requests = topic, .worker_name = worker};

static struct job *letter(const char *payload, size_t size)
{
    struct job *job = fixture_job(3, 77, 1, 1);

    job->attempt = 4;
    job->original = (struct text){payload, size};
    job->dead_letter.error_class = "undecodable";
    snprintf(job->dead_letter.error_message, sizeof job->dead_letter.error_message, "the reason");
    return job;
}

/* The header's value, or NULL when there is none. */
static const char *header(const rd_kafka_headers_t *headers, const char *name)
{
    static char text[8192];
    const void *value;
    size_t size;

    if (rd_kafka_header_get_last(headers, name, &value, &size))
        return NULL;
    snprintf(text, sizeof text, "%.*s", (int)size, (const char *)value);
    return text;
}

static void headers_say_where_and_why(void **state)
{
    struct job *job = letter("payload", 7);
    rd_kafka_headers_t *h;

    (void)state;
    h = dead_letter_headers(&config, job, DEAD_LETTER_RECORD_MAX, 123456789);
    assert_non_null(h);
    assert_string_equal(header(h, "dlq.topic"), "pgpt.requests");
    assert_string_equal(header(h, "dlq.partition"), "3");
    assert_string_equal(header(h, "dlq.offset"), "77");
    assert_string_equal(header(h, "dlq.attempt"), "4");
    assert_string_equal(header(h, "dlq.error_class"), "undecodable");
    assert_string_equal(header(h, "dlq.error_message"), "the reason");
    assert_string_equal(header(h, "dlq.worker"), "worker-1");
    assert_string_equal(header(h, "dlq.at_us"), "123456789");
    assert_null(header(h, "dlq.sha256")); /* it is whole */
    assert_null(header(h, "traceparent"));
    assert_int_equal(rd_kafka_header_cnt(h), 8);
    rd_kafka_headers_destroy(h);
    job->traceparent = (struct text){"00-trace-parent", 15};
    job->tracestate = (struct text){"vendor=1", 8};
    h = dead_letter_headers(&config, job, DEAD_LETTER_RECORD_MAX, 1);
    assert_string_equal(header(h, "traceparent"), "00-trace-parent");
    assert_string_equal(header(h, "tracestate"), "vendor=1");
    rd_kafka_headers_destroy(h);
    job_destroy(job);
}

/* sha256 of 2,000,000 times 'a', from another implementation. */
static const char two_million_a[] =
    "bcf7f9d1b4311c3352e60502255ce09a6744df84e8f2c89f79c4b5d74933a95a";

static void what_does_not_fit_is_cut(void **state)
{
    enum { SIZE = 2000000 };
    char *payload = malloc(SIZE);
    struct job *job;
    rd_kafka_headers_t *h;
    size_t fits;

    (void)state;
    memset(payload, 'a', SIZE);
    job = letter(payload, SIZE);
    fits = dead_letter_payload(&config, job, DEAD_LETTER_RECORD_MAX);
    assert_true(fits < DEAD_LETTER_RECORD_MAX && fits > DEAD_LETTER_RECORD_MAX - 10000);
    h = dead_letter_headers(&config, job, DEAD_LETTER_RECORD_MAX, 1);
    assert_string_equal(header(h, "dlq.sha256"), two_million_a); /* of the whole payload */
    rd_kafka_headers_destroy(h);
    job->original.size = fits; /* exactly what fits is not cut, one byte more is */
    assert_int_equal(dead_letter_payload(&config, job, DEAD_LETTER_RECORD_MAX), fits);
    h = dead_letter_headers(&config, job, DEAD_LETTER_RECORD_MAX, 1);
    assert_null(header(h, "dlq.sha256"));
    rd_kafka_headers_destroy(h);
    job->original.size = fits + 1;
    assert_int_equal(dead_letter_payload(&config, job, DEAD_LETTER_RECORD_MAX), fits);
    h = dead_letter_headers(&config, job, DEAD_LETTER_RECORD_MAX, 1);
    assert_non_null(header(h, "dlq.sha256"));
    rd_kafka_headers_destroy(h);
    job_destroy(job);
    free(payload);
}

/* Whatever the rest takes, payload and all else stay below the limit. */
static void the_whole_record_fits(void **state)
{
    char *big = calloc(1, DEAD_LETTER_RECORD_MAX * 2);
    struct job *job = letter(big, DEAD_LETTER_RECORD_MAX);

    (void)state;
    for (size_t key = 0; key <= 1 << 20; key += 1 << 18) {
        job->original_key = (struct text){big, key};
        job->traceparent = job->tracestate = (struct text){big, 4096};
        size_t payload = dead_letter_payload(&config, job, DEAD_LETTER_RECORD_MAX);

        assert_true(payload + key + 2 * 4096 + 512 < DEAD_LETTER_RECORD_MAX);
    }
    job->original_key = (struct text){big, DEAD_LETTER_RECORD_MAX};
    assert_int_equal(dead_letter_payload(&config, job, DEAD_LETTER_RECORD_MAX), 0);
    job_destroy(job);
    free(big);
}

static bool add_many(struct dead_letter_limit *limit, int count, bool dead)
{
    bool over = false;

    for (int i = 0; i < count; i++)
        over = dead_letter_limit_add(limit, dead, 0.2);
    return over;
}

static void the_limit_needs_200_records(void **state)
{
    struct dead_letter_limit limit = {0};

    (void)state;
    for (int i = 0; i < DEAD_LETTER_WINDOW_MIN - 1; i++)
        assert_false(dead_letter_limit_add(&limit, true, 0.2));
    assert_true(dead_letter_limit_add(&limit, true, 0.2));
}

static void exactly_a_fifth_is_allowed(void **state)
{
    struct dead_letter_limit limit = {0};

    (void)state;
    assert_false(add_many(&limit, 160, false));
    assert_false(add_many(&limit, 40, true)); /* 40 of 200 */
    assert_true(add_many(&limit, 1, true));   /* 41 of 201 */
}

static void only_the_last_thousand_count(void **state)
{
    struct dead_letter_limit limit = {0};

    (void)state;
    assert_false(add_many(&limit, 5000, false));
    assert_false(add_many(&limit, 200, true)); /* 200 of the last 1000 */
    assert_true(add_many(&limit, 1, true));
    assert_true(add_many(&limit, 799, false)); /* the 201 are still among them */
    assert_false(add_many(&limit, 1, false));  /* the first of them has left */
    assert_false(add_many(&limit, 1000, false));
    assert_int_equal(limit.count, 0);
    assert_int_equal(limit.seen, DEAD_LETTER_WINDOW);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(headers_say_where_and_why),
        cmocka_unit_test(what_does_not_fit_is_cut),
        cmocka_unit_test(the_whole_record_fits),
        cmocka_unit_test(the_limit_needs_200_records),
        cmocka_unit_test(exactly_a_fifth_is_allowed),
        cmocka_unit_test(only_the_last_thousand_count),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
