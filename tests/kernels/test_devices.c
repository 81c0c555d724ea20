/* SPDX-License-Identifier: MIT
 *
 * test_devices: engines on several devices in one process, each run by a thread of its own, all at
 * the same time: the same requests give the same bits on each.
 *
 *   test_devices MODEL COMPUTE DEVICE DEVICE...      e.g. fp16 cuda:0 cuda:1, or cuda:0 twice
 */
#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/engine.h"

enum { DEVICES_MOST = 8, REQUESTS = 96, SOURCE = 24, NEW = 40, ROUNDS = 4, STEPS = 5 };

struct run {
    const char *model, *compute, *device;
    int32_t tokens[REQUESTS][NEW];
    float logprobs[REQUESTS][NEW];
    int32_t counts[REQUESTS];
    pthread_t thread;
    struct error error; /* empty: it went well */
};

static void requests_make(struct engine_request *requests, int32_t (*sources)[SOURCE],
                          int32_t vocabulary)
{
    for (int32_t i = 0; i < REQUESTS; i++) {
        engine_request_init(&requests[i]);
        for (int32_t t = 0; t < SOURCE; t++)
            sources[i][t] = 4 + (i * 131 + t * 17) % (vocabulary - 8);
        requests[i].source = sources[i];
        requests[i].source_len = 1 + i % SOURCE;
        requests[i].max_new = NEW;
        requests[i].seed = (uint64_t)i;
        requests[i].do_sample = i % 3 == 1;
        requests[i].top_k = i % 3 == 1 ? 40 : 0;
        requests[i].tag = (uint64_t)i;
    }
}

static int items_take(struct run *run, struct engine *engine, const struct engine_output *out)
{
    int finished = 0;

    for (int32_t i = 0; i < out->item_count; i++) {
        const struct engine_item *item = &out->items[i];
        int32_t *count = &run->counts[item->tag];

        for (int32_t t = 0; t < item->token_count && *count < NEW; t++, ++*count) {
            run->tokens[item->tag][*count] = item->tokens[t];
            run->logprobs[item->tag][*count] = item->logprobs[t];
        }
        if (item->finish == ENGINE_RUNNING)
            continue;
        engine_release(engine, item->slot);
        finished++;
    }
    return finished;
}

/* All requests through the engine. -1 with the reason in run->error. */
static int round_run(struct run *run, struct engine *engine, const struct engine_request *requests)
{
    int32_t slots[REQUESTS], admitted = 0;
    struct engine_output out;
    struct error error;

    memset(run->counts, 0, sizeof run->counts);
    memset(run->tokens, 0, sizeof run->tokens);
    memset(run->logprobs, 0, sizeof run->logprobs);
    for (int finished = 0; finished < REQUESTS;) {
        int32_t taken = admitted < REQUESTS ? engine_admit(engine, REQUESTS - admitted,
                                                           requests + admitted, slots, &error)
                                            : 0;

        if (taken < 0 || engine_step(engine, STEPS, &out, &error)) {
            run->error = error;
            return -1;
        }
        admitted += taken;
        finished += items_take(run, engine, &out);
    }
    return 0;
}

static void *run_main(void *argument)
{
    static _Thread_local int32_t sources[REQUESTS][SOURCE];
    struct engine_request requests[REQUESTS];
    struct run *run = argument;
    struct engine_options options;
    struct engine *engine;
    struct error error;

    engine_options_init(&options);
    options.device = run->device;
    options.compute = run->compute;
    options.max_rows = REQUESTS;
    engine = engine_open(run->model, &options, &error);
    if (!engine) {
        run->error = error;
        return NULL;
    }
    printf("%s\n", engine_info(engine)->device);
    requests_make(requests, sources, engine_limits(engine)->vocabulary);
    for (int i = 0; i < ROUNDS && !round_run(run, engine, requests); i++) {
    }
    engine_close(engine);
    return NULL;
}

int main(int argc, char **argv)
{
    static struct run runs[DEVICES_MOST];
    int count = argc - 3, failures = 0;
    int64_t tokens = 0;

    if (count < 1 || count > DEVICES_MOST) {
        fputs("usage: test_devices MODEL COMPUTE DEVICE...\n", stderr);
        return 2;
    }
    for (int i = 0; i < count; i++) {
        runs[i].model = argv[1];
        runs[i].compute = argv[2];
        runs[i].device = argv[3 + i];
        if (pthread_create(&runs[i].thread, NULL, run_main, &runs[i]))
            return 1;
    }
    for (int i = 0; i < count; i++) {
        pthread_join(runs[i].thread, NULL);
        if (runs[i].error.message[0]) {
            fprintf(stderr, "%s: %s\n", runs[i].device, runs[i].error.message);
            failures++;
        }
    }
    for (int r = 0; r < REQUESTS && !failures; r++) {
        tokens += runs[0].counts[r];
        for (int i = 1; i < count; i++)
            failures +=
                runs[i].counts[r] != runs[0].counts[r] ||
                memcmp(runs[i].tokens[r], runs[0].tokens[r], sizeof runs[0].tokens[r]) ||
                memcmp(runs[i].logprobs[r], runs[0].logprobs[r], sizeof runs[0].logprobs[r]);
    }
    printf("%d engines, %d requests, %" PRId64 " tokens each: %s\n", count, REQUESTS, tokens,
           failures ? "FAILED" : "ok");
    return failures ? 1 : 0;
}
