/* SPDX-License-Identifier: MIT */
#include "kernels/generate/run.h"

#include <string.h>

int32_t generation_run_rows(const struct generation_request *request)
{
    return request->num_beams > request->num_return_sequences ? request->num_beams
                                                              : request->num_return_sequences;
}

struct generation_run *generation_run_create(const struct generation_request *request,
                                             int32_t source_count,
                                             const struct detokeniser *detokeniser,
                                             struct arena *arena)
{
    int32_t count = request->num_return_sequences;
    struct generation_run *run =
        arena_alloc(arena, sizeof *run + (size_t)count * sizeof run->sequences[0]);

    if (!run)
        return NULL;
    run->request = request;
    run->arena = arena;
    run->source_count = source_count;
    run->sequence_count = count;
    run->finished_count = 0;
    assemble_rules_init(&run->rules, detokeniser, request);
    for (int32_t i = 0; i < count; i++)
        assembly_init(&run->sequences[i], &run->rules, arena);
    return run;
}

size_t generation_run_memory(const struct generation_request *request,
                             const struct detokeniser *detokeniser)
{
    size_t tokens = (size_t)request->max_length + 1;
    size_t sequences = (size_t)request->num_return_sequences;
    /* Doubling blocks stay behind in the arena: all of them together take under 4 times the need.
     */
    size_t sequence = 4 * (tokens * (sizeof(int32_t) + detokeniser_room(detokeniser) + 1 +
                                     sizeof(struct assemble_chunk)) +
                           1024);

    return sizeof(struct generation_run) +
           sequences * (sizeof(struct assembly) + sizeof(struct generation_sequence) + sequence);
}

/* First 8 bytes of a UUID in text form: its first 16 hexadecimal digits. */
static uint64_t seed_from_id(struct text id)
{
    uint64_t seed = 0;
    int digits = 0;

    for (size_t i = 0; i < id.size && digits < 16; i++) {
        char c = id.data[i];
        uint64_t digit;

        if (c == '-')
            continue;
        if (c >= '0' && c <= '9')
            digit = (uint64_t)(c - '0');
        else if ((c | 0x20) >= 'a' && (c | 0x20) <= 'f')
            digit = (uint64_t)((c | 0x20) - 'a' + 10);
        else
            return 0;
        seed = seed << 4 | digit;
        digits++;
    }
    return digits == 16 ? seed : 0;
}

void generation_run_request(const struct generation_request *request, const int32_t *source,
                            int32_t source_count, uint64_t tag, struct engine_request *out)
{
    *out = (struct engine_request){
        .tag = tag,
        .source = source,
        .source_len = source_count,
        .max_new = request->max_length,
        .min_new = request->min_length,
        .num_sequences = request->num_return_sequences,
        .num_beams = request->num_beams,
        .do_sample = request->do_sample,
        .early_stopping = request->early_stopping && request->num_beams > 1,
        .temperature = request->temperature,
        .top_p = request->top_p,
        .repetition_penalty = request->repetition_penalty,
        .length_penalty = request->length_penalty,
        .top_k = request->top_k,
        .seed = request->has_seed ? (uint64_t)request->seed : seed_from_id(request->job_id),
    };
}

enum generation_took generation_run_take(struct generation_run *run, const struct engine_item *item)
{
    struct assembly *assembly = &run->sequences[item->sequence];
    bool ended = item->finish != ENGINE_RUNNING;
    enum assemble_finish finish =
        item->finish == ENGINE_FINISH_LENGTH ? ASSEMBLE_LENGTH : ASSEMBLE_EOS;
    float eos = item->ended_with_eos && item->logprobs ? item->logprobs[item->token_count] : 0;

    if (assembly->finish != ASSEMBLE_RUNNING)
        return GENERATION_TOOK_SOME;
    if (assembly_add(assembly, item->tokens, item->logprobs, item->token_count,
                     ended && !item->ended_with_eos) ||
        (ended && assembly_end(assembly, finish, item->ended_with_eos, eos)))
        return GENERATION_TOOK_NOMEM;
    if (assembly->finish == ASSEMBLE_RUNNING)
        return GENERATION_TOOK_SOME;
    if (run->request->num_beams > 1)
        assembly->score = item->beam_score;
    run->finished_count++;
    return ended ? GENERATION_TOOK_FINISHED : GENERATION_TOOK_STOP;
}

int generation_run_end(struct generation_run *run, enum assemble_finish finish)
{
    for (int32_t i = 0; i < run->sequence_count; i++) {
        struct assembly *assembly = &run->sequences[i];

        if (assembly->finish != ASSEMBLE_RUNNING)
            continue;
        if (assembly_end(assembly, finish, false, 0))
            return -1;
        run->finished_count++;
    }
    return 0;
}

bool generation_run_finished(const struct generation_run *run)
{
    return run->finished_count == run->sequence_count;
}

int generation_run_result(struct generation_run *run, struct generation_result *result)
{
    size_t count = (size_t)run->sequence_count;
    struct generation_sequence *sequences = arena_alloc(run->arena, count * sizeof *sequences);

    if (!sequences)
        return -1;
    result->usage = (struct generation_usage){.prompt_tokens = run->source_count};
    for (size_t i = 0; i < count; i++) {
        const struct assembly *assembly = &run->sequences[i];

        sequences[i] = (struct generation_sequence){
            .text = {assembly->text, assembly->text_size},
            .token_ids = assembly->tokens,
            .token_count = (size_t)assembly->token_count,
            .finish_reason = assemble_finish_name(assembly->finish),
            .score = assembly->score,
        };
        result->usage.generated_tokens += assembly->token_count + assembly->has_eos;
    }
    result->sequences = sequences;
    result->sequence_count = count;
    return 0;
}
