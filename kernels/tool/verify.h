/* SPDX-License-Identifier: MIT
 *
 * verify: what the parts of the command share: one row of the report for each kind of check, and
 * the rules that the compute format and the device are held to. Main thread only.
 */
#ifndef PGPT_KERNELS_TOOL_VERIFY_H
#define PGPT_KERNELS_TOOL_VERIFY_H

#include "kernels/backend.h"
#include "kernels/text/prompt.h"
#include "kernels/tool/golden.h"

enum { VERIFY_FIRST_MAX = 3, VERIFY_ROWS_MAX = 48 };

/* Where a case left the reference. */
struct verify_difference {
    int32_t at;            /* case, or request of the batch checks */
    int32_t position;      /* new token, or row of a tensor; -1 = none to tell */
    int32_t expected, got; /* token ids; -1 = none */
    double gap;            /* reference's best score minus its second there; NAN = not known */
};

struct verify_row {
    char kind[32];
    bool judged, ok;
    int64_t total, equal;         /* cases, or values of tensors */
    int64_t tokens, tokens_equal; /* of sequences, place by place; 0 = no sequences */
    double worst;                 /* error, or widest gap at a difference; NAN = none */
    char rule[96];                /* what ok means */
    struct verify_difference first[VERIFY_FIRST_MAX];
    int32_t first_count;
};

struct verify_rules {
    double share;     /* of cases whose ids must be equal */
    bool greedy_only; /* share counts greedy alone, else all kinds of ids together */
    double gap;       /* differences where the gap is wider fail; 0 = any does; NAN = none does */
    double tensor;    /* error of encoder output and logits; NAN = not judged */
    bool relative;    /* ... over the range of the reference tensor */
    double probabilities; /* NAN = not judged */
};

struct verify {
    const char *model_dir;
    const struct engine_options *options;
    struct engine *engine;
    struct engine *reference; /* float32 on the CPU, opened at the first difference; or NULL */
    bool reference_failed;
    const struct golden *golden;
    const struct prompt_codec *codec; /* NULL = texts are not checked */
    struct verify_rules rules;
    int32_t steps;
    uint64_t seed;
    struct verify_row rows[VERIFY_ROWS_MAX];
    int32_t row_count;
};

struct verify_row *verify_row_add(struct verify *v, const char *kind);
void verify_difference_add(struct verify_row *row, struct verify_difference difference);

/* The parts; each adds its rows. -1 = the engine failed. */
int verify_ids(struct verify *v, struct error *error) PGPT_MUST_CHECK;
int verify_tensors(struct verify *v, struct error *error) PGPT_MUST_CHECK;
int verify_texts(struct verify *v, struct error *error) PGPT_MUST_CHECK;
int verify_batches(struct verify *v, struct error *error) PGPT_MUST_CHECK;

/* The reference's top-2 gap of processed scores after `prefix`; NAN when it cannot be had. */
double verify_gap(struct verify *v, const struct golden_ids *source, const int32_t *prefix,
                  int32_t prefix_len, double penalty);

#endif
