// SPDX-License-Identifier: MIT
//
// The kernels of many rows against double precision, on a CPU (simt.h): products of all kinds of
// length over both tiles, and the encoder's attention over sources of all kinds of length.
#include "simt.h"

#include <vector>

#include "kernels/cuda/attention_encoder.cu"
#include "kernels/cuda/product_hopper.cuh"
#include "kernels/cuda/product_stream.cuh"

static uint64_t random_state = 1;
static int failures;

/* -1 .. 1 */
static float random_float(void)
{
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return (float)(random_state >> 40) / (float)(1 << 23) - 1.0f;
}

static void judge(const char *what, int a, int b, int c, double worst, double most)
{
    const bool ok = worst <= most; /* not for NaN */

    printf("%-34s %4d %4d %4d  copies %d  worst %.2g  %s\n", what, a, b, c, (int)simt_copies, worst,
           ok ? "ok" : "FAILED");
    failures += !ok;
}

/* Column n, input k in packed weights: format.cuh. */
static size_t packed_at(int n, int k, int K)
{
    int column = n % 16, half = k % 32 / 16, in = k % 16, late = in / 8, q = in % 8 / 2;

    return ((size_t)(n / 16) * (K / 32) + k / 32) * 512 +
           ((half * 32 + column % 8 * 4 + q) * 4 + late * 2 + column / 8) * 2 + in % 2;
}

/* A weight as product_stream has it. */
static std::vector<uint4> tiled_fill(struct cuda_weight *weight)
{
    const int words = product_padded(weight->N) * weight->K / 8;
    std::vector<uint4> tiled(words);

    weight->tiled = tiled.data();
    simt_launch({words / 256, 1, 1}, 256, [&] { stream_tile_words(*weight, words); });
    return tiled;
}

template <class F, enum product_output OUTPUT, int CLUSTER>
static void stream_run(const struct product &p, int columns)
{
    const int rows = STREAM_ROWS * CLUSTER;

    simt_launch(
        {(*p.n + rows - 1) / rows * CLUSTER, columns, 1}, STREAM_THREADS,
        [&] { product_stream<F, OUTPUT>(p); }, CLUSTER);
}

/* PART < 0: product_parts, of -PART windows. */
template <class F, enum product_output OUTPUT, int BM, int SPLIT, int PART>
static void product_test(const char *what, int n, int N, int K, int blocks, double most)
{
    typedef typename F::element T;
    const size_t padded = (size_t)product_padded(N);
    const int columns = 128 / SPLIT, tiles = (N + columns - 1) / columns;
    std::vector<T> w(padded * K), packed(padded * K), x((size_t)n * K),
        out((size_t)n * N, T(777.0f));
    std::vector<float> bias(padded), residual((size_t)n * N), y((size_t)n * N, 777.0f);
    struct product p;
    double worst = 0.0;

    for (int c = 0; c < N; c++) {
        bias[c] = random_float();
        for (int k = 0; k < K; k++)
            packed[packed_at(c, k, K)] = w[(size_t)c * K + k] = T(random_float() * 0.1f);
    }
    for (T &v : x)
        v = T(random_float());
    for (float &v : residual)
        v = random_float();
    memset(&p, 0, sizeof p);
    p.n = &n;
    p.weight.N = N;
    p.weight.K = K;
    p.weight.packed = packed.data();
    p.weight.bias = bias.data();
    p.x = x.data();
    p.output = OUTPUT;
    p.residual = residual.data();
    p.out = OUTPUT == PRODUCT_RESIDUAL ? (void *)y.data() : (void *)out.data();
    if constexpr (PART < 0)
        simt_launch(
            {FORMAT_PARTS * tiles, (n + BM - 1) / BM, 1}, PARTS_THREADS,
            [&] { product_parts<F, BM, -PART>(p); }, FORMAT_PARTS);
    else
        simt_launch({SPLIT == 2 ? tiles : blocks, (n + BM - 1) / BM, 1}, HOPPER_THREADS,
                    [&] { product_hopper<F, OUTPUT, false, BM, SPLIT, PART>(p); });
    for (int i = 0; i < n; i++)
        for (int c = 0; c < N; c++) {
            const size_t at = (size_t)i * N + c;
            double sum = bias[c], got = (float)out[at], error;

            for (int k = 0; k < K; k++)
                sum += (double)(float)x[(size_t)i * K + k] * (float)w[(size_t)c * K + k];
            if (OUTPUT == PRODUCT_RESIDUAL)
                got = (double)y[at] - residual[at];
            error = fabs(got - sum);
            if (!isnan(worst) && !(error <= worst))
                worst = error;
        }
    judge(what, n, N, K, worst, most);
}

/* A value as it may be written: what is none, or too large, becomes the nearest that is one. */
template <class T> static double value_written(double v)
{
    const double most = sizeof(T) == 2 && (float)T(65504.0f) == 65504.0f ? 65504.0 : 0x1.fep127;

    return isnan(v) ? -most : fmin(fmax(v, -most), most);
}
static void values_break(float *bias)
{
    bias[3] = INFINITY;
    bias[5] = -INFINITY;
    bias[HEAD + 2] = NAN;
}

/* Keys and values of source tokens into the caches of their rows, as elements or as int8 with a
 * scale for each half of a head. */
template <int BM, int SPLIT, int PART>
static void cross_test(const char *what, int n, int D, bool int8)
{
    const int positions = 50, rows = 3, heads = D / HEAD, columns = 128 / SPLIT;
    const size_t chunk = (size_t)rows * heads * CHUNK;
    const size_t cache = (positions + CHUNK - 1) / CHUNK * chunk * HEAD;
    std::vector<__half> packed((size_t)2 * D * D), w(packed.size()), x((size_t)n * D);
    std::vector<__half> k(cache), v(cache);
    std::vector<int8_t> k_bytes(cache), v_bytes(cache);
    std::vector<__nv_bfloat16> scales_k(cache / 32), scales_v(cache / 32);
    std::vector<float> bias((size_t)2 * D);
    std::vector<int32_t> row(n), position(n);
    struct product p;
    double worst = 0.0;

    for (int c = 0; c < 2 * D; c++) {
        bias[c] = random_float();
        for (int i = 0; i < D; i++)
            packed[packed_at(c, i, D)] = w[(size_t)c * D + i] = __half(random_float() * 0.1f);
    }
    if (!int8)
        values_break(&bias[D]);
    for (__half &e : x)
        e = __half(random_float());
    for (int i = 0; i < n; i++) {
        row[i] = i % rows;
        position[i] = i / rows;
    }
    memset(&p, 0, sizeof p);
    p.n = &n;
    p.weight.N = 2 * D;
    p.weight.K = D;
    p.weight.packed = packed.data();
    p.weight.bias = bias.data();
    p.x = x.data();
    p.output = PRODUCT_CROSS;
    p.cache_k = int8 ? (void *)k_bytes.data() : (void *)k.data();
    p.cache_v = int8 ? (void *)v_bytes.data() : (void *)v.data();
    p.scales_k = int8 ? scales_k.data() : NULL;
    p.scales_v = int8 ? scales_v.data() : NULL;
    p.cache_heads = heads;
    p.chunk_places = (uint32_t)chunk;
    p.cache_rows = row.data();
    p.positions = position.data();
    simt_launch({2 * D / columns, (n + BM - 1) / BM, 1}, HOPPER_THREADS,
                [&] { product_hopper<format_f16, PRODUCT_CROSS, false, BM, SPLIT, PART>(p); });
    for (int i = 0; i < n; i++)
        for (int c = 0; c < 2 * D; c++) {
            const int head = c % D / HEAD, d = c % HEAD;
            const size_t at = position[i] / CHUNK * chunk +
                              ((size_t)row[i] * heads + head) * CHUNK + position[i] % CHUNK;
            double sum = bias[c], got, error;

            for (int j = 0; j < D; j++)
                sum += (double)(float)x[(size_t)i * D + j] * (float)w[(size_t)c * D + j];
            if (int8)
                got = (c < D ? k_bytes : v_bytes)[at * HEAD + d] *
                      (double)(float)(c < D ? scales_k : scales_v)[at * 2 + d / 32];
            else
                got = (float)(c < D ? k : v)[at * HEAD + d];
            if (!int8 && c >= D)
                sum = value_written<__half>(sum);
            error = fabs(got - sum);
            if (!isnan(worst) && !(error <= worst))
                worst = error;
        }
    judge(what, n, D, int8, worst, int8 ? 3e-2 : 4e-3);
}

/* Units of logits: the bits that output_unit() leaves, which other kernels use; and the logits. */
static void logits_judge(const char *what, int n, int V, int K,
                         const std::function<void(struct product &)> &run)
{
    const int units = product_units(V), masked = 128; /* behind it every token may be chosen */
    std::vector<__half> packed((size_t)product_padded(V) * K), x((size_t)n * K);
    std::vector<float> bias(product_padded(V)), mask(V), logits((size_t)n * V), special(2 * n),
        other(2 * n);
    std::vector<struct product_unit> got((size_t)n * units), wanted((size_t)n * units);
    std::vector<struct cuda_row> rows(n);
    std::vector<int32_t> active(n);
    struct product p;
    double worst = 0.0;

    for (__half &e : packed)
        e = __half(random_float() * 0.3f);
    for (__half &e : x)
        e = __half(random_float());
    for (int c = 0; c < V; c++)
        mask[c] = c < masked && (c % 7 == 3 || c / 32 == 2) ? -INFINITY : 0.0f;
    memset(rows.data(), 0, n * sizeof rows[0]);
    for (int i = 0; i < n; i++) {
        active[i] = n - 1 - i;
        rows[i].min_new = i % 2;
    }
    memset(&p, 0, sizeof p);
    p.n = &n;
    p.weight.N = V;
    p.weight.K = K;
    p.weight.packed = packed.data();
    p.weight.bias = bias.data();
    p.x = x.data();
    p.output = PRODUCT_LOGITS;
    p.active = active.data();
    p.rows.row = rows.data();
    p.rules = {V, 0, 36, 5, V - 1, mask.data()};
    p.units = got.data();
    p.special = special.data();
    p.logits = logits.data();
    for (int c : {36, 37}) /* the end of the text often lies ahead, or as far as its neighbour */
        bias[c] = 3.0f;
    run(p);
    p.units = wanted.data();
    p.logits = NULL;
    p.special = other.data();
    simt_launch({units, n, 1}, 32, [&] {
        const int i = simt_block.y, q = simt_lane() & 3;
        const struct tile_rows info = {active[i], 0, 0, rows[active[i]].min_new > 0};
        float v[8];

        for (int t = 0; t < 8; t++) {
            int c = unit_column(simt_block.x, q, t);

            v[t] = c < V ? logits[(size_t)i * V + c] : 0.0f;
        }
        output_unit(p, info, i, n, simt_block.x, q, v);
    });
    for (int i = 0; i < n; i++)
        failures += special[2 * i] != logits[(size_t)i * V + V - 1] ||
                    special[2 * i + 1] != logits[(size_t)i * V + 5];
    judge(what, n, V, units,
          memcmp(got.data(), wanted.data(), got.size() * sizeof got[0]) ? 1.0 : 0.0, 0.0);
    for (int i = 0; i < n; i++)
        for (int c = 0; c < V; c++) {
            double sum = bias[c];

            for (int k = 0; k < K; k++)
                sum += (double)(float)x[(size_t)i * K + k] * (float)packed[packed_at(c, k, K)];
            sum = fabs(logits[(size_t)i * V + c] - sum);
            if (!isnan(worst) && !(sum <= worst))
                worst = sum;
        }
    judge(what, n, V, K, worst, 1e-4);
    p.units = got.data();
    memset(got.data(), 0, got.size() * sizeof got[0]);
    run(p); /* nobody wants the logits */
    judge(what, n, V, 0, memcmp(got.data(), wanted.data(), got.size() * sizeof got[0]) ? 1.0 : 0.0,
          0.0);
}

template <int BM, int SPLIT, int PART> static void logits_test(const char *what, int n, int V)
{
    const int K = PART ? PART * 128 : 256, columns = 128 / SPLIT;

    logits_judge(what, n, V, K, [&](struct product &p) {
        simt_launch({(V + columns - 1) / columns, (n + BM - 1) / BM, 1}, HOPPER_THREADS,
                    [&] { product_hopper<format_f16, PRODUCT_LOGITS, false, BM, SPLIT, PART>(p); });
    });
}

/* columns: blocks that share out the columns */
template <int CLUSTER> static void stream_test(const char *what, int n, int V, int columns)
{
    logits_judge(what, n, V, STREAM_INPUTS, [&](struct product &p) {
        const std::vector<uint4> tiled = tiled_fill(&p.weight);

        stream_run<format_f16, PRODUCT_LOGITS, CLUSTER>(p, columns);
    });
}

/* Queries out, keys and values into the caches of rows of which one has ended. */
template <class F, int CLUSTER>
static void qkv_test(const char *what, int n, int columns, double most)
{
    typedef typename F::element T;
    const int D = STREAM_INPUTS, N = 3 * D, positions = 40;
    const size_t chunk = (size_t)n * D / HEAD * CHUNK;
    std::vector<T> packed((size_t)N * D), w(packed.size()), x((size_t)n * D);
    std::vector<T> q((size_t)n * D, T(777.0f)), k(2 * chunk * HEAD, T(777.0f)), v = k;
    std::vector<float> bias(N);
    std::vector<struct cuda_row> rows(n);
    std::vector<int32_t> active(n);
    struct product p;
    double worst = 0.0;

    for (int c = 0; c < N; c++) {
        bias[c] = random_float();
        for (int i = 0; i < D; i++)
            packed[packed_at(c, i, D)] = w[(size_t)c * D + i] = T(random_float() * 0.1f);
    }
    values_break(&bias[2 * D]);
    for (T &e : x)
        e = T(random_float());
    memset(rows.data(), 0, n * sizeof rows[0]);
    for (int i = 0; i < n; i++) {
        active[i] = n - 1 - i;
        rows[i].position = i * 7 % positions;
        rows[i].finished = i == n / 2;
    }
    memset(&p, 0, sizeof p);
    p.n = &n;
    p.weight.N = N;
    p.weight.K = D;
    p.weight.packed = packed.data();
    p.weight.bias = bias.data();
    p.x = x.data();
    p.output = PRODUCT_QKV;
    p.out = q.data();
    p.cache_k = k.data();
    p.cache_v = v.data();
    p.cache_heads = D / HEAD;
    p.chunk_places = (uint32_t)chunk;
    p.active = active.data();
    p.rows.row = rows.data();
    const std::vector<uint4> tiled = tiled_fill(&p.weight);

    stream_run<F, PRODUCT_QKV, CLUSTER>(p, columns);
    for (int i = 0; i < n; i++)
        for (int c = 0; c < N; c++) {
            const int row = active[i], d = c % D, position = rows[row].position;
            const size_t place = position / CHUNK * chunk +
                                 ((size_t)row * (D / HEAD) + d / HEAD) * CHUNK + position % CHUNK;
            const size_t at = place * HEAD + d % HEAD;
            double sum = bias[c];

            for (int j = 0; j < D; j++)
                sum += (double)(float)x[(size_t)i * D + j] * (float)w[(size_t)c * D + j];
            if (c >= 2 * D)
                sum = value_written<T>(sum);
            if (rows[row].finished) /* left alone */
                sum = (float)T(777.0f);
            sum = fabs((float)(c < D ? q[(size_t)i * D + d] : c < 2 * D ? k[at] : v[at]) - sum);
            if (!isnan(worst) && !(sum <= worst))
                worst = sum;
        }
    judge(what, n, N, columns, worst, most);
}

static double attention_worst(const std::vector<float> &q, const std::vector<float> &k,
                              const std::vector<float> &v, const std::vector<float> &got,
                              int length)
{
    double worst = 0.0;

    for (int i = 0; i < length; i++) {
        std::vector<double> p(length);
        double most = -INFINITY, sum = 0.0;

        for (int j = 0; j < length; j++) {
            double dot = 0.0;

            for (int d = 0; d < HEAD; d++)
                dot += (double)q[i * HEAD + d] * k[j * HEAD + d];
            p[j] = dot / 8.0;
            most = fmax(most, p[j]);
        }
        for (double &e : p)
            sum += e = exp(e - most);
        for (int d = 0; d < HEAD; d++) {
            double mean = 0.0, error;

            for (int j = 0; j < length; j++)
                mean += p[j] / sum * v[j * HEAD + d];
            error = fabs(mean - got[i * HEAD + d]);
            if (!isnan(worst) && !(error <= worst))
                worst = error;
        }
    }
    return worst;
}

/* Sources side by side, each with neighbours. */
template <class F>
static void attention_test(const char *what, const std::vector<int> &lengths, int heads,
                           double most)
{
    typedef typename F::element T;
    const int D = heads * HEAD;
    std::vector<int32_t> starts = {0};
    int longest = 0;

    for (int length : lengths) {
        starts.push_back(starts.back() + length);
        longest = max(longest, length);
    }
    std::vector<T> qkv((size_t)starts.back() * 3 * D), out((size_t)starts.back() * D, T(777.0f));
    for (T &e : qkv)
        e = T(random_float() * 1.5f);
    simt_launch({(int)lengths.size(), heads, (longest + TILE_QUERIES - 1) / TILE_QUERIES},
                TILE_WARPS * 32,
                [&] { attention_encoder<F>(qkv.data(), out.data(), starts.data(), heads); });
    for (size_t s = 0; s < lengths.size(); s++)
        for (int h = 0; h < heads; h++) {
            std::vector<float> q, k, v, got;

            for (int t = starts[s]; t < starts[s + 1]; t++)
                for (int d = 0; d < HEAD; d++) {
                    const T *from = &qkv[(size_t)t * 3 * D + h * HEAD + d];

                    q.push_back((float)from[0]);
                    k.push_back((float)from[D]);
                    v.push_back((float)from[2 * D]);
                    got.push_back((float)out[(size_t)t * D + h * HEAD + d]);
                }
            judge(what, (int)s, lengths[s], h, attention_worst(q, k, v, got, lengths[s]), most);
        }
}

int main(void)
{
    for (int copies = 0; copies < SIMT_COPIES; copies++) {
        simt_copies = (enum simt_copies)copies;
        for (int K : {256, 512, 768, 1024, 2048}) {
            product_test<format_f16, PRODUCT_PLAIN, 32, 2, 0>("32 rows a block", 37, 200, K, 0,
                                                              4e-3);
            product_test<format_f16, PRODUCT_RESIDUAL, 32, 2, 0>("32 rows, residual", 32, 64, K, 0,
                                                                 1e-5);
            product_test<format_f16, PRODUCT_RESIDUAL, 64, 1, 0>("64 rows, residual", 70, 384, K, 2,
                                                                 1e-5);
        }
        product_test<format_f16, PRODUCT_PLAIN, 32, 2, 4>("32 rows, 512 inputs", 37, 200, 512, 0,
                                                          4e-3);
        product_test<format_f16, PRODUCT_RESIDUAL, 32, 2, 4>("32 rows, residual, 512", 37, 64, 512,
                                                             0, 1e-5);
        product_test<format_f16, PRODUCT_RESIDUAL, 64, 1, 4>("64 rows, residual, 512", 70, 384, 512,
                                                             2, 1e-5);
        for (int K : {1024, 2048}) {
            product_test<format_f16, PRODUCT_RESIDUAL, 32, 2, HOPPER_LONG>(
                "32 rows, residual, long", 37, 64, K, 0, 1e-5);
            product_test<format_f16, PRODUCT_RESIDUAL, 64, 1, HOPPER_LONG>(
                "64 rows, residual, long", 70, 384, K, 2, 1e-5);
        }
        product_test<format_f16, PRODUCT_RESIDUAL, 32, 2, 2>("32 rows, residual, 256", 37, 64, 256,
                                                             0, 1e-5);
        product_test<format_f16, PRODUCT_RESIDUAL, 64, 1, 2>("64 rows, residual, 256", 70, 384, 256,
                                                             2, 1e-5);
        product_test<format_bf16, PRODUCT_PLAIN, 64, 1, 0>("64 rows, bf16", 65, 300, 768, 1, 2e-2);
        product_test<format_bf16, PRODUCT_PLAIN, 64, 1, 4>("64 rows, bf16, 512", 65, 300, 512, 1,
                                                           2e-2);
        logits_test<32, 2, 0>("32 rows, logits", 37, 300);
        logits_test<64, 1, 0>("64 rows, logits", 37, 300);
        logits_test<32, 2, 4>("32 rows, logits, 512", 37, 300);
        logits_test<64, 1, 4>("64 rows, logits, 512", 37, 300);
        logits_test<64, 2, 4>("64 rows in halves, logits", 70, 300);
        stream_test<1>("a stream of logits", 70, 600, 2);
        stream_test<2>("a stream for two blocks", 131, 600, 1);
        qkv_test<format_f16, 1>("a stream into caches", 70, 2, 4e-3);
        qkv_test<format_bf16, 2>("the same for two blocks, bf16", 200, 3, 2e-2);
        product_test<format_f16, PRODUCT_PLAIN, 64, 2, 0>("64 rows in halves", 70, 200, 768, 0,
                                                          4e-3);
        product_test<format_f16, PRODUCT_PLAIN, 64, 2, 4>("64 rows in halves, 512", 70, 200, 512, 0,
                                                          4e-3);
        product_test<format_f16, PRODUCT_RESIDUAL, 64, 2, 2>("64 rows in halves, 256", 70, 200, 256,
                                                             0, 1e-5);
        product_test<format_f16, PRODUCT_RESIDUAL, 64, 2, HOPPER_LONG>("64 rows in halves, long",
                                                                       70, 200, 2048, 0, 1e-5);
        product_test<format_f16, PRODUCT_RESIDUAL, 32, 2, -1>("parts, 1024", 37, 128, 1024, 0,
                                                              1e-5);
        product_test<format_f16, PRODUCT_RESIDUAL, 32, 2, -2>("parts, 2048", 70, 128, 2048, 0,
                                                              1e-5);
        product_test<format_f16, PRODUCT_RESIDUAL, 32, 2, -4>("parts, 4096", 5, 64, 4096, 0, 2e-5);
        product_test<format_bf16, PRODUCT_RESIDUAL, 64, 2, -1>("parts of 64 rows, bf16", 65, 64,
                                                               1024, 0, 1e-5);
        product_test<format_f16, PRODUCT_RESIDUAL, 64, 2, -2>("parts of 64 rows", 130, 128, 2048, 0,
                                                              1e-5);
        for (int int8 = 0; int8 < 2; int8++) {
            cross_test<32, 2, 0>("32 rows, caches", 35, 256, int8);
            cross_test<64, 1, 0>("64 rows, caches", 35, 256, int8);
            cross_test<64, 1, 4>("64 rows, caches, 512", 35, 512, int8);
        }
        attention_test<format_f16>("attention, fp16", {1, 7, 8, 9, 32, 33}, 2, 1e-3);
        attention_test<format_f16>("attention, fp16", {64, 65, 127, 5, 200}, 1, 1e-3);
        attention_test<format_bf16>("attention, bf16", {17, 130}, 1, 8e-3);
    }
    return failures ? 1 : 0;
}
