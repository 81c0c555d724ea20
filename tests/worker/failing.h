/* SPDX-License-Identifier: MIT
 *
 * failing: calls of the worker, the client and the base library that fail when a test says so: of
 * librdkafka, libpq, the allocator and for threads. tests/failing.cmake makes copies of their
 * libraries whose references to what failing.c lists go there; librdkafka, libpq and the tests
 * themselves keep the real ones. For what a mock cluster or a broken server cannot be made to
 * answer. Any thread.
 */
#ifndef PGPT_TESTS_FAILING_H
#define PGPT_TESTS_FAILING_H

#include <librdkafka/rdkafka.h>

/* Of the calls of `name` (as it is spelled there; "memory" = malloc, calloc, realloc and strdup)
 * that follow, `count` fail from the at-th on; at 1 is the next. Forgets what was set before. */
void failing_set(const char *name, int at, int count);

/* The same, with the code that a call of librdkafka answers; else it is _STATE. */
void failing_set_code(const char *name, int at, int count, rd_kafka_resp_err_t code);

/* Ends it; how many calls have failed since it was set. A test says what it expects. */
int failing_clear(void);

/* How many have failed so far. */
int failing_hits(void);

#endif
