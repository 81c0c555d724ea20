/* SPDX-License-Identifier: MIT */
#include "kernels/cuda/step.h"

#include "kernels/cuda/check.h"
#include "kernels/cuda/choose_plain.cuh"
#include "kernels/cuda/launch.cuh"

enum { JOIN_THREADS = 128, CHOOSE_WARPS = 4, COLLECT_THREADS = 128 };

static __global__ void step_join(struct cuda_rows rows, int32_t *collected,
                                 const struct step_join *joins, int32_t count)
{
    int i = blockIdx.x * blockDim.x + threadIdx.x;

    if (i >= count)
        return;
    rows.row[joins[i].index] = joins[i].row;
    collected[joins[i].index] = 0;
}

cudaError_t step_join_enqueue(struct cuda_rows rows, int32_t *collected,
                              const struct step_join *joins, int32_t count, cudaStream_t stream)
{
    return launch(step_join, dim3((count + JOIN_THREADS - 1) / JOIN_THREADS), JOIN_THREADS, 0,
                  false, stream, rows, collected, joins, count);
}

static __global__ void __launch_bounds__(CHOOSE_WARPS * 32)
    step_choose(struct cuda_rows rows, struct cuda_rules rules, const struct product_unit *units,
                const float *special, const int32_t *active, const int32_t *n)
{
    int i = blockIdx.x * CHOOSE_WARPS + (threadIdx.x >> 5), lane = threadIdx.x & 31;
    int count = (rules.vocabulary + PRODUCT_UNIT - 1) / PRODUCT_UNIT;
    bool mine = i < *n;
    struct plain_choice choice;
    struct cuda_row *row;
    int32_t index;
    size_t at;

    /* the rows were written a step ago */
    index = mine ? active[i] : 0;
    row = rows.row + index;
    mine = mine && !row->finished && !(row->flags & CUDA_ROW_FULL);
    launch_wait();
    launch_next();
    if (!mine)
        return;
    choice = choose_plain(rules, (const float4 *)units + (size_t)i * count, count, special[2 * i],
                          special[2 * i + 1], row->position, row->max_new, lane);
    if (lane)
        return;
    at = (size_t)index * rows.P + row->position;
    rows.tokens[at] = choice.token;
    rows.logprobs[at] = choice.logprob;
    row->token = choice.token;
    row->finished = choice.token == rules.eos_token || row->position + 1 >= row->max_new;
    row->position++;
}

cudaError_t step_choose_enqueue(struct cuda_rows rows, struct cuda_rules rules,
                                const struct product_unit *units, const float *special,
                                const int32_t *active, const int32_t *n, int32_t n_most, bool pdl,
                                cudaStream_t stream)
{
    return launch(step_choose, dim3((n_most + CHOOSE_WARPS - 1) / CHOOSE_WARPS), CHOOSE_WARPS * 32,
                  0, pdl, stream, rows, rules, units, special, active, n);
}

static __global__ void step_collect(struct cuda_rows rows, int32_t *collected,
                                    const int32_t *active, int32_t n, int32_t most,
                                    struct step_output out)
{
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    const struct cuda_row *row;
    int32_t index, from;

    if (i >= n)
        return;
    index = active[i];
    row = rows.row + index;
    from = collected[index];
    for (int j = 0; from + j < row->position && j < most; j++) {
        out.tokens[(size_t)i * most + j] = rows.tokens[(size_t)index * rows.P + from + j];
        out.logprobs[(size_t)i * most + j] = rows.logprobs[(size_t)index * rows.P + from + j];
    }
    out.position[i] = row->position;
    out.finished[i] = row->finished;
    collected[index] = row->position;
}

cudaError_t step_collect_enqueue(struct cuda_rows rows, int32_t *collected, const int32_t *active,
                                 int32_t n, int32_t most, struct step_output out,
                                 cudaStream_t stream)
{
    return launch(step_collect, dim3((n + COLLECT_THREADS - 1) / COLLECT_THREADS), COLLECT_THREADS,
                  0, false, stream, rows, collected, active, n, most, out);
}
