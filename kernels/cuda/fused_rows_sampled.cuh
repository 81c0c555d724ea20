/* SPDX-License-Identifier: MIT
 *
 * fused_rows_sampled: what the kernel of fused_rows.h does where rows may be sampled. All blocks
 * put a sampled row's logits into global memory and say so to the row's owner; of that block's
 * warps each row has a group, which chooses. Plain rows go as they go without, in the first warp
 * of their group. For fused_rows_kernel.cuh.
 */
#ifndef PGPT_KERNELS_CUDA_FUSED_ROWS_SAMPLED_CUH
#define PGPT_KERNELS_CUDA_FUSED_ROWS_SAMPLED_CUH

#include <stddef.h>

#include "kernels/cuda/fused_rows_choose.cuh"
#include "kernels/cuda/fused_rows_parts.cuh"

enum { ROWS_DRAW_BARRIER = 5 }; /* of the first row's group; warpgroups have 1 to 4 */

#if __CUDA_ARCH__ >= 900 && PGPT_CUDA_HOPPER

/*
 * While tokens are chosen nobody else uses o, y and `partial`: a choice works there, behind what
 * says that its logits are complete, which no warpgroup says before it has read its `partial` of
 * all rows. The next to write there is somebody who has the next x, so after all choices.
 */
template <class S> static __device__ __forceinline__ struct block_shared *draw_block(S *s, int own)
{
    constexpr int EACH = (sizeof s->o + sizeof s->y) / (S::ROWS / BLOCKS);

    static_assert(offsetof(S, y) == offsetof(S, o) + sizeof s->o, "one room");
    static_assert(sizeof(struct block_shared) <= EACH, "a row's share of it");
    return (struct block_shared *)(s->o + own * EACH);
}
template <class S>
static __device__ __forceinline__ draw_few<S::CHOOSERS> *draw_few_of(S *s, int own)
{
    constexpr int EACH = sizeof s->partial / (S::ROWS / BLOCKS);

    static_assert(sizeof(struct draw_few<S::CHOOSERS>) <= EACH, "a row's share of it");
    return (struct draw_few<S::CHOOSERS> *)((char *)s->partial + own * EACH);
}

/* One share for each warpgroup of all blocks. A barrier of the cluster follows. */
template <class S> static __device__ __forceinline__ void draws_open(S *s)
{
    if (threadIdx.x == 0)
        ring_open_shared(&s->draw.full, BLOCKS * FORMAT_PARTS);
}

/* What there is to know of rows that are sampled. A barrier follows. */
template <class S>
static __device__ __forceinline__ void draws_begin(S *s, const struct fused_rows_params &p,
                                                   int first, const struct fused_rows_place &place)
{
    const int r = threadIdx.x;

    static_assert(UNITS <= DRAW_UNITS, "a thread's share of a row");
    if (r >= place.rows)
        return;
    const struct cuda_row *row = p.rows.row + p.active[first + r];

    s->draw.sampled[r] = row->flags & CUDA_ROW_SAMPLE;
    if (r % BLOCKS != place.rank)
        return;
    s->draw.asked[r / BLOCKS] = rows_ask(p.rules, *row);
    s->draw.kept[r / BLOCKS].width = FEW_WIDTH;
}

/* Behind the last round: the warpgroup's logits are there. */
template <class S>
static __device__ __forceinline__ void logits_tell(S *s, const struct fused_rows_place &place)
{
    warpgroup_barrier(place_part(place));
    if (place_tile(place) == 0 && place.lane < BLOCKS)
        cluster_publish(&s->draw.full, place.lane);
}

/* The next token of own row `own`, from its logits (units, 32): in the group's first warp. All its
 * warps. Not inlined: the rest of the step would be short of registers. */
template <class S>
static __device__ __noinline__ int32_t row_draw(int own, const float *logits, int32_t V,
                                                struct draw_row<S::CHOOSERS> row)
{
    extern __shared__ __align__(1024) char shared[];
    S *s = (S *)shared;

    return rows_draw_run<S::CHOOSERS>(draw_block(s, own), draw_few_of(s, own), &s->draw.kept[own],
                                      ROWS_DRAW_BARRIER + own, logits, V, row);
}

/* The same, when the logits are there. The row is at `position`. */
template <class S>
static __device__ __forceinline__ int32_t row_draw_next(S *s,
                                                        const struct fused_rows_sampled_params &p,
                                                        int step, int own, int32_t position,
                                                        const struct fused_rows_place &place)
{
    constexpr int W = S::CHOOSERS;
    const int row = own * BLOCKS + place.rank, thread = here(place_thread(place)) - own * W * 32;
    const struct draw_row<W> known = rows_draw_begin<W>(s->draw.asked[own], p.rules, position,
                                                        s->min_new[row], s->max_new[row], thread);

    cluster_await(&s->draw.full, step);
    if (known.forced >= 0)
        return known.forced;
    return row_draw<S>(own, logits_of(p, row), p.rules.vocabulary, known);
}

/* The logit of the token that was chosen: of one that the rules force as it was sent, since what
 * was put may be -inf. */
template <class S>
static __device__ __forceinline__ float logit_get(const S *s,
                                                  const struct fused_rows_sampled_params &p,
                                                  int own, int row, int32_t position, int32_t token)
{
    if (token == p.rules.forced_eos && position + 1 == s->max_new[row])
        return s->special[own][0];
    if (token == p.rules.forced_bos && position == 0)
        return s->special[own][1];
    return __ldcg(logits_of(p, row) + token);
}

/* What becomes known of a sampled row's step: told when the next one has begun. */
struct rows_drawn {
    int32_t position, token, finished;
    struct logsum sums; /* of the row's exponentials */
    float logit;        /* the token's */
};

/* One warp: own row `own` has its token; all blocks learn its position when another step follows.
 */
template <class S>
static __device__ __forceinline__ void
row_pass(S *s, struct rows_drawn *drawn, const struct fused_rows_sampled_params &p, bool more,
         int own, const struct fused_rows_place &place)
{
    const int row = own * BLOCKS + place.rank, lane = here(place.lane);

    drawn->finished = drawn->token == p.rules.eos_token || drawn->position + 1 >= s->max_new[row];
    drawn->logit = logit_get(s, p, own, row, drawn->position, drawn->token);
    if (lane == 0)
        s->token[own] = drawn->token;
    __syncwarp();
    if (more)
        state_send(s, row, drawn->finished ? (int32_t)FINISHED : drawn->position + 1, lane);
}

/* Each own row gets its token, by its group of warps. */
template <class F, class S>
static __device__ __forceinline__ void rows_choose(S *s, const struct fused_rows_sampled_params &p,
                                                   int step, int first, uint32_t *phases,
                                                   const struct fused_rows_place &place)
{
    constexpr int W = S::CHOOSERS;
    const int own = here(place.warp) / W, row = own * BLOCKS + place.rank;
    const bool leads = place.warp == own * W, more = step + 1 < p.steps;
    const struct block group = {NULL, 0, 0, W, 0, ROWS_DRAW_BARRIER + own};
    struct fused_rows_place mine = place;
    struct rows_drawn drawn;
    struct row_chosen chosen = {};
    bool draws;

    if (own >= place.own)
        return;
    mine.warp = own;
    if (leads)
        letter_receive(&s->unit_box, LETTER_UNIT, phases, here(place.own) * units_bytes(p.rules),
                       place);
    drawn.position = s->state[row];
    if (s->draw.sampled[row])
        block_sync(&group); /* all have read it: the first warp will change it */
    draws = s->draw.sampled[row] && drawn.position != FINISHED;
    if (draws) {
        if (leads)
            drawn.sums = plain_sum((const float4 *)s->kept[own], product_units(p.rules.vocabulary),
                                   here(place.lane));
        drawn.token = row_draw_next(s, p, step, own, drawn.position, place);
    }
    if (!leads)
        return;
    if (draws)
        row_pass(s, &drawn, p, more, own, place);
    else
        row_choose(s, p, &chosen, more, mine);
    if (more)
        row_embed<F>(s, p, mine);
    if (!draws)
        row_tell(s, p, chosen, step, first, mine);
    else if (here(place.lane) == 0)
        call_tell_token(p.rows, p.out, s->row[row], first + row, step, p.steps, drawn.position + 1,
                        drawn.token, drawn.finished, logsum_logprob(drawn.sums, drawn.logit));
}

#endif

#endif
