/* SPDX-License-Identifier: MIT
 *
 * merge: one sequence's chunks, as several attempts may have sent them, into a stream without gaps
 * and without repeats. Under one engine_id every attempt sends the same bytes, so what the reader
 * has already is dropped by text_start and token_start, whoever sent it. Where engine_id changed,
 * the sequence starts again; chunks of the engine that was left are dropped. What chunks did not
 * bring (they expired, the job did not stream) comes from the result. Plain data; one thread at a
 * time.
 */
#ifndef PGPT_PRODUCER_MERGE_H
#define PGPT_PRODUCER_MERGE_H

#include "schema/records.h"

/* Zeroed = nothing seen. */
struct merge {
    uint64_t engine; /* hash of the engine_id that the bytes below come from */
    int32_t attempt; /* newest attempt seen under it */
    int32_t tokens;  /* passed on */
    int64_t bytes;   /* passed on */
    bool begun;
    bool finished;  /* a finish_reason was passed on */
    bool restarted; /* the next piece must say so */
};

/* What is new. Texts and arrays point into the chunk or result that it came from. */
struct merge_piece {
    int32_t sequence;
    bool restart;     /* forget what came before of this sequence: another engine runs it */
    bool from_result; /* no chunk brought it */
    int64_t text_start;
    struct text text;
    int32_t token_start;
    const int32_t *token_ids;
    size_t token_count;
    const char *finish_reason; /* NULL while running */
};

/* True when the chunk brings something new, then *piece says what. */
bool merge_chunk(struct merge *merge, const struct generation_chunk *chunk,
                 struct merge_piece *piece);

/* The same for sequence number `sequence` of the result. A result may be shorter than the stream
 * when the job was cancelled or expired: then there is nothing new. */
bool merge_result(struct merge *merge, const struct generation_result *result, int32_t sequence,
                  struct merge_piece *piece);

#endif
