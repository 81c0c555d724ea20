/* SPDX-License-Identifier: MIT
 *
 * Batch invariance on the CPU: a request's tokens, log-probabilities and scores are the same bytes
 * alone and in crowds that come, go, are cancelled and stopped at random, with any number of
 * threads, any k, any instruction set of this machine, in each compute format.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "kernels/cpu/isa.h"
#include "kernels/engine.h"

#define MODEL PGPT_SOURCE_DIR "/models/prometheus-mini"

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
enum { REQUESTS = 16 };
#else
enum { REQUESTS = 48 };
#endif
enum { SOURCE = 24, NEW = 36, ROWS = 60, SEQUENCES = 4 };

static uint32_t state = 1;

static int32_t random_below(int32_t limit)
{
    state = state * 1664525u + 1013904223u;
    return (int32_t)((state >> 8) % (uint32_t)limit);
}

struct asked {
    struct engine_request request;
    int32_t source[SOURCE];
};

/* Tokens as indices of real words, so that sequences end by themselves at different lengths. */
static void asked_make(struct asked *a, int32_t i)
{
    struct engine_request *r = &a->request;

    engine_request_init(r);
    r->tag = (uint64_t)i;
    r->source_len = 3 + random_below(SOURCE - 3);
    for (int32_t t = 0; t < r->source_len; t++)
        a->source[t] = 276 + random_below(2724);
    a->source[0] = 4 + random_below(2);
    a->source[r->source_len - 1] = 3;
    r->source = a->source;
    r->max_new = 1 + random_below(NEW);
    r->min_new = random_below(4) ? 0 : random_below(r->max_new + 1);
    r->seed = (uint64_t)i * 0x9e3779b97f4a7c15u;
    if (i % 4 == 1) {
        r->do_sample = true;
        r->num_sequences = 1 + random_below(SEQUENCES);
        r->temperature = 0.5f + (float)random_below(100) / 100.0f;
        r->top_k = random_below(2) ? 0 : 1 + random_below(60);
        r->top_p = random_below(2) ? 1.0f : 0.8f;
    } else if (i % 4 == 2) {
        r->num_beams = 2 + random_below(SEQUENCES - 1);
        r->num_sequences = 1 + random_below(r->num_beams);
        r->early_stopping = random_below(2);
        r->length_penalty = 0.5f + (float)random_below(3) / 2.0f;
    }
    r->repetition_penalty = random_below(3) ? 1.0f : 1.2f;
}

struct told { /* of one sequence */
    int32_t tokens[NEW];
    float logprobs[NEW];
    int32_t count, logprob_count;
    enum engine_finish finish;
    bool eos;
    double score;
};

struct answer {
    struct told sequences[SEQUENCES];
    int32_t slot;      /* while it runs */
    int32_t remaining; /* sequences */
    bool cancelled;
};

static void told_add(struct told *told, const struct engine_item *item)
{
    int32_t logprobs = item->token_count + item->ended_with_eos;

    memcpy(told->tokens + told->count, item->tokens, (size_t)item->token_count * sizeof(int32_t));
    told->count += item->token_count;
    if (item->logprobs) {
        memcpy(told->logprobs + told->logprob_count, item->logprobs,
               (size_t)logprobs * sizeof(float));
        told->logprob_count += logprobs;
    }
    told->finish = item->finish;
    told->eos = item->ended_with_eos;
    told->score = item->beam_score;
}

static struct engine *open_with(const char *compute, int32_t threads)
{
    struct engine_options options;
    struct error error;
    struct engine *engine;

    engine_options_init(&options);
    options.compute = compute;
    options.threads = threads;
    options.max_rows = ROWS;
    options.max_source = SOURCE;
    options.max_new = NEW;
    engine = engine_open(MODEL, &options, &error);
    if (!engine)
        fail_msg("%s", error.message);
    return engine;
}

static void step_take(struct engine *engine, int32_t k, struct answer *answers)
{
    struct engine_output out;
    struct error error;

    assert_int_equal(engine_step(engine, k, &out, &error), 0);
    assert_true(out.steps <= k);
    for (int32_t i = 0; i < out.item_count; i++) {
        const struct engine_item *item = &out.items[i];
        struct answer *answer = &answers[item->tag];

        assert_int_equal(item->slot, answer->slot);
        told_add(&answer->sequences[item->sequence], item);
        answer->remaining -= item->finish != ENGINE_RUNNING;
    }
}

static void alone_run(struct engine *engine, struct asked *asked, struct answer *answers)
{
    struct error error;

    memset(answers, 0, REQUESTS * sizeof *answers);
    for (int32_t i = 0; i < REQUESTS; i++) {
        struct answer *answer = &answers[i];

        answer->remaining = asked[i].request.num_sequences;
        assert_int_equal(engine_admit(engine, 1, &asked[i].request, &answer->slot, &error), 1);
        while (answer->remaining)
            step_take(engine, 1, answers);
        engine_release(engine, answer->slot);
    }
}

/* Requests join in a random order while others run; one in eight is cancelled on the way. */
static void crowd_run(struct engine *engine, struct asked *asked, struct answer *answers)
{
    int32_t order[REQUESTS], running[REQUESTS], next = 0, count = 0;
    struct error error;

    memset(answers, 0, REQUESTS * sizeof *answers);
    for (int32_t i = 0; i < REQUESTS; i++) {
        int32_t j = random_below(i + 1);

        order[i] = order[j];
        order[j] = i;
    }
    while (next < REQUESTS || count) {
        int32_t joining = random_below(12);

        for (; joining && next < REQUESTS; joining--, next++) {
            struct answer *answer = &answers[order[next]];

            if (engine_admit(engine, 1, &asked[order[next]].request, &answer->slot, &error) != 1)
                break;
            answer->remaining = asked[order[next]].request.num_sequences;
            running[count++] = order[next];
        }
        step_take(engine, 1 + random_below(5), answers);
        for (int32_t i = 0; i < count;) {
            struct answer *answer = &answers[running[i]];

            answer->cancelled = answer->remaining && random_below(100) == 0;
            if (answer->remaining && !answer->cancelled) {
                i++;
                continue;
            }
            engine_release(engine, answer->slot);
            running[i] = running[--count];
        }
    }
    assert_int_equal(engine_free_rows(engine), ROWS);
}

static void answers_compare(const struct asked *asked, const struct answer *expected,
                            const struct answer *got)
{
    int32_t cancelled = 0;

    for (int32_t i = 0; i < REQUESTS; i++) {
        cancelled += got[i].cancelled;
        for (int32_t j = 0; j < asked[i].request.num_sequences && !got[i].cancelled; j++) {
            const struct told *a = &expected[i].sequences[j], *b = &got[i].sequences[j];

            assert_int_equal(a->count, b->count);
            assert_int_equal(a->logprob_count, b->logprob_count);
            assert_memory_equal(a->tokens, b->tokens, sizeof a->tokens);
            assert_memory_equal(a->logprobs, b->logprobs, sizeof a->logprobs);
            assert_int_equal(a->finish, b->finish);
            assert_int_equal(a->eos, b->eos);
            assert_memory_equal(&a->score, &b->score, sizeof a->score);
        }
    }
    assert_true(cancelled < REQUESTS / 2);
}

static void format_check(const char *compute)
{
    static struct asked asked[REQUESTS];
    static struct answer expected[REQUESTS], got[REQUESTS];
    struct engine *engine;

    for (int32_t i = 0; i < REQUESTS; i++)
        asked_make(&asked[i], i);
    engine = open_with(compute, 1);
    alone_run(engine, asked, expected);
    engine_close(engine);
    for (int32_t threads = 1; threads <= 3; threads++) {
        engine = open_with(compute, threads);
        for (int round = 0; round < 3; round++) {
            crowd_run(engine, asked, got);
            answers_compare(asked, expected, got);
        }
        if (threads == 2) { /* alone, with threads that share its products */
            alone_run(engine, asked, got);
            answers_compare(asked, expected, got);
        }
        engine_close(engine);
    }
    for (int isa = 0; isa < ISA_COUNT; isa++) { /* plain C is slow: once */
        enum isa before = isa_current();

        if (isa_force((enum isa)isa))
            continue;
        engine = open_with(compute, 2);
        crowd_run(engine, asked, got);
        answers_compare(asked, expected, got);
        engine_close(engine);
        assert_int_equal(isa_force(before), 0);
    }
}

static void fp32_does_not_depend_on_company(void **unused)
{
    (void)unused;
    format_check("fp32");
}

static void int8_does_not_depend_on_company(void **unused)
{
    (void)unused;
    format_check("int8");
}

static void dynamic_does_not_depend_on_company(void **unused)
{
    (void)unused;
    format_check("dynamic");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(fp32_does_not_depend_on_company),
        cmocka_unit_test(int8_does_not_depend_on_company),
        cmocka_unit_test(dynamic_does_not_depend_on_company),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
