// SPDX-License-Identifier: MIT
//
// The choice of a row's token inside the fused kernels on a CPU (simt.h), against the definitions
// of kernels/search/: many top-k, top-p and temperatures, scores that are equal, forbidden and
// forced tokens, rows that are not sampled.
#include "simt.h"

#include <algorithm>
#include <vector>

#include "kernels/cpu/math.h"
#include "kernels/cuda/fused_choose.cuh"

enum { V = 3000, UNITS = (V + 31) / 32, CASES = 240, EOS = 2 };

static uint64_t random_state = 11;
static int failures;

static uint32_t random_below(uint32_t n)
{
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)((random_state >> 33) % n);
}

struct test_case {
    struct cuda_row row;
    struct cuda_rules rules;
    std::vector<float> logits;
    std::vector<uint32_t> banned, suppressed;
};

/* Scores of a few values, so that many are equal, or of all. */
static void case_make(struct test_case *c, int i)
{
    const float temperatures[] = {1.0f, 0.9f, 0.3f, 4.0f, 1e-7f};
    const float top_ps[] = {1.0f, 0.95f, 0.5f, 0.01f};
    const int32_t top_ks[] = {50, 0, 1, 64, 65, 7, V};
    const uint32_t values[] = {1u << 20, 1u << 20, 40, 2, 1};
    const uint32_t steps = values[i % 5];

    memset((void *)&c->row, 0, sizeof c->row);
    memset((void *)&c->rules, 0, sizeof c->rules);
    c->row.seed = 77 + (uint64_t)i;
    c->row.sequence = i % 3;
    c->row.position = i % 11 == 0 ? 0 : i % 40;
    c->row.max_new = i % 13 == 1 ? c->row.position + 1 : 64;
    c->row.min_new = i % 2 ? 64 : 0;
    c->row.flags = i % 9 == 8 ? 0 : CUDA_ROW_SAMPLE;
    c->row.top_k = top_ks[i % 7];
    c->row.top_p = top_ps[i / 7 % 4];
    c->row.temperature = temperatures[i / 3 % 5];
    c->rules.vocabulary = V;
    c->rules.eos_token = EOS;
    c->rules.forced_bos = i % 4 ? -1 : 5;
    c->rules.forced_eos = i % 4 == 1 ? EOS : -1;
    c->logits.resize(V);
    for (float &z : c->logits)
        z = ((float)random_below(steps) / (float)steps - 0.5f) * 20.0f;
    c->banned.assign(UNITS, 0);
    c->suppressed.assign(UNITS, 0);
    for (int t = 0; t < V; t += i % 17 == 16 ? 1 : 1 + (int)random_below(200))
        rules_add(c->banned.data(), t);
    if (i % 2)
        c->suppressed = c->banned;
    c->rules.banned = i % 6 == 5 ? NULL : c->banned.data();
    c->rules.suppressed = i % 6 == 5 ? NULL : c->suppressed.data();
}

/* Where the draw falls, by the definition in kernels/search/sampling.h. */
static int32_t host_draw(const struct cuda_row *row, const std::vector<float> &scores)
{
    std::vector<float> z(V);
    std::vector<uint64_t> weight(V);
    std::vector<uint32_t> keys(V);
    uint64_t total = 0, sum = 0, target;
    float max = -INFINITY;

    for (int t = 0; t < V; t++) {
        z[t] = scores[t] / row->temperature;
        keys[t] = sampling_key(z[t]);
        max = fmaxf(max, z[t]);
    }
    if (!isfinite(max))
        return (int32_t)(std::max_element(keys.begin(), keys.end()) - keys.begin());
    for (int t = 0; t < V; t++)
        weight[t] = sampling_weight(math_exp(z[t] - max));
    if (row->top_k > 0 && row->top_k < V) {
        std::vector<uint32_t> sorted = keys;

        std::sort(sorted.begin(), sorted.end());
        for (int t = 0; t < V; t++)
            weight[t] = keys[t] < sorted[V - row->top_k] ? 0 : weight[t];
    }
    for (uint64_t w : weight)
        total += w;
    if (row->top_p < 1.0f) {
        const uint64_t limit = sampling_limit(row->top_p, total);
        std::vector<std::pair<uint32_t, int>> order;

        for (int t = 0; t < V; t++)
            order.push_back({keys[t], t});
        std::sort(order.begin(), order.end());
        for (size_t i = 0, j; i < order.size(); i = j) {
            for (j = i; j < order.size() && order[j].first == order[i].first; j++)
                sum += weight[order[j].second];
            for (size_t k = i; k < j && sum <= limit; k++)
                weight[order[k].second] = 0;
        }
        total = 0;
        for (uint64_t w : weight)
            total += w;
    }
    target = sampling_target(row->seed, (uint32_t)row->sequence, (uint32_t)row->position, total);
    sum = 0;
    for (int t = 0; t < V; t++)
        if ((sum += weight[t]) > target)
            return t;
    return -1;
}

static int32_t host_choose(const struct test_case *c)
{
    struct rules rules = {V,
                          EOS,
                          c->rules.forced_bos,
                          c->rules.forced_eos,
                          c->rules.suppressed,
                          c->rules.banned,
                          NULL,
                          NULL,
                          0};
    struct rules_row at = {c->row.position, c->row.min_new, c->row.max_new, 1.0f, NULL, NULL};
    const bool sample = c->row.flags & CUDA_ROW_SAMPLE;
    const int32_t forced = rules_forced(&rules, &at);
    std::vector<float> scores = c->logits;

    if (!sample && forced >= 0)
        return forced;
    rules_apply(&rules, &at, scores.data());
    return sample ? host_draw(&c->row, scores)
                  : (int32_t)(std::max_element(scores.begin(), scores.end()) - scores.begin());
}

int main(void)
{
    static struct draw_scratch scratch;
    static struct draw_asked asked;
    static struct draw_kept kept;
    static float scores[V], logits[UNITS * 32];

    kept.width = FEW_WIDTH; /* and from then on what the case before left */
    for (int i = 0; i < CASES; i++) {
        struct test_case c;
        int32_t token = -1, want, told = 0, step;
        bool ok;

        case_make(&c, i);
        step = c.row.position ? i % 5 : 0;
        std::fill(logits, logits + UNITS * 32, -INFINITY);
        for (int t = 0; t < V; t++)
            logits[t] = c.logits[t];
        memset((void *)&scratch, 0x7e, sizeof scratch);
        simt_launch({1, 1, 1}, BLOCK_GROUP, [&] {
            draw_ask(&asked, c.rules, &c.row, DRAW_STEPS);
            __syncthreads();
            const int32_t chosen = draw_run(&scratch, &kept, 2, logits, scores, c.rules, &asked,
                                            draw_begin(&asked, c.rules, step, c.row.position + step,
                                                       c.row.min_new, c.row.max_new, threadIdx.x));

            if (threadIdx.x < 32 && (!told++ || chosen == token))
                token = chosen;
        });
        c.row.position += step;
        want = host_choose(&c);
        ok = token == want && told == 32;
        printf("case %d: token %d of %d  %s\n", i, token, want, ok ? "ok" : "FAILED");
        failures += !ok;
    }
    return failures ? 1 : 0;
}
