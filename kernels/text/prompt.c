/* SPDX-License-Identifier: MIT */
#include "kernels/text/prompt.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { CONTROL_NAME_MAX = 64 };

struct prompt_codec {
    struct spm *source;
    struct vocabulary *vocabulary;
    struct detokeniser *detokeniser;
    int32_t *piece_ids;    /* (pieces of source) vocabulary id of each; -1 = not there */
    int32_t eos, unk, pad; /* pad -1 = none */
};

/* A growing array of tokens in an arena. */
struct token_list {
    struct arena *arena;
    int32_t *tokens;
    int32_t count, room;
    const struct prompt_codec *codec;
};

static int token_push(struct token_list *list, int32_t token)
{
    if (list->count == list->room) {
        int32_t room = list->room ? list->room * 2 : 64;
        int32_t *tokens = arena_alloc(list->arena, (size_t)room * sizeof *tokens);

        if (!tokens)
            return -1;
        if (list->count)
            memcpy(tokens, list->tokens, (size_t)list->count * sizeof *tokens);
        list->tokens = tokens;
        list->room = room;
    }
    list->tokens[list->count++] = token;
    return 0;
}

static int piece_ids_fill(struct prompt_codec *codec, struct error *error)
{
    int32_t count = spm_count(codec->source);

    codec->piece_ids = calloc((size_t)count, sizeof *codec->piece_ids);
    if (!codec->piece_ids)
        return error_set(error, "out of memory");
    for (int32_t id = 0; id < count; id++) {
        size_t size;
        const char *piece = spm_piece(codec->source, id, &size);

        codec->piece_ids[id] = vocabulary_find(codec->vocabulary, piece, size);
    }
    return 0;
}

static int special_find(const struct prompt_codec *codec, const char *path, const char *piece,
                        int32_t *id, struct error *error)
{
    *id = vocabulary_find(codec->vocabulary, piece, strlen(piece));
    return *id >= 0 ? 0 : error_set(error, "%s: the piece %s is missing", path, piece);
}

/* Decoding reads pieces as target.spm has them; the file may know others than source.spm. */
static int detokeniser_fill(struct prompt_codec *codec, const char *model_dir, struct error *error)
{
    char path[4096];
    struct spm *target;

    snprintf(path, sizeof path, "%s/target.spm", model_dir);
    target = spm_open(path, error);
    if (!target)
        return -1;
    codec->detokeniser = detokeniser_create(codec->vocabulary, target, error);
    spm_close(target);
    return codec->detokeniser ? 0 : -1;
}

static int codec_fill(struct prompt_codec *codec, const char *model_dir, int32_t vocabulary,
                      struct error *error)
{
    char path[4096];

    if ((size_t)snprintf(path, sizeof path, "%s/source.spm", model_dir) >= sizeof path)
        return error_set(error, "%.64s...: the path is too long", model_dir);
    codec->source = spm_open(path, error);
    if (!codec->source)
        return -1;
    snprintf(path, sizeof path, "%s/vocab.json", model_dir);
    codec->vocabulary = vocabulary_open(path, vocabulary, error);
    if (!codec->vocabulary || special_find(codec, path, "</s>", &codec->eos, error) ||
        special_find(codec, path, "<unk>", &codec->unk, error) || piece_ids_fill(codec, error))
        return -1;
    codec->pad = vocabulary_find(codec->vocabulary, "<pad>", strlen("<pad>"));
    return detokeniser_fill(codec, model_dir, error);
}

struct prompt_codec *prompt_codec_open(const char *model_dir, int32_t vocabulary,
                                       struct error *error)
{
    struct prompt_codec *codec = calloc(1, sizeof *codec);

    if (!codec) {
        error_set(error, "out of memory");
        return NULL;
    }
    if (codec_fill(codec, model_dir, vocabulary, error)) {
        prompt_codec_close(codec);
        return NULL;
    }
    return codec;
}

void prompt_codec_close(struct prompt_codec *codec)
{
    if (!codec)
        return;
    detokeniser_destroy(codec->detokeniser);
    vocabulary_close(codec->vocabulary);
    spm_close(codec->source);
    free(codec->piece_ids);
    free(codec);
}

const struct detokeniser *prompt_codec_detokeniser(const struct prompt_codec *codec)
{
    return codec ? codec->detokeniser : NULL;
}

static int32_t control_find(const struct prompt_codec *codec, const char *open, struct text name,
                            const char *close)
{
    char piece[CONTROL_NAME_MAX + 8];
    int size;

    if (!codec || !name.size || name.size > CONTROL_NAME_MAX || memchr(name.data, '\0', name.size))
        return -1;
    size = snprintf(piece, sizeof piece, "%s%s%s", open, name.data, close);
    return vocabulary_find(codec->vocabulary, piece, (size_t)size);
}

int32_t prompt_codec_language(const struct prompt_codec *codec, struct text name)
{
    return control_find(codec, ">>", name, "<<");
}

/* Byte pieces and the special tokens are written in the same brackets and are no authors. */
int32_t prompt_codec_author(const struct prompt_codec *codec, struct text name)
{
    int32_t id = control_find(codec, "<", name, ">");
    bool byte = name.size == 4 && memcmp(name.data, "0x", 2) == 0;

    if (id < 0 || byte || (name.size == 1 && name.data[0] == 's'))
        return -1;
    return id == codec->eos || id == codec->unk || id == codec->pad ? -1 : id;
}

static int piece_take(void *user, int32_t id, const char *piece, size_t size)
{
    struct token_list *list = user;
    const struct prompt_codec *codec = list->codec;
    /* A piece unknown to source.spm may still be in the shared vocabulary. */
    int32_t token = spm_is_unknown(codec->source, id)
                        ? vocabulary_find(codec->vocabulary, piece, size)
                        : codec->piece_ids[id];

    return token_push(list, token >= 0 ? token : codec->unk) ? 1 : 0;
}

/* Text without special tokens: an optional language code in front, then pieces. */
static int segment_encode(struct token_list *list, const char *text, size_t size,
                          struct error *error)
{
    int rc;

    if (size >= 2 && memcmp(text, ">>", 2) == 0) {
        const char *end = memmem(text, size, "<<", 2);

        if (end) {
            size_t code = (size_t)(end - text) + 2;
            int32_t token = vocabulary_find(list->codec->vocabulary, text, code);

            if (token_push(list, token >= 0 ? token : list->codec->unk))
                return error_set(error, "prompt: too long for the job's memory");
            text += code;
            size -= code;
        }
    }
    rc = spm_encode(list->codec->source, text, size, piece_take, list, error);
    return rc > 0 ? error_set(error, "prompt: too long for the job's memory") : rc;
}

/* Is a special token written at p? Its length, else 0. */
static size_t special_at(const struct prompt_codec *codec, const char *p, size_t size,
                         int32_t *token)
{
    const struct {
        const char *text;
        int32_t token;
    } specials[] = {{"</s>", codec->eos}, {"<unk>", codec->unk}, {"<pad>", codec->pad}};

    for (size_t i = 0; i < sizeof specials / sizeof *specials; i++) {
        size_t length = strlen(specials[i].text);

        if (specials[i].token >= 0 && length <= size && !memcmp(p, specials[i].text, length)) {
            *token = specials[i].token;
            return length;
        }
    }
    return 0;
}

static int prompt_text_encode(struct token_list *list, struct text prompt, struct error *error)
{
    size_t start = 0, at = 0;

    while (at < prompt.size) {
        const char *next = memchr(prompt.data + at, '<', prompt.size - at);
        int32_t token;
        size_t length;

        if (!next)
            break;
        at = (size_t)(next - prompt.data);
        length = special_at(list->codec, next, prompt.size - at, &token);
        if (!length) {
            at++;
            continue;
        }
        if (at > start && segment_encode(list, prompt.data + start, at - start, error))
            return -1;
        if (token_push(list, token))
            return error_set(error, "prompt: too long for the job's memory");
        start = at += length;
    }
    return start < prompt.size
               ? segment_encode(list, prompt.data + start, prompt.size - start, error)
               : 0;
}

static int control_push(struct token_list *list, const char *field, struct text name, int32_t token,
                        struct error *error)
{
    if (!name.size)
        return 0;
    if (token < 0)
        return error_set(error, "%s: \"%.64s\" is no control token of the model", field, name.data);
    return token_push(list, token) ? error_set(error, "%s: out of the job's memory", field) : 0;
}

int32_t prompt_encode(const struct prompt_codec *codec, const struct generation_request *request,
                      struct arena *arena, const int32_t **tokens, struct error *error)
{
    struct token_list list = {.arena = arena, .codec = codec};

    if (!codec)
        return error_set(error, "prompt: this engine works on token ids alone, give source_tokens");
    if (control_push(&list, "target_language", request->target_language,
                     prompt_codec_language(codec, request->target_language), error) ||
        control_push(&list, "author", request->author, prompt_codec_author(codec, request->author),
                     error) ||
        prompt_text_encode(&list, request->prompt, error))
        return -1;
    if (token_push(&list, codec->eos))
        return error_set(error, "prompt: too long for the job's memory");
    *tokens = list.tokens;
    return list.count;
}
