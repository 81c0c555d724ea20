/* SPDX-License-Identifier: MIT
 *
 * deploy/worker.conf.sample is what the program prints (pgpt-worker --print-sample-config), and a
 * file that sets every line of it is one that the program reads.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "worker/config.h"

#define SAMPLE PGPT_SOURCE_DIR "/deploy/worker.conf.sample"

static char *printed(void)
{
    char *text = NULL;
    size_t size;
    FILE *out = open_memstream(&text, &size);

    assert_non_null(out);
    config_print_sample(out);
    assert_int_equal(fclose(out), 0);
    return text;
}

static char *file_text(const char *path)
{
    char *text = NULL;
    size_t size = 0;
    FILE *file = fopen(path, "r");

    if (!file)
        fail_msg("%s cannot be opened", path);
    if (getdelim(&text, &size, '\0', file) < 0)
        fail_msg("%s is empty", path);
    fclose(file);
    return text;
}

static void file_is_what_the_program_prints(void **state)
{
    char *wanted = printed(), *text = file_text(SAMPLE);

    (void)state;
    if (strcmp(text, wanted) != 0)
        fail_msg("deploy/worker.conf.sample is stale: pgpt-worker --print-sample-config >%s",
                 SAMPLE);
    free(text);
    free(wanted);
}

/* "#name = value" lines without their "#", with what the defaults lack. */
static void every_line_is_a_setting(void **state)
{
    char path[] = "/tmp/pgpt-sample-XXXXXX", *text = printed(), *at = text, *line;
    FILE *file = fdopen(mkstemp(path), "w");
    struct config *config;
    int settings = 0;

    (void)state;
    assert_non_null(file);
    while ((line = strsep(&at, "\n")))
        if (line[0] == '#' && line[1] && line[1] != ' ') {
            settings++;
            if (!strncmp(line, "#database_url", 13))
                fputs("database_url = postgresql://recorder@127.0.0.1/pgpt\n", file);
            else
                fprintf(file, "%s\n", line + 1);
        }
    assert_int_equal(fclose(file), 0);
    assert_true(settings > 40);
    config = config_load(path, stderr);
    unlink(path);
    assert_non_null(config);
    assert_int_equal(config->queue_max_jobs, 4096);
    assert_string_equal(config->topic_requests, "pgpt.requests");
    config_free(config);
    free(text);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(file_is_what_the_program_prints),
                                       cmocka_unit_test(every_line_is_a_setting)};

    return cmocka_run_group_tests(tests, NULL, NULL);
}
