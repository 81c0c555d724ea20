/* SPDX-License-Identifier: MIT
 *
 * product_norm: what stands between products of many rows, a row a warp: the embedding in front of
 * the first one, and the norm of what a product and its residual have left.
 */
#ifndef PGPT_KERNELS_CUDA_PRODUCT_NORM_CUH
#define PGPT_KERNELS_CUDA_PRODUCT_NORM_CUH

#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/layer_norm.cuh"
#include "kernels/cuda/product_input.cuh"
#include "kernels/cuda/product_output.cuh"

enum { ROW_WARPS = 4 }; /* a row each */

/* x_out (n,K) and out (n,K): embeddings of tokens plus positions, of K = V * 128. */
template <class F, int V>
static __global__ void __launch_bounds__(ROW_WARPS * 32) product_embed(const struct product p)
{
    typedef typename F::element element;
    const int i = blockIdx.x * ROW_WARPS + (threadIdx.x >> 5), lane = threadIdx.x & 31;
    const uint32_t at = i * (V * 128) + lane * 4;
    const float4 *positions;
    float4 e[V], v[V];
    int token, position;

    launch_wait();
    launch_next();
    if (i >= *p.n)
        return;
    if (p.tokens) {
        token = p.tokens[i];
        position = p.positions[i];
    } else {
        const struct cuda_row *row = p.rows.row + p.active[i];

        token = row->token;
        position = row->finished ? 0 : row->position;
    }
    positions = (const float4 *)p.position_table + (size_t)position * (V * 32) + lane;
#pragma unroll
    for (int j = 0; j < V; j++)
        v[j] = positions[j * 32];
    if (p.embedding.format ==
        CUDA_INT8) /* one branch: all of a row's loads are under way at once */
#pragma unroll
        for (int j = 0; j < V; j++)
            e[j] = embedding_bytes4(p.embedding, token, j * 128 + lane * 4);
    else
#pragma unroll
        for (int j = 0; j < V; j++)
            e[j] = embedding_plain4<F>(p.embedding, token, j * 128 + lane * 4);
#pragma unroll
    for (int j = 0; j < V; j++) {
        v[j].x = __fadd_rn(__fmul_rn(e[j].x, p.embedding_factor), v[j].x);
        v[j].y = __fadd_rn(__fmul_rn(e[j].y, p.embedding_factor), v[j].y);
        v[j].z = __fadd_rn(__fmul_rn(e[j].z, p.embedding_factor), v[j].z);
        v[j].w = __fadd_rn(__fmul_rn(e[j].w, p.embedding_factor), v[j].w);
        *(float4 *)(p.x_out + at + j * 128) = v[j];
        output_put4((element *)p.out + at + j * 128, v[j]);
    }
}

/* out (n,N) elements and x_out (n,N) = layer norm of x_out, of N = V * 128. The kernel in front is
 * a product, which does not write n. */
template <class F, int V>
static __global__ void __launch_bounds__(ROW_WARPS * 32, V <= 4 ? 8 : 4)
    product_norm(const struct product p)
{
    typedef typename F::element element;
    const int i = blockIdx.x * ROW_WARPS + (threadIdx.x >> 5), lane = threadIdx.x & 31, n = *p.n;
    const float4 *gammas = (const float4 *)p.gamma + lane, *betas = (const float4 *)p.beta + lane;
    const uint32_t at = i * (V * 128) + lane * 4;
    float4 *x = (float4 *)(p.x_out + at);
    element *out = (element *)p.out + at;
    float4 gamma[V], beta[V], v[V];
    struct norm_sums sums = {0.0f, 0.0f};
    struct norm_of of;

#pragma unroll
    for (int j = 0; j < V; j++) {
        gamma[j] = gammas[j * 32];
        beta[j] = betas[j * 32];
    }
    launch_wait();
    launch_next();
    if (i >= n)
        return;
#pragma unroll
    for (int j = 0; j < V; j++)
        v[j] = __ldcg(x + j * 32);
#pragma unroll
    for (int j = 0; j < V; j++)
        norm_add4(&sums, v[j]);
    of = norm_measure(sums, p.width);
#pragma unroll
    for (int j = 0; j < V; j++) {
        norm_apply4(&v[j], of, gamma[j], beta[j]);
        x[j * 32] = v[j];
        output_put4(out + j * 128, v[j]);
    }
}

#endif
