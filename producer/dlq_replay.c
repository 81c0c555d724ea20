/* SPDX-License-Identifier: MIT
 *
 * Replay in two passes over the same range of the topic: the first finds the newest dead letter of
 * each request, the second sends those. What dies during the replay lies behind the range.
 */
#include "producer/dlq.h"

#include <openssl/sha.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "producer/output.h"

enum {
    ASK_ABOVE = 10, /* replays that need --yes or an answer */
    REPLAY_HEADERS_MAX = DEAD_LETTER_HEADERS_MAX + 1
};

/* The newest dead letter of a request. */
struct chosen {
    int32_t partition;
    int64_t offset;
    bool sent;
};

/* Two dead letters of the same key and bytes are the same request, which came back after a replay:
 * it is sent once, from the newest of them. */
static void identity_of(const struct dead_letter *letter, uint8_t id[16])
{
    unsigned char parts[2 * SHA256_DIGEST_LENGTH + 1], digest[SHA256_DIGEST_LENGTH];

    SHA256((const unsigned char *)letter->key.data, letter->key.size, parts);
    SHA256((const unsigned char *)letter->value.data, letter->value.size,
           parts + SHA256_DIGEST_LENGTH);
    parts[sizeof parts - 1] = letter->has_key;
    SHA256(parts, sizeof parts, digest);
    memcpy(id, digest, 16);
}

static bool choose_take(const struct dead_letter *letter, void *opaque)
{
    struct dlq *d = opaque;
    struct chosen *chosen;
    uint8_t id[16];

    if (!dlq_matches(d, letter))
        return !cli_interrupted();
    if (letter->cut) {
        d->cut++;
        cli_say(d->command,
                "%d:%lld is left out: the worker had to cut it, its bytes are not whole",
                letter->partition, (long long)letter->offset);
        return !cli_interrupted();
    }
    identity_of(letter, id);
    chosen = id_map_get(d->chosen, id);
    if (!chosen) {
        enum id_map_status put = ID_MAP_NO_MEMORY;

        chosen = calloc(1, sizeof *chosen);
        if (chosen)
            put = id_map_put(d->chosen, id, chosen);
        if (put) {
            free(chosen);
            d->full = put == ID_MAP_FULL;
            d->no_memory = put == ID_MAP_NO_MEMORY;
            return false;
        }
    }
    *chosen = (struct chosen){.partition = letter->partition, .offset = letter->offset};
    return !cli_interrupted();
}

static void on_ack(const struct client_ack *ack, void *opaque)
{
    struct dlq *d = opaque;

    if (!ack->error) {
        d->accepted++;
        if (d->cli->json)
            output_line(json_pack("{ss si sI}", "job_id", ack->job_id, "partition", ack->partition,
                                  "offset", (json_int_t)ack->offset));
    } else {
        d->refused++;
        cli_say(d->command, "a replay was not accepted: %s", ack->error);
    }
}

/* The same bytes and key, the trace, and the attempt it died at: it runs as the next one. */
static size_t replay_headers(const struct dead_letter *letter, struct text_pair *headers,
                             char attempt[24])
{
    size_t count = 0;

    for (size_t i = 0; i < letter->header_count; i++)
        if (strncmp(letter->headers[i].key.data, "dlq.", 4) != 0)
            headers[count++] = letter->headers[i];
    snprintf(attempt, 24, "%lld", (long long)(letter->attempt < 1 ? 1 : letter->attempt));
    headers[count++] = (struct text_pair){{"dlq.attempt", 11}, {attempt, strlen(attempt)}};
    return count;
}

static bool replay_take(const struct dead_letter *letter, void *opaque)
{
    struct dlq *d = opaque;
    struct text_pair headers[REPLAY_HEADERS_MAX];
    struct client_record record = {.topic = TOPIC_REQUESTS,
                                   .partition = -1,
                                   .key = letter->has_key ? letter->key.data : NULL,
                                   .key_size = letter->key.size,
                                   .value = letter->value.data,
                                   .value_size = letter->value.size,
                                   .headers = headers};
    struct chosen *chosen;
    char attempt[24];
    uint8_t id[16];

    if (!dlq_matches(d, letter) || letter->cut)
        return !cli_interrupted();
    identity_of(letter, id);
    chosen = id_map_get(d->chosen, id);
    if (!chosen || chosen->sent || chosen->partition != letter->partition ||
        chosen->offset != letter->offset)
        return !cli_interrupted();
    /* Where it was, whatever partitioner its sender used: a job's identity is its id and partition.
     */
    if (letter->source_partition >= 0 && letter->source_partition < d->partitions)
        record.partition = (int32_t)letter->source_partition;
    record.header_count = replay_headers(letter, headers, attempt);
    while ((d->send_status = client_send(d->client, &record, &d->error)) == CLIENT_FULL &&
           !cli_interrupted())
        client_poll(d->client, 20);
    if (d->send_status)
        return false;
    chosen->sent = true;
    d->sent++;
    return !cli_interrupted() && (!d->limit || d->sent < (uint64_t)d->limit);
}

/* True when the operator wants it. */
static bool confirmed(struct dlq *d, size_t count)
{
    char answer[16];

    if (d->yes || count <= ASK_ABOVE)
        return true;
    if (!isatty(STDIN_FILENO)) {
        cli_say(d->command, "%zu requests would be sent again; say --yes", count);
        return false;
    }
    fprintf(stderr, "send %zu requests again? [y/N] ", count);
    return fgets(answer, sizeof answer, stdin) && (*answer == 'y' || *answer == 'Y');
}

static enum client_status replay_send(struct dlq *d)
{
    struct client_options options = d->cli->client;
    enum client_status status;

    options.on_ack = on_ack;
    options.opaque = d;
    status = client_open(&options, &d->client, &d->error);
    if (!status)
        status = client_partitions(d->client, TOPIC_REQUESTS, &d->partitions, &d->error);
    if (status)
        return status;
    status = dead_letters_read(&d->letters, replay_take, d, &d->error);
    if (!status)
        status = d->send_status;
    if (client_flush(d->client, cli_timeout_ms(d->cli)) && !status) {
        error_set(&d->error, "not all replays were acknowledged within --timeout; they may still "
                             "arrive: look at the results before replaying again");
        status = CLIENT_UNREACHABLE;
    }
    return status;
}

int dlq_replay(struct dlq *d)
{
    enum client_status status;
    size_t count;
    int missing;

    status = dead_letters_read(&d->letters, choose_take, d, &d->error);
    if (status)
        return cli_failed(d->command, status, &d->error);
    if (d->no_memory) {
        cli_say(d->command, "out of memory; narrow it by --since, --class or --key");
        return EXIT_TROUBLE;
    }
    if (d->full) {
        cli_say(d->command, "more than %d requests match; narrow it by --since, --class or --key",
                DLQ_REPLAYS_MAX);
        return EXIT_WRONG_USE;
    }
    missing = dlq_report_not_found(d);
    count = id_map_count(d->chosen);
    if (d->limit && count > (size_t)d->limit)
        count = (size_t)d->limit;
    if (cli_interrupted())
        return EXIT_INTERRUPTED;
    if (d->dry_run || !count) {
        cli_say(d->command, "%zu requests %s", count, d->dry_run ? "would be sent again" : "match");
        return missing;
    }
    if (!confirmed(d, count))
        return EXIT_WRONG_USE;
    status = replay_send(d);
    if (!d->cli->json)
        printf("%llu of %zu requests sent again\n", (unsigned long long)d->accepted, count);
    if (status)
        return cli_failed(d->command, status, &d->error);
    if (cli_interrupted())
        return EXIT_INTERRUPTED;
    return d->refused ? EXIT_TROUBLE : missing;
}
