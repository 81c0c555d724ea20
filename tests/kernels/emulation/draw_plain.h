/* SPDX-License-Identifier: MIT
 *
 * draw_plain: a row's next token by the definitions of kernels/search/, in plain loops, for tests
 * of kernels that draw.
 */
#ifndef PGPT_TESTS_KERNELS_EMULATION_DRAW_PLAIN_H
#define PGPT_TESTS_KERNELS_EMULATION_DRAW_PLAIN_H

#include <algorithm>
#include <utility>
#include <vector>

#include "kernels/cpu/math.h"
#include "kernels/cuda/rows.h"
#include "kernels/search/rules.h"

/* Where the draw falls, by the definition in kernels/search/sampling.h. */
static int32_t host_draw(const struct cuda_row *row, const std::vector<float> &scores)
{
    const int V = (int)scores.size();
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

/* The row's next token. logits: of the whole vocabulary. */
static int32_t host_choose(const struct cuda_row *row, const struct cuda_rules &of,
                           const std::vector<float> &logits)
{
    struct rules rules = {of.vocabulary, of.eos_token,  of.forced_bos,
                          of.forced_eos, of.suppressed, of.banned,
                          NULL,          NULL,          0};
    struct rules_row at = {row->position, row->min_new, row->max_new, 1.0f, NULL, NULL};
    const bool sample = row->flags & CUDA_ROW_SAMPLE;
    const int32_t forced = rules_forced(&rules, &at);
    std::vector<float> scores = logits;

    if (!sample && forced >= 0)
        return forced;
    rules_apply(&rules, &at, scores.data());
    return sample ? host_draw(row, scores)
                  : (int32_t)(std::max_element(scores.begin(), scores.end()) - scores.begin());
}

#endif
