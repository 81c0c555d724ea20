/* SPDX-License-Identifier: MIT */
#include "kernels/tool/floor.h"

#include <string.h>

/* A decoder layer: QKV and self-attention | output and norm | query and cross-attention | output
 * and norm | first and | second half of the feed-forward; at the end logits | the choice. */
enum { PHASES_LAYER = 6, PHASES_END = 2 };

static double float_bytes(const char *compute, bool cuda)
{
    bool half = !strcmp(compute, "fp16") || !strcmp(compute, "bf16");

    /* "dynamic" keeps embedding and output in the device's float format */
    return half || (cuda && !strcmp(compute, "dynamic")) ? 2 : 4;
}

void engine_work_step(const struct model_config *config, const char *compute, bool cuda,
                      bool cache_int8, const struct engine_batch *batch, struct engine_work *work)
{
    double D = config->d_model, F = config->decoder_ffn, V = config->vocabulary;
    double L = config->decoder_layers, rows = batch->rows;
    bool int8 = !strcmp(compute, "int8"), dynamic = !strcmp(compute, "dynamic");
    double layer = 6 * D * D + 2 * D * F; /* q k v o; q o of the cross-attention; fc1 fc2 */
    double attended = batch->source + batch->target;
    /* int8: a scale of 2 bytes for 32 numbers */
    double cache_number = cache_int8 ? 1.0625 : !strcmp(compute, "fp32") ? 4 : 2;

    work->bytes = L * layer * (int8 || dynamic ? 1 : float_bytes(compute, cuda)) +
                  V * D * (int8 ? 1 : float_bytes(compute, cuda)) +
                  rows * L * attended * 2 * D * cache_number;
    work->operations = 2 * rows * (L * layer + V * D) + 4 * rows * L * attended * D;
    work->phases = config->decoder_layers * PHASES_LAYER + PHASES_END;
}

int engine_floor_measure(const struct engine_floor_need *need, struct engine_floor *floor,
                         struct error *error)
{
    if (!strcmp(need->device, "cpu"))
        return engine_floor_cpu(need, floor, error);
#ifdef PGPT_FLOOR_CUDA
    if (!strncmp(need->device, "cuda", 4))
        return engine_floor_cuda(need, floor, error);
#endif
    return error_set(error, "%.64s: its floor is not measured", need->device);
}

double engine_floor_us(const struct engine_floor *floor, const struct engine_work *work)
{
    double bytes_us = work->bytes / floor->bytes_per_us;
    double operations_us = work->operations / floor->operations_per_us;

    return (bytes_us > operations_us ? bytes_us : operations_us) + work->phases * floor->barrier_us;
}
