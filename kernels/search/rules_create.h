/* SPDX-License-Identifier: MIT
 *
 * rules_create: the tables of rules.h from a model's configuration, in one block that the caller
 * frees. The lists beside the bitmaps are for back ends that would rather walk them.
 */
#ifndef PGPT_KERNELS_SEARCH_RULES_CREATE_H
#define PGPT_KERNELS_SEARCH_RULES_CREATE_H

#include <stddef.h>

#include "kernels/base/error.h"
#include "kernels/model/model.h"
#include "kernels/search/rules.h"

#ifdef __cplusplus
extern "C" {
#endif

struct rules_tables {
    struct rules rules;
    const int32_t *banned_list; /* the tokens of rules.banned, ascending */
    int32_t banned_count;
    int32_t phrase_total; /* words of all phrases */
    size_t bytes;
};

struct rules_tables *rules_create(const struct model_config *config,
                                  struct error *error) PGPT_MUST_CHECK;
void rules_destroy(struct rules_tables *tables); /* NULL is allowed */

#ifdef __cplusplus
}
#endif
#endif
