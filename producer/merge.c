/* SPDX-License-Identifier: MIT */
#include "producer/merge.h"

#include <string.h>

/* FNV-1a: identity only, and engine ids are few. */
static uint64_t engine_hash(const struct text *engine_id)
{
    uint64_t hash = 0xcbf29ce484222325u;

    for (size_t i = 0; i < engine_id->size; i++)
        hash = (hash ^ (unsigned char)engine_id->data[i]) * 0x100000001b3u;
    return hash;
}

/* Whose bytes count from now on. False = they come from an engine that was left.
 * A job goes to another engine either after its worker died (the attempt rises) or after it was
 * handed back (the attempt stays, and the new engine starts at the sequence's beginning). */
static bool take_engine(struct merge *m, uint64_t engine, int32_t attempt, bool at_start)
{
    bool passed_on = m->bytes > 0 || m->tokens > 0 || m->finished;

    if (m->begun && m->engine == engine) {
        if (attempt > m->attempt)
            m->attempt = attempt;
        return true;
    }
    if (m->begun && (attempt < m->attempt || (attempt == m->attempt && !at_start)))
        return false;
    *m = (struct merge){.engine = engine,
                        .attempt = attempt,
                        .begun = true,
                        .restarted = m->restarted || passed_on};
    return true;
}

/* Fills *piece with what lies behind the bytes and tokens already passed on. */
static bool take_rest(struct merge *m, struct merge_piece *piece, const struct text *text,
                      const int32_t *token_ids, size_t token_count, const char *finish_reason)
{
    int64_t text_end = piece->text_start + (int64_t)text->size;
    int64_t token_end = (int64_t)piece->token_start + (int64_t)token_count;
    size_t skip_bytes, skip_tokens;

    if (piece->text_start > m->bytes || piece->token_start > m->tokens || piece->text_start < 0 ||
        piece->token_start < 0 || token_end > INT32_MAX)
        return false; /* a gap before it: the result will fill it */
    if (text_end < m->bytes || token_end < m->tokens)
        return false;
    skip_bytes = (size_t)(m->bytes - piece->text_start);
    skip_tokens = (size_t)(m->tokens - piece->token_start);
    piece->text = (struct text){text->data + skip_bytes, text->size - skip_bytes};
    piece->token_ids = token_count ? token_ids + skip_tokens : NULL;
    piece->token_count = token_count - skip_tokens;
    piece->text_start = m->bytes;
    piece->token_start = m->tokens;
    piece->finish_reason = m->finished ? NULL : finish_reason;
    m->bytes = text_end;
    m->tokens = (int32_t)token_end;
    m->finished = m->finished || finish_reason;
    piece->restart = m->restarted;
    m->restarted = false;
    return piece->restart || piece->text.size || piece->token_count || piece->finish_reason;
}

bool merge_chunk(struct merge *m, const struct generation_chunk *chunk, struct merge_piece *piece)
{
    *piece = (struct merge_piece){.sequence = chunk->sequence,
                                  .text_start = chunk->text_start,
                                  .token_start = chunk->token_start};
    if (!take_engine(m, engine_hash(&chunk->engine_id), chunk->attempt, chunk->seq == 0))
        return false;
    return take_rest(m, piece, &chunk->text, chunk->token_ids, chunk->token_count,
                     chunk->finish_reason);
}

bool merge_result(struct merge *m, const struct generation_result *result, int32_t sequence,
                  struct merge_piece *piece)
{
    const struct generation_sequence *s = &result->sequences[sequence];

    *piece = (struct merge_piece){.sequence = sequence, .from_result = true};
    /* There is one result: it decides, whatever attempt the chunks came from. */
    if (!take_engine(m, engine_hash(&result->engine_id), INT32_MAX, true))
        return false;
    return take_rest(m, piece, &s->text, s->token_ids, s->token_count, s->finish_reason);
}
