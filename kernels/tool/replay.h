/* SPDX-License-Identifier: MIT
 *
 * replay: runs a list of engine requests to their ends and keeps what came out, by one of two
 * schedules: plain (in order, as many as fit) or random (a seed decides order, when each is
 * admitted, and which neighbours join and leave). What comes out must not depend on it. Main thread
 * only.
 */
#ifndef PGPT_KERNELS_TOOL_REPLAY_H
#define PGPT_KERNELS_TOOL_REPLAY_H

#include "kernels/engine.h"

enum { REPLAY_SEQUENCES_MAX = 8 };

struct replay_sequence {
    int32_t *tokens; /* (token_count) */
    float *logprobs; /* (logprob_count) one more than tokens when an EOS ended it; beams: none */
    int32_t token_count, logprob_count;
    bool ended_with_eos, finished;
    enum engine_finish finish;
    double beam_score;
};

struct replay_output {
    struct replay_sequence sequences[REPLAY_SEQUENCES_MAX];
    int32_t sequence_count, finished_count;
};

struct replay_schedule {
    int32_t k;     /* steps a call */
    int32_t batch; /* requests held at once at most; 0 = as many as fit */
    bool random;
    uint64_t seed; /* of a random schedule */
};

/* A small generator for schedules (splitmix64); never for tokens. */
uint64_t replay_random(uint64_t *state);

/* outputs (n): filled here, freed by replay_free() also after a failure. tags are set here. */
int replay_run(struct engine *engine, const struct engine_request *requests, int32_t n,
               const struct replay_schedule *schedule, struct replay_output *outputs,
               struct error *error) PGPT_MUST_CHECK;
void replay_free(struct replay_output *outputs, int32_t n);

/* Are all tokens, log-probabilities and scores the same bits? */
bool replay_equal(const struct replay_output *a, const struct replay_output *b);

#endif
