/* SPDX-License-Identifier: MIT */
#include "worker/fault.h"

#ifdef PGPT_FAULTS
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void act(const char *action)
{
    static _Atomic int passes;
    int wanted = 1;

    if (!strncmp(action, "stall:", 6)) {
        usleep((useconds_t)atoi(action + 6) * 1000);
        return;
    }
    if (strncmp(action, "kill", 4) != 0)
        return;
    if (action[4] == '@')
        wanted = atoi(action + 5);
    if (atomic_fetch_add(&passes, 1) + 1 == wanted)
        kill(getpid(), SIGKILL);
}

void fault_point(const char *name)
{
    const char *at = getenv("PGPT_FAULT");
    size_t size = strlen(name);

    while (at && *at) {
        if (!strncmp(at, name, size) && at[size] == ':')
            act(at + size + 1);
        at = strchr(at, ',');
        at = at ? at + 1 : NULL;
    }
}
#else
typedef int fault_is_compiled_out; /* ISO C wants something in the file */
#endif
