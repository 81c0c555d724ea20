/* SPDX-License-Identifier: MIT
 *
 * safetensors: a mapped weights file and its checked table of tensors. The header is bounded and
 * every offset, shape and type is verified before a byte of data is used (inside the file, no
 * overlap, no hole), so a hostile file gives an error and nothing else. One file: models sharded
 * over several with an index are not read. Immutable after opening; any thread may read it.
 */
#ifndef PGPT_KERNELS_MODEL_SAFETENSORS_H
#define PGPT_KERNELS_MODEL_SAFETENSORS_H

#include "kernels/model/model.h"

#ifdef __cplusplus
extern "C" {
#endif

struct safetensors; /* opaque */

struct safetensors *safetensors_open(const char *path, struct error *error) PGPT_MUST_CHECK;
/* The same checks on bytes in memory, which must outlive the result. For tests and fuzzing. */
struct safetensors *safetensors_parse(const void *data, size_t size, const char *name,
                                      struct error *error) PGPT_MUST_CHECK;
void safetensors_close(struct safetensors *file); /* NULL is allowed */

/* Looks a tensor up; false when there is none of that name. 1-D tensors have rows 1. */
bool safetensors_find(const struct safetensors *file, const char *name,
                      struct model_tensor *tensor);
size_t safetensors_count(const struct safetensors *file);
/* FNV-1a over the header and all data. */
uint64_t safetensors_hash(const struct safetensors *file);

#ifdef __cplusplus
}
#endif
#endif
