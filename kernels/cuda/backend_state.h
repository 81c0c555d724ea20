/* SPDX-License-Identifier: MIT
 *
 * backend_state: the CUDA back end's own state, shared by its files alone: backend_cuda.cu
 * (opening, slots), backend_admit.cu (admission and encodings), backend_step.cu (who joins, and one
 * call of steps), backend_call.cu (what the device is told of it and what it reports),
 * backend_graph.cu (captured steps) and backend_trace.cu (a look inside). Used by the
 * engine's one calling thread.
 */
#ifndef PGPT_KERNELS_CUDA_BACKEND_STATE_H
#define PGPT_KERNELS_CUDA_BACKEND_STATE_H

#include "kernels/backend.h"
#include "kernels/cuda/backend_memory.h"
#include "kernels/cuda/fused.h"
#include "kernels/cuda/fused_rows.h"

enum slot_state { SLOT_FREE, SLOT_PENDING, SLOT_RUNNING };

struct backend_slot {
    enum slot_state state;
    uint32_t
        generation; /* counts the slot's uses, so that an old encoding cannot wake a new request */
    uint64_t tag;
    int32_t row_count;
    int32_t sequences; /* asked for */
    int32_t num_beams;
    int32_t max_new;
    int32_t rows[BEAM_MAX];
    bool reported;         /* beams: its hypotheses were given out */
    struct cuda_row start; /* what its rows begin with */
    bool early_stopping;
    float length_penalty;
};

/* The host's view of a row. */
struct backend_row {
    int32_t slot;
    int32_t sequence;
    int32_t position; /* tokens the host has seen */
    int32_t ahead;    /* steps that the device was told of and the host has not seen */
    int32_t max_new;
    int32_t flags; /* enum cuda_row_flags */
    bool running;
};

/* How sources of an encoding lie side by side: how many tokens and sources there is room for, and
 * how long one may be. graph: of backend_graphs.encode, -1: none, and all is as it is. */
struct encode_shape {
    int32_t tokens, sources, longest, graph;
};

/* One encoding: packed when its requests are admitted, enqueued behind the next decode steps (so
 * that the host's work for it costs them no time), or at once when nothing decodes. */
struct backend_batch {
    bool enqueued;
    cudaEvent_t done;
    int32_t count, rows;
    struct encode_shape shape;
    int32_t *slots;        /* (max_rows) */
    uint32_t *generations; /* (max_rows) of these slots when they were admitted */
};

/* A row of a call under way: whose it was then. */
struct call_row {
    int32_t row, slot;
    uint32_t generation;
};

/* Steps that the device was told of. Its memory is backend_memory.calls at the same index. */
struct backend_call {
    int32_t k, count;
    bool groups;           /* beam searches are among its rows */
    struct call_row *rows; /* (count) in the order of its results */
    cudaEvent_t done;
    int64_t begun_us, took_us; /* since it began, or since the call before ended */
};

/* What the rows of a step ask for: a kind needs all that the kinds before it need. ROWS_SAMPLED:
 * some draw their tokens, by no other rule than plain rows have. */
enum backend_rows { ROWS_PLAIN, ROWS_SAMPLED, ROWS_FULL, ROWS_BEAMS, ROWS_KINDS };

/* A captured run of `steps` steps for at most n_most rows. */
enum { GRAPH_BUCKETS = 32, GRAPH_LENGTHS = 3, GRAPH_ENCODINGS = 6 };
struct backend_graphs {
    int32_t bucket_count;
    int32_t n_most[GRAPH_BUCKETS];
    cudaGraphExec_t exec[GRAPH_BUCKETS][ROWS_KINDS][GRAPH_LENGTHS];
    cudaGraphExec_t encode[GRAPH_ENCODINGS];
};
extern const int32_t graph_lengths[GRAPH_LENGTHS]; /* longest first */

/* While graphs are captured: where a part's kernels go, and an event for its begin (the first) or
 * its end. */
struct backend_part {
    cudaStream_t stream;
    cudaEvent_t event;
};

struct backend {
    int32_t device;
    bool spin;
    int capability; /* 90 for 9.0; of the kernels that are used, at most the device's */
    bool pdl;
    struct network *network;
    struct engine_limits limits;
    struct backend_memory memory;
    struct cuda_rules rules;          /* for plain rows */
    struct choose_rules choose_rules; /* for full rows */
    void *rule_tables;                /* device memory of both */
    cudaStream_t decode, encode;
    cudaEvent_t stepped;
    struct backend_part parts[MEMORY_PARTS]; /* of a captured step; the first is decode's */
    struct backend_graphs graphs;
    struct fused_limits fused;
    int32_t fused_rows_clusters; /* 0 = not here */

    struct backend_slot *slots; /* (max_rows) */
    struct backend_row *rows;   /* (max_rows) */
    int32_t *free_rows;         /* (free_count) a stack */
    int32_t free_count;
    struct backend_batch batches[MEMORY_BATCHES];
    int32_t batch_first, batch_count; /* a ring: encodings in the order they were begun */

    int32_t *active; /* (active_count) rows that step in the next call */
    int32_t active_count, active_groups;
    bool active_changed;
    int32_t join_count; /* rows in the next call's joins */
    /* A ring of the calls under way: the one that is waited for next and, so that the device need
     * not wait for the host, one more. */
    struct backend_call calls[MEMORY_CALLS];
    int32_t call_first, call_count;
    int32_t k_last;            /* that the caller asked for */
    int64_t done_us;           /* when the last call was reported */
    struct engine_item *items; /* (max_rows + max_rows) */
    double step_us;            /* what a step took lately: how long a wait may sleep */
    int64_t wait_most_us;      /* longer than this nothing runs: it hangs */
    const char *running;       /* what decode steps run as, for messages */
    bool failed;               /* the device is lost: every further call fails */
    bool hung;                 /* and would never answer: it is left alone when closing */
    char failure[1024];
};

enum { BACKEND_WAIT_MOST_US = 20 * 1000 * 1000 }; /* wait_most_us, but for tests */
/* Waits for an event: sleeps through most of `expected_us` (unless spinning is set), then polls; at
 * most wait_most_us: a kernel that hangs is an error, not a silence. what: for the message. */
int backend_wait(struct backend *backend, cudaEvent_t event, double expected_us, const char *what,
                 struct error *error);
/* Remembers the first failure and fills error; returns -1. */
int backend_fail(struct backend *backend, cudaError_t status, const char *what,
                 struct error *error);

int backend_graphs_open(struct backend *backend, struct error *error) PGPT_MUST_CHECK;
void backend_graphs_close(struct backend *backend);
/* Enqueues `steps` steps for the n active rows, which look at `keys` positions together. told: is
 * `out` written by them, too? */
cudaError_t backend_graphs_run(struct backend *backend, int32_t n, enum backend_rows kind,
                               int32_t steps, int64_t keys, const struct step_output *out,
                               bool *told);
/* A step over the back end's own memory; full: whole rows of logits are wanted. */
struct network_step backend_step_of(const struct backend *backend, int32_t n_most, bool full);

int32_t backend_admit(struct backend *backend, int32_t n, const struct engine_request *requests,
                      const int32_t *slots, struct error *error);
/* Sources as they lie in `memory`. */
struct network_sources backend_sources_of(int32_t *memory, const struct encode_shape *shape);
/* The shape for `count` sources of `tokens` tokens together. */
struct encode_shape backend_graphs_shape(int32_t tokens, int32_t count, int32_t longest);
/* Enqueues the encoding of the sources that lie on the device. */
cudaError_t backend_graphs_encode(struct backend *backend, const struct encode_shape *shape);
/* Enqueues the encodings that were packed since. */
cudaError_t backend_encode(struct backend *backend);
/* The oldest encoding's rows join; waits for it. There is one under way. */
int backend_join_first(struct backend *backend, int64_t *waited_us, struct error *error);
/* What rows with these flags, all together (enum cuda_row_flags), ask of a step. */
enum backend_rows backend_rows_kind(int32_t flags);
/* Are steps of n such rows the fused kernel's, which ends at once where rows have ended? */
bool backend_graphs_fused(const struct backend *backend, int32_t n, enum backend_rows kind);
int backend_step(struct backend *backend, int32_t k, struct engine_output *out,
                 struct error *error);

/* Where the next call's memory is: index of backend.calls and of memory.calls. */
int32_t backend_call_next(const struct backend *backend);
/* Tells the device of up to k more steps of the active rows. Fewer than MEMORY_CALLS are under way.
 */
int backend_call_begin(struct backend *backend, int32_t k, struct error *error);
/* Waits for the oldest call; its news, and the active list without those that have ended. */
int backend_call_end(struct backend *backend, struct engine_output *out, struct error *error);
/* Waits for calls, oldest first, as long as none of their rows is anybody's any more. */
int backend_calls_forget(struct backend *backend, struct error *error);
int backend_trace_run(struct backend *backend, const struct backend_trace *trace,
                      struct error *error);

#endif
