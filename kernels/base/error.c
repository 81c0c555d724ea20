/* SPDX-License-Identifier: MIT */
#include "kernels/base/error.h"

#include <stdarg.h>
#include <stdio.h>

/* Takes off the last character when it is not ASCII: it may be cut, and readers refuse a half. */
static void cut_at_character(char *message, size_t size)
{
    while (size && ((unsigned char)message[size - 1] & 0xc0) == 0x80)
        size--;
    if (size && (unsigned char)message[size - 1] >= 0xc0)
        size--;
    message[size] = '\0';
}

int error_set(struct error *error, const char *format, ...)
{
    va_list args;
    int written;

    if (!error)
        return -1;
    va_start(args, format);
    written = vsnprintf(error->message, sizeof error->message, format, args);
    va_end(args);
    if (written >= (int)sizeof error->message)
        cut_at_character(error->message, sizeof error->message - 1);
    return -1;
}
