/* SPDX-License-Identifier: MIT
 *
 * viewer: shows followed jobs: as JSON lines, or as text that grows while one job runs. Gives up on
 * jobs of which nothing was heard for the timeout. Shared by `submit --follow` and `follow`.
 */
#ifndef PGPT_PRODUCER_VIEWER_H
#define PGPT_PRODUCER_VIEWER_H

#include "producer/command.h"

/* Until each of the watched jobs has its result; job_ids (count) as watched. Returns an exit code.
 */
int viewer_run(struct cli *cli, const struct command *command, struct follow *follow,
               const char *const *job_ids, size_t count, bool results_only);

#endif
