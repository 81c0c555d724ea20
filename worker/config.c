/* SPDX-License-Identifier: MIT */
#include "worker/config.h"

#include <ctype.h>
#include <errno.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

extern char **environ;

enum { LINE_MAX_BYTES = 8192, KAFKA_PROPERTIES_MAX = 256 };

enum setting_type { TYPE_STRING, TYPE_INT, TYPE_BOOL, TYPE_REAL, TYPE_CHOICE };

struct setting {
    const char *name;
    enum setting_type type;
    size_t offset;
    const char *text_default; /* STRING, CHOICE */
    double number_default, min, max;
    const char *choices;
    bool secret;
    const char *help;
};

static const struct setting settings[] = {
#define STRING(field, name, value, secret, help)                                                   \
    {name, TYPE_STRING, offsetof(struct config, field), value, 0, 0, 0, NULL, secret, help},
#define INT(field, name, value, min, max, help)                                                    \
    {name, TYPE_INT, offsetof(struct config, field), NULL, value, min, max, NULL, false, help},
#define BOOL(field, name, value, help)                                                             \
    {name, TYPE_BOOL, offsetof(struct config, field), NULL, value, 0, 1, NULL, false, help},
#define REAL(field, name, value, min, max, help)                                                   \
    {name, TYPE_REAL, offsetof(struct config, field), NULL, value, min, max, NULL, false, help},
#define CHOICE(field, name, value, choices, help)                                                  \
    {name, TYPE_CHOICE, offsetof(struct config, field), value, 0, 0, 0, choices, false, help},
#include "worker/config_table.h"
};
enum { SETTING_COUNT = sizeof settings / sizeof *settings };

/* Where a value came from, for messages: "file:line" or "environment NAME". */
struct source {
    const char *where;
    FILE *problems;
    int count; /* problems so far */
};

static void problem(struct source *source, const char *format, ...) PGPT_PRINTF(2, 3);

static void problem(struct source *source, const char *format, ...)
{
    va_list args;

    source->count++;
    if (!source->problems)
        return;
    fprintf(source->problems, "%s: ", source->where);
    va_start(args, format);
    vfprintf(source->problems, format, args);
    va_end(args);
    fputc('\n', source->problems);
}

static void *field(struct config *config, const struct setting *s)
{
    return (char *)config + s->offset;
}

static int set_text(struct config *config, const struct setting *s, const char *value)
{
    char **text = field(config, s);
    char *copy = strdup(value);

    if (!copy)
        return -1;
    free(*text);
    *text = copy;
    return 0;
}

static void set_number(struct config *config, const struct setting *s, double number)
{
    if (s->type == TYPE_INT)
        *(int64_t *)field(config, s) = (int64_t)number;
    else if (s->type == TYPE_BOOL)
        *(bool *)field(config, s) = number != 0;
    else
        *(double *)field(config, s) = number;
}

static bool choice_known(const char *choices, const char *value)
{
    size_t size = strlen(value);

    if (strchr(value, '|')) /* two of them are none */
        return false;
    for (const char *at = choices; at; at = strchr(at, '|') ? strchr(at, '|') + 1 : NULL)
        if (!strncmp(at, value, size) && (at[size] == '|' || !at[size]))
            return size > 0;
    return false;
}

static bool bool_parse(const char *value, double *number)
{
    static const char *const yes[] = {"true", "yes", "on", "1"};
    static const char *const no[] = {"false", "no", "off", "0"};

    for (size_t i = 0; i < 4; i++) {
        if (!strcasecmp(value, yes[i]) || !strcasecmp(value, no[i])) {
            *number = !strcasecmp(value, yes[i]);
            return true;
        }
    }
    return false;
}

static void number_parse(struct config *config, const struct setting *s, const char *value,
                         struct source *source)
{
    char *end;
    double number;
    bool whole = s->type == TYPE_INT;

    errno = 0;
    number = whole ? (double)strtoll(value, &end, 10) : strtod(value, &end);
    if (end == value || *end || errno)
        problem(source, "%s is \"%s\", which is no %s; it must be in %.10g..%.10g", s->name, value,
                whole ? "whole number" : "number", s->min, s->max);
    else if (!(number >= s->min && number <= s->max))
        problem(source, "%s is %s, outside %.10g..%.10g", s->name, value, s->min, s->max);
    else
        set_number(config, s, number);
}

static void value_set(struct config *config, const struct setting *s, const char *value,
                      struct source *source)
{
    double flag;

    switch (s->type) {
    case TYPE_CHOICE:
        if (!choice_known(s->choices, value)) {
            problem(source, "%s is \"%s\"; it must be one of %s", s->name, value, s->choices);
            return;
        }
        /* fall through */
    case TYPE_STRING:
        if (set_text(config, s, value))
            problem(source, "%s: out of memory", s->name);
        return;
    case TYPE_BOOL:
        if (bool_parse(value, &flag))
            set_number(config, s, flag);
        else
            problem(source, "%s is \"%s\"; it must be true or false", s->name, value);
        return;
    default:
        number_parse(config, s, value, source);
    }
}

/* ---- kafka.* ---- */

static void kafka_set(struct config *config, const char *name, const char *value,
                      struct source *source)
{
    struct config_kafka_property *grown;

    for (size_t i = 0; i < config->kafka_count; i++)
        if (!strcmp(config->kafka[i].name, name)) {
            char *copy = strdup(value);

            if (!copy)
                return problem(source, "kafka.%s: out of memory", name);
            free(config->kafka[i].value);
            config->kafka[i].value = copy;
            return;
        }
    if (config->kafka_count == KAFKA_PROPERTIES_MAX)
        return problem(source, "more than %d kafka.* settings", KAFKA_PROPERTIES_MAX);
    grown = realloc(config->kafka, (config->kafka_count + 1) * sizeof *grown);
    if (!grown)
        return problem(source, "kafka.%s: out of memory", name);
    config->kafka = grown;
    grown += config->kafka_count;
    *grown = (struct config_kafka_property){strdup(name), strdup(value)};
    if (grown->name && grown->value) {
        config->kafka_count++;
        return;
    }
    free(grown->name);
    free(grown->value);
    problem(source, "kafka.%s: out of memory", name);
}

static bool kafka_secret(const char *name)
{
    return strstr(name, "password") || strstr(name, "secret") || strstr(name, "key.pem") ||
           strstr(name, "passphrase") || strstr(name, "jaas") || strstr(name, "oauthbearer.config");
}

/* ---- names ---- */

static const struct setting *setting_find(const char *name)
{
    for (int i = 0; i < SETTING_COUNT; i++)
        if (!strcmp(settings[i].name, name))
            return &settings[i];
    return NULL;
}

/* Levenshtein distance, for "did you mean". Names are short. */
static size_t distance(const char *a, const char *b)
{
    size_t row[128], m = strlen(a), n = strlen(b);

    if (m >= 127 || n >= 127)
        return 127;
    for (size_t j = 0; j <= n; j++)
        row[j] = j;
    for (size_t i = 1; i <= m; i++) {
        size_t diagonal = row[0];

        row[0] = i;
        for (size_t j = 1; j <= n; j++) {
            size_t above = row[j];
            size_t best = diagonal + (a[i - 1] != b[j - 1]);

            if (above + 1 < best)
                best = above + 1;
            if (row[j - 1] + 1 < best)
                best = row[j - 1] + 1;
            diagonal = above;
            row[j] = best;
        }
    }
    return row[n];
}

static const char *nearest(const char *name)
{
    const char *best = settings[0].name;

    for (int i = 1; i < SETTING_COUNT; i++)
        if (distance(name, settings[i].name) < distance(name, best))
            best = settings[i].name;
    return best;
}

static void assign(struct config *config, const char *name, const char *value,
                   struct source *source)
{
    const struct setting *s = setting_find(name);

    if (s)
        value_set(config, s, value, source);
    else if (!strncmp(name, "kafka.", 6) && name[6])
        kafka_set(config, name + 6, value, source);
    else
        problem(source, "unknown setting %s; did you mean %s?", name, nearest(name));
}

/* ---- sources ---- */

static void defaults_set(struct config *config, struct source *source)
{
    for (int i = 0; i < SETTING_COUNT; i++) {
        if (settings[i].text_default) {
            if (set_text(config, &settings[i], settings[i].text_default))
                problem(source, "out of memory");
        } else {
            set_number(config, &settings[i], settings[i].number_default);
        }
    }
}

static char *trim(char *text)
{
    char *end = text + strlen(text);

    while (end > text && isspace((unsigned char)end[-1]))
        *--end = '\0';
    while (isspace((unsigned char)*text))
        text++;
    return text;
}

/* A value in double quotes keeps its spaces and # signs. */
static char *unquote(char *value)
{
    size_t size = strlen(value);

    if (size >= 2 && value[0] == '"' && value[size - 1] == '"') {
        value[size - 1] = '\0';
        return value + 1;
    }
    return value;
}

static void line_read(struct config *config, char *line, struct source *source)
{
    char *text = trim(line), *equals;

    if (!*text || *text == '#')
        return;
    equals = strchr(text, '=');
    if (!equals)
        return problem(source, "\"%s\" is no `name = value` line", text);
    *equals = '\0';
    assign(config, trim(text), unquote(trim(equals + 1)), source);
}

static void file_read(struct config *config, const char *path, struct source *source)
{
    char line[LINE_MAX_BYTES], where[4096 + 32];
    FILE *file = fopen(path, "r");

    source->where = path;
    if (!file)
        return problem(source, "cannot be opened: %s", strerror(errno));
    for (int number = 1; fgets(line, sizeof line, file); number++) {
        snprintf(where, sizeof where, "%s:%d", path, number);
        source->where = where;
        if (strlen(line) < sizeof line - 1 || line[sizeof line - 2] == '\n') {
            line_read(config, line, source);
            continue;
        }
        problem(source, "the line is longer than %d bytes", LINE_MAX_BYTES - 2);
        while (!strchr(line, '\n') && fgets(line, sizeof line, file))
            ; /* the rest of it */
    }
    source->where = path;
    if (ferror(file))
        problem(source, "cannot be read: %s", strerror(errno));
    fclose(file);
}

static void environment_name(const char *setting, char out[128])
{
    size_t i = (size_t)snprintf(out, 128, "PGPT_");

    for (; *setting && i < 127; setting++)
        out[i++] = *setting == '.' ? '_' : (char)toupper((unsigned char)*setting);
    out[i] = '\0';
}

/* PGPT_KAFKA_SASL_PASSWORD is sasl.password: no librdkafka setting has an underscore. */
static void environment_kafka(struct config *config, const char *entry, struct source *source)
{
    char name[256];
    size_t i = 0;

    for (entry += strlen("PGPT_KAFKA_"); *entry && *entry != '=' && i < sizeof name - 1; entry++)
        name[i++] = *entry == '_' ? '.' : (char)tolower((unsigned char)*entry);
    name[i] = '\0';
    if (*entry == '=' && i)
        kafka_set(config, name, entry + 1, source);
}

static void environment_read(struct config *config, struct source *source)
{
    char name[128], where[160];

    for (int i = 0; i < SETTING_COUNT; i++) {
        const char *value;

        environment_name(settings[i].name, name);
        value = getenv(name);
        snprintf(where, sizeof where, "environment %s", name);
        source->where = where;
        if (value)
            value_set(config, &settings[i], value, source);
    }
    source->where = "environment PGPT_KAFKA_*";
    for (char **entry = environ; *entry; entry++)
        if (!strncmp(*entry, "PGPT_KAFKA_", 11) &&
            strncmp(*entry, "PGPT_KAFKA_CALL_", 16) != 0 && /* kafka_call.timeout_ms is ours */
            strncmp(*entry, "PGPT_KAFKA_PORT=", 16) != 0)   /* deploy/local/up listens there */
            environment_kafka(config, *entry, source);
}

/* Two workers of one name would fence one another: without a name, one that nobody else has. */
static void worker_name_make(struct config *config, struct source *source)
{
    char host[128] = "worker", name[192];
    unsigned random = 0;
    FILE *file;

    if (*config->worker_name)
        return;
    gethostname(host, sizeof host - 1);
    file = fopen("/dev/urandom", "rb");
    if (!file || fread(&random, sizeof random, 1, file) != 1)
        problem(source, "worker.name is empty and no random name could be made; set it");
    if (file)
        fclose(file);
    snprintf(name, sizeof name, "%s-%08x", host, random);
    free(config->worker_name);
    config->worker_name = strdup(name);
    if (!config->worker_name)
        problem(source, "worker.name: out of memory");
}

static void cross_check(const struct config *config, struct source *source)
{
    source->where = "settings";
    if (config->recorder_enabled && !*config->database_url)
        problem(source,
                "recorder.enabled is true but database_url is empty; set database_url, as in "
                "postgresql://recorder@host/pgpt, or recorder.enabled = false");
    if (config->duplicate_min_jobs > config->duplicate_max_jobs)
        problem(source, "duplicate.min_jobs is above duplicate.max_jobs");
    if (config->kafka_call_timeout_ms >= config->kafka_transaction_timeout_ms)
        problem(source, "kafka_call.timeout_ms must be below transaction.timeout_ms");
}

struct config *config_load(const char *path, FILE *problems)
{
    struct source source = {"settings", problems, 0};
    struct config *config = calloc(1, sizeof *config);

    if (!config) {
        problem(&source, "out of memory");
        return NULL;
    }
    defaults_set(config, &source);
    if (!source.count) { /* every text has a value */
        if (path)
            file_read(config, path, &source);
        environment_read(config, &source);
        worker_name_make(config, &source);
        cross_check(config, &source);
    }
    if (source.count) {
        config_free(config);
        return NULL;
    }
    return config;
}

void config_free(struct config *config)
{
    if (!config)
        return;
    for (int i = 0; i < SETTING_COUNT; i++)
        if (settings[i].text_default)
            free(*(char **)field(config, &settings[i]));
    for (size_t i = 0; i < config->kafka_count; i++) {
        free(config->kafka[i].name);
        free(config->kafka[i].value);
    }
    free(config->kafka);
    free(config);
}

/* ---- printing ---- */

/* Hides the password of URLs (scheme://user:password@) and of password=... words. */
static void secret_print(const char *value, FILE *out)
{
    const char *scheme = strstr(value, "://");
    size_t host = scheme ? strcspn(scheme + 3, "/?") : 0; /* a raw @ in a password hides no less */
    const char *at = scheme ? memrchr(scheme + 3, '@', host) : NULL;
    const char *colon = at ? memchr(scheme + 3, ':', (size_t)(at - scheme - 3)) : NULL;
    const char *word = strcasestr(value, "password=");

    if (colon)
        fprintf(out, "%.*s:********%s", (int)(colon - value), value,
                strstr(at, "password=") ? "@..." : at);
    else if (word)
        fprintf(out, "%.*spassword=********", (int)(word - value), value);
    else
        fputs(value, out);
}

static void value_print(const struct config *config, const struct setting *s, FILE *out)
{
    const void *at = (const char *)config + s->offset;

    switch (s->type) {
    case TYPE_STRING:
        if (s->secret)
            secret_print(*(char *const *)at, out);
        else
            fputs(*(char *const *)at, out);
        break;
    case TYPE_CHOICE:
        fputs(*(char *const *)at, out);
        break;
    case TYPE_INT:
        fprintf(out, "%lld", (long long)*(const int64_t *)at);
        break;
    case TYPE_BOOL:
        fputs(*(const bool *)at ? "true" : "false", out);
        break;
    case TYPE_REAL:
        fprintf(out, "%g", *(const double *)at);
        break;
    }
}

void config_print(const struct config *config, FILE *out)
{
    for (int i = 0; i < SETTING_COUNT; i++) {
        fprintf(out, "%s = ", settings[i].name);
        value_print(config, &settings[i], out);
        fputc('\n', out);
    }
    for (size_t i = 0; i < config->kafka_count; i++)
        fprintf(out, "kafka.%s = %s\n", config->kafka[i].name,
                kafka_secret(config->kafka[i].name) ? "********" : config->kafka[i].value);
}

static void sample_default(const struct setting *s, FILE *out)
{
    if (s->text_default)
        fputs(s->text_default, out);
    else if (s->type == TYPE_BOOL)
        fputs(s->number_default != 0 ? "true" : "false", out);
    else
        fprintf(out, "%.10g", s->number_default);
}

void config_print_sample(FILE *out)
{
    char name[128];

    fputs("# Settings of pgpt-worker with their defaults. Each can be set in the environment too,\n"
          "# under the name given; the environment wins over the file. kafka.NAME = VALUE (or\n"
          "# PGPT_KAFKA_NAME, dots as underscores) passes NAME to librdkafka.\n",
          out);
    for (int i = 0; i < SETTING_COUNT; i++) {
        const struct setting *s = &settings[i];

        environment_name(s->name, name);
        fprintf(out, "\n# %s\n# %s", s->help, name);
        if (s->type == TYPE_INT || s->type == TYPE_REAL)
            fprintf(out, ", %.10g..%.10g", s->min, s->max);
        else if (s->type == TYPE_CHOICE)
            fprintf(out, ", one of %s", s->choices);
        fprintf(out, "\n#%s = ", s->name);
        sample_default(s, out);
        fputc('\n', out);
    }
}
