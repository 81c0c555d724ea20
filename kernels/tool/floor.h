/* SPDX-License-Identifier: MIT
 *
 * floor: the time below which no implementation of a decode step can be on this device:
 *
 *   max(bytes read / bandwidth, operations / rate) + dependent phases * cheapest barrier
 *
 * The work follows from the model and the batch; what the device can do is measured in the same
 * run, by one function a device. Main thread only.
 */
#ifndef PGPT_KERNELS_TOOL_FLOOR_H
#define PGPT_KERNELS_TOOL_FLOOR_H

#include "kernels/engine.h"
#include "kernels/model/model.h"

#ifdef __cplusplus
extern "C" {
#endif

/* One decode step of the whole batch, mean over its steps. */
struct engine_work {
    double bytes;      /* weights of decoder and output once, attention caches of every row */
    double operations; /* multiply and add count as two */
    int32_t phases;    /* that depend on one another */
};

struct engine_batch {
    int32_t rows;
    double source, target; /* positions attended to, mean over rows and steps */
};

/* compute: "fp32", "int8", ...; caches are float32 with fp32, else halves, or bytes with
 * cache_int8; cuda: where "dynamic" keeps halves instead of float32. */
void engine_work_step(const struct model_config *config, const char *compute, bool cuda,
                      bool cache_int8, const struct engine_batch *batch, struct engine_work *work);

struct engine_floor {
    double bytes_per_us;      /* reading a working set of `bytes` over and over */
    double operations_per_us; /* the best rate of a product in the compute format */
    double barrier_us; /* between two phases that depend on each other, all units taking part */
};

struct engine_floor_need {
    const char *device;  /* as in engine_options */
    const char *compute; /* "fp32", "int8", ... */
    int32_t threads;     /* CPU */
    double bytes;        /* a step's, so that caches of the device count when it fits into them */
};

/* Dispatches on the device. -1 with the reason when it has no measurement. */
int engine_floor_measure(const struct engine_floor_need *need, struct engine_floor *floor,
                         struct error *error) PGPT_MUST_CHECK;

/* One device each; the CUDA one is present when PGPT_FLOOR_CUDA is defined. */
int engine_floor_cpu(const struct engine_floor_need *need, struct engine_floor *floor,
                     struct error *error) PGPT_MUST_CHECK;
int engine_floor_cuda(const struct engine_floor_need *need, struct engine_floor *floor,
                      struct error *error) PGPT_MUST_CHECK;

double engine_floor_us(const struct engine_floor *floor, const struct engine_work *work);

#ifdef __cplusplus
}
#endif
#endif
