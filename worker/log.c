/* SPDX-License-Identifier: MIT */
#include "worker/log.h"

#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { LINE_BYTES = 4096, MESSAGE_BYTES = 2048 };

static _Atomic int least_severe = LOG_INFO;
static _Atomic int line_format = LOG_LOGFMT;
static char worker[256];

static const char *const level_names[] = {"error", "warn", "info", "debug"};

struct line {
    char data[LINE_BYTES];
    size_t size;
    bool json;
};

void log_configure(enum log_level level, enum log_format format, const char *worker_name)
{
    atomic_store(&least_severe, level);
    atomic_store(&line_format, format);
    snprintf(worker, sizeof worker, "%s", worker_name);
}

bool log_enabled(enum log_level level)
{
    return (int)level <= atomic_load(&least_severe);
}

static void put(struct line *line, const char *text)
{
    size_t room = sizeof line->data - 2 - line->size; /* the end of the line always fits */
    size_t size = strnlen(text, room);

    memcpy(line->data + line->size, text, size);
    line->size += size;
}

/* Control characters and quotes are escaped, so that one event stays one line in both formats. */
static void put_escaped(struct line *line, const char *text)
{
    char escaped[8];

    for (; *text; text++) {
        unsigned char c = (unsigned char)*text;

        if (c == '"' || c == '\\')
            snprintf(escaped, sizeof escaped, "\\%c", c);
        else if (c == '\n')
            snprintf(escaped, sizeof escaped, "\\n");
        else if (c < 0x20 || c == 0x7f)
            snprintf(escaped, sizeof escaped, "\\u%04x", c);
        else
            snprintf(escaped, sizeof escaped, "%c", c);
        put(line, escaped);
    }
}

static void put_text(struct line *line, const char *key, const char *value)
{
    if (line->json) {
        put(line, line->size > 1 ? ",\"" : "\"");
        put(line, key);
        put(line, "\":\"");
    } else {
        put(line, line->size ? " " : "");
        put(line, key);
        put(line, "=\"");
    }
    put_escaped(line, value);
    put(line, "\"");
}

static void put_number(struct line *line, const char *key, long long value)
{
    char text[96];

    snprintf(text, sizeof text, line->json ? ",\"%s\":%lld" : " %s=%lld", key, value);
    put(line, text);
}

static void put_time(struct line *line)
{
    struct timespec now;
    struct tm utc;
    char text[64];
    size_t size;

    clock_gettime(CLOCK_REALTIME, &now);
    gmtime_r(&now.tv_sec, &utc);
    size = strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%S", &utc);
    snprintf(text + size, sizeof text - size, ".%03ldZ", now.tv_nsec / 1000000);
    put_text(line, "time", text);
}

void log_write(enum log_level level, const char *component, const struct log_context *context,
               const char *format, ...)
{
    struct line line = {.size = 0, .json = atomic_load(&line_format) == LOG_JSON};
    char message[MESSAGE_BYTES];
    va_list args;

    if (!log_enabled(level))
        return;
    va_start(args, format);
    vsnprintf(message, sizeof message, format, args);
    va_end(args);
    put(&line, line.json ? "{" : "");
    put_time(&line);
    put_text(&line, "level", level_names[level]);
    put_text(&line, "worker", worker);
    put_text(&line, "component", component);
    put_text(&line, "message", message);
    if (context && context->job_id && *context->job_id)
        put_text(&line, "job_id", context->job_id);
    if (context && context->traceparent && *context->traceparent)
        put_text(&line, "traceparent", context->traceparent);
    if (context && context->partition >= 0) {
        put_number(&line, "partition", context->partition);
        put_number(&line, "offset", (long long)context->offset);
    }
    if (line.json)
        line.data[line.size++] = '}';
    line.data[line.size++] = '\n';
    /* One write a line, so that threads do not mix. Nothing can be done when stderr is gone. */
    if (write(STDERR_FILENO, line.data, line.size) < 0)
        return;
}
