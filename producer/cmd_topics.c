/* SPDX-License-Identifier: MIT */
#include <unistd.h>

#include "kernels/base/clock.h"
#include "producer/command.h"
#include "producer/output.h"
#include "producer/topic_admin.h"

enum { PARTITIONS_DEFAULT = 12, PARTITIONS_MAX = 100000, REPLICATION_DEFAULT = 3 };

struct topics {
    struct cli *cli;
    const struct command *command;
    int32_t partitions, replication; /* 0 = not given */
    bool create, check, alter;
    struct topic_admin admin;
    json_t *differences, *changes; /* with --json */
};

static const char *name_of(struct topics *s, int topic)
{
    return connection_topic(&s->admin.connection, (enum topic)topic);
}

static void tell_change(struct topics *s, int topic, const char *what, int32_t count)
{
    if (s->cli->json)
        output_add(s->changes, json_pack("{ss ss si}", "topic", name_of(s, topic), "change", what,
                                         "partitions", count));
    else
        printf("%s: %s, %d partition%s\n", name_of(s, topic), what, count, count == 1 ? "" : "s");
}

static void tell_difference(void *opaque, const char *topic, const char *what, const char *wanted,
                            const char *found)
{
    struct topics *s = opaque;

    if (s->cli->json)
        output_add(s->differences, json_pack("{ss ss ss ss}", "topic", topic, "what", what,
                                             "wanted", wanted, "found", found));
    else
        printf("%s: %s is %s, should be %s\n", topic, what, found, wanted);
}

static enum client_status create_one(struct topics *s, int topic, int32_t partitions,
                                     int32_t replication, struct error *error)
{
    const struct topic_state *state = &s->admin.topics[topic];
    int32_t wanted = topic_table[topic].partitioned ? partitions : 1;
    enum client_status status = CLIENT_OK;

    if (!state->exists) {
        status = topic_admin_create(&s->admin, (enum topic)topic, wanted, replication, error);
        if (!status)
            tell_change(s, topic, "created", wanted);
    } else if (state->partitions < wanted) {
        status = topic_admin_grow(&s->admin, (enum topic)topic, wanted, error);
        if (!status)
            tell_change(s, topic, "grown", wanted);
    }
    if (!status && state->exists && s->alter)
        status = topic_admin_alter(&s->admin, (enum topic)topic, state->replication, error);
    return status;
}

/* Brokers learn of new topics one after the other: until this one knows all of them. */
static enum client_status wait_visible(struct topics *s, int32_t partitions, struct error *error)
{
    int64_t until = clock_mono_us() + s->cli->timeout_us;

    for (;;) {
        enum client_status status = topic_admin_read(&s->admin, error);
        bool all = true;

        for (int t = 0; t < TOPIC_COUNT && !status; t++)
            all = all && s->admin.topics[t].exists &&
                  (!topic_table[t].partitioned || s->admin.topics[t].partitions >= partitions);
        if (status || all || clock_mono_us() > until || cli_interrupted())
            return status;
        usleep(50000);
    }
}

static enum client_status create_all(struct topics *s, struct error *error)
{
    const struct topic_state *requests = &s->admin.topics[TOPIC_REQUESTS];
    int32_t partitions = s->partitions, replication = s->replication;
    enum client_status status = CLIENT_OK;

    /* Nothing grows unless it is asked to: keys move to other partitions then. */
    if (!partitions)
        partitions = requests->exists ? requests->partitions : PARTITIONS_DEFAULT;
    if (!replication)
        replication = requests->exists                         ? requests->replication
                      : s->admin.brokers < REPLICATION_DEFAULT ? 1
                                                               : REPLICATION_DEFAULT;
    for (int t = 0; t < TOPIC_COUNT && !status; t++)
        status = create_one(s, t, partitions, replication, error);
    return status ? status : wait_visible(s, partitions, error);
}

static size_t compare_all(struct topics *s)
{
    const char *names[TOPIC_COUNT];

    for (int t = 0; t < TOPIC_COUNT; t++)
        names[t] = name_of(s, t);
    return topic_compare(s->admin.topics, names, s->partitions, s->replication, tell_difference, s);
}

static int topics_run(struct topics *s)
{
    struct error error;
    enum client_status status = topic_admin_open(&s->admin, &s->cli->client, &error);
    size_t differences = 0;

    if (!status)
        status = topic_admin_read(&s->admin, &error);
    if (!status && s->create)
        status = create_all(s, &error);
    if (status)
        return cli_failed(s->command, status, &error);
    differences = compare_all(s);
    if (s->cli->json)
        output_line(json_pack("{sb sO sO}", "ok", differences == 0, "changes", s->changes,
                              "differences", s->differences));
    else if (!differences)
        printf("all %d topics are as they should be, %d partitions\n", TOPIC_COUNT,
               s->admin.topics[TOPIC_REQUESTS].partitions);
    else if (s->create && !s->alter)
        cli_say(s->command, "existing topics keep their settings; --alter sets them");
    return differences && s->check ? EXIT_DIFFERENT : EXIT_OK;
}

static int run(struct cli *cli, const struct command *command, int argc, char **argv)
{
    struct topics s = {.cli = cli, .command = command};
    const struct option own[] = {
        {"create", '\0', OPTION_FLAG, &s.create, NULL, "create what is missing, grow what is small",
         0, 0, NULL},
        {"check", '\0', OPTION_FLAG, &s.check, NULL, "tell each difference; exit code 6 if any", 0,
         0, NULL},
        {"alter", '\0', OPTION_FLAG, &s.alter, NULL,
         "with --create: also set retention and sizes of existing topics", 0, 0, NULL},
        {"partitions", 'p', OPTION_INT, &s.partitions, "N",
         "of requests, chunks, results, events, index (12, or as they are)", 1, PARTITIONS_MAX,
         NULL},
        {"replication", 'r', OPTION_INT, &s.replication, "N",
         "copies (3, or 1 with fewer than 3 brokers, or as they are)", 1, 32767, NULL},
        {0}};
    const struct option *const tables[] = {own, NULL};
    struct option_positionals positionals;
    int code;

    cli->timeout_us = 30 * 1000000ll;
    if (!cli_parse(cli, command, tables, argc, argv, &positionals, &code))
        return code;
    if (positionals.count || (!s.create && !s.check) || (s.alter && !s.create)) {
        cli_say(command, "say --create or --check (--alter goes with --create); --help tells more");
        return EXIT_WRONG_USE;
    }
    s.changes = json_array();
    s.differences = json_array();
    code = topics_run(&s);
    topic_admin_close(&s.admin);
    json_decref(s.changes);
    json_decref(s.differences);
    return code;
}

const struct command command_topics = {
    "topics", "Creates and checks the topics: partitions, retention, sizes.",
    "--create|--check [OPTION]...",
    "\n--create may run at every deployment: it makes what is missing and adds partitions when a "
    "larger\n"
    "--partitions asks for it, outputs first and requests last, and leaves the rest alone. "
    "--check\n"
    "compares all of it and changes nothing.\n"
    "\nExamples\n"
    "  pgpt topics --create\n"
    "  pgpt topics --create --partitions 24 --replication 3 --brokers kafka-0:9092,kafka-1:9092\n"
    "  pgpt topics --check --json | jq .differences\n",
    run};
