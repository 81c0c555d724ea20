/* SPDX-License-Identifier: MIT
 * Log lines: one event a line, JSON that parses, whatever is in the texts. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <unistd.h>
#include <cmocka.h>

#include <jansson.h>

#include "tests/unit/worker_fixture.h"
#include "worker/log.h"

static char line[16384];
static int saved = -1, channel[2];

/* stderr goes into a pipe from here to captured(). */
static void capture(void)
{
    assert_int_equal(pipe(channel), 0);
    saved = dup(STDERR_FILENO);
    dup2(channel[1], STDERR_FILENO);
}

static size_t captured(void)
{
    ssize_t size;

    dup2(saved, STDERR_FILENO);
    close(saved);
    close(channel[1]);
    size = read(channel[0], line, sizeof line - 1);
    close(channel[0]);
    assert_true(size >= 0);
    line[size] = '\0';
    return (size_t)size;
}

static const char *json_of(const char *key)
{
    static char text[8192];
    json_error_t problem;
    json_t *object = json_loads(line, 0, &problem);

    if (!object)
        fail_msg("%s: %s", problem.text, line);
    snprintf(text, sizeof text, "%s",
             json_string_value(json_object_get(object, key))
                 ? json_string_value(json_object_get(object, key))
                 : "(none)");
    json_decref(object);
    return text;
}

static void one_line(void)
{
    assert_ptr_equal(strchr(line, '\n'), line + strlen(line) - 1);
}

static void logfmt_has_its_fields(void **state)
{
    struct log_context where = {"job-1", "00-ab", 3, 77};

    (void)state;
    log_configure(LOG_INFO, LOG_LOGFMT, "w \"1\"");
    capture();
    log_write(LOG_WARN, "settle", &where, "a \"quoted\" %d\nsecond", 5);
    captured();
    one_line();
    assert_non_null(strstr(line, " level=\"warn\" worker=\"w \\\"1\\\"\" component=\"settle\""));
    assert_non_null(strstr(line, " message=\"a \\\"quoted\\\" 5\\nsecond\""));
    assert_non_null(strstr(line, " partition=3 offset=77"));
    assert_non_null(strstr(line, " job_id=\"job-1\" traceparent=\"00-ab\"\n"));
    assert_int_equal(strncmp(line, "time=\"20", 8), 0);
}

static void what_is_not_known_is_left_out(void **state)
{
    struct log_context nothing = {"", NULL, -1, 5};

    (void)state;
    log_configure(LOG_INFO, LOG_JSON, "w");
    capture();
    log_write(LOG_INFO, "a", &nothing, "m");
    captured();
    assert_string_equal(json_of("message"), "m");
    assert_string_equal(json_of("job_id"), "(none)");
    assert_null(strstr(line, "offset"));
}

static void less_severe_lines_are_not_written(void **state)
{
    (void)state;
    log_configure(LOG_WARN, LOG_LOGFMT, "w");
    assert_false(log_enabled(LOG_INFO));
    assert_true(log_enabled(LOG_ERROR));
    capture();
    log_write(LOG_INFO, "a", NULL, "not this");
    log_write(LOG_ERROR, "a", NULL, "but this");
    captured();
    assert_null(strstr(line, "not this"));
    assert_non_null(strstr(line, "but this"));
}

/* Every byte comes back or is replaced, and the line parses. */
static void every_byte_makes_valid_json(void **state)
{
    char text[260];

    (void)state;
    for (int i = 0; i < 255; i++)
        text[i] = (char)(i + 1);
    text[255] = '\0';
    log_configure(LOG_INFO, LOG_JSON, "w");
    capture();
    log_write(LOG_INFO, "a", NULL, "%s", text);
    captured();
    one_line();
    assert_memory_equal(json_of("message"), text, 127); /* ASCII, escaped and back */
    capture();
    log_write(LOG_INFO, "a", NULL, "%s", "Привет, 世界 \xF0\x9F\x98\x80");
    captured();
    assert_string_equal(json_of("message"), "Привет, 世界 \xF0\x9F\x98\x80");
    capture();
    log_write(LOG_INFO, "a", NULL, "a\xC3(\xED\xA0\x80");
    captured();
    assert_string_equal(json_of("message"), "a\xEF\xBF\xBD(\xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBD");
}

/* A text that fills the line is cut; its neighbours stay. */
static void long_texts_leave_room_for_the_context(void **state)
{
    static char message[8000], trace[4097];
    struct log_context where = {"01234567-89ab-cdef-0123-456789abcdef", trace, 3, 77};

    (void)state;
    fixture_seed(8);
    log_configure(LOG_INFO, LOG_JSON, "w");
    for (int round = 0; round < 300; round++) {
        static const char *const pieces[] = {"\x01", "\"", "я", "x", "\xFF", "\\"};
        const char *piece = pieces[round % 6];

        message[0] = trace[0] = '\0';
        for (size_t i = fixture_random(1000); i > 0; i--)
            strcat(message, pieces[fixture_random(6)]);
        while (strlen(message) < sizeof message - 8)
            strcat(message, piece);
        while (strlen(trace) < sizeof trace - 8)
            strcat(trace, piece);
        capture();
        log_write(LOG_INFO, "a", &where, "%s", message);
        assert_true(captured() <= 4096);
        one_line();
        assert_string_equal(json_of("job_id"), where.job_id);
        assert_true(strlen(json_of("message")) > 200);
        assert_non_null(strstr(line, ",\"partition\":3,\"offset\":77,"));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(logfmt_has_its_fields),
        cmocka_unit_test(what_is_not_known_is_left_out),
        cmocka_unit_test(less_severe_lines_are_not_written),
        cmocka_unit_test(every_byte_makes_valid_json),
        cmocka_unit_test(long_texts_leave_room_for_the_context),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
