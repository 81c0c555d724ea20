/* SPDX-License-Identifier: MIT
 *
 * Fuzz target of the JSON lines of pgpt-engine generate: the whole input through the line reader,
 * each line through the reader of requests and the checks of fields, by token ids alone. A request
 * that passes them must be one that the engine accepts.
 */
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "kernels/generate/run.h"
#include "kernels/text/utf8.h"
#include "kernels/tool/lines.h"
#include "kernels/tool/request_json.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const struct engine_limits limits = {.max_rows = 64,
                                            .max_source = 256,
                                            .max_new = 256,
                                            .vocabulary = 3000,
                                            .positions = 256,
                                            .max_beams = 8,
                                            .max_sequences = 8,
                                            .eos_token = 3,
                                            .unk_token = 1};
static struct arena *arena;

static void require(int condition, const char *what)
{
    if (condition)
        return;
    fprintf(stderr, "%s\n", what);
    abort();
}

static void engine_request_check(const struct engine_request *r)
{
    require(r->source_len >= 1 && r->source_len <= limits.max_source, "source_len");
    for (int32_t i = 0; i < r->source_len; i++)
        require(r->source[i] >= 0 && r->source[i] < limits.vocabulary, "a source token");
    require(r->max_new >= 1 && r->max_new <= limits.max_new, "max_new");
    require(r->min_new >= 0 && r->min_new <= r->max_new, "min_new");
    require(r->num_beams >= 1 && r->num_beams <= limits.max_beams, "num_beams");
    require(r->num_sequences >= 1 && r->num_sequences <= limits.max_sequences, "num_sequences");
    require(r->num_beams == 1 || !r->do_sample, "beams and sampling");
    require(r->temperature > 0 && r->top_p > 0 && r->top_p <= 1, "sampling");
    require(r->repetition_penalty > 0, "repetition_penalty");
    require(r->top_k >= 0 && r->top_k <= limits.vocabulary, "top_k");
}

static void line_check(const char *line, size_t size)
{
    struct generation_request request;
    struct validate_problems problems;
    struct engine_request engine;
    struct error error = {""};
    const int32_t *source;
    int32_t count;

    arena_reset(arena);
    if (request_json_read(line, size, arena, &request, &problems, &error)) {
        require(error.message[0] && utf8_valid(error.message, strlen(error.message)),
                "an unreadable line has no message, or none in UTF-8");
        return;
    }
    require(utf8_valid(problems.message, strlen(problems.message)), "a problem is no UTF-8");
    if (problems.count) {
        generation_validate(&request, &limits, NULL, "fuzz", &problems);
        return;
    }
    count = generation_prepare(&request, &limits, NULL, "fuzz", arena, &source, &problems);
    require(utf8_valid(problems.message, strlen(problems.message)), "a problem is no UTF-8");
    if (count < 0) {
        require(problems.message[0] != '\0', "refused without a message");
        return;
    }
    generation_run_request(&request, source, count, 1, &engine);
    engine_request_check(&engine);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    int fd = memfd_create("lines", MFD_CLOEXEC);
    struct error error;
    struct lines *lines;
    char path[64], *line;
    size_t length, total = 0;
    enum lines_status status;

    if (!arena)
        arena = arena_create(1 << 16, 64 << 20);
    require(arena && fd >= 0 && write(fd, data, size) == (ssize_t)size, "set-up");
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    lines = lines_open(path, &error);
    require(lines != NULL, "lines_open");
    while ((status = lines_next(lines, true, &line, &length, &error)) == LINES_LINE) {
        require(line[length] == '\0' && !memchr(line, '\n', length), "a line is not one line");
        total += length + 1;
        line_check(line, length);
    }
    require(status == LINES_END && total >= size && total <= size + 1, "bytes were lost");
    lines_close(lines);
    close(fd);
    return 0;
}
