/* SPDX-License-Identifier: MIT
 *
 * layers: the encoder over packed sources and one decoder step over rows. A crew is who runs them:
 * one thread alone on its rows, or all threads of the pool together on the same few rows. Who runs
 * them changes nothing in the results: each row is computed as if it were alone.
 * Work space is allocated when the engine opens; a frame belongs to one thread at a time.
 */
#ifndef PGPT_KERNELS_CPU_LAYERS_H
#define PGPT_KERNELS_CPU_LAYERS_H

#include "kernels/cpu/ops.h"
#include "kernels/cpu/threads.h"
#include "kernels/cpu/weights.h"

struct layers_source {
    const int32_t *tokens; /* (length) */
    int32_t length;
    char *const *cross; /* (ceil(length / 16)) pages that get the decoder's keys and values */
};

struct layers_row {
    int32_t token, position; /* decoder input */
    char *const *pages;      /* (position / 16 + 1) own pages; this step is written into the last */
    char *const *cross;
    int32_t cross_count; /* source tokens */
};

/* Activations of so many still fit a second-level cache, and the attention caches of every thread's
 * rows the third, so that a call of many steps finds them there again. */
enum { FRAME_TOKENS = 128, FRAME_ROWS = 32 };

struct frame {
    int32_t capacity;     /* tokens of the encoder */
    int32_t row_capacity; /* rows of the decoder, at most capacity */
    float *x, *y;         /* (capacity, D) */
    float *qkv;           /* (capacity, 3 D) */
    float *context;       /* (capacity, D) */
    float *ffn;           /* (capacity, F) */
    float *scores;        /* (positions rounded up to 16): attention weights of one head */
    float *logits;        /* (row_capacity, V) */
    float *processed;     /* (V): scores of one row after the rules */
    float *weights;       /* (V): weights of one row to draw from */
    char **pages;         /* (ceil(max_source / 16)) the encoder's keys and values of one source */
    struct layers_row *rows;       /* (row_capacity) */
    struct layers_source *sources; /* (capacity) */
    void *memory;                  /* all of the above */
};

/* Bytes of one frame; with memory != NULL carves it. */
size_t frame_carve(struct frame *frame, const struct weights *weights, int32_t max_source,
                   int32_t max_new, char *memory);

struct crew {
    const struct weights *weights;
    const struct ops *ops;
    struct ops_cache cache;  /* of the decoder's pages */
    struct threads *threads; /* NULL: the calling thread alone */
    struct frame *frames;    /* (threads, or 1): activations in the first, work space in each */
};

/* Runs work over 0..count-1, cut among the crew when there are at least `enough`: waking others
 * costs about a microsecond. frame is the work space of who runs it. */
void crew_each(const struct crew *crew, int64_t count, int64_t enough,
               void (*work)(void *arg, int64_t begin, int64_t end, struct frame *frame), void *arg);

/* frames[0].sources (count), at most capacity tokens together, to frames[0].x (tokens, D). */
void layers_encode(const struct crew *crew, int32_t count);

/* The decoder's keys and values of what layers_encode() left, into the sources' cross pages. */
void layers_cross(const struct crew *crew, int32_t count);

/* frames[0].rows (count) one step to frames[0].x (count, D), caches included. */
void layers_decode(const struct crew *crew, int32_t count);

/* frames[0].x (count, D) to frames[0].logits (count, V). */
void layers_logits(const struct crew *crew, int32_t count);

#endif
