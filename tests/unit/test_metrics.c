/* SPDX-License-Identifier: MIT
 * The metrics page follows the text format: one HELP and TYPE a name, cumulative buckets, numbers.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "worker/metrics.h"

static char *render(void)
{
    size_t size = 0;
    char *text = metrics_render(&size);

    assert_non_null(text);
    assert_int_equal(size, strlen(text));
    return text;
}

static double value_of(const char *text, const char *sample)
{
    char wanted[256];
    const char *at;

    snprintf(wanted, sizeof wanted, "\n%s ", sample);
    at = strstr(text, wanted);
    if (!at)
        fail_msg("no sample %s", sample);
    return strtod(at + strlen(wanted), NULL);
}

static void counters_and_gauges(void **state)
{
    char *text;

    (void)state;
    metrics_add(METRIC_JOBS_COMPLETED, 3);
    metrics_add(METRIC_JOBS_COMPLETED, 4);
    metrics_set(METRIC_QUEUE_DEPTH, 9);
    metrics_set(METRIC_QUEUE_DEPTH, 5);
    assert_int_equal(metrics_value(METRIC_JOBS_COMPLETED), 7);
    text = render();
    assert_true(value_of(text, "pgpt_jobs_total{outcome=\"completed\"}") == 7);
    assert_true(value_of(text, "pgpt_jobs_total{outcome=\"failed\"}") == 0);
    assert_true(value_of(text, "pgpt_queue_jobs") == 5);
    free(text);
}

static void histograms_are_cumulative_and_in_seconds(void **state)
{
    static const int64_t micros[] = {1, 10, 11, 1000, 5000000, 400000000};
    char *text;

    (void)state;
    for (int i = 0; i < 6; i++)
        metrics_observe(METRIC_COMMIT_TIME, micros[i]);
    text = render();
    assert_true(value_of(text, "pgpt_commit_seconds_bucket{le=\"1e-05\"}") == 2); /* 10 us is in */
    assert_true(value_of(text, "pgpt_commit_seconds_bucket{le=\"2.5e-05\"}") == 3);
    assert_true(value_of(text, "pgpt_commit_seconds_bucket{le=\"0.001\"}") == 4);
    assert_true(value_of(text, "pgpt_commit_seconds_bucket{le=\"300\"}") == 5);
    assert_true(value_of(text, "pgpt_commit_seconds_bucket{le=\"+Inf\"}") == 6);
    assert_true(value_of(text, "pgpt_commit_seconds_count") == 6);
    assert_true(value_of(text, "pgpt_commit_seconds_sum") > 405.001);
    assert_true(value_of(text, "pgpt_commit_seconds_sum") < 405.002);
    free(text);
}

/* Every line is a comment, or name, labels and a number; a family is described once, before it. */
static void each_line_is_of_the_format(void **state)
{
    char *text = render(), *save = NULL, family[128] = "", seen[16384] = "";

    (void)state;
    for (char *line = strtok_r(text, "\n", &save); line; line = strtok_r(NULL, "\n", &save)) {
        char name[128], wanted[160], *end;

        if (sscanf(line, "# TYPE %127s", family) == 1) {
            snprintf(wanted, sizeof wanted, " %s ", family);
            if (strstr(seen, wanted))
                fail_msg("%s is described twice", family);
            strncat(seen, wanted, sizeof seen - strlen(seen) - 1);
            continue;
        }
        if (*line == '#') {
            assert_int_equal(strncmp(line, "# HELP pgpt_", 12), 0);
            assert_non_null(strchr(line + 12, ' ')); /* with a text */
            continue;
        }
        assert_int_equal(sscanf(line, "%127[a-z0-9_]", name), 1);
        if (strncmp(name, family, strlen(family)))
            fail_msg("%s stands under %s", name, family);
        strtod(strrchr(line, ' ') + 1, &end);
        assert_int_equal(*end, '\0');
    }
    free(text);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(counters_and_gauges),
        cmocka_unit_test(histograms_are_cumulative_and_in_seconds),
        cmocka_unit_test(each_line_is_of_the_format),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
