/* SPDX-License-Identifier: MIT
 *
 * lanes: 16 floats as one value, in the registers of whatever instruction set the including file is
 * compiled for. Each operation is one correctly rounded IEEE operation a lane, so code written once
 * over lanes gives the same bits on every machine. Pure, any thread.
 */
#ifndef PGPT_KERNELS_CPU_LANES_H
#define PGPT_KERNELS_CPU_LANES_H

#include <stdint.h>
#include <string.h>

#include "kernels/cpu/math.h"

#if defined(__AVX2__)
#include <immintrin.h>
#elif defined(__aarch64__) && !defined(LANES_PLAIN)
#include <arm_neon.h>
#define LANES_NEON
#endif

#define LANES_INLINE static inline __attribute__((always_inline))

enum { LANES = MATH_LANES };

#if defined(__AVX512F__)

struct lanes {
    __m512 v;
};

#define LANES_EACH(expression) ((struct lanes){expression})

LANES_INLINE struct lanes lanes_load(const float *from)
{
    return LANES_EACH(_mm512_loadu_ps(from));
}

LANES_INLINE void lanes_store(float *to, struct lanes a)
{
    _mm512_storeu_ps(to, a.v);
}

LANES_INLINE struct lanes lanes_all(float value)
{
    return LANES_EACH(_mm512_set1_ps(value));
}

LANES_INLINE struct lanes lanes_add(struct lanes a, struct lanes b)
{
    return LANES_EACH(_mm512_add_ps(a.v, b.v));
}

LANES_INLINE struct lanes lanes_sub(struct lanes a, struct lanes b)
{
    return LANES_EACH(_mm512_sub_ps(a.v, b.v));
}

LANES_INLINE struct lanes lanes_mul(struct lanes a, struct lanes b)
{
    return LANES_EACH(_mm512_mul_ps(a.v, b.v));
}

LANES_INLINE struct lanes lanes_fma(struct lanes a, struct lanes b, struct lanes c)
{
    return LANES_EACH(_mm512_fmadd_ps(a.v, b.v, c.v));
}

/* a > b ? a : b */
LANES_INLINE struct lanes lanes_max(struct lanes a, struct lanes b)
{
    return LANES_EACH(_mm512_max_ps(a.v, b.v));
}

LANES_INLINE struct lanes lanes_min(struct lanes a, struct lanes b)
{
    return LANES_EACH(_mm512_min_ps(a.v, b.v));
}

LANES_INLINE struct lanes lanes_within(struct lanes a, float limit)
{
    return lanes_max(lanes_min(a, lanes_all(limit)), lanes_all(-limit));
}

LANES_INLINE struct lanes lanes_rint(struct lanes a)
{
    return LANES_EACH(_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}

/* 2^n for whole n in -126..127 */
LANES_INLINE struct lanes lanes_power(struct lanes n)
{
    __m512i exponent = _mm512_add_epi32(_mm512_cvtps_epi32(n.v), _mm512_set1_epi32(127));

    return LANES_EACH(_mm512_castsi512_ps(_mm512_slli_epi32(exponent, 23)));
}

/* x < limit ? 0 : value */
LANES_INLINE struct lanes lanes_zero_below(struct lanes x, float limit, struct lanes value)
{
    __mmask16 below = _mm512_cmp_ps_mask(x.v, _mm512_set1_ps(limit), _CMP_LT_OQ);

    return LANES_EACH(_mm512_mask_mov_ps(value.v, below, _mm512_setzero_ps()));
}

/* is any lane of a greater than b's? */
LANES_INLINE int lanes_any_greater(struct lanes a, struct lanes b)
{
    return _mm512_cmp_ps_mask(a.v, b.v, _CMP_GT_OQ) != 0;
}

/* The first lane that equals value, or -1. */
LANES_INLINE int lanes_find(struct lanes a, float value)
{
    __mmask16 equal = _mm512_cmp_ps_mask(a.v, _mm512_set1_ps(value), _CMP_EQ_OQ);

    return equal ? __builtin_ctz(equal) : -1;
}

LANES_INLINE struct lanes lanes_load_half(const uint16_t *from)
{
    return LANES_EACH(_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)from)));
}

/* math_to_half() of each lane. */
LANES_INLINE void lanes_to_half(uint16_t *to, struct lanes a)
{
    a = lanes_within(a, 65504.0f);
    _mm256_storeu_si256((__m256i *)to, _mm512_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT));
}

/* The first `count` (0..16) of from, the rest `fill`. */
LANES_INLINE struct lanes lanes_load_some(const float *from, int32_t count, float fill)
{
    __mmask16 mask = count >= LANES ? (__mmask16)0xffff : (__mmask16)((1u << count) - 1);

    return LANES_EACH(_mm512_mask_loadu_ps(_mm512_set1_ps(fill), mask, from));
}

/* The greatest lane. */
LANES_INLINE float lanes_top(struct lanes a)
{
    return _mm512_reduce_max_ps(a.v);
}

/* The tree of math_lanes_sum(). */
LANES_INLINE float lanes_sum(struct lanes a)
{
    __m256 eight = _mm256_add_ps(_mm512_castps512_ps256(a.v), _mm512_extractf32x8_ps(a.v, 1));
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));

    return _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps(two, two, 1)));
}

#elif defined(__AVX2__)

struct lanes {
    __m256 v[2];
};

#define LANES_EACH(f, ...) ((struct lanes){{f(0, __VA_ARGS__), f(1, __VA_ARGS__)}})
#define LANES_OP2(i, op, a, b) op((a).v[i], (b).v[i])

LANES_INLINE struct lanes lanes_load(const float *from)
{
    return (struct lanes){{_mm256_loadu_ps(from), _mm256_loadu_ps(from + 8)}};
}

LANES_INLINE void lanes_store(float *to, struct lanes a)
{
    _mm256_storeu_ps(to, a.v[0]);
    _mm256_storeu_ps(to + 8, a.v[1]);
}

LANES_INLINE struct lanes lanes_all(float value)
{
    return (struct lanes){{_mm256_set1_ps(value), _mm256_set1_ps(value)}};
}

LANES_INLINE struct lanes lanes_add(struct lanes a, struct lanes b)
{
    return LANES_EACH(LANES_OP2, _mm256_add_ps, a, b);
}

LANES_INLINE struct lanes lanes_sub(struct lanes a, struct lanes b)
{
    return LANES_EACH(LANES_OP2, _mm256_sub_ps, a, b);
}

LANES_INLINE struct lanes lanes_mul(struct lanes a, struct lanes b)
{
    return LANES_EACH(LANES_OP2, _mm256_mul_ps, a, b);
}

LANES_INLINE struct lanes lanes_fma(struct lanes a, struct lanes b, struct lanes c)
{
    return (struct lanes){
        {_mm256_fmadd_ps(a.v[0], b.v[0], c.v[0]), _mm256_fmadd_ps(a.v[1], b.v[1], c.v[1])}};
}

LANES_INLINE struct lanes lanes_max(struct lanes a, struct lanes b)
{
    return LANES_EACH(LANES_OP2, _mm256_max_ps, a, b);
}

LANES_INLINE struct lanes lanes_min(struct lanes a, struct lanes b)
{
    return LANES_EACH(LANES_OP2, _mm256_min_ps, a, b);
}

LANES_INLINE struct lanes lanes_within(struct lanes a, float limit)
{
    return lanes_max(lanes_min(a, lanes_all(limit)), lanes_all(-limit));
}

LANES_INLINE struct lanes lanes_rint(struct lanes a)
{
    return (struct lanes){{_mm256_round_ps(a.v[0], _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC),
                           _mm256_round_ps(a.v[1], _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)}};
}

LANES_INLINE struct lanes lanes_power(struct lanes n)
{
    struct lanes result;

    for (int i = 0; i < 2; i++) {
        __m256i exponent = _mm256_add_epi32(_mm256_cvtps_epi32(n.v[i]), _mm256_set1_epi32(127));

        result.v[i] = _mm256_castsi256_ps(_mm256_slli_epi32(exponent, 23));
    }
    return result;
}

LANES_INLINE struct lanes lanes_zero_below(struct lanes x, float limit, struct lanes value)
{
    for (int i = 0; i < 2; i++) {
        __m256 below = _mm256_cmp_ps(x.v[i], _mm256_set1_ps(limit), _CMP_LT_OQ);

        value.v[i] = _mm256_andnot_ps(below, value.v[i]);
    }
    return value;
}

LANES_INLINE int lanes_any_greater(struct lanes a, struct lanes b)
{
    return _mm256_movemask_ps(_mm256_cmp_ps(a.v[0], b.v[0], _CMP_GT_OQ)) ||
           _mm256_movemask_ps(_mm256_cmp_ps(a.v[1], b.v[1], _CMP_GT_OQ));
}

LANES_INLINE int lanes_find(struct lanes a, float value)
{
    __m256 wanted = _mm256_set1_ps(value);
    int low = _mm256_movemask_ps(_mm256_cmp_ps(a.v[0], wanted, _CMP_EQ_OQ));
    int high = _mm256_movemask_ps(_mm256_cmp_ps(a.v[1], wanted, _CMP_EQ_OQ));

    return low ? __builtin_ctz((unsigned)low) : high ? 8 + __builtin_ctz((unsigned)high) : -1;
}

LANES_INLINE struct lanes lanes_load_half(const uint16_t *from)
{
    return (struct lanes){{_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)from)),
                           _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(from + 8)))}};
}

LANES_INLINE void lanes_to_half(uint16_t *to, struct lanes a)
{
    a = lanes_within(a, 65504.0f);
    _mm_storeu_si128((__m128i *)to, _mm256_cvtps_ph(a.v[0], _MM_FROUND_TO_NEAREST_INT));
    _mm_storeu_si128((__m128i *)(to + 8), _mm256_cvtps_ph(a.v[1], _MM_FROUND_TO_NEAREST_INT));
}

LANES_INLINE float lanes_sum(struct lanes a)
{
    __m256 eight = _mm256_add_ps(a.v[0], a.v[1]);
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));

    return _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps(two, two, 1)));
}

#elif defined(LANES_NEON)

struct lanes {
    float32x4_t v[4];
};

#define LANES_DEFINE(name, arguments, expression)                                                  \
    LANES_INLINE struct lanes name arguments {                                                     \
        struct lanes result;                                                                       \
                                                                                                   \
        _Pragma("GCC unroll 4") for (int i = 0; i < 4; i++) result.v[i] = expression;              \
        return result;                                                                             \
    }

LANES_DEFINE(lanes_load, (const float *from), vld1q_f32(from + 4 * i))
LANES_DEFINE(lanes_all, (float value), vdupq_n_f32(value))
LANES_DEFINE(lanes_add, (struct lanes a, struct lanes b), vaddq_f32(a.v[i], b.v[i]))
LANES_DEFINE(lanes_sub, (struct lanes a, struct lanes b), vsubq_f32(a.v[i], b.v[i]))
LANES_DEFINE(lanes_mul, (struct lanes a, struct lanes b), vmulq_f32(a.v[i], b.v[i]))
LANES_DEFINE(lanes_fma, (struct lanes a, struct lanes b, struct lanes c),
             vfmaq_f32(c.v[i], a.v[i], b.v[i]))
/* Not vmaxq and vminq, which order zeros and carry NaN on: the second operand wins, as on x86. */
LANES_DEFINE(lanes_max, (struct lanes a, struct lanes b),
             vbslq_f32(vcgtq_f32(a.v[i], b.v[i]), a.v[i], b.v[i]))
LANES_DEFINE(lanes_min, (struct lanes a, struct lanes b),
             vbslq_f32(vcltq_f32(a.v[i], b.v[i]), a.v[i], b.v[i]))
LANES_DEFINE(lanes_rint, (struct lanes a), vrndnq_f32(a.v[i]))
LANES_DEFINE(lanes_power, (struct lanes n),
             vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(vcvtnq_s32_f32(n.v[i]), vdupq_n_s32(127)),
                                               23)))
LANES_DEFINE(lanes_zero_below, (struct lanes x, float limit, struct lanes value),
             vbslq_f32(vcltq_f32(x.v[i], vdupq_n_f32(limit)), vdupq_n_f32(0.0f), value.v[i]))
LANES_DEFINE(lanes_load_half, (const uint16_t *from),
             vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(from + 4 * i))))

LANES_INLINE void lanes_store(float *to, struct lanes a)
{
    for (int i = 0; i < 4; i++)
        vst1q_f32(to + 4 * i, a.v[i]);
}

LANES_INLINE struct lanes lanes_within(struct lanes a, float limit)
{
    return lanes_max(lanes_min(a, lanes_all(limit)), lanes_all(-limit));
}

LANES_INLINE int lanes_any_greater(struct lanes a, struct lanes b)
{
    uint32x4_t any = vdupq_n_u32(0);

    for (int i = 0; i < 4; i++)
        any = vorrq_u32(any, vcgtq_f32(a.v[i], b.v[i]));
    return vmaxvq_u32(any) != 0;
}

LANES_INLINE int lanes_find(struct lanes a, float value)
{
    static const uint32_t first[4] = {0, 1, 2, 3};
    uint32x4_t least = vdupq_n_u32(UINT32_MAX);
    uint32_t lane;

    for (int i = 0; i < 4; i++) {
        uint32x4_t index = vaddq_u32(vld1q_u32(first), vdupq_n_u32(4 * (uint32_t)i));
        uint32x4_t equal = vceqq_f32(a.v[i], vdupq_n_f32(value));

        least = vminq_u32(least, vbslq_u32(equal, index, vdupq_n_u32(UINT32_MAX)));
    }
    lane = vminvq_u32(least);
    return lane == UINT32_MAX ? -1 : (int)lane;
}

LANES_INLINE void lanes_to_half(uint16_t *to, struct lanes a)
{
    a = lanes_within(a, 65504.0f);
    for (int i = 0; i < 4; i++)
        vst1_u16(to + 4 * i, vreinterpret_u16_f16(vcvt_f16_f32(a.v[i])));
}

LANES_INLINE float lanes_sum(struct lanes a)
{
    float32x4_t four = vaddq_f32(vaddq_f32(a.v[0], a.v[2]), vaddq_f32(a.v[1], a.v[3]));
    float32x2_t two = vadd_f32(vget_low_f32(four), vget_high_f32(four));

    return vget_lane_f32(two, 0) + vget_lane_f32(two, 1);
}

#else

struct lanes {
    float v[LANES];
};

LANES_INLINE struct lanes lanes_load(const float *from)
{
    struct lanes a;

    memcpy(a.v, from, sizeof a.v);
    return a;
}

LANES_INLINE void lanes_store(float *to, struct lanes a)
{
    memcpy(to, a.v, sizeof a.v);
}

#define LANES_DEFINE(name, arguments, expression)                                                  \
    LANES_INLINE struct lanes name arguments {                                                     \
        struct lanes result;                                                                       \
                                                                                                   \
        for (int i = 0; i < LANES; i++)                                                            \
            result.v[i] = expression;                                                              \
        return result;                                                                             \
    }

LANES_DEFINE(lanes_all, (float value), value)
LANES_DEFINE(lanes_add, (struct lanes a, struct lanes b), a.v[i] + b.v[i])
LANES_DEFINE(lanes_sub, (struct lanes a, struct lanes b), a.v[i] - b.v[i])
LANES_DEFINE(lanes_mul, (struct lanes a, struct lanes b), a.v[i] * b.v[i])
LANES_DEFINE(lanes_fma, (struct lanes a, struct lanes b, struct lanes c),
             fmaf(a.v[i], b.v[i], c.v[i]))
LANES_DEFINE(lanes_max, (struct lanes a, struct lanes b), a.v[i] > b.v[i] ? a.v[i] : b.v[i])
LANES_DEFINE(lanes_min, (struct lanes a, struct lanes b), a.v[i] < b.v[i] ? a.v[i] : b.v[i])
LANES_DEFINE(lanes_rint, (struct lanes a), rintf(a.v[i]))
LANES_DEFINE(lanes_power, (struct lanes n), math_from_bits((uint32_t)((int32_t)n.v[i] + 127) << 23))
LANES_DEFINE(lanes_zero_below, (struct lanes x, float limit, struct lanes value),
             x.v[i] < limit ? 0.0f : value.v[i])
LANES_DEFINE(lanes_load_half, (const uint16_t *from), math_from_half(from[i]))

LANES_INLINE int lanes_any_greater(struct lanes a, struct lanes b)
{
    int any = 0;

    for (int i = 0; i < LANES; i++)
        any |= a.v[i] > b.v[i];
    return any;
}

LANES_INLINE int lanes_find(struct lanes a, float value)
{
    for (int i = 0; i < LANES; i++)
        if (a.v[i] == value)
            return i;
    return -1;
}

LANES_INLINE void lanes_to_half(uint16_t *to, struct lanes a)
{
    for (int i = 0; i < LANES; i++)
        to[i] = math_to_half(a.v[i]);
}

LANES_INLINE float lanes_sum(struct lanes a)
{
    return math_lanes_sum(a.v);
}

#endif

/* math_exp() of each lane (no NaN), the same bits. */
LANES_INLINE struct lanes lanes_exp(struct lanes x)
{
    struct lanes clamped = lanes_min(lanes_max(x, lanes_all(-87.0f)), lanes_all(88.0f));
    struct lanes n = lanes_rint(lanes_mul(clamped, lanes_all(1.44269504088896341f)));
    struct lanes r =
        lanes_fma(n, lanes_all(2.12194440e-4f), lanes_fma(n, lanes_all(-0.693359375f), clamped));
    struct lanes p = lanes_all(1.9875691500e-4f);

    p = lanes_fma(p, r, lanes_all(1.3981999507e-3f));
    p = lanes_fma(p, r, lanes_all(8.3334519073e-3f));
    p = lanes_fma(p, r, lanes_all(4.1665795894e-2f));
    p = lanes_fma(p, r, lanes_all(1.6666665459e-1f));
    p = lanes_fma(p, r, lanes_all(5.0000001201e-1f));
    p = lanes_add(lanes_fma(p, lanes_mul(r, r), r), lanes_all(1.0f));
    return lanes_zero_below(x, -87.0f, lanes_mul(p, lanes_power(n)));
}

#if !defined(__AVX512F__)

/* The first `count` (0..16) of from, the rest `fill`. */
LANES_INLINE struct lanes lanes_load_some(const float *from, int32_t count, float fill)
{
    float values[LANES];

    if (count >= LANES)
        return lanes_load(from);
    for (int i = 0; i < LANES; i++)
        values[i] = i < count ? from[i] : fill;
    return lanes_load(values);
}

LANES_INLINE float lanes_top(struct lanes a)
{
    float values[LANES], top;

    lanes_store(values, a);
    top = values[0];
    for (int i = 1; i < LANES; i++)
        top = values[i] > top ? values[i] : top;
    return top;
}

#endif

#endif
