// SPDX-License-Identifier: MIT
//
// One step of the fused kernel on a CPU (simt.h), as test_fused does it for many: rows with sources
// and histories of all kinds of length, one of them a beam whose history lies in other rows, narrow
// and wide feed-forward, clusters of 16 and of 8 blocks, alone and in company, letters that land at
// once, late or in any order. The same bits of logits and of the layers' output, and what plain
// loops in double precision give, within rounding.
#include "simt.h"

#include "kernels/cuda/fused.cu"

#include "tests/kernels/emulation/fused_plain.h"

enum { LAYERS = 3, KEYS = 80, ROWS_MAX = 32, V = 1000, BEAM = 3 };

/* A model, and rows in the middle of their sequences. The same for every call with these types. */
template <class T, int FFN> struct scene {
    struct fused_params p;
    int32_t active[ROWS_MAX];
    struct cuda_row row[ROWS_MAX];

    struct fused_weight weight(int N, int K)
    {
        struct fused_weight w = {(const char *)random_array<T>((size_t)N * K, 0.06f),
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

        c.k = (char *)random_array<T>(layer * LAYERS, 1.0f);
        c.v = (char *)random_array<T>(layer * LAYERS, 1.0f);
        c.layer_stride = layer * sizeof(T);
        c.chunk_places = (uint32_t)chunk;
        return c;
    }

    scene(void)
    {
        float *mask = (float *)calloc(V, sizeof(float));

        random_state = 7;
        memset((void *)this, 0, sizeof *this);
        for (int l = 0; l < LAYERS; l++) {
            struct fused_layer &layer = p.layer[l];

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
        p.layers = LAYERS;
        p.self = cache();
        p.cross = cache();
        for (int i = 0; i < V; i += 7)
            mask[i] = -INFINITY;
        p.rules.vocabulary = V;
        p.rules.eos_token = 0;
        p.rules.forced_bos = 5;
        p.rules.mask = mask;
        p.rows.P = KEYS;
        p.rows.max_rows = ROWS_MAX;
        p.rows.source_row = (int32_t *)calloc(ROWS_MAX * KEYS, sizeof(int32_t));
        for (int i = 0; i < KEYS; i++)
            p.rows.source_row[BEAM * KEYS + i] = i * 7 % ROWS_MAX;
        for (int i = 0; i < ROWS_MAX; i++) {
            struct cuda_row *r = &row[i];

            active[i] = i;
            r->token = 17 + i;
            r->position = i * 31 % 68;
            r->max_new = KEYS;
            r->flags = i == BEAM ? CUDA_ROW_BEAM : 0;
            r->min_new = i % 2 ? 50 : 0;
            r->source_len = 1 + (i * 31 + 33) % 70;
            r->cross = (i + 5) % ROWS_MAX;
            r->finished = i == 4;
            cache_spoil<T>(p.cross, LAYERS, HEADS, r->cross, r->source_len, KEYS);
        }
    }
};

/* What a step leaves of each row: logits and their units, or the layers' output. */
struct outcome {
    float logits[ROWS_MAX][V], special[ROWS_MAX][2], y[ROWS_MAX][D];
    struct product_unit units[ROWS_MAX][(V + 31) / 32];
};

template <class F, int CL, int FFN>
static void run(struct outcome *out, int first, int n, int clusters, bool layers)
{
    static struct scene<typename F::element, FFN> s;
    struct fused_params &p = s.p;

    new (&s) scene<typename F::element, FFN>();
    memset((void *)out, 0, sizeof *out);
    p.rows.row = s.row;
    p.active = s.active + first;
    p.n = &n;
    p.y = layers ? out->y[first] : NULL;
    p.units = out->units[first];
    p.special = out->special[first];
    p.logits = out->logits[first];
    simt_launch(
        {CL * clusters, 1, 1}, THREADS,
        [&] {
            if (CL == 16 && n <= clusters)
                fused<F, 16, FFN, FUSED_STEP, ROOM_ALONE>(p);
            else if (CL == 16 && n <= clusters * ROWS_FEW)
                fused<F, 16, FFN, FUSED_STEP, ROOM_FEW>(p);
            else
                fused<F, CL, FFN, FUSED_STEP, ROOM_ALL>(p);
        },
        CL);
}

static void compare(const char *what, const struct outcome &a, const struct outcome &b, int row)
{
    judge(what, row,
          memcmp(a.logits[row], b.logits[row], sizeof a.logits[row]) ||
              memcmp(a.units[row], b.units[row], sizeof a.units[row]) ||
              memcmp(a.special[row], b.special[row], sizeof a.special[row]) ||
              memcmp(a.y[row], b.y[row], sizeof a.y[row]),
          0.0);
}

/* q: (D). Keys and values of a row's cache; the last position's from new_k, new_v when given. */
template <class T>
static numbers attend(const numbers &q, const struct network_cache &cache, int layer, int row,
                      int length, const double *new_k, const double *new_v,
                      const int32_t *source_row)
{
    numbers out(D);

    for (int h = 0; h < HEADS; h++) {
        numbers p(length);
        double sum = 0.0;

        auto get = [&](const char *from, const double *newest, int j, int d) {
            const size_t place = (size_t)(j / CHUNK) * cache.chunk_places +
                                 ((size_t)(source_row ? source_row[j] : row) * HEADS + h) * CHUNK +
                                 j % CHUNK;

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

/* How far a row's logits, or the layers' output, are from plain arithmetic. */
template <class T, int FFN> static void reference(const struct outcome &got, int row, bool layers)
{
    static struct scene<T, FFN> s;
    const struct fused_params &p = s.p;
    const struct cuda_row *r = &s.row[row];
    numbers x(D), y(D), logits;
    double worst = 0.0;

    new (&s) scene<T, FFN>();
    for (int k = 0; k < D; k++)
        x[k] = (double)(float)((const T *)p.output.packed)[packed_at(r->token, k, D)] *
                   p.embedding_factor +
               p.positions[(size_t)r->position * D + k];
    for (int l = 0; l < LAYERS; l++) {
        const struct fused_layer &layer = p.layer[l];
        numbers qkv = multiply<T>(layer.qkv, x, 3 * D), q(qkv.begin(), qkv.begin() + D), h;
        const int32_t *beam = row == BEAM ? p.rows.source_row + BEAM * KEYS : NULL;

        x = normed(
            x,
            multiply<T>(layer.out,
                        attend<T>(q, p.self, l, row, r->position + 1, &qkv[D], &qkv[2 * D], beam),
                        D),
            layer.self_norm);
        q = multiply<T>(layer.cross_q, x, D);
        x = normed(x,
                   multiply<T>(layer.cross_out,
                               attend<T>(q, p.cross, l, r->cross, r->source_len, NULL, NULL, NULL),
                               D),
                   layer.cross_norm);
        h = multiply<T>(layer.fc1, x, FFN);
        for (double &e : h)
            e = e / (1.0 + exp(-e));
        h = multiply<T>(layer.fc2, h, D);
        for (int k = 0; k < D; k++)
            y[k] = x[k] + h[k];
        x = normed(x, h, layer.norm);
    }
    if (layers) {
        for (int k = 0; k < D; k++)
            worst = fmax(worst, fabs(y[k] - got.y[row][k]));
        judge("the layers' output", row, got.y[row][0] == 0.0f ? NAN : worst, 1e-2);
        return;
    }
    logits = multiply<T>(p.output, x, V);
    for (int c = 0; c < V; c++)
        worst = fmax(worst, fabs(logits[c] - got.logits[row][c]));
    judge("logits", row, got.logits[row][0] == 0.0f ? NAN : worst, 1e-2);
}

template <int FFN> static void test(bool layers)
{
    enum { COUNT = 9 }; /* row 4 is finished, row 0 begins */
    static struct outcome alone, first, crowd;

    for (int copies = 0; copies < SIMT_COPIES; copies++) {
        simt_copies = (enum simt_copies)copies;
        run<format_f16, 8, FFN>(&crowd, 0, COUNT, 2, layers);
        if (!copies)
            first = crowd;
        for (int row = 0; row < COUNT; row++)
            if (row != 4)
                compare("letters at any time", first, crowd, row);
        run<format_f16, 16, FFN>(&alone, 2, 1, 1, layers);
        compare("16 blocks, alone", crowd, alone, 2);
        run<format_f16, 16, FFN>(&alone, 3, 5, 1, layers);
        for (int row = 3; row < 8; row++)
            compare("16 blocks, five rows", crowd, alone, row);
    }
    for (int row = 0; row < COUNT; row++)
        if (row != 4)
            reference<__half, FFN>(first, row, layers);
}

int main(void)
{
    test<256>(false);
    test<2048>(true);
    return failures ? 1 : 0;
}
