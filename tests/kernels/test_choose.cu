/* SPDX-License-Identifier: MIT
 *
 * test_choose: the kernels of choose.h against a plain host version of the same definitions: exact
 * tokens, beams and histories over many rows, vocabularies and options; the same bits alone and in
 * any batch. Needs a device. `quick`: few rows and sizes (for compute-sanitizer).
 */
#include "tests/kernels/test_choose.cuh"

static bool quick;

/* input_ids of a row and what the rules know of it. */
struct host_row {
    std::vector<int32_t> history;
    std::vector<uint32_t> seen;
    struct rules_row at;
};

static void host_row_make(struct world *w, int32_t r, struct host_row *h)
{
    const struct cuda_row *row = &w->row.host[r];

    h->history.assign(1, w->host_rules.start_token);
    for (int32_t i = 0; i < row->position; i++)
        h->history.push_back(w->tokens.host[(size_t)r * w->P + i]);
    h->seen.assign(rules_words(w->V), 0);
    for (int32_t token : h->history)
        rules_add(h->seen.data(), token);
    h->at.length = row->position;
    h->at.min_new = row->min_new;
    h->at.max_new = row->max_new;
    h->at.repetition_penalty = row->repetition_penalty;
    h->at.seen = h->seen.data();
    h->at.history = h->history.data();
}

/* Weights left to draw from. */
static std::vector<uint64_t> host_weights(const struct cuda_row *row, const float *scores,
                                          int32_t V)
{
    std::vector<float> z(V);
    std::vector<uint64_t> weight(V);
    std::vector<int32_t> order(V);
    uint64_t total = 0, sum = 0, limit;
    float max = -INFINITY;

    for (int32_t t = 0; t < V; t++) {
        z[t] = scores[t] / row->temperature;
        max = fmaxf(max, z[t]);
        order[t] = t;
    }
    for (int32_t t = 0; t < V; t++)
        weight[t] = sampling_weight(math_exp(z[t] - max));
    std::sort(order.begin(), order.end(),
              [&](int32_t a, int32_t b) { return sampling_key(z[a]) < sampling_key(z[b]); });
    if (row->top_k > 0 && row->top_k < V)
        for (int32_t t = 0; t < V; t++)
            if (sampling_key(z[t]) < sampling_key(z[order[V - row->top_k]]))
                weight[t] = 0;
    for (uint64_t one : weight)
        total += one;
    limit = sampling_limit(row->top_p, total);
    for (int32_t i = 0; row->top_p < 1.0f && i < V;) {
        int32_t stop = i;

        for (; stop < V && sampling_key(z[order[stop]]) == sampling_key(z[order[i]]); stop++)
            sum += weight[order[stop]];
        for (; i < stop; i++)
            if (sum <= limit && stop < V)
                weight[order[i]] = 0;
    }
    return weight;
}

static int32_t host_choose(struct world *w, int32_t r, const float *logits)
{
    const struct cuda_row *row = &w->row.host[r];
    std::vector<float> scores(logits, logits + w->V);
    std::vector<uint64_t> weight;
    uint64_t total = 0, sum = 0, target;
    struct host_row h;
    int32_t best = 0;

    host_row_make(w, r, &h);
    rules_apply(&w->host_rules.rules, &h.at, scores.data());
    for (int32_t t = 1; t < w->V; t++)
        if (scores[t] > scores[best])
            best = t;
    if (!(row->flags & CUDA_ROW_SAMPLE) || scores[best] == -INFINITY)
        return best;
    weight = host_weights(row, scores.data(), w->V);
    for (uint64_t one : weight)
        total += one;
    target = sampling_target(row->seed, (uint32_t)row->sequence, (uint32_t)row->position, total);
    for (int32_t t = 0; t < w->V; t++) {
        sum += weight[t];
        if (sum > target)
            return t;
    }
    return -1;
}

/* The order of logsum.cuh once more, one warp a row: (max, sum, ln sum) of each row. */
static __global__ void logsum_reference(const float *logits, int32_t V, float *out)
{
    const float *x = logits + (int64_t)blockIdx.x * V;
    struct logsum all = {-INFINITY, 0.0f};

    for (int32_t t = 0; t < V; t++)
        all.max = fmaxf(all.max, x[t]);
    for (int32_t u = threadIdx.x; u * 32 < V; u += 32) {
        struct logsum unit = {-INFINITY, 0.0f};
        float lane[4];

        for (int i = 0; i < 32 && u * 32 + i < V; i++)
            unit.max = fmaxf(unit.max, x[u * 32 + i]);
        for (int q = 0; q < 4; q++) {
            lane[q] = 0.0f;
            for (int i = 0; i < 8; i++) {
                int32_t t = u * 32 + i / 2 * 8 + 2 * q + i % 2;

                if (t < V && x[t] != -INFINITY)
                    lane[q] = __fadd_rn(lane[q], logsum_exp(x[t] - unit.max));
            }
        }
        unit.sum = __fadd_rn(__fadd_rn(lane[0], lane[1]), __fadd_rn(lane[2], lane[3]));
        all.sum = __fadd_rn(all.sum, logsum_scaled(unit, all.max));
    }
    all.sum = logsum_warp_add(all.sum);
    if (threadIdx.x == 0) {
        out[blockIdx.x * 3] = all.max;
        out[blockIdx.x * 3 + 1] = all.sum;
        out[blockIdx.x * 3 + 2] = logf(all.sum);
    }
}

/* (rows, 3) of w->logits, also checked against double precision. */
static std::vector<float> row_sums(struct world *w)
{
    mirror<float> out;

    out.make((size_t)w->rows_count * 3, NAN);
    OK(launch(logsum_reference, dim3(w->rows_count), 32, 0, false, (cudaStream_t)0,
              (const float *)w->logits.device, w->V, out.device));
    out.get();
    for (int32_t i = 0; i < w->rows_count; i++) {
        const float *x = &w->logits.host[(size_t)i * w->V];
        double sum = 0, got = (double)out.host[i * 3] + out.host[i * 3 + 2], want;

        for (int32_t t = 0; t < w->V; t++)
            sum += exp((double)x[t] - out.host[i * 3]);
        want = out.host[i * 3] + log(sum);
        CHECK(fabs(got - want) < 2e-6 * (1.0 + fabs(want)), "logsum %g, not %g", got, want);
    }
    return out.host;
}

/* Runs `rows` (a list of rows) with the logits of each; poisons what must be written first. */
static void run_full(struct world *w, const std::vector<int32_t> &rows, bool pdl)
{
    for (size_t i = 0; i < rows.size(); i++) {
        w->active.host[i] = rows[i];
        memcpy(&w->scratch.host[i * w->V], &w->logits.host[(size_t)rows[i] * w->V],
               w->V * sizeof(float));
    }
    for (size_t i = rows.size(); i < (size_t)w->rows_count; i++)
        w->active.host[i] = 1 << 30; /* past n: must not be looked at */
    w->n.host[0] = (int32_t)rows.size();
    w->n.put();
    w->active.put();
    w->scratch.put_first(rows.size() * w->V);
    OK(choose_full(w->view(), w->device_rules, NULL, w->scratch.device, w->active.device,
                   w->n.device, w->rows_count, pdl, 0));
    OK(cudaDeviceSynchronize());
}

static void test_full(int32_t V, int32_t P, int32_t count, enum logits_kind kind, bool rich)
{
    std::vector<struct cuda_row> before;
    std::vector<int32_t> tokens_before, all(count), tokens_all;
    std::vector<float> sums, logprobs_all;
    struct world w;

    make_world(&w, V, P, count, rich);
    for (int32_t r = 0; r < count; r++) {
        fill_logits(&w.logits.host[(size_t)r * V], V, kind);
        random_row(&w, r);
        all[r] = r;
    }
    w.logits.put();
    w.row.put();
    w.tokens.put();
    sums = row_sums(&w);
    before = w.row.host;
    tokens_before = w.tokens.host;
    for (int32_t r = count - 1; r > 0; r--)
        std::swap(all[r], all[random_below(r + 1)]);
    run_full(&w, all, false);
    w.tokens.get();
    w.row.get();
    w.logprobs.get();
    tokens_all = w.tokens.host;
    logprobs_all = w.logprobs.host;
    std::vector<struct cuda_row> after = w.row.host;
    w.row.host = before;
    w.tokens.host = tokens_before;
    for (int32_t r = 0; r < count; r++) {
        const float *x = &w.logits.host[(size_t)r * V];
        const struct cuda_row *was = &before[r], *is = &after[r];
        size_t at = (size_t)r * P + was->position;
        struct host_row h;
        float logprob;
        int32_t token;

        if (was->finished || !(was->flags & CUDA_ROW_FULL)) {
            CHECK(!memcmp(was, is, sizeof *was) && tokens_all[at] == -7,
                  "V %d kind %d row %d was not left alone", V, kind, r);
            continue;
        }
        token = host_choose(&w, r, x);
        logprob = x[token] - sums[r * 3] - sums[r * 3 + 2];
        host_row_make(&w, r, &h);
        CHECK(tokens_all[at] == token && is->token == token,
              "V %d kind %d rich %d row %d flags %d T %g k %d p %g pen %g position %d of %d: "
              "token %d, not %d",
              V, kind, rich, r, was->flags, was->temperature, was->top_k, was->top_p,
              was->repetition_penalty, was->position, was->max_new, tokens_all[at], token);
        CHECK(!memcmp(&logprobs_all[at], &logprob, sizeof logprob),
              "V %d kind %d row %d token %d: logprob %.9g, not %.9g", V, kind, r, token,
              logprobs_all[at], logprob);
        CHECK(is->position == was->position + 1 &&
                  is->finished == (rules_after(&w.host_rules.rules, &h.at, token) != RULES_RUNNING),
              "V %d row %d: position %d finished %d", V, r, is->position, is->finished);
        for (int32_t p = 0; p < P; p++)
            if (p != was->position)
                CHECK(tokens_all[(size_t)r * P + p] == tokens_before[(size_t)r * P + p] &&
                          std::isnan(logprobs_all[(size_t)r * P + p]),
                      "V %d row %d: position %d was written", V, r, p);
    }
    for (int32_t part : {1, 3}) { /* the same rows in small batches, from the back */
        std::fill(w.logprobs.host.begin(), w.logprobs.host.end(), NAN);
        w.row.put();
        w.tokens.put();
        w.logprobs.put();
        for (int32_t from = count - 1; from >= 0; from -= part) {
            std::vector<int32_t> some;

            for (int32_t r = from; r > from - part && r >= 0; r--)
                some.push_back(r);
            run_full(&w, some, true);
        }
        w.tokens.get();
        w.logprobs.get();
        CHECK(w.tokens.host == tokens_all && !memcmp(w.logprobs.host.data(), logprobs_all.data(),
                                                     logprobs_all.size() * sizeof(float)),
              "V %d kind %d: other bits in batches of %d", V, kind, part);
        w.tokens.host = tokens_before;
    }
}

static void test_probabilities(int32_t V, enum logits_kind kind)
{
    mirror<float> out, logits;
    struct world w;

    make_world(&w, V, 16, 1, true);
    for (int round = 0; round < 12; round++) {
        std::vector<float> x(V);
        std::vector<uint64_t> weight;
        struct host_row h;
        double total = 0;

        fill_logits(x.data(), V, kind);
        random_row(&w, 0);
        w.row.put();
        w.tokens.put();
        out.make(V, NAN);
        logits.make(V, NAN);
        logits.host = x;
        logits.put();
        OK(choose_probabilities(w.view(), w.device_rules, 0, logits.device, out.device, 0));
        out.get();
        host_row_make(&w, 0, &h);
        rules_apply(&w.host_rules.rules, &h.at, x.data());
        weight = host_weights(&w.row.host[0], x.data(), V);
        for (uint64_t one : weight)
            total += (double)one;
        for (int32_t t = 0; t < V; t++)
            CHECK(out.host[t] == (float)((double)weight[t] / total), "V %d p(%d) %g, not %g", V, t,
                  out.host[t], (double)weight[t] / total);
        w.tokens.host.assign(w.tokens.host.size(), -7);
    }
}

/* ---- beams ------------------------------------------------------------------------------------
 */

struct host_beams {
    std::vector<struct cuda_beam_group> groups;
    std::vector<struct cuda_row> row;
    std::vector<int32_t> tokens, source_row, beam_tokens, beam_parents;
};

/* One step of group g on the host, over copies; sums: of w->logits by place. */
static void host_beam_step(struct world *w, struct host_beams *h, int32_t g,
                           const std::vector<float> &sums)
{
    struct cuda_beam_group *group = &h->groups[g];
    struct beam_candidate best[BEAM_CANDIDATES];
    int32_t parents[BEAM_MAX], tokens[BEAM_MAX], beams = group->num_beams, count = 0;
    int32_t length = group->state.length, P = w->P;
    std::vector<int32_t> old_tokens = h->tokens, old_source = h->source_row;

    if (group->finished)
        return;
    for (int32_t b = 0; b < beams; b++) {
        int32_t r = group->rows[b], place = w->place.host[r];
        const float *x = &w->logits.host[(size_t)place * w->V];
        std::vector<float> scores(w->V);
        struct host_row row;

        for (int32_t t = 0; t < w->V; t++)
            scores[t] = x[t] - sums[place * 3] - sums[place * 3 + 2];
        host_row_make(w, r, &row);
        rules_apply(&w->host_rules.rules, &row.at, scores.data());
        for (int32_t t = 0; t < w->V; t++) {
            struct beam_candidate one = {scores[t] + group->state.running[b], b, t};

            count = beam_insert(best, count, 2 * beams, one);
        }
    }
    for (int32_t i = 0; i < BEAM_MAX; i++) {
        parents[i] = i;
        tokens[i] = w->host_rules.rules.eos_token;
    }
    group->finished = beam_advance(&group->state, best, parents, tokens);
    for (int32_t b = 0; b < beams; b++) {
        size_t row = (size_t)group->rows[b] * P, parent = (size_t)group->rows[parents[b]] * P;

        for (int32_t p = 0; p < length; p++) {
            h->tokens[row + p] = old_tokens[parent + p];
            h->source_row[row + p] = old_source[parent + p];
        }
        h->tokens[row + length] = tokens[b];
        h->source_row[row + length] = group->rows[parents[b]];
        if (length + 1 < P)
            h->source_row[row + length + 1] = group->rows[b];
        h->beam_tokens[((size_t)g * P + length) * BEAM_MAX + b] = tokens[b];
        h->beam_parents[((size_t)g * P + length) * BEAM_MAX + b] = parents[b];
        h->row[group->rows[b]].token = tokens[b];
        h->row[group->rows[b]].position = length + 1;
        h->row[group->rows[b]].finished = group->finished;
    }
}

static bool same_group(const struct cuda_beam_group *a, const struct cuda_beam_group *b)
{
    bool same = a->finished == b->finished && a->state.length == b->state.length &&
                a->state.improvable == b->state.improvable;

    for (int32_t i = 0; i < a->num_beams; i++) {
        const struct beam_hypothesis *x = &a->state.best[i], *y = &b->state.best[i];

        same = same && x->score == y->score && x->length == y->length && x->beam == y->beam &&
               x->token == y->token && x->finished == y->finished;
        same = same && (a->finished || a->state.running[i] == b->state.running[i]);
    }
    return same;
}

static void make_groups(struct world *w, int32_t groups, int32_t max_new, bool penalty)
{
    static const float length_penalties[] = {1.0f, 0.6f, 2.0f, -1.0f, 0.0f};
    int32_t next = 0;

    for (int32_t g = 0; g < groups; g++) {
        struct cuda_beam_group *group = &w->groups.host[g];
        int32_t most = 1 + random_below(max_new);

        group->num_beams = 1 + random_below(BEAM_MAX);
        beam_init(&group->state, group->num_beams, most, w->host_rules.rules.eos_token,
                  length_penalties[random_below(5)], random_below(2));
        for (int32_t b = 0; b < group->num_beams; b++) {
            struct cuda_row *row = &w->row.host[next];

            group->rows[b] = next;
            w->source_row.host[(size_t)next * w->P] = next;
            row->flags = CUDA_ROW_BEAM;
            row->group = g;
            row->beam = b;
            row->max_new = most;
            row->min_new = std::min(g % 3, most);
            row->repetition_penalty = penalty && g % 2 ? 1.2f : 1.0f;
            next++;
        }
    }
    w->rows_count = next;
}

static void compare_beams(struct world *w, const struct host_beams *h, int32_t groups,
                          const char *what)
{
    w->groups.get();
    w->row.get();
    w->tokens.get();
    w->source_row.get();
    w->beam_tokens.get();
    w->beam_parents.get();
    for (int32_t g = 0; g < groups; g++) {
        const struct cuda_beam_group *group = &h->groups[g];
        bool tokens = w->host_rules.rules.phrase_count > 0 ||
                      h->row[group->rows[0]].repetition_penalty != 1.0f;
        int32_t length = group->state.length;

        CHECK(same_group(&w->groups.host[g], group), "V %d %s group %d length %d: other state",
              w->V, what, g, length);
        for (int32_t b = 0; b < group->num_beams; b++) {
            int32_t r = group->rows[b];
            size_t from = (size_t)r * w->P;

            CHECK(w->row.host[r].token == h->row[r].token &&
                      w->row.host[r].position == h->row[r].position &&
                      w->row.host[r].finished == h->row[r].finished,
                  "V %d %s group %d beam %d: token %d, not %d", w->V, what, g, b,
                  w->row.host[r].token, h->row[r].token);
            CHECK(!memcmp(&w->source_row.host[from], &h->source_row[from],
                          std::min(length + 1, w->P) * sizeof(int32_t)),
                  "V %d %s group %d beam %d: source rows", w->V, what, g, b);
            CHECK(!tokens ||
                      !memcmp(&w->tokens.host[from], &h->tokens[from], length * sizeof(int32_t)),
                  "V %d %s group %d beam %d: tokens", w->V, what, g, b);
            for (int32_t p = 0; p < length; p++) {
                size_t at = ((size_t)g * w->P + p) * BEAM_MAX + b;

                CHECK(w->beam_tokens.host[at] == h->beam_tokens[at] &&
                          w->beam_parents.host[at] == h->beam_parents[at],
                      "V %d %s group %d beam %d: trail at %d", w->V, what, g, b, p);
            }
        }
    }
}

/* scratch: the logits that the kernels may write into; lists: groups of one launch. */
static void run_beams(struct world *w, int32_t groups, int32_t at_once, bool pdl)
{
    w->scratch.host = w->logits.host;
    w->scratch.put();
    for (int32_t from = 0; from < groups; from += at_once) {
        int32_t count = std::min(at_once, groups - from);

        for (int32_t i = 0; i < count; i++)
            w->groups_list.host[i] = from + count - 1 - i;
        w->n.host[0] = count;
        w->n.put();
        w->groups_list.put();
        OK(choose_beams(w->view(), w->device_rules, w->scratch.device, w->groups_list.device,
                        w->n.device, std::min(groups, count + 2), w->place.device, w->work.device,
                        pdl, 0));
        OK(cudaDeviceSynchronize());
    }
}

static void collect_beams(struct world *w, const struct host_beams *h, int32_t groups)
{
    mirror<int32_t> length, tokens, list;
    mirror<float> score;
    std::vector<int32_t> want(w->P);

    length.make((size_t)groups * BEAM_MAX, -9);
    tokens.make((size_t)groups * BEAM_MAX * w->P, -9);
    score.make((size_t)groups * BEAM_MAX, NAN);
    list.make(groups, 0);
    for (int32_t g = 0; g < groups; g++)
        list.host[g] = groups - 1 - g;
    list.put();
    OK(choose_beams_collect(w->view(), list.device, groups, length.device, score.device,
                            tokens.device, 0));
    OK(cudaDeviceSynchronize());
    length.get();
    tokens.get();
    score.get();
    for (int32_t g = 0; g < groups; g++)
        for (int32_t b = 0; b < BEAM_MAX; b++) {
            const struct beam_hypothesis *best = &h->groups[g].state.best[b];
            size_t at = (size_t)g * BEAM_MAX + b;
            int32_t expected = b < h->groups[g].num_beams ? best->length : 0;

            CHECK(length.host[at] == expected, "group %d hypothesis %d: length %d, not %d", g, b,
                  length.host[at], expected);
            if (!expected)
                continue;
            beam_read(best, &h->beam_tokens[(size_t)g * w->P * BEAM_MAX],
                      &h->beam_parents[(size_t)g * w->P * BEAM_MAX], BEAM_MAX, want.data());
            CHECK(score.host[at] == best->score &&
                      !memcmp(&tokens.host[at * w->P], want.data(), expected * sizeof(int32_t)),
                  "group %d hypothesis %d: other tokens or score", g, b);
        }
}

static void test_beams(int32_t V, int32_t groups, int32_t steps, enum logits_kind kind, bool rich,
                       int32_t at_once)
{
    struct host_beams h;
    struct world w;
    int32_t rows;

    make_world(&w, V, steps, groups * BEAM_MAX, rich);
    make_groups(&w, groups, steps, rich);
    rows = w.rows_count;
    w.groups.put();
    w.row.put();
    w.source_row.put();
    h.groups = w.groups.host;
    h.row = w.row.host;
    h.tokens = w.tokens.host;
    h.source_row = w.source_row.host;
    h.beam_tokens = w.beam_tokens.host;
    h.beam_parents = w.beam_parents.host;
    for (int32_t step = 0; step < steps; step++) {
        std::vector<float> sums;
        int32_t shift = random_below(rows);
        char what[64];

        for (int32_t r = 0; r < rows; r++) {
            float *x = &w.logits.host[(size_t)r * V];

            w.place.host[r] = (r + shift) % rows;
            fill_logits(x, V, kind);
            if (random_below(3) == 0) /* searches end */
                x[w.host_rules.rules.eos_token] += 8.0f;
        }
        w.place.put();
        w.logits.put();
        sums = row_sums(&w);
        run_beams(&w, groups, at_once, step % 2);
        /* the host's histories come from its own copies, equal to the device's so far */
        w.row.host = h.row;
        w.tokens.host = h.tokens;
        for (int32_t g = 0; g < groups; g++)
            host_beam_step(&w, &h, g, sums);
        snprintf(what, sizeof what, "kind %d rich %d step %d", kind, rich, step);
        compare_beams(&w, &h, groups, what);
    }
    collect_beams(&w, &h, groups);
}

static void test_all(void)
{
    const std::vector<int32_t> sizes =
        quick ? std::vector<int32_t>{17, 3000, 9001}
              : std::vector<int32_t>{17, 64, 1000, 3000, 3001, 4096, 4100, 8192, 8193, 20000};

    for (int32_t V : sizes)
        for (int kind = 0; kind < KINDS; kind++)
            for (int rich = 0; rich < 2; rich++)
                test_full(V, rich ? 48 : 20,
                          quick      ? 4
                          : V > 8192 ? 16
                                     : 48,
                          (enum logits_kind)kind, rich);
    printf("choose_full: %d checks, %d failures\n", checks, failures);
    for (int32_t V : sizes)
        for (int kind = 0; kind < KINDS; kind++)
            test_probabilities(V, (enum logits_kind)kind);
    printf("choose_probabilities: %d checks, %d failures\n", checks, failures);
    for (int32_t V : sizes)
        for (int kind = 0; kind < KINDS; kind++)
            for (int rich = 0; rich < 2; rich++)
                test_beams(V, quick ? 2 : 6, quick ? 3 : 8, (enum logits_kind)kind, rich,
                           kind % 2 ? 7 : 2);
    printf("choose_beams: %d checks, %d failures\n", checks, failures);
    if (quick)
        return;
    test_full(3000, 1024, 64, NORMAL, true);
    test_full(60013, 32, 12, NORMAL, true);
    test_full(62518, 1024, 12, WIDE, true);
    test_full(1 << 20, 32, 3, FLAT, true);
    test_full(3000, 32, 2048, NORMAL, true);
    test_beams(3000, 128, 4, NORMAL, false, 128);
    test_beams(62518, 3, 4, NORMAL, true, 3);
    printf("long rows and batches: %d checks, %d failures\n", checks, failures);
}

int main(int argc, char **argv)
{
    quick = argc > 1 && !strcmp(argv[1], "quick");
    test_all();
    return failures != 0;
}
