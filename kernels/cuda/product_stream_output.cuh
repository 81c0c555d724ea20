/* SPDX-License-Identifier: MIT
 *
 * product_stream_output: what happens to a tile's sums in product_stream.cuh, all of them of one
 * warp's 16 rows. Lane 4g + q has rows g and g + 8, and of each 8 columns the two from 2q on: sums
 * [4 j + 2 h + e] is column 8 j + 2 q + e of row g + 8 h. So four lanes hold a row, as the sums of
 * a unit of logits are defined (logsum.cuh).
 */
#ifndef PGPT_KERNELS_CUDA_PRODUCT_STREAM_OUTPUT_CUH
#define PGPT_KERNELS_CUDA_PRODUCT_STREAM_OUTPUT_CUH

#include "kernels/cuda/product_output.cuh"
#include "kernels/cuda/product_stream.h"

#if PGPT_CUDA_HOPPER && __CUDA_ARCH__ >= 900

/* Where a thread's sums belong. */
struct stream_tile {
    const struct tile_rows *info; /* of the block's rows */
    int m0, n;                    /* the block's first row, all rows */
    int r;                        /* the thread's first row in the block; the other is 8 below */
    int c0, q;                    /* the tile's first column */
};

/* Logits as they are, for those who want them. */
static __device__ __forceinline__ void stream_logits(const struct product &p, int row, int c0,
                                                     int q, const float (&v)[8])
{
    if (p.logits && !(p.weight.N & 1) && c0 + PRODUCT_UNIT <= p.weight.N)
#pragma unroll
        for (int t = 0; t < 8; t += 2)
            *(float2 *)(p.logits + (size_t)row * p.weight.N + c0 + 4 * t + 2 * q) =
                make_float2(v[t], v[t + 1]);
    else if (p.logits)
#pragma unroll
        for (int t = 0; t < 8; t++)
            if (c0 + 8 * (t >> 1) + 2 * q + (t & 1) < p.weight.N)
                p.logits[(size_t)row * p.weight.N + c0 + 8 * (t >> 1) + 2 * q + (t & 1)] = v[t];
#pragma unroll
    for (int t = 0; t < 8; t++) {
        const int c = c0 + 8 * (t >> 1) + 2 * q + (t & 1);

        if (c >= p.weight.N)
            continue;
        if (c == p.rules.forced_eos)
            p.special[2 * row] = v[t];
        if (c == p.rules.forced_bos)
            p.special[2 * row + 1] = v[t];
    }
}

/* COUNT units all of whose columns may be chosen, side by side: the greatest is the best, and the
 * first that equals it the token. The same bits as unit_summary(); first: the units' first column.
 */
template <int COUNT>
static __device__ __forceinline__ void stream_units_plain(float4 (&units)[COUNT], int first, int q,
                                                          const float (&v)[COUNT][8])
{
    struct logsum sums[COUNT];
    int token[COUNT];

    logsum_units<COUNT>(sums, v);
#pragma unroll
    for (int u = 0; u < COUNT; u++) {
        token[u] = PRODUCT_UNIT; /* stays where they are NaN */
#pragma unroll
        for (int t = 7; t >= 0; t--)
            if (v[u][t] == sums[u].max)
                token[u] = 8 * (t >> 1) + (t & 1);
        token[u] += 2 * q;
    }
#pragma unroll
    for (int mask = 1; mask <= 2; mask <<= 1)
#pragma unroll
        for (int u = 0; u < COUNT; u++)
            token[u] = min(token[u], __shfl_xor_sync(0xffffffffu, token[u], mask));
#pragma unroll
    for (int u = 0; u < COUNT; u++) {
        const bool none = token[u] >= PRODUCT_UNIT;

        units[u] = make_float4(sums[u].max, sums[u].sum, none ? -INFINITY : sums[u].max + 0.0f,
                               __int_as_float(first + u * PRODUCT_UNIT + (none ? 0 : token[u])));
    }
}

/* The same with the rules of its columns. */
static __device__ __forceinline__ float4 stream_unit_ruled(const struct product &p, int unit, int q,
                                                           bool no_eos, float (&v)[8])
{
    float add[8];

#pragma unroll
    for (int t = 0; t < 8; t++) {
        const int c = unit * PRODUCT_UNIT + 8 * (t >> 1) + 2 * q + (t & 1);

        add[t] = c < p.rules.vocabulary ? p.rules.mask[c] : 0.0f;
        v[t] = c < p.rules.vocabulary ? v[t] : -INFINITY;
    }
    return unit_summary(p.rules, unit, q, no_eos, v, add);
}

/* Of a tile's columns every one may be chosen, and none is EOS. mask: of the lane's columns. */
static __device__ __forceinline__ bool stream_plain(const struct cuda_rules &rules, int c0,
                                                    const float (&mask)[STREAM_COLUMNS / 32])
{
    bool plain = true;

#pragma unroll
    for (int i = 0; i < STREAM_COLUMNS / 32; i++) {
        const int c = c0 + 32 * i + (threadIdx.x & 31);

        plain = plain && mask[i] == 0.0f && c < rules.vocabulary && c != rules.eos_token;
    }
    return __all_sync(0xffffffffu, plain);
}

/* Units of logits: two of each row, so that four lanes hold four. */
static __device__ __forceinline__ void stream_units(const struct product &p,
                                                    const struct stream_tile &tile,
                                                    const float (&mask)[STREAM_COLUMNS / 32],
                                                    const float (&sums)[STREAM_COLUMNS / 2])
{
    enum { UNITS = STREAM_COLUMNS / PRODUCT_UNIT };
    static_assert(UNITS == 2, "four lanes put down what they hold");
    const int count = product_units(p.weight.N), q = tile.q, first = tile.c0 / PRODUCT_UNIT;
    const int row = tile.m0 + tile.r;
    float v[2][UNITS][8];
    float4 units[2][UNITS];

#pragma unroll
    for (int h = 0; h < 2; h++)
#pragma unroll
        for (int i = 0; i < UNITS * 8; i++)
            v[h][i / 8][i % 8] = sums[4 * (i >> 1) + 2 * h + (i & 1)];
    if (p.logits || p.rules.forced_eos / STREAM_COLUMNS == tile.c0 / STREAM_COLUMNS ||
        p.rules.forced_bos / STREAM_COLUMNS == tile.c0 / STREAM_COLUMNS)
#pragma unroll
        for (int i = 0; i < 2 * UNITS; i++)
            if (row + 8 * (i / UNITS) < tile.n)
                stream_logits(p, row + 8 * (i / UNITS), tile.c0 + i % UNITS * PRODUCT_UNIT, q,
                              v[i / UNITS][i % UNITS]);
    if (stream_plain(p.rules, tile.c0, mask)) {
        stream_units_plain<UNITS>(units[0], tile.c0, q, v[0]);
        stream_units_plain<UNITS>(units[1], tile.c0, q, v[1]);
    } else {
#pragma unroll
        for (int i = 0; i < 2 * UNITS; i++)
            units[i / UNITS][i % UNITS] = stream_unit_ruled(
                p, first + i % UNITS, q, tile.info[tile.r + 8 * (i / UNITS)].no_eos,
                v[i / UNITS][i % UNITS]);
    }
    if (row + 8 * (q >> 1) < tile.n && first + (q & 1) < count)
        *(float4 *)(p.units + (size_t)(row + 8 * (q >> 1)) * count + first + (q & 1)) =
            q == 0   ? units[0][0]
            : q == 1 ? units[0][1]
            : q == 2 ? units[1][0]
                     : units[1][1];
}

/* Four lanes' words, one of each 8 columns, become 8 columns of one lane: word[j] of lane i goes to
 * word[i] of lane j. */
static __device__ __forceinline__ uint4 stream_transpose(const uint32_t (&word)[4], int q)
{
    const bool high = q & 2, odd = q & 1;
    /* of two columns' words each lane keeps one pair and gets the other lane's */
    const uint32_t a = __shfl_xor_sync(0xffffffffu, high ? word[0] : word[2], 2);
    const uint32_t b = __shfl_xor_sync(0xffffffffu, high ? word[1] : word[3], 2);
    const uint32_t even_low = high ? a : word[0], even_high = high ? word[2] : a;
    const uint32_t odd_low = high ? b : word[1], odd_high = high ? word[3] : b;
    const uint32_t low = __shfl_xor_sync(0xffffffffu, odd ? even_low : odd_low, 1);
    const uint32_t next = __shfl_xor_sync(0xffffffffu, odd ? even_high : odd_high, 1);

    return odd ? make_uint4(low, odd_low, next, odd_high)
               : make_uint4(even_low, low, even_high, next);
}

/* Queries out, keys and values into the row's caches; a tile has columns of one head alone. */
template <class F>
static __device__ __forceinline__ void stream_qkv(const struct product &p,
                                                  const struct stream_tile &tile,
                                                  const float (&sums)[STREAM_COLUMNS / 2])
{
    typedef typename F::element element;
    static_assert(STREAM_COLUMNS == 64, "a head");
    const int D = p.cache_heads * 64, which = (tile.c0 >= D) + (tile.c0 >= 2 * D);
    const int c = tile.c0 - which * D;

#pragma unroll
    for (int h = 0; h < 2; h++) {
        const struct tile_rows info = tile.info[tile.r + 8 * h];
        const uint32_t head =
            (uint32_t)((which == 0 ? tile.m0 + tile.r + 8 * h : info.row) * p.cache_heads + c / 64);
        const uint32_t place =
            which == 0 ? head : cache_place(head, (uint32_t)info.position, p.chunk_places);
        element *to = (element *)(which == 0   ? p.out
                                  : which == 1 ? p.cache_k
                                               : p.cache_v) +
                      (size_t)place * 64;

#pragma unroll
        for (int m = 0; m < STREAM_COLUMNS / 32; m++) {
            uint32_t word[4];
            uint4 words;

#pragma unroll
            for (int j = 0; j < 4; j++)
                format_set2((element *)&word[j], sums[4 * (4 * m + j) + 2 * h],
                            sums[4 * (4 * m + j) + 2 * h + 1]);
            words = stream_transpose(word, tile.q);
            if (which == 2)
                words = make_uint4(cache_value2<element>(words.x), cache_value2<element>(words.y),
                                   cache_value2<element>(words.z), cache_value2<element>(words.w));
            if (info.row >= 0)
                *(uint4 *)(to + 32 * m + 8 * tile.q) = words;
        }
    }
}

#endif

#endif
