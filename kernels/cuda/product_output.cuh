/* SPDX-License-Identifier: MIT
 *
 * product_output: what happens to sums on their way out of a product.
 */
#ifndef PGPT_KERNELS_CUDA_PRODUCT_OUTPUT_CUH
#define PGPT_KERNELS_CUDA_PRODUCT_OUTPUT_CUH

#include "kernels/cuda/cache.cuh"
#include "kernels/cuda/logsum.cuh"
#include "kernels/cuda/product_input.cuh"

/* A tile's sums (16 columns, 8 rows) into a row-major array of them, `stride` sums a row. */
template <class S>
static __device__ __forceinline__ void sums_put(S *to, int stride, const S *sums, int lane)
{
    S *at = to + (lane & 3) * 2 * stride + (lane >> 2);

    at[0] = sums[0];
    at[stride] = sums[1];
    at[8] = sums[2];
    at[stride + 8] = sums[3];
}

static __device__ __forceinline__ float activate(enum product_act activation, float v)
{
    switch (activation) {
    case PRODUCT_ACT_RELU:
        return fmaxf(v, 0.0f);
    case PRODUCT_ACT_SWISH:
        return v / (1.0f + expf(-v));
    case PRODUCT_ACT_GELU:
        return 0.5f * v * (1.0f + erff(v * 0.70710678118654752f));
    default:
        return v;
    }
}

/* A raw sum, scaled, with bias. */
template <class F>
static __device__ __forceinline__ float output_value(float sum, float x_scale, float w_scale,
                                                     float bias)
{
    if constexpr (F::QUANTISED)
        return __fmaf_rn(sum, __fmul_rn(x_scale, w_scale), bias);
    else
        return __fadd_rn(sum, bias);
}

/* Bias and scale of columns c .. c + 3; scale is not set where the format has none. */
struct output_column {
    float4 bias, scale;
};
template <class F>
static __device__ __forceinline__ struct output_column output_columns(const struct product &p,
                                                                      int c)
{
    struct output_column column;

    column.bias = *(const float4 *)(p.weight.bias + c);
    if constexpr (F::QUANTISED)
        column.scale = *(const float4 *)(p.weight.scale + c);
    else
        column.scale = make_float4(1.0f, 1.0f, 1.0f, 1.0f);
    return column;
}

/* Where columns c .. c + 3 of queries, keys and values of all rows go: to places of a cache
 * (cache.cuh), and queries to the same of rows (n, heads, 64). */
struct output_heads {
    void *to;
    __nv_bfloat16 *scales; /* of a cache; NULL: elements */
    int32_t c;             /* in a place */
    int32_t head, heads;   /* which one, of how many a row has */
    uint32_t chunk_places;
    bool cached; /* at the row's position in a cache */
    bool values;
};
template <enum product_output OUTPUT>
static __device__ __forceinline__ struct output_heads output_heads_of(const struct product &p,
                                                                      int c)
{
    const int heads = p.cache_heads, D = heads * 64;
    const int which = (OUTPUT == PRODUCT_CROSS) + (c >= D) + (c >= 2 * D);
    const int head = (c - (c >= 2 * D ? 2 * D : c >= D ? D : 0)) >> 6;

    return {which == 0   ? p.out
            : which == 1 ? p.cache_k
                         : p.cache_v,
            which == 1 ? p.scales_k : p.scales_v,
            c & 63,
            head,
            heads,
            p.chunk_places,
            which > 0,
            which == 2};
}

/* Four neighbours of a key or value into an int8 cache: a scale for each half of a head, so that 8
 * neighbouring lanes, which hold its 32 dimensions, find it among themselves. The scale is rounded
 * before it is used: q = rint(v / scale), at most 127.3 before it is rounded. */
static __device__ __forceinline__ void cache_put4_int8(void *cache, __nv_bfloat16 *scales,
                                                       uint32_t place, int c, const float4 &v)
{
    const uint32_t lanes = 0xffu << (threadIdx.x & 24);
    float most = fmaxf(fmaxf(fabsf(v.x), fabsf(v.y)), fmaxf(fabsf(v.z), fabsf(v.w))), inverse;
    __nv_bfloat16 scale;

#pragma unroll
    for (int mask = 1; mask <= 4; mask <<= 1)
        most = fmaxf(most, __shfl_xor_sync(lanes, most, mask));
    scale = __float2bfloat16_rn(most / 127.0f);
    inverse = most > 1e-30f ? 1.0f / __bfloat162float(scale) : 0.0f;
    *(uint32_t *)((int8_t *)cache + (size_t)place * 64 + c) =
        bytes_pack(__float2int_rn(v.x * inverse), __float2int_rn(v.y * inverse),
                   __float2int_rn(v.z * inverse), __float2int_rn(v.w * inverse));
    if (!(c & 31))
        scales[(size_t)place * 2 + (c >> 5)] = scale;
}

static __device__ __forceinline__ float4 residual_get(const struct product &p, int i, int n, int c)
{
    if (i >= n || c >= p.weight.N)
        return make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    return __ldcg((const float4 *)(p.residual + (size_t)i * p.weight.N + c));
}

template <class T> static __device__ __forceinline__ void output_put4(T *out, const float4 &v)
{
    format_set2(out, v.x, v.y);
    format_set2(out + 2, v.z, v.w);
}
template <> __device__ __forceinline__ void output_put4<__half>(__half *out, const float4 &v)
{
    union {
        __half2 h[2];
        uint2 u;
    } both;

    both.h[0] = __floats2half2_rn(v.x, v.y);
    both.h[1] = __floats2half2_rn(v.z, v.w);
    *(uint2 *)out = both.u;
}

/* The same into a cache of values. */
template <class T> static __device__ __forceinline__ void output_value4(T *out, const float4 &v)
{
    alignas(8) T four[4];

    output_put4(four, v);
    *(uint2 *)out = cache_value4<T>(*(const uint2 *)four);
}
template <> __device__ __forceinline__ void output_value4<float>(float *out, const float4 &v)
{
    output_put4(out, v); /* who reads these leaves out what is not there */
}

/* v of row i, for output_heads_of(); 8 neighbouring lanes as output_four() has them. */
template <class element>
static __device__ __forceinline__ void output_heads_put(const struct output_heads &heads,
                                                        const struct tile_rows &info, int i,
                                                        const float4 &v)
{
    const uint32_t head = (uint32_t)((heads.cached ? info.row : i) * heads.heads + heads.head);
    const uint32_t place =
        heads.cached ? cache_place(head, (uint32_t)info.position, heads.chunk_places) : head;

    if (info.row < 0)
        return;
    if (heads.cached && heads.scales)
        cache_put4_int8(heads.to, heads.scales, place, heads.c, v);
    else if (heads.values)
        output_value4((element *)heads.to + (size_t)place * 64 + heads.c, v);
    else
        output_put4((element *)heads.to + (size_t)place * 64 + heads.c, v);
}

/* Four neighbouring columns c .. c + 3 of row i < n; values before the activation; residual: the
 * same of the residual stream, for outputs that add it. 8 neighbouring lanes come together, with 32
 * neighbouring columns of one row. */
template <class F, enum product_output OUTPUT>
static __device__ __forceinline__ void output_four(const struct product &p,
                                                   const struct tile_rows &info, int i, int c,
                                                   float4 v, const float4 &residual)
{
    typedef typename F::element element;
    int N = p.weight.N;

    if (c >= N || (OUTPUT != PRODUCT_RESIDUAL && info.row < 0))
        return;
    if (OUTPUT == PRODUCT_RESIDUAL) {
        v.x += residual.x;
        v.y += residual.y;
        v.z += residual.z;
        v.w += residual.w;
        *(float4 *)((float *)p.out + (size_t)i * N + c) = v;
    } else if (OUTPUT == PRODUCT_PLAIN) {
        if (p.activation != PRODUCT_ACT_NONE) {
            v.x = activate(p.activation, v.x);
            v.y = activate(p.activation, v.y);
            v.z = activate(p.activation, v.z);
            v.w = activate(p.activation, v.w);
        }
        output_put4((element *)p.out + (size_t)i * N + c, v);
    } else {
        output_heads_put<element>(output_heads_of<OUTPUT>(p, c), info, i, v);
    }
}

/* A unit of logits: lane q of a group of 4 holds its 8 columns, -inf past the vocabulary, and what
 * the rules add to them. Whole warps call; all four lanes get the result. */
static __device__ __forceinline__ float4 unit_summary(const struct cuda_rules &rules, int unit,
                                                      int q, bool no_eos, const float (&v)[8],
                                                      const float (&add)[8])
{
    float best = -INFINITY;
    int32_t token = unit * PRODUCT_UNIT;
    struct logsum sums;

#pragma unroll
    for (int t = 0; t < 4; t++)
#pragma unroll
        for (int e = 0; e < 2; e++) {
            int c = unit * PRODUCT_UNIT + 8 * t + 2 * q + e;
            float masked = v[2 * t + e] + add[2 * t + e];

            if (no_eos && c == rules.eos_token)
                masked = -INFINITY;
            if (masked > best) {
                best = masked;
                token = c;
            }
        }
    sums = logsum_unit(v);
#pragma unroll
    for (int mask = 1; mask <= 2; mask <<= 1) {
        float other = __shfl_xor_sync(0xffffffffu, best, mask);
        int32_t other_token = __shfl_xor_sync(0xffffffffu, token, mask);

        if (other > best || (other == best && other_token < token)) {
            best = other;
            token = other_token;
        }
    }
    return make_float4(sums.max, sums.sum, best, __int_as_float(token));
}

/* The same for row i, with everything that is kept of it. */
static __device__ __forceinline__ void output_unit(const struct product &p,
                                                   const struct tile_rows &info, int i, int n,
                                                   int unit, int q, float (&v)[8])
{
    int units = (p.weight.N + PRODUCT_UNIT - 1) / PRODUCT_UNIT;
    float4 summary;
    float add[8];

    if (i < n)
#pragma unroll
        for (int t = 0; t < 8; t++) {
            int c = unit * PRODUCT_UNIT + 8 * (t >> 1) + 2 * q + (t & 1);

            if (c >= p.weight.N)
                continue;
            if (p.logits)
                p.logits[(size_t)i * p.weight.N + c] = v[t];
            if (c == p.rules.forced_eos)
                p.special[2 * i] = v[t];
            if (c == p.rules.forced_bos)
                p.special[2 * i + 1] = v[t];
        }
#pragma unroll
    for (int t = 0; t < 8; t++) {
        int c = unit * PRODUCT_UNIT + 8 * (t >> 1) + 2 * q + (t & 1);

        add[t] = c < p.rules.vocabulary ? p.rules.mask[c] : 0.0f;
        v[t] = c < p.rules.vocabulary ? v[t] : -INFINITY;
    }
    summary = unit_summary(p.rules, unit, q, info.no_eos, v, add);
    if (q == 0 && i < n && unit < units)
        *(float4 *)(p.units + (size_t)i * units + unit) = summary;
}

#endif
