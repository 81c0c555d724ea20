/* SPDX-License-Identifier: MIT */
#include "tests/worker/failing.h"

#include <errno.h>
#include <libpq-fe.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "schema/codec.h"

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static const char *failing; /* the rest is under the lock */
static int from, left, hits;
static _Atomic(rd_kafka_resp_err_t) answer; /* read by calls without it */

void failing_set_code(const char *name, int at, int count, rd_kafka_resp_err_t code)
{
    pthread_mutex_lock(&lock);
    failing = name;
    from = at;
    left = count;
    hits = 0;
    answer = code;
    pthread_mutex_unlock(&lock);
}

void failing_set(const char *name, int at, int count)
{
    failing_set_code(name, at, count, RD_KAFKA_RESP_ERR__STATE);
}

int failing_hits(void)
{
    int count;

    pthread_mutex_lock(&lock);
    count = hits;
    pthread_mutex_unlock(&lock);
    return count;
}

int failing_clear(void)
{
    int count = failing_hits();

    failing_set(NULL, 0, 0);
    return count;
}

/* The lock is held. */
static bool is_meant(const char *name)
{
    return !strcmp(failing, name) ||
           (!strcmp(failing, "memory") && strstr(" malloc calloc realloc strdup ", name));
}

static bool now(const char *name)
{
    bool fails = false;

    pthread_mutex_lock(&lock);
    if (failing && is_meant(name) && --from <= 0 && left > 0) {
        left--;
        hits++;
        fails = true;
    }
    pthread_mutex_unlock(&lock);
    return fails;
}

static rd_kafka_error_t *error_new(void)
{
    return rd_kafka_error_new(answer, "a test lets it fail");
}

/* Of libpq's calls for a copy: 0, with that code, asks to come again. */
static int refusal(void)
{
    return answer == RD_KAFKA_RESP_ERR__STATE ? -1 : (int)answer;
}

/* One line each: the build reads the names from here. */
#define CALL(type, name, parameters, arguments, failure)                                           \
    type failing_##name parameters;                                                                \
    type failing_##name parameters                                                                 \
    {                                                                                              \
        return now(#name) ? (failure) : name arguments;                                            \
    }

/* clang-format off */
CALL(void *, malloc, (size_t size), (size), NULL)
CALL(void *, calloc, (size_t count, size_t size), (count, size), NULL)
CALL(void *, realloc, (void *old, size_t size), (old, size), NULL)
CALL(char *, strdup, (const char *text), (text), NULL)
CALL(FILE *, open_memstream, (char **data, size_t *size), (data, size), NULL)
CALL(int, pthread_create, (pthread_t *t, const pthread_attr_t *a, void *(*run)(void *), void *arg), (t, a, run, arg), EAGAIN)

CALL(rd_kafka_resp_err_t, rd_kafka_assign, (rd_kafka_t *k, const rd_kafka_topic_partition_list_t *l), (k, l), answer)
CALL(rd_kafka_resp_err_t, rd_kafka_subscribe, (rd_kafka_t *k, const rd_kafka_topic_partition_list_t *l), (k, l), answer)
CALL(rd_kafka_error_t *, rd_kafka_incremental_assign, (rd_kafka_t *k, const rd_kafka_topic_partition_list_t *l), (k, l), error_new())
CALL(rd_kafka_error_t *, rd_kafka_incremental_unassign, (rd_kafka_t *k, const rd_kafka_topic_partition_list_t *l), (k, l), error_new())
CALL(rd_kafka_resp_err_t, rd_kafka_committed, (rd_kafka_t *k, rd_kafka_topic_partition_list_t *l, int ms), (k, l, ms), answer)
CALL(rd_kafka_resp_err_t, rd_kafka_query_watermark_offsets, (rd_kafka_t *k, const char *t, int32_t p, int64_t *low, int64_t *high, int ms), (k, t, p, low, high, ms), answer)
CALL(rd_kafka_resp_err_t, rd_kafka_offsets_for_times, (rd_kafka_t *k, rd_kafka_topic_partition_list_t *l, int ms), (k, l, ms), answer)
CALL(rd_kafka_resp_err_t, rd_kafka_commit_queue, (rd_kafka_t *k, const rd_kafka_topic_partition_list_t *l, rd_kafka_queue_t *q, void (*cb)(rd_kafka_t *, rd_kafka_resp_err_t, rd_kafka_topic_partition_list_t *, void *), void *o), (k, l, q, cb, o), answer)
CALL(rd_kafka_resp_err_t, rd_kafka_commit, (rd_kafka_t *k, const rd_kafka_topic_partition_list_t *l, int async), (k, l, async), answer)
CALL(rd_kafka_error_t *, rd_kafka_seek_partitions, (rd_kafka_t *k, rd_kafka_topic_partition_list_t *l, int ms), (k, l, ms), error_new())
CALL(rd_kafka_resp_err_t, rd_kafka_metadata, (rd_kafka_t *k, int all, rd_kafka_topic_t *t, const struct rd_kafka_metadata **m, int ms), (k, all, t, m, ms), answer)
CALL(rd_kafka_topic_t *, rd_kafka_topic_new, (rd_kafka_t *k, const char *name, rd_kafka_topic_conf_t *c), (k, name, c), NULL)
CALL(rd_kafka_consumer_group_metadata_t *, rd_kafka_consumer_group_metadata, (rd_kafka_t *k), (k), NULL)
CALL(rd_kafka_error_t *, rd_kafka_init_transactions, (rd_kafka_t *k, int ms), (k, ms), error_new())
CALL(rd_kafka_error_t *, rd_kafka_begin_transaction, (rd_kafka_t *k), (k), error_new())
CALL(rd_kafka_error_t *, rd_kafka_produceva, (rd_kafka_t *k, const rd_kafka_vu_t *v, size_t n), (k, v, n), error_new())
CALL(rd_kafka_resp_err_t, rd_kafka_flush, (rd_kafka_t *k, int ms), (k, ms), answer)
CALL(rd_kafka_error_t *, rd_kafka_AdminOptions_set_isolation_level, (rd_kafka_AdminOptions_t *o, rd_kafka_IsolationLevel_t i), (o, i), error_new())
CALL(rd_kafka_headers_t *, rd_kafka_headers_new, (size_t n), (n), NULL)
CALL(rd_kafka_resp_err_t, rd_kafka_header_add, (rd_kafka_headers_t *h, const char *n, ssize_t ns, const void *v, ssize_t vs), (h, n, ns, v, vs), answer)

CALL(rd_kafka_NewTopic_t *, rd_kafka_NewTopic_new, (const char *t, int n, int r, char *e, size_t s), (t, n, r, e, s), NULL)
CALL(rd_kafka_NewPartitions_t *, rd_kafka_NewPartitions_new, (const char *t, size_t n, char *e, size_t s), (t, n, e, s), NULL)

CALL(enum codec_status, codec_decode, (struct codec *c, enum record_type t, const void *d, size_t n, struct arena *a, void *r, struct error *e), (c, t, d, n, a, r, e), (error_set(e, "a test lets it fail"), CODEC_NO_MEMORY))

CALL(PGconn *, PQconnectdbParams, (const char *const *k, const char *const *v, int e), (k, v, e), NULL)
CALL(int, PQsetnonblocking, (PGconn *c, int on), (c, on), -1)
CALL(int, PQflush, (PGconn *c), (c), -1)
CALL(int, PQconsumeInput, (PGconn *c), (c), 0)
CALL(int, PQsendPrepare, (PGconn *c, const char *n, const char *q, int p, const Oid *t), (c, n, q, p, t), 0)
CALL(int, PQsendQuery, (PGconn *c, const char *q), (c, q), 0)
CALL(int, PQsendQueryPrepared, (PGconn *c, const char *n, int p, const char *const *v, const int *l, const int *f, int r), (c, n, p, v, l, f, r), 0)
CALL(int, PQsendQueryParams, (PGconn *c, const char *q, int p, const Oid *t, const char *const *v, const int *l, const int *f, int r), (c, q, p, t, v, l, f, r), 0)
CALL(int, PQputCopyData, (PGconn *c, const char *d, int n), (c, d, n), refusal())
CALL(int, PQputCopyEnd, (PGconn *c, const char *m), (c, m), refusal())
CALL(PGresult *, PQgetResult, (PGconn *c), (c), NULL)
/* clang-format on */
