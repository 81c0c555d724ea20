/* SPDX-License-Identifier: MIT
 *
 * The window that keeps lines in order, and lines read from a slow descriptor.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "producer/order.h"
#include "producer/text_input.h"

static void test_any_order_in_same_order_out(void **state)
{
    enum { CAPACITY = 7, ITEMS = 20000 };
    static int items[ITEMS];
    struct order_slot *slots[ITEMS];
    struct order order;
    int added = 0, taken = 0;

    (void)state;
    srand(3);
    assert_int_equal(order_init(&order, CAPACITY), 0);
    while (taken < ITEMS) {
        int open = added - taken;
        int *item;

        if (added < ITEMS && rand() % 3) {
            struct order_slot *slot = order_add(&order, &items[added]);

            assert_int_equal(slot == NULL, open == CAPACITY);
            if (slot)
                slots[added++] = slot;
        }
        if (added > taken && rand() % 2)
            slots[taken + rand() % (added - taken)]->finished = true;
        assert_ptr_equal(order_peek(&order, 0), added > taken ? &items[taken] : NULL);
        do {
            bool ready = added > taken && slots[taken]->finished;

            item = order_take(&order);
            assert_ptr_equal(item, ready ? &items[taken] : NULL);
            taken += ready;
        } while (item);
        assert_int_equal(order.count, added - taken);
        assert_true(added == taken || !slots[taken]->finished);
    }
    order_free(&order);
}

static void write_all(int descriptor, const char *text)
{
    assert_int_equal(write(descriptor, text, strlen(text)), strlen(text));
}

static void expect_line(struct text_lines *lines, const char *expected)
{
    char *line;

    assert_int_equal(text_lines_next(lines, 0, &line, NULL), TEXT_LINE);
    assert_string_equal(line, expected);
}

static void test_lines_from_a_slow_pipe(void **state)
{
    struct text_lines lines;
    char *line;
    int ends[2];

    (void)state;
    assert_int_equal(pipe(ends), 0);
    assert_int_equal(text_lines_init(&lines, ends[0], NULL), 0);
    assert_int_equal(text_lines_next(&lines, 0, &line, NULL), TEXT_NOT_YET);
    write_all(ends[1], "one\n\ntw");
    expect_line(&lines, "one");
    expect_line(&lines, "");
    assert_int_equal(text_lines_next(&lines, 1, &line, NULL), TEXT_NOT_YET);
    write_all(ends[1], "o\r\nlast without newline");
    expect_line(&lines, "two");
    assert_int_equal(text_lines_next(&lines, 0, &line, NULL), TEXT_NOT_YET);
    close(ends[1]);
    expect_line(&lines, "last without newline");
    assert_int_equal(text_lines_next(&lines, 0, &line, NULL), TEXT_ENDED);
    text_lines_free(&lines);
    close(ends[0]);
}

static void test_long_lines(void **state)
{
    FILE *file = tmpfile();
    struct text_lines lines;
    struct error error;
    char *line;

    (void)state;
    assert_non_null(file);
    for (int i = 0; i < TEXT_INPUT_MAX - 1; i++)
        fputc('x', file);
    fputs("\nshort\n", file);
    for (int i = 0; i < TEXT_INPUT_MAX; i++)
        fputc('y', file);
    fputc('\n', file);
    fflush(file);
    rewind(file);
    assert_int_equal(text_lines_init(&lines, fileno(file), NULL), 0);
    assert_int_equal(text_lines_next(&lines, 0, &line, &error), TEXT_LINE);
    assert_int_equal(strlen(line), TEXT_INPUT_MAX - 1);
    expect_line(&lines, "short");
    assert_int_equal(text_lines_next(&lines, 0, &line, &error), TEXT_ERROR);
    assert_non_null(strstr(error.message, "longer than"));
    text_lines_free(&lines);
    fclose(file);
}

static void test_whole_text(void **state)
{
    FILE *file = tmpfile();
    struct error error;
    char *text;

    (void)state;
    fputs("two\nlines\r\n\n", file);
    rewind(file);
    text = text_input_all(file, 100, &error);
    assert_string_equal(text, "two\nlines");
    free(text);
    rewind(file);
    assert_null(text_input_all(file, 5, &error));
    assert_non_null(strstr(error.message, "longer than 5 bytes"));
    fclose(file);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_any_order_in_same_order_out),
        cmocka_unit_test(test_lines_from_a_slow_pipe),
        cmocka_unit_test(test_long_lines),
        cmocka_unit_test(test_whole_text),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
