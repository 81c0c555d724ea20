/* SPDX-License-Identifier: MIT */
#include "worker/suspects.h"

#include <stdlib.h>
#include <sys/queue.h>

enum turn {
    TURN_OTHERS,   /* suspects are gathered, others pass */
    TURN_EMPTYING, /* the next round waits until nothing is in the worker */
    TURN_ROUND     /* its suspects are admitted, and run */
};

struct kept {
    struct suspect suspect;
    bool in_round;
    TAILQ_ENTRY(kept) all;
};
TAILQ_HEAD(kept_list, kept);

struct suspects {
    struct kept_list all; /* in the order of reading */
    int32_t held, others; /* suspects, and what is not, in it */
    size_t bytes;         /* of the suspects */
    enum turn turn;
    int32_t beside;                                /* others admitted in this turn */
    int32_t run;                                   /* single ones of this round so far */
    int64_t since_us;                              /* of the turn; 0 = nothing to wait for */
    int64_t round_us;                              /* when its first single one was marked */
    int16_t held_of[ASSIGNMENT_PARTITIONS_MAX];    /* suspects in the list */
    int16_t singles_of[ASSIGNMENT_PARTITIONS_MAX]; /* single ones among them */
};

struct suspects *suspects_create(struct error *error)
{
    struct suspects *s = calloc(1, sizeof *s);

    if (s)
        TAILQ_INIT(&s->all);
    else
        error_set(error, "suspects: out of memory");
    return s;
}

static bool is_suspect(const struct kept *kept)
{
    return kept->suspect.answer.runs != LEDGER_FREE;
}

/* Adds to the counts, or takes from them. */
static void count(struct suspects *s, const struct kept *kept, int by)
{
    const rd_kafka_message_t *message = kept->suspect.message;

    if (!is_suspect(kept)) {
        s->others += by;
        return;
    }
    s->held += by;
    s->bytes = by > 0 ? s->bytes + message->len : s->bytes - message->len;
    s->held_of[message->partition] = (int16_t)(s->held_of[message->partition] + by);
    if (kept->suspect.answer.runs == LEDGER_SINGLE)
        s->singles_of[message->partition] = (int16_t)(s->singles_of[message->partition] + by);
}

static void drop(struct suspects *s, struct kept *kept)
{
    count(s, kept, -1);
    TAILQ_REMOVE(&s->all, kept, all);
    rd_kafka_message_destroy(kept->suspect.message);
    free(kept);
}

void suspects_destroy(struct suspects *s)
{
    if (!s)
        return;
    while (!TAILQ_EMPTY(&s->all))
        drop(s, TAILQ_FIRST(&s->all));
    free(s);
}

static bool others_may(const struct suspects *s)
{
    return s->turn == TURN_OTHERS && (!s->held || s->beside < SUSPECTS_BESIDE_MAX);
}

bool suspects_passes(struct suspects *s, const struct assignment_admission *answer)
{
    if (answer->runs != LEDGER_FREE || !others_may(s))
        return false;
    s->beside += s->held > 0;
    return true;
}

int suspects_keep(struct suspects *s, rd_kafka_message_t *message,
                  const struct assignment_admission *answer, int64_t now_us)
{
    struct kept *kept = calloc(1, sizeof *kept);

    if (!kept)
        return -1;
    kept->suspect.message = message;
    kept->suspect.answer = *answer;
    TAILQ_INSERT_TAIL(&s->all, kept, all);
    count(s, kept, 1);
    if (!s->since_us)
        s->since_us = now_us;
    return 0;
}

void suspects_forget(struct suspects *s, int32_t partition)
{
    struct kept *next;

    for (struct kept *kept = TAILQ_FIRST(&s->all); kept; kept = next) {
        next = TAILQ_NEXT(kept, all);
        if (kept->suspect.message->partition == partition)
            drop(s, kept);
    }
}

bool suspects_has_enough(const struct suspects *s, int32_t partition, bool had_enough)
{
    int held = s->held_of[partition];

    return held >= (had_enough ? SUSPECTS_HELD_MAX / 2 : SUSPECTS_HELD_MAX) ||
           (held >= 1 && s->bytes >= SUSPECTS_BYTES_MAX);
}

bool suspects_is_full(const struct suspects *s)
{
    return s->others >= SUSPECTS_BESIDE_MAX;
}

bool suspects_is_busy(const struct suspects *s)
{
    return s->held > 0 || s->others > 0 || s->turn != TURN_OTHERS;
}

/* ---- rounds ---- */

static struct kept *first_suspect(const struct suspects *s)
{
    struct kept *kept = TAILQ_FIRST(&s->all);

    while (kept && !is_suspect(kept))
        kept = TAILQ_NEXT(kept, all);
    return kept;
}

static void mark_add(struct assignment_mark *marks, int *mark_count,
                     const rd_kafka_message_t *message, enum ledger_run runs)
{
    int i = 0;

    while (i < *mark_count && marks[i].partition != message->partition)
        i++;
    if (i == *mark_count)
        marks[(*mark_count)++] =
            (struct assignment_mark){message->partition, message->offset, 0, runs};
    marks[i].end = message->offset + 1;
}

/* The round's next run: the single one whose turn it is, or a group. A group of one is a single
 * one: a death then says more. */
static int choose(struct suspects *s, struct assignment_mark marks[SUSPECTS_GROUP_MAX])
{
    struct kept *first = first_suspect(s);
    bool single = first->suspect.answer.runs == LEDGER_SINGLE;
    int chosen = 0, mark_count = 0;

    for (struct kept *kept = TAILQ_FIRST(&s->all); kept; kept = TAILQ_NEXT(kept, all)) {
        const rd_kafka_message_t *message = kept->suspect.message;

        kept->in_round = is_suspect(kept) && chosen < (single ? 1 : SUSPECTS_GROUP_MAX) &&
                         (single || !s->singles_of[message->partition]);
        if (!kept->in_round)
            continue;
        mark_add(marks, &mark_count, message, single ? LEDGER_SINGLE : LEDGER_GROUP);
        chosen++;
    }
    if (chosen == 1 && !single) {
        count(s, first, -1);
        first->suspect.answer.runs = marks[0].runs = LEDGER_SINGLE;
        count(s, first, 1);
    }
    return mark_count;
}

static void turn_set(struct suspects *s, enum turn turn, int64_t now_us)
{
    s->turn = turn;
    s->since_us = s->held || s->others ? now_us : 0;
    if (turn == TURN_OTHERS)
        s->beside = s->run = 0;
}

/* Enough is gathered, or no more comes, and the others had their turn. */
static bool others_are_over(const struct suspects *s, bool more_expected, int64_t now_us)
{
    if (!s->held)
        return false;
    if (s->beside >= SUSPECTS_BESIDE_MAX || now_us - s->since_us >= SUSPECTS_GATHER_US)
        return true;
    return !s->others && (s->held >= SUSPECTS_GROUP_MAX || !more_expected);
}

static bool round_is_over(const struct suspects *s, int64_t now_us)
{
    const struct kept *first = first_suspect(s);

    return !first || first->suspect.answer.runs != LEDGER_SINGLE || !s->run ||
           s->run >= SUSPECTS_GROUP_MAX || now_us - s->round_us >= SUSPECTS_SINGLE_ROUND_US;
}

static bool something_is_to_be_admitted(const struct suspects *s)
{
    for (const struct kept *kept = TAILQ_FIRST(&s->all); kept; kept = TAILQ_NEXT(kept, all))
        if (kept->in_round)
            return true;
    return false;
}

int suspects_review(struct suspects *s, size_t jobs, bool more_expected, int64_t now_us,
                    struct assignment_mark marks[SUSPECTS_GROUP_MAX])
{
    if (s->turn == TURN_OTHERS) {
        if (!s->held && !s->others)
            turn_set(s, TURN_OTHERS, now_us);
        else if (others_are_over(s, more_expected, now_us))
            turn_set(s, TURN_EMPTYING, now_us);
    }
    if (s->turn == TURN_ROUND && !jobs && !something_is_to_be_admitted(s))
        turn_set(s, round_is_over(s, now_us) ? TURN_OTHERS : TURN_EMPTYING, now_us);
    if (s->turn == TURN_EMPTYING && !s->held) /* they were given up */
        turn_set(s, TURN_OTHERS, now_us);
    if (s->turn != TURN_EMPTYING || jobs)
        return 0;
    if (!s->run)
        s->round_us = now_us;
    return choose(s, marks);
}

void suspects_start(struct suspects *s)
{
    s->turn = TURN_ROUND;
    s->run += first_suspect(s)->suspect.answer.runs == LEDGER_SINGLE;
}

static struct kept *admissible(struct suspects *s)
{
    bool others = others_may(s);

    for (struct kept *kept = TAILQ_FIRST(&s->all); kept; kept = TAILQ_NEXT(kept, all))
        if (s->turn == TURN_ROUND ? kept->in_round : others && !is_suspect(kept))
            return kept;
    return NULL;
}

const struct suspect *suspects_next(struct suspects *s)
{
    struct kept *kept = admissible(s);

    return kept ? &kept->suspect : NULL;
}

void suspects_admitted(struct suspects *s)
{
    struct kept *kept = admissible(s);

    s->beside += !is_suspect(kept);
    drop(s, kept);
}
