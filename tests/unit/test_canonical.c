/* SPDX-License-Identifier: MIT
 * Parsing Canonical Form and CRC-64-AVRO against what Java Avro and fastavro computed
 * (tests/schema/fingerprints.txt, made by tests/schema/fingerprints.py). */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "schema/canonical.h"

enum { TEXT_MAX = 1 << 16, SCHEMAS_WANTED = 46 };

static size_t read_schema(const char *name, char *text)
{
    static const char *const directories[] = {"tests/schema/canonical", "schema"};
    FILE *file = NULL;
    size_t size;

    for (int i = 0; i < 2 && !file; i++) {
        char path[4096];

        snprintf(path, sizeof path, "%s/%s/%s", PGPT_SOURCE_DIR, directories[i], name);
        file = fopen(path, "rb");
    }
    assert_non_null(file);
    size = fread(text, 1, TEXT_MAX, file);
    fclose(file);
    return size;
}

static void check_line(char *line)
{
    static char text[TEXT_MAX];
    char *name = strtok(line, " "), *print = strtok(NULL, " "), *form = strtok(NULL, "\n");
    struct error error = {""};
    char *canonical;

    assert_non_null(form);
    canonical = canonical_form(text, read_schema(name, text), &error);
    if (!canonical)
        fail_msg("%s: %s", name, error.message);
    if (strcmp(canonical, form))
        fail_msg("%s:\n  %s, but Java has\n  %s", name, canonical, form);
    assert_true(canonical_crc64(canonical, strlen(canonical)) == strtoull(print, NULL, 16));
    free(canonical);
}

static void test_equal_to_java_and_fastavro(void **state)
{
    static char line[TEXT_MAX];
    FILE *file = fopen(PGPT_SOURCE_DIR "/tests/schema/fingerprints.txt", "r");
    int count = 0;

    (void)state;
    assert_non_null(file);
    for (; fgets(line, sizeof line, file); count++)
        check_line(line);
    fclose(file);
    assert_int_equal(count, SCHEMAS_WANTED);
}

static void test_refuses_what_is_no_schema(void **state)
{
    static const char *const bad[] = {
        "",
        "{",
        "17",
        "null",
        "[[17]]",
        "{}",
        "{\"type\":\"record\",\"fields\":[]}",
        "{\"type\":\"record\",\"name\":\"R\"}",
        "{\"type\":\"record\",\"name\":\"R\",\"fields\":[{\"type\":\"int\"}]}",
        "{\"type\":\"record\",\"name\":\"R\",\"fields\":[{\"name\":\"f\"}]}",
        "{\"type\":\"enum\",\"name\":\"E\"}",
        "{\"type\":\"enum\",\"name\":\"E\",\"symbols\":[1]}",
        "{\"type\":\"fixed\",\"name\":\"F\"}",
        "{\"type\":\"fixed\",\"name\":\"F\",\"size\":-1}",
        "{\"type\":\"array\"}",
        "{\"type\":\"map\"}",
    };

    (void)state;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct error error = {""};

        assert_null(canonical_form(bad[i], strlen(bad[i]), &error));
        assert_int_not_equal(error.message[0], 0);
    }
}

static void test_refuses_deep_nesting(void **state)
{
    char text[2 * 4096 + 8] = "";
    struct error error = {""};

    (void)state;
    memset(text, '[', 1500);
    strcpy(text + 1500, "\"int\"");
    memset(text + 1505, ']', 1500);
    assert_null(canonical_form(text, 3005, &error));
    assert_non_null(strstr(error.message, "deep"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_equal_to_java_and_fastavro),
        cmocka_unit_test(test_refuses_what_is_no_schema),
        cmocka_unit_test(test_refuses_deep_nesting),
    };

    return cmocka_run_group_tests_name("canonical", tests, NULL, NULL);
}
