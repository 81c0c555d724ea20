/* SPDX-License-Identifier: MIT */
#include "producer/dlq.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "producer/output.h"

enum { DECODE_ARENA_MAX = 64 << 20 };

/* ---- which ---- */

static bool same(const struct text *text, const char *wanted)
{
    return !wanted || (text->size == strlen(wanted) && !memcmp(text->data, wanted, text->size));
}

/* OFFSET (of partition 0) or PARTITION:OFFSET. */
static int place_parse(const char *text, int32_t *partition, int64_t *offset)
{
    char *end;
    long long first = strtoll(text, &end, 10);

    if (end == text || first < 0)
        return -1;
    *partition = 0;
    *offset = first;
    if (!*end)
        return 0;
    if (*end != ':' || first > INT32_MAX || !end[1])
        return -1;
    *partition = (int32_t)first;
    *offset = strtoll(end + 1, &end, 10);
    return *end || *offset < 0 ? -1 : 0;
}

static bool is_named(struct dlq *d, const struct dead_letter *letter)
{
    bool named = d->places.count == 0;

    for (size_t i = 0; i < d->places.count; i++) {
        int32_t partition;
        int64_t offset;

        if (!place_parse(d->places.items[i], &partition, &offset) &&
            partition == letter->partition && offset == letter->offset)
            named = d->found[i] = true;
    }
    return named;
}

bool dlq_matches(struct dlq *d, const struct dead_letter *letter)
{
    return is_named(d, letter) && same(&letter->error_class, d->class) &&
           same(&letter->key, d->key) && same(&letter->worker, d->worker);
}

/* ---- list ---- */

static void time_text(int64_t at_us, char out[32])
{
    time_t seconds = (time_t)(at_us / 1000000);
    struct tm utc;

    if (at_us < 0 || !gmtime_r(&seconds, &utc) || !strftime(out, 32, "%Y-%m-%dT%H:%M:%SZ", &utc))
        snprintf(out, 32, "-");
}

static json_t *letter_json(const struct dead_letter *letter)
{
    return json_pack(
        "{si sI so so sI sI sI so so so sI sI sb}", "partition", letter->partition, "offset",
        (json_int_t)letter->offset, "key",
        letter->has_key ? output_text(&letter->key) : json_null(), "topic",
        output_text(&letter->topic), "source_partition", (json_int_t)letter->source_partition,
        "source_offset", (json_int_t)letter->source_offset, "attempt", (json_int_t)letter->attempt,
        "error_class", output_text(&letter->error_class), "error_message",
        output_text(&letter->error_message), "worker", output_text(&letter->worker), "at_us",
        (json_int_t)letter->at_us, "bytes", (json_int_t)letter->value.size, "cut", letter->cut);
}

/* Headers and keys come from others: nothing in them may steer a terminal. */
static void print_safe(const struct text *text, size_t max)
{
    size_t size = text->size < max ? text->size : max;

    for (size_t i = 0; i < size; i++)
        putchar((unsigned char)text->data[i] < 0x20 || text->data[i] == 0x7f ? '?' : text->data[i]);
    if (size < text->size)
        fputs("...", stdout);
}

static bool list_take(const struct dead_letter *letter, void *opaque)
{
    struct dlq *d = opaque;
    char at[32];

    if (!dlq_matches(d, letter))
        return !cli_interrupted();
    d->matched++;
    if (d->cli->json) {
        output_line(letter_json(letter));
    } else {
        time_text(letter->at_us, at);
        printf("%d:%-8lld %s %-12.*s attempt %-3lld ", letter->partition, (long long)letter->offset,
               at, (int)letter->error_class.size, letter->error_class.data,
               (long long)letter->attempt);
        if (letter->has_key)
            print_safe(&letter->key, 36);
        else
            putchar('-');
        fputs("  ", stdout);
        print_safe(&letter->error_message, 100);
        putchar('\n');
    }
    return !cli_interrupted() && (!d->limit || d->matched < (uint64_t)d->limit);
}

static int list(struct dlq *d)
{
    enum client_status status = dead_letters_read(&d->letters, list_take, d, &d->error);

    if (status)
        return cli_failed(d->command, status, &d->error);
    if (!d->matched && !d->cli->json)
        cli_say(d->command, "no dead letters match");
    return cli_interrupted() ? EXIT_INTERRUPTED : EXIT_OK;
}

/* ---- show ---- */

static void print_hex(const struct text *value, size_t max)
{
    size_t size = value->size < max ? value->size : max;

    for (size_t i = 0; i < size; i += 16) {
        printf("%08zx ", i);
        for (size_t j = i; j < i + 16; j++)
            if (j < size)
                printf(" %02x", (unsigned char)value->data[j]);
            else
                fputs("   ", stdout);
        fputs("  ", stdout);
        for (size_t j = i; j < i + 16 && j < size; j++)
            putchar(value->data[j] >= 0x20 && value->data[j] < 0x7f ? value->data[j] : '.');
        putchar('\n');
    }
    if (size < value->size)
        printf("... %zu more bytes (--bytes 0 shows all)\n", value->size - size);
}

/* The request as JSON, NULL with the reason when it cannot be decoded. */
static json_t *decoded(struct dlq *d, const struct text *value, struct error *reason)
{
    struct generation_request request;

    arena_reset(d->arena);
    if (codec_decode(d->codec, RECORD_GENERATION_REQUEST, value->data, value->size, d->arena,
                     &request, reason))
        return NULL;
    return output_request(&request);
}

static json_t *headers_json(const struct dead_letter *letter)
{
    json_t *object = json_object();

    for (size_t i = 0; i < letter->header_count; i++)
        output_set(object, letter->headers[i].key.data, output_text(&letter->headers[i].value));
    return object;
}

static json_t *value_hex(const struct text *value, size_t max)
{
    size_t size = value->size < max ? value->size : max;
    char *hex = malloc(2 * size + 1);
    json_t *json;

    if (!hex)
        return NULL;
    for (size_t i = 0; i < size; i++)
        snprintf(hex + 2 * i, 3, "%02x", (unsigned char)value->data[i]);
    json = json_stringn(hex, 2 * size);
    free(hex);
    return json;
}

static void show_text(struct dlq *d, const struct dead_letter *letter, json_t *request,
                      const struct error *reason, size_t max)
{
    printf("dead letter %d:%lld, key ", letter->partition, (long long)letter->offset);
    if (letter->has_key)
        print_safe(&letter->key, 200);
    else
        fputs("(none)", stdout);
    printf(", %zu bytes%s\n", letter->value.size, letter->cut ? " (cut by the worker)" : "");
    for (size_t i = 0; i < letter->header_count; i++) {
        printf("  %s: ", letter->headers[i].key.data);
        print_safe(&letter->headers[i].value, 4096);
        putchar('\n');
    }
    if (request) {
        json_dumpf(request, stdout, JSON_INDENT(2) | JSON_REAL_PRECISION(15));
        putchar('\n');
    } else {
        printf("not a request: %s\n", reason->message);
        print_hex(&letter->value, max);
    }
    (void)d;
}

static bool show_take(const struct dead_letter *letter, void *opaque)
{
    struct dlq *d = opaque;
    size_t max = d->bytes ? (size_t)d->bytes : SIZE_MAX;
    struct error reason;
    json_t *request, *json;

    if (!dlq_matches(d, letter))
        return !cli_interrupted();
    d->matched++;
    request = decoded(d, &letter->value, &reason);
    if (d->cli->json) {
        json = letter_json(letter);
        output_set(json, "headers", headers_json(letter));
        output_set(json, "request", request ? json_incref(request) : json_null());
        if (!request) {
            output_set(json, "decode_error", json_string(reason.message));
            output_set(json, "value_hex", value_hex(&letter->value, max));
        }
        output_line(json);
    } else {
        show_text(d, letter, request, &reason, max);
    }
    json_decref(request);
    return !cli_interrupted() && d->matched < d->places.count;
}

int dlq_report_not_found(const struct dlq *d)
{
    int code = EXIT_OK;

    for (size_t i = 0; i < d->places.count; i++)
        if (!d->found[i]) {
            cli_say(d->command, "there is no dead letter %s (or it does not match the filters)",
                    d->places.items[i]);
            code = EXIT_NOT_FOUND;
        }
    return code;
}

static int show(struct dlq *d)
{
    enum client_status status;

    status = dead_letters_read(&d->letters, show_take, d, &d->error);
    if (status)
        return cli_failed(d->command, status, &d->error);
    return cli_interrupted() ? EXIT_INTERRUPTED : dlq_report_not_found(d);
}

/* ---- all ---- */

static const struct {
    const char *name;
    int (*run)(struct dlq *d);
} verbs[] = {{"list", list}, {"show", show}, {"replay", dlq_replay}};

static int dlq_open(struct dlq *d, int64_t since_us)
{
    enum client_status status =
        dead_letters_open(&d->letters, &d->cli->client, since_us, &d->error);

    if (status)
        return cli_failed(d->command, status, &d->error);
    d->found = calloc(d->places.count + 1, sizeof *d->found);
    d->arena = arena_create(64 << 10, DECODE_ARENA_MAX);
    d->chosen = id_map_create(DLQ_REPLAYS_MAX);
    if (!d->found || !d->arena || !d->chosen) {
        cli_say(d->command, "out of memory");
        return EXIT_TROUBLE;
    }
    d->codec = codec_open(NULL, &d->error);
    return d->codec ? EXIT_OK : cli_failed(d->command, CLIENT_FAILED, &d->error);
}

static void dlq_close(struct dlq *d)
{
    void *chosen;
    size_t at = 0;

    client_close(d->client);
    dead_letters_close(&d->letters);
    while (d->chosen && (chosen = id_map_at(d->chosen, &at)))
        free(chosen);
    id_map_destroy(d->chosen);
    codec_close(d->codec);
    arena_destroy(d->arena);
    free(d->found);
}

/* Takes the verb off the positionals and checks the places. NULL after the reason was printed. */
static int (*verb_of(struct dlq *d, struct option_positionals *positionals))(struct dlq *)
{
    int (*run)(struct dlq *) = NULL;
    int32_t partition;
    int64_t offset;

    for (size_t i = 0; positionals->count && i < sizeof verbs / sizeof *verbs; i++)
        if (!strcmp(positionals->items[0], verbs[i].name))
            run = verbs[i].run;
    if (!run) {
        cli_say(d->command, "say list, show or replay; --help tells more");
        return NULL;
    }
    d->places = (struct option_positionals){positionals->items + 1, positionals->count - 1};
    for (size_t i = 0; i < d->places.count; i++)
        if (place_parse(d->places.items[i], &partition, &offset)) {
            cli_say(d->command, "%s: must be OFFSET or PARTITION:OFFSET", d->places.items[i]);
            return NULL;
        }
    if (!d->places.count && (run == show || (run == dlq_replay && !d->all))) {
        cli_say(d->command, "%s which? Name OFFSETs as dlq list prints them%s",
                positionals->items[0], run == show ? "" : ", or --all (with filters if you like)");
        return NULL;
    }
    return run;
}

static int run(struct cli *cli, const struct command *command, int argc, char **argv)
{
    static struct dlq d; /* large, and zeroed */
    const struct option own[] = {
        {"since", '\0', OPTION_TEXT, &d.since, "TIME",
         "look back this far, e.g. 2h, 7d, or all (all)", 0, 0, NULL},
        {"class", '\0', OPTION_TEXT, &d.class, "NAME",
         "of this error class alone: undecodable, no_job_id, poison", 0, 0, NULL},
        {"key", '\0', OPTION_TEXT, &d.key, "TEXT", "of this key (job id) alone", 0, 0, NULL},
        {"worker", '\0', OPTION_TEXT, &d.worker, "NAME", "of this worker alone", 0, 0, NULL},
        {"limit", '\0', OPTION_LONG, &d.limit, "N", "list or replay at most N", 1, 1e12, NULL},
        {"bytes", '\0', OPTION_LONG, &d.bytes, "N", "show: bytes in hex (512; 0 = all)", 0, 1e9,
         NULL},
        {"all", '\0', OPTION_FLAG, &d.all, NULL, "replay: all that match the filters", 0, 0, NULL},
        {"dry-run", 'n', OPTION_FLAG, &d.dry_run, NULL, "replay: say how many, send nothing", 0, 0,
         NULL},
        {"yes", 'y', OPTION_FLAG, &d.yes, NULL, "replay: do not ask", 0, 0, NULL},
        {0}};
    const struct option *const tables[] = {own, NULL};
    struct option_positionals positionals;
    int (*verb)(struct dlq *);
    int64_t since_us;
    int code;

    d.cli = cli;
    d.command = command;
    d.since = "all";
    d.bytes = 512;
    cli->timeout_us = 30 * 1000000ll;
    if (!cli_parse(cli, command, tables, argc, argv, &positionals, &code))
        return code;
    verb = verb_of(&d, &positionals);
    if (!verb)
        return EXIT_WRONG_USE;
    if (cli_since(d.since, &since_us, &d.error))
        return cli_failed(command, CLIENT_WRONG, &d.error);
    code = dlq_open(&d, since_us);
    if (!code)
        code = verb(&d);
    dlq_close(&d);
    return code;
}

const struct command command_dlq = {
    "dlq", "Lists, shows and replays dead letters.", "list|show|replay [OPTION]... [PLACE]...",
    "\nA PLACE is OFFSET or PARTITION:OFFSET as `dlq list` prints it.\n"
    "  list     one line each: place, time, error class, attempt, key, message\n"
    "  show     headers and the request; bytes in hex where it cannot be decoded\n"
    "  replay   the same bytes and key into the request topic, to run as the next attempt. Asks "
    "above 10\n"
    "           unless --yes. A request that died more than once is sent once, from its newest "
    "dead\n"
    "           letter; what dies during the replay is not sent again.\n"
    "\nExamples\n"
    "  pgpt dlq list --since 1d --class poison\n"
    "  pgpt dlq show 42\n"
    "  pgpt dlq replay 42 43\n"
    "  pgpt dlq replay --all --since 2h --class undecodable --yes\n",
    run};
