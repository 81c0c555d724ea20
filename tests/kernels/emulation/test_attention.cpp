/* SPDX-License-Identifier: MIT */
/* Decode attention over caches of every kind: rows of different lengths, of which some are
 * finished, some beams whose positions lie in other rows, against plain loops in double precision.
 */
#include "kernels/cuda/attention.cu"

#include <math.h>

#include <vector>

enum {
    POSITIONS = 128,
    TEST_ROWS = 9,
    TEST_HEADS = 4,
    TEST_BLOCKS = 2,
    CHUNKS = POSITIONS / CHUNK,
    CHUNK_PLACES = TEST_ROWS * TEST_HEADS * CHUNK,
};

static int failures;

static float random_float(void)
{
    return (float)(rand() % 20001 - 10000) / 10000.0f;
}

template <class C> struct cache_test {
    std::vector<C> elements;
    std::vector<__nv_bfloat16> scales;
    std::vector<double> value; /* what they mean */

    cache_test(void)
    {
        const size_t count = (size_t)CHUNKS * CHUNK_PLACES * HEAD;

        elements.resize(count);
        value.resize(count);
        scales.resize(count / 32, __nv_bfloat16(1.0f));
    }
    void fill(void)
    {
        for (size_t i = 0; i < scales.size(); i++)
            scales[i] = __nv_bfloat16(0.005f + 0.01f * fabsf(random_float()));
        for (size_t i = 0; i < elements.size(); i++) {
            if constexpr (sizeof(C) == 1) {
                elements[i] = (int8_t)(rand() % 255 - 127);
                value[i] = (double)elements[i] * (float)scales[i / 32];
            } else {
                elements[i] = C(random_float() * 1.5f);
                value[i] = (float)elements[i];
            }
        }
    }
    static size_t at(int row, int head, int position)
    {
        return ((size_t)(position / CHUNK) * CHUNK_PLACES +
                ((size_t)row * TEST_HEADS + head) * CHUNK + position % CHUNK) *
               HEAD;
    }
};

static double head_worst(const double *q, const std::vector<const double *> &k,
                         const std::vector<const double *> &v, const double *got)
{
    std::vector<double> p(k.size());
    double most = -INFINITY, sum = 0.0, worst = 0.0;

    for (size_t j = 0; j < k.size(); j++) {
        double dot = 0.0;

        for (int d = 0; d < HEAD; d++)
            dot += q[d] * k[j][d];
        p[j] = dot / 8.0;
        most = fmax(most, p[j]);
    }
    for (double &e : p)
        sum += e = exp(e - most);
    for (int d = 0; d < HEAD; d++) {
        double mean = 0.0, error;

        for (size_t j = 0; j < k.size(); j++)
            mean += p[j] / sum * v[j][d];
        error = fabs(mean - got[d]);
        if (!isnan(worst) && !(error <= worst))
            worst = error;
    }
    return worst;
}

/* kernel(): enqueues it. */
template <class T, class C>
static void decode_test(const char *what, bool cross, double most,
                        std::function<void(const struct attention &)> kernel)
{
    static const int lengths[TEST_ROWS] = {1, 2, 16, 17, 32, 33, 64, 65, 100};
    struct cache_test<C> keys, values;
    std::vector<T> q(TEST_ROWS * TEST_HEADS * HEAD), out(q.size(), T(768.0f));
    std::vector<struct cuda_row> rows(TEST_ROWS);
    std::vector<int32_t> active, source_row(TEST_ROWS * POSITIONS);
    const int32_t n = TEST_ROWS - 1;
    struct attention a;

    keys.fill();
    values.fill();
    for (T &e : q)
        e = T(random_float() * 2.0f);
    for (int32_t &r : source_row)
        r = rand() % TEST_ROWS;
    for (int r = 0; r < TEST_ROWS; r++) {
        rows[r] = {};
        rows[r].position = lengths[r] - 1;
        rows[r].source_len = lengths[r];
        rows[r].cross = (r + 3) % TEST_ROWS;
        rows[r].finished = r == 4;
        rows[r].flags = r % 3 == 2 ? CUDA_ROW_BEAM : 0;
        active.push_back((r * 2 + 1) % TEST_ROWS);
    }
    memset(&a, 0, sizeof a);
    a.n = &n;
    a.active = active.data();
    a.rows.row = rows.data();
    a.rows.source_row = source_row.data();
    a.rows.P = POSITIONS;
    a.cross = cross;
    a.heads = TEST_HEADS;
    a.chunk_places = CHUNK_PLACES;
    a.q = q.data();
    a.cache_k = keys.elements.data();
    a.cache_v = values.elements.data();
    a.scales_k = keys.scales.data();
    a.scales_v = values.scales.data();
    a.out = out.data();
    kernel(a);
    for (int i = 0; i < TEST_ROWS; i++)
        for (int h = 0; h < TEST_HEADS; h++) {
            const int r = active[i], from = cross ? rows[r].cross : r;
            const bool none = i >= n || rows[r].finished;
            std::vector<const double *> k, v;
            std::vector<double> query(HEAD), got(HEAD);
            double worst;

            for (int p = 0; p < lengths[r]; p++) {
                const int row = !cross && (rows[r].flags & CUDA_ROW_BEAM) && p < lengths[r] - 1
                                    ? source_row[r * POSITIONS + p]
                                    : from;

                k.push_back(&keys.value[keys.at(row, h, p)]);
                v.push_back(&values.value[keys.at(row, h, p)]);
            }
            for (int d = 0; d < HEAD; d++) {
                query[d] = (float)q[(i * TEST_HEADS + h) * HEAD + d];
                got[d] = (float)out[(i * TEST_HEADS + h) * HEAD + d];
            }
            worst = none ? got[0] == 768.0 && got[HEAD - 1] == 768.0 ? 0.0 : INFINITY
                         : head_worst(query.data(), k, v, got.data());
            if (!(worst <= most))
                failures++;
            printf("%s, row %d of %d positions, head %d: %.2e %s\n", what, i, lengths[r], h, worst,
                   worst <= most ? "ok" : "FAILED");
        }
}

template <class T, class C, int HEADS, int WARPS> static void decode_run(const struct attention &a)
{
    simt_launch({TEST_ROWS, TEST_HEADS / HEADS, 1}, HEADS * WARPS * 32,
                [&] { attention_decode<T, C, HEADS, WARPS>(a); });
}

template <class T, class C> static void decode_tests(const char *what, double most)
{
    for (int cross = 0; cross < 2; cross++) {
        decode_test<T, C>(what, cross, most, decode_run<T, C, 1, 4>);
        decode_test<T, C>(what, cross, most, decode_run<T, C, 4, 1>);
    }
}

/* Blocks that stay, whenever what they copy comes. */
template <class T, int WARPS, int SLOTS> static void stream_tests(const char *what, double most)
{
    for (int copies = 0; copies < 2 * SIMT_COPIES; copies++) {
        simt_copies = (enum simt_copies)(copies / 2);
        decode_test<T, T>(what, copies % 2, most, [](const struct attention &a) {
            simt_launch({TEST_BLOCKS, 1, 1}, WARPS * 32,
                        [&] { attention_stream<T, WARPS, SLOTS>(a, TEST_ROWS); });
        });
    }
}

int main(void)
{
    decode_tests<__half, __half>("decode, fp16", 2e-3);
    decode_tests<__nv_bfloat16, __nv_bfloat16>("decode, bf16", 1.5e-2);
    decode_tests<float, float>("decode, fp32", 1e-5);
    decode_tests<__half, int8_t>("decode, fp16, int8 caches", 2e-3);
    decode_tests<__nv_bfloat16, int8_t>("decode, bf16, int8 caches", 1.5e-2);
    decode_tests<float, int8_t>("decode, fp32, int8 caches", 1e-5);
    stream_tests<__half, 3, 2>("blocks that stay, fp16", 2e-3);
    stream_tests<__half, 1, 3>("blocks that stay, one warp, fp16", 2e-3);
    stream_tests<__nv_bfloat16, 7, 2>("blocks that stay, bf16", 1.5e-2);
    return failures ? 1 : 0;
}
