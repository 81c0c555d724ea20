/* SPDX-License-Identifier: MIT
 *
 * log: structured lines on stderr, logfmt or JSON, one line an event. Prompts and texts are written
 * at debug level only. Any thread may log; a line is written with one write(2).
 */
#ifndef PGPT_WORKER_LOG_H
#define PGPT_WORKER_LOG_H

#include <stdbool.h>
#include <stdint.h>

#include "kernels/base/error.h"

enum log_level { LOG_ERROR, LOG_WARN, LOG_INFO, LOG_DEBUG };
enum log_format { LOG_LOGFMT, LOG_JSON };

/* What a line is about; empty texts and partition -1 are left out of the line. */
struct log_context {
    const char *job_id;
    const char *traceparent;
    int32_t partition;
    int64_t offset;
};

void log_configure(enum log_level level, enum log_format format, const char *worker_name);
bool log_enabled(enum log_level level);

/* component: "intake", "settle", ...; context NULL = none. The message is escaped. */
void log_write(enum log_level level, const char *component, const struct log_context *context,
               const char *format, ...) PGPT_PRINTF(4, 5);

#endif
