/* SPDX-License-Identifier: MIT
 *
 * test_choose: rows, rules and logits on the host and the device, for the programs that test and
 * time the kernels of choose.h.
 */
#ifndef PGPT_TESTS_KERNELS_TEST_CHOOSE_CUH
#define PGPT_TESTS_KERNELS_TEST_CHOOSE_CUH

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "kernels/cpu/math.h"
#include "kernels/cuda/choose.h"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/logsum.cuh"

static int failures, checks;

#define OK(call)                                                                                   \
    do {                                                                                           \
        cudaError_t status = (call);                                                               \
        if (status != cudaSuccess) {                                                               \
            printf("%s:%d: %s: %s\n", __FILE__, __LINE__, #call, cudaGetErrorString(status));      \
            exit(2);                                                                               \
        }                                                                                          \
    } while (0)

#define CHECK(condition, ...)                                                                      \
    do {                                                                                           \
        checks++;                                                                                  \
        if (!(condition) && failures++ < 20) {                                                     \
            printf("%s:%d: ", __FILE__, __LINE__);                                                 \
            printf(__VA_ARGS__);                                                                   \
            printf("\n");                                                                          \
        }                                                                                          \
    } while (0)

static uint64_t random_state = 0x9E3779B97F4A7C15u;

static uint32_t random_u32(void)
{
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(random_state >> 33) * 2654435761u ^ (uint32_t)(random_state >> 40);
}
static int32_t random_below(int32_t n)
{
    return (int32_t)((uint64_t)random_u32() * (uint32_t)n >> 32);
}
static float random_normal(void)
{
    float sum = 0;

    for (int i = 0; i < 4; i++)
        sum += (float)random_u32() * 2.3283064e-10f;
    return (sum - 2.0f) * 1.7320508f;
}

/* Device memory that mirrors a host vector. */
template <typename T> struct mirror {
    std::vector<T> host;
    T *device = NULL;

    void make(size_t count, T value)
    {
        if (device)
            OK(cudaFree(device));
        host.assign(count ? count : 1, value);
        OK(cudaMalloc(&device, host.size() * sizeof(T)));
        put();
    }
    void put(void)
    {
        put_first(host.size());
    }
    void put_first(size_t count)
    {
        OK(cudaMemcpy(device, host.data(), count * sizeof(T), cudaMemcpyHostToDevice));
    }
    void get(void)
    {
        OK(cudaMemcpy(host.data(), device, host.size() * sizeof(T), cudaMemcpyDeviceToHost));
    }
    ~mirror()
    {
        cudaFree(device);
    }
};

/* Everything the kernels see, on both sides. */
struct world {
    int32_t V, P, rows_count;
    mirror<struct cuda_row> row;
    mirror<int32_t> tokens, source_row, beam_tokens, beam_parents, active, n, groups_list, place;
    mirror<float> logprobs, logits, scratch;
    mirror<struct cuda_beam_group> groups;
    mirror<uint32_t> suppressed, banned;
    mirror<int32_t> phrases, phrase_sizes;
    mirror<char> work;
    struct choose_rules host_rules, device_rules;

    struct cuda_rows view(void)
    {
        struct cuda_rows r = {};

        r.row = row.device;
        r.tokens = tokens.device;
        r.logprobs = logprobs.device;
        r.source_row = source_row.device;
        r.groups = groups.device;
        r.beam_tokens = beam_tokens.device;
        r.beam_parents = beam_parents.device;
        r.P = P;
        r.max_rows = rows_count;
        return r;
    }
};

enum logits_kind { NORMAL, WIDE, TIES, EQUAL, HOLES, FLAT, PEAK, RAMP, KINDS };

static void fill_logits(float *logits, int32_t V, enum logits_kind kind)
{
    float offset = random_normal() * 10.0f, equal = random_normal();

    for (int32_t t = 0; t < V; t++) {
        float x = random_normal();

        switch (kind) {
        case NORMAL:
            x = 2.0f * x + offset;
            break;
        case WIDE:
            x = 30.0f * x;
            break;
        case TIES:
            x = fminf(rintf(x * 2.0f), 0.0f);
            break; /* 0 and -0 are the best */
        case EQUAL:
            x = equal;
            break;
        case HOLES:
            x = random_below(4) ? -INFINITY : 2.0f * x;
            break;
        case RAMP:
            x = 0.01f * (float)t + 1e-3f * x;
            break; /* neighbours are best together */
        case FLAT:
            x = 1e-3f * x + offset;
            break;
        default:
            x = x + (random_below(V) < 3 ? 20.0f : 0.0f);
            break;
        }
        logits[t] = x;
    }
    if (kind == EQUAL)
        logits[random_below(V)] += 1.0f;
    if (kind == HOLES) /* not all of them -inf */
        logits[random_below(V)] = 0.5f;
}

static void make_rules(struct world *w, bool rich)
{
    int32_t words = rules_words(w->V);
    struct choose_rules r = {};

    w->suppressed.make(words, 0);
    w->banned.make(words, 0);
    w->phrases.make(64, 0);
    w->phrase_sizes.make(16, 0);
    r.start_token = w->V - 1;
    r.rules.vocabulary = w->V;
    r.rules.eos_token = 0;
    r.rules.forced_bos_token = -1;
    r.rules.forced_eos_token = rich ? 0 : -1;
    if (rich) {
        int32_t at = 0;

        r.rules.forced_bos_token = w->V / 3;
        for (int i = 0; i < 5; i++) {
            int32_t token = 1 + random_below(w->V - 1);

            if (token == r.rules.forced_bos_token)
                continue;
            if (i < 2)
                rules_add(w->suppressed.host.data(), token);
            rules_add(w->banned.host.data(), token);
        }
        rules_add(w->banned.host.data(), w->V - 1);
        for (int p = 0; p < 12; p++) {
            int32_t size = 2 + random_below(3);

            for (int i = 0; i < size; i++) /* few tokens, so that histories match */
                w->phrases.host[at++] = 1 + random_below(3);
            w->phrase_sizes.host[p] = size;
        }
        r.rules.phrase_count = 12;
    }
    w->suppressed.put();
    w->banned.put();
    w->phrases.put();
    w->phrase_sizes.put();
    w->host_rules = w->device_rules = r;
    if (rich) {
        w->host_rules.rules.suppressed = w->suppressed.host.data();
        w->host_rules.rules.banned = w->banned.host.data();
        w->device_rules.rules.suppressed = w->suppressed.device;
        w->device_rules.rules.banned = w->banned.device;
    }
    w->host_rules.rules.phrases = w->phrases.host.data();
    w->host_rules.rules.phrase_sizes = w->phrase_sizes.host.data();
    w->device_rules.rules.phrases = w->phrases.device;
    w->device_rules.rules.phrase_sizes = w->phrase_sizes.device;
}

static void make_world(struct world *w, int32_t V, int32_t P, int32_t rows, bool rich)
{
    w->V = V;
    w->P = P;
    w->rows_count = rows;
    w->row.make(rows, {});
    w->tokens.make((size_t)rows * P, -7);
    w->source_row.make((size_t)rows * P, -7);
    w->beam_tokens.make((size_t)rows * P * BEAM_MAX, -7);
    w->beam_parents.make((size_t)rows * P * BEAM_MAX, -7);
    w->logprobs.make((size_t)rows * P, NAN);
    w->groups.make(rows, {});
    w->active.make(rows, -1);
    w->n.make(1, 0);
    w->groups_list.make(rows, -1);
    w->place.make(rows, -1);
    w->logits.make((size_t)rows * V, NAN);
    w->scratch.make((size_t)rows * V, NAN);
    w->work.make(choose_beams_work(rows), 0x55);
    make_rules(w, rich);
}

static void random_row(struct world *w, int32_t r)
{
    static const float temperatures[] = {1.0f, 0.7f, 1.3f, 0.05f, 5.0f};
    static const float top_ps[] = {1.0f, 0.95f, 0.5f, 0.9f, 1e-30f, 0.999f};
    static const int32_t top_ks[] = {0, 50, 1, 2, 200, 33, 1000000};
    struct cuda_row *row = &w->row.host[r];
    int32_t most = std::min(w->P, 1 + random_below(w->P));

    *row = {};
    row->seed = (uint64_t)random_u32() << 32 | random_u32();
    row->sequence = random_below(8);
    row->max_new = most;
    row->position = random_below(4) ? random_below(most) : random_below(4) ? 0 : most - 1;
    row->min_new = random_below(2) ? 0 : random_below(most + 1);
    row->temperature = temperatures[random_below(5)];
    row->top_p = top_ps[random_below(6)];
    row->top_k = top_ks[random_below(7)];
    row->repetition_penalty = random_below(2) ? 1.0f : random_below(2) ? 1.3f : 0.8f;
    row->flags = random_below(4) ? CUDA_ROW_SAMPLE : 0;
    if (row->repetition_penalty != 1.0f || !row->flags)
        row->flags |= CUDA_ROW_PENALTY;
    if (random_below(16) == 0)
        row->finished = 1;
    if (random_below(16) == 0)
        row->flags = 0; /* plain: left alone */
    row->token = -5;
    for (int32_t i = 0; i < row->position; i++)
        w->tokens.host[(size_t)r * w->P + i] =
            random_below(2) ? 1 + random_below(3) : random_below(w->V);
}

#endif
