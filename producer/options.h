/* SPDX-License-Identifier: MIT
 *
 * options: command lines from tables. A row names an option, its type, where its value goes and its
 * help; parsing and --help are made from the same rows. Tables end with a row without a name.
 */
#ifndef PGPT_PRODUCER_OPTIONS_H
#define PGPT_PRODUCER_OPTIONS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "kernels/base/error.h"

enum { OPTION_LIST_MAX = 64 };

struct option_list {
    const char *items[OPTION_LIST_MAX];
    size_t count;
};

enum option_type {
    OPTION_FLAG,     /* bool */
    OPTION_INT,      /* int32_t */
    OPTION_LONG,     /* int64_t */
    OPTION_REAL,     /* double */
    OPTION_TEXT,     /* const char * */
    OPTION_DURATION, /* int64_t microseconds: 250ms, 30s, 5m, 2h, 1d */
    OPTION_LIST      /* struct option_list: may be given again */
};

struct option {
    const char *name; /* without the dashes */
    char letter;      /* '\0' = none */
    enum option_type type;
    void *target;
    const char *value; /* what the value is called in the help */
    const char *help;
    double min, max; /* of numbers and durations (microseconds); both 0 = what the type holds */
    bool *given;     /* set when the option is there; may be NULL */
};

/* Arguments that are no options, in their order. */
struct option_positionals {
    const char **items; /* (count), points into argv */
    size_t count;
};

/* Takes --name value, --name=value, -l value, -lvalue; `--` ends options, a lone `-` is none.
 * argv[0] is skipped; argv is reordered: the positionals end up in its front. -1 with the reason.
 */
int options_parse(const struct option *const *tables, int argc, char **argv,
                  struct option_positionals *positionals, struct error *error) PGPT_MUST_CHECK;

void options_print(const struct option *table, FILE *out);

/* "250ms" and the like to microseconds; -1 when it is none. */
int option_duration(const char *text, int64_t *us) PGPT_MUST_CHECK;

#endif
