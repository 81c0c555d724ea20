/* SPDX-License-Identifier: MIT
 *
 * The CPU back end's table: opening (sizes, budget, weights, threads) and the way into steps.
 */
#include "kernels/backend.h"

#include <inttypes.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/cpu/isa.h"
#include "kernels/cpu/step.h"

enum { DEFAULT_ROWS = 128, ROWS_MAX = 65536 };

struct backend {
    int32_t start_token, eos_token;
    struct weights *weights;
    struct rules_tables *rules;
    struct threads *threads;
    struct frame *frames; /* (frame_count), one a thread */
    int32_t frame_count;
    struct slots slots;
    struct step step;
};

static int format_of(const char *compute, enum weights_format *format, struct error *error)
{
    static const char *const names[] = {"fp32", "int8", "dynamic"};

    for (int i = 0; i < 3; i++)
        if (!strcmp(compute, names[i])) {
            *format = (enum weights_format)i;
            return 0;
        }
    return error_set(error, "compute %.32s: the CPU back end has fp32, int8 and dynamic", compute);
}

/* An option, its default when 0, within 1..most. */
static int size_set(const char *name, int32_t value, int32_t usual, int32_t most, int32_t *out,
                    struct error *error)
{
    *out = value ? value : usual;
    if (*out < 1 || *out > most)
        return error_set(error, "%s: %d is not in 1..%d", name, (int)value, (int)most);
    return 0;
}

static int limits_set(const struct engine_options *options, struct engine_limits *limits,
                      struct error *error)
{
    int32_t P = limits->positions;

    if (size_set("max_rows", options->max_rows, DEFAULT_ROWS, ROWS_MAX, &limits->max_rows, error) ||
        size_set("max_source", options->max_source, P, P, &limits->max_source, error) ||
        size_set("max_new", options->max_new, P, P, &limits->max_new, error))
        return -1;
    limits->max_beams = limits->max_rows < BEAM_MAX ? limits->max_rows : BEAM_MAX;
    limits->max_sequences = limits->max_beams;
    return 0;
}

static int32_t cores_count(void)
{
    cpu_set_t set;

    if (sched_getaffinity(0, sizeof set, &set))
        return 1;
    return CPU_COUNT(&set) > THREADS_MAX ? THREADS_MAX : CPU_COUNT(&set);
}

static int threads_open(struct backend *b, const struct engine_options *options,
                        struct error *error)
{
    int32_t count;

    if (size_set("threads", options->threads, cores_count(), THREADS_MAX, &count, error))
        return -1;
    b->threads = threads_create(count, error);
    return b->threads ? 0 : -1;
}

static size_t work_bytes(const struct backend *b, const struct engine_limits *l)
{
    struct frame sizes;
    size_t frame = frame_carve(&sizes, b->weights, l->max_source, l->max_new, NULL);
    size_t lists = (size_t)l->max_rows * (sizeof(struct row *) + sizeof(struct slot *) +
                                          sizeof(int32_t) + sizeof(struct engine_item));

    return (size_t)threads_count(b->threads) * (frame + sizeof(struct frame)) + lists +
           slots_bytes(l->max_rows, l->max_source, l->max_new) + b->rules->bytes;
}

/* How many pages the budget leaves, at most what all rows could use; -1 = not even one request. */
static int64_t pages_count(const struct backend *b, const struct engine_options *options,
                           const struct engine_limits *l, size_t page, struct error *error)
{
    int64_t cross = slots_pages_for(l->max_source), own = slots_pages_for(l->max_new);
    int64_t all = l->max_rows * (cross + own), one = cross + l->max_beams * own;
    size_t work = work_bytes(b, l);
    int64_t fit;

    if (!options->memory)
        return all;
    fit = options->memory > work ? (int64_t)((options->memory - work) / page) : 0;
    if (fit < one)
        return error_set(error,
                         "memory: %" PRIu64 " bytes are too few: work space takes %zu and the "
                         "caches of one request of the largest size %zu; raise it, or lower "
                         "max_rows, max_source, max_new or threads",
                         options->memory, work, (size_t)one * page);
    return fit < all ? fit : all;
}

static int frames_open(struct backend *b, const struct engine_limits *l, struct error *error)
{
    b->frame_count = threads_count(b->threads);
    b->frames = calloc((size_t)b->frame_count, sizeof *b->frames);
    for (int32_t i = 0; b->frames && i < b->frame_count; i++) {
        struct frame *frame = &b->frames[i];
        size_t size = frame_carve(frame, b->weights, l->max_source, l->max_new, NULL);
        char *memory = aligned_alloc(64, size);

        if (!memory)
            return error_set(error, "work space: out of memory (%zu bytes a thread)", size);
        frame_carve(frame, b->weights, l->max_source, l->max_new, memory);
    }
    return b->frames ? 0 : error_set(error, "work space: out of memory");
}

static int step_open(struct backend *b, const struct engine_limits *l, struct error *error)
{
    size_t rows = (size_t)l->max_rows;

    b->step = (struct step){.rules = b->rules,
                            .weights = b->weights,
                            .threads = b->threads,
                            .frames = b->frames,
                            .slots = &b->slots};
    b->step.rows = calloc(rows, sizeof(struct row *));
    b->step.pending = calloc(rows, sizeof(struct slot *));
    b->step.cuts = calloc(rows + 1, sizeof *b->step.cuts);
    b->step.items = calloc(rows, sizeof *b->step.items);
    if (!b->step.rows || !b->step.pending || !b->step.cuts || !b->step.items)
        return error_set(error, "work space: out of memory");
    return 0;
}

static void processor_name(char *out, size_t size)
{
    char line[256];
    FILE *file = fopen("/proc/cpuinfo", "r");

    snprintf(out, size, "processor");
    while (file && fgets(line, sizeof line, file)) {
        char *value = strchr(line, ':');

        if (strncmp(line, "model name", 10) || !value)
            continue;
        value[strcspn(value, "\n")] = '\0';
        snprintf(out, size, "%.60s", value + 2);
        break;
    }
    if (file)
        fclose(file);
}

static void info_set(const struct backend *b, const char *compute, const struct engine_limits *l,
                     int64_t page_count, size_t page, struct engine_info *info)
{
    int threads = (int)threads_count(b->threads);
    char name[64];

    processor_name(name, sizeof name);
    snprintf(info->device, sizeof info->device, "cpu (%s, %s, %d thread%s)", name, product_path(),
             threads, threads == 1 ? "" : "s");
    snprintf(info->compute, sizeof info->compute, "%s", compute);
    info->weight_bytes = b->weights->bytes;
    info->cache_bytes = (uint64_t)page_count * page;
    info->work_bytes = work_bytes(b, l);
}

static void cpu_close(struct backend *b)
{
    if (!b)
        return;
    threads_destroy(b->threads);
    for (int32_t i = 0; b->frames && i < b->frame_count; i++)
        free(b->frames[i].memory);
    free(b->frames);
    free(b->step.rows);
    free(b->step.pending);
    free(b->step.cuts);
    free(b->step.items);
    slots_destroy(&b->slots);
    rules_destroy(b->rules);
    weights_destroy(b->weights);
    free(b);
}

static struct backend *cpu_open(const struct model *model, const struct engine_options *options,
                                struct engine_limits *limits, struct engine_info *info,
                                struct error *error)
{
    const char *compute = options->compute ? options->compute : "fp32";
    struct backend *b = calloc(1, sizeof *b);
    enum weights_format format = WEIGHTS_FP32;
    struct ops_cache cache;
    int64_t page_count;
    size_t page;

    if (!b) {
        error_set(error, "out of memory");
        return NULL;
    }
    if (options->cache_int8) {
        error_set(error, "caches in int8: the CPU keeps them in single or half precision, by the "
                         "compute format; leave the setting out");
        goto failed;
    }
    b->start_token = model->config.start_token;
    b->eos_token = model->config.eos_token;
    if (isa_check(error) || format_of(compute, &format, error) ||
        limits_set(options, limits, error) || threads_open(b, options, error))
        goto failed;
    b->rules = rules_create(&model->config, error);
    b->weights = b->rules ? weights_create(model, format, error) : NULL;
    if (!b->weights)
        goto failed;
    cache = (struct ops_cache){b->weights->decoder.heads, b->weights->D / b->weights->decoder.heads,
                               format != WEIGHTS_FP32};
    page = (size_t)b->weights->decoder.layer_count * ops_layer_bytes(&cache);
    page_count = pages_count(b, options, limits, page, error);
    if (page_count < 0 ||
        slots_create(&b->slots, limits->max_rows, limits->max_source, limits->max_new, &cache,
                     b->weights->decoder.layer_count, page_count, error) ||
        frames_open(b, limits, error) || step_open(b, limits, error))
        goto failed;
    info_set(b, compute, limits, page_count, page, info);
    return b;
failed:
    cpu_close(b);
    return NULL;
}

static int32_t cpu_free_rows(const struct backend *b)
{
    return b->slots.free_count;
}

static int32_t cpu_admit(struct backend *b, int32_t n, const struct engine_request *requests,
                         const int32_t *slots, struct error *error)
{
    int32_t admitted = 0;

    (void)error;
    while (admitted < n && slots_admit(&b->slots, slots[admitted], &requests[admitted],
                                       b->start_token, b->eos_token))
        admitted++;
    return admitted;
}

static int cpu_step(struct backend *b, int32_t k, struct engine_output *out, struct error *error)
{
    (void)error;
    step_run(&b->step, k, out);
    return 0;
}

static void cpu_stop_sequence(struct backend *b, int32_t slot, int32_t sequence)
{
    struct row *row = b->slots.slots[slot].rows[sequence];

    row->running = false;
    row->reported = row->length;
    row->finish_reported = true;
}

static void cpu_release(struct backend *b, int32_t slot)
{
    slots_release(&b->slots, slot);
}

/* ---- trace ---- */

struct tracing {
    struct backend *b;
    const struct backend_trace *trace;
    char **pages; /* cross, then own */
    int32_t cross_count, page_count;
};

static void trace_encode(struct tracing *t, const struct crew *crew)
{
    size_t size = (size_t)t->trace->source_len * (size_t)t->b->weights->D * sizeof(float);

    crew->frames->sources[0] =
        (struct layers_source){t->trace->source, t->trace->source_len, t->pages};
    layers_encode(crew, 1);
    if (t->trace->encoder)
        memcpy(t->trace->encoder, crew->frames->x, size);
    layers_cross(crew, 1);
}

static void trace_probabilities(const struct tracing *t, const struct crew *crew)
{
    const struct engine_request *warp = t->trace->warp;
    struct choose choose = step_choose(&t->b->step, crew->frames);
    struct choose_sampling sampling = step_sampling(warp, 0);
    struct rules_row row = {t->trace->prefix_len - 1, warp->min_new, warp->max_new,
                            warp->repetition_penalty, NULL,          t->trace->prefix};

    choose_probabilities(&choose, &row, &sampling, crew->frames->logits, t->trace->probabilities);
}

static void trace_decode(struct tracing *t, const struct crew *crew)
{
    const struct backend_trace *trace = t->trace;
    int32_t V = t->b->weights->V;

    for (int32_t i = 0; i < trace->prefix_len; i++) {
        crew->frames->rows[0] = (struct layers_row){trace->prefix[i], i, t->pages + t->cross_count,
                                                    t->pages, trace->source_len};
        layers_decode(crew, 1);
        layers_logits(crew, 1);
        if (trace->logits)
            memcpy(trace->logits + (int64_t)i * V, crew->frames->logits, (size_t)V * sizeof(float));
    }
    if (trace->probabilities)
        trace_probabilities(t, crew);
}

static int cpu_trace(struct backend *b, const struct backend_trace *trace, struct error *error)
{
    struct crew crew = step_crew(&b->step);
    struct tracing t = {
        .b = b, .trace = trace, .cross_count = (int32_t)slots_pages_for(trace->source_len)};

    t.page_count = t.cross_count + (int32_t)slots_pages_for(trace->prefix_len);
    if (t.page_count > pages_unreserved(b->slots.pages))
        return error_set(error, "trace: the caches are in use; release the slots first");
    t.pages = calloc((size_t)t.page_count, sizeof *t.pages);
    if (!t.pages)
        return error_set(error, "trace: out of memory");
    for (int32_t i = 0; i < t.page_count; i++)
        t.pages[i] = pages_take(b->slots.pages);
    trace_encode(&t, &crew);
    trace_decode(&t, &crew);
    for (int32_t i = 0; i < t.page_count; i++)
        pages_drop(b->slots.pages, t.pages[i]);
    free(t.pages);
    return 0;
}

const struct backend_ops backend_cpu = {"cpu",     cpu_open, cpu_close,         cpu_free_rows,
                                        cpu_admit, cpu_step, cpu_stop_sequence, cpu_release,
                                        cpu_trace};
