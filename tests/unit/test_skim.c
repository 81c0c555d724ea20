/* SPDX-License-Identifier: MIT
 * Payloads that lie about lengths and counts: refused quickly, before Avro C sees them. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "schema/skim.h"

#define RECORD(fields) "{\"type\":\"record\",\"name\":\"R\",\"fields\":[" fields "]}"
#define FIELD(type) RECORD("{\"name\":\"the_field\",\"type\":" type "}")
#define ARRAY(items) "{\"type\":\"array\",\"items\":" items "}"
#define MAP(values) "{\"type\":\"map\",\"values\":" values "}"
#define FIELD_OF_NULLS                                                                             \
    "{\"type\":\"record\",\"name\":\"N\",\"fields\":[{\"name\":\"the_field\",\"type\":\"null\"}]}"
#define BYTES(...)                                                                                 \
    ((const unsigned char[]){__VA_ARGS__}), sizeof((const unsigned char[]){__VA_ARGS__})

static struct error error;

static bool plain; /* the last one skimmed */

/* The bytes lie in an exact allocation, so that a sanitizer sees a read past them. */
static int skim(const char *json, const unsigned char *bytes, size_t size)
{
    struct skim_schema *schema = skim_compile(json, strlen(json), &error);
    unsigned char *copy = malloc(size ? size : 1);
    int status;

    if (!schema)
        fail_msg("%s", error.message);
    assert_non_null(copy);
    if (size)
        memcpy(copy, bytes, size);
    error.message[0] = '\0';
    status = skim_check(schema, copy, size, &plain, &error);
    skim_free(schema);
    free(copy);
    return status;
}

static void assert_refused(const char *json, const unsigned char *bytes, size_t size,
                           const char *reason)
{
    assert_int_equal(skim(json, bytes, size), -1);
    if (!strstr(error.message, reason))
        fail_msg("\"%s\" does not say \"%s\"", error.message, reason);
    assert_non_null(strstr(error.message, "the_field"));
}

static void assert_accepted(const char *json, const unsigned char *bytes, size_t size)
{
    if (skim(json, bytes, size))
        fail_msg("%s", error.message);
}

/* Zig-zag varints: 2^33 items in five bytes, INT64_MAX and INT64_MIN in ten. */
#define BILLIONS 0x80, 0x80, 0x80, 0x80, 0x40
#define LONG_MAX_BYTES 0xfe, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01
#define LONG_MIN_BYTES 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01

/* One block a list, no sizes in bytes, small maps. */
static void test_what_is_plain(void **state)
{
    unsigned char bytes[2 + 2 * SKIM_PLAIN_PAIRS + 3];

    (void)state;
    assert_accepted(FIELD(ARRAY("\"int\"")), BYTES(0));
    assert_true(plain);
    assert_accepted(FIELD(ARRAY("\"int\"")), BYTES(4, 2, 2, 0));
    assert_true(plain);
    assert_accepted(FIELD(ARRAY("\"int\"")), BYTES(3, 4, 2, 2, 0)); /* -2 items, 2 bytes */
    assert_false(plain);
    assert_accepted(FIELD(ARRAY("\"int\"")), BYTES(2, 2, 2, 2, 0)); /* two blocks */
    assert_false(plain);
    assert_accepted(FIELD(ARRAY(ARRAY("\"int\""))), BYTES(2, 2, 2, 2, 2, 0, 0));
    assert_false(plain);
    for (int pairs = SKIM_PLAIN_PAIRS; pairs <= SKIM_PLAIN_PAIRS + 1; pairs++) {
        memset(bytes, 0, sizeof bytes); /* empty keys, empty strings */
        bytes[0] = (unsigned char)(pairs * 2 & 127) | 128;
        bytes[1] = (unsigned char)(pairs * 2 >> 7);
        assert_accepted(FIELD("{\"type\":\"map\",\"values\":\"string\"}"), bytes,
                        (size_t)(2 + 2 * pairs + 1));
        assert_int_equal(plain, pairs == SKIM_PLAIN_PAIRS);
    }
}

static void test_array_of_null_bomb(void **state)
{
    (void)state;
    assert_refused(FIELD(ARRAY("\"null\"")), BYTES(BILLIONS, 0), "items of no bytes");
    assert_refused(FIELD(ARRAY("\"null\"")), BYTES(LONG_MAX_BYTES, 0), "items of no bytes");
    assert_refused(FIELD(ARRAY(FIELD_OF_NULLS)), BYTES(BILLIONS, 0), "items of no bytes");
    assert_accepted(FIELD(ARRAY("\"null\"")), BYTES(6, 0));
}

/* The cap holds over all blocks and arrays of a payload together. */
static void test_array_of_null_in_many_blocks(void **state)
{
    unsigned char bytes[3 * 3000 + 1];

    (void)state;
    for (size_t i = 0; i < 3000; i++)
        memcpy(bytes + 3 * i, (unsigned char[]){0x80, 0x80, 0x01}, 3); /* 8,192 items */
    bytes[sizeof bytes - 1] = 0;
    assert_refused(FIELD(ARRAY("\"null\"")), bytes, sizeof bytes, "items of no bytes");
    assert_accepted(FIELD(ARRAY("\"null\"")), BYTES(0x80, 0x80, 0x01, 0));
}

static void test_wide_empty_items_are_counted_by_values(void **state)
{
    char json[16384];
    size_t used = (size_t)sprintf(json, "%s",
                                  "{\"type\":\"record\",\"name\":\"R\",\"fields\":[{\"name\":"
                                  "\"the_field\",\"type\":{\"type\":\"array\",\"items\":"
                                  "{\"type\":\"record\",\"name\":\"W\",\"fields\":[");

    (void)state;
    for (int i = 0; i < 200; i++)
        used +=
            (size_t)sprintf(json + used, "%s{\"name\":\"f%d\",\"type\":\"null\"}", i ? "," : "", i);
    strcpy(json + used, "]}}}]}");
    assert_int_equal(skim(json, BYTES(0x80, 0x80, 0x04, 0)), -1); /* 32,768 x 200 nulls */
    assert_non_null(strstr(error.message, "too many values"));
}

static void test_negative_lengths(void **state)
{
    (void)state;
    assert_refused(FIELD("\"string\""), BYTES(1), "negative");
    assert_refused(FIELD("\"bytes\""), BYTES(LONG_MIN_BYTES), "negative");
    assert_refused(FIELD(MAP("\"int\"")), BYTES(2, 1, 0, 0), "negative");
}

static void test_huge_lengths(void **state)
{
    (void)state;
    assert_refused(FIELD("\"string\""), BYTES(4, 'x'), "past the end");
    assert_refused(FIELD("\"string\""), BYTES(LONG_MAX_BYTES, 'x'), "past the end");
    assert_refused(FIELD("\"bytes\""), BYTES(BILLIONS, 'x'), "past the end");
    assert_refused(FIELD(MAP("\"int\"")), BYTES(2, BILLIONS, 'k', 0), "past the end");
    assert_refused(FIELD("{\"type\":\"fixed\",\"name\":\"F\",\"size\":4}"), BYTES(1, 2, 3),
                   "past the end");
}

static void test_huge_counts(void **state)
{
    (void)state;
    assert_refused(FIELD(ARRAY("\"int\"")), BYTES(BILLIONS, 1, 2), "ends within a number");
    assert_refused(FIELD(MAP("\"null\"")), BYTES(LONG_MAX_BYTES, 2, 'k'), "ends within a number");
}

static void test_blocks_with_negative_counts(void **state)
{
    static const char *const ints = FIELD(ARRAY("\"int\""));
    static const char *const map = FIELD(MAP("\"int\""));

    (void)state;
    assert_accepted(ints, BYTES(3, 4, 2, 4, 0));                /* -2 items, 2 bytes */
    assert_accepted(map, BYTES(1, 6, 2, 'k', 8, 0));            /* -1 pair, 3 bytes */
    assert_accepted(ints, BYTES(3, 4, 2, 4, 2, 6, 0));          /* and a positive block */
    assert_refused(ints, BYTES(3, 6, 2, 4, 0), "differs");      /* 3 bytes promised */
    assert_refused(ints, BYTES(3, 2, 2, 4, 0), "differs");      /* 1 byte promised */
    assert_refused(ints, BYTES(3, 3, 2, 4, 0), "past the end"); /* -2 bytes */
    assert_refused(ints, BYTES(3, LONG_MAX_BYTES, 2, 4, 0), "past the end");
    assert_refused(ints, BYTES(LONG_MIN_BYTES, 2, 2, 0), "out of range");
    assert_refused(ints, BYTES(3), "out of range"); /* no size follows */
    assert_refused(FIELD(ARRAY("\"null\"")), BYTES(0xff, 0xff, 0xff, 0xff, 0x3f, 0, 0),
                   "items of no bytes");
}

static void test_deep_nesting(void **state)
{
    static const char *const tree =
        FIELD("{\"type\":\"record\",\"name\":\"T\",\"fields\":[{\"name\":\"the_field\",\"type\":"
              "[\"null\",\"T\"]}]}");
    unsigned char bytes[100000];

    (void)state;
    memset(bytes, 2, sizeof bytes);
    assert_refused(tree, bytes, sizeof bytes, "nested too deeply");
    assert_accepted(tree, BYTES(2, 2, 2, 0));
    memset(bytes, 2, sizeof bytes);
    assert_refused(FIELD("{\"type\":\"record\",\"name\":\"T\",\"fields\":[{\"name\":\"the_field\","
                         "\"type\":" ARRAY("\"T\"") "}]}"),
                   bytes, sizeof bytes, "nested too deeply");
}

static void test_numbers(void **state)
{
    (void)state;
    assert_accepted(FIELD("\"int\""), BYTES(0xfe, 0xff, 0xff, 0xff, 0x0f));
    assert_refused(FIELD("\"int\""), BYTES(0x80, 0x80, 0x80, 0x80, 0x10), "32 bits");
    assert_accepted(FIELD("\"long\""), BYTES(LONG_MIN_BYTES));
    assert_refused(FIELD("\"long\""),
                   BYTES(0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x02), "64 bits");
    assert_refused(FIELD("\"long\""),
                   BYTES(0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x81, 0), "64 bits");
    assert_refused(FIELD("\"boolean\""), BYTES(2), "boolean");
    assert_refused(FIELD("\"boolean\""), BYTES(0, 0), "left after");
    assert_refused(FIELD("\"double\""), BYTES(0, 0, 0, 0, 0, 0, 0), "past the end");
}

static void test_unions_and_enums(void **state)
{
    static const char *const symbols = FIELD("{\"type\":\"enum\",\"name\":\"E\",\"symbols\":[\"A\","
                                             "\"B\"]}");

    (void)state;
    assert_accepted(FIELD("[\"null\",\"int\"]"), BYTES(0));
    assert_refused(FIELD("[\"null\",\"int\"]"), BYTES(4, 0), "branch");
    assert_refused(FIELD("[\"null\",\"int\"]"), BYTES(1), "branch");
    assert_accepted(symbols, BYTES(2));
    assert_refused(symbols, BYTES(4), "enum");
    assert_refused(symbols, BYTES(1), "enum");
}

static void test_key_with_nul(void **state)
{
    (void)state;
    assert_refused(FIELD(MAP("\"int\"")), BYTES(2, 6, 'a', 0, 'b', 2, 0), "NUL");
}

static void test_limit_of_size(void **state)
{
    unsigned char *bytes = calloc(1, (size_t)SKIM_PAYLOAD_MAX + 1);

    (void)state;
    assert_non_null(bytes);
    assert_int_equal(skim(FIELD("\"bytes\""), bytes, (size_t)SKIM_PAYLOAD_MAX + 1), -1);
    assert_non_null(strstr(error.message, "limit"));
    free(bytes);
}

static void assert_no_schema(const char *json, const char *reason)
{
    assert_null(skim_compile(json, strlen(json), &error));
    if (!strstr(error.message, reason))
        fail_msg("\"%s\" does not say \"%s\"", error.message, reason);
}

static void test_schemas_that_cannot_be_read(void **state)
{
    (void)state;
    assert_no_schema("{", "line 1");
    assert_no_schema(FIELD("\"unknown\""), "unknown");
    assert_no_schema(FIELD("\"R\""), "contains itself");
    assert_no_schema(RECORD(""), "no fields");
    assert_no_schema(FIELD("{\"type\":\"fixed\",\"name\":\"F\",\"size\":0}"), "size");
    assert_no_schema(FIELD("{\"type\":\"enum\",\"name\":\"E\",\"symbols\":[]}"), "symbols");
}

/* Each record holds the one before twice: 2^12 values at once. */
static void test_schema_that_multiplies(void **state)
{
    char json[8192];
    size_t used = (size_t)sprintf(json, "[");

    (void)state;
    for (int i = 0; i < 12; i++)
        used +=
            (size_t)sprintf(json + used,
                            "%s{\"type\":\"record\",\"name\":\"R%d\",\"fields\":[{\"name\":\"a\","
                            "\"type\":\"%s%.*d\"},{\"name\":\"b\",\"type\":\"%s%.*d\"}]}",
                            i ? "," : "", i, i ? "R" : "int", i ? 1 : 0, i ? i - 1 : 0,
                            i ? "R" : "int", i ? 1 : 0, i ? i - 1 : 0);
    strcpy(json + used, "]");
    assert_no_schema(json, "values");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_what_is_plain),
        cmocka_unit_test(test_array_of_null_bomb),
        cmocka_unit_test(test_array_of_null_in_many_blocks),
        cmocka_unit_test(test_wide_empty_items_are_counted_by_values),
        cmocka_unit_test(test_negative_lengths),
        cmocka_unit_test(test_huge_lengths),
        cmocka_unit_test(test_huge_counts),
        cmocka_unit_test(test_blocks_with_negative_counts),
        cmocka_unit_test(test_deep_nesting),
        cmocka_unit_test(test_numbers),
        cmocka_unit_test(test_unions_and_enums),
        cmocka_unit_test(test_key_with_nul),
        cmocka_unit_test(test_limit_of_size),
        cmocka_unit_test(test_schemas_that_cannot_be_read),
        cmocka_unit_test(test_schema_that_multiplies),
    };

    return cmocka_run_group_tests_name("skim", tests, NULL, NULL);
}
