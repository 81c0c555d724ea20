/* SPDX-License-Identifier: MIT
 *
 * product: y = x W^T + b with weights packed once, the only place of the CPU back end where
 * matrices are multiplied. Packed weights are immutable: any number of threads may read them.
 *
 * The bits of an output depend on its row of x and its row of W alone, never on M, tiles, threads
 * or the instruction set:
 *
 *   PRODUCT_F32: sum = 0; for k = 0..K-1: sum = fmaf(x[m][k], w[n][k], sum); y = sum + b[n].
 *
 *   PRODUCT_INT8: scale_w[n] = max_k |w[n][k]| / 127, q_w = rint(w * (127 / max)). A row of x is
 *   cut into two digits of 8 bits: q = rint(x * (16256 / max)) = 128 high + low with high =
 *   floor((q + 64) / 128), scale_x[m] = max / 16256; a row of zeros has scale 0 and digits 0. The
 *   sums of both digits are exact in int32 for K <= 65,536;
 *   y = fmaf(fmaf(128, sum_high, sum_low), scale_x[m] * scale_w[n], b[n]).
 *
 * Then y = activation(y), then y += add[m][n]. No b: b[n] = 0. Activations are those of math.h,
 * rint is to nearest even. One digit alone would make most of the format's error; the second costs
 * nothing where weights are waited for.
 */
#ifndef PGPT_KERNELS_CPU_PRODUCT_H
#define PGPT_KERNELS_CPU_PRODUCT_H

#include <stddef.h>
#include <stdint.h>

#include "kernels/base/error.h"
#include "kernels/cpu/threads.h"

enum product_format { PRODUCT_F32, PRODUCT_INT8 };
enum product_activation { PRODUCT_NONE, PRODUCT_RELU, PRODUCT_SWISH, PRODUCT_GELU };

struct product_weight; /* opaque */

enum { PRODUCT_K_MAX = 65536 };

/* Packs weight (N,K) row-major with bias (N) or NULL. Both may be freed afterwards. */
struct product_weight *product_pack(enum product_format format, int32_t N, int32_t K,
                                    const float *weight, const float *bias,
                                    struct error *error) PGPT_MUST_CHECK;
void product_free(struct product_weight *weight);          /* NULL is allowed */
size_t product_bytes(const struct product_weight *weight); /* resident */

/* Always 0: the rows of x are quantised piece by piece inside. */
size_t product_scratch(const struct product_weight *weight, int32_t M);

/* y (M,N) from x (M,K), both dense row-major; add (M,N) or NULL, may be y itself. scratch: not
 * used, NULL is allowed. Splits the work over the pool: rows when there are many, else output
 * columns. */
void product_run(const struct product_weight *weight, int32_t M, const float *x,
                 enum product_activation activation, const float *add, float *y, void *scratch,
                 struct threads *threads);

/* The share of `part` of the same product, by columns (all rows) or by rows: for callers that are
 * already running on every thread of a pool. The shares write disjoint parts of y. */
void product_columns(const struct product_weight *weight, int32_t M, const float *x,
                     enum product_activation activation, const float *add, float *y, int32_t part,
                     int32_t parts);

/* out (K): row n of the weight as the product sees it (int8: q * scale). For tied embeddings. */
void product_row(const struct product_weight *weight, int32_t n, float *out);

/* The path that runs here, for engine_info: "avx512_vnni", "avx2", "plain". A static string. */
const char *product_path(void);

#endif
