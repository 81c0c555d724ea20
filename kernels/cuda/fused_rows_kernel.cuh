/* SPDX-License-Identifier: MIT
 *
 * fused_rows_kernel: the kernel of fused_rows.h. Its instances for plain rows alone are
 * fused_rows.cu's, those for rows that may be sampled fused_rows_sampled.cu's.
 */
#ifndef PGPT_KERNELS_CUDA_FUSED_ROWS_KERNEL_CUH
#define PGPT_KERNELS_CUDA_FUSED_ROWS_KERNEL_CUH

#include "kernels/cuda/fused_rows_parts.cuh"
#include "kernels/cuda/fused_rows_sampled.cuh"
#include "kernels/cuda/launch.cuh"

template <class F, int NT, bool SAMPLED>
static __global__ void __launch_bounds__(THREADS, 1)
    fused_rows(const __grid_constant__ fused_rows_given<SAMPLED> p)
{
#if __CUDA_ARCH__ >= 900 && PGPT_CUDA_HOPPER
    typedef typename F::element T;
    typedef struct fused_rows_shared<T, NT, SAMPLED> S;
    extern __shared__ __align__(1024) char shared[];
    S *s = (S *)shared_here(shared);
    struct fused_rows_place at;

    at.rank = (int)cluster_rank();
    at.warp = __shfl_sync(0xffffffffu, (int)threadIdx.x >> 5, 0);
    at.lane = value_once(threadIdx.x & 31);
    const int first = (int)(blockIdx.x / BLOCKS) * p.rows_each;
    at.rows = min(p.rows_each, p.n - first);
    at.own = (at.rows - at.rank + BLOCKS - 1) / BLOCKS;

    for (int i = threadIdx.x; i < (int)(sizeof *s / 16); i += THREADS)
        ((uint4 *)s)[i] = make_uint4(0, 0, 0, 0);
    __syncthreads();
    biases_begin(s, p, at.rank);
    if (threadIdx.x == 0) {
        s->pieces = plan_make(s->plan, p, at.rank);
        s->all = s->pieces * p.steps;
    }
    if (threadIdx.x == 0) {
        mailbox_open(&s->x_box, at.rows * D * sizeof(T));
        mailbox_open(&s->o_box, at.rows * D * sizeof(T));
        mailbox_open(&s->h_box, at.rows * FFN * sizeof(T));
        mailbox_open(&s->y_box, at.own * D * 4);
        mailbox_open(&s->unit_box, at.own * units_bytes(p.rules));
        mailbox_open(&s->state_box, at.rows * 4);
    }
    if (threadIdx.x < 2 * FULLS)
        ring_open(&s->full[0][threadIdx.x]);
    if constexpr (SAMPLED)
        draws_open(s);
    cluster_sync(); /* everybody's memory is ready to be written to */
    if (threadIdx.x < 2 * fused_rows_ring<S>::SLOTS && threadIdx.x < 2 * s->all) {
        const struct fused_rows_piece none = {0, 0};

        piece_fetch(s, piece_ahead(s, none, threadIdx.x / 2), threadIdx.x % 2);
    }
    launch_wait();
    launch_next();
    rows_begin(s, p, first, at);
    if constexpr (SAMPLED)
        draws_begin(s, p, first, at);
    __syncthreads();
    begin_apart((int)blockIdx.x / BLOCKS, p.apart);
    struct fused_rows_piece next = {0, 0}; /* weights */
    uint32_t phases = 0;
    struct format_weights w[4];

    if (at.warp < at.own)
        row_embed<F>(s, p, at);
#pragma unroll 1
    for (int step = 0; step < p.steps; step++) {
        if (step)
            letter_receive(&s->state_box, LETTER_STATE, &phases, here(at.rows) * 4, at);
#pragma unroll 1
        for (int l = 0; l < p.layers; l++) {
            const struct fused_layer &layer = p.layer[l];
            const struct fused_rows_biases &bias = s->layer[l];

            /* self-attention: x -> q, k, v -> o */
            letter_receive(&s->x_box, LETTER_X, &phases, here(at.rows) * D * sizeof(T), at);
            if (place_part(at) < 3) {
                round_run<F>(s, piece_ahead(s, next, place_part(at) * TILES), at);
                head_put<T>(s, p, l, bias.qkv, at);
            }
            next = piece_ahead(s, next, 3 * TILES);
            __syncthreads();
            attend<T>(s, p.self, l, false, at);
            /* out: o -> y -> norm -> x */
            product_take<F, D, TILES>(s, w, &next, at);
            letter_receive(&s->o_box, LETTER_O, &phases, here(at.rows) * D * sizeof(T), at);
            product_run<F, D, TILES>(s, w, s->o, at);
            residual_send(s, bias.out, at);
            product_refill<D, TILES>(s, next, at);
            row_norm<T>(s, layer.self_norm, &phases, at);
            product_take<F, D, TILES>(s, w, &next, at);
            letter_receive(&s->x_box, LETTER_X, &phases, here(at.rows) * D * sizeof(T), at);
            /* cross-attention: x -> q -> o */
            product_run<F, D, TILES>(s, w, s->x, at);
            query_put<T>(s, bias.cross_q, at);
            __syncthreads();
            product_refill<D, TILES>(s, next, at);
            attend<T>(s, p.cross, l, true, at);
            product_take<F, D, TILES>(s, w, &next, at);
            letter_receive(&s->o_box, LETTER_O, &phases, here(at.rows) * D * sizeof(T), at);
            product_run<F, D, TILES>(s, w, s->o, at);
            residual_send(s, bias.cross_out, at);
            product_refill<D, TILES>(s, next, at);
            row_norm<T>(s, layer.cross_norm, &phases, at);
            product_take<F, D, HIDDEN / 16>(s, w, &next, at);
            letter_receive(&s->x_box, LETTER_X, &phases, here(at.rows) * D * sizeof(T), at);
            /* feed-forward: x -> h -> y -> norm -> x */
            product_run<F, D, HIDDEN / 16>(s, w, s->x, at);
            hidden_send<T>(s, p, bias.fc1, at);
            product_refill<D, HIDDEN / 16>(s, next, at);
            product_take<F, FFN, TILES>(s, w, &next, at);
            letter_receive(&s->h_box, LETTER_H, &phases, here(at.rows) * FFN * sizeof(T), at);
            product_run<F, FFN, TILES>(s, w, s->o, at);
            residual_send(s, bias.fc2, at);
            product_refill<FFN, TILES>(s, next, at);
            row_norm<T>(s, layer.norm, &phases, at);
        }
        /* logits: x -> units -> tokens -> x */
        letter_receive(&s->x_box, LETTER_X, &phases, here(at.rows) * D * sizeof(T), at);
        const int rounds = rounds_of(p.rules, here(at.rank));

#pragma unroll 1
        for (int round = place_part(at); round < rounds; round += FORMAT_PARTS) {
            round_run<F>(s, piece_ahead(s, next, round * TILES), at);
            units_send(s, p, round, at);
        }
        next = piece_ahead(s, next, rounds * TILES);
        if constexpr (SAMPLED) {
            logits_tell(s, at);
            rows_choose<F>(s, p, step, first, &phases, at);
        } else if (at.warp < at.own) {
            letter_receive(&s->unit_box, LETTER_UNIT, &phases, here(at.own) * units_bytes(p.rules),
                           at);
            struct row_chosen chosen = {};

            row_choose(s, p, &chosen, step + 1 < p.steps, at);
            if (step + 1 < p.steps)
                row_embed<F>(s, p, at);
            row_tell(s, p, chosen, step, first, at);
        }
    }
    /* nobody leaves while another may still write into its memory */
    cluster_sync();
#else
    (void)p;
#endif
}

/* An instance, and a block's shared memory of it. */
struct fused_rows_variant {
    const void *kernel;
    size_t shared;
};

template <class F, int NT, bool SAMPLED> static struct fused_rows_variant fused_rows_get(void)
{
    typedef struct fused_rows_shared<typename F::element, NT, SAMPLED> S;
    const struct fused_rows_variant variant = {(const void *)fused_rows<F, NT, SAMPLED>,
                                               (size_t)fused_rows_ring<S>::BYTES};

    return variant;
}

/* For clusters of up to `tiles` times 8 rows that may be sampled. */
struct fused_rows_variant fused_rows_sampled_variant(enum cuda_format format, int32_t tiles);

#endif
