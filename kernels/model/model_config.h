/* SPDX-License-Identifier: MIT
 *
 * model_config: reads config.json and generation_config.json of a Marian directory into
 * struct model_config. Every value is range-checked; an error names file, key, value and range.
 */
#ifndef PGPT_KERNELS_MODEL_MODEL_CONFIG_H
#define PGPT_KERNELS_MODEL_MODEL_CONFIG_H

#include "kernels/model/model.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Fills config; *hash takes in the bytes of both files. Free with model_config_free(). */
int model_config_read(const char *directory, struct model_config *config, uint64_t *hash,
                      struct error *error) PGPT_MUST_CHECK;
/* The same from JSON text; generation may be NULL. For tests and fuzzing. */
int model_config_parse(const char *config_json, size_t config_size, const char *generation_json,
                       size_t generation_size, struct model_config *config,
                       struct error *error) PGPT_MUST_CHECK;
void model_config_free(struct model_config *config);

#ifdef __cplusplus
}
#endif
#endif
