/* SPDX-License-Identifier: MIT */
#include "kernels/text/assemble.h"

#include <string.h>

enum { FIRST_TOKENS = 64, FIRST_TEXT = 256, FIRST_CHUNKS = 8 };

const char *assemble_finish_name(enum assemble_finish finish)
{
    static const char *const names[] = {
        [ASSEMBLE_RUNNING] = NULL,          [ASSEMBLE_EOS] = "eos",
        [ASSEMBLE_LENGTH] = "length",       [ASSEMBLE_STOP] = "stop",
        [ASSEMBLE_CANCELLED] = "cancelled", [ASSEMBLE_EXPIRED] = "expired",
    };

    return names[finish];
}

/* fallback[i]: length of the longest proper prefix of stop[0..i] that is also its suffix. */
static void fallback_fill(uint8_t *fallback, struct text stop)
{
    uint8_t length = 0;

    fallback[0] = 0;
    for (size_t i = 1; i < stop.size; i++) {
        while (length && stop.data[i] != stop.data[length])
            length = fallback[length - 1];
        if (stop.data[i] == stop.data[length])
            length++;
        fallback[i] = length;
    }
}

void assemble_rules_init(struct assemble_rules *rules, const struct detokeniser *detokeniser,
                         const struct generation_request *request)
{
    *rules = (struct assemble_rules){
        .detokeniser = detokeniser,
        .stops = request->stop,
        .stop_count = (int32_t)request->stop_count,
        .interval = request->num_beams > 1 ? 0 : request->stream_interval,
        .stream = request->stream,
    };
    for (int32_t i = 0; i < rules->stop_count; i++)
        fallback_fill(rules->stop_fallback[i], request->stop[i]);
}

void assembly_init(struct assembly *assembly, const struct assemble_rules *rules,
                   struct arena *arena)
{
    *assembly = (struct assembly){.rules = rules, .arena = arena, .text = ""};
}

/* Makes room for `need` elements by doubling; the old block stays in the arena. */
static void *grow(struct arena *arena, void *old, size_t used, size_t need, size_t first,
                  size_t element, size_t *room)
{
    size_t size = *room ? *room * 2 : first;
    void *block;

    while (size < need)
        size *= 2;
    block = arena_alloc(arena, size * element);
    if (!block)
        return NULL;
    if (used)
        memcpy(block, old, used * element);
    *room = size;
    return block;
}

static int token_room(struct assembly *assembly)
{
    size_t room = (size_t)assembly->token_room;
    int32_t *tokens;

    if (assembly->token_count < assembly->token_room)
        return 0;
    tokens = grow(assembly->arena, assembly->tokens, (size_t)assembly->token_count,
                  (size_t)assembly->token_count + 1, FIRST_TOKENS, sizeof *tokens, &room);
    if (!tokens)
        return -1;
    assembly->tokens = tokens;
    assembly->token_room = (int32_t)room;
    return 0;
}

/* Room for one call of the detokeniser and a NUL. */
static int text_room(struct assembly *assembly)
{
    size_t need = assembly->text_size + detokeniser_room(assembly->rules->detokeniser) + 1;
    char *text;

    if (need <= assembly->text_room)
        return 0;
    text = grow(assembly->arena, assembly->text, assembly->text_size, need, FIRST_TEXT, 1,
                &assembly->text_room);
    if (!text)
        return -1;
    assembly->text = text;
    return 0;
}

/* Advances one stop's matcher by one byte; true when the stop string is complete. */
static bool stop_match(const struct text *stop, const uint8_t *fallback, uint8_t *matched,
                       char byte)
{
    uint8_t length = *matched;

    if (length == stop->size)
        length = fallback[length - 1];
    while (length && stop->data[length] != byte)
        length = fallback[length - 1];
    if (stop->data[length] == byte)
        length++;
    *matched = length;
    return length == stop->size;
}

/* Scans the text up to `end`; returns where the first stop string of it begins, else `end`. */
static size_t stop_scan(struct assembly *assembly, size_t end)
{
    const struct assemble_rules *rules = assembly->rules;
    size_t found = end;

    for (int32_t i = 0; i < rules->stop_count; i++) {
        const struct text *stop = &rules->stops[i];

        for (size_t at = assembly->scanned; at < end; at++)
            if (stop_match(stop, rules->stop_fallback[i], &assembly->matched[i],
                           assembly->text[at]) &&
                at + 1 - stop->size < found) {
                found = at + 1 - stop->size;
                break;
            }
    }
    assembly->scanned = end;
    return found;
}

/* Bytes at the end that may become a stop string. */
static size_t stop_held(const struct assembly *assembly)
{
    size_t held = 0;

    for (int32_t i = 0; i < assembly->rules->stop_count; i++)
        if (assembly->matched[i] > held)
            held = assembly->matched[i];
    return held;
}

static int chunk_make(struct assembly *assembly, size_t text_end, bool last)
{
    size_t room = (size_t)assembly->chunk_room;

    if (!assembly->rules->stream)
        return 0;
    if (assembly->chunk_count == assembly->chunk_room) {
        struct assemble_chunk *chunks =
            grow(assembly->arena, assembly->chunks, (size_t)assembly->chunk_count,
                 (size_t)assembly->chunk_count + 1, FIRST_CHUNKS, sizeof *chunks, &room);

        if (!chunks)
            return -1;
        assembly->chunks = chunks;
        assembly->chunk_room = (int32_t)room;
    }
    assembly->chunks[assembly->chunk_count++] = (struct assemble_chunk){
        .token_start = assembly->chunk_tokens,
        .token_count = assembly->token_count - assembly->chunk_tokens,
        .text_start = assembly->chunk_text,
        .text_size = text_end - assembly->chunk_text,
        .last = last,
    };
    assembly->chunk_tokens = assembly->token_count;
    assembly->chunk_text = text_end;
    return 0;
}

static int finish_set(struct assembly *assembly, enum assemble_finish finish, size_t text_size)
{
    assembly->finish = finish;
    assembly->text_size = text_size;
    if (assembly->text_room)
        assembly->text[text_size] = '\0';
    return chunk_make(assembly, text_size, true);
}

/* Adds one token's text. Returns 1 when it completed a stop string, -1 when memory is out. */
static int token_add(struct assembly *assembly, int32_t token, float logprob)
{
    size_t end, found;

    if (token_room(assembly) || text_room(assembly))
        return -1;
    assembly->tokens[assembly->token_count++] = token;
    assembly->score += (double)logprob;
    assembly->text_size += detokenise_token(assembly->rules->detokeniser, &assembly->state, token,
                                            assembly->text + assembly->text_size);
    if (!assembly->rules->stop_count)
        return 0;
    end = assembly->text_size - assembly->state.trailing;
    found = stop_scan(assembly, end);
    if (found == end)
        return 0;
    return finish_set(assembly, ASSEMBLE_STOP, found) ? -1 : 1;
}

int assembly_add(struct assembly *assembly, const int32_t *tokens, const float *logprobs,
                 int32_t count, bool last_ends)
{
    /* No chunks, or one at the end: a border that is never reached. */
    int32_t interval = assembly->rules->stream ? assembly->rules->interval : 0;

    if (assembly->finish != ASSEMBLE_RUNNING)
        return 0;
    for (int32_t i = 0; i < count; i++) {
        int rc = token_add(assembly, tokens[i], logprobs ? logprobs[i] : 0.0f);
        bool border = assembly->token_count - assembly->chunk_tokens == interval;
        size_t end = assembly->text_size - assembly->state.trailing;

        if (rc)
            return rc < 0 ? -1 : 0;
        if (border && !(last_ends && i == count - 1) &&
            chunk_make(assembly, end - stop_held(assembly), false))
            return -1;
    }
    return 0;
}

int assembly_end(struct assembly *assembly, enum assemble_finish finish, bool has_eos,
                 float eos_logprob)
{
    size_t end, found;

    if (assembly->finish != ASSEMBLE_RUNNING)
        return 0;
    if (text_room(assembly))
        return -1;
    if (has_eos) {
        assembly->has_eos = true;
        assembly->score += (double)eos_logprob;
    }
    assembly->text_size += detokenise_end(&assembly->state, assembly->text + assembly->text_size);
    end = assembly->text_size - assembly->state.trailing;
    found = stop_scan(assembly, end);
    if (found < end && (finish == ASSEMBLE_EOS || finish == ASSEMBLE_LENGTH))
        finish = ASSEMBLE_STOP;
    return finish_set(assembly, finish, found);
}
