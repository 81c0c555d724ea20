/* SPDX-License-Identifier: MIT */
#include "worker/log.h"

#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "kernels/text/utf8.h"

/* Values are cut so that the line's end always fits, a message so that its context does, too. */
enum { LINE_BYTES = 4096, END_BYTES = 3, CONTEXT_BYTES = 1024, MESSAGE_BYTES = 2048 };

static _Atomic int least_severe = LOG_INFO;
static _Atomic int line_format = LOG_LOGFMT;
static char worker[256];

static const char *const level_names[] = {"error", "warn", "info", "debug"};

struct line {
    char data[LINE_BYTES];
    size_t size, limit;
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

/* All of the text, or nothing: true when it fits. */
static bool put(struct line *line, const char *text, size_t size)
{
    if (line->size + size > line->limit)
        return false;
    memcpy(line->data + line->size, text, size);
    line->size += size;
    return true;
}

/* Control characters and quotes are escaped and what is no UTF-8 is replaced, so that one event
 * stays one line in both formats, and every JSON line is JSON. */
static void put_escaped(struct line *line, const char *text)
{
    size_t left = strlen(text);
    bool fits = true;

    while (left && fits) {
        char escaped[8] = "\\ufffd";
        uint32_t code = 0;
        int size = utf8_decode(text, left, &code);
        bool plain = size && code >= 0x20 && code != 0x7f && code != '"' && code != '\\';

        if (code == '\n')
            snprintf(escaped, sizeof escaped, "\\n");
        else if (code == '"' || code == '\\')
            snprintf(escaped, sizeof escaped, "\\%c", *text);
        else if (size && !plain)
            snprintf(escaped, sizeof escaped, "\\u%04x", code);
        fits = plain ? put(line, text, (size_t)size) : put(line, escaped, strlen(escaped));
        text += size ? size : 1;
        left -= size ? (size_t)size : 1;
    }
}

static void put_text(struct line *line, const char *key, const char *value)
{
    const char *before = line->json ? (line->size > 1 ? ",\"" : "\"") : line->size ? " " : "";
    char opening[64];
    int size = snprintf(opening, sizeof opening, line->json ? "%s%s\":\"" : "%s%s=\"", before, key);

    if (!put(line, opening, (size_t)size))
        return;
    put_escaped(line, value);
    line->data[line->size++] = '"'; /* END_BYTES has room for it */
}

static void put_number(struct line *line, const char *key, long long value)
{
    char text[96];
    int size = snprintf(text, sizeof text, line->json ? ",\"%s\":%lld" : " %s=%lld", key, value);

    put(line, text, (size_t)size);
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
    struct line line = {.limit = LINE_BYTES - CONTEXT_BYTES - END_BYTES,
                        .json = atomic_load(&line_format) == LOG_JSON};
    char message[MESSAGE_BYTES];
    va_list args;

    if (!log_enabled(level))
        return;
    va_start(args, format);
    vsnprintf(message, sizeof message, format, args);
    va_end(args);
    if (line.json)
        put(&line, "{", 1);
    put_time(&line);
    put_text(&line, "level", level_names[level]);
    put_text(&line, "worker", worker);
    put_text(&line, "component", component);
    put_text(&line, "message", message);
    line.limit = LINE_BYTES - END_BYTES;
    if (context && context->partition >= 0) {
        put_number(&line, "partition", context->partition);
        put_number(&line, "offset", (long long)context->offset);
    }
    if (context && context->job_id && *context->job_id)
        put_text(&line, "job_id", context->job_id);
    if (context && context->traceparent && *context->traceparent)
        put_text(&line, "traceparent", context->traceparent);
    if (line.json)
        line.data[line.size++] = '}';
    line.data[line.size++] = '\n';
    /* One write a line, so that threads do not mix. Nothing can be done when stderr is gone. */
    if (write(STDERR_FILENO, line.data, line.size) < 0)
        return;
}
