/* SPDX-License-Identifier: MIT
 *
 * attention_chunk: one query over 32 keys by a warp, and the merging of such parts: the arithmetic
 * that all decode attention shares, so that whoever runs it gets the same bits. Here for caches of
 * halves, by matrix instructions; attention_plain.cuh has that of float32, attention_bytes.cuh that
 * of int8 caches.
 *
 * A warp loads whole lines, four positions at once. Words go into the matrix instruction as they
 * are loaded: the 16 bytes that lane 4g + t has of a key or value are its four registers of the
 * first operand. So row g of that holds the first and third word of four lanes' 16 bytes, row g + 8
 * the second and fourth, and the second operand's columns say whose sum is whose.
 * - Scores: rows g and g + 8 are half (g % 2) of key g / 2 of four. Columns i % 4 are the query's
 *   words that meet the first and third of the low half's, those that meet the others, the same of
 *   the high half. So lane 4g + t has half a key's score if t % 2 is g % 2, and lane 4 (g ^ 1) + (t
 *   ^ 1) has the other; what the other lanes have is of no use.
 * - Values: rows g and g + 8 are dimensions 8g .. 8g + 7 of four keys t. Column i holds the keys'
 *   probabilities where dimension i % 2 of a word's two is, and of the first and second word for i
 *   % 4 < 2, of the others else; so the 4 by 4 sums of a row's or column's kind are all 8
 *   dimensions of g, four of them in the lane.
 */
#ifndef PGPT_KERNELS_CUDA_ATTENTION_CHUNK_CUH
#define PGPT_KERNELS_CUDA_ATTENTION_CHUNK_CUH

#include "kernels/cuda/cache.cuh"
#include "kernels/cuda/format.cuh"

enum {
    CHUNK = CACHE_CHUNK, /* keys that give one partial result */
    HEAD = CACHE_HEAD,
};
/* 1 / sqrt(64), which scores are not multiplied by, and from powers of e to those of 2 */
#define ATTENTION_SCALE (0.125f * 1.44269504088896341f)

/* A lane's keys and values of a chunk. */
template <class T> struct chunk_half {
    enum { QUERY = 1 };
    uint4 key[8];   /* key 4 i + g / 2, dimensions 32 (g % 2) + 8t .. */
    uint4 value[8]; /* key 4 i + t, dimensions 8g .. */
};
/* A lane's share of a query, QUERY times 16 bytes as they lie in memory: query_at(). */
struct chunk_query {
    uint4 part[2];
};

/* One head's keys and values in a layer's caches. */
template <class C> struct chunk_cache {
    const C *keys, *values;
    const __nv_bfloat16 *key_scales, *value_scales; /* int8 alone: two a position */
    int head, heads;                                /* which one, of how many a row has */
    uint32_t chunk_places;
};
/* Whose positions, and which of them are there: a row's own below `end`; with BEAM those below
 * beam_end lie in the row that wrote each (source_row, by position). */
struct chunk_row {
    int row, end, beam_end;
    const int32_t *source_row;
};

/* A chunk's or several merged chunks' result: four dimensions from part_place() on, the same in
 * lanes 4g + t and 4g + t + 2. max: of scores that are not yet scaled. */
struct attention_part {
    float max, sum, value[4];
};
/* The same of all lanes, in shared memory. */
struct attention_kept {
    float2 sums; /* max, sum */
    alignas(16) float value[HEAD];
};

static __device__ __forceinline__ int part_place(int lane)
{
    return (lane >> 2) * 8 + (lane & 1) * 4;
}
static __device__ __forceinline__ void part_keep(struct attention_kept *to,
                                                 const struct attention_part &part, int lane)
{
    if (lane == 0)
        to->sums = make_float2(part.max, part.sum);
    if (!(lane & 2))
        *(float4 *)&to->value[part_place(lane)] =
            make_float4(part.value[0], part.value[1], part.value[2], part.value[3]);
}
static __device__ __forceinline__ struct attention_part part_get(const struct attention_kept *from,
                                                                 int lane)
{
    const float2 sums = from->sums;
    const float4 v = *(const float4 *)&from->value[part_place(lane)];

    return {sums.x, sums.y, {v.x, v.y, v.z, v.w}};
}

/* 2^x; -inf gives 0. */
static __device__ __forceinline__ float power_of_2(float x)
{
    float y;

    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

/* Of probabilities, for scores that differ by d <= 0. T: float where results shall be those of
 * float32. */
template <class T> static __device__ __forceinline__ float chunk_factor(float d)
{
    return power_of_2(d * ATTENTION_SCALE);
}
template <> __device__ __forceinline__ float chunk_factor<float>(float d)
{
    return expf(d * 0.125f);
}

template <class T>
static __device__ __forceinline__ void part_merge(struct attention_part *a,
                                                  const struct attention_part &b)
{
    const float max = fmaxf(a->max, b.max);
    const float fa = chunk_factor<T>(a->max - max), fb = chunk_factor<T>(b.max - max);

    a->max = max;
    a->sum = __fadd_rn(__fmul_rn(a->sum, fa), __fmul_rn(b.sum, fb));
#pragma unroll
    for (int i = 0; i < 4; i++)
        a->value[i] = __fadd_rn(__fmul_rn(a->value[i], fa), __fmul_rn(b.value[i], fb));
}

template <class T> static __device__ __forceinline__ uint32_t pair_of(float a, float b);
template <> __device__ __forceinline__ uint32_t pair_of<__half>(float a, float b)
{
    __half2 h = __floats2half2_rn(a, b);

    return *(uint32_t *)&h;
}
template <> __device__ __forceinline__ uint32_t pair_of<__nv_bfloat16>(float a, float b)
{
    __nv_bfloat162 h = __floats2bfloat162_rn(a, b);

    return *(uint32_t *)&h;
}

static __device__ __forceinline__ void pairs_multiply(float *c, const uint4 &a, uint32_t x,
                                                      uint32_t y, const __half *)
{
    format_f16::mma(c, a, x, y);
}
static __device__ __forceinline__ void pairs_multiply(float *c, const uint4 &a, uint32_t x,
                                                      uint32_t y, const __nv_bfloat16 *)
{
    format_bf16::mma(c, a, x, y);
}

/* What createpolicy gives for L2::evict_first. A step reads each key and value once, and all of
 * them are more than L2 holds; weights and activations, which many blocks read, shall not leave for
 * them. */
#define CACHE_LEAVES_FIRST 0x12F0000000000000ull

/* 16 bytes, OFFSET bytes behind `from`, if `in`, else what was there: without a branch, around
 * which the compiler would wait for what is under way, and without a register for each address. */
template <int OFFSET>
static __device__ __forceinline__ void cache_get16_if(uint4 *to, const void *from, bool in)
{
    asm volatile("{\n\t.reg .pred p;\n\tsetp.ne.b32 p, %5, 0;\n\t"
                 "@p ld.global.cg.L2::cache_hint.v4.u32 {%0, %1, %2, %3}, [%4 + %6], %7;\n\t}"
                 : "+r"(to->x), "+r"(to->y), "+r"(to->z), "+r"(to->w)
                 : "l"(from), "r"((int)in), "n"(OFFSET), "l"(CACHE_LEAVES_FIRST)
                 : "memory");
}
static __device__ __forceinline__ uint32_t chunk_address(const void *shared)
{
    return (uint32_t)__cvta_generic_to_shared(shared);
}
/* The same from shared memory if bit BIT of `set` is. */
template <int BIT>
static __device__ __forceinline__ void shared_get16_if(uint4 *to, uint32_t from, uint32_t set)
{
    asm volatile("{\n\t.reg .pred p;\n\t.reg .b32 b;\n\tand.b32 b, %5, %6;\n\t"
                 "setp.ne.b32 p, b, 0;\n\t"
                 "@p ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];\n\t}"
                 : "+r"(to->x), "+r"(to->y), "+r"(to->z), "+r"(to->w)
                 : "r"(from), "r"(set), "n"(1 << BIT)
                 : "memory");
}
/* cache_get16_if(), else anything: of a key that is not there, whose score nobody looks at. */
template <int OFFSET>
static __device__ __forceinline__ void cache_get16_or_any(uint4 *to, const void *from, bool in)
{
    asm volatile("{\n\t.reg .pred p;\n\tsetp.ne.b32 p, %5, 0;\n\t"
                 "@p ld.global.cg.L2::cache_hint.v4.u32 {%0, %1, %2, %3}, [%4 + %6], %7;\n\t}"
                 : "=r"(to->x), "=r"(to->y), "=r"(to->z), "=r"(to->w)
                 : "l"(from), "r"((int)in), "n"(OFFSET), "l"(CACHE_LEAVES_FIRST)
                 : "memory");
}
/* 16 bytes, whatever lies there. */
template <int OFFSET>
static __device__ __forceinline__ void cache_get16_all(uint4 *to, const void *from)
{
    asm volatile("ld.global.cg.L2::cache_hint.v4.u32 {%0, %1, %2, %3}, [%4 + %5], %6;"
                 : "=r"(to->x), "=r"(to->y), "=r"(to->z), "=r"(to->w)
                 : "l"(from), "n"(OFFSET), "l"(CACHE_LEAVES_FIRST)
                 : "memory");
}
/* cache_get16_if(), else zeros: of a value, whose probability of 0 may meet no infinity. */
template <int OFFSET>
static __device__ __forceinline__ void cache_get16(uint4 *to, const void *from, bool in)
{
    *to = make_uint4(0, 0, 0, 0);
    cache_get16_if<OFFSET>(to, from, in);
}

/* Where position `at` of a row lies in a cache, in elements. */
template <bool BEAM, class C>
static __device__ __forceinline__ size_t chunk_at(const struct chunk_cache<C> &cache,
                                                  const struct chunk_row &row, int at)
{
    const int from = BEAM && at < row.beam_end ? __ldcg(row.source_row + at) : row.row;

    return (size_t)cache_place((uint32_t)(from * cache.heads + cache.head), (uint32_t)at,
                               cache.chunk_places) *
           HEAD;
}

/* What becomes of positions behind a row's last: they are not read, and registers hold anything,
 * zeros or what they held before, or the whole chunk is read, which costs no instructions. */
enum chunk_absent { ABSENT_ANY, ABSENT_ZERO, ABSENT_KEEP, ABSENT_READ };

/* A lane's keys (or values) from the I-th on, out of a row that has all its positions itself. from:
 * the lane's first; left: positions from that on. */
template <class T, enum chunk_absent ABSENT, int I = 0>
static __device__ __forceinline__ void chunk_load_from(uint4 (&to)[8], const char *from, int left)
{
    constexpr int STEP = 4 * HEAD * sizeof(T);

    if constexpr (ABSENT == ABSENT_READ)
        cache_get16_all<I * STEP>(&to[I], from);
    else if constexpr (ABSENT == ABSENT_KEEP)
        cache_get16_if<I * STEP>(&to[I], from, 4 * I < left);
    else if constexpr (ABSENT == ABSENT_ZERO)
        cache_get16<I * STEP>(&to[I], from, 4 * I < left);
    else
        cache_get16_or_any<I * STEP>(&to[I], from, 4 * I < left);
    if constexpr (I < 7)
        chunk_load_from<T, ABSENT, I + 1>(to, from, left);
}

/* Keys or values of a chunk of such a row: `left` positions of it are there, and of others values
 * are zeros or (WHOLE) what lies there. from: its first. */
template <bool WHOLE, class T>
static __device__ __forceinline__ void chunk_load_keys(struct chunk_half<T> *chunk,
                                                       const char *from, int left, int lane)
{
    chunk_load_from<T, WHOLE ? ABSENT_READ : ABSENT_ANY>(chunk->key, from + lane * 16,
                                                         left - (lane >> 3));
    __syncwarp(); /* the compiler shall not begin to multiply before it has asked for all */
}
template <bool WHOLE, class T>
static __device__ __forceinline__ void chunk_load_values(struct chunk_half<T> *chunk,
                                                         const char *from, int left, int lane)
{
    chunk_load_from<T, WHOLE ? ABSENT_READ : ABSENT_ZERO>(
        chunk->value, from + (lane & 3) * (HEAD * sizeof(T)) + (lane >> 2) * 16, left - (lane & 3));
    __syncwarp();
}

/* A chunk into registers; of what is not there, values are zeros. */
template <bool BEAM, class T>
static __device__ __forceinline__ void chunk_load(struct chunk_half<T> *chunk,
                                                  const struct chunk_cache<T> &cache,
                                                  const struct chunk_row &row, int c, int lane)
{
    if constexpr (BEAM) {
        const int key = lane >> 3, value = lane & 3; /* the first that the lane has */
        const int in_key = 8 * (lane & 7), in_value = 8 * (lane >> 2);

#pragma unroll
        for (int i = 0; i < 8; i++) {
            const int at = c * CHUNK + 4 * i;

            cache_get16_or_any<0>(&chunk->key[i],
                                  cache.keys + chunk_at<BEAM>(cache, row, at + key) + in_key,
                                  at + key < row.end);
            cache_get16<0>(&chunk->value[i],
                           cache.values + chunk_at<BEAM>(cache, row, at + value) + in_value,
                           at + value < row.end);
        }
        __syncwarp();
    } else {
        const size_t first = chunk_at<BEAM>(cache, row, c * CHUNK);

        chunk_load_keys<false>(chunk, (const char *)(cache.keys + first), row.end - c * CHUNK,
                               lane);
        chunk_load_values<false>(chunk, (const char *)(cache.values + first), row.end - c * CHUNK,
                                 lane);
    }
}

/* The newest position, the chunk's i-th, whose key and value (64) lie in shared memory or in the
 * cache. */
template <bool SHARED, int J, class T>
static __device__ __forceinline__ void chunk_newest_of(struct chunk_half<T> *chunk, const T *key,
                                                       const T *value, uint32_t keys,
                                                       uint32_t values)
{
    if constexpr (SHARED) {
        shared_get16_if<J>(&chunk->key[J], chunk_address(key), keys);
        shared_get16_if<J>(&chunk->value[J], chunk_address(value), values);
    } else {
        cache_get16_if<0>(&chunk->key[J], key, keys >> J & 1);
        cache_get16_if<0>(&chunk->value[J], value, values >> J & 1);
    }
    if constexpr (J < 7)
        chunk_newest_of<SHARED, J + 1>(chunk, key, value, keys, values);
}
template <bool SHARED, class T>
static __device__ __forceinline__ void chunk_newest(struct chunk_half<T> *chunk, const T *key,
                                                    const T *value, int i, int lane)
{
    /* which of its 8 the lane has it in: a bit, so that no more than its test stands before a load
     */
    const uint32_t keys = lane >> 3 == (i & 3) ? 1u << (i >> 2) : 0;
    const uint32_t values = (lane & 3) == (i & 3) ? 1u << (i >> 2) : 0;

    chunk_newest_of<SHARED, 0>(chunk, key + 8 * (lane & 7), value + 8 * (lane >> 2), keys, values);
}

/* Where the i-th 16 bytes of the lane's share of a query (64) begin. */
template <class T>
static __device__ __forceinline__ int query_at(const struct chunk_half<T> *, int, int lane)
{
    return 32 * (lane >> 3 & 1) + 8 * (lane & 3);
}

/* q (64): in shared memory. */
template <class Chunk, class T>
static __device__ __forceinline__ struct chunk_query query_get(const Chunk *chunk, const T *q,
                                                               int lane)
{
    struct chunk_query query;

#pragma unroll
    for (int i = 0; i < Chunk::QUERY; i++)
        query.part[i] = *(const uint4 *)(q + query_at(chunk, i, lane));
    return query;
}

/* Which of 32 keys the lane's i-th score is of. */
static __device__ __forceinline__ int score_key(int i, int lane)
{
    return 4 * i + 16 * (lane >> 2 & 1) + (lane >> 3);
}

/* Scores become probabilities, at most `count` of the chunk's keys. What lanes 4g + t have for
 * which t % 2 is not g % 2 is not looked at. */
template <class T>
static __device__ __forceinline__ void chunk_softmax(float (&p)[4], int count, int lane,
                                                     struct attention_part *out)
{
    const int good = lane ^ (((lane >> 2) ^ lane) & 1); /* a lane of the same g */

#pragma unroll
    for (int i = 0; i < 4; i++)
        p[i] = score_key(i, lane) < count ? p[i] : -INFINITY;
    out->max = fmaxf(fmaxf(p[0], p[1]), fmaxf(p[2], p[3]));
    out->max = fmaxf(out->max, __shfl_xor_sync(0xffffffffu, out->max, 5));
    out->max = fmaxf(out->max, __shfl_xor_sync(0xffffffffu, out->max, 8));
    out->max = fmaxf(out->max, __shfl_xor_sync(0xffffffffu, out->max, 16));
#pragma unroll
    for (int i = 0; i < 4; i++)
        p[i] = chunk_factor<T>(p[i] - out->max);
    out->sum = __fadd_rn(__fadd_rn(p[0], p[1]), __fadd_rn(p[2], p[3]));
    out->sum = __fadd_rn(out->sum, __shfl_xor_sync(0xffffffffu, out->sum, 5));
    out->sum = __fadd_rn(out->sum, __shfl_xor_sync(0xffffffffu, out->sum, 8));
    out->sum = __fadd_rn(out->sum, __shfl_xor_sync(0xffffffffu, out->sum, 16));
    out->max = __shfl_sync(0xffffffffu, out->max, good);
    out->sum = __shfl_sync(0xffffffffu, out->sum, good);
}

/* The lane's registers of the second operand of the values' product: a key's probability in one of
 * four places, which is the same for all keys. */
struct chunk_columns {
    uint32_t first, second; /* __byte_perm() of a pair's low one and 0 */
};
static __device__ __forceinline__ struct chunk_columns chunk_columns_of(int lane)
{
    const uint32_t place = lane & 4 ? 0x1044 : 0x4410;

    return {lane & 8 ? 0x4444 : place, lane & 8 ? place : 0x4444};
}
/* sums += values of one key a t, times probabilities; high: the pair's second key. */
template <class T>
static __device__ __forceinline__ void value_add(float *sums, const uint4 &value, uint32_t pair,
                                                 int high, const struct chunk_columns &columns)
{
    const uint32_t p = high ? pair >> 16 : pair;

    pairs_multiply(sums, value, __byte_perm(p, 0, columns.first), __byte_perm(p, 0, columns.second),
                   (const T *)NULL);
}

/* A query's words that meet the first and third of a lane's four, and those that meet the others.
 */
static __device__ __forceinline__ uint2 query_words(const uint4 &q, bool odd)
{
    return odd ? make_uint2(q.y, q.w) : make_uint2(q.x, q.z);
}

/* Sums of a chunk's values, times the probabilities of keys 4 i + t and 4 i + 4 + t: pairs, by i /
 * 2. word(j): the lane's 16 bytes of values of key 4 j + t. */
template <class T, class Word>
static __device__ __forceinline__ void values_add(struct attention_part *out,
                                                  const uint32_t (&pairs)[4], Word word, int lane)
{
    const struct chunk_columns columns = chunk_columns_of(lane);
    float sums[4][4] = {};

#pragma unroll
    for (int j = 0; j < 8; j++)
        value_add<T>(sums[j & 3], word(j), pairs[j >> 1], j & 1, columns);
#pragma unroll
    for (int j = 0; j < 4; j++)
        out->value[j] =
            __fadd_rn(__fadd_rn(sums[0][j], sums[1][j]), __fadd_rn(sums[2][j], sums[3][j]));
}

/* One query over the chunk's keys: half of the scores' sums each, in two lanes. */
template <class T>
static __device__ __forceinline__ void chunk_halves(float (&half)[8],
                                                    const struct chunk_half<T> &chunk,
                                                    const struct chunk_query &query, int lane)
{
    const uint2 q = query_words(query.part[0], lane & 4);

#pragma unroll
    for (int i = 0; i < 8; i++) {
        float score[4] = {};

        pairs_multiply(score, chunk.key[i], q.x, q.y, (const T *)NULL);
        half[i] = __fadd_rn(score[0], score[3]);
    }
}
/* The rest, which needs no keys any more: of the first `count` of them, with their values. */
template <class T>
static __device__ __forceinline__ void
chunk_finish(struct attention_part *out, const float (&half)[8], const struct chunk_half<T> &chunk,
             int count, int lane)
{
    const bool odd = lane & 4;
    const int source = 8 * (lane & 3);
    uint32_t pairs[4];
    float p[4];

    /* each of two lanes with halves of 8 scores gets four whole ones */
#pragma unroll
    for (int i = 0; i < 4; i++)
        p[i] = __fadd_rn(odd ? half[i + 4] : half[i],
                         __shfl_xor_sync(0xffffffffu, odd ? half[i] : half[i + 4], 5));
    chunk_softmax<T>(p, count, lane, out);
#pragma unroll
    for (int i = 0; i < 2; i++) {
        const uint32_t pair = pair_of<T>(p[2 * i], p[2 * i + 1]);

        pairs[i] = __shfl_sync(0xffffffffu, pair, source);
        pairs[i + 2] = __shfl_sync(0xffffffffu, pair, source + 5);
    }
    values_add<T>(
        out, pairs, [&](int j) { return chunk.value[j]; }, lane);
}
/* One query over the chunk's first `count` keys. */
template <class T>
static __device__ __forceinline__ void chunk_attend(const struct chunk_half<T> &chunk,
                                                    const struct chunk_query &query, int count,
                                                    int lane, struct attention_part *out)
{
    float half[8];

    chunk_halves(half, chunk, query, lane);
    chunk_finish<T>(out, half, chunk, count, lane);
}

/* 1 / x, to a unit in the last place; x is a sum of probabilities, so at least 1. */
static __device__ __forceinline__ float reciprocal(float x)
{
    float y;

    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

/* A part's values, divided by its sum, as elements. */
template <class T>
static __device__ __forceinline__ void part_elements(const struct attention_part &part, T *out)
{
    const float scale = reciprocal(part.sum);

    format_set2(out, part.value[0] * scale, part.value[1] * scale);
    format_set2(out + 2, part.value[2] * scale, part.value[3] * scale);
}
/* The same of 8 dimensions from 8g on, in all four lanes. */
template <class T>
static __device__ __forceinline__ uint4 part_words(const struct attention_part &part, int lane)
{
    alignas(8) T own[4];
    uint2 mine, other;

    part_elements(part, own);
    mine = *(const uint2 *)own;
    other.x = __shfl_xor_sync(0xffffffffu, mine.x, 1);
    other.y = __shfl_xor_sync(0xffffffffu, mine.y, 1);
    return lane & 1 ? make_uint4(other.x, other.y, mine.x, mine.y)
                    : make_uint4(mine.x, mine.y, other.x, other.y);
}

#endif
