/* SPDX-License-Identifier: MIT */
#include "producer/options.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

int option_duration(const char *text, int64_t *us)
{
    static const struct {
        const char *unit;
        double us;
    } units[] = {{"us", 1}, {"ms", 1e3}, {"s", 1e6}, {"m", 60e6}, {"h", 3600e6}, {"d", 86400e6}};
    char *end;
    double value = strtod(text, &end);

    if (end == text || !isfinite(value) || value < 0)
        return -1;
    for (size_t i = 0; i < sizeof units / sizeof *units; i++)
        if (!strcmp(end, units[i].unit)) {
            value *= units[i].us;
            if (value > 9e15)
                return -1;
            *us = (int64_t)(value + 0.5);
            return 0;
        }
    return value == 0 && !*end ? (*us = 0, 0) : -1; /* 0 needs no unit */
}

static int out_of_range(const struct option *o, const char *text, struct error *error)
{
    if (o->type == OPTION_DURATION)
        return error_set(error, "--%s %s: must be from %g s to %g s", o->name, text, o->min / 1e6,
                         o->max / 1e6);
    return error_set(error, "--%s %s: must be from %.15g to %.15g", o->name, text, o->min, o->max);
}

static int set_integer(const struct option *o, const char *text, struct error *error)
{
    char *end;
    long long value;

    errno = 0;
    value = strtoll(text, &end, 10);
    if (end == text || *end)
        return error_set(error, "--%s %s: must be a whole number", o->name, text);
    if (errno || (o->type == OPTION_INT && (value < INT32_MIN || value > INT32_MAX)))
        return error_set(error, "--%s %s: is too large", o->name, text);
    if ((o->min || o->max) && ((double)value < o->min || (double)value > o->max))
        return out_of_range(o, text, error);
    if (o->type == OPTION_INT)
        *(int32_t *)o->target = (int32_t)value;
    else
        *(int64_t *)o->target = value;
    return 0;
}

static int set_real(const struct option *o, const char *text, struct error *error)
{
    char *end;
    double value = strtod(text, &end);

    if (end == text || *end || !isfinite(value))
        return error_set(error, "--%s %s: must be a number", o->name, text);
    if ((o->min != 0 || o->max != 0) && (value < o->min || value > o->max))
        return out_of_range(o, text, error);
    *(double *)o->target = value;
    return 0;
}

static int set_duration(const struct option *o, const char *text, struct error *error)
{
    int64_t us;

    if (option_duration(text, &us))
        return error_set(error, "--%s %s: must be a duration such as 250ms, 30s, 5m, 2h, 1d",
                         o->name, text);
    if ((o->min != 0 || o->max != 0) && ((double)us < o->min || (double)us > o->max))
        return out_of_range(o, text, error);
    *(int64_t *)o->target = us;
    return 0;
}

static int add_to_list(const struct option *o, const char *text, struct error *error)
{
    struct option_list *list = o->target;

    if (list->count == OPTION_LIST_MAX)
        return error_set(error, "--%s: at most %d of them", o->name, OPTION_LIST_MAX);
    list->items[list->count++] = text;
    return 0;
}

static int set_value(const struct option *o, const char *text, struct error *error)
{
    if (o->given)
        *o->given = true;
    switch (o->type) {
    case OPTION_FLAG:
        *(bool *)o->target = true;
        return 0;
    case OPTION_INT:
    case OPTION_LONG:
        return set_integer(o, text, error);
    case OPTION_REAL:
        return set_real(o, text, error);
    case OPTION_DURATION:
        return set_duration(o, text, error);
    case OPTION_LIST:
        return add_to_list(o, text, error);
    case OPTION_TEXT:
        break;
    }
    *(const char **)o->target = text;
    return 0;
}

static const struct option *find(const struct option *const *tables, const char *name, size_t size,
                                 char letter)
{
    for (; *tables; tables++)
        for (const struct option *o = *tables; o->name; o++)
            if (letter ? o->letter == letter
                       : strlen(o->name) == size && !strncmp(o->name, name, size))
                return o;
    return NULL;
}

/* One option at argv[*at]; *at moves to its last argument. */
static int parse_one(const struct option *const *tables, int argc, char **argv, int *at,
                     struct error *error)
{
    const char *argument = argv[*at], *value = NULL;
    const struct option *o;

    if (argument[1] == '-') {
        size_t size = strcspn(argument + 2, "=");

        o = find(tables, argument + 2, size, '\0');
        if (argument[2 + size] == '=')
            value = argument + 2 + size + 1;
    } else {
        o = find(tables, "", 0, argument[1]);
        if (argument[2])
            value = argument + 2;
    }
    if (!o)
        return error_set(error, "%.*s: there is no such option; --help lists them",
                         (int)strcspn(argument, "="), argument);
    if (o->type == OPTION_FLAG && value)
        return error_set(error, "--%s takes no value", o->name);
    if (o->type != OPTION_FLAG && !value) {
        if (*at + 1 == argc)
            return error_set(error, "--%s needs a value: %s", o->name, o->value);
        value = argv[++*at];
    }
    return set_value(o, value, error);
}

int options_parse(const struct option *const *tables, int argc, char **argv,
                  struct option_positionals *positionals, struct error *error)
{
    bool only_positionals = false;
    int kept = 1;

    for (int i = 1; i < argc; i++) {
        if (!only_positionals && !strcmp(argv[i], "--"))
            only_positionals = true;
        else if (only_positionals || argv[i][0] != '-' || !argv[i][1])
            argv[kept++] = argv[i];
        else if (parse_one(tables, argc, argv, &i, error))
            return -1;
    }
    positionals->items = (const char **)argv + 1;
    positionals->count = (size_t)(kept - 1);
    return 0;
}

void options_print(const struct option *table, FILE *out)
{
    for (const struct option *o = table; o->name; o++) {
        char left[64];
        int size = o->letter ? snprintf(left, sizeof left, "-%c, --%s", o->letter, o->name)
                             : snprintf(left, sizeof left, "    --%s", o->name);

        if (o->type != OPTION_FLAG && size > 0 && (size_t)size < sizeof left)
            snprintf(left + size, sizeof left - (size_t)size, " %s", o->value);
        fprintf(out, "  %-30s %s\n", left, o->help);
    }
}
