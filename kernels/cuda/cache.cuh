/* SPDX-License-Identifier: MIT
 *
 * cache: how a layer's keys or values lie, (chunks, max_rows, heads, 32, 64): 32 positions of a
 * row's head side by side, next to those of its neighbours. So what short rows look at is close
 * together however many positions the caches have room for, and whole chunks may be read, also
 * where the row has fewer positions: keys that are not there are anything, values are finite, of
 * caches of 16 bits, for their memory begins as zeros and all writers use cache_value2(). A *place*
 * is one head's position, 64 elements (of int8 caches two scales as well); a layer has fewer than
 * 2^31. Pure arithmetic.
 */
#ifndef PGPT_KERNELS_CUDA_CACHE_CUH
#define PGPT_KERNELS_CUDA_CACHE_CUH

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <stdint.h>

enum {
    CACHE_CHUNK = 32, /* positions */
    CACHE_HEAD = 64,  /* elements of a place */
};

/* The first place of a row's head in one of its chunks. head: among all heads of all rows;
 * chunk_places: of a chunk of all rows. */
static __host__ __device__ __forceinline__ uint32_t cache_chunk_place(uint32_t head, uint32_t chunk,
                                                                      uint32_t chunk_places)
{
    return head * CACHE_CHUNK + chunk * chunk_places;
}
static __host__ __device__ __forceinline__ uint32_t cache_place(uint32_t head, uint32_t position,
                                                                uint32_t chunk_places)
{
    return cache_chunk_place(head, position / CACHE_CHUNK, chunk_places) + position % CACHE_CHUNK;
}

/* Two halves of a value as they may be written: what overflowed is the greatest number there is,
 * and what is none the least, so that nothing of one sequence reaches those that have its row after
 * it: a position that is not there has a probability of 0, and 0 times any number is 0. */
template <class T> static __device__ __forceinline__ uint32_t cache_value2(uint32_t pair);
template <> __device__ __forceinline__ uint32_t cache_value2<__half>(uint32_t pair)
{
    const __half2 most = __half2_raw{0x7bff, 0x7bff}, least = __half2_raw{0xfbff, 0xfbff};
    const __half2 v = __hmin2(__hmax2(*(const __half2 *)&pair, least), most);

    return *(const uint32_t *)&v;
}
template <> __device__ __forceinline__ uint32_t cache_value2<__nv_bfloat16>(uint32_t pair)
{
    const __nv_bfloat162 most = __nv_bfloat162_raw{0x7f7f, 0x7f7f};
    const __nv_bfloat162 least = __nv_bfloat162_raw{0xff7f, 0xff7f};
    const __nv_bfloat162 v = __hmin2(__hmax2(*(const __nv_bfloat162 *)&pair, least), most);

    return *(const uint32_t *)&v;
}
template <class T> static __device__ __forceinline__ uint2 cache_value4(uint2 four)
{
    return make_uint2(cache_value2<T>(four.x), cache_value2<T>(four.y));
}

#endif
