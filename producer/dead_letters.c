/* SPDX-License-Identifier: MIT */
#include "producer/dead_letters.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/base/clock.h"

enum { POLL_MS = 100 };

enum client_status dead_letters_open(struct dead_letters *d, const struct client_options *options,
                                     int64_t since_us, struct error *error)
{
    static const char *const defaults[] = {"fetch.wait.max.ms", "100", NULL};
    static const char *const fixed[] = {"group.id",
                                        "pgpt-dlq-without-group",
                                        "enable.auto.commit",
                                        "false",
                                        "isolation.level",
                                        "read_committed",
                                        "auto.offset.reset",
                                        "earliest",
                                        "enable.partition.eof",
                                        "true",
                                        NULL};
    const struct connection_settings settings = {
        .type = RD_KAFKA_CONSUMER, .defaults = defaults, .fixed = fixed};
    enum client_status status;
    int32_t count = 0;

    memset(d, 0, sizeof *d);
    status = connection_open(&d->connection, options, &settings, d, error);
    if (!status)
        status = connection_partitions(&d->connection, TOPIC_DLQ, &count, error);
    if (status)
        return status;
    d->begin = rd_kafka_topic_partition_list_new(count);
    rd_kafka_topic_partition_list_add_range(d->begin, connection_topic(&d->connection, TOPIC_DLQ),
                                            0, count - 1);
    d->end = rd_kafka_topic_partition_list_copy(d->begin);
    status = connection_offsets(&d->connection, d->begin, since_us, error);
    return status ? status : connection_offsets(&d->connection, d->end, FOLLOW_FROM_NOW, error);
}

void dead_letters_close(struct dead_letters *d)
{
    if (d->begin)
        rd_kafka_topic_partition_list_destroy(d->begin);
    if (d->end)
        rd_kafka_topic_partition_list_destroy(d->end);
    if (d->connection.kafka)
        rd_kafka_consumer_close(d->connection.kafka);
    connection_close(&d->connection);
}

static int64_t number_of(const struct text *text)
{
    char digits[24], *end;
    long long value;

    if (!text->size || text->size >= sizeof digits)
        return -1;
    memcpy(digits, text->data, text->size);
    digits[text->size] = '\0';
    errno = 0;
    value = strtoll(digits, &end, 10);
    return errno || *end || value < 0 ? -1 : value;
}

static void letter_header(struct dead_letter *letter, const char *name, struct text value)
{
    if (!strcmp(name, "dlq.topic"))
        letter->topic = value;
    else if (!strcmp(name, "dlq.error_class"))
        letter->error_class = value;
    else if (!strcmp(name, "dlq.error_message"))
        letter->error_message = value;
    else if (!strcmp(name, "dlq.worker"))
        letter->worker = value;
    else if (!strcmp(name, "dlq.partition"))
        letter->source_partition = number_of(&value);
    else if (!strcmp(name, "dlq.offset"))
        letter->source_offset = number_of(&value);
    else if (!strcmp(name, "dlq.attempt"))
        letter->attempt = number_of(&value);
    else if (!strcmp(name, "dlq.at_us"))
        letter->at_us = number_of(&value);
    else if (!strcmp(name, "dlq.sha256"))
        letter->cut = true;
}

static void letter_from(struct dead_letter *letter, const rd_kafka_message_t *message)
{
    rd_kafka_timestamp_type_t type;
    rd_kafka_headers_t *headers = NULL;
    const struct text empty = {"", 0};
    const char *name;
    const void *value;
    size_t size;

    *letter =
        (struct dead_letter){.partition = message->partition,
                             .offset = message->offset,
                             .timestamp_us = rd_kafka_message_timestamp(message, &type) * 1000,
                             .has_key = message->key != NULL,
                             .key = empty,
                             .value = empty,
                             .topic = empty,
                             .error_class = empty,
                             .error_message = empty,
                             .worker = empty,
                             .source_partition = -1,
                             .source_offset = -1,
                             .attempt = -1,
                             .at_us = -1};
    if (message->key)
        letter->key = (struct text){message->key, message->key_len};
    if (message->payload)
        letter->value = (struct text){message->payload, message->len};
    rd_kafka_message_headers(message, &headers);
    for (size_t i = 0; headers && letter->header_count < DEAD_LETTER_HEADERS_MAX &&
                       !rd_kafka_header_get_all(headers, i, &name, &value, &size);
         i++) {
        struct text text = value ? (struct text){value, size} : empty;

        letter->headers[letter->header_count++] = (struct text_pair){{name, strlen(name)}, text};
        letter_header(letter, name, text);
    }
}

static int64_t offset_of(const rd_kafka_topic_partition_list_t *list, const char *topic,
                         int32_t partition)
{
    const rd_kafka_topic_partition_t *found = rd_kafka_topic_partition_list_find(
        (rd_kafka_topic_partition_list_t *)list, topic, partition);

    return found ? found->offset : 0;
}

/* Partitions that hold nothing to read need no end to be waited for. */
static int partitions_open(const struct dead_letters *d)
{
    int open = 0;

    for (int i = 0; i < d->end->cnt; i++)
        open +=
            d->end->elems[i].offset > 0 && (d->begin->elems[i].offset < d->end->elems[i].offset);
    return open;
}

/* One poll; *left counts the partitions that are not read to their end, *done asks to stop. */
static enum client_status read_some(struct dead_letters *d,
                                    bool (*take)(const struct dead_letter *, void *), void *opaque,
                                    bool *ended, int *left, bool *done, struct error *error)
{
    rd_kafka_message_t *message = rd_kafka_consumer_poll(d->connection.kafka, POLL_MS);
    const char *topic = connection_topic(&d->connection, TOPIC_DLQ);
    enum client_status status = CLIENT_OK;
    int64_t end;

    if (!message)
        return CLIENT_OK;
    end = offset_of(d->end, topic, message->partition);
    if (message->err && message->err != RD_KAFKA_RESP_ERR__PARTITION_EOF) {
        status = connection_failed(&d->connection, message->err, topic, error);
    } else {
        if (!message->err && message->offset < end) {
            struct dead_letter letter;

            letter_from(&letter, message);
            *done = !take(&letter, opaque);
        }
        /* The last offset may be a transaction's marker, which nobody sees: then an end is told. */
        if ((message->err || message->offset >= end - 1) && !ended[message->partition] && end > 0) {
            ended[message->partition] = true;
            (*left)--;
        }
    }
    rd_kafka_message_destroy(message);
    return status;
}

enum client_status dead_letters_read(struct dead_letters *d,
                                     bool (*take)(const struct dead_letter *letter, void *opaque),
                                     void *opaque, struct error *error)
{
    bool *ended = calloc((size_t)d->end->cnt, sizeof *ended), done = false;
    int left = partitions_open(d);
    int64_t heard_us = clock_mono_us();
    enum client_status status = CLIENT_OK;
    rd_kafka_resp_err_t code;

    if (!ended) {
        error_set(error, "out of memory");
        return CLIENT_FAILED;
    }
    if (left && (code = rd_kafka_assign(d->connection.kafka, d->begin)))
        status = connection_failed(&d->connection, code,
                                   connection_topic(&d->connection, TOPIC_DLQ), error);
    while (!status && left > 0 && !done) {
        int before = left;

        status = read_some(d, take, opaque, ended, &left, &done, error);
        if (left < before)
            heard_us = clock_mono_us();
        if (!status && left > 0 &&
            clock_mono_us() - heard_us > (int64_t)d->connection.options->timeout_ms * 1000 * 6)
            status = connection_failed(&d->connection, RD_KAFKA_RESP_ERR__TIMED_OUT,
                                       "reading dead letters", error);
    }
    rd_kafka_assign(d->connection.kafka, NULL);
    free(ended);
    return status;
}
