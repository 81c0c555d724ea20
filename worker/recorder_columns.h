/* SPDX-License-Identifier: MIT
 *
 * recorder_columns: the columns of the table job, once: name, type, where the value comes from, and
 * how a newer event merges into a row that is there. Pure functions.
 */
#ifndef PGPT_WORKER_RECORDER_COLUMNS_H
#define PGPT_WORKER_RECORDER_COLUMNS_H

#include <stdio.h>

#include "worker/pg_binary.h"
#include "worker/recorder_batch.h"

enum { RECORDER_COLUMNS = 25 };

/* The upsert of whole columns: parameter n is the array of column n - 1; returns job_id and finals.
 */
void recorder_upsert_print(FILE *out);

/* One column's array: begin, then put each row. */
void recorder_column_begin(struct pg_buffer *buffer, int column, size_t rows);
void recorder_column_put(struct pg_buffer *buffer, int column, const struct recorder_row *row);

#endif
