/* SPDX-License-Identifier: MIT
 *
 * math: the scalar functions of the CPU back end, written out so that every machine and every
 * vector width gives the same bits: only +, *, fmaf, rintf, comparisons and bit patterns, in one
 * order. Sums over a vector run in 16 lanes (element i goes to lane i mod 16), which are then added
 * as a tree: lane i += lane i + 8, then 4, 2, 1. Pure functions, any thread.
 */
#ifndef PGPT_KERNELS_CPU_MATH_H
#define PGPT_KERNELS_CPU_MATH_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#include "kernels/search/device.h"

enum { MATH_LANES = 16 };

/* Versions for the vector sets of the machine, chosen when the program is loaded. fmaf is one
 * correctly rounded operation in each, so they agree bit by bit. Sanitizers cannot follow ifuncs.
 */
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) &&                             \
    !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
#define MATH_CLONES __attribute__((target_clones("default", "arch=x86-64-v3", "arch=x86-64-v4")))
#else
#define MATH_CLONES
#endif

PGPT_DEVICE static inline float math_from_bits(uint32_t bits)
{
    float value;

    memcpy(&value, &bits, sizeof value);
    return value;
}

/* e^x, relative error below 1.2e-7; 0 below -87, e^88 above 88. Reduction by n ln 2 in two parts,
 * then a polynomial of degree 6 on [-ln 2 / 2, ln 2 / 2] (Cephes' coefficients for expf). */
PGPT_DEVICE static inline float math_exp(float x)
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

/* ln x for finite x > 0, relative error below 2e-7: x = m 2^e with m in sqrt(1/2)..sqrt(2), then
 * Cephes' polynomial of degree 9 for ln m. */
static inline float math_log(float x)
{
    static const float c[] = {7.0376836292e-2f,  -1.1514610310e-1f, 1.1676998740e-1f,
                              -1.2420140846e-1f, 1.4249322787e-1f,  -1.6668057665e-1f,
                              2.0000714765e-1f,  -2.4999993993e-1f, 3.3333331174e-1f};
    int32_t e = 0;
    uint32_t bits;
    float m, z, p;

    if (x < 1.17549435e-38f) {
        x *= 8388608.0f;
        e = -23;
    }
    memcpy(&bits, &x, sizeof bits);
    e += (int32_t)(bits >> 23) - 126;
    m = math_from_bits((bits & 0x007fffffu) | 0x3f000000u); /* 0.5..1 */
    if (m < 0.707106781186547524f) {
        m += m;
        e--;
    }
    m -= 1.0f;
    z = m * m;
    p = c[0];
    for (int i = 1; i < 9; i++)
        p = fmaf(p, m, c[i]);
    p = fmaf((float)e, -2.12194440e-4f, p * m * z);
    p = fmaf(-0.5f, z, p);
    return fmaf((float)e, 0.693359375f, m + p);
}

/* IEEE half precision, to nearest even; +-65504 beyond its range (caches never hold infinities). */
static inline uint16_t math_to_half(float value)
{
    uint32_t bits, sign, rest;

    memcpy(&bits, &value, sizeof bits);
    sign = bits >> 16 & 0x8000u;
    bits &= 0x7fffffffu;
    if (bits > 0x477fe000u) /* above 65504, NaN too */
        return (uint16_t)(sign | 0x7bffu);
    if (bits < 0x38800000u) { /* below 2^-14: a multiple of 2^-24 */
        float units = rintf(math_from_bits(bits) * 16777216.0f);

        return (uint16_t)(sign | (uint32_t)units);
    }
    rest = bits + 0x0fffu + (bits >> 13 & 1u) - 0x38000000u;
    return (uint16_t)(sign | rest >> 13);
}

static inline float math_from_half(uint16_t half)
{
    uint32_t sign = (uint32_t)(half & 0x8000u) << 16, rest = half & 0x7fffu;
    float units = (float)rest * 5.9604644775390625e-8f; /* 2^-24 */
    uint32_t bits;

    if (rest >= 0x0400u)
        return math_from_bits(sign | ((rest << 13) + 0x38000000u));
    memcpy(&bits, &units, sizeof bits);
    return math_from_bits(sign | bits);
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
