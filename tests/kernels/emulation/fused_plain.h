/* SPDX-License-Identifier: MIT
 *
 * fused_plain: what the tests of the fused kernels on a CPU share: numbers drawn by a seed, weights
 * as format.cuh packs them, plain products and norms in double precision, and the judge of each
 * comparison. After the kernel's own source, which defines D.
 */
#ifndef PGPT_TESTS_KERNELS_EMULATION_FUSED_PLAIN_H
#define PGPT_TESTS_KERNELS_EMULATION_FUSED_PLAIN_H

#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include <vector>

#include "kernels/cuda/product.h"
#include "kernels/cuda/product_input.cuh"

static uint64_t random_state;
static int failures;

/* -1 .. 1 */
static float random_float(void)
{
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return (float)(random_state >> 40) / (float)(1 << 23) - 1.0f;
}

template <class T> static T *random_array(size_t count, float scale)
{
    T *array = (T *)aligned_alloc(256, (count * sizeof(T) + 255) / 256 * 256);

    for (size_t i = 0; i < count; i++)
        array[i] = T(random_float() * scale);
    return array;
}

/* Column n, input k in packed weights: format.cuh. */
static size_t packed_at(int n, int k, int K)
{
    int column = n % 16, half = k % 32 / 16, in = k % 16, late = in / 8, q = in % 8 / 2;

    return ((size_t)(n / 16) * (K / 32) + k / 32) * 512 +
           ((half * 32 + column % 8 * 4 + q) * 4 + late * 2 + column / 8) * 2 + in % 2;
}

static void judge(const char *what, int row, double worst, double most)
{
    const bool ok = worst <= most; /* not for NaN */

    printf("%-34s row %2d  copies %d  %.2g  %s\n", what, row, (int)simt_copies, worst,
           ok ? "ok" : "FAILED");
    failures += !ok;
}

/* Keys that are not there are anything, values that are not there any number: so are those of a
 * row's cache from `from` on, where it has room for `most` positions. */
template <class T>
static void cache_spoil(const struct network_cache &cache, int layers, int heads, int row, int from,
                        int most)
{
    for (int l = 0; l < layers; l++)
        for (int h = 0; h < heads; h++)
            for (int p = from; p < (most + CACHE_CHUNK - 1) / CACHE_CHUNK * CACHE_CHUNK; p++) {
                const size_t place =
                    cache_place((uint32_t)(row * heads + h), (uint32_t)p, cache.chunk_places);

                for (int d = 0; d < CACHE_HEAD; d++) {
                    const size_t at = place * CACHE_HEAD + d;

                    ((T *)(cache.k + l * cache.layer_stride))[at] = T(NAN);
                    ((T *)(cache.v + l * cache.layer_stride))[at] = T(d % 2 ? 65000.0f : -65000.0f);
                }
            }
}

typedef std::vector<double> numbers;

template <class T, class Weight> static numbers multiply(const Weight &w, const numbers &x, int N)
{
    const T *packed = (const T *)w.packed;
    const int K = (int)x.size();
    numbers y(N);

    for (int n = 0; n < N; n++) {
        y[n] = w.bias[n];
        for (int k = 0; k < K; k++)
            y[n] += (double)(float)packed[packed_at(n, k, K)] * x[k];
    }
    return y;
}

static numbers normed(const numbers &x, const numbers &add, const struct network_norm &norm)
{
    numbers y(D);
    double mean = 0.0, square = 0.0;

    for (int k = 0; k < D; k++)
        mean += (y[k] = x[k] + add[k]) / D;
    for (int k = 0; k < D; k++)
        square += (y[k] - mean) * (y[k] - mean) / D;
    for (int k = 0; k < D; k++)
        y[k] = (y[k] - mean) / sqrt(square + LAYER_NORM_EPSILON) * norm.gamma[k] + norm.beta[k];
    return y;
}

#endif
