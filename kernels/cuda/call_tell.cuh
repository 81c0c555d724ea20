/* SPDX-License-Identifier: MIT
 *
 * call_tell: what a kernel that runs whole calls leaves of its rows: on the device for the next
 * call, and in memory that the host sees. One thread a row.
 */
#ifndef PGPT_KERNELS_CUDA_CALL_TELL_CUH
#define PGPT_KERNELS_CUDA_CALL_TELL_CUH

#include "kernels/cuda/rows.h"

/* Where a call ends for row `index`, the i-th of the active ones. */
static __device__ __forceinline__ void call_tell_end(const struct cuda_rows &rows,
                                                     const struct step_output &out, int32_t index,
                                                     int i, int32_t position, int32_t finished)
{
    out.position[i] = position;
    out.finished[i] = finished;
    rows.collected[index] = position;
}

/* The token that step `step` of a call of `steps` gave the row, which brings it to `position`. */
static __device__ __forceinline__ void call_tell_token(const struct cuda_rows &rows,
                                                       const struct step_output &out, int32_t index,
                                                       int i, int step, int steps, int32_t position,
                                                       int32_t token, int32_t finished,
                                                       float logprob)
{
    struct cuda_row *row = rows.row + index;
    const size_t to = (size_t)index * rows.P + position - 1, at = (size_t)i * steps + step;

    rows.tokens[to] = out.tokens[at] = token;
    rows.logprobs[to] = out.logprobs[at] = logprob;
    row->token = token;
    row->position = position;
    row->finished = finished;
    if (finished || step + 1 == steps)
        call_tell_end(rows, out, index, i, position, finished);
}

#endif
