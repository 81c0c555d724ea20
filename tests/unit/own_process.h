/* SPDX-License-Identifier: MIT
 *
 * own_process: parts of a test program that need a process of their own, which ends as it is: a
 * client that waits for an assignment, or for one to be given up, can never be destroyed. The
 * program runs itself again with the part's name as its only argument. Main thread.
 */
#ifndef PGPT_TESTS_UNIT_OWN_PROCESS_H
#define PGPT_TESTS_UNIT_OWN_PROCESS_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

extern void __gcov_dump(void) __attribute__((weak));

/* In the test: the part passes when its process ends with 0. */
static void in_a_process(const char *name)
{
    const char *options = getenv("TSAN_OPTIONS");
    char all[1024];
    pid_t child;
    int status;

    snprintf(all, sizeof all, "%s report_thread_leaks=0", options ? options : "");
    child = fork();
    if (!child) {
        setenv("TSAN_OPTIONS", all, 1);
        execl("/proc/self/exe", "test", name, (char *)NULL);
        _exit(127);
    }
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_int_equal(status, 0);
}

/* In the part's process: it has passed. Counts of coverage are kept. */
static void own_process_end(void)
{
    if (__gcov_dump)
        __gcov_dump();
    _exit(0);
}

#endif
