/* SPDX-License-Identifier: MIT */
#include "worker/fault.h"

#ifdef PGPT_FAULTS
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "worker/log.h"

enum { FAULTS_MAX = 16, TOLD_MS = 100 };

/* action: what follows the name, up to the next comma. True = the caller shall fail. A stall is
 * told, since what the thread held comes late: nobody else can know when that was; one that is
 * shorter only paces a thread. A death is told, too: else nothing says whether it was this one or
 * somebody's kill -9. */
static bool act(const char *name, const char *action)
{
    if (!strncmp(action, "stall:", 6)) {
        int ms = atoi(action + 6);

        if (ms >= TOLD_MS)
            log_write(LOG_INFO, "fault", NULL, "stalls at %s for %d ms", name, ms);
        usleep((useconds_t)ms * 1000);
    } else if (!strncmp(action, "kill", 4)) {
        log_write(LOG_INFO, "fault", NULL, "dies at %s", name);
        kill(getpid(), SIGKILL);
    }
    return !strncmp(action, "fail", 4);
}

/* True when the action is for every pass, or for this one. */
static bool due(const char *action, int pass)
{
    const char *at = action + strcspn(action, "@,");

    return *at != '@' || atoi(at + 1) == pass;
}

bool fault_point(const char *name)
{
    static _Atomic int passes[FAULTS_MAX]; /* of each entry of PGPT_FAULT */
    const char *at = getenv("PGPT_FAULT");
    size_t size = strlen(name);
    bool fails = false;

    for (int i = 0; at && i < FAULTS_MAX; i++) {
        if (!strncmp(at, name, size) && at[size] == ':' &&
            due(at + size + 1, atomic_fetch_add(&passes[i], 1) + 1))
            fails |= act(name, at + size + 1);
        at = strchr(at, ',');
        at = at ? at + 1 : NULL;
    }
    return fails;
}
#else
typedef int fault_is_compiled_out; /* ISO C wants something in the file */
#endif
