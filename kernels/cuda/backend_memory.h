/* SPDX-License-Identifier: MIT
 *
 * backend_memory: every byte that the CUDA back end works in: one block on the device and one that
 * host and device both see, laid out once when the engine opens. Nothing is allocated afterwards.
 */
#ifndef PGPT_KERNELS_CUDA_BACKEND_MEMORY_H
#define PGPT_KERNELS_CUDA_BACKEND_MEMORY_H

#include "kernels/cuda/choose.h"
#include "kernels/cuda/network.h"
#include "kernels/cuda/step.h"

enum {
    MEMORY_BATCHES = 8,         /* encodings under way at once */
    MEMORY_BATCH_TOKENS = 8192, /* source tokens of one encoding; at least the longest source */
    MEMORY_STEPS_MOST = 64,     /* steps of one call */
    MEMORY_CALLS = 2,           /* calls of steps under way at once */
    MEMORY_PARTS = 8,           /* of a step's rows that go side by side, at most */
};

/* What host and device tell one another of one call of steps. */
struct memory_call {
    int32_t *lists;          /* n, group count, active, place, groups: as on the device */
    struct step_join *joins; /* (max_rows) */
    struct step_output out;
};

struct backend_memory {
    char *device, *pinned;
    size_t device_bytes, pinned_bytes;
    size_t cache_bytes;

    struct cuda_rows rows;
    int32_t *n;      /* (1) active rows, then (1) active groups */
    int32_t *active; /* (max_rows) */
    int32_t *parts;  /* (MEMORY_PARTS) of the active rows, each part's */
    int32_t *place;  /* (max_rows) */
    int32_t *groups; /* (max_rows) */
    struct network_cache self, cross;
    struct network_space step_space, encode_space;
    struct product_unit *units;
    float *special, *logits, *probabilities;
    void *choose_work;
    /* An encoding's sources: n, then tokens, positions, rows (each as many as there are tokens),
     * starts (one more than sources). One copy on the device, since encodings follow one another.
     */
    int32_t *sources;
    int32_t batch_tokens;

    /* pinned */
    int32_t *batch_sources[MEMORY_BATCHES]; /* the same */
    struct memory_call calls[MEMORY_CALLS];
    struct cuda_beam_group *host_groups; /* (max_rows) as they join */
    int32_t *beam_groups;                /* (max_rows) groups to read back */
    int32_t *beam_lengths;               /* (max_rows, BEAM_MAX) */
    float *beam_scores;                  /* (max_rows, BEAM_MAX) */
    int32_t *beam_tokens;                /* (max_rows / 2 groups, BEAM_MAX, P) */
};

struct backend_memory_sizes {
    int32_t max_rows, max_source, max_new;
    bool cache_int8;
    uint64_t budget; /* 0 = none */
};

/* -1 with numbers when it does not fit the budget or the device. */
int backend_memory_open(struct backend_memory *memory, const struct network *network,
                        const struct backend_memory_sizes *sizes,
                        struct error *error) PGPT_MUST_CHECK;
void backend_memory_close(struct backend_memory *memory);

#endif
