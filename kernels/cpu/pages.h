/* SPDX-License-Identifier: MIT
 *
 * pages: the memory of all attention caches, a fixed number of pages of one size (ops.h says what a
 * page holds), mapped once; untouched pages take no memory. A page is shared by counting
 * references: beams that continue the same sequence share what they have in common. Admission
 * reserves the most that a request can come to hold, so taking a page never fails afterwards. Last
 * freed, first used: what is warm stays warm. Reserving is the owner's; taking, sharing and
 * dropping are locked, any thread.
 */
#ifndef PGPT_KERNELS_CPU_PAGES_H
#define PGPT_KERNELS_CPU_PAGES_H

#include <stddef.h>
#include <stdint.h>

#include "kernels/base/error.h"

struct pages; /* opaque */

struct pages *pages_create(int64_t count, size_t page_bytes, struct error *error) PGPT_MUST_CHECK;
void pages_destroy(struct pages *pages); /* NULL is allowed */

int64_t pages_unreserved(const struct pages *pages);
void pages_reserve(struct pages *pages, int64_t count); /* count <= pages_unreserved() */
void pages_unreserve(struct pages *pages, int64_t count);

char *pages_take(struct pages *pages);             /* one reference; contents undefined */
void pages_share(struct pages *pages, char *page); /* one reference more */
void pages_drop(struct pages *pages, char *page);  /* one less; the last one frees */

#endif
