/* SPDX-License-Identifier: MIT
 * Messages that are cut end with a whole character: they go into results and events as text. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <cmocka.h>

#include "kernels/base/error.h"

static void test_cut_keeps_whole_characters(void **state)
{
    static const char *const characters[] = {"x", "ж", "€", "\xf0\x9f\x98\x80"};
    char text[2048];

    (void)state;
    for (size_t i = 0; i < 4; i++) {
        size_t width = strlen(characters[i]);

        for (size_t lead = 0; lead < 4; lead++) {
            struct error error;

            memset(text, '-', lead);
            for (size_t at = lead; at + width < sizeof text; at += width)
                memcpy(text + at, characters[i], width + 1);
            assert_int_equal(error_set(&error, "%s", text), -1);
            assert_int_equal((strlen(error.message) - lead) % width, 0);
            assert_true(strlen(error.message) > sizeof error.message - 8);
            assert_memory_equal(error.message, text, strlen(error.message));
        }
    }
}

static void test_short_messages_stay(void **state)
{
    struct error error;

    (void)state;
    assert_int_equal(error_set(&error, "field %s: %d", "ж", 3), -1);
    assert_string_equal(error.message, "field ж: 3");
    assert_int_equal(error_set(NULL, "nobody reads this"), -1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_cut_keeps_whole_characters),
        cmocka_unit_test(test_short_messages_stay),
    };

    return cmocka_run_group_tests_name("error", tests, NULL, NULL);
}
