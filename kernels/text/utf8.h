/* SPDX-License-Identifier: MIT
 *
 * utf8: one character of UTF-8 at a time. Pure functions; any thread may call.
 */
#ifndef PGPT_KERNELS_TEXT_UTF8_H
#define PGPT_KERNELS_TEXT_UTF8_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Bytes that a character with this first byte has: 1..4; 0 = no character begins so. */
int utf8_length(uint8_t first);

/* Length of the valid character at p (no overlong form, no surrogate, at most U+10FFFF), its code
 * point in *code; 0 when there is none within size bytes. */
int utf8_decode(const char *p, size_t size, uint32_t *code);

bool utf8_valid(const char *p, size_t size);

/* The longest prefix of at most `limit` bytes that does not split a character of valid text. */
size_t utf8_cut(const char *p, size_t size, size_t limit);

/* White space as Python's str.strip() takes it. */
bool utf8_is_space(uint32_t code);

#ifdef __cplusplus
}
#endif
#endif
