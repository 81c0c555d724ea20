/* SPDX-License-Identifier: MIT
 *
 * line_job: one input line of `generate` on its way from JSON text to its result line:
 *
 *   FREE -> line_job_read() -> WAITING -> line_job_admitted() -> RUNNING -> DONE -> line_job_free()
 *                           \-> DONE (refused)                            (out holds its result)
 *
 * The holder owns the struct; the arena in it is kept and used again. Main thread only.
 */
#ifndef PGPT_KERNELS_TOOL_LINE_JOB_H
#define PGPT_KERNELS_TOOL_LINE_JOB_H

#include "kernels/generate/run.h"
#include "kernels/text/prompt.h"

struct line_setup { /* the same for all lines */
    struct engine *engine;
    const struct prompt_codec *codec; /* NULL = token ids alone */
    const char *model_name;
};

enum line_state { LINE_FREE, LINE_WAITING, LINE_RUNNING, LINE_DONE };

struct line_job {
    enum line_state state;
    int64_t number;
    char id[37];
    struct arena *arena;
    struct generation_request request;
    const int32_t *source; /* (source_count) */
    int32_t source_count;
    struct generation_run *run;
    int32_t slot;
    struct generation_timings timings;
    int64_t read_us, admitted_us; /* monotonic */
    double rows_weighted;         /* sum of rows over this job's steps */
    int64_t steps;
    char *out; /* (out_size) when DONE; NULL = memory was out */
    size_t out_size;
    bool failed; /* status is not completed */
    int64_t generated_tokens;
};

/* Reads and checks a line; now: monotonic microseconds. Afterwards WAITING or DONE. */
void line_job_read(struct line_job *job, const struct line_setup *setup, const char *line,
                   size_t size, int64_t number, int64_t now);
/* DONE without running: a line that cannot be used. */
void line_job_refuse(struct line_job *job, const struct line_setup *setup, int64_t number,
                     const char *error_class, const char *message, int64_t now);

void line_job_request(const struct line_job *job, struct engine_request *out); /* tag = job */
void line_job_admitted(struct line_job *job, int32_t slot, int64_t now);

/* Takes an item of this job. When its last sequence ended, the slot is released and the job is
 * DONE. */
void line_job_take(struct line_job *job, const struct line_setup *setup,
                   const struct engine_item *item, const struct engine_output *output, int64_t now);
/* Counts a step call that a running job took part in. */
void line_job_stepped(struct line_job *job, const struct engine_output *output);
/* Ends a waiting or running job whose deadline has passed; wall: Unix time, microseconds. */
void line_job_expire(struct line_job *job, const struct line_setup *setup, int64_t wall,
                     int64_t now);

void line_job_free(struct line_job *job);    /* back to FREE, the arena stays */
void line_job_destroy(struct line_job *job); /* and the arena goes */

#endif
