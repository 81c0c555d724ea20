/* SPDX-License-Identifier: MIT
 * Every setting's range, the messages for what is wrong, the environment, secrets, and that what is
 * printed is read back as the same. */
#include <ctype.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>

#include "worker/config.h"

extern char **environ;

static char path[] = "/tmp/pgpt-config.XXXXXX";
static char *problems;
static size_t problems_size;

/* The environment of whoever runs the tests stays out of them. */
static int group_setup(void **state)
{
    static char *nothing[] = {NULL};
    int file = mkstemp(path);

    (void)state;
    if (file < 0)
        return -1;
    close(file);
    environ = nothing;
    return setenv("PGPT_DATABASE_URL", "postgresql://r@h/d", 1);
}

static int group_teardown(void **state)
{
    (void)state;
    free(problems);
    return unlink(path);
}

/* Loads a file with this text; what was wrong is in `problems`. */
static struct config *load(const char *text)
{
    struct config *config;
    FILE *file = fopen(path, "w"), *out;

    assert_non_null(file);
    fputs(text, file);
    assert_int_equal(fclose(file), 0);
    free(problems);
    problems = NULL;
    out = open_memstream(&problems, &problems_size);
    assert_non_null(out);
    config = config_load(path, out);
    fclose(out);
    if (config && *problems)
        fail_msg("accepted, but: %s", problems);
    if (!config && !*problems)
        fail_msg("refused without a word: %s", text);
    return config;
}

static struct config *accept(const char *format, ...)
{
    static char text[65536];
    struct config *config;
    va_list args;

    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    config = load(text);
    if (!config)
        fail_msg("%s: %s", text, problems);
    return config;
}

static void refuse(const char *text, const char *wanted)
{
    struct config *config = load(text);

    if (config)
        fail_msg("accepted: %s", text);
    if (!strstr(problems, wanted))
        fail_msg("\"%s\" does not say \"%s\"", problems, wanted);
}

static char *printed(const struct config *config)
{
    char *text = NULL;
    size_t size;
    FILE *out = open_memstream(&text, &size);

    assert_non_null(out);
    config_print(config, out);
    fclose(out);
    return text;
}

/* ---- the table ---- */

/* Both ends are accepted, one step past them is refused with file, line, name, value and range. */
static void check_number(const char *name, double min, double max, double step)
{
    char line[256], wanted[512];

    /* settings that are checked against others get them out of the way */
    const char *beside = !strcmp(name, "kafka_call.timeout_ms")
                             ? "transaction.timeout_ms = 900000\n"
                         : !strcmp(name, "transaction.timeout_ms") ? "kafka_call.timeout_ms = 500\n"
                         : !strcmp(name, "duplicate.max_jobs")     ? "duplicate.min_jobs = 0\n"
                         : !strcmp(name, "duplicate.min_jobs") ? "duplicate.max_jobs = 10000000\n"
                                                               : "";

    config_free(accept("%s%s = %.10g\n", beside, name, min));
    config_free(accept("%s%s = %.10g\n", beside, name, max));
    for (int i = 0; i < 2; i++) {
        double past = i ? max + step : min - step;

        snprintf(line, sizeof line, "\n\n%s = %.10g\n", name, past);
        snprintf(wanted, sizeof wanted, "%s:3: %s is %.10g, outside %.10g..%.10g\n", path, name,
                 past, min, max);
        refuse(line, wanted);
    }
    snprintf(line, sizeof line, "%s = x1\n", name);
    snprintf(wanted, sizeof wanted, "%s:1: %s is \"x1\", which is no ", path, name);
    refuse(line, wanted);
    snprintf(line, sizeof line, "%s = 5x\n", name);
    refuse(line, name);
    snprintf(line, sizeof line, "%s =\n", name);
    refuse(line, name);
    snprintf(line, sizeof line, "%s = nan\n", name);
    refuse(line, name);
    snprintf(line, sizeof line, "%s = 99999999999999999999\n", name);
    refuse(line, name);
}

static void check_choice(const char *name, const char *choices)
{
    char all[256], line[256], *save = NULL;

    snprintf(all, sizeof all, "%s", choices);
    for (char *one = strtok_r(all, "|", &save); one; one = strtok_r(NULL, "|", &save)) {
        config_free(accept("%s = %s\n", name, one));
        snprintf(line, sizeof line, "%s = %.*s\n", name, (int)strlen(one) - 1, one);
        refuse(line, choices); /* a part of it is not it */
    }
    snprintf(line, sizeof line, "%s = %s\n", name, choices);
    if (strchr(choices, '|'))
        refuse(line, name);
    snprintf(line, sizeof line, "%s =\n", name);
    refuse(line, choices);
}

static void every_range_is_kept(void **state)
{
    (void)state;
#define STRING(field, name, value, secret, help)
#define INT(field, name, value, min, max, help) check_number(name, min, max, 1);
#define BOOL(field, name, value, help)
#define REAL(field, name, value, min, max, help) check_number(name, min, max, 0.001);
#define CHOICE(field, name, value, choices, help) check_choice(name, choices);
#include "worker/config_table.h"
}

static void defaults_are_the_tables(void **state)
{
    struct config *c = accept("# nothing\n\n   # at all\n");

    (void)state;
#define STRING(field, name, value, secret, help)                                                   \
    if (strcmp(name, "worker.name") && strcmp(name, "database_url"))                               \
        assert_string_equal(c->field, value);
#define INT(field, name, value, min, max, help) assert_int_equal(c->field, value);
#define BOOL(field, name, value, help) assert_int_equal(c->field, value);
#define REAL(field, name, value, min, max, help) assert_true(c->field == (value));
#define CHOICE(field, name, value, choices, help) assert_string_equal(c->field, value);
#include "worker/config_table.h"
    config_free(c);
}

static void booleans_in_all_spellings(void **state)
{
    static const char *const yes[] = {"true", "yes", "on", "1", "TRUE", "Yes"};
    static const char *const no[] = {"false", "no", "off", "0", "False", "NO"};
    struct config *c;

    (void)state;
    for (int i = 0; i < 6; i++) {
        c = accept("recorder.enabled = %s\n", yes[i]);
        assert_true(c->recorder_enabled);
        config_free(c);
        c = accept("recorder.enabled = %s\n", no[i]);
        assert_false(c->recorder_enabled);
        config_free(c);
    }
    refuse("recorder.enabled = maybe\n", "recorder.enabled is \"maybe\"; it must be true or false");
}

/* ---- lines ---- */

static void spaces_quotes_and_comments(void **state)
{
    struct config *c = accept("  group=a b \t\r\n"
                              "topic.dlq = \" quoted # \"\n"
                              "#group = no\n"
                              "model = first\n"
                              "model = x=y"); /* no newline at the end */

    (void)state;
    assert_string_equal(c->kafka_group, "a b");
    assert_string_equal(c->topic_dlq, " quoted # ");
    assert_string_equal(c->engine_model, "x=y"); /* the last one wins */
    config_free(c);
}

static void every_wrong_line_is_told(void **state)
{
    char wanted[256];

    (void)state;
    refuse("queue.max_jobs = 0\ngroup = g\nhttp.prot = 1\nwhat is this\n", ":1: queue.max_jobs");
    snprintf(wanted, sizeof wanted, "%s:3: unknown setting http.prot; did you mean http.port?\n",
             path);
    assert_non_null(strstr(problems, wanted));
    snprintf(wanted, sizeof wanted, "%s:4: \"what is this\" is no `name = value` line\n", path);
    assert_non_null(strstr(problems, wanted));
}

static void a_line_that_is_too_long_is_one_problem(void **state)
{
    char *text = malloc(40000);
    int lines = 0;

    (void)state;
    memset(text, 'x', 30000);
    strcpy(text + 30000, "\nhttp.prot = 1\n");
    refuse(text, ":1: the line is longer than ");
    assert_non_null(strstr(problems, ":2: unknown setting http.prot")); /* the numbers go on */
    for (const char *at = problems; (at = strchr(at, '\n')); at++)
        lines++;
    assert_int_equal(lines, 2);
    free(text);
}

static void a_file_that_is_not_there(void **state)
{
    char *text = NULL;
    size_t size;
    FILE *out = open_memstream(&text, &size);

    (void)state;
    assert_null(config_load("/nowhere/at-all.conf", out));
    fclose(out);
    assert_non_null(strstr(text, "/nowhere/at-all.conf: cannot be opened: No such file"));
    free(text);
    assert_null(config_load("/nowhere/at-all.conf", NULL)); /* nobody listens */
}

static void settings_that_do_not_go_together(void **state)
{
    (void)state;
    refuse("duplicate.min_jobs = 10\nduplicate.max_jobs = 9\n", "duplicate.min_jobs is above");
    refuse("kafka_call.timeout_ms = 5000\ntransaction.timeout_ms = 5000\n",
           "kafka_call.timeout_ms must be below transaction.timeout_ms");
    unsetenv("PGPT_DATABASE_URL");
    refuse("recorder.enabled = true\n", "set database_url");
    config_free(accept("recorder.enabled = false\n"));
    setenv("PGPT_DATABASE_URL", "postgresql://r@h/d", 1);
}

static void a_worker_without_a_name_gets_its_own(void **state)
{
    struct config *a = accept(""), *b = accept(""), *c = accept("worker.name = w-7\n");

    (void)state;
    assert_true(strlen(a->worker_name) > 9);
    assert_string_not_equal(a->worker_name, b->worker_name);
    assert_string_equal(c->worker_name, "w-7");
    config_free(a);
    config_free(b);
    config_free(c);
}

/* ---- environment ---- */

static const char *environment_name(const char *setting)
{
    static char name[128];
    size_t i = 5;

    strcpy(name, "PGPT_");
    for (; *setting; setting++)
        name[i++] = *setting == '.' ? '_' : (char)toupper((unsigned char)*setting);
    name[i] = '\0';
    return name;
}

static struct config *from_environment(const char *setting, const char *value)
{
    struct config *c;

    setenv(environment_name(setting), value, 1);
    c = accept("");
    unsetenv(environment_name(setting));
    setenv("PGPT_DATABASE_URL", "postgresql://r@h/d", 1);
    return c;
}

static const char *number_text(double number)
{
    static char text[64];

    snprintf(text, sizeof text, "%.10g", number);
    return text;
}

static void every_setting_has_a_name_in_the_environment(void **state)
{
    struct config *c;

    (void)state;
    setenv("PGPT_KAFKA_CALL_TIMEOUT_MS", "500", 1); /* out of the others' way */
    setenv("PGPT_DUPLICATE_MIN_JOBS", "0", 1);
#define CHECK(name, value, condition)                                                              \
    if (strcmp(name, "kafka_call.timeout_ms") && strcmp(name, "duplicate.min_jobs")) {             \
        c = from_environment(name, value);                                                         \
        assert_true(condition);                                                                    \
        config_free(c);                                                                            \
    }
#define STRING(field, name, value, secret, help) CHECK(name, "x-y", !strcmp(c->field, "x-y"))
#define INT(field, name, value, min, max, help) CHECK(name, number_text(min), c->field == (min))
#define BOOL(field, name, value, help) CHECK(name, (value) ? "false" : "true", c->field == !(value))
#define REAL(field, name, value, min, max, help) CHECK(name, number_text(max), c->field == (max))
#define CHOICE(field, name, value, choices, help) CHECK(name, value, !strcmp(c->field, value))
#include "worker/config_table.h"
    unsetenv("PGPT_KAFKA_CALL_TIMEOUT_MS");
    unsetenv("PGPT_DUPLICATE_MIN_JOBS");
}

static void the_environment_wins(void **state)
{
    struct config *c;

    (void)state;
    setenv("PGPT_QUEUE_MAX_JOBS", "77", 1);
    c = accept("queue.max_jobs = 5\n");
    assert_int_equal(c->queue_max_jobs, 77);
    config_free(c);
    setenv("PGPT_QUEUE_MAX_JOBS", "many", 1);
    refuse("queue.max_jobs = 5\n", "environment PGPT_QUEUE_MAX_JOBS: queue.max_jobs is \"many\"");
    unsetenv("PGPT_QUEUE_MAX_JOBS");
}

/* ---- kafka.* ---- */

static const char *property(const struct config *c, const char *name)
{
    for (size_t i = 0; i < c->kafka_count; i++)
        if (!strcmp(c->kafka[i].name, name))
            return c->kafka[i].value;
    return NULL;
}

static void kafka_settings_pass_through(void **state)
{
    struct config *c;

    (void)state;
    setenv("PGPT_KAFKA_SASL_PASSWORD", "from environment", 1);
    setenv("PGPT_KAFKA_PORT", "9392", 1); /* where the local stack listens */
    setenv("PGPT_KAFKA_CALL_TIMEOUT_MS", "1234", 1);
    c = accept("kafka.security.protocol = sasl_ssl\nkafka.sasl.password = from file\n"
               "kafka.security.protocol = ssl\n");
    assert_string_equal(property(c, "security.protocol"), "ssl");
    assert_string_equal(property(c, "sasl.password"), "from environment");
    assert_null(property(c, "port"));
    assert_null(property(c, "call.timeout.ms"));
    assert_int_equal(c->kafka_call_timeout_ms, 1234);
    assert_int_equal(c->kafka_count, 2);
    config_free(c);
    unsetenv("PGPT_KAFKA_SASL_PASSWORD");
    unsetenv("PGPT_KAFKA_PORT");
    unsetenv("PGPT_KAFKA_CALL_TIMEOUT_MS");
    refuse("kafka. = x\n", "unknown setting kafka.");
}

static void kafka_settings_are_bounded(void **state)
{
    char *text = calloc(1, 300 * 32);

    (void)state;
    for (int i = 0; i < 257; i++)
        sprintf(text + strlen(text), "kafka.p%d = x\n", i);
    refuse(text, ":257: more than 256 kafka.* settings");
    free(text);
}

/* ---- printing ---- */

static void secrets_are_not_printed(void **state)
{
    static const char *const urls[] = {
        "postgresql://user:hunter2@host/db",
        "postgres://user:hunter2@host:5432/db?sslmode=require",
        "postgresql://host/db?user=u&password=hunter2",
        "postgresql://user:hunt@hunter2@host/db",
        "postgresql://user:hunter2@host/db?sslpassword=hunter2",
        "host=h user=u password=hunter2 dbname=d",
        "host=h PASSWORD='hunter2' dbname=d",
    };
    static const char *const names[] = {"sasl.password",
                                        "ssl.key.password",
                                        "ssl.keystore.password",
                                        "ssl.key.pem",
                                        "sasl.oauthbearer.client.secret",
                                        "sasl.oauthbearer.assertion.private.key.passphrase",
                                        "sasl.oauthbearer.config"};

    (void)state;
    for (size_t i = 0; i < sizeof urls / sizeof *urls; i++) {
        struct config *c;
        char *text;

        setenv("PGPT_DATABASE_URL", urls[i], 1);
        c = accept("");
        assert_string_equal(c->database_url, urls[i]); /* it is used as it is */
        text = printed(c);
        if (strstr(text, "hunter2"))
            fail_msg("%s is printed: %s", urls[i], strstr(text, "database_url"));
        assert_non_null(strstr(text, "********"));
        free(text);
        config_free(c);
    }
    setenv("PGPT_DATABASE_URL", "postgresql://r@h/d", 1);
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        struct config *c = accept("kafka.%s = hunter2\n", names[i]);
        char *text = printed(c);

        if (strstr(text, "hunter2"))
            fail_msg("kafka.%s is printed", names[i]);
        free(text);
        config_free(c);
    }
    struct config *c = accept("kafka.sasl.username = shown\n");
    char *text = printed(c);

    assert_non_null(strstr(text, "kafka.sasl.username = shown\n"));
    assert_non_null(strstr(text, "database_url = postgresql://r@h/d\n")); /* no secret in it */
    free(text);
    config_free(c);
}

static void what_is_printed_is_read_back(void **state)
{
    struct config *c =
        accept("worker.name = w\nqueue.max_jobs = 17\nqueue.resume_ratio = 0.123456\n"
               "kafka.client.rack = r1\nlog.format = json\n");
    char *first = printed(c), *second;

    (void)state;
    config_free(c);
    c = accept("%s", first);
    second = printed(c);
    assert_string_equal(first, second);
    assert_true(c->queue_resume_ratio == 0.123456);
    config_free(c);
    free(first);
    free(second);
}

/* The documented sample, every line of it set, is the defaults. */
static void the_sample_is_the_defaults(void **state)
{
    char *sample = NULL, *text, *first, *second, *save = NULL;
    size_t size, used = 0;
    FILE *out = open_memstream(&sample, &size);
    struct config *c;

    (void)state;
    config_print_sample(out);
    fclose(out);
    text = calloc(1, size + 1);
    for (char *line = strtok_r(sample, "\n", &save); line; line = strtok_r(NULL, "\n", &save))
        if (line[0] == '#' && isalpha((unsigned char)line[1]))
            used += (size_t)sprintf(text + used, "%s\n", line + 1);
    setenv("PGPT_WORKER_NAME", "w", 1);
    c = accept("%s", text);
    first = printed(c);
    config_free(c);
    c = accept("");
    second = printed(c);
    config_free(c);
    unsetenv("PGPT_WORKER_NAME");
    assert_string_equal(first, second);
    free(first);
    free(second);
    free(text);
    free(sample);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_range_is_kept),
        cmocka_unit_test(defaults_are_the_tables),
        cmocka_unit_test(booleans_in_all_spellings),
        cmocka_unit_test(spaces_quotes_and_comments),
        cmocka_unit_test(every_wrong_line_is_told),
        cmocka_unit_test(a_line_that_is_too_long_is_one_problem),
        cmocka_unit_test(a_file_that_is_not_there),
        cmocka_unit_test(settings_that_do_not_go_together),
        cmocka_unit_test(a_worker_without_a_name_gets_its_own),
        cmocka_unit_test(every_setting_has_a_name_in_the_environment),
        cmocka_unit_test(the_environment_wins),
        cmocka_unit_test(kafka_settings_pass_through),
        cmocka_unit_test(kafka_settings_are_bounded),
        cmocka_unit_test(secrets_are_not_printed),
        cmocka_unit_test(what_is_printed_is_read_back),
        cmocka_unit_test(the_sample_is_the_defaults),
    };

    return cmocka_run_group_tests(tests, group_setup, group_teardown);
}
