/* SPDX-License-Identifier: MIT
 *
 * Memory and threads that run out: every allocation of what the worker makes at its start fails
 * once, on a copy of its library whose calls go through tests/worker/failing.h. Each time it says
 * so and leaves nothing behind (which AddressSanitizer sees).
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "tests/unit/worker_fixture.h"

#include "kernels/engine.h"
#include "kernels/text/prompt.h"
#include "tests/worker/failing.h"
#include "worker/assignment.h"
#include "worker/control.h"
#include "worker/engine_stage.h"
#include "worker/health.h"
#include "worker/http.h"
#include "worker/intake.h"
#include "worker/prepare.h"
#include "worker/recorder.h"
#include "worker/settle.h"
#include "worker/stream.h"
#include "worker/takeover.h"

#define MODEL PGPT_SOURCE_DIR "/models/prometheus-mini"

static struct pipeline p;
static struct config *config;
static struct error error;
static const _Atomic bool draining;

static int setup(void **state)
{
    struct engine_options options;

    (void)state;
    log_configure(LOG_ERROR, LOG_LOGFMT, "test");
    setenv("PGPT_RECORDER_ENABLED", "false", 1);
    setenv("PGPT_WORKER_NAME", "worker-1", 1);
    setenv("PGPT_KAFKA_LINGER_MS", "1", 1);
    config = config_load(NULL, stderr);
    assert_non_null(config);
    config->http_port = 0;
    p.config = config;
    p.health = health_create(1000000);
    engine_options_init(&options);
    options.max_rows = 8;
    p.engine = engine_open(MODEL, &options, &error);
    if (!p.engine)
        fail_msg("%s", error.message);
    p.prompts = prompt_codec_open(MODEL, engine_limits(p.engine)->vocabulary, &error);
    p.scheduler = scheduler_create(64, 1000, &error);
    assert_non_null(p.prompts);
    assert_non_null(p.scheduler);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    scheduler_destroy(p.scheduler);
    prompt_codec_close((struct prompt_codec *)p.prompts);
    engine_close(p.engine);
    health_destroy(p.health);
    config_free(config);
    return 0;
}

/* ---- what is made ---- */

static void *make_health(void)
{
    return health_create(1000);
}

static void *make_assignment(void)
{
    return assignment_create(&error);
}

static void *make_scheduler(void)
{
    return scheduler_create(64, 1000, &error);
}

static void *make_settle(void)
{
    return settle_create(&p, &error);
}

static void *make_stream(void)
{
    return stream_create(&p, &error);
}

static void *make_engine_stage(void)
{
    return engine_stage_create(&p, &error);
}

static void *make_prepare(void)
{
    return prepare_create(&p, &error);
}

static void *make_control(void)
{
    return control_create(&p, &error);
}

static void *make_takeover(void)
{
    return takeover_create(&p, &draining, &error);
}

static void *make_intake(void)
{
    return intake_create(&p, &error);
}

static void *make_recorder(void)
{
    return recorder_create(&p, &error);
}

static void *make_http(void)
{
    return http_create(&p, &error);
}

static void *make_config(void)
{
    FILE *problems = fmemopen(error.message, sizeof error.message, "w");
    struct config *made = config_load(NULL, problems);

    fclose(problems);
    return made;
}

/* With what is looked at once all of it is read, and more than one setting for librdkafka. */
static void *make_config_checked(void)
{
    void *made;

    setenv("PGPT_RECORDER_ENABLED", "true", 1);
    setenv("PGPT_DATABASE_URL", "postgresql://recorder@host/pgpt", 1);
    setenv("PGPT_KAFKA_CLIENT_RACK", "a", 1);
    unsetenv("PGPT_WORKER_NAME");
    made = make_config();
    setenv("PGPT_RECORDER_ENABLED", "false", 1);
    unsetenv("PGPT_DATABASE_URL");
    unsetenv("PGPT_KAFKA_CLIENT_RACK");
    setenv("PGPT_WORKER_NAME", "worker-1", 1);
    return made;
}

static void *make_duplicates(void)
{
    return duplicates_create((struct duplicates_limits){1000000, 100, 1000});
}

typedef void (*destroy)(void *);
#define PART(name)                                                                                 \
    {                                                                                              \
#name, make_##name, (destroy)(void (*)(void))name##_destroy, true                          \
    }
static const struct part {
    const char *name;
    void *(*make)(void);
    destroy destroy;
    bool says; /* it has an error to say it with */
} parts[] = {PART(assignment),
             PART(scheduler),
             PART(settle),
             PART(stream),
             PART(engine_stage),
             PART(prepare),
             PART(control),
             PART(takeover),
             PART(intake),
             PART(recorder),
             PART(http),
             {"config", make_config, (destroy)(void (*)(void))config_free, true},
             {"config, checked", make_config_checked, (destroy)(void (*)(void))config_free, true},
             {"health", make_health, (destroy)(void (*)(void))health_destroy, false},
             {"duplicates", make_duplicates, (destroy)(void (*)(void))duplicates_destroy, false}};

/* How many calls of `function` this part makes: each of them fails once. */
static int fails_at_each(const struct part *part, const char *function)
{
    for (int at = 1;; at++) {
        void *made;

        *error.message = '\0';
        failing_set(function, at, 1);
        made = part->make();
        if (!failing_clear()) {
            if (!made)
                fail_msg("%s: %s", part->name, error.message);
            part->destroy(made);
            return at - 1;
        }
        if (made)
            fail_msg("%s was made without its %s number %d", part->name, function, at);
        if (part->says && !*error.message)
            fail_msg("%s does not say why: %s number %d", part->name, function, at);
    }
}

static void without_memory_nothing_is_made(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++)
        if (fails_at_each(&parts[i], "calloc") + fails_at_each(&parts[i], "malloc") +
                fails_at_each(&parts[i], "realloc") + fails_at_each(&parts[i], "strdup") ==
            0)
            fail_msg("%s allocates nothing", parts[i].name);
}

/* ---- threads ---- */

static void without_a_thread_nothing_starts(void **state)
{
    struct prepare *prepare = prepare_create(&p, &error);
    struct engine_stage *stage = engine_stage_create(&p, &error);

    (void)state;
    failing_set("pthread_create", 1, 1);
    assert_int_equal(prepare_start(prepare, &error), -1);
    assert_non_null(strstr(error.message, "worker.prepare_threads"));
    prepare_destroy(prepare);
    failing_set("pthread_create", 1, 1);
    assert_int_equal(engine_stage_start(stage, &error), -1);
    assert_non_null(strstr(error.message, "text thread"));
    failing_set("pthread_create", 2, 1);
    assert_int_equal(engine_stage_start(stage, &error), -1);
    assert_non_null(strstr(error.message, "engine's thread"));
    assert_int_equal(failing_clear(), 1);
    engine_stage_stop(stage); /* the text thread runs */
    engine_stage_destroy(stage);
}

/* ---- while it runs ---- */

static void a_partition_is_not_owned_without_memory(void **state)
{
    struct assignment *a = assignment_create(&error);
    struct assignment_transaction t;
    struct job_list jobs, stale;
    struct ledger ledger;

    (void)state;
    ledger_init(&ledger, 0, 16);
    failing_set("malloc", 1, 1);
    assert_int_equal(assignment_take(a, 0, &ledger, NULL), -1);
    failing_clear();
    assert_int_equal(assignment_take(a, 0, &ledger, make_duplicates()), 0);
    job_list_init(&jobs);
    job_list_init(&stale);
    job_list_push(&jobs, fixture_job(0, 0, 1, 1));
    failing_set("realloc", 1, 1);
    assert_int_equal(assignment_open(a, &jobs, &stale, &t, &error), -1);
    assert_int_equal(failing_clear(), 1);
    assert_int_equal(jobs.count, 1);                   /* kept, to be tried again */
    assert_true(assignment_give_up(a, 0, 0, &ledger)); /* in no transaction */
    fixture_jobs_destroy(&jobs);
    assignment_destroy(a);
}

/* A window without memory for one more id takes the request for a new one. */
static void a_window_without_memory_lets_requests_through(void **state)
{
    struct duplicates *d = make_duplicates();
    uint8_t id[16];

    (void)state;
    fixture_id(7, id);
    failing_set("calloc", 1, 1);
    assert_true(duplicates_begin(d, id, 1));
    assert_int_equal(failing_clear(), 1);
    assert_true(duplicates_begin(d, id, 2)); /* nothing knows of the first */
    assert_false(duplicates_begin(d, id, 3));
    duplicates_destroy(d);
}

static void a_page_of_metrics_needs_memory(void **state)
{
    size_t size;
    char *text;

    (void)state;
    failing_set("open_memstream", 1, 1);
    assert_null(metrics_render(&size));
    assert_int_equal(failing_clear(), 1);
    text = metrics_render(&size);
    assert_non_null(text);
    free(text);
}

static void a_job_needs_memory(void **state)
{
    (void)state;
    failing_set("memory", 1, 1);
    assert_null(job_create(100));
    assert_int_equal(failing_clear(), 1);
    assert_int_equal(job_alive(), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(without_memory_nothing_is_made),
        cmocka_unit_test(without_a_thread_nothing_starts),
        cmocka_unit_test(a_partition_is_not_owned_without_memory),
        cmocka_unit_test(a_window_without_memory_lets_requests_through),
        cmocka_unit_test(a_page_of_metrics_needs_memory),
        cmocka_unit_test(a_job_needs_memory),
    };

    return cmocka_run_group_tests(tests, setup, teardown);
}
