/* SPDX-License-Identifier: MIT
 * What is a character of UTF-8, byte by byte after table 3-7 of the Unicode standard: every
 * sequence of up to three bytes, and those of four at all borders, alone and behind ASCII. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <cmocka.h>

#include "kernels/text/utf8.h"

static const struct {
    uint8_t first[2], second[2];
    size_t length;
} rows[] = {{{0x00, 0x7F}, {0, 0}, 1},       {{0xC2, 0xDF}, {0x80, 0xBF}, 2},
            {{0xE0, 0xE0}, {0xA0, 0xBF}, 3}, {{0xE1, 0xEC}, {0x80, 0xBF}, 3},
            {{0xED, 0xED}, {0x80, 0x9F}, 3}, {{0xEE, 0xEF}, {0x80, 0xBF}, 3},
            {{0xF0, 0xF0}, {0x90, 0xBF}, 4}, {{0xF1, 0xF3}, {0x80, 0xBF}, 4},
            {{0xF4, 0xF4}, {0x80, 0x8F}, 4}};

static size_t wanted_length(const uint8_t *p, size_t size)
{
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        size_t at = 2;

        if (p[0] < rows[i].first[0] || p[0] > rows[i].first[1])
            continue;
        if (rows[i].length > size)
            return 0;
        if (rows[i].length > 1 && (p[1] < rows[i].second[0] || p[1] > rows[i].second[1]))
            return 0;
        while (at < rows[i].length && p[at] >= 0x80 && p[at] <= 0xBF)
            at++;
        return at < rows[i].length ? 0 : rows[i].length;
    }
    return 0;
}

static bool wanted_valid(const uint8_t *p, size_t size)
{
    size_t length;

    for (; size; p += length, size -= length)
        if (!(length = wanted_length(p, size)))
            return false;
    return true;
}

static void check(const uint8_t *p, size_t size)
{
    uint32_t code;

    if (utf8_valid((const char *)p, size) != wanted_valid(p, size) ||
        utf8_decode((const char *)p, size, &code) != (int)wanted_length(p, size))
        fail_msg("%zu bytes %02x %02x %02x %02x", size, p[0], p[1], p[2], p[3]);
}

static void test_up_to_three_bytes(void **state)
{
    uint8_t p[5]; /* behind what is looked at lies what would go on with it */

    (void)state;
    memset(p, 0x80, sizeof p);
    for (uint32_t all = 0; all < 1u << 24; all++) {
        p[0] = (uint8_t)all;
        p[1] = (uint8_t)(all >> 8);
        p[2] = (uint8_t)(all >> 16);
        check(p, 3);
        if (p[2] == 0x80)
            check(p, 2);
        if (p[2] == 0x80 && p[1] == 0x80)
            check(p, 1);
    }
}

static void test_four_bytes(void **state)
{
    static const uint8_t borders[] = {0x00, 0x7F, 0x80, 0x8F, 0x90, 0x9F, 0xA0, 0xBF, 0xC0, 0xFF};
    enum { BORDERS = sizeof borders };
    uint8_t p[5] = {[4] = 0x80};

    (void)state;
    for (int first = 0; first < 256; first++)
        for (int i = 0; i < BORDERS * BORDERS * BORDERS; i++) {
            p[0] = (uint8_t)first;
            p[1] = borders[i % BORDERS];
            p[2] = borders[i / BORDERS % BORDERS];
            p[3] = borders[i / BORDERS / BORDERS];
            check(p, 4);
        }
}

/* Eight bytes of ASCII are looked at together, wherever they begin. */
static void test_behind_ascii(void **state)
{
    static const char *const tails[] = {"",     "\xD0\xB6",         "\xD0",
                                        "\xB6", "\xF0\x9F\x98\x80", "\x80z"};
    uint8_t text[64];

    (void)state;
    for (size_t ascii = 0; ascii < 40; ascii++)
        for (size_t i = 0; i < sizeof tails / sizeof *tails; i++) {
            size_t size = ascii + strlen(tails[i]);

            memset(text, 'a', sizeof text);
            memcpy(text + ascii, tails[i], strlen(tails[i]));
            assert_int_equal(utf8_valid((const char *)text, size + 9),
                             wanted_valid(text, size + 9));
        }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_up_to_three_bytes),
        cmocka_unit_test(test_four_bytes),
        cmocka_unit_test(test_behind_ascii),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
