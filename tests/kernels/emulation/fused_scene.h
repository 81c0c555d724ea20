/* SPDX-License-Identifier: MIT
 *
 * fused_scene: what the tests of the kernels that run whole steps share: a small model with rows in
 * the middle of their sequences, what a kernel made of them, and the same in plain arithmetic. The
 * test names the kernel's types before, scene_params, scene_layer, scene_weight, and has
 * scene_rows() say how many rows there are, and how many a cluster.
 */
#ifndef PGPT_TESTS_KERNELS_EMULATION_FUSED_SCENE_H
#define PGPT_TESTS_KERNELS_EMULATION_FUSED_SCENE_H

#include "kernels/search/rules.h"
#include "tests/kernels/emulation/fused_plain.h"

enum { LAYERS_MOST = 3, KEYS = 80, ROWS_MAX = 32, V = 1000, STEPS_MOST = 4 };

/* Of the model, and of a run; in so many calls of the kernel, which share the steps out evenly. */
static int scene_layers = 2, scene_steps = 2, scene_calls = 1;

/* A model, and rows in the middle of their sequences. The same for every call with these types. */
template <class T> struct scene {
    scene_params p;
    int32_t active[ROWS_MAX];
    struct cuda_row row[ROWS_MAX];

    scene_weight weight(int N, int K)
    {
        scene_weight w = {(const char *)random_array<T>((size_t)N * K, 0.06f),
                          random_array<float>(N, 0.3f)};

        return w;
    }
    struct network_norm norm(void)
    {
        struct network_norm n;

        n.gamma = random_array<float>(D, 1.0f);
        n.beta = random_array<float>(D, 0.2f);
        return n;
    }
    struct network_cache cache(void)
    {
        const size_t chunk = (size_t)ROWS_MAX * HEADS * CHUNK;
        const size_t layer = (KEYS + CHUNK - 1) / CHUNK * chunk * HEAD;
        struct network_cache c;

        c.k = (char *)random_array<T>(layer * LAYERS_MOST, 1.0f);
        c.v = (char *)random_array<T>(layer * LAYERS_MOST, 1.0f);
        c.layer_stride = layer * sizeof(T);
        c.chunk_places = (uint32_t)chunk;
        return c;
    }

    scene(void)
    {
        float *mask = (float *)calloc(V, sizeof(float));
        uint32_t *banned = (uint32_t *)calloc((V + 31) / 32, sizeof(uint32_t));

        random_state = 7;
        memset((void *)this, 0, sizeof *this);
        for (int l = 0; l < LAYERS_MOST; l++) {
            scene_layer &layer = p.layer[l];

            layer.qkv = weight(3 * D, D);
            layer.out = weight(D, D);
            layer.cross_q = weight(D, D);
            layer.cross_out = weight(D, D);
            layer.fc1 = weight(FFN, D);
            layer.fc2 = weight(D, FFN);
            layer.self_norm = norm();
            layer.cross_norm = norm();
            layer.norm = norm();
        }
        p.output = weight(product_padded(V), D);
        p.embedding.format = CUDA_F16;
        p.embedding.N = V;
        p.embedding.K = D;
        p.embedding.packed = (void *)p.output.packed;
        p.positions = random_array<float>((size_t)KEYS * D, 1.0f);
        p.embedding_factor = 3.0f;
        p.activation = PRODUCT_ACT_SWISH;
        p.layers = scene_layers;
        p.self = cache();
        p.cross = cache();
        for (int i = 0; i < V; i += 7) {
            mask[i] = -INFINITY;
            rules_add(banned, i);
        }
        p.rules.vocabulary = V;
        p.rules.eos_token = 0;
        p.rules.forced_bos = 5;
        p.rules.mask = mask;
        p.rules.banned = banned;
        p.rows.P = KEYS;
        p.rows.max_rows = ROWS_MAX;
        p.rows.tokens = (int32_t *)calloc(ROWS_MAX * KEYS, sizeof(int32_t));
        p.rows.logprobs = (float *)calloc(ROWS_MAX * KEYS, sizeof(float));
        p.rows.collected = (int32_t *)calloc(ROWS_MAX, sizeof(int32_t));
        p.out.position = (int32_t *)calloc(ROWS_MAX, sizeof(int32_t));
        p.out.finished = (int32_t *)calloc(ROWS_MAX, sizeof(int32_t));
        p.out.tokens = (int32_t *)calloc(ROWS_MAX * STEPS_MOST, sizeof(int32_t));
        p.out.logprobs = (float *)calloc(ROWS_MAX * STEPS_MOST, sizeof(float));
        for (int i = 0; i < ROWS_MAX; i++) {
            struct cuda_row *r = &row[i];

            active[i] = i;
            r->token = 17 + i;
            r->position = i * 31 % 68;
            r->max_new = i % 3 == 1 ? r->position + 2 : KEYS;
            r->min_new = i % 2 ? 50 : 0;
            r->source_len = 1 + (i * 31 + 33) % 70;
            r->cross = (i + 5) % ROWS_MAX;
            r->finished = i == 4;
            r->flags = i % 3 == 2 ? CUDA_ROW_SAMPLE : 0; /* as far as the kernel takes such rows */
            r->seed = 5;
            r->sequence = i;
            r->top_k = i % 2 ? 50 : 0;
            r->top_p = 0.95f;
            r->temperature = 0.9f;
            cache_spoil<T>(p.self, LAYERS_MOST, HEADS, i, r->position, KEYS);
            cache_spoil<T>(p.cross, LAYERS_MOST, HEADS, r->cross, r->source_len, KEYS);
        }
    }
};

/* Tokens and ln p of `n` rows from `first` on, after steps. */
struct outcome {
    int32_t token[ROWS_MAX][STEPS_MOST];
    float logprob[ROWS_MAX][STEPS_MOST];
};

/* Was the host told of a call what the device keeps? before: positions (n) in front of it. */
static void told_judge(const scene_params &p, int first, int n, const int32_t *before)
{
    for (int i = 0; i < n; i++) {
        const struct cuda_row &row = p.rows.row[first + i];
        const size_t count = row.position - before[i], at = (first + i) * KEYS + before[i];
        const size_t to = (size_t)i * p.steps;

        judge("what the host is told", first + i,
              p.out.position[i] != row.position || p.out.finished[i] != row.finished ||
                  p.rows.collected[first + i] != row.position ||
                  memcmp(p.out.tokens + to, p.rows.tokens + at, count * sizeof(int32_t)) ||
                  memcmp(p.out.logprobs + to, p.rows.logprobs + at, count * sizeof(float)),
              0.0);
    }
}

/* Runs `kernel` on n rows of a fresh scene from `first` on, `each` a cluster. */
template <class T>
static void scene_run(struct outcome *out, int first, int n, int each,
                      std::function<void(const scene_params &, int)> kernel)
{
    static struct scene<T> s;
    scene_params &p = s.p;
    int32_t begun[ROWS_MAX];

    new (&s) scene<T>();
    p.rows.row = s.row;
    p.active = s.active + first;
    scene_rows(&p, n, each);
    p.steps = scene_steps / scene_calls;
    for (int i = 0; i < n; i++)
        begun[i] = s.row[first + i].position;
    for (int i = 0; i < scene_calls; i++) {
        int32_t before[ROWS_MAX];

        for (int j = 0; j < n; j++)
            before[j] = s.row[first + j].position;
        kernel(p, (n + each - 1) / each);
        told_judge(p, first, n, before);
    }
    for (int i = 0; i < n; i++)
        for (int j = 0; j < STEPS_MOST; j++) { /* zeros behind the last */
            const size_t at = (size_t)(first + i) * KEYS + begun[i] + j;

            out->token[first + i][j] = p.rows.tokens[at];
            out->logprob[first + i][j] = p.rows.logprobs[at];
        }
}

static void compare(const char *what, const struct outcome &a, const struct outcome &b, int row)
{
    judge(what, row,
          memcmp(a.token[row], b.token[row], sizeof a.token[row]) ||
              memcmp(a.logprob[row], b.logprob[row], sizeof a.logprob[row]),
          0.0);
}

/* q: (D). Keys and values of a row's cache; the last position's from new_k, new_v when given. */
template <class T>
static numbers attend(const numbers &q, const struct network_cache &cache, int layer, int row,
                      int length, const double *new_k, const double *new_v)
{
    numbers out(D);

    for (int h = 0; h < HEADS; h++) {
        numbers p(length);
        double sum = 0.0;

        auto get = [&](const char *from, const double *newest, int j, int d) {
            const size_t place = (size_t)(j / CHUNK) * cache.chunk_places +
                                 ((size_t)row * HEADS + h) * CHUNK + j % CHUNK;

            return newest && j == length - 1
                       ? newest[h * HEAD + d]
                       : (double)(float)((const T *)(from +
                                                     layer * cache.layer_stride))[place * HEAD + d];
        };
        for (int j = 0; j < length; j++) {
            for (int d = 0; d < HEAD; d++)
                p[j] += q[h * HEAD + d] * get(cache.k, new_k, j, d) / 8.0;
            sum += p[j] = exp(p[j]);
        }
        for (int j = 0; j < length; j++)
            for (int d = 0; d < HEAD; d++)
                out[h * HEAD + d] += p[j] / sum * get(cache.v, new_v, j, d);
    }
    return out;
}

/* How far the first step's ln p of a row is from that of its token in plain arithmetic, and how far
 * below the best that may be chosen that token is. */
template <class T> static void reference(const struct outcome &got, int row)
{
    static struct scene<T> s;
    const scene_params &p = s.p;
    const struct cuda_row *r = &s.row[row];
    numbers x(D), logits;
    double sum = 0.0, best = -INFINITY;
    const int token = got.token[row][0];

    new (&s) scene<T>();
    for (int k = 0; k < D; k++)
        x[k] = (double)(float)((const T *)p.output.packed)[packed_at(r->token, k, D)] *
                   p.embedding_factor +
               p.positions[(size_t)r->position * D + k];
    for (int l = 0; l < p.layers; l++) {
        const scene_layer &layer = p.layer[l];
        numbers qkv = multiply<T>(layer.qkv, x, 3 * D), q(qkv.begin(), qkv.begin() + D), h;

        x = normed(x,
                   multiply<T>(layer.out,
                               attend<T>(q, p.self, l, row, r->position + 1, &qkv[D], &qkv[2 * D]),
                               D),
                   layer.self_norm);
        q = multiply<T>(layer.cross_q, x, D);
        x = normed(x,
                   multiply<T>(layer.cross_out,
                               attend<T>(q, p.cross, l, r->cross, r->source_len, NULL, NULL), D),
                   layer.cross_norm);
        h = multiply<T>(layer.fc1, x, FFN);
        for (double &e : h)
            e = e / (1.0 + exp(-e));
        x = normed(x, multiply<T>(layer.fc2, h, D), layer.norm);
    }
    logits = multiply<T>(p.output, x, V);
    for (int c = 0; c < V; c++) {
        sum += exp(logits[c]);
        if (p.rules.mask[c] == 0.0f && !(c == 0 && r->position < r->min_new))
            best = fmax(best, logits[c]);
    }
    judge("ln p of the token", row, fabs(logits[token] - log(sum) - got.logprob[row][0]), 2e-3);
    if (r->position)
        judge("below the best token", row, best - logits[token], 2e-3);
    else
        judge("the forced token", row, token != p.rules.forced_bos, 0.0);
}

#endif
