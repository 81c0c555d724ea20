/* SPDX-License-Identifier: MIT
 *
 * math: the scalar functions of the CPU back end, written out so that every machine and every vector
 * width gives the same bits: only +, *, fmaf, rintf, comparisons and bit patterns, in one order.
 * Sums over a vector run in 16 lanes (element i goes to lane i mod 16), which are then added as a
 * tree: lane i += lane i + 8, then 4, 2, 1. Pure functions, any thread.
 */
#ifndef PGPT_KERNELS_CPU_MATH_H
#define PGPT_KERNELS_CPU_MATH_H

#include <math.h>
#include <stdint.h>
#include <string.h>

enum { MATH_LANES = 16 };

/* Versions for the vector sets of the machine, chosen when the program is loaded. fmaf is one
 * correctly rounded operation in each, so they agree bit by bit. Sanitizers cannot follow ifuncs. */
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) &&                             \
    !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
#define MATH_CLONES __attribute__((target_clones("default", "arch=x86-64-v3", "arch=x86-64-v4")))
#else
#define MATH_CLONES
#endif

static inline float math_from_bits(uint32_t bits)
{
    float value;

    memcpy(&value, &bits, sizeof value);
    return value;
}

/* e^x, relative error below 1.2e-7; 0 below -87, e^88 above 88. Reduction by n ln 2 in two parts,
 * then a polynomial of degree 6 on [-ln 2 / 2, ln 2 / 2] (Cephes' coefficients for expf). */
static inline float math_exp(float x)
{
    float clamped = x < -87.0f ? -87.0f : x > 88.0f ? 88.0f : x;
    float n = rintf(clamped * 1.44269504088896341f);
    float r = fmaf(n, 2.12194440e-4f, fmaf(n, -0.693359375f, clamped));
    float p = 1.9875691500e-4f;
    float scale = math_from_bits((uint32_t)((int32_t)n + 127) << 23);

    p = fmaf(p, r, 1.3981999507e-3f);
    p = fmaf(p, r, 8.3334519073e-3f);
    p = fmaf(p, r, 4.1665795894e-2f);
    p = fmaf(p, r, 1.6666665459e-1f);
    p = fmaf(p, r, 5.0000001201e-1f);
    p = fmaf(p, r * r, r) + 1.0f;
    return x < -87.0f ? 0.0f : p * scale;
}

static inline float math_swish(float x)
{
    return x / (1.0f + math_exp(-x));
}

/* x Phi(x) with erf by Abramowitz and Stegun 7.1.26, absolute error 1.5e-7. */
static inline float math_gelu(float x)
{
    float z = fabsf(x) * 0.70710678118654752f;
    float t = 1.0f / fmaf(0.3275911f, z, 1.0f);
    float p = 1.061405429f;
    float tail;

    p = fmaf(p, t, -1.453152027f);
    p = fmaf(p, t, 1.421413741f);
    p = fmaf(p, t, -0.284496736f);
    p = fmaf(p, t, 0.254829592f);
    tail = 0.5f * p * t * math_exp(-z * z); /* 1 - Phi(|x|) */
    return x < 0.0f ? x * tail : x * (1.0f - tail);
}

/* The tree over the lanes; destroys them. */
static inline float math_lanes_sum(float lanes[MATH_LANES])
{
    for (int width = MATH_LANES / 2; width; width /= 2)
        for (int i = 0; i < width; i++)
            lanes[i] += lanes[i + width];
    return lanes[0];
}

#endif
