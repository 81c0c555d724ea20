/* SPDX-License-Identifier: MIT */
#include "kernels/cpu/pages.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

struct pages {
    char *memory;
    size_t page_bytes;
    int64_t count, reserved;
    pthread_mutex_t lock;
    int64_t free_count;
    int32_t *free_list;  /* (count) indices, the last free_count-1 is taken next */
    int32_t *references; /* (count) */
};

struct pages *pages_create(int64_t count, size_t page_bytes, struct error *error)
{
    struct pages *pages = calloc(1, sizeof *pages);
    size_t size = (size_t)count * page_bytes;

    if (!pages || count < 1 || count > INT32_MAX) {
        error_set(error, "caches: cannot hold %" PRId64 " pages", count);
        free(pages);
        return NULL;
    }
    pthread_mutex_init(&pages->lock, NULL);
    pages->count = pages->free_count = count;
    pages->page_bytes = page_bytes;
    pages->free_list = malloc((size_t)count * sizeof *pages->free_list);
    pages->references = calloc((size_t)count, sizeof *pages->references);
    pages->memory = mmap(NULL, size, PROT_READ | PROT_WRITE,
                         MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (pages->memory == MAP_FAILED) {
        error_set(error, "caches: cannot map %zu bytes: %s; lower max_rows, max_source or max_new",
                  size, strerror(errno));
        pages->memory = NULL;
        pages_destroy(pages);
        return NULL;
    }
    madvise(pages->memory, size, MADV_HUGEPAGE); /* fewer TLB misses where the system agrees */
    if (!pages->free_list || !pages->references) {
        error_set(error, "caches: out of memory");
        pages_destroy(pages);
        return NULL;
    }
    for (int64_t i = 0; i < count; i++)
        pages->free_list[i] = (int32_t)(count - 1 - i);
    return pages;
}

void pages_destroy(struct pages *pages)
{
    if (!pages)
        return;
    if (pages->memory)
        munmap(pages->memory, (size_t)pages->count * pages->page_bytes);
    pthread_mutex_destroy(&pages->lock);
    free(pages->free_list);
    free(pages->references);
    free(pages);
}

int64_t pages_unreserved(const struct pages *pages)
{
    return pages->count - pages->reserved;
}

void pages_reserve(struct pages *pages, int64_t count)
{
    pages->reserved += count;
    assert(pages->reserved <= pages->count);
}

void pages_unreserve(struct pages *pages, int64_t count)
{
    pages->reserved -= count;
    assert(pages->reserved >= 0);
}

static int64_t page_index(const struct pages *pages, const char *page)
{
    return (page - pages->memory) / (int64_t)pages->page_bytes;
}

char *pages_take(struct pages *pages)
{
    int64_t index;

    pthread_mutex_lock(&pages->lock);
    assert(pages->free_count > 0);
    index = pages->free_list[--pages->free_count];
    pages->references[index] = 1;
    pthread_mutex_unlock(&pages->lock);
    return pages->memory + index * (int64_t)pages->page_bytes;
}

void pages_share(struct pages *pages, char *page)
{
    pthread_mutex_lock(&pages->lock);
    pages->references[page_index(pages, page)]++;
    pthread_mutex_unlock(&pages->lock);
}

void pages_drop(struct pages *pages, char *page)
{
    int64_t index = page_index(pages, page);

    pthread_mutex_lock(&pages->lock);
    if (--pages->references[index] == 0)
        pages->free_list[pages->free_count++] = (int32_t)index;
    pthread_mutex_unlock(&pages->lock);
}
