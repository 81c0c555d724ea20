/* SPDX-License-Identifier: MIT
 *
 * config: the worker's settings. One table (config_table.h) defines name, type, default, range and
 * help. Sources, later ones win: defaults, the file (`name = value` lines), the environment
 * (PGPT_...). `kafka.X = value` lines and PGPT_KAFKA_X pass to librdkafka as `X`. Immutable after
 * config_load(): any thread may read it.
 */
#ifndef PGPT_WORKER_CONFIG_H
#define PGPT_WORKER_CONFIG_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "kernels/base/error.h"

struct config_kafka_property {
    char *name; /* without the prefix */
    char *value;
};

struct config {
#define STRING(field, name, value, secret, help) char *field;
#define INT(field, name, value, min, max, help) int64_t field;
#define BOOL(field, name, value, help) bool field;
#define REAL(field, name, value, min, max, help) double field;
#define CHOICE(field, name, value, choices, help) char *field;
#include "worker/config_table.h"
    struct config_kafka_property *kafka; /* (kafka_count) */
    size_t kafka_count;
};

/* path NULL = no file. Every wrong line is reported on `problems` (file:line: setting: what, range,
 * remedy); returns NULL when there was one. */
struct config *config_load(const char *path, FILE *problems) PGPT_MUST_CHECK;
void config_free(struct config *config);

void config_print(const struct config *config, FILE *out); /* effective, secrets masked */
void config_print_sample(FILE *out);                       /* the documented sample file */

#endif
