// SPDX-License-Identifier: MIT
//
// Sampled rows in the fused kernel of many rows on a CPU (simt.h), of all rules and beside plain
// ones: the same bits in clusters of few and of many rows, by groups of three to eight warps, in
// calls of one step and of several, with letters that land at once, late or in any order. Their
// tokens are those that the definitions of kernels/search/ find in the logits that the kernel left;
// plain rows have the bits that they have among themselves.
#include "simt.h"

#include "tests/kernels/emulation/draw_plain.h"
#include "tests/kernels/emulation/fused_rows_scene.h"

enum { CUT = (V + PRODUCT_UNIT - 1) / PRODUCT_UNIT * PRODUCT_UNIT }; /* a row of p.logits */

/* What calls of some steps leave of all rows. */
struct story {
    int32_t tokens[ROWS_MAX * KEYS];
    float logprobs[ROWS_MAX * KEYS];
    struct cuda_row row[ROWS_MAX];
    float logits[ROWS_MAX][CUT]; /* of the last step */
};

/* Rows of every kind and rule; others by another seed. suppressed: room for a set. */
template <class T> static void rules_draw(struct scene<T> *s, uint64_t seed, uint32_t *suppressed)
{
    const float temperatures[] = {0.9f, 1.0f, 0.3f, 3.0f, 1e-7f};
    const float top_ps[] = {0.95f, 1.0f, 0.5f, 0.01f};
    const int32_t top_ks[] = {50, 0, 1, 64, 65, 7, V};
    uint64_t state = seed * 77 + 5;
    auto below = [&](uint32_t n) {
        state = state * 6364136223846793005u + 1442695040888963407u;
        return (uint32_t)((state >> 33) % n);
    };

    for (struct cuda_row &r : s->row) {
        r.flags = below(4) ? CUDA_ROW_SAMPLE : 0;
        r.seed = seed * 1000 + below(3);
        r.top_k = below(2) ? 50 : top_ks[below(7)];
        r.top_p = top_ps[below(4)];
        r.temperature = temperatures[below(2) ? 0 : below(5)];
        r.min_new = below(2) ? KEYS : 0;
        r.max_new = below(3) ? KEYS : r.position + 1 + (int32_t)below(3);
        r.finished = !below(8);
    }
    s->p.rules.forced_eos = seed % 2 ? 3 : -1;
    s->p.rules.eos_token = 3;
    s->p.rules.forced_bos = seed % 3 ? 5 : -1;
    rules_add(suppressed, seed % 4 == 3 ? 3 : 7); /* what is forced may be among it */
    if (seed % 4 == 3) {
        rules_add((uint32_t *)s->p.rules.banned, 3);
        ((float *)s->p.rules.mask)[3] = -INFINITY;
    }
    s->p.rules.suppressed = suppressed;
}

/* Calls of `steps` each for n rows from `first` on, `each` a cluster; the rows of a fresh scene.
 * rows, rules: as they were before the last call; or NULL. */
template <class F, int NT>
static void draw_run(struct story *out, uint64_t seed, int first, int n, int each, int calls,
                     int steps, struct cuda_row *rows, struct cuda_rules *rules)
{
    static struct scene<typename F::element> s;
    uint32_t *suppressed = (uint32_t *)calloc(CUT / 32, sizeof *suppressed);
    struct fused_rows_sampled_params p;

    new (&s) scene<typename F::element>();
    rules_draw(&s, seed, suppressed);
    (struct fused_rows_params &)p = s.p;
    memset((void *)out, 0, sizeof *out);
    p.rows.row = s.row;
    p.rows.tokens = out->tokens;
    p.rows.logprobs = out->logprobs;
    p.logits = out->logits[first];
    p.active = s.active + first;
    p.steps = steps;
    scene_rows(&p, n, each);
    for (int i = 0; i < calls; i++) {
        if (rows)
            memcpy((void *)rows, s.row, sizeof s.row);
        simt_launch(
            {BLOCKS * ((n + each - 1) / each), 1, 1}, THREADS, [&] { fused_rows<F, NT, true>(p); },
            BLOCKS);
    }
    memcpy((void *)out->row, s.row, sizeof s.row);
    if (rules)
        *rules = p.rules;
}

static void story_compare(const char *what, const struct story &a, const struct story &b, int row)
{
    judge(what, row,
          memcmp(a.tokens + row * KEYS, b.tokens + row * KEYS, KEYS * sizeof *a.tokens) ||
              memcmp(a.logprobs + row * KEYS, b.logprobs + row * KEYS, KEYS * sizeof *a.logprobs) ||
              memcmp((const void *)&a.row[row], (const void *)&b.row[row], sizeof a.row[row]),
          0.0);
}

/* The last token of each sampled row, and its ln p, by the logits that were left. before: the rows
 * a step earlier. */
static void story_check(const struct story &told, const struct cuda_row *before,
                        const struct cuda_rules &rules, int count)
{
    for (int i = 0; i < count; i++) {
        const struct cuda_row *row = &before[i];
        const int32_t token = told.tokens[i * KEYS + row->position];
        std::vector<float> logits(told.logits[i], told.logits[i] + V);
        double sum = 0.0;

        judge("a step further", i, told.row[i].position != row->position + !row->finished, 0.0);
        if (row->finished || !(row->flags & CUDA_ROW_SAMPLE))
            continue;
        judge("the token of the definitions", i, token != host_choose(row, rules, logits), 0.0);
        judge("ends as it should", i,
              told.row[i].finished !=
                  (token == rules.eos_token || row->position + 1 >= row->max_new),
              0.0);
        if (logits[token] == -INFINITY) /* forced, though it may not be chosen */
            continue;
        for (int t = 0; t < V; t++)
            sum += exp((double)logits[t]); /* but for what may not be chosen */
        judge("no more than its ln p", i,
              told.logprobs[i * KEYS + row->position] - (logits[token] - log(sum)), 1e-4);
    }
}

/* Sampled and plain rows, of rules by a seed. */
static void drawn(uint64_t seed)
{
    enum { COUNT = 19 };
    static struct story first, other;
    struct cuda_row before[ROWS_MAX];
    struct cuda_rules rules;

    draw_run<format_f16, 3>(&first, seed, 0, COUNT, COUNT, 2, 1, before, &rules);
    story_check(first, before, rules, COUNT);
    draw_run<format_f16, 2>(&other, seed, 2, 9, 5, 1, 2, NULL, NULL);
    for (int row = 2; row < 11; row++)
        story_compare("drawn, two clusters, two steps", first, other, row);
    draw_run<format_f16, 4>(&other, seed, 0, COUNT, COUNT, 1, 2, NULL, NULL);
    for (int row = 0; row < COUNT; row++)
        story_compare("drawn, room for 32 rows", first, other, row);
    draw_run<format_f16, 5>(&other, seed, 0, COUNT, COUNT, 1, 2, NULL, NULL);
    for (int row = 0; row < COUNT; row++)
        story_compare("drawn, room for 40 rows", first, other, row);
}

/* A call of 16 steps, in which rows end, and calls of 4. */
static void drawn_long(void)
{
    enum { COUNT = 3, LONG = 16 };
    static struct story once, some;

    draw_run<format_f16, 2>(&once, 4, 9, COUNT, COUNT, 1, LONG, NULL, NULL);
    draw_run<format_f16, 2>(&some, 4, 9, COUNT, COUNT, LONG / 4, 4, NULL, NULL);
    for (int row = 9; row < 9 + COUNT; row++)
        story_compare("drawn, calls of four steps", once, some, row);
}

/* A block with four rows of its own, all groups at work. */
static void drawn_full(void)
{
    static struct story full, some;

    draw_run<format_f16, 5>(&full, 5, 0, ROWS_MAX, ROWS_MAX, 1, 2, NULL, NULL);
    draw_run<format_f16, 2>(&some, 5, 0, ROWS_MAX, 11, 1, 2, NULL, NULL);
    for (int row = 0; row < ROWS_MAX; row++)
        story_compare("drawn, full blocks", some, full, row);
}

/* Rows of the scene of which some are sampled, beside the same rows as none is. */
template <class F, int NT> static void run_sampled(struct outcome *out, int first, int n, int each)
{
    static float logits[ROWS_MAX * CUT];

    scene_run<typename F::element>(out, first, n, each, [](const scene_params &of, int clusters) {
        struct fused_rows_sampled_params p;

        (scene_params &)p = of;
        p.logits = logits;
        simt_launch(
            {BLOCKS * clusters, 1, 1}, THREADS, [&] { fused_rows<F, NT, true>(p); }, BLOCKS);
    });
}

/* One arrangement's plain rows as the kernel without sampling has them; sampled ones whenever
 * letters land. */
static void beside(void)
{
    enum { COUNT = 19 };
    struct outcome plain, first, crowd;

    run<format_f16, 3>(&plain, 0, COUNT, COUNT);
    for (int copies = 0; copies < SIMT_COPIES; copies++) {
        simt_copies = (enum simt_copies)copies;
        run_sampled<format_f16, 3>(&crowd, 0, COUNT, COUNT);
        if (!copies)
            first = crowd;
        for (int row = 0; row < COUNT; row++)
            compare("sampled, letters at any time", first, crowd, row);
    }
    for (int row = 0; row < COUNT; row++)
        if (row % 3 != 2)
            compare("plain beside sampled", plain, first, row);
    judge("another token is drawn", 2,
          !memcmp(plain.token[2], first.token[2], sizeof plain.token[2]) &&
              !memcmp(plain.token[8], first.token[8], sizeof plain.token[8]),
          0.0);
}

int main(void)
{
    enum { SEEDS = 3 };

    beside();
    for (int seed = 0; seed < SEEDS; seed++) {
        simt_copies = (enum simt_copies)(seed % SIMT_COPIES);
        drawn(seed);
    }
    drawn_long();
    drawn_full();
    return failures ? 1 : 0;
}
