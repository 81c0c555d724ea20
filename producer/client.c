/* SPDX-License-Identifier: MIT */
#include "producer/client.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "kernels/base/clock.h"
#include "kernels/text/utf8.h"
#include "producer/connection.h"
#include "schema/codec.h"

struct client {
    struct client_options options;
    struct connection connection;
    struct codec *codec;
    struct buffer buffer;
};

/* What a record carries to its delivery report. */
struct ticket {
    enum topic topic;
    void *user;
};

static void on_delivery(rd_kafka_t *kafka, const rd_kafka_message_t *message, void *opaque)
{
    struct connection *connection = opaque;
    struct client *client = connection->owner;
    struct ticket *ticket = message->_private;
    struct client_ack ack = {.topic = ticket->topic,
                             .partition = message->partition,
                             .offset = message->offset,
                             .user = ticket->user};
    struct text key = {message->key, message->key_len};
    char reason[CONNECTION_REASON_MAX];
    uint8_t id[16];

    (void)kafka;
    if (message->err) {
        connection_reason(connection, message->err, reason);
        ack.error = reason;
    }
    if (key.data && !uuid_parse(key, id))
        memcpy(ack.job_id, key.data, 36);
    free(ticket);
    if (client->options.on_ack)
        client->options.on_ack(&ack, client->options.opaque);
}

enum client_status client_open(const struct client_options *options, struct client **out,
                               struct error *error)
{
    static const char *const defaults[] = {"linger.ms", "0", NULL};
    /* A batch of the dead-letter topic's size: replays are as large as requests. */
    static const char *const fixed[] = {
        "enable.idempotence", "true",    "acks", "all", "partitioner", "murmur2_random",
        "message.max.bytes",  "1114112", NULL};
    const struct connection_settings settings = {.type = RD_KAFKA_PRODUCER,
                                                 .defaults = defaults,
                                                 .fixed = fixed,
                                                 .on_delivery = on_delivery};
    struct client *client = calloc(1, sizeof *client);
    enum client_status status;
    int32_t count;

    *out = NULL;
    if (!client) {
        error_set(error, "client: out of memory");
        return CLIENT_FAILED;
    }
    client->options = *options;
    status = connection_open(&client->connection, &client->options, &settings, client, error);
    if (!status && !(client->codec = codec_open(NULL, error)))
        status = CLIENT_FAILED;
    if (!status)
        status = connection_partitions(&client->connection, TOPIC_REQUESTS, &count, error);
    if (!status)
        status = connection_partitions(&client->connection, TOPIC_CONTROL, &count, error);
    if (status)
        client_close(client);
    else
        *out = client;
    return status;
}

void client_close(struct client *client)
{
    if (!client)
        return;
    if (client->connection.kafka) {
        /* Open reports are answered now, so that no ticket is left. */
        client->options.on_ack = NULL;
        rd_kafka_purge(client->connection.kafka,
                       RD_KAFKA_PURGE_F_QUEUE | RD_KAFKA_PURGE_F_INFLIGHT);
        for (int i = 0; i < 10 && rd_kafka_outq_len(client->connection.kafka); i++)
            rd_kafka_poll(client->connection.kafka, 100);
        connection_close(&client->connection);
    }
    codec_close(client->codec);
    buffer_free(&client->buffer);
    free(client);
}

int client_new_id(char job_id[37], struct error *error)
{
    uint8_t id[16];

    if (getrandom(id, sizeof id, 0) != sizeof id)
        return error_set(error, "no random bytes for a job id: %s", strerror(errno));
    id[6] = (uint8_t)((id[6] & 0x0f) | 0x40); /* version 4 */
    id[8] = (uint8_t)((id[8] & 0x3f) | 0x80); /* RFC 9562 variant */
    uuid_format(id, job_id);
    return 0;
}

static rd_kafka_headers_t *headers_of(const struct client_record *record)
{
    rd_kafka_headers_t *headers = rd_kafka_headers_new(record->header_count);

    for (size_t i = 0; headers && i < record->header_count; i++) {
        const struct text_pair *pair = &record->headers[i];

        if (rd_kafka_header_add(headers, pair->key.data, (ssize_t)pair->key.size, pair->value.data,
                                (ssize_t)pair->value.size)) {
            rd_kafka_headers_destroy(headers);
            return NULL;
        }
    }
    return headers;
}

static enum client_status produce(struct client *client, const struct client_record *record,
                                  struct ticket *ticket, rd_kafka_headers_t *headers,
                                  struct error *error)
{
    const char *topic = connection_topic(&client->connection, record->topic);
    rd_kafka_vu_t args[] = {
        {.vtype = RD_KAFKA_VTYPE_TOPIC, .u.cstr = topic},
        {.vtype = RD_KAFKA_VTYPE_PARTITION,
         .u.i32 = record->partition < 0 ? RD_KAFKA_PARTITION_UA : record->partition},
        {.vtype = RD_KAFKA_VTYPE_KEY, .u.mem = {(void *)record->key, record->key_size}},
        {.vtype = RD_KAFKA_VTYPE_VALUE, .u.mem = {(void *)record->value, record->value_size}},
        {.vtype = RD_KAFKA_VTYPE_MSGFLAGS, .u.i = RD_KAFKA_MSG_F_COPY},
        {.vtype = RD_KAFKA_VTYPE_OPAQUE, .u.ptr = ticket},
        {.vtype = RD_KAFKA_VTYPE_HEADERS, .u.headers = headers}};
    rd_kafka_error_t *failed =
        rd_kafka_produceva(client->connection.kafka, args, sizeof args / sizeof *args - !headers);
    enum client_status status = CLIENT_OK;

    if (failed) {
        char reason[CONNECTION_REASON_MAX];

        status = rd_kafka_error_code(failed) == RD_KAFKA_RESP_ERR__QUEUE_FULL ? CLIENT_FULL
                                                                              : CLIENT_FAILED;
        connection_reason(&client->connection, rd_kafka_error_code(failed), reason);
        error_set(error, "sending to %s: %s", topic, reason);
        rd_kafka_error_destroy(failed);
    }
    rd_kafka_poll(client->connection.kafka, 0);
    return status;
}

enum client_status client_send(struct client *client, const struct client_record *record,
                               struct error *error)
{
    struct ticket *ticket = malloc(sizeof *ticket);
    rd_kafka_headers_t *headers = record->header_count ? headers_of(record) : NULL;
    enum client_status status = CLIENT_FAILED;

    if (!ticket || (record->header_count && !headers)) {
        error_set(error, "client: out of memory");
    } else {
        *ticket = (struct ticket){record->topic, record->user};
        status = produce(client, record, ticket, headers, error);
    }
    if (status) {
        free(ticket);
        if (headers)
            rd_kafka_headers_destroy(headers);
    }
    return status;
}

static enum client_status send_record(struct client *client, enum record_type type,
                                      const void *data, enum topic topic, const struct text *job_id,
                                      void *user, struct error *error)
{
    struct client_record record = {.topic = topic,
                                   .partition = -1,
                                   .key = job_id->data,
                                   .key_size = job_id->size,
                                   .user = user};
    uint8_t id[16];

    if (uuid_parse(*job_id, id)) {
        error_set(error, "job id \"%.*s\" is not a UUID of 36 characters", (int)job_id->size,
                  job_id->data);
        return CLIENT_WRONG;
    }
    if (codec_encode(client->codec, type, data, &client->buffer, error))
        return CLIENT_WRONG;
    record.value = client->buffer.data;
    record.value_size = client->buffer.size;
    return client_send(client, &record, error);
}

static bool is_text(const struct text *text, const char *field, struct error *error)
{
    if (utf8_valid(text->data, text->size))
        return true;
    error_set(error, "%s: its text is not valid UTF-8", field);
    return false;
}

/* Workers cannot decode such a request, so it would never have a result. */
static bool is_all_text(const struct generation_request *r, struct error *error)
{
    bool ok = is_text(&r->prompt, "prompt", error) &&
              is_text(&r->target_language, "target_language", error) &&
              is_text(&r->author, "author", error) && is_text(&r->tenant, "tenant", error) &&
              is_text(&r->model, "model", error);

    for (size_t i = 0; ok && i < r->stop_count; i++)
        ok = is_text(&r->stop[i], "stop", error);
    for (size_t i = 0; ok && i < r->metadata_count; i++)
        ok = is_text(&r->metadata[i].key, "metadata", error) &&
             is_text(&r->metadata[i].value, "metadata", error);
    return ok;
}

enum client_status client_submit(struct client *client, const struct generation_request *request,
                                 void *user, struct error *error)
{
    if (!is_all_text(request, error))
        return CLIENT_WRONG;
    return send_record(client, RECORD_GENERATION_REQUEST, request, TOPIC_REQUESTS, &request->job_id,
                       user, error);
}

enum client_status client_cancel(struct client *client, const char *job_id, const char *reason,
                                 void *user, struct error *error)
{
    const struct job_control control = {.job_id = {job_id, strlen(job_id)},
                                        .action = {"cancel", 6},
                                        .reason = {reason, strlen(reason)},
                                        .created_at_us = clock_wall_us()};

    return send_record(client, RECORD_JOB_CONTROL, &control, TOPIC_CONTROL, &control.job_id, user,
                       error);
}

void client_poll(struct client *client, int timeout_ms)
{
    rd_kafka_poll(client->connection.kafka, timeout_ms);
}

size_t client_flush(struct client *client, int timeout_ms)
{
    rd_kafka_flush(client->connection.kafka, timeout_ms);
    return (size_t)rd_kafka_outq_len(client->connection.kafka);
}

enum client_status client_partitions(struct client *client, enum topic topic, int32_t *count,
                                     struct error *error)
{
    return connection_partitions(&client->connection, topic, count, error);
}
