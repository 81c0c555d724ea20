/* SPDX-License-Identifier: MIT
 *
 * ledger_metadata: a ledger as the text of an offset commit's metadata, at most 4,096 bytes (the
 * broker's limit), without NUL. The reader is total: any text gives a ledger or an error.
 *
 *   1;open;takeovers;bound;suspect_end;alone_offset;alone_deaths;<base64 of the bits from base on>
 *   2;open;takeovers;bound;suspect_end;alone_offset;alone_deaths;alone_end;single_end;<the same>
 *   and, where the owner has said it, ;<its engine_id>
 *
 * open is 0, 1, 2 while a suspect runs as the single one, or 3 while a group of them runs. The
 * second form is written only for what the first cannot say: workers of an older build read that
 * one alone, and would take finished offsets for unfinished.
 */
#ifndef PGPT_WORKER_LEDGER_METADATA_H
#define PGPT_WORKER_LEDGER_METADATA_H

#include <stddef.h>

#include "kernels/base/error.h"
#include "worker/ledger.h"

enum { LEDGER_METADATA_MAX = 4096 };

/* Returns the text's length; out is NUL-terminated. Cannot fail: the longest ledger fits. */
size_t ledger_metadata_write(const struct ledger *ledger, char out[LEDGER_METADATA_MAX]);

/* base is the committed offset. size 0 (a commit by another tool) gives a fresh, closed ledger. */
int ledger_metadata_read(const char *text, size_t size, int64_t base, struct ledger *ledger,
                         struct error *error) PGPT_MUST_CHECK;

#endif
