/* SPDX-License-Identifier: MIT */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdio.h>
#include <string.h>

#include "producer/options.h"
#include "producer/request_options.h"
#include "producer/topic_admin.h"

static bool flag, given;
static int32_t number;
static int64_t large, duration;
static double real;
static const char *text;
static struct option_list list;
static struct option_positionals positionals;
static struct error error;

static const struct option rows[] = {
    {"flag", 'f', OPTION_FLAG, &flag, NULL, "a flag", 0, 0, &given},
    {"number", 'n', OPTION_INT, &number, "N", "a number", 1, 10, NULL},
    {"large", '\0', OPTION_LONG, &large, "N", "any long", 0, 0, NULL},
    {"real", '\0', OPTION_REAL, &real, "X", "a real", 0, 0, NULL},
    {"text", 't', OPTION_TEXT, &text, "TEXT", "a text", 0, 0, NULL},
    {"duration", '\0', OPTION_DURATION, &duration, "TIME", "a time", 1e3, 60e6, NULL},
    {"list", 'X', OPTION_LIST, &list, "ITEM", "many", 0, 0, NULL},
    {0}};
static const struct option *const tables[] = {rows, NULL};

/* Parses what follows the command's name; the arguments must be writable as in main(). */
static int parse(int count, const char *const *arguments)
{
    static char storage[80][64];
    static char *argv[80];

    flag = given = false;
    number = 0;
    large = duration = 0;
    real = 0;
    text = NULL;
    list.count = 0;
    *error.message = '\0';
    argv[0] = (char *)"pgpt";
    for (int i = 0; i < count; i++) {
        snprintf(storage[i], sizeof storage[i], "%s", arguments[i]);
        argv[i + 1] = storage[i];
    }
    return options_parse(tables, count + 1, argv, &positionals, &error);
}
#define PARSE(...)                                                                                 \
    parse((int)(sizeof((const char *[]){__VA_ARGS__}) / sizeof(char *)),                           \
          (const char *[]){__VA_ARGS__})

static void test_all_forms(void **state)
{
    (void)state;
    assert_int_equal(PARSE("one", "--flag", "--number", "7", "--large=-9000000000", "two", "-tx",
                           "--real", "-0.5", "-X", "a=1", "-Xb=2", "--list=c", "--duration",
                           "250ms", "-", "--", "--three"),
                     0);
    assert_true(flag && given);
    assert_int_equal(number, 7);
    assert_int_equal(large, -9000000000);
    assert_true(real == -0.5);
    assert_string_equal(text, "x");
    assert_int_equal(duration, 250000);
    assert_int_equal(list.count, 3);
    assert_string_equal(list.items[1], "b=2");
    assert_int_equal(positionals.count, 4);
    assert_string_equal(positionals.items[0], "one");
    assert_string_equal(positionals.items[1], "two");
    assert_string_equal(positionals.items[2], "-");
    assert_string_equal(positionals.items[3], "--three");
}

static void expect_refused(int status, const char *named)
{
    assert_int_equal(status, -1);
    if (!strstr(error.message, named))
        fail_msg("\"%s\" does not name \"%s\"", error.message, named);
}

static void test_refusals_name_option_and_remedy(void **state)
{
    (void)state;
    expect_refused(PARSE("--nothing"), "--nothing: there is no such option");
    expect_refused(PARSE("--nothing=3"), "--nothing:");
    expect_refused(PARSE("--flags"), "--flags");
    expect_refused(PARSE("-z"), "-z");
    expect_refused(PARSE("--number"), "needs a value: N");
    expect_refused(PARSE("--number", "11"), "from 1 to 10");
    expect_refused(PARSE("--number", "0"), "from 1 to 10");
    expect_refused(PARSE("--number", "3x"), "whole number");
    expect_refused(PARSE("--number", ""), "whole number");
    expect_refused(PARSE("--number", "99999999999"), "too large");
    expect_refused(PARSE("--large", "99999999999999999999"), "too large");
    expect_refused(PARSE("--real", "nan"), "must be a number");
    expect_refused(PARSE("--real", "1.5.2"), "must be a number");
    expect_refused(PARSE("--flag=yes"), "takes no value");
    expect_refused(PARSE("--duration", "5"), "250ms, 30s");
    expect_refused(PARSE("--duration", "61s"), "from 0.001 s to 60 s");
    expect_refused(PARSE("--duration", "-1s"), "duration");
}

static void test_list_is_bounded(void **state)
{
    const char *arguments[OPTION_LIST_MAX + 1];

    (void)state;
    for (int i = 0; i <= OPTION_LIST_MAX; i++)
        arguments[i] = "-Xa=b";
    assert_int_equal(parse(OPTION_LIST_MAX, arguments), 0);
    expect_refused(parse(OPTION_LIST_MAX + 1, arguments), "at most 64");
}

static void test_durations(void **state)
{
    static const struct {
        const char *text;
        int64_t us;
    } good[] = {{"0", 0},          {"1us", 1},         {"1.5ms", 1500},      {"30s", 30000000},
                {"5m", 300000000}, {"2h", 7200000000}, {"7d", 604800000000}, {"0.1s", 100000}};
    static const char *const bad[] = {"",    "s",      "5",   "5 s",  "5sec",
                                      "-1s", "1e400s", "inf", "nans", "1e30d"};
    int64_t us;

    (void)state;
    for (size_t i = 0; i < sizeof good / sizeof *good; i++) {
        assert_int_equal(option_duration(good[i].text, &us), 0);
        assert_int_equal(us, good[i].us);
    }
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        assert_int_equal(option_duration(bad[i], &us), -1);
}

/* ---- requests ---- */

static struct request_options request;

static int parse_request(int count, const char *const *arguments)
{
    static char storage[40][64];
    static char *argv[40];
    const struct option *const request_tables[] = {request.table, NULL};

    request_options_init(&request);
    argv[0] = (char *)"pgpt";
    for (int i = 0; i < count; i++) {
        snprintf(storage[i], sizeof storage[i], "%s", arguments[i]);
        argv[i + 1] = storage[i];
    }
    if (options_parse(request_tables, count + 1, argv, &positionals, &error))
        return -1;
    return request_options_finish(&request, &error);
}
#define PARSE_REQUEST(...)                                                                         \
    parse_request((int)(sizeof((const char *[]){__VA_ARGS__}) / sizeof(char *)),                   \
                  (const char *[]){__VA_ARGS__})

static void test_request_defaults_are_the_contracts(void **state)
{
    struct generation_request made, contract;

    (void)state;
    generation_request_init(&contract);
    assert_int_equal(parse_request(0, NULL), 0);
    made = request_options_make(&request, "id", (struct text){"p", 1}, 5);
    assert_int_equal(made.max_length, contract.max_length);
    assert_true(made.temperature == contract.temperature && made.top_p == contract.top_p &&
                made.repetition_penalty == contract.repetition_penalty &&
                made.length_penalty == contract.length_penalty);
    assert_int_equal(made.num_beams, 1);
    assert_int_equal(made.stream_interval, 1);
    assert_false(made.has_seed || made.has_deadline || made.has_source_tokens || made.stream);
    assert_int_equal(made.created_at_us, 5);
    assert_string_equal(made.prompt.data, "p");
    assert_string_equal(made.target_language.data, "");
}

static void test_request_fields(void **state)
{
    struct generation_request made;

    (void)state;
    assert_int_equal(PARSE_REQUEST("--to", "en", "--seed", "-3", "--deadline", "5s", "--stop", "a",
                                   "--stop", "b", "--metadata", "k=v=w", "--source-tokens", "5,0,7",
                                   "--top-p", "0.9", "--priority", "-4"),
                     0);
    made = request_options_make(&request, "id", (struct text){"", 0}, 1000);
    assert_string_equal(made.target_language.data, "en");
    assert_true(made.has_seed && made.seed == -3);
    assert_true(made.has_deadline && made.deadline_us == 5001000);
    assert_int_equal(made.stop_count, 2);
    assert_string_equal(made.stop[1].data, "b");
    assert_int_equal(made.metadata_count, 1);
    assert_int_equal(made.metadata[0].key.size, 1);
    assert_string_equal(made.metadata[0].value.data, "v=w");
    assert_int_equal(made.source_token_count, 3);
    assert_int_equal(made.source_tokens[2], 7);
    assert_true(made.top_p == 0.9f);
    assert_int_equal(made.priority, -4);
    assert_int_equal(PARSE_REQUEST("--metadata", "novalue"), -1);
    assert_int_equal(PARSE_REQUEST("--source-tokens", "1,,2"), -1);
    assert_int_equal(PARSE_REQUEST("--source-tokens", "1,-2"), -1);
    assert_int_equal(PARSE_REQUEST("--source-tokens", ""), -1);
}

/* ---- topics compared with the table ---- */

static char told[4096];

static void tell(void *opaque, const char *topic, const char *what, const char *wanted,
                 const char *found)
{
    size_t size = strlen(told);

    (void)opaque;
    snprintf(told + size, sizeof told - size, "%s %s %s %s\n", topic, what, wanted, found);
}

static void topics_fine(struct topic_state topics[TOPIC_COUNT], const char *names[TOPIC_COUNT],
                        int32_t replication)
{
    for (int t = 0; t < TOPIC_COUNT; t++) {
        topics[t] = (struct topic_state){.exists = true,
                                         .partitions = topic_table[t].partitioned ? 6 : 1,
                                         .replication = replication};
        topics[t].setting_count =
            topic_settings_wanted((enum topic)t, replication, topics[t].settings);
        names[t] = topic_table[t].name;
    }
}

static void test_topics_compared(void **state)
{
    struct topic_state topics[TOPIC_COUNT];
    const char *names[TOPIC_COUNT];

    (void)state;
    topics_fine(topics, names, 3);
    *told = '\0';
    assert_int_equal(topic_compare(topics, names, 0, 0, tell, NULL), 0);
    assert_string_equal(told, "");
    topics[TOPIC_CHUNKS].partitions = 4;
    topics[TOPIC_DLQ].partitions = 2;
    topics[TOPIC_EVENTS].exists = false;
    topics[TOPIC_INDEX].replication = 1;
    snprintf(topics[TOPIC_RESULTS].settings[1].value, TOPIC_VALUE_MAX, "1000");
    assert_int_equal(topic_compare(topics, names, 0, 0, tell, NULL), 5);
    assert_string_equal(told, "pgpt.chunks partitions 6 4\n"
                              "pgpt.results retention.ms 604800000 1000\n"
                              "pgpt.events topic present missing\n"
                              "pgpt.index replication 3 1\n"
                              "pgpt.dlq partitions 1 2\n");
}

static void test_topic_settings(void **state)
{
    struct topic_setting settings[TOPIC_SETTINGS_MAX];

    (void)state;
    assert_int_equal(topic_settings_wanted(TOPIC_DLQ, 3, settings), 4);
    assert_string_equal(settings[0].value, "delete");
    assert_string_equal(settings[1].value, "2592000000"); /* 30 days */
    assert_string_equal(settings[2].value, "1114112");    /* 1 MiB + 64 KiB */
    assert_string_equal(settings[3].value, "2");
    topic_settings_wanted(TOPIC_REQUESTS, 1, settings);
    assert_string_equal(settings[2].value, "1048576");
    assert_string_equal(settings[3].value, "1");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_all_forms),
        cmocka_unit_test(test_refusals_name_option_and_remedy),
        cmocka_unit_test(test_list_is_bounded),
        cmocka_unit_test(test_durations),
        cmocka_unit_test(test_request_defaults_are_the_contracts),
        cmocka_unit_test(test_request_fields),
        cmocka_unit_test(test_topics_compared),
        cmocka_unit_test(test_topic_settings),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
