/* SPDX-License-Identifier: MIT
 *
 * slots: the requests that the CPU back end holds and their rows: who occupies what from admission
 * to release, and which pages of the caches belong to whom. All memory is allocated at open.
 * The owner calls; during a step the thread that runs a row (all rows of a beam search are on one
 * thread) may touch it and take pages.
 */
#ifndef PGPT_KERNELS_CPU_SLOTS_H
#define PGPT_KERNELS_CPU_SLOTS_H

#include "kernels/cpu/ops.h"
#include "kernels/cpu/pages.h"
#include "kernels/engine.h"
#include "kernels/search/beam.h"

enum { SLOT_ROWS = BEAM_MAX };

struct row { /* one sequence, or one beam */
    struct slot *slot;
    int32_t sequence;
    int32_t length;   /* tokens generated, EOS included: the caches hold as many positions */
    int32_t reported; /* tokens that the caller knows */
    bool running;
    bool ended_with_eos;
    enum engine_finish finish;
    bool finish_reported;
    int32_t *history; /* (max_new + 1) decoder input, the start token first */
    float *logprobs;  /* (max_new) */
    char **pages;     /* (pages of max_new) */
    int32_t page_count;
};

struct slot_beams {
    struct beam_state state;
    struct beam_candidate candidates[BEAM_CANDIDATES]; /* of the step under way */
    int32_t candidate_count;
    bool over;        /* the search ended: its hypotheses are to be reported */
    int32_t *tokens;  /* (max_new, SLOT_ROWS) token of each beam after each step */
    int32_t *parents; /* (max_new, SLOT_ROWS) */
};

struct slot {
    bool used, encoded;
    struct engine_request request; /* source points into `source` */
    int32_t *source;               /* (max_source) */
    char **cross;                  /* (pages of max_source) */
    int64_t reserved;              /* pages */
    int32_t row_count;
    struct row *rows[SLOT_ROWS];
    struct slot_beams beams;
};

struct slots {
    int32_t max_rows, max_source, max_new;
    struct ops_cache cache;
    int32_t layers;
    struct pages *pages; /* owned */
    struct slot *slots;  /* (max_rows) */
    struct row *rows;    /* (max_rows) */
    struct row **free_rows;
    int32_t free_count;
    struct slot **order; /* (order_count) occupied slots, oldest first */
    int32_t order_count;
    void *memory;
    size_t bytes; /* of memory */
};

static inline int64_t slots_pages_for(int64_t positions)
{
    return (positions + OPS_PAGE - 1) / OPS_PAGE;
}

/* Rows a request holds. */
static inline int32_t slots_rows(const struct engine_request *request)
{
    return request->num_beams > request->num_sequences ? request->num_beams
                                                       : request->num_sequences;
}

static inline bool slot_searches(const struct slot *slot)
{
    return slot->request.num_beams > 1;
}

/* Bytes of everything but the pages. */
size_t slots_bytes(int32_t max_rows, int32_t max_source, int32_t max_new);
/* page_count pages for `layers` decoder layers of the cache's shape. -1 with a reason. */
int slots_create(struct slots *slots, int32_t max_rows, int32_t max_source, int32_t max_new,
                 const struct ops_cache *cache, int32_t layers, int64_t page_count,
                 struct error *error) PGPT_MUST_CHECK;
void slots_destroy(struct slots *slots);

bool slots_admit(struct slots *slots, int32_t slot, const struct engine_request *request,
                 int32_t start_token, int32_t eos_token); /* false: no room */
void slots_release(struct slots *slots, int32_t slot);

/* Makes room in a row's cache for the position that the next step writes. */
void slots_grow(struct slots *slots, struct row *row);

/* After a step of a beam search: beam i goes on from parents[i] with tokens[i]. Full pages are
 * shared; a page that is still filling is copied for the second and later children. */
void slots_branch(struct slots *slots, struct slot *slot, const int32_t *parents,
                  const int32_t *tokens);

#endif
