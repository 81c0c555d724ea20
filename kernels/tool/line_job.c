/* SPDX-License-Identifier: MIT */
#include "kernels/tool/line_job.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/generate/validate.h"
#include "kernels/tool/request_json.h"
#include "kernels/tool/result_json.h"

enum { ARENA_FIRST = 16 << 10, ARENA_MAX = 256 << 20 };

static struct text text_of(const char *string)
{
    return (struct text){string, strlen(string)};
}

static void finish(struct line_job *job, const struct line_setup *setup,
                   struct generation_result *result, int64_t now)
{
    const struct engine_info *info = engine_info(setup->engine);

    result->job_id = job->request.job_id.size ? job->request.job_id : text_of(job->id);
    result->attempt = 1;
    result->timings = job->timings;
    result->timings.total_us = now - job->read_us;
    if (job->steps)
        result->timings.batch_size_mean = job->rows_weighted / (double)job->steps;
    result->model = text_of(setup->model_name);
    result->model_version = text_of(info->model_version);
    result->engine_id = text_of(info->engine_id);
    result->metadata = job->request.metadata;
    result->metadata_count = job->request.metadata_count;
    job->generated_tokens = result->usage.generated_tokens;
    job->failed = strcmp(result->status, "completed") != 0;
    job->out = result_json_write(result, &job->out_size);
    job->state = LINE_DONE;
    if (job->arena) /* nothing of the request is needed any more */
        arena_reset(job->arena);
}

static void fail(struct line_job *job, const struct line_setup *setup, const char *error_class,
                 const char *message, int64_t now)
{
    struct generation_result result = {
        .status = "failed",
        .has_error = true,
        .error = {text_of(error_class), text_of(message)},
        .usage = {.prompt_tokens = job->source_count},
    };

    finish(job, setup, &result, now);
}

/* Zeroed but for the arena, which is emptied. */
static int start(struct line_job *job, int64_t number, int64_t now)
{
    struct arena *arena = job->arena ? job->arena : arena_create(ARENA_FIRST, ARENA_MAX);

    *job = (struct line_job){.arena = arena, .number = number, .read_us = now};
    generation_request_init(&job->request);
    request_json_id(number, job->id);
    return arena ? 0 : -1;
}

void line_job_refuse(struct line_job *job, const struct line_setup *setup, int64_t number,
                     const char *error_class, const char *message, int64_t now)
{
    (void)!start(job, number, now);
    fail(job, setup, error_class, message, now);
}

/* Without texts there are no stop strings either; the rest is validate.h's. */
static void tokens_only_check(const struct line_job *job, struct validate_problems *problems)
{
    if (!job->request.has_source_tokens)
        validate_problem(problems, "prompt: this run works on token ids alone, source_tokens is "
                                   "needed");
    if (job->request.stop_count)
        validate_problem(problems,
                         "stop: %zu strings, but this run works on token ids alone, the "
                         "range is 0..0",
                         job->request.stop_count);
}

/* Adds what is wrong to problems; an internal failure is told by -1. */
static int prepare(struct line_job *job, const struct line_setup *setup,
                   struct validate_problems *problems)
{
    const struct engine_limits *limits = engine_limits(setup->engine);
    struct generation_request checked = job->request;

    if (!setup->codec)
        tokens_only_check(job, problems);
    if (problems->count) { /* say what else is wrong */
        if (!checked.prompt.size)
            checked.prompt = text_of("?"); /* reported already, or given as tokens */
        generation_validate(&checked, limits, setup->codec, setup->model_name, problems);
        return 0;
    }
    job->source_count = generation_prepare(&job->request, limits, setup->codec, setup->model_name,
                                           job->arena, &job->source, problems);
    if (job->source_count >= 0)
        return 0;
    job->source_count = 0;
    return problems->count ? 0 : -1;
}

void line_job_read(struct line_job *job, const struct line_setup *setup, const char *line,
                   size_t size, int64_t number, int64_t now)
{
    struct validate_problems problems;
    struct error error;
    char message[sizeof error.message + 64];

    if (start(job, number, now)) {
        fail(job, setup, "internal", "out of memory", now);
        return;
    }
    if (request_json_read(line, size, job->arena, &job->request, &problems, &error)) {
        snprintf(message, sizeof message, "line %lld: %s", (long long)number, error.message);
        generation_request_init(&job->request);
        fail(job, setup, "invalid", message, now);
        return;
    }
    if (!job->request.job_id.size)
        job->request.job_id = text_of(job->id);
    if (prepare(job, setup, &problems)) {
        fail(job, setup, "internal", problems.message, now);
        return;
    }
    if (problems.count) {
        fail(job, setup, "invalid", problems.message, now);
        return;
    }
    job->run = generation_run_create(&job->request, job->source_count,
                                     prompt_codec_detokeniser(setup->codec), job->arena);
    if (!job->run)
        fail(job, setup, "internal", "the request needs too much memory", now);
    else
        job->state = LINE_WAITING;
}

void line_job_request(const struct line_job *job, struct engine_request *out)
{
    generation_run_request(&job->request, job->source, job->source_count, (uint64_t)(uintptr_t)job,
                           out);
}

void line_job_admitted(struct line_job *job, int32_t slot, int64_t now)
{
    job->state = LINE_RUNNING;
    job->slot = slot;
    job->admitted_us = now;
    job->timings.queue_us = now - job->read_us;
}

static void complete(struct line_job *job, const struct line_setup *setup, const char *status,
                     int64_t now)
{
    struct generation_result result = {.status = status};

    if (generation_run_result(job->run, &result))
        fail(job, setup, "internal", "the result needs too much memory", now);
    else
        finish(job, setup, &result, now);
}

void line_job_take(struct line_job *job, const struct line_setup *setup,
                   const struct engine_item *item, const struct engine_output *output, int64_t now)
{
    enum generation_took took;

    if (job->state != LINE_RUNNING)
        return;
    if (!job->timings.first_token_us) {
        job->timings.first_token_us = now - job->admitted_us;
        job->timings.encode_us = output->encode_us < job->timings.first_token_us
                                     ? output->encode_us
                                     : job->timings.first_token_us;
    }
    job->timings.decode_us = now - job->admitted_us - job->timings.encode_us;
    took = generation_run_take(job->run, item);
    if (took == GENERATION_TOOK_STOP)
        engine_stop_sequence(setup->engine, job->slot, item->sequence);
    if (took != GENERATION_TOOK_NOMEM && !generation_run_finished(job->run))
        return;
    engine_release(setup->engine, job->slot);
    if (took == GENERATION_TOOK_NOMEM)
        fail(job, setup, "internal", "the result needs too much memory", now);
    else
        complete(job, setup, "completed", now);
}

void line_job_stepped(struct line_job *job, const struct engine_output *output)
{
    job->rows_weighted += output->rows_mean * output->steps;
    job->steps += output->steps;
}

void line_job_expire(struct line_job *job, const struct line_setup *setup, int64_t wall,
                     int64_t now)
{
    if (!job->request.has_deadline || job->request.deadline_us > wall)
        return;
    if (job->state == LINE_WAITING) {
        struct generation_result result = {.status = "expired",
                                           .usage = {.prompt_tokens = job->source_count}};

        job->timings.queue_us = now - job->read_us;
        finish(job, setup, &result, now);
    } else if (job->state == LINE_RUNNING) {
        engine_release(setup->engine, job->slot);
        if (generation_run_end(job->run, ASSEMBLE_EXPIRED))
            fail(job, setup, "internal", "the result needs too much memory", now);
        else
            complete(job, setup, "expired", now);
    }
}

void line_job_free(struct line_job *job)
{
    free(job->out);
    job->out = NULL;
    job->state = LINE_FREE;
}

void line_job_destroy(struct line_job *job)
{
    free(job->out);
    arena_destroy(job->arena);
    *job = (struct line_job){0};
}
