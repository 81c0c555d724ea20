/* SPDX-License-Identifier: MIT
 *
 * model_config: config.json and generation_config.json of a Marian directory, as text, into
 * model_config. Every number is checked against a range; messages name file, key, value and range.
 */
#ifndef PGPT_KERNELS_MODEL_MODEL_CONFIG_H
#define PGPT_KERNELS_MODEL_MODEL_CONFIG_H

#include "kernels/model/model.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { MODEL_CONFIG_BYTES_MAX = 1 << 20 };

/* generation == NULL: the directory has no generation_config.json; then config.json gives its keys
 * as well. Fills *config, which the caller clears with model_config_free() in any case. */
int model_config_parse(const char *config_text, size_t config_size, const char *generation,
                       size_t generation_size, struct model_config *config,
                       struct error *error) PGPT_MUST_CHECK;
void model_config_free(struct model_config *config);

#ifdef __cplusplus
}
#endif
#endif
