/* SPDX-License-Identifier: MIT */
#include <stdlib.h>
#include <string.h>

#include "producer/command.h"
#include "producer/output.h"

static const struct command *const commands[] = {
    &command_submit,    &command_follow, &command_cancel, &command_status,
    &command_translate, &command_load,   &command_topics, &command_dlq};

static void print_help(FILE *out)
{
    fputs("usage: pgpt COMMAND [OPTION]... [ARGUMENT]...\n\n"
          "Sends generation jobs through Kafka, follows them, and looks after the topics.\n\n",
          out);
    for (size_t i = 0; i < sizeof commands / sizeof *commands; i++)
        fprintf(out, "  %-10s %s\n", commands[i]->name, commands[i]->summary);
    fputs("\n`pgpt COMMAND --help` tells more, with examples:\n"
          "  pgpt topics --create\n"
          "  pgpt submit --to en --follow \"Доброе утро\"\n"
          "  pgpt translate --to ru <english.txt >russian.txt\n"
          "  pgpt load --rate 50 --duration 30s --to en --file lines.txt\n\n"
          "Environment\n"
          "  PGPT_BROKERS          Kafka brokers (127.0.0.1:9192)\n"
          "  PGPT_DATABASE_URL     PostgreSQL, for status\n"
          "  PGPT_KAFKA_<NAME>     setting <name> of librdkafka, e.g. PGPT_KAFKA_SASL_PASSWORD\n"
          "  PGPT_TOPIC_<WHICH>    another name for a topic, e.g. PGPT_TOPIC_REQUESTS\n",
          out);
}

static void settings_from_environment(struct cli *cli)
{
    const char *brokers = getenv("PGPT_BROKERS"), *database = getenv("PGPT_DATABASE_URL");

    cli->client.brokers = brokers && *brokers ? brokers : "127.0.0.1:9192";
    cli->database_url = database && *database ? database : NULL;
    for (int t = 0; t < TOPIC_COUNT; t++) {
        const char *name = getenv(topic_table[t].environment);

        if (name && *name)
            cli->client.topics[t] = name;
    }
}

static int run(const struct command *command, int argc, char **argv)
{
    static struct cli cli; /* large, and zeroed */
    int code;

    settings_from_environment(&cli);
    cli_catch_signals();
    code = command->run(&cli, command, argc, argv);
    free(cli.environment_names);
    if (fflush(stdout) || ferror(stdout)) {
        cli_say(command, "standard output could not be written");
        code = code ? code : EXIT_TROUBLE;
    }
    return !code && output_lost() ? EXIT_TROUBLE : code;
}

int main(int argc, char **argv)
{
    if (argc >= 2 && (!strcmp(argv[1], "--help") || !strcmp(argv[1], "-h"))) {
        print_help(stdout);
        return EXIT_OK;
    }
    for (size_t i = 0; argc >= 2 && i < sizeof commands / sizeof *commands; i++)
        if (!strcmp(argv[1], commands[i]->name))
            return run(commands[i], argc - 1, argv + 1);
    if (argc >= 2)
        fprintf(stderr, "pgpt: there is no command %s\n\n", argv[1]);
    print_help(stderr);
    return EXIT_WRONG_USE;
}
