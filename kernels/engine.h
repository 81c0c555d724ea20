/* SPDX-License-Identifier: MIT
 *
 * engine: the seam between the service and the devices. It runs a Marian encoder-decoder over token
 * ids with continuous batching: requests are admitted while others decode, and one step advances
 * every occupied row by one token. It knows no text, Kafka, Avro or SQL.
 *
 * Words: a *row* is one sequence in the running batch; a *slot* is one admitted request, which
 * holds max(num_sequences, num_beams) rows from admission until it is released. Threads: one thread
 * at a time calls into an engine (threads inside are its own). Batch invariance is a rule of this
 * seam: a request's tokens and scores are the same bits alone or in any batch, in any slot, with
 * any number of threads and any k.
 */
#ifndef PGPT_KERNELS_ENGINE_H
#define PGPT_KERNELS_ENGINE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "kernels/base/error.h"

#ifdef __cplusplus
extern "C" {
#endif

struct engine; /* opaque */

struct engine_options {
    const char *device; /* "cpu", "cuda:0", ... */
    const char
        *compute;       /* "fp32", "fp16", "bf16", "int8", "dynamic"; NULL = the device's default */
    int32_t threads;    /* CPU threads, 0 = all cores */
    int32_t max_rows;   /* rows (sequences) held at once; 0 = the device's default */
    int32_t max_source; /* longest source in tokens; 0 = the model's positions */
    int32_t max_new;    /* most new tokens a request may ask for; 0 = the model's positions */
    uint64_t memory;    /* budget in bytes for caches and work space; 0 = what the above needs */
    bool cache_int8;    /* attention caches in int8 (CUDA) */
    bool spin;          /* busy-wait for the device instead of sleeping (CUDA) */
};
void engine_options_init(struct engine_options *options); /* device "cpu", the rest 0 */

struct engine_limits {
    int32_t max_rows;
    int32_t max_source; /* source tokens, control tokens and EOS included */
    int32_t max_new;    /* new tokens, EOS included */
    int32_t vocabulary;
    int32_t positions;     /* the model's max_position_embeddings */
    int32_t max_beams;     /* 8 */
    int32_t max_sequences; /* 8 */
    int32_t start_token, eos_token, pad_token, unk_token;
};

struct engine_info {
    char device[128];       /* e.g. "cpu (AMD EPYC, avx512_vnni, 2 threads)" */
    char compute[64];       /* format and, where bits depend on it, the path: "int8", "fp16" */
    char model_version[17]; /* 16 hex digits: hash of config and weights */
    char engine_id[17];     /* 16 hex digits: weights, build, compute format, device class */
    uint64_t weight_bytes;  /* resident */
    uint64_t cache_bytes;   /* attention caches, allocated */
    uint64_t work_bytes;
};

struct engine_request {
    uint64_t tag;          /* the caller's; comes back in each output */
    const int32_t *source; /* (source_len) encoder input, language token and EOS included */
    int32_t source_len;
    int32_t max_new;       /* 1..limits.max_new */
    int32_t min_new;       /* 0..max_new: EOS is impossible before */
    int32_t num_sequences; /* 1..8; with beams 1..num_beams */
    int32_t num_beams;     /* 1 = no beam search */
    bool do_sample;        /* excludes beams */
    bool early_stopping;   /* beams only */
    float temperature, top_p, repetition_penalty, length_penalty;
    int32_t top_k;
    uint64_t seed;
};
void engine_request_init(struct engine_request *request); /* greedy, max_new 128 */

enum engine_finish {
    ENGINE_RUNNING = 0,
    ENGINE_FINISH_EOS,
    ENGINE_FINISH_LENGTH, /* the limit was reached; an EOS forced by it counts as this */
};

/* What one sequence did in a call. Beam searches report nothing until they end, then one item for
 * each returned sequence, best first, with all of its tokens. */
struct engine_item {
    uint64_t tag;
    int32_t slot;
    int32_t sequence;      /* 0..num_sequences-1 */
    int32_t token_count;   /* new in this call; the ending EOS is left out */
    const int32_t *tokens; /* (token_count) */
    const float *logprobs; /* (token_count + ended_with_eos) ln p by the model's own probabilities,
                              before any warping, the EOS's last; NULL for beams */
    enum engine_finish finish;
    bool ended_with_eos; /* an EOS, free or forced, was generated in this call */
    double beam_score;   /* beams: Hugging Face's sequences_scores */
};

struct engine_output {
    const struct engine_item *items; /* owned by the engine, valid until the next call on it */
    int32_t item_count;
    int32_t steps;     /* decode steps run by this call, <= k */
    double rows_mean;  /* running rows a step, mean over the steps */
    int64_t encode_us; /* time of the encoding this call waited for */
    int64_t decode_us;
};

/* NULL with a one-line reason when the directory, the device or the sizes will not do. */
struct engine *engine_open(const char *model_dir, const struct engine_options *options,
                           struct error *error) PGPT_MUST_CHECK;
void engine_close(struct engine *engine); /* NULL is allowed */

const struct engine_limits *engine_limits(const struct engine *engine);
const struct engine_info *engine_info(const struct engine *engine);

/* Rows free now: a request that needs more is not admitted. */
int32_t engine_free_rows(const struct engine *engine);

/* Admits the first m of n requests for which rows and cache memory are free; slots[0..m-1] get
 * their slots. The sources are copied. Encoding may still run when it returns: the rows join at the
 * next step boundary after it. Returns m, or -1 when a request is out of the limits (none admitted)
 * or the device failed. */
int32_t engine_admit(struct engine *engine, int32_t n, const struct engine_request *requests,
                     int32_t *slots, struct error *error) PGPT_MUST_CHECK;

/* Runs up to k decode steps for all rows; stops earlier when no row runs any more. A slot whose
 * sequences have all finished keeps its rows until engine_release(). Who asks for the same k again
 * and again may be a call behind the device, which has begun the next one: its k is then the one
 * that was asked for before, and who is admitted joins a call later. */
int engine_step(struct engine *engine, int32_t k, struct engine_output *out,
                struct error *error) PGPT_MUST_CHECK;

/* Ends one sequence of a sampled or greedy slot (a stop string was found): it takes part in no
 * further step; its siblings go on. Nothing is reported for it any more. */
void engine_stop_sequence(struct engine *engine, int32_t slot, int32_t sequence);

/* Frees a slot, finished or not, and its rows. */
void engine_release(struct engine *engine, int32_t slot);

#ifdef __cplusplus
}
#endif
#endif
