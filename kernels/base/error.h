/* SPDX-License-Identifier: MIT
 *
 * error: the text of the last failure, written by the callee and read by the caller.
 * Every fallible function returns 0 (or a pointer) on success and -1 (or NULL) after it filled a
 * `struct error` that names the field, file or setting at fault and the remedy. Plain data, no
 * owner; any thread, one at a time.
 */
#ifndef PGPT_KERNELS_BASE_ERROR_H
#define PGPT_KERNELS_BASE_ERROR_H

#ifdef __cplusplus
extern "C" {
#endif

#define PGPT_MUST_CHECK __attribute__((warn_unused_result))
#define PGPT_PRINTF(format_index, first_arg)                                                       \
    __attribute__((format(printf, format_index, first_arg)))

struct error {
    char message[1024]; /* UTF-8, always NUL-terminated, cut when longer */
};

/* Formats the message; error may be NULL. Returns -1, so that `return error_set(...)` reads well.
 */
int error_set(struct error *error, const char *format, ...) PGPT_PRINTF(2, 3);

#ifdef __cplusplus
}
#endif
#endif
