/* SPDX-License-Identifier: MIT
 *
 * assemble: one sequence's tokens into its text, chunks, finish reason and score. Stop strings are
 * looked for in the text as decoding gives it; the text ends before the first of them, the token
 * ids keep the token that completed it, and what comes later is ignored. Chunk borders lie after
 * every stream_interval tokens and nowhere else, so they depend on the request alone, never on how
 * tokens arrive; a chunk's text is whole characters and holds back what may become a stop string.
 * Memory: the arena given; bounded by the sequence's own length. One thread at a time.
 */
#ifndef PGPT_KERNELS_TEXT_ASSEMBLE_H
#define PGPT_KERNELS_TEXT_ASSEMBLE_H

#include "kernels/generate/generation.h"
#include "kernels/text/detokenise.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { ASSEMBLE_MAX_STOPS = 8, ASSEMBLE_MAX_STOP_BYTES = 64 };

enum assemble_finish {
    ASSEMBLE_RUNNING = 0,
    ASSEMBLE_EOS,
    ASSEMBLE_LENGTH,
    ASSEMBLE_STOP,
    ASSEMBLE_CANCELLED,
    ASSEMBLE_EXPIRED,
};
const char *assemble_finish_name(enum assemble_finish finish); /* NULL while running */

/* What all sequences of a request share. Fill with assemble_rules_init(); read-only after. */
struct assemble_rules {
    const struct detokeniser *detokeniser;
    const struct text *stops; /* (stop_count), the request's */
    int32_t stop_count;
    uint8_t stop_fallback[ASSEMBLE_MAX_STOPS][ASSEMBLE_MAX_STOP_BYTES]; /* Knuth-Morris-Pratt */
    int32_t interval; /* tokens a chunk; 0 = one chunk at the end */
    bool stream;      /* chunks are wanted */
};

struct assemble_chunk {
    int32_t token_start, token_count;
    size_t text_start, text_size;
    bool last; /* carries the finish reason */
};

struct assembly {
    const struct assemble_rules *rules;
    struct arena *arena;
    int32_t *tokens; /* (token_count) */
    int32_t token_count, token_room;
    char *text; /* (text_size) final when finished */
    size_t text_size, text_room;
    struct assemble_chunk *chunks; /* (chunk_count) index = the chunk's seq */
    int32_t chunk_count, chunk_room;
    enum assemble_finish finish;
    bool has_eos; /* an EOS ended it: counted as generated, not in tokens */
    double score;
    /* Inside. */
    struct detokenise_state state;
    size_t scanned; /* bytes that the stop matchers have seen */
    uint8_t matched[ASSEMBLE_MAX_STOPS];
    int32_t chunk_tokens; /* tokens and bytes that chunks cover so far */
    size_t chunk_text;
};

/* The request is valid (generation_prepare()) and outlives the rules. */
void assemble_rules_init(struct assemble_rules *rules, const struct detokeniser *detokeniser,
                         const struct generation_request *request);

void assembly_init(struct assembly *assembly, const struct assemble_rules *rules,
                   struct arena *arena);

/* Takes tokens until a stop string is complete. logprobs NULL = 0 each; last_ends: the length limit
 * falls on the last token, so that its chunk is the last one. -1 = the arena is full. */
int assembly_add(struct assembly *assembly, const int32_t *tokens, const float *logprobs,
                 int32_t count, bool last_ends) PGPT_MUST_CHECK;

/* Ends a running sequence (nothing happens to a finished one): the text is completed, the last
 * chunk made. has_eos and its logprob: an EOS was generated. */
int assembly_end(struct assembly *assembly, enum assemble_finish finish, bool has_eos,
                 float eos_logprob) PGPT_MUST_CHECK;

#ifdef __cplusplus
}
#endif
#endif
