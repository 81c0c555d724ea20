/* SPDX-License-Identifier: MIT */
#include "schema/records.h"

static int hex_digit(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    if (c >= 'a' && c <= 'f')
        return c - 'a' + 10;
    if (c >= 'A' && c <= 'F')
        return c - 'A' + 10;
    return -1;
}

static int is_dash(int position)
{
    return position == 8 || position == 13 || position == 18 || position == 23;
}

int uuid_parse(struct text text, uint8_t id[16])
{
    int nibbles = 0;

    if (text.size != 36)
        return -1;
    for (int i = 0; i < 36; i++) {
        int digit = hex_digit(text.data[i]);

        if (is_dash(i)) {
            if (text.data[i] != '-')
                return -1;
            continue;
        }
        if (digit < 0)
            return -1;
        if (nibbles % 2)
            id[nibbles / 2] = (uint8_t)(id[nibbles / 2] | digit);
        else
            id[nibbles / 2] = (uint8_t)(digit << 4);
        nibbles++;
    }
    return 0;
}

void uuid_format(const uint8_t id[16], char out[37])
{
    static const char digits[] = "0123456789abcdef";
    int nibbles = 0;

    for (int i = 0; i < 36; i++) {
        if (is_dash(i)) {
            out[i] = '-';
            continue;
        }
        out[i] = digits[nibbles % 2 ? id[nibbles / 2] & 15 : id[nibbles / 2] >> 4];
        nibbles++;
    }
    out[36] = '\0';
}
