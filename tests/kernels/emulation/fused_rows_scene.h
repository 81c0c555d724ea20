/* SPDX-License-Identifier: MIT
 *
 * fused_rows_scene: fused_scene.h for the kernel of some hundred rows, and plain rows run by it.
 */
#ifndef PGPT_TESTS_KERNELS_EMULATION_FUSED_ROWS_SCENE_H
#define PGPT_TESTS_KERNELS_EMULATION_FUSED_ROWS_SCENE_H

#include "kernels/cuda/fused_rows_kernel.cuh"

typedef struct fused_rows_params scene_params;
typedef struct fused_layer scene_layer;
typedef struct fused_weight scene_weight;

static void scene_rows(scene_params *p, int n, int each)
{
    p->n = n;
    p->rows_each = each;
}

#include "tests/kernels/emulation/fused_scene.h"

template <class F, int NT> static void run(struct outcome *out, int first, int n, int each)
{
    scene_run<typename F::element>(out, first, n, each, [](const scene_params &p, int clusters) {
        simt_launch(
            {BLOCKS * clusters, 1, 1}, THREADS, [&] { fused_rows<F, NT, false>(p); }, BLOCKS);
    });
}

#endif
