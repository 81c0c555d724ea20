/* SPDX-License-Identifier: MIT
 *
 * fused_parts: what a block of the kernel of fused.h does with whole rows: the beginning of a
 * launch, norms and embeddings, summaries of logits and the choice of tokens. For fused.cu alone.
 */
#ifndef PGPT_KERNELS_CUDA_FUSED_PARTS_CUH
#define PGPT_KERNELS_CUDA_FUSED_PARTS_CUH

#include "kernels/cuda/call_tell.cuh"
#include "kernels/cuda/choose_plain.cuh"
#include "kernels/cuda/fused_product.cuh"
#include "kernels/cuda/layer_norm.cuh"

enum {
    DRAW_BARRIER = 2,            /* 1 is workers_sync()'s */
    UNITS_ROUND = SUM_TILES / 2, /* of logits, that the block has sums of at once */
};

#if __CUDA_ARCH__ >= 900 && PGPT_CUDA_HOPPER

/* A row alone in its cluster is worked on by all warps alike, each of which keeps what its products
 * will read of it, its part of the inputs: then nobody needs to wait for another. Of several, each
 * warp has one, and a barrier follows. */
static __device__ __forceinline__ bool rows_alone(const struct fused_place &at)
{
    return at.alone;
}

/* Inputs j * 128 + 4 lane .. of a row into x; the block's own into x_own too. */
template <class S>
static __device__ __forceinline__ void row_put4(S *s, int row, int j, const float4 &v,
                                                const struct fused_place &at)
{
    const int k = j * 128 + at.lane * 4, own = k - at.rank * S::COLUMNS;

    if (own >= 0 && own < S::COLUMNS)
        *(float4 *)&s->x_own[row][own] = v;
    *(uint2 *)(s->x + row * X_STRIDE + k * 2) = elements4<typename S::element>(v);
}

/* What a row of y is normed by; v: its values, in lanes as above. */
template <class S>
static __device__ __forceinline__ struct norm_of y_measure(const S *s, int row, float4 (&v)[4],
                                                           int lane)
{
    struct norm_sums sums = {0.0f, 0.0f};

#pragma unroll
    for (int j = 0; j < 4; j++) {
        v[j] = *(const float4 *)&s->y[row][j * 128 + lane * 4];
        norm_add4(&sums, v[j]);
    }
    return norm_measure(sums, D);
}

/* y, when it has come, normed into x. */
template <class S>
static __device__ __forceinline__ void
rows_norm(S *s, const struct fused_params &p, const float *gamma, const float *beta,
          const struct fused_place &at, struct fused_letters *l)
{
    float4 v[4];

    letter_receive(s, p, LETTER_Y, at, l);
    if (rows_alone(at)) {
        const int k = at.part * 128 + at.lane * 4;
        float4 own = *(const float4 *)&s->y[0][k];
        const struct norm_of of = y_measure(s, 0, v, at.lane);

        norm_apply4(&own, of, *(const float4 *)(gamma + k), *(const float4 *)(beta + k));
        row_put4(s, 0, at.part, own, at);
        __syncwarp();
        return;
    }
    if (at.warp < at.rows) {
        const struct norm_of of = y_measure(s, at.warp, v, at.lane);

#pragma unroll
        for (int j = 0; j < 4; j++) {
            const int k = j * 128 + at.lane * 4;

            norm_apply4(&v[j], of, *(const float4 *)(gamma + k), *(const float4 *)(beta + k));
            row_put4(s, at.warp, j, v[j], at);
        }
    }
    workers_sync();
}

/* A lane's share of a position's row, as far as the warp embeds it: where a row is alone, v[0]
 * alone.
 */
struct embed_place {
    float4 v[4];
};
static __device__ __forceinline__ struct embed_place
embed_ahead(const struct fused_params &p, int32_t position, const struct fused_place &at)
{
    const float *from = p.positions + (size_t)position * D + at.lane * 4;
    struct embed_place place = {}; /* or the old ones would be kept */

    if (rows_alone(at)) {
        place.v[0] = *(const float4 *)(from + at.part * 128);
        return place;
    }
#pragma unroll
    for (int j = 0; j < 4; j++)
        place.v[j] = *(const float4 *)(from + j * 128);
    return place;
}

template <class F>
static __device__ __forceinline__ float4 embed_get4(const struct fused_params &p, int32_t token,
                                                    const float4 &q, int k)
{
    const float4 e = embedding_plain4<F>(p.embedding, token, k);

    return make_float4(__fadd_rn(__fmul_rn(e.x, p.embedding_factor), q.x),
                       __fadd_rn(__fmul_rn(e.y, p.embedding_factor), q.y),
                       __fadd_rn(__fmul_rn(e.z, p.embedding_factor), q.z),
                       __fadd_rn(__fmul_rn(e.w, p.embedding_factor), q.w));
}

/* The warp's row, of which it knows the token, into x. */
template <class F, class S>
static __device__ __forceinline__ void row_embed(S *s, const struct fused_params &p, int32_t token,
                                                 const struct embed_place &place,
                                                 const struct fused_place &at)
{
    float4 v[4];

    if (rows_alone(at)) {
        row_put4(s, 0, at.part, embed_get4<F>(p, token, place.v[0], at.part * 128 + at.lane * 4),
                 at);
        return;
    }
#pragma unroll
    for (int j = 0; j < 4; j++)
        v[j] = embed_get4<F>(p, token, place.v[j], j * 128 + at.lane * 4);
#pragma unroll
    for (int j = 0; j < 4; j++)
        row_put4(s, at.warp, j, v[j], at);
}

/* The position that the warp's row will be at when it has its next token. What becomes of a row
 * that ends with it does not matter. */
template <class S>
static __device__ __forceinline__ int32_t row_next(const S *s, const struct fused_place &at)
{
    const int row = rows_alone(at) ? 0 : min(at.warp, at.rows - 1);

    return max(min(s->state[at.now][row].position + 1, s->max_new[row] - 1), 0);
}

/* One thread a row: what is known of it. */
template <class S>
static __device__ __forceinline__ void rows_begin(S *s, const struct fused_params &p,
                                                  const struct fused_place &at)
{
    const int r = threadIdx.x;

    if (r >= at.rows)
        return;
    s->row[r] = p.active[at.row0 + r];
    const struct cuda_row *row = p.rows.row + s->row[r];

    s->state[0][r].token = row->token;
    s->state[0][r].position = row->position;
    s->state[0][r].finished = row->finished;
    s->min_new[r] = row->min_new;
    s->max_new[r] = row->max_new;
    s->source_len[r] = row->source_len;
    s->cross[r] = row->cross;
    s->beam[r] = row->flags & CUDA_ROW_BEAM;
}

/* What this block adds to its logits. */
template <class S>
static __device__ __forceinline__ void units_begin(S *s, const struct fused_params &p, int rank)
{
    for (int i = threadIdx.x; i < UNITS / S::BLOCKS * PRODUCT_UNIT; i += THREADS) {
        const int own = i / PRODUCT_UNIT, column = i % PRODUCT_UNIT;
        const int c = (rank + own * S::BLOCKS) * PRODUCT_UNIT + column;
        const bool in = c < p.rules.vocabulary;

        s->unit_bias[own][column] = in ? p.output.bias[c] : -INFINITY;
        s->unit_rules[own][column] = in ? p.rules.mask[c] : 0.0f;
    }
}

/* The logit of a token that the rules may force (which 0: EOS, 1: BOS), out of a unit whose columns
 * four lanes share: one has it, all four send it. Whole warps call. */
template <class S>
static __device__ __forceinline__ void special_send(S *s, int which, int token, int row, int q,
                                                    const float (&v)[8],
                                                    const struct fused_place &at)
{
    const int column = token % PRODUCT_UNIT, place = (column >> 3) * 2 + (column & 1);
    float logit = v[0];

#pragma unroll
    for (int t = 1; t < 8; t++)
        logit = t == place ? v[t] : logit;
    logit = __shfl_sync(0xffffffffu, logit, (column & 7) >> 1, 4);
    if (row >= at.rows)
        return;
#pragma unroll
    for (int r = 0; r < S::BLOCKS / 4; r++)
        cluster_send4(&s->special[row][which], &s->box[LETTER_UNIT], q * (S::BLOCKS / 4) + r,
                      __float_as_uint(logit));
}

/* Lane q's 8 logits of the i-th row's unit: what a step leaves of them beside the summary. */
static __device__ __forceinline__ void unit_keep(const struct fused_params &p, int i, int unit,
                                                 int q, const float (&v)[8])
{
#pragma unroll
    for (int t = 0; t < 8; t++) {
        const int c = unit * PRODUCT_UNIT + 8 * (t >> 1) + 2 * q + (t & 1);

        if (p.logits && c < p.rules.vocabulary)
            p.logits[(size_t)i * p.rules.vocabulary + c] = v[t];
        if (c == p.rules.forced_eos)
            p.special[2 * i] = v[t];
        if (c == p.rules.forced_bos)
            p.special[2 * i + 1] = v[t];
    }
}

/* Which block chooses for a row that may be sampled; -1: which row this block chooses for. */
template <class S> static __device__ __forceinline__ int row_chooser(int row)
{
    return row * (S::BLOCKS / ROWS);
}
template <class S>
static __device__ __forceinline__ int row_chosen_here(const struct fused_place &at)
{
    constexpr int EACH = S::BLOCKS / ROWS;

    return at.rank % EACH == 0 && at.rank / EACH < at.rows ? at.rank / EACH : -1;
}

/* FUSED_SAMPLED: this block's units of logits, its first-th and more, six at most, of each row to
 * whoever chooses for it: eight lanes a unit. */
template <class S>
static __device__ __forceinline__ void logits_send(S *s, const struct fused_params &p, int first,
                                                   const struct fused_place &at)
{
    constexpr int LANES = PRODUCT_UNIT / 4;
    const int units = product_units(p.rules.vocabulary);

#pragma unroll 1
    for (int i = at.thread / LANES; i < at.rows * UNITS_ROUND; i += WORKERS / LANES) {
        const int row = i / UNITS_ROUND, u = i % UNITS_ROUND, c = at.lane % LANES * 4;
        const int unit = at.rank + (first + u) * S::BLOCKS;

        if (unit >= units)
            continue;
        const float4 v = partial_get4(s, row, u * PRODUCT_UNIT + c, &s->unit_bias[first + u][c]);

        cluster_send16(&s->logits[unit * PRODUCT_UNIT + c], &s->box[LETTER_LOGITS],
                       row_chooser<S>(row),
                       make_uint4(__float_as_uint(v.x), __float_as_uint(v.y), __float_as_uint(v.z),
                                  __float_as_uint(v.w)));
    }
}

/* Units of logits of this block, its first-th and more, six at most, a warp each: summaries to
 * every block, or into memory; or the logits to whoever chooses for the row. */
template <enum fused_end END, class S>
static __device__ __forceinline__ void units_send(S *s, const struct fused_params &p, int first,
                                                  const struct fused_place &at)
{
    const int group = at.lane >> 2, row = min(group, (int)S::ROOM - 1), q = at.lane & 3;
    const int own = first + at.warp;
    const int units = product_units(p.rules.vocabulary), unit = at.rank + own * S::BLOCKS;
    alignas(16) float v[8], add[8];
    float4 summary;

    if (at.warp >= SUM_TILES / 2 || unit >= units)
        return;
#pragma unroll
    for (int t = 0; t < 8; t += 2) {
        const int column = 4 * t + 2 * q;
        const float2 bias = *(const float2 *)&s->unit_bias[own][column];
        float2 sum[FORMAT_PARTS];

#pragma unroll
        for (int i = 0; i < FORMAT_PARTS; i++)
            sum[i] = *(const float2 *)&s->partial[i][row][at.warp * PRODUCT_UNIT + column];
        v[t] = __fadd_rn(((sum[0].x + sum[1].x) + sum[2].x) + sum[3].x, bias.x);
        v[t + 1] = __fadd_rn(((sum[0].y + sum[1].y) + sum[2].y) + sum[3].y, bias.y);
        *(float2 *)&add[t] = *(const float2 *)&s->unit_rules[own][column];
    }
    if (END == FUSED_STEP) {
        if (group < at.rows)
            unit_keep(p, at.row0 + row, unit, q, v);
    } else {
        if (p.rules.forced_eos >= 0 && p.rules.forced_eos / PRODUCT_UNIT == unit)
            special_send(s, 0, p.rules.forced_eos, group, q, v, at);
        if (p.rules.forced_bos >= 0 && p.rules.forced_bos / PRODUCT_UNIT == unit)
            special_send(s, 1, p.rules.forced_bos, group, q, v, at);
    }
    summary =
        unit_summary(p.rules, unit, q, s->state[at.now][row].position < s->min_new[row], v, add);
    if (group >= at.rows)
        return;
    if constexpr (END == FUSED_STEP) {
        if (q == 0)
            *(float4 *)(p.units + (size_t)(at.row0 + row) * units + unit) = summary;
    } else {
#pragma unroll
        for (int r = 0; r < S::BLOCKS / 4; r++)
            cluster_send16(&s->unit[row][unit], &s->box[LETTER_UNIT], q * (S::BLOCKS / 4) + r,
                           make_uint4(__float_as_uint(summary.x), __float_as_uint(summary.y),
                                      __float_as_uint(summary.z), __float_as_uint(summary.w)));
    }
}

/* What units_send() does, of a row that is alone: a lane a column. */
template <class S>
static __device__ __forceinline__ float unit_alone(const S *s, int own,
                                                   const struct fused_place &at)
{
    const float *sum = &s->partial[0][0][at.warp * PRODUCT_UNIT + at.lane];
    constexpr int PART = S::SUMS * PARTIAL_STRIDE;

    return __fadd_rn(((sum[0] + sum[PART]) + sum[2 * PART]) + sum[3 * PART],
                     s->unit_bias[own][at.lane]);
}

/* A token's logit, that the rules may force, to every block; a lane has it. */
template <class S>
static __device__ __forceinline__ void special_alone(S *s, int which, int32_t token, int unit,
                                                     float v, const struct fused_place &at)
{
    if (token < 0 || token / PRODUCT_UNIT != unit)
        return;
    v = __shfl_sync(0xffffffffu, v, token % PRODUCT_UNIT);
    if (at.lane < S::BLOCKS)
        cluster_send4(&s->special[0][which], &s->box[LETTER_UNIT], at.lane, __float_as_uint(v));
}

template <class S>
static __device__ __forceinline__ void summary_send_alone(S *s, const struct fused_params &p,
                                                          int own, int unit, float v,
                                                          const struct fused_place &at)
{
    const int32_t column = unit * PRODUCT_UNIT + at.lane;
    const bool no_eos = s->state[at.now][0].position < s->min_new[0];
    const float may =
        no_eos && column == p.rules.eos_token ? -INFINITY : v + s->unit_rules[own][at.lane];
    const float most = plain_value(__reduce_max_sync(0xffffffffu, plain_key(v)));
    const struct plain_best best = plain_best_warp({may, column});
    const float e = logsum_exp(v - logsum_base(most));
    float sum = 0.0f;

    /* the order of logsum_unit() */
#pragma unroll
    for (int i = 0; i < 8; i++)
        sum =
            __fadd_rn(sum, __shfl_sync(0xffffffffu, e, 8 * (i >> 1) + 2 * (at.lane & 3) + (i & 1)));
    sum = __fadd_rn(sum, __shfl_xor_sync(0xffffffffu, sum, 1));
    sum = __fadd_rn(sum, __shfl_xor_sync(0xffffffffu, sum, 2));
    if (at.lane < S::BLOCKS)
        cluster_send16(&s->unit[0][unit], &s->box[LETTER_UNIT], at.lane,
                       make_uint4(__float_as_uint(most), __float_as_uint(sum),
                                  __float_as_uint(best.logit), (uint32_t)best.token));
}

template <class S>
static __device__ __forceinline__ void units_send_alone(S *s, const struct fused_params &p,
                                                        int first, const struct fused_place &at)
{
    const int own = first + at.warp, unit = at.rank + own * S::BLOCKS;

    if (at.warp >= SUM_TILES / 2 || unit >= product_units(p.rules.vocabulary))
        return;
    const float v = unit_alone(s, own, at);

    special_alone(s, 0, p.rules.forced_eos, unit, v, at);
    special_alone(s, 1, p.rules.forced_bos, unit, v, at);
    summary_send_alone(s, p, own, unit, v, at);
}

/* A row behind the token that was chosen. */
template <class S>
static __device__ __forceinline__ struct fused_row
row_after(const S *s, const struct fused_params &p, int row, struct fused_row before, int32_t token)
{
    const int32_t position = before.position + 1;
    struct fused_row next = {token, position,
                             token == p.rules.eos_token || position >= s->max_new[row]};

    return before.finished ? before : next;
}

/* What there is to know of the row that this block chooses for, if there is one. A barrier follows.
 */
template <class S>
static __device__ __forceinline__ void row_ask(S *s, const struct fused_params &p,
                                               const struct fused_place &at)
{
    const int row = row_chosen_here<S>(at);

    static_assert(UNITS * PRODUCT_UNIT <= DRAW_VOCABULARY, "a thread's share of a row");
    if (row < 0)
        return;
    draw_ask(&s->draw.asked, p.rules, p.rows.row + p.active[at.row0 + row], p.steps);
    if (threadIdx.x == 0)
        s->draw.kept.width = FEW_WIDTH;
}

/* One thread of the block that chooses for a row: its token is known. */
template <class S>
static __device__ __forceinline__ void row_pass(S *s, const struct fused_row &next, bool news,
                                                bool full, float logit)
{
    s->told = {next, news, full, logit};
    ring_release(&s->told_full, 1);
}

/* One warp: max and sum of a row of logits, eight units at a time. */
static __device__ __forceinline__ struct logsum row_sum(const float *logits, struct logsum *sums,
                                                        int units, int lane)
{
#pragma unroll 1
    for (int first = 0; first < units; first += 8) {
        const int unit = first + (lane >> 2);
        float v[8];

#pragma unroll
        for (int t = 0; t < 8; t += 2)
            *(float2 *)&v[t] = *(const float2 *)(logits + min(unit, units - 1) * PRODUCT_UNIT +
                                                 4 * t + 2 * (lane & 3));
        const struct logsum sum = logsum_unit(v);

        if ((lane & 3) == 0 && unit < units)
            sums[unit] = sum;
    }
    __syncwarp();
    return logsum_units(sums, units, lane);
}

/* The same warp, first, if that row had ended before the call. */
template <class S>
static __device__ __forceinline__ void ended_tell(const S *s, const struct fused_params &p,
                                                  const struct fused_place &at)
{
    const int row = row_chosen_here<S>(at);

    if (row >= 0 && at.lane == 0 && s->state[0][row].finished)
        call_tell_end(p.rows, p.out, s->row[row], at.row0 + row, s->state[0][row].position, 1);
}

/* A warp that does nothing else: tells the world of the row that this block chooses for, if there
 * is one. */
template <enum fused_end END, class S>
static __device__ __forceinline__ void rows_tell(S *s, const struct fused_params &p,
                                                 const struct fused_place &at)
{
    const int row = row_chosen_here<S>(at), units = product_units(p.rules.vocabulary);

    if (row < 0)
        return;
#pragma unroll 1
    for (int step = 0; step < p.steps; step++) {
        ring_wait(&s->told_full, step);
        const struct fused_told told = s->told;

        if (told.news) {
            const struct logsum sum = END == FUSED_SAMPLED
                                          ? row_sum(s->logits, s->sums, units, at.lane)
                                          : plain_sum(s->unit[row], units, at.lane);

            if (at.lane == 0)
                call_tell_token(p.rows, p.out, s->row[row], at.row0 + row, step, p.steps,
                                told.row.position, told.row.token, told.row.finished,
                                told.full ? logsum_logprob(sum, told.logit)
                                          : told.logit - (sum.max + logf(sum.sum)));
        }
        __syncwarp();
        if (at.lane == 0)
            ring_release(&s->told_read, 1);
    }
}

/* The row that this block chooses for, if there is one: its token to every block. All workers. */
template <class S>
static __device__ __forceinline__ void row_draw(S *s, const struct fused_params &p, int32_t step,
                                                const struct fused_place &at,
                                                struct fused_letters *l)
{
    const int row = row_chosen_here<S>(at);

    static_assert(S::ROOM == FUSED_ROWS && sizeof(struct draw_scratch) <= sizeof s->partial,
                  "the choice works there");
    static_assert(sizeof s->y >= UNITS * PRODUCT_UNIT * 4, "scores of the long way");
    if (row < 0)
        return;
    const struct fused_row before = s->state[at.now][row];
    const struct draw_row<DRAW_WARPS> known =
        draw_begin(&s->draw.asked, p.rules, step, before.position, s->min_new[row], s->max_new[row],
                   at.thread);
    int32_t token = before.token;

    /* The letter says that this block's share of the one row was read; the choice works where the
     * other rows' sums lie, too. */
    workers_sync();
    letter_receive(s, p, LETTER_LOGITS, at, l);
    if (!before.finished)
        token = draw_run((struct draw_scratch *)&s->partial, &s->draw.kept, DRAW_BARRIER, s->logits,
                         &s->y[0][0], p.rules, &s->draw.asked, known);
    if (at.warp)
        return;
    if (at.lane < S::BLOCKS)
        cluster_send4(&s->token[row], &s->box[LETTER_TOKEN], at.lane, (uint32_t)token);
    if (at.lane == 0)
        row_pass(s, row_after(s, p, row, before, token), !before.finished, known.sample,
                 s->logits[token]);
}

/* The warp's row behind the token that some block drew. */
template <class S>
static __device__ __forceinline__ struct fused_row
row_drawn(S *s, const struct fused_params &p, const struct fused_place &at, struct fused_letters *l)
{
    const int row = rows_alone(at) ? 0 : at.warp;

    letter_receive(s, p, LETTER_TOKEN, at, l);
    const struct fused_row next = row_after(s, p, row, s->state[at.now][row], s->token[row]);

    if (at.lane == 0)
        s->state[at.now ^ 1][row] = next;
    return next;
}

/* The warp's row after its next token. */
template <class S>
static __device__ __forceinline__ struct fused_row row_choose(S *s, const struct fused_params &p,
                                                              const struct fused_place &at)
{
    const int row = rows_alone(at) ? 0 : at.warp;
    const struct fused_row before = s->state[at.now][row];
    struct fused_row next = before;
    float logit = 0.0f;

    if (!before.finished) {
        struct plain_units look;
        const struct plain_best best =
            plain_look(&look, s->unit[row], product_units(p.rules.vocabulary), at.lane);

        next = row_after(s, p, row, before,
                         plain_token(p.rules, best, s->special[row][0], s->special[row][1],
                                     before.position, s->max_new[row], &logit));
    }
    if (at.lane == 0) {
        s->state[at.now ^ 1][row] = next;
        if (at.warp == row && row_chosen_here<S>(at) == row)
            row_pass(s, next, !before.finished, false, logit);
    }
    return next;
}

#endif

#endif
