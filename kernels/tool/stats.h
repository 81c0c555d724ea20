/* SPDX-License-Identifier: MIT
 *
 * stats: order statistics of a few measured values. Pure.
 */
#ifndef PGPT_KERNELS_TOOL_STATS_H
#define PGPT_KERNELS_TOOL_STATS_H

#include <stddef.h>

void stats_sort(double *values, size_t count);
/* Of sorted values, count >= 1; share 0..1, the nearest rank above. */
double stats_percentile(const double *sorted, size_t count, double share);
double stats_median(const double *sorted, size_t count);
/* Rounded to so many decimals: what a report shows of a time. */
double stats_round(double value, int decimals);

#endif
