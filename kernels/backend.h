/* SPDX-License-Identifier: MIT
 *
 * backend: what a device implements. engine.c checks requests and keeps the table of slots; a back
 * end owns weights in its own layout, caches, rows and the whole step (token choice included), so
 * that it may fuse everything into one kernel. One table a device; no optional entries.
 */
#ifndef PGPT_KERNELS_BACKEND_H
#define PGPT_KERNELS_BACKEND_H

#include "kernels/engine.h"
#include "kernels/model/model.h"

#ifdef __cplusplus
extern "C" {
#endif

struct backend; /* opaque, each device defines its own */

/* Looks inside the model, for `verify` and tests: teacher-forced, one sequence, apart from the
 * slots and at rest (no slot is occupied). Outputs that are NULL are not wanted. */
struct backend_trace {
    const int32_t *source; /* (source_len) */
    int32_t source_len;
    const int32_t *prefix; /* (prefix_len) decoder input, the start token first */
    int32_t prefix_len;
    const struct engine_request *warp; /* its sampling fields; needed for probabilities only */
    float *encoder;                    /* (source_len, D) the encoder's output */
    float *logits;                     /* (prefix_len, V) logits_bias included, unprocessed */
    float *probabilities;              /* (V) after the whole prefix: what sampling draws from */
};

struct backend_ops {
    const char *name; /* "cpu", "cuda" */
    /* Fills limits->max_rows/max_source/max_new and info from options (0 = default). The model is
     * only read during open: a back end copies or packs what it needs. */
    struct backend *(*open)(const struct model *model, const struct engine_options *options,
                            struct engine_limits *limits, struct engine_info *info,
                            struct error *error);
    void (*close)(struct backend *backend);
    int32_t (*free_rows)(const struct backend *backend);
    /* slots[i] is chosen by engine.c (0..max_rows-1, unused). Returns how many were admitted. */
    int32_t (*admit)(struct backend *backend, int32_t n, const struct engine_request *requests,
                     const int32_t *slots, struct error *error);
    int (*step)(struct backend *backend, int32_t k, struct engine_output *out, struct error *error);
    void (*stop_sequence)(struct backend *backend, int32_t slot, int32_t sequence);
    void (*release)(struct backend *backend, int32_t slot);
    int (*trace)(struct backend *backend, const struct backend_trace *trace, struct error *error);
};

extern const struct backend_ops backend_cpu;
extern const struct backend_ops backend_cuda; /* present when built with CUDA */

/* backend_ops.trace of an open engine, after the same checks as a request. */
int engine_trace(struct engine *engine, const struct backend_trace *trace,
                 struct error *error) PGPT_MUST_CHECK;
const struct model_config *engine_config(const struct engine *engine);

#ifdef __cplusplus
}
#endif
#endif
