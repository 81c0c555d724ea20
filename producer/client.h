/* SPDX-License-Identifier: MIT
 *
 * client: the library under the `pgpt` command, for services in C. It sends generation requests and
 * cancels, and follows jobs: their text as it is generated and their results.
 *
 *   client_open() ... client_submit() ... client_flush()            send, know what was
 * acknowledged follow_open() ... follow_watch() ... follow_next() ...          read chunks and
 * results
 *
 * Open the follow before the submit: it reads from where the topics end at that moment.
 * A struct client belongs to one thread at a time, a struct follow too, but for follow_watch(),
 * follow_forget() and follow_count(), which any thread may call.
 */
#ifndef PGPT_PRODUCER_CLIENT_H
#define PGPT_PRODUCER_CLIENT_H

#include "producer/merge.h"
#include "producer/topic_table.h"
#include "schema/records.h"

enum client_status {
    CLIENT_OK = 0,
    CLIENT_WRONG,       /* an option or argument is wrong; the reason names it */
    CLIENT_UNREACHABLE, /* the brokers do not answer, or refuse this client */
    CLIENT_NO_TOPIC,    /* a topic is missing: pgpt topics --create */
    CLIENT_FULL,        /* a declared bound is reached: try again after client_poll() */
    CLIENT_FAILED       /* anything else */
};

/* How a record fared. error NULL = the brokers have it on as many replicas as they promise; else
 * the reason, which lives as long as the call. */
struct client_ack {
    enum topic topic;
    char job_id[37]; /* "" for a record whose key is no UUID */
    int32_t partition;
    int64_t offset;
    const char *error;
    void *user; /* as given with the record */
};

struct client_options {
    const char *brokers; /* "host:port,..." */
    const char *const
        *properties; /* name, value, ..., NULL: for librdkafka (SASL, TLS); may be NULL */
    const char *topics[TOPIC_COUNT]; /* NULL = the contract's name */
    int timeout_ms;                  /* for each answer of the brokers */
    bool verbose;                    /* librdkafka's own log on stderr */
    /* Called within client_submit(), client_poll() and client_flush(); may be NULL. */
    void (*on_ack)(const struct client_ack *ack, void *opaque);
    void *opaque;
};

/* ---- sending ---- */

struct client; /* opaque */

/* Connects, and checks that the topics of requests and control are there. */
enum client_status client_open(const struct client_options *options, struct client **client,
                               struct error *error) PGPT_MUST_CHECK;
/* What was not acknowledged by now may or may not arrive: client_flush() first. NULL is allowed. */
void client_close(struct client *client);

/* A new random job id (UUID version 4). Returns -1 when the system has no randomness. */
int client_new_id(char job_id[37], struct error *error) PGPT_MUST_CHECK;

/* Queues a request; its key is job_id, so all of its records lie in one partition number.
 * Idempotent producer, acks=all, murmur2_random. The request is copied. `user` comes back with the
 * ack. */
enum client_status client_submit(struct client *client, const struct generation_request *request,
                                 void *user, struct error *error) PGPT_MUST_CHECK;

/* Queues a cancel. It holds at any step of the job, also before its request is read. */
enum client_status client_cancel(struct client *client, const char *job_id, const char *reason,
                                 void *user, struct error *error) PGPT_MUST_CHECK;

/* A record as it is, for replays: bytes are not looked at. */
struct client_record {
    enum topic topic;
    int32_t partition; /* -1 = by key */
    const void *key;   /* NULL = none */
    size_t key_size;
    const void *value;
    size_t value_size;
    const struct text_pair *headers;
    size_t header_count;
    void *user;
};
enum client_status client_send(struct client *client, const struct client_record *record,
                               struct error *error) PGPT_MUST_CHECK;

void client_poll(struct client *client,
                 int timeout_ms); /* acks that have come, waits for the first */
/* Waits until all is acknowledged or failed; returns what is still open after timeout_ms. */
size_t client_flush(struct client *client, int timeout_ms) PGPT_MUST_CHECK;
/* How many partitions a topic has. */
enum client_status client_partitions(struct client *client, enum topic topic, int32_t *count,
                                     struct error *error) PGPT_MUST_CHECK;

/* ---- following ---- */

struct follow; /* opaque */

#define FOLLOW_FROM_NOW 0
#define FOLLOW_FROM_START (-1)

struct follow_options {
    const struct client_options *client;
    bool chunks;      /* read chunks too; otherwise results alone */
    int64_t since_us; /* records from this Unix time on, or one of the names above */
    size_t max_jobs;  /* watched at once */
    int32_t attempt;  /* ignore earlier attempts; 0 = take all */
};

/* Reads every partition without a group (nothing is committed, nobody is disturbed); results as
 * read_committed, so each is seen once. The offsets are taken before it returns. */
enum client_status follow_open(const struct follow_options *options, struct follow **follow,
                               struct error *error) PGPT_MUST_CHECK;
void follow_close(struct follow *follow); /* NULL is allowed */

/* CLIENT_FULL past max_jobs; CLIENT_WRONG when job_id is no UUID or watched already. */
enum client_status follow_watch(struct follow *follow, const char *job_id, void *user,
                                struct error *error) PGPT_MUST_CHECK;
/* Stops watching; returns the job's `user`, NULL when it was not watched (any more). */
void *follow_forget(struct follow *follow, const char *job_id);
size_t follow_count(struct follow *follow); /* jobs whose result was not passed on yet */

enum follow_kind { FOLLOW_NOTHING, FOLLOW_PIECE, FOLLOW_RESULT, FOLLOW_ERROR };

struct follow_event {
    enum follow_kind kind;
    char job_id[37]; /* lower case */
    void *user;
    int32_t attempt;
    struct merge_piece piece;               /* FOLLOW_PIECE */
    const struct generation_result *result; /* FOLLOW_RESULT: the job is not watched any more */
};

/* The next news of a watched job: pieces in order, without gaps and repeats, then its result. What
 * chunks did not bring comes as pieces made from the result, just before it. FOLLOW_NOTHING after
 * timeout_ms; FOLLOW_ERROR when following cannot go on. What the event points to lives until the
 * next call. */
enum follow_kind follow_next(struct follow *follow, int timeout_ms, struct follow_event *event,
                             struct error *error) PGPT_MUST_CHECK;

/* The last connection error that came after since_us (clock_mono_us()), "" = none: why there may be
 * no news. For the thread that calls follow_next(). */
const char *follow_trouble(const struct follow *follow, int64_t since_us);

#endif
