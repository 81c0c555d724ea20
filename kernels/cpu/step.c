/* SPDX-License-Identifier: MIT */
#include "kernels/cpu/step.h"

#include <stdatomic.h>
#include <string.h>

#include "kernels/base/clock.h"

/* With less than this for each thread, all threads work together on one share. */
enum { TOGETHER_ROWS = 4, TOGETHER_TOKENS = 24 };

struct crew step_crew(const struct step *step)
{
    return (struct crew){.weights = step->weights,
                         .ops = ops_current(),
                         .cache = step->slots->cache,
                         .frames = step->frames,
                         .threads = threads_count(step->threads) > 1 ? step->threads : NULL};
}

struct choose step_choose(const struct step *step, struct frame *frame)
{
    return (struct choose){step->rules, ops_current(), frame->processed, frame->weights};
}

struct choose_sampling step_sampling(const struct engine_request *r, int32_t sequence)
{
    return (struct choose_sampling){r->temperature, r->top_p, r->top_k, r->seed,
                                    (uint32_t)sequence};
}

/* Shares of work, cut beforehand; a thread takes the next one when it is done with its last. */
struct shares {
    const struct step *step;
    int32_t count;
    int32_t k;
    _Atomic int32_t next;
    _Atomic int64_t row_steps; /* decoding: sum over steps of the rows in them */
    _Atomic int32_t steps;     /* decoding: the most steps that a share ran */
    void (*run)(struct shares *shares, const struct crew *crew, int32_t begin, int32_t end);
};

static void shares_part(void *arg, int32_t part, int32_t parts)
{
    struct shares *shares = arg;
    struct crew crew = step_crew(shares->step);
    int32_t i;

    (void)parts;
    crew.threads = NULL;
    crew.frames = &shares->step->frames[part];
    while ((i = atomic_fetch_add(&shares->next, 1)) < shares->count)
        shares->run(shares, &crew, shares->step->cuts[i], shares->step->cuts[i + 1]);
}

static void shares_run(struct shares *shares)
{
    struct crew crew = step_crew(shares->step);

    if (shares->count > 1)
        threads_run(shares->step->threads, shares_part, shares);
    else if (shares->count == 1)
        shares->run(shares, &crew, shares->step->cuts[0], shares->step->cuts[1]);
}

/* What a share may hold: an equal part for each thread, in as many rounds as the frames need. */
static int32_t share_size(int32_t total, int32_t threads, int32_t together, int32_t capacity)
{
    int32_t rounds = (total + threads * capacity - 1) / (threads * capacity);

    if (total < together * threads)
        return capacity;
    return (total + threads * rounds - 1) / (threads * rounds);
}

/* ---- encoding ---- */

/* Finds the slots that wait and cuts them into shares of whole sources. */
static int32_t encode_cut(const struct step *step)
{
    int32_t pending = 0, total = 0, cuts = 0, tokens = 0;
    int32_t most;

    for (int32_t i = 0; i < step->slots->order_count; i++)
        if (!step->slots->order[i]->encoded) {
            step->pending[pending++] = step->slots->order[i];
            total += step->slots->order[i]->request.source_len;
        }
    most =
        share_size(total, threads_count(step->threads), TOGETHER_TOKENS, step->frames[0].capacity);
    for (int32_t i = 0; i < pending; i++) {
        int32_t length = step->pending[i]->request.source_len;

        if (i == 0 || tokens + length > most) {
            step->cuts[cuts++] = i;
            tokens = 0;
        }
        tokens += length;
    }
    step->cuts[cuts] = pending;
    return cuts;
}

static void encode_share(struct shares *shares, const struct crew *crew, int32_t begin, int32_t end)
{
    for (int32_t i = begin; i < end; i++) {
        struct slot *slot = shares->step->pending[i];

        crew->frames->sources[i - begin] =
            (struct layers_source){slot->source, slot->request.source_len, slot->cross};
        slot->encoded = true;
    }
    layers_encode(crew, end - begin);
    layers_cross(crew, end - begin);
}

/* ---- choosing ---- */

static struct rules_row rules_of(const struct row *row)
{
    const struct engine_request *r = &row->slot->request;

    return (struct rules_row){row->length,           r->min_new, r->max_new,
                              r->repetition_penalty, NULL,       row->history};
}

/* A greedy or sampling row takes its next token. */
static void row_advance(const struct step *step, struct row *row, const float *logits,
                        struct frame *work)
{
    struct choose choose = step_choose(step, work);
    const struct engine_request *request = &row->slot->request;
    struct rules_row rules = rules_of(row);
    struct choose_sampling sampling = step_sampling(request, row->sequence);
    struct choose_token chosen = request->do_sample
                                     ? choose_sample(&choose, &rules, &sampling, logits)
                                     : choose_greedy(&choose, &rules, logits);
    enum rules_end end = rules_after(&step->rules->rules, &rules, chosen.token);

    row->logprobs[row->length++] = chosen.logprob;
    row->history[row->length] = chosen.token;
    row->ended_with_eos = chosen.token == step->rules->rules.eos_token;
    row->running = end == RULES_RUNNING;
    row->finish = end == RULES_EOS      ? ENGINE_FINISH_EOS
                  : end == RULES_LENGTH ? ENGINE_FINISH_LENGTH
                                        : ENGINE_RUNNING;
}

/* All beams of a search take their next step; logits (beams, V). */
static void beams_advance(const struct step *step, struct slot *slot, const float *logits,
                          struct frame *work)
{
    struct choose choose = step_choose(step, work);
    struct slot_beams *beams = &slot->beams;
    int32_t parents[BEAM_MAX] = {0}, tokens[BEAM_MAX] = {0};
    int32_t count = 0, at = beams->state.length;

    for (int32_t i = 0; i < slot->row_count; i++) {
        struct rules_row rules = rules_of(slot->rows[i]);

        count = choose_continue(&choose, &rules, logits + (int64_t)i * step->weights->V, i,
                                beams->state.running[i], beams->candidates, count,
                                2 * slot->request.num_beams);
    }
    beams->over = beam_advance(&beams->state, beams->candidates, parents, tokens);
    for (int32_t i = 0; i < slot->row_count; i++) {
        beams->tokens[(int64_t)at * SLOT_ROWS + i] = tokens[i];
        beams->parents[(int64_t)at * SLOT_ROWS + i] = parents[i];
        slot->rows[i]->running = !beams->over;
    }
    if (!beams->over)
        slots_branch(step->slots, slot, parents, tokens);
}

struct choosing {
    const struct step *step;
    struct row *const *rows;
    const struct frame *frame; /* holds the logits */
};

/* Rows begin..end-1; the first row of a search acts for all of its beams. */
static void choose_rows(void *arg, int64_t begin, int64_t end, struct frame *work)
{
    const struct choosing *c = arg;

    for (int64_t i = begin; i < end; i++) {
        struct row *row = c->rows[i];
        const float *logits = c->frame->logits + i * c->step->weights->V;

        if (!slot_searches(row->slot))
            row_advance(c->step, row, logits, work);
        else if (row->sequence == 0)
            beams_advance(c->step, row->slot, logits, work);
    }
}

/* ---- decoding ---- */

/* Finds the rows that run and cuts them into shares; the beams of one search stay together. */
static int32_t decode_cut(const struct step *step)
{
    int32_t count = 0, cuts = 0, begin = 0, most;

    for (int32_t i = 0; i < step->slots->order_count; i++)
        for (int32_t j = 0; j < step->slots->order[i]->row_count; j++)
            if (step->slots->order[i]->rows[j]->running)
                step->rows[count++] = step->slots->order[i]->rows[j];
    most = share_size(count, threads_count(step->threads), TOGETHER_ROWS,
                      step->frames[0].row_capacity);
    for (int32_t i = 0; i < count;) {
        struct slot *slot = step->rows[i]->slot;
        int32_t size = slot_searches(slot) ? slot->row_count : 1;

        if (i == 0 || (i + size - begin > most && i > begin)) {
            step->cuts[cuts++] = i;
            begin = i;
        }
        i += size;
    }
    step->cuts[cuts] = count;
    return cuts;
}

/* The rows that still run move up; returns their number. */
static int32_t rows_running(struct row **rows, int32_t count)
{
    int32_t kept = 0;

    for (int32_t i = 0; i < count; i++)
        if (rows[i]->running)
            rows[kept++] = rows[i];
    return kept;
}

static void decode_share(struct shares *shares, const struct crew *crew, int32_t begin, int32_t end)
{
    const struct step *step = shares->step;
    struct choosing choosing = {step, step->rows + begin, crew->frames};
    int32_t count = end - begin, steps = 0, most;

    for (; steps < shares->k && count > 0; steps++) {
        for (int32_t i = 0; i < count; i++) {
            struct row *row = choosing.rows[i];

            slots_grow(step->slots, row);
            crew->frames->rows[i] =
                (struct layers_row){row->history[row->length], row->length, row->pages,
                                    row->slot->cross, row->slot->request.source_len};
        }
        layers_decode(crew, count);
        layers_logits(crew, count);
        crew_each(crew, count, 2, choose_rows, &choosing);
        atomic_fetch_add(&shares->row_steps, count);
        count = rows_running(step->rows + begin, count);
    }
    most = atomic_load(&shares->steps);
    while (steps > most && !atomic_compare_exchange_weak(&shares->steps, &most, steps))
        ;
}

/* ---- reporting ---- */

static void row_report(struct row *row, struct engine_output *out, struct engine_item *items)
{
    int32_t fresh = row->length - row->reported;
    bool ended = row->finish != ENGINE_RUNNING && !row->finish_reported;

    if (fresh == 0 && !ended)
        return;
    items[out->item_count++] =
        (struct engine_item){.tag = row->slot->request.tag,
                             .slot = -1,
                             .sequence = row->sequence,
                             .token_count = fresh - (ended && row->ended_with_eos),
                             .tokens = row->history + 1 + row->reported,
                             .logprobs = row->logprobs + row->reported,
                             .finish = row->finish,
                             .ended_with_eos = ended && row->ended_with_eos};
    row->reported = row->length;
    row->finish_reported = ended;
}

/* Hypothesis i of a search that is over; its tokens go where row i kept its own. */
static void hypothesis_report(const struct step *step, struct slot *slot, int32_t i,
                              struct engine_output *out)
{
    const struct beam_hypothesis *best = &slot->beams.state.best[i];
    struct row *row = slot->rows[i];
    struct rules_row rules = rules_of(row);
    struct engine_item *item = &step->items[out->item_count++];

    rules.length = best->length - 1;
    beam_read(best, slot->beams.tokens, slot->beams.parents, SLOT_ROWS, row->history + 1);
    *item = (struct engine_item){.tag = slot->request.tag,
                                 .slot = -1,
                                 .sequence = i,
                                 .tokens = row->history + 1,
                                 .finish = ENGINE_FINISH_LENGTH,
                                 .beam_score = (double)best->score};
    if (best->length && rules_after(&step->rules->rules, &rules, best->token) == RULES_EOS)
        item->finish = ENGINE_FINISH_EOS;
    item->ended_with_eos = best->length && best->token == step->rules->rules.eos_token;
    item->token_count = best->length - item->ended_with_eos;
}

static void slot_report(const struct step *step, struct slot *slot, struct engine_output *out)
{
    int32_t first = out->item_count;

    if (slot_searches(slot) && slot->beams.over) {
        for (int32_t i = 0; i < slot->request.num_sequences; i++)
            hypothesis_report(step, slot, i, out);
        slot->beams.over = false;
    } else if (!slot_searches(slot)) {
        for (int32_t i = 0; i < slot->row_count; i++)
            row_report(slot->rows[i], out, step->items);
    }
    for (int32_t i = first; i < out->item_count; i++)
        step->items[i].slot = (int32_t)(slot - step->slots->slots);
}

void step_run(struct step *step, int32_t k, struct engine_output *out)
{
    struct shares encode = {.step = step, .run = encode_share};
    struct shares decode = {.step = step, .k = k, .run = decode_share};
    int64_t began = clock_mono_us(), encoded;

    memset(out, 0, sizeof *out);
    out->items = step->items;
    encode.count = encode_cut(step);
    shares_run(&encode);
    encoded = clock_mono_us();
    decode.count = decode_cut(step);
    shares_run(&decode);
    for (int32_t i = 0; i < step->slots->order_count; i++)
        slot_report(step, step->slots->order[i], out);
    out->steps = decode.steps;
    out->rows_mean = decode.steps ? (double)decode.row_steps / decode.steps : 0.0;
    out->encode_us = encode.count ? encoded - began : 0;
    out->decode_us = clock_mono_us() - encoded;
}
