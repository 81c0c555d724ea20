/* SPDX-License-Identifier: MIT
 *
 * bits REQUESTS FORMAT...: runs so many made-up requests of all kinds in each compute format on the
 * CPU and prints the path taken, then for each format a hash of every token, log-probability and
 * score. Two machines, builds or paths (PGPT_CPU_ISA) that print the same hashes agree in all bits.
 */
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/cpu/isa.h"
#include "kernels/cpu/product.h"
#include "kernels/engine.h"

#define MODEL PGPT_SOURCE_DIR "/models/prometheus-mini"

enum { SOURCE = 24, NEW = 24, ROWS = 32, REQUESTS_MAX = 10000 };

static uint32_t state;

static int32_t random_below(int32_t limit)
{
    state = state * 1664525u + 1013904223u;
    return (int32_t)((state >> 8) % (uint32_t)limit);
}

static void request_make(struct engine_request *r, int32_t *source, int32_t i)
{
    engine_request_init(r);
    r->tag = (uint64_t)i;
    r->source = source;
    r->source_len = 3 + random_below(SOURCE - 3);
    for (int32_t t = 0; t < r->source_len; t++)
        source[t] = 276 + random_below(2724); /* of real words */
    source[0] = 4 + random_below(2);
    source[r->source_len - 1] = 3;
    r->max_new = 1 + random_below(NEW);
    r->seed = (uint64_t)i * 0x9e3779b97f4a7c15u;
    r->repetition_penalty = random_below(3) ? 1.0f : 1.2f;
    if (i % 3 == 1) {
        r->do_sample = true;
        r->num_sequences = 1 + random_below(3);
        r->temperature = 0.5f + (float)random_below(100) / 100.0f;
        r->top_k = random_below(60);
        r->top_p = random_below(2) ? 1.0f : 0.8f;
    } else if (i % 3 == 2) {
        r->num_beams = 2 + random_below(3);
        r->num_sequences = 1 + random_below(r->num_beams);
    }
}

/* FNV-1a */
static void hash_add(uint64_t *hash, const void *bytes, size_t size)
{
    for (size_t i = 0; i < size; i++)
        *hash = (*hash ^ ((const unsigned char *)bytes)[i]) * 0x100000001b3u;
}

static bool step_hash(struct engine *engine, int32_t *remaining, uint64_t *hash,
                      struct error *error)
{
    struct engine_output out;

    if (engine_step(engine, 1, &out, error))
        return false;
    for (int32_t i = 0; i < out.item_count; i++) {
        const struct engine_item *item = &out.items[i];
        int32_t logprobs = item->token_count + item->ended_with_eos;

        hash_add(hash, &item->sequence, sizeof item->sequence);
        hash_add(hash, item->tokens, (size_t)item->token_count * sizeof *item->tokens);
        if (item->logprobs)
            hash_add(hash, item->logprobs, (size_t)logprobs * sizeof *item->logprobs);
        hash_add(hash, &item->beam_score, sizeof item->beam_score);
        *remaining -= item->finish != ENGINE_RUNNING;
    }
    return true;
}

static bool format_hash(const char *compute, int32_t requests, uint64_t *hash, struct error *error)
{
    struct engine_options options;
    struct engine *engine;
    bool ok = true;

    engine_options_init(&options);
    options.compute = compute;
    options.threads = 1;
    options.max_rows = ROWS;
    options.max_source = SOURCE;
    options.max_new = NEW;
    engine = engine_open(MODEL, &options, error);
    if (!engine)
        return false;
    state = 1;
    *hash = 0xcbf29ce484222325u;
    for (int32_t i = 0; ok && i < requests; i++) {
        struct engine_request request;
        int32_t source[SOURCE], slot = 0, remaining;

        request_make(&request, source, i);
        remaining = request.num_sequences;
        ok = engine_admit(engine, 1, &request, &slot, error) == 1;
        while (ok && remaining)
            ok = step_hash(engine, &remaining, hash, error);
        if (ok)
            engine_release(engine, slot);
    }
    engine_close(engine);
    return ok;
}

int main(int argc, char **argv)
{
    long requests = argc > 2 ? strtol(argv[1], NULL, 10) : 0;
    struct error error = {0};
    uint64_t hash;

    if (requests < 1 || requests > REQUESTS_MAX) {
        fprintf(stderr, "usage: bits REQUESTS FORMAT...    REQUESTS 1 to %d\n", REQUESTS_MAX);
        return 2;
    }
    if (isa_check(&error)) {
        fprintf(stderr, "bits: %s\n", error.message);
        return 2;
    }
    printf("path %s %s\n", isa_name(isa_current()), product_path());
    for (int i = 2; i < argc; i++) {
        if (!format_hash(argv[i], (int32_t)requests, &hash, &error)) {
            fprintf(stderr, "bits: %s: %s\n", argv[i], error.message);
            return 1;
        }
        printf("%s %016llx\n", argv[i], (unsigned long long)hash);
    }
    return 0;
}
