/* SPDX-License-Identifier: MIT */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "kernels/tool/verify.h"

enum { ARENA_MAX = 64 << 20 };

/* Cases may write control tokens with their brackets: "<author_0>". */
static struct text unbracketed(struct text text, struct arena *arena)
{
    struct text empty = {"", 0};

    if (!text.data)
        return empty;
    if (text.size < 2 || text.data[0] != '<' || text.data[text.size - 1] != '>')
        return text;
    return arena_text(arena, text.data + 1, text.size - 2);
}

static int prompt_compare(struct verify *v, struct verify_row *row, int32_t at, struct arena *arena,
                          struct error *error)
{
    const struct golden_case *c = &v->golden->cases[at];
    struct verify_difference difference = {.at = at, .gap = NAN};
    struct generation_request request;
    const int32_t *tokens;
    int32_t count, i = 0;

    if (!c->prompt.data)
        return 0;
    generation_request_init(&request);
    request.prompt = c->prompt;
    if (c->target_language.data)
        request.target_language = c->target_language;
    request.author = unbracketed(c->author, arena);
    if (!request.author.data)
        return error_set(error, "out of memory");
    count = prompt_encode(v->codec, &request, arena, &tokens, error);
    if (count < 0)
        return -1;
    row->total++;
    while (i < count && i < c->source.count && tokens[i] == c->source.ids[i])
        i++;
    if (i == count && i == c->source.count) {
        row->equal++;
        return 0;
    }
    difference.position = i;
    difference.expected = i < c->source.count ? c->source.ids[i] : -1;
    difference.got = i < count ? tokens[i] : -1;
    verify_difference_add(row, difference);
    return 0;
}

/* The text of the reference's greedy ids. */
static int text_compare(struct verify *v, struct verify_row *row, int32_t at, int32_t kind,
                        struct arena *arena, struct error *error)
{
    const struct golden_case *c = &v->golden->cases[at];
    const struct detokeniser *detokeniser = prompt_codec_detokeniser(v->codec);
    const struct golden_ids *ids = &c->outputs[kind];
    struct verify_difference difference = {
        .at = at, .position = -1, .expected = -1, .got = -1, .gap = NAN};
    struct detokenise_state state = {0};
    size_t size = 0;
    char *text;

    if (!c->greedy_text.data || !ids->ids)
        return 0;
    text = arena_alloc(arena, detokeniser_room(detokeniser) * (size_t)(ids->count + 1));
    if (!text)
        return error_set(error, "out of memory");
    for (int32_t i = 1; i < ids->count; i++)
        size += detokenise_token(detokeniser, &state, ids->ids[i], text + size);
    size += detokenise_end(&state, text + size);
    size -= state.trailing;
    row->total++;
    if (size == c->greedy_text.size && !memcmp(text, c->greedy_text.data, size))
        row->equal++;
    else
        verify_difference_add(row, difference);
    return 0;
}

int verify_texts(struct verify *v, struct error *error)
{
    struct arena *arena = arena_create(1 << 16, ARENA_MAX);
    struct verify_row *prompts, *texts;
    int32_t greedy = -1;
    int status = 0;

    if (!arena)
        return error_set(error, "out of memory");
    prompts = verify_row_add(v, "prompt to ids");
    texts = verify_row_add(v, "ids to text");
    for (int32_t i = 0; i < v->golden->kind_count; i++)
        if (v->golden->kinds[i].mode == GOLDEN_GREEDY)
            greedy = i;
    for (int32_t i = 0; !status && i < v->golden->count; i++) {
        arena_reset(arena);
        status = prompt_compare(v, prompts, i, arena, error) ||
                         (greedy >= 0 && text_compare(v, texts, i, greedy, arena, error))
                     ? -1
                     : 0;
    }
    prompts->judged = texts->judged = true;
    prompts->ok = prompts->equal == prompts->total;
    texts->ok = texts->equal == texts->total;
    snprintf(prompts->rule, sizeof prompts->rule, "all equal");
    snprintf(texts->rule, sizeof texts->rule, "all equal");
    arena_destroy(arena);
    return status;
}
