/* SPDX-License-Identifier: MIT */
#include "kernels/search/rules_create.h"

#include <stdlib.h>

/* Words of the phrases (bad words of two tokens and more) and their number. */
static int32_t phrases_count(const struct model_config *config, int32_t *total)
{
    int32_t count = 0;

    *total = 0;
    for (int32_t i = 0; i < config->bad_word_count; i++)
        if (config->bad_word_lengths[i] > 1) {
            *total += config->bad_word_lengths[i];
            count++;
        }
    return count;
}

static void words_fill(const struct model_config *config, uint32_t *banned, int32_t *phrases,
                       int32_t *sizes)
{
    const int32_t *words = config->bad_words;

    for (int32_t i = 0; i < config->bad_word_count; i++) {
        int32_t size = config->bad_word_lengths[i];

        if (size == 1) {
            rules_add(banned, words[0]);
        } else {
            memcpy(phrases, words, (size_t)size * sizeof *phrases);
            phrases += size;
            *sizes++ = size;
        }
        words += size;
    }
}

static int32_t banned_walk(const struct model_config *config, const uint32_t *banned, int32_t *list)
{
    int32_t count = 0;

    for (int32_t t = 0; t < config->vocabulary; t++)
        if (rules_has(banned, t))
            list[count++] = t;
    return count;
}

struct rules_tables *rules_create(const struct model_config *config, struct error *error)
{
    int32_t total, phrase_count = phrases_count(config, &total);
    size_t words = (size_t)rules_words(config->vocabulary);
    size_t list = (size_t)(config->bad_word_count + config->suppress_count);
    size_t cells = 2 * words + list + (size_t)total + (size_t)phrase_count;
    struct rules_tables *tables = calloc(1, sizeof *tables + cells * sizeof(int32_t));
    uint32_t *suppressed, *banned;
    int32_t *banned_list, *phrases, *sizes;

    if (!tables) {
        error_set(error, "rules: out of memory");
        return NULL;
    }
    suppressed = (uint32_t *)(tables + 1);
    banned = suppressed + words;
    banned_list = (int32_t *)(banned + words);
    phrases = banned_list + list;
    sizes = phrases + total;
    for (int32_t i = 0; i < config->suppress_count; i++) {
        rules_add(suppressed, config->suppress_tokens[i]);
        rules_add(banned, config->suppress_tokens[i]);
    }
    words_fill(config, banned, phrases, sizes);
    tables->banned_count = banned_walk(config, banned, banned_list);
    tables->banned_list = banned_list;
    tables->phrase_total = total;
    tables->bytes = sizeof *tables + cells * sizeof(int32_t);
    tables->rules = (struct rules){.vocabulary = config->vocabulary,
                                   .eos_token = config->eos_token,
                                   .forced_bos_token = config->forced_bos_token,
                                   .forced_eos_token = config->forced_eos_token,
                                   .suppressed = suppressed,
                                   .banned = banned,
                                   .phrases = phrases,
                                   .phrase_sizes = sizes,
                                   .phrase_count = phrase_count};
    return tables;
}

void rules_destroy(struct rules_tables *tables)
{
    free(tables);
}
