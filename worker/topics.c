/* SPDX-License-Identifier: MIT */
#include "worker/topics.h"

#include "worker/assignment.h"
#include "worker/kafka_client.h"

enum { TIMEOUT_MS = 3000 };

int32_t topics_outputs(rd_kafka_t *client, const struct config *config, struct error *reason)
{
    const struct {
        const char *name;
        bool is_output; /* has a partition for each of the requests' */
    } topics[] = {{config->topic_requests, false}, {config->topic_chunks, true},
                  {config->topic_results, true},   {config->topic_events, true},
                  {config->topic_index, true},     {config->topic_control, false},
                  {config->topic_dlq, false}};
    int32_t least = ASSIGNMENT_PARTITIONS_MAX;

    for (size_t i = 0; i < sizeof topics / sizeof *topics; i++) {
        int32_t count = kafka_client_partitions(client, topics[i].name, TIMEOUT_MS);

        if (count < 1)
            return error_set(reason,
                             "topic %s does not answer or does not exist; create it with `pgpt "
                             "topics --create`",
                             topics[i].name);
        if (topics[i].is_output && count < least)
            least = count;
    }
    return least;
}
