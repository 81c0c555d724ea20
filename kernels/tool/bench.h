/* SPDX-License-Identifier: MIT
 *
 * bench: what the parts of the command share. Main thread only.
 */
#ifndef PGPT_KERNELS_TOOL_BENCH_H
#define PGPT_KERNELS_TOOL_BENCH_H

#include "kernels/backend.h"
#include "kernels/tool/cli.h"

struct bench {
    struct cli_engine options;
    struct cli_ints batches;
    int32_t source, new_tokens, beams, rounds, steps, seconds, limit;
    bool sample, traffic;
    const char *lines, *language, *author;
    char name[256];
    char compute[16]; /* the format alone: "int8" */
    struct engine *engine;
};

/* What one measurement of the fixed or the continuous kind gave. */
struct bench_figures {
    double us_per_step, tok_per_s; /* medians */
    double us_per_step_min, us_per_step_max, tok_per_s_min, tok_per_s_max;
    double encode_us; /* a round, median; what decoding waited for */
    double rows_mean;
    int32_t rounds;
};

/* batch requests at once, each of source tokens in and new_tokens out, from empty to empty. */
int bench_fixed(struct bench *b, int32_t batch, struct bench_figures *out,
                struct error *error) PGPT_MUST_CHECK;
/* Requests of 5..200 source tokens and 1..250 new ones keep `batch` requests running; admission and
 * release at every step. */
int bench_traffic(struct bench *b, int32_t batch, struct bench_figures *out,
                  struct error *error) PGPT_MUST_CHECK;
/* Prints a JSON line of its own: throughput and latency over the lines of a text file. */
int bench_lines(struct bench *b, struct error *error) PGPT_MUST_CHECK;

/* A request of random tokens, EOS at its end. tokens: (source_len), filled. */
void bench_request(const struct bench *b, uint64_t *random, int32_t source_len, int32_t new_tokens,
                   int32_t *tokens, struct engine_request *request);
/* Tokens that an item stands for: of all beams together. */
int64_t bench_item_tokens(const struct bench *b, const struct engine_item *item);

#endif
