/* SPDX-License-Identifier: MIT
 *
 * threads_time: processor seconds of each thread of a process so far, from /proc; for benchmarks
 * that say which thread is the bottleneck.
 */
#ifndef PGPT_TESTS_THREADS_TIME_H
#define PGPT_TESTS_THREADS_TIME_H

#include <dirent.h>
#include <stdio.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

static inline double thread_seconds(const char *path, char name[32])
{
    char text[512], *end;
    FILE *file = fopen(path, "r");
    size_t size = file ? fread(text, 1, sizeof text - 1, file) : 0;
    unsigned long user = 0, system = 0;

    if (file)
        fclose(file);
    text[size] = '\0';
    end = strrchr(text, ')');
    if (!end || sscanf(text, "%*d (%31[^)]", name) != 1 ||
        sscanf(end + 2, "%*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %lu %lu", &user, &system) != 2)
        return 0.0;
    return (double)(user + system) / (double)sysconf(_SC_CLK_TCK);
}

/* One line: every thread with 0.02 s or more. */
static inline void threads_time_print(const char *title, pid_t process)
{
    char path[288];
    struct dirent *entry;
    DIR *directory;

    snprintf(path, sizeof path, "/proc/%d/task", (int)process);
    directory = opendir(path);
    printf("%s, processor seconds:", title);
    while (directory && (entry = readdir(directory))) {
        char name[32] = "?";
        double seconds;

        snprintf(path, sizeof path, "/proc/%d/task/%.16s/stat", (int)process, entry->d_name);
        seconds = entry->d_name[0] == '.' ? 0.0 : thread_seconds(path, name);
        if (seconds >= 0.02)
            printf(" %s %.2f", name, seconds);
    }
    printf("\n");
    if (directory)
        closedir(directory);
    fflush(stdout);
}

#endif
