/* SPDX-License-Identifier: MIT */
#include "kernels/cuda/step.h"

#include "kernels/cuda/check.h"
#include "kernels/cuda/choose_plain.cuh"
#include "kernels/cuda/launch.cuh"

enum {
    BEGIN_THREADS = 128,
    CHOOSE_WARPS = 4,                /* rows a block, a warp each */
    CHOOSE_MANY_WARPS = 16,          /* a row, where there are many units */
    CHOOSE_SHARED_PLAIN = 40 * 1024, /* dynamic shared memory that needs no asking */
    COLLECT_ROWS = 4,                /* a block, a warp each */
};

static __global__ void step_begin(const __grid_constant__ struct step_begin begin)
{
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    struct step_join join;
    int32_t entry = 0;

    /* the host's memory is far away, and what lies there is older than the kernel in front */
    if (i < begin.list_count)
        entry = begin.host_lists[i];
    if (i < begin.join_count)
        join = begin.host_joins[i];
    launch_wait();
    if (i < begin.list_count)
        begin.lists[i] = entry;
    if (i < begin.join_count) {
        begin.rows.row[join.index] = join.row;
        begin.rows.collected[join.index] = 0;
    }
}

cudaError_t step_begin_enqueue(const struct step_begin *begin, bool pdl, cudaStream_t stream)
{
    const int32_t most =
        begin->list_count > begin->join_count ? begin->list_count : begin->join_count;

    return launch(step_begin, dim3((most + BEGIN_THREADS - 1) / BEGIN_THREADS), BEGIN_THREADS, 0,
                  pdl, stream, *begin);
}

static __global__ void step_split(const int32_t *n, int32_t *counts, int32_t each)
{
    const int32_t left = *n - (int32_t)threadIdx.x * each;

    counts[threadIdx.x] = left < 0 ? 0 : left < each ? left : each;
}

cudaError_t step_split_enqueue(const int32_t *n, int32_t *counts, int32_t parts, int32_t each,
                               cudaStream_t stream)
{
    return launch(step_split, dim3(1), parts, 0, false, stream, n, counts, each);
}

struct step_choose_args {
    struct cuda_rows rows;
    struct cuda_rules rules;
    const struct product_unit *units; /* (n, units) */
    const float *special;             /* (n, 2) */
    const int32_t *active, *n;
};

/* The i-th active row, or -1 where this kernel has nothing to choose. Rows were written a step ago,
 * so launch_wait() may come later. */
static __device__ int32_t step_plain_row(const struct step_choose_args &a, int i)
{
    int32_t index = i < *a.n ? a.active[i] : -1;

    if (index >= 0 && (a.rows.row[index].finished || a.rows.row[index].flags & CUDA_ROW_FULL))
        index = -1;
    return index;
}

static __global__ void __launch_bounds__(CHOOSE_WARPS * 32)
    step_choose(const __grid_constant__ struct step_choose_args a)
{
    int i = blockIdx.x * CHOOSE_WARPS + (threadIdx.x >> 5), lane = threadIdx.x & 31;
    int32_t count = product_units(a.rules.vocabulary), index = step_plain_row(a, i);
    struct plain_choice choice;

    launch_wait();
    launch_next();
    if (index < 0)
        return;
    choice = choose_plain(a.rules, (const float4 *)a.units + (size_t)i * count, count,
                          a.special[2 * i], a.special[2 * i + 1], a.rows.row[index].position,
                          a.rows.row[index].max_new, lane);
    if (lane == 0)
        plain_advance(a.rows, a.rules, index, choice);
}

/* A block a row. */
static __global__ void __launch_bounds__(CHOOSE_MANY_WARPS * 32)
    step_choose_many(const __grid_constant__ struct step_choose_args a)
{
    extern __shared__ float step_terms[]; /* (units) */
    int i = blockIdx.x;
    int32_t count = product_units(a.rules.vocabulary), index = step_plain_row(a, i);
    struct plain_choice choice;

    launch_wait();
    launch_next();
    if (index < 0)
        return;
    choice = choose_plain_block(a.rules, (const float4 *)a.units + (size_t)i * count, count,
                                step_terms, a.special[2 * i], a.special[2 * i + 1],
                                a.rows.row[index].position, a.rows.row[index].max_new);
    if (threadIdx.x == 0)
        plain_advance(a.rows, a.rules, index, choice);
}

cudaError_t step_choose_enqueue(struct cuda_rows rows, struct cuda_rules rules,
                                const struct product_unit *units, const float *special,
                                const int32_t *active, const int32_t *n, int32_t n_most, bool pdl,
                                cudaStream_t stream)
{
    struct step_choose_args args = {rows, rules, units, special, active, n};
    int32_t count = product_units(rules.vocabulary);
    size_t shared = (size_t)count * sizeof(float);

    if (count <= PLAIN_FEW)
        return launch(step_choose, dim3((n_most + CHOOSE_WARPS - 1) / CHOOSE_WARPS),
                      CHOOSE_WARPS * 32, 0, pdl, stream, args);
    if (shared > CHOOSE_SHARED_PLAIN)
        CUDA_PASS(cudaFuncSetAttribute((const void *)step_choose_many,
                                       cudaFuncAttributeMaxDynamicSharedMemorySize, (int)shared));
    return launch(step_choose_many, dim3(n_most), CHOOSE_MANY_WARPS * 32, shared, pdl, stream,
                  args);
}

/* A warp a row, a lane a token. */
static __global__ void step_collect(struct cuda_rows rows, const int32_t *active, int32_t n,
                                    int32_t steps, struct step_output out)
{
    const int i = blockIdx.x * COLLECT_ROWS + (threadIdx.x >> 5), lane = threadIdx.x & 31;
    int32_t index, from, position;

    launch_wait();
    launch_next();
    if (i >= n)
        return;
    index = active[i];
    from = rows.collected[index];
    position = rows.row[index].position;
    for (int j = lane; from + j < position && j < steps; j += 32) {
        const size_t at = (size_t)index * rows.P + from + j;

        out.tokens[(size_t)i * steps + j] = rows.tokens[at];
        out.logprobs[(size_t)i * steps + j] = rows.logprobs[at];
    }
    __syncwarp(); /* every lane has read where it begins */
    if (lane == 0) {
        out.position[i] = position;
        out.finished[i] = rows.row[index].finished;
        rows.collected[index] = position;
    }
}

cudaError_t step_collect_enqueue(struct cuda_rows rows, const int32_t *active, int32_t n,
                                 int32_t steps, struct step_output out, bool pdl,
                                 cudaStream_t stream)
{
    return launch(step_collect, dim3((n + COLLECT_ROWS - 1) / COLLECT_ROWS), COLLECT_ROWS * 32, 0,
                  pdl, stream, rows, active, n, steps, out);
}
