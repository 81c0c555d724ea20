/* SPDX-License-Identifier: MIT */
#include "worker/service.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "kernels/base/clock.h"
#include "kernels/engine.h"
#include "kernels/text/prompt.h"
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

enum {
    SETTLE_EXTRA_MS = 3000, /* beyond the grace period: commits of what is finished */
    POLL_MS = 5
};

struct service {
    struct pipeline pipeline;
    bool started;
};

/* ---- making ---- */

static struct engine *engine_make(const struct config *config, struct error *error)
{
    struct engine_options options;

    engine_options_init(&options);
    options.device = config->engine_device;
    options.compute = strcmp(config->engine_compute, "auto") ? config->engine_compute : NULL;
    options.threads = (int32_t)config->engine_threads;
    options.cache_int8 = config->engine_cache_int8;
    options.max_rows = (int32_t)config->engine_max_rows;
    options.memory = (uint64_t)config->engine_memory_mb << 20;
    return engine_open(config->engine_model, &options, error);
}

static int model_load(struct pipeline *p, struct error *error)
{
    const struct engine_info *info;
    struct job_identity identity;
    int64_t begun = clock_mono_us();

    p->engine = engine_make(p->config, error);
    if (!p->engine)
        return -1;
    p->prompts =
        prompt_codec_open(p->config->engine_model, engine_limits(p->engine)->vocabulary, error);
    if (!p->prompts)
        return -1;
    info = engine_info(p->engine);
    identity = (struct job_identity){p->config->engine_model_name, info->model_version,
                                     info->engine_id, p->config->worker_name};
    job_identity_set(&identity);
    log_write(
        LOG_INFO, "main", NULL,
        "model %s loaded in %lld ms: version %s, engine_id %s, device %s, compute %s, %d rows, "
        "%llu MB",
        p->config->engine_model, (long long)(clock_mono_us() - begun) / 1000, info->model_version,
        info->engine_id, info->device, info->compute, engine_limits(p->engine)->max_rows,
        (unsigned long long)(info->weight_bytes + info->cache_bytes + info->work_bytes) >> 20);
    health_clear(p->health, HEALTH_ENGINE);
    return 0;
}

static int stages_create(struct pipeline *p, struct error *error)
{
    const struct config *c = p->config;

    return (p->assignment = assignment_create(error)) &&
                   (p->scheduler = scheduler_create((size_t)c->queue_max_jobs,
                                                    c->queue_ageing_ms * 1000, error)) &&
                   (p->settle = settle_create(p, error)) && (p->stream = stream_create(p, error)) &&
                   (p->engine_stage = engine_stage_create(p, error)) &&
                   (p->prepare = prepare_create(p, error)) &&
                   (p->control = control_create(p, error)) &&
                   (p->intake = intake_create(p, error)) &&
                   (!c->recorder_enabled || (p->recorder = recorder_create(p, error)))
               ? 0
               : -1;
}

struct service *service_create(const struct config *config, bool *usable, struct error *error)
{
    struct service *s = calloc(1, sizeof *s);
    struct pipeline *p = s ? &s->pipeline : NULL;

    *usable = true;
    metrics_set(METRIC_PROCESS_START, clock_wall_us() / 1000000);
    if (!s) {
        error_set(error, "out of memory");
        return NULL;
    }
    p->config = config;
    p->health = health_create(config->worker_stall_ms * 1000);
    if (!p->health) {
        error_set(error, "out of memory");
        goto failed;
    }
    p->http = http_create(p, error);
    if (!p->http || http_start(p->http, error))
        goto failed;
    *usable = !model_load(p, error);
    if (*usable && !stages_create(p, error))
        return s;
failed:
    service_destroy(s);
    return NULL;
}

/* ---- starting ---- */

/* The brokers may come up after the worker: it is alive and not ready until then. */
static int settle_wait(struct service *s, bool (*stopped)(void), struct error *error)
{
    struct pipeline *p = &s->pipeline;
    char reason[8];

    while (settle_start(p->settle, error)) {
        if (health_failed(p->health, reason, sizeof reason))
            return -1;
        if (stopped())
            return 1;
        health_block(p->health, HEALTH_ASSIGNMENT, error->message);
        log_write(LOG_WARN, "main", NULL, "%s; trying again", error->message);
        nanosleep(&(struct timespec){1, 0}, NULL);
    }
    return 0;
}

int service_start(struct service *s, bool (*stopped)(void), struct error *error)
{
    struct pipeline *p = &s->pipeline;
    int status = settle_wait(s, stopped, error);

    if (status)
        return status;
    s->started = true;
    if (stream_start(p->stream, error) || engine_stage_start(p->engine_stage, error) ||
        prepare_start(p->prepare, error) || control_start(p->control, error) ||
        (p->recorder && recorder_start(p->recorder, error)) || intake_start(p->intake, error))
        return -1;
    log_write(LOG_INFO, "main", NULL, "worker %s started: brokers %s, group %s",
              p->config->worker_name, p->config->kafka_brokers, p->config->kafka_group);
    return 0;
}

bool service_failed(struct service *s, struct error *reason)
{
    return health_failed(s->pipeline.health, reason->message, sizeof reason->message);
}

bool service_stalled(struct service *s, struct error *reason)
{
    return !health_alive(s->pipeline.health, clock_mono_us(), reason->message,
                         sizeof reason->message);
}

/* ---- draining ---- */

static bool settle_empty(struct pipeline *p)
{
    return settle_depth(p->settle) == 0;
}

static bool engine_empty(struct pipeline *p)
{
    return engine_stage_depth(p->engine_stage) == 0;
}

static void wait_until(struct pipeline *p, bool (*empty)(struct pipeline *), int64_t until_us)
{
    struct error reason;

    while (!empty(p) && clock_mono_us() < until_us &&
           !health_failed(p->health, reason.message, sizeof reason.message))
        nanosleep(&(struct timespec){0, POLL_MS * 1000000L}, NULL);
}

void service_drain(struct service *s)
{
    struct pipeline *p = &s->pipeline;
    int64_t until = clock_mono_us() + p->config->worker_drain_ms * 1000;

    health_block(p->health, HEALTH_DRAINING, "the worker drains: it was told to end");
    if (!s->started)
        return;
    log_write(LOG_INFO, "main", NULL, "draining: %zu jobs run, %zu wait; grace period %lld ms",
              engine_stage_depth(p->engine_stage),
              scheduler_depth(p->scheduler) + prepare_depth(p->prepare),
              (long long)p->config->worker_drain_ms);
    intake_drain(p->intake);
    engine_stage_close(p->engine_stage);
    wait_until(p, engine_empty, until);
    if (!engine_empty(p))
        log_write(LOG_WARN, "main", NULL, "%zu jobs did not end in time and are handed back",
                  engine_stage_depth(p->engine_stage));
    prepare_stop(p->prepare);
    engine_stage_stop(p->engine_stage);
    wait_until(p, settle_empty, until + SETTLE_EXTRA_MS * 1000);
    intake_stop(p->intake); /* hands the partitions back: after settle's last commit */
    settle_stop(p->settle, SETTLE_EXTRA_MS);
    stream_stop(p->stream);
    control_stop(p->control);
    if (p->recorder)
        recorder_stop(p->recorder);
    http_stop(p->http);
}

void service_destroy(struct service *s)
{
    struct pipeline *p = &s->pipeline;

    recorder_destroy(p->recorder);
    control_destroy(p->control);
    stream_destroy(p->stream);
    settle_destroy(p->settle);
    intake_destroy(p->intake);
    prepare_destroy(p->prepare);
    engine_stage_destroy(p->engine_stage);
    scheduler_destroy(p->scheduler);
    assignment_destroy(p->assignment);
    prompt_codec_close((struct prompt_codec *)p->prompts);
    engine_close(p->engine);
    http_destroy(p->http);
    health_destroy(p->health);
    free(s);
}
