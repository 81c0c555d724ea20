/* SPDX-License-Identifier: MIT */
#include "kernels/text/utf8.h"

#include <string.h>

int utf8_length(uint8_t first)
{
    if (first < 0x80)
        return 1;
    if ((first & 0xE0) == 0xC0)
        return 2;
    if ((first & 0xF0) == 0xE0)
        return 3;
    return (first & 0xF8) == 0xF0 ? 4 : 0;
}

int utf8_decode(const char *p, size_t size, uint32_t *code)
{
    static const uint32_t least[] = {0, 0, 0x80, 0x800, 0x10000};
    uint8_t first = size ? (uint8_t)p[0] : 0x80;
    int length = utf8_length(first);
    uint32_t c;

    if (length == 0 || (size_t)length > size)
        return 0;
    c = length == 1 ? first : first & (0x7Fu >> length);
    for (int i = 1; i < length; i++) {
        if (((uint8_t)p[i] & 0xC0) != 0x80)
            return 0;
        c = c << 6 | ((uint8_t)p[i] & 0x3F);
    }
    if (c < least[length] || c > 0x10FFFF || (c >= 0xD800 && c <= 0xDFFF))
        return 0;
    *code = c;
    return length;
}

/* Almost all text is ASCII or of two bytes a character; these take no call. */
static size_t common_length(const uint8_t *p, size_t size)
{
    uint64_t eight;

    if (size >= sizeof eight) {
        memcpy(&eight, p, sizeof eight);
        if (!(eight & 0x8080808080808080u))
            return sizeof eight;
    }
    if (*p < 0x80)
        return 1;
    return size >= 2 && *p >= 0xC2 && *p < 0xE0 && (p[1] & 0xC0) == 0x80 ? 2 : 0;
}

bool utf8_valid(const char *p, size_t size)
{
    while (size) {
        size_t length = common_length((const uint8_t *)p, size);
        uint32_t code;

        if (!length)
            length = (size_t)utf8_decode(p, size, &code);
        if (!length)
            return false;
        p += length;
        size -= length;
    }
    return true;
}

size_t utf8_cut(const char *p, size_t size, size_t limit)
{
    if (size <= limit)
        return size;
    while (limit > 0 && ((uint8_t)p[limit] & 0xC0) == 0x80)
        limit--;
    return limit;
}

bool utf8_is_space(uint32_t code)
{
    return (code >= 0x09 && code <= 0x0D) || (code >= 0x1C && code <= 0x20) || code == 0x85 ||
           code == 0xA0 || code == 0x1680 || (code >= 0x2000 && code <= 0x200A) || code == 0x2028 ||
           code == 0x2029 || code == 0x202F || code == 0x205F || code == 0x3000;
}
