/* SPDX-License-Identifier: MIT
 *
 * product_input: the front of a product: a block's rows arrive in shared memory as the matrix
 * instruction wants them, after the layer norm, the embedding or the quantisation that stands
 * before the product.
 *
 * Tile: BM rows, K * TILE_BYTES + 16 bytes apart (so that 16 bytes of 8 neighbouring rows meet no
 * bank twice).
 */
#ifndef PGPT_KERNELS_CUDA_PRODUCT_INPUT_CUH
#define PGPT_KERNELS_CUDA_PRODUCT_INPUT_CUH

#include "kernels/cuda/layer_norm.cuh"
#include "kernels/cuda/product.h"

enum { PRODUCT_TILE_PAD = 16 };

/* Asynchronous copies of 16 bytes from global to shared memory; zeros when not `in`. */
static __device__ __forceinline__ void copy_16(void *shared, const void *global, bool in)
{
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(
                     (uint32_t)__cvta_generic_to_shared(shared)),
                 "l"(global), "r"(in ? 16 : 0)
                 : "memory");
}
static __device__ __forceinline__ void copy_commit(void)
{
    asm volatile("cp.async.commit_group;" ::: "memory");
}
/* All but the last `PENDING` committed groups have arrived (for this thread: a barrier follows). */
template <int PENDING> static __device__ __forceinline__ void copy_wait(void)
{
    asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
}

static __device__ __forceinline__ float warp_max(float v)
{
    for (int mask = 16; mask; mask >>= 1)
        v = fmaxf(v, __shfl_xor_sync(0xffffffffu, v, mask));
    return v;
}

static __device__ __forceinline__ uint32_t bytes_pack(int a, int b, int c, int d)
{
    return __byte_perm(__byte_perm(a, b, 0x0040), __byte_perm(c, d, 0x0040), 0x5410);
}

/* Four neighbours of a row in two digits (format.cuh), from input k on (a multiple of 4). */
static __device__ __forceinline__ void digits_put4(char *row, int k, const float4 &v, float inverse)
{
    int a = __float2int_rn(v.x * inverse), b = __float2int_rn(v.y * inverse);
    int c = __float2int_rn(v.z * inverse), d = __float2int_rn(v.w * inverse);
    char *to = row + (k >> 6) * 128 + (k & 63);

    *(uint32_t *)to = bytes_pack((a + 64) >> 7, (b + 64) >> 7, (c + 64) >> 7, (d + 64) >> 7);
    /* low = q - 128 high: its low 7 bits, sign extended */
    *(uint32_t *)(to + 64) = bytes_pack(((a + 64) & 127) - 64, ((b + 64) & 127) - 64,
                                        ((c + 64) & 127) - 64, ((d + 64) & 127) - 64);
}

/* Four neighbours of a row into the tile. */
template <class F>
static __device__ __forceinline__ void tile_put4(char *row, int k, const float4 &v, float inverse)
{
    if constexpr (F::QUANTISED) {
        digits_put4(row, k, v, inverse);
    } else {
        typename F::element *out = (typename F::element *)row + k;

        format_set2(out, v.x, v.y);
        format_set2(out + 2, v.z, v.w);
    }
}

/* Four neighbours (k a multiple of 4) of a token's embedding, straight from the packed weights of
 * the output product, in the format of activations. No branches: several may be on their way. */
template <class F>
static __device__ __forceinline__ float4 embedding_plain4(const struct cuda_weight &w,
                                                          int32_t token, int k)
{
    const char *tile = (const char *)w.packed;
    const int column = token & 15, g = column & 7, high = column >> 3;

    if constexpr (sizeof(typename F::element) == 4) {
        const char *block = tile + ((size_t)(token >> 4) * (w.K / 16) + k / 16) * 1024;

        return *(const float4 *)(block + (k >> 2 & 3) * 256 + column * 16);
    } else {
        const char *block = tile + ((size_t)(token >> 4) * (w.K / 32) + k / 32) * 1024 +
                            (k >> 4 & 1) * 512 + (g * 4 + (k >> 1 & 3)) * 16 +
                            ((k >> 3 & 1) * 2 + high) * 4;
        const uint32_t words[2] = {*(const uint32_t *)block, *(const uint32_t *)(block + 16)};
        const typename F::element *e = (const typename F::element *)words;

        return make_float4(format_float(e[0]), format_float(e[1]), format_float(e[2]),
                           format_float(e[3]));
    }
}

/* The same of int8 weights: a word of 4 inputs. */
static __device__ __forceinline__ float4 embedding_bytes4(const struct cuda_weight &w,
                                                          int32_t token, int k)
{
    const int column = token & 15, g = column & 7, high = column >> 3;
    const char *block =
        (const char *)w.packed + (size_t)(uint32_t)((token >> 4) * (w.K / 64) + k / 64) * 1024;
    char4 q = *(const char4 *)(block + (k >> 5 & 1) * 512 + (g * 4 + (k >> 2 & 3)) * 16 +
                               ((k >> 4 & 1) * 2 + high) * 4);
    float s = w.scale[token];

    return make_float4(q.x * s, q.y * s, q.z * s, q.w * s);
}

/* The same in whatever format the weights are. */
template <class F>
static __device__ __forceinline__ float4 embedding_get4(const struct cuda_weight &w, int32_t token,
                                                        int k)
{
    return w.format == CUDA_INT8 ? embedding_bytes4(w, token, k) : embedding_plain4<F>(w, token, k);
}

/* What the epilogue and the embedding need to know of a block's rows. */
struct tile_rows {
    int32_t row; /* -1: past n, or finished: writes nothing */
    int32_t position;
    int32_t token;
    int32_t no_eos; /* LOGITS: too short to end */
};

/* One row held by a warp, V float4 a lane (elements j * 128 + 4 lane ..), into the tile, quantised
 * when the format is; into x_row when not NULL. */
template <class F, int V>
static __device__ __forceinline__ void tile_put_row(int K, char *tile_row, float *scale_out,
                                                    float *x_row, const float4 (&v)[V], int lane)
{
    float inverse = 0.0f;

    if constexpr (F::QUANTISED) {
        float most = 0.0f;

#pragma unroll
        for (int j = 0; j < V; j++)
            if (j * 128 < K)
                most = fmaxf(
                    fmaxf(fmaxf(fabsf(v[j].x), fabsf(v[j].y)), fmaxf(fabsf(v[j].z), fabsf(v[j].w))),
                    most);
        most = warp_max(most);
        inverse = most > 0.0f ? FORMAT_INT8_MOST / most : 0.0f;
        if (lane == 0)
            *scale_out = most / FORMAT_INT8_MOST;
    }
#pragma unroll
    for (int j = 0; j < V; j++) {
        int k = j * 128 + lane * 4;

        if (j * 128 >= K)
            break;
        tile_put4<F>(tile_row, k, v[j], inverse);
        if (x_row)
            *(float4 *)(x_row + k) = v[j];
    }
}

/* R rows at once by a warp, so that their loads overlap. K <= V * 128. rows: BM. */
template <class F, enum product_input INPUT, int V, int R>
static __device__ __forceinline__ void
tile_fill_float(const struct product &p, int m0, int n, int r0, char *tile, int stride,
                float *scales, const struct tile_rows *info, const float *norm, bool write_x)
{
    int lane = threadIdx.x & 31, K = p.weight.K;
    float4 v[R][V];

#pragma unroll
    for (int r = 0; r < R; r++) {
#pragma unroll
        for (int j = 0; j < V; j++) {
            int k = j * 128 + lane * 4;

            v[r][j] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
            if (j * 128 >= K || m0 + r0 + r >= n)
                continue;
            if (INPUT == PRODUCT_NORM) {
                v[r][j] =
                    __ldcg((const float4 *)((const float *)p.x + (size_t)(m0 + r0 + r) * K + k));
            } else {
                float4 e = embedding_get4<F>(p.embedding, info[r0 + r].token, k);
                float4 q =
                    *(const float4 *)(p.position_table + (size_t)info[r0 + r].position * K + k);

                v[r][j].x = __fadd_rn(__fmul_rn(e.x, p.embedding_factor), q.x);
                v[r][j].y = __fadd_rn(__fmul_rn(e.y, p.embedding_factor), q.y);
                v[r][j].z = __fadd_rn(__fmul_rn(e.z, p.embedding_factor), q.z);
                v[r][j].w = __fadd_rn(__fmul_rn(e.w, p.embedding_factor), q.w);
            }
        }
    }
    if (INPUT == PRODUCT_NORM) {
        struct norm_of of[R];

#pragma unroll
        for (int r = 0; r < R; r++) {
            struct norm_sums sums = {0.0f, 0.0f};

#pragma unroll
            for (int j = 0; j < V; j++)
                norm_add4(&sums, v[r][j]);
            of[r] = norm_measure(sums, p.width);
        }
#pragma unroll
        for (int j = 0; j < V; j++) {
            int k = j * 128 + lane * 4;

            if (j * 128 >= K)
                break;
            float4 g = *(const float4 *)(norm + k), b = *(const float4 *)(norm + K + k);

#pragma unroll
            for (int r = 0; r < R; r++)
                norm_apply4(&v[r][j], of[r], g, b);
        }
    }
#pragma unroll
    for (int r = 0; r < R; r++)
        tile_put_row<F, V>(K, tile + (size_t)(r0 + r) * stride, scales + r0 + r,
                           write_x && m0 + r0 + r < n ? p.x_out + (size_t)(m0 + r0 + r) * K : NULL,
                           v[r], lane);
}

/* Rows of elements, as they are: asynchronous copies, awaited by the caller. */
template <class F, int BM>
static __device__ __forceinline__ void tile_fill_copy(const struct product &p, int m0, int n,
                                                      char *tile, int stride)
{
    int chunks = p.weight.K * F::TILE_BYTES / 16;
    const char *x = (const char *)p.x + (size_t)m0 * p.weight.K * F::TILE_BYTES;

    for (int i = threadIdx.x; i < BM * chunks; i += blockDim.x) {
        int r = i / chunks, c = i - r * chunks;
        bool in = m0 + r < n;

        copy_16(tile + (size_t)r * stride + c * 16, x + (in ? ((size_t)r * chunks + c) * 16 : 0),
                in);
    }
    copy_commit();
    copy_wait<0>();
}

/* A warp looks at a row of elements for what its digits are counted in: the scale, and its inverse.
 */
template <class F>
static __device__ __forceinline__ float row_measure(const typename F::element *x, bool in, int K,
                                                    float *scale)
{
    int lane = threadIdx.x & 31;
    float most = 0.0f;

    for (int k = lane * 8; in && k < K; k += 256) {
        float f[8];

        format_unpack8(*(const uint4 *)(x + k), x, f);
        for (int i = 0; i < 8; i++)
            most = fmaxf(most, fabsf(f[i]));
    }
    most = warp_max(most);
    if (lane == 0)
        *scale = most / FORMAT_INT8_MOST;
    return most > 0.0f ? FORMAT_INT8_MOST / most : 0.0f;
}

/* 8 neighbours of a row of elements into digits, as inputs `to` and on of the tile's row. */
template <class F>
static __device__ __forceinline__ void
digits_put8(char *row, int to, const typename F::element *from, bool in, float inverse)
{
    float f[8] = {0, 0, 0, 0, 0, 0, 0, 0};

    if (in)
        format_unpack8(*(const uint4 *)from, from, f);
    digits_put4(row, to, make_float4(f[0], f[1], f[2], f[3]), inverse);
    digits_put4(row, to + 4, make_float4(f[4], f[5], f[6], f[7]), inverse);
}

/* Rows of elements into digits: a warp a row, twice over it (the second time it is in L1). */
template <class F, int BM>
static __device__ __forceinline__ void tile_fill_quantised(const struct product &p, int m0, int n,
                                                           char *tile, int stride, float *scales)
{
    int lane = threadIdx.x & 31, K = p.weight.K;

    for (int r = threadIdx.x >> 5; r < BM; r += blockDim.x >> 5) {
        const typename F::element *x = (const typename F::element *)p.x + (size_t)(m0 + r) * K;
        bool in = m0 + r < n;
        float inverse = row_measure<F>(x, in, K, scales + r);

        for (int k = lane * 8; k < K; k += 256)
            digits_put8<F>(tile + (size_t)r * stride, k, x + k, in, inverse);
    }
}

/* In front of window_fill(). scales, inverses (BM): set where the format has digits. */
template <class F, int BM>
static __device__ __forceinline__ void rows_measure(const struct product &p, int m0, int n,
                                                    float *scales, float *inverses)
{
    int K = p.weight.K;

    if constexpr (F::QUANTISED)
        for (int r = threadIdx.x >> 5; r < BM; r += blockDim.x >> 5) {
            float inverse = row_measure<F>((const typename F::element *)p.x + (size_t)(m0 + r) * K,
                                           m0 + r < n, K, scales + r);

            if ((threadIdx.x & 31) == 0)
                inverses[r] = inverse;
        }
}

/* Rows of elements, blocks b0 to b0 + BLOCKS - 1 of each of the 4 parts alone, side by side in the
 * tile, once all have left the window before; ends with the block's threads in step. */
template <class F, int BM, int BLOCKS>
static __device__ __forceinline__ void window_fill(const struct product &p, int m0, int n, int b0,
                                                   char *tile, int stride, const float *inverses)
{
    typedef typename F::element element;
    constexpr int PART = BLOCKS * F::KB, STEP = 16 / sizeof(element);
    const int K = p.weight.K, each = K / FORMAT_PARTS;

    __syncthreads();
    for (int i = threadIdx.x; i < BM * FORMAT_PARTS * PART / STEP; i += blockDim.x) {
        const int r = i / (FORMAT_PARTS * PART / STEP),
                  to = i % (FORMAT_PARTS * PART / STEP) * STEP;
        const int k = b0 * F::KB + to % PART;
        const bool in = m0 + r < n && k < each;
        const element *from =
            (const element *)p.x + (in ? (size_t)(m0 + r) * K + to / PART * each + k : 0);

        if constexpr (F::QUANTISED)
            digits_put8<F>(tile + (size_t)r * stride, to, from, in, inverses[r]);
        else
            copy_16(tile + (size_t)r * stride + to * sizeof(element), from, in);
    }
    copy_commit();
    copy_wait<0>();
    __syncthreads();
}

/* A token's row may have been written by the kernel in front (the choice of the step before) only
 * where the input is an embedding: everything else may be looked at before launch_wait(). */
template <enum product_output OUTPUT, int BM>
static __device__ __forceinline__ void tile_rows_load(const struct product &p, int m0, int n,
                                                      struct tile_rows *info)
{
    int r = threadIdx.x;
    struct tile_rows of = {-1, 0, 0, 0};

    if (r >= BM)
        return;
    if (m0 + r >= n) {
        ;
    } else if (OUTPUT == PRODUCT_CROSS) {
        of.row = p.cache_rows[m0 + r];
        of.position = p.positions[m0 + r];
    } else if (p.tokens) {
        of.row = m0 + r;
        of.position = p.positions[m0 + r];
        of.token = p.tokens[m0 + r];
    } else if (p.active) {
        const struct cuda_row *row = p.rows.row + p.active[m0 + r];

        of.row = row->finished ? -1 : p.active[m0 + r];
        of.position = row->finished ? 0 : row->position;
        of.token = row->token;
        of.no_eos = row->position < row->min_new;
    } else {
        of.row = m0 + r;
    }
    *(int4 *)&info[r] = make_int4(of.row, of.position, of.token, of.no_eos);
}

/* Before launch_wait(): what no kernel of the step writes. norm (2, K). One committed group. */
template <enum product_input INPUT, enum product_output OUTPUT, int BM>
static __device__ __forceinline__ void tile_prefetch(const struct product &p, int m0, int n,
                                                     float *norm, struct tile_rows *info)
{
    int K = p.weight.K;

    if (INPUT == PRODUCT_NORM)
        for (int i = threadIdx.x * 4; i < 2 * K; i += blockDim.x * 4)
            copy_16(norm + i, i < K ? p.gamma + i : p.beta + i - K, true);
    copy_commit();
    if (INPUT != PRODUCT_EMBED)
        tile_rows_load<OUTPUT, BM>(p, m0, n, info);
}

/* After launch_wait(): everything in front of the product; ends with the block's threads in step.
 * PENDING: groups committed since tile_prefetch() that need not be here yet. */
template <class F, enum product_input INPUT, enum product_output OUTPUT, int BM, int THREADS,
          int PENDING>
static __device__ __forceinline__ void tile_fill(const struct product &p, int m0, int n, char *tile,
                                                 int stride, float *scales, struct tile_rows *info,
                                                 const float *norm)
{
    constexpr int WARPS = THREADS / 32, EACH = BM / WARPS, R = EACH < 4 ? EACH : 4;
    const int warp = threadIdx.x >> 5;
    const bool write_x = p.x_out && blockIdx.x == 0;

    if (INPUT == PRODUCT_ROWS) {
        if constexpr (F::QUANTISED)
            tile_fill_quantised<F, BM>(p, m0, n, tile, stride, scales);
        else
            tile_fill_copy<F, BM>(p, m0, n, tile, stride);
        __syncthreads();
        return;
    }
    if (INPUT == PRODUCT_EMBED)
        tile_rows_load<OUTPUT, BM>(p, m0, n, info);
    else
        copy_wait<PENDING>(); /* norm */
    __syncthreads();
    if (p.weight.K <= 512)
#pragma unroll 1
        for (int r = warp * R; r < BM; r += WARPS * R)
            tile_fill_float<F, INPUT, 4, R>(p, m0, n, r, tile, stride, scales, info, norm, write_x);
    else
#pragma unroll 1
        for (int r = warp; r < BM; r += WARPS)
            tile_fill_float<F, INPUT, 8, 1>(p, m0, n, r, tile, stride, scales, info, norm, write_x);
    __syncthreads();
}

#endif
