// SPDX-License-Identifier: MIT
//
// The choice of a row's token inside the fused kernels on a CPU (simt.h), against the definitions
// of kernels/search/: many top-k, top-p and temperatures, scores that are equal, forbidden and
// forced tokens, rows that are not sampled.
#include "simt.h"

#include <algorithm>
#include <vector>

#include "kernels/cuda/fused_choose.cuh"
#include "kernels/cuda/fused_rows_choose.cuh"

#include "tests/kernels/emulation/draw_plain.h"

enum { CASES = 240, CROWDED = 40, EOS = 2 };

static uint64_t random_state = 11;
static int32_t V; /* tokens, of DRAW_VOCABULARY at most */
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

/* Scores of a few values, so that many are equal, or of all; or the greatest all in a few lanes, so
 * that of those that a search counts many stand for several. From CASES on such alone, as many as a
 * short way takes, of which each may well be drawn. */
static void case_make(struct test_case *c, int i)
{
    const float temperatures[] = {1.0f, 0.9f, 0.3f, 4.0f, 1e-7f};
    const float top_ps[] = {1.0f, 0.95f, 0.5f, 0.01f};
    const int32_t top_ks[] = {50, 0, 1, 64, 65, 7, V};
    const uint32_t values[] = {1u << 20, 1u << 20, 40, 2, 1};
    const uint32_t steps = values[i < CASES ? i % 5 : 0];

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
    for (int t = 0; t < V && (i >= CASES || i % 3 == 0); t++)
        c->logits[t] += t % PRODUCT_UNIT < 7 ? 16.0f : 0.0f;
    c->banned.assign(product_units(V), 0);
    c->suppressed.assign(product_units(V), 0);
    for (int t = 0; t < V; t += i % 17 == 16 ? 1 : 1 + (int)random_below(200))
        rules_add(c->banned.data(), t);
    if (i % 2)
        c->suppressed = c->banned;
    if (i >= CASES) {
        c->row.flags = CUDA_ROW_SAMPLE;
        c->row.top_k = 64;
        c->row.top_p = 1.0f;
        c->row.temperature = 20.0f;
    }
    c->rules.banned = i % 6 == 5 ? NULL : c->banned.data();
    c->rules.suppressed = i % 6 == 5 ? NULL : c->suppressed.data();
}

/* What the choice came to: of all lanes of the first warp. */
struct told {
    int32_t token, count;
};
static void told_add(struct told *told, int32_t token)
{
    if (threadIdx.x < 32 && (!told->count++ || token == told->token))
        told->token = token;
}

static void judge(const char *what, int i, const struct told &told, int32_t want)
{
    const bool ok = told.token == want && told.count == 32;

    printf("case %d, %s: token %d of %d  %s\n", i, what, told.token, want, ok ? "ok" : "FAILED");
    failures += !ok;
}

/* By fused.h's kernel, `step` steps behind where the launch began. */
static struct told fused_choice(const struct test_case &c, int32_t step)
{
    static struct draw_scratch scratch;
    static struct draw_asked asked;
    static struct draw_kept kept = {FEW_WIDTH}; /* and from then on what the case before left */
    static float scores[DRAW_VOCABULARY], logits[DRAW_VOCABULARY];
    struct told told = {-1, 0};

    std::fill(logits, logits + DRAW_VOCABULARY, -INFINITY);
    std::copy(c.logits.begin(), c.logits.end(), logits);
    memset((void *)&scratch, 0x7e, sizeof scratch);
    simt_launch({1, 1, 1}, BLOCK_GROUP, [&] {
        draw_ask(&asked, c.rules, &c.row, DRAW_STEPS);
        __syncthreads();
        told_add(&told, draw_run(&scratch, &kept, 2, logits, scores, c.rules, &asked,
                                 draw_begin(&asked, c.rules, step, c.row.position + step,
                                            c.row.min_new, c.row.max_new, threadIdx.x)));
    });
    return told;
}

/* By fused_rows.h's, in a group of WARPS warps, of logits as its blocks put them. */
template <int WARPS> static struct told rows_choice(const struct test_case &c)
{
    static struct block_shared shared;
    static struct draw_few<WARPS> few;
    static struct draw_kept kept = {FEW_WIDTH};
    static float logits[DRAW_VOCABULARY];
    struct told told = {-1, 0};

    std::fill(logits, logits + DRAW_VOCABULARY, -INFINITY);
    for (int t = 0; t < V; t++)
        if (t == 0 || !rules_has(c.rules.banned, t))
            logits[t] = c.logits[t];
    memset((void *)&shared, 0x7e, sizeof shared);
    memset((void *)&few, 0x7e, sizeof few);
    simt_launch({1, 1, 1}, WARPS * 32, [&] {
        const struct draw_row<WARPS> row =
            rows_draw_begin<WARPS>(rows_ask(c.rules, c.row), c.rules, c.row.position, c.row.min_new,
                                   c.row.max_new, threadIdx.x);

        told_add(&told, row.forced >= 0
                            ? row.forced
                            : rows_draw_run<WARPS>(&shared, &few, &kept, 3, logits, V, row));
    });
    return told;
}

int main(void)
{
    for (int i = 0; i < CASES + CROWDED; i++) {
        struct test_case c;
        int32_t want, step;
        struct told told;

        V = i % 4 == 3 ? (int32_t)DRAW_VOCABULARY - i : 3000;
        case_make(&c, i);
        step = c.row.position ? i % 5 : 0;
        told = fused_choice(c, step);
        c.row.position += step;
        want = host_choose(&c.row, c.rules, c.logits);
        judge("fused", i, told, want);
        if (!(c.row.flags & CUDA_ROW_SAMPLE)) /* there by their units */
            continue;
        judge("rows, 8 warps", i, rows_choice<8>(c), want);
        judge("rows, 5 warps", i, rows_choice<5>(c), want);
        judge("rows, 4 warps", i, rows_choice<4>(c), want);
        judge("rows, 3 warps", i, rows_choice<3>(c), want);
    }
    return failures ? 1 : 0;
}
