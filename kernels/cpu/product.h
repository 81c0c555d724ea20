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
 *   PRODUCT_INT8: K is cut into groups of 64, the last may be shorter. Each group of a row of W and
 *   of a row of x has a scale and a zero point of its own, and 8 bits a value. With v being
 *   w[n][k] * balance[k] or x[m][k] * (1 / balance[k]):
 *     low = min(0, min_k v), range = max(0, max_k v) - low, factor = 255 / range,
 *     scale = range / 255, zero = rint(-low * factor), q = min(255, rint(v * factor) + zero);
 *     range < 1e-30: scale, zero and all q are 0.
 *   d_g = sum_k (q_x - zero_x) (q_w - zero_w) is exact in int32, and in float32 (below 2^24);
 *   sum = 0; for g = 0..: sum = fmaf((float)d_g, scale_x[m][g] * scale_w[n][g], sum); y = sum +
 * b[n].
 *
 * Then y = activation(y), then y += add[m][n]. No b: b[n] = 0. Activations are those of math.h,
 * rint is to nearest even.
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

/* Packs weight (N,K) row-major with bias (N) or NULL. reach (K), or NULL: how far each input goes,
 * roughly; int8 then balances inputs against weights, so that neither side of a group is ruled by
 * one value: balance[k] = sqrt(reach[k] / sqrt(mean_n w[n][k]^2)), else 1. All three may be freed
 * afterwards. */
struct product_weight *product_pack(enum product_format format, int32_t N, int32_t K,
                                    const float *weight, const float *bias, const float *reach,
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

/* The path that runs here, for engine_info: "avx512_vnni", "avx2", "neon_dot", "neon",
 * "plain". A static string. */
const char *product_path(void);

#endif
