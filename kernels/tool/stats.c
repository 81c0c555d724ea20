/* SPDX-License-Identifier: MIT */
#include "kernels/tool/stats.h"

#include <math.h>
#include <stdlib.h>

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;

    return (x > y) - (x < y);
}

void stats_sort(double *values, size_t count)
{
    qsort(values, count, sizeof *values, by_value);
}

double stats_percentile(const double *sorted, size_t count, double share)
{
    size_t rank = (size_t)ceil(share * (double)count);

    return sorted[rank ? rank - 1 : 0];
}

double stats_median(const double *sorted, size_t count)
{
    return (sorted[(count - 1) / 2] + sorted[count / 2]) / 2;
}

double stats_round(double value, int decimals)
{
    double scale = pow(10, decimals);

    return round(value * scale) / scale;
}
