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

/* x_out (n,K) and out (n,K): embeddings of tokens plus positions. */
template <class F>
static __global__ void __launch_bounds__(ROW_WARPS * 32) product_embed(const struct product p)
{
    typedef typename F::element element;
    const int i = blockIdx.x * ROW_WARPS + (threadIdx.x >> 5), lane = threadIdx.x & 31;
    const int K = p.weight.K;
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
#pragma unroll 4
    for (int k = lane * 4; k < K; k += 128) {
        float4 e = embedding_get4<F>(p.embedding, token, k);
        float4 v = *(const float4 *)(p.position_table + (size_t)position * K + k);

        v.x = __fadd_rn(__fmul_rn(e.x, p.embedding_factor), v.x);
        v.y = __fadd_rn(__fmul_rn(e.y, p.embedding_factor), v.y);
        v.z = __fadd_rn(__fmul_rn(e.z, p.embedding_factor), v.z);
        v.w = __fadd_rn(__fmul_rn(e.w, p.embedding_factor), v.w);
        *(float4 *)(p.x_out + (size_t)i * K + k) = v;
        output_put4((element *)p.out + (size_t)i * K + k, v);
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
