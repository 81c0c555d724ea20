/* SPDX-License-Identifier: MIT
 *
 * step: the small kernels around a decode step: rows join, a plain row's token is chosen, the host
 * learns what happened. Enqueues only.
 */
#ifndef PGPT_KERNELS_CUDA_STEP_H
#define PGPT_KERNELS_CUDA_STEP_H

#include <cuda_runtime.h>

#include "kernels/cuda/product.h"
#include "kernels/cuda/rows.h"

/* One row that joins. */
struct step_join {
    struct cuda_row row;
    int32_t index; /* its place among the rows */
};

/* What changes in front of a call's steps. The host's side is memory that both see: one kernel
 * reads it, where copies would cost a call several trips to the device. */
struct step_begin {
    struct cuda_rows rows;
    const struct step_join *host_joins; /* (join_count) */
    const int32_t *host_lists;          /* (list_count) */
    int32_t *lists;                     /* (list_count) */
    int32_t join_count, list_count;
};
/* pdl: may start while the kernel before it drains. */
cudaError_t step_begin_enqueue(const struct step_begin *begin, bool pdl, cudaStream_t stream);

/* counts (parts): how many of the n active rows each part of a step has, of which part i begins at
 * row i * each. */
cudaError_t step_split_enqueue(const int32_t *n, int32_t *counts, int32_t parts, int32_t each,
                               cudaStream_t stream);

/* Chooses for rows that are not full, from the logits product's units (n, units) and special (n,2).
 */
cudaError_t step_choose_enqueue(struct cuda_rows rows, struct cuda_rules rules,
                                const struct product_unit *units, const float *special,
                                const int32_t *active, const int32_t *n, int32_t n_most, bool pdl,
                                cudaStream_t stream);

/* Behind a call's last step, of kernels that do not tell the host themselves. */
cudaError_t step_collect_enqueue(struct cuda_rows rows, const int32_t *active, int32_t n,
                                 int32_t steps, struct step_output out, bool pdl,
                                 cudaStream_t stream);

#endif
