/* SPDX-License-Identifier: MIT */
#include "kernels/cpu/slots.h"

#include <stdlib.h>
#include <string.h>

static void *carve(char *memory, size_t *used, size_t size)
{
    void *part = memory ? memory + *used : NULL;

    *used += (size + 63) & ~(size_t)63;
    return part;
}

/* Lays the tables out in memory; NULL only adds up. */
static size_t slots_carve(struct slots *s, char *memory)
{
    size_t rows = (size_t)s->max_rows, new = (size_t)s->max_new, used = 0;
    size_t own = (size_t)slots_pages_for(s->max_new),
           cross = (size_t)slots_pages_for(s->max_source);

    s->slots = carve(memory, &used, rows * sizeof *s->slots);
    s->rows = carve(memory, &used, rows * sizeof *s->rows);
    s->free_rows = carve(memory, &used, rows * sizeof(struct row *));
    s->order = carve(memory, &used, rows * sizeof(struct slot *));
    for (size_t i = 0; i < rows; i++) {
        int32_t *history = carve(memory, &used, (new + 1) * sizeof(int32_t));
        float *logprobs = carve(memory, &used, new * sizeof(float));
        char **pages = carve(memory, &used, own * sizeof(char *));
        int32_t *source = carve(memory, &used, (size_t)s->max_source * sizeof(int32_t));
        char **cross_pages = carve(memory, &used, cross * sizeof(char *));
        int32_t *tokens = carve(memory, &used, new *SLOT_ROWS * sizeof(int32_t));
        int32_t *parents = carve(memory, &used, new *SLOT_ROWS * sizeof(int32_t));

        if (!memory)
            continue;
        s->rows[i] = (struct row){.history = history, .logprobs = logprobs, .pages = pages};
        s->slots[i].source = source;
        s->slots[i].cross = cross_pages;
        s->slots[i].beams.tokens = tokens;
        s->slots[i].beams.parents = parents;
        s->free_rows[rows - 1 - i] = &s->rows[i];
    }
    return used;
}

size_t slots_bytes(int32_t max_rows, int32_t max_source, int32_t max_new)
{
    struct slots sizes = {.max_rows = max_rows, .max_source = max_source, .max_new = max_new};

    return slots_carve(&sizes, NULL);
}

int slots_create(struct slots *s, int32_t max_rows, int32_t max_source, int32_t max_new,
                 const struct ops_cache *cache, int32_t layers, int64_t page_count,
                 struct error *error)
{
    memset(s, 0, sizeof *s);
    s->max_rows = s->free_count = max_rows;
    s->max_source = max_source;
    s->max_new = max_new;
    s->cache = *cache;
    s->layers = layers;
    s->bytes = slots_bytes(max_rows, max_source, max_new);
    s->memory = calloc(1, s->bytes);
    if (!s->memory)
        return error_set(error, "slots: out of memory for %d rows (%zu bytes); lower max_rows",
                         (int)max_rows, s->bytes);
    slots_carve(s, s->memory);
    s->pages = pages_create(page_count, (size_t)layers * ops_layer_bytes(cache), error);
    return s->pages ? 0 : -1;
}

void slots_destroy(struct slots *s)
{
    pages_destroy(s->pages);
    free(s->memory);
    memset(s, 0, sizeof *s);
}

static void row_begin(struct slots *s, struct slot *slot, int32_t sequence, int32_t start_token)
{
    struct row *row = s->free_rows[--s->free_count];

    row->slot = slot;
    row->sequence = sequence;
    row->length = row->reported = row->page_count = 0;
    row->running = true;
    row->ended_with_eos = row->finish_reported = false;
    row->finish = ENGINE_RUNNING;
    row->history[0] = start_token;
    slot->rows[sequence] = row;
}

bool slots_admit(struct slots *s, int32_t index, const struct engine_request *request,
                 int32_t start_token, int32_t eos_token)
{
    struct slot *slot = &s->slots[index];
    int32_t rows = slots_rows(request);
    int64_t cross = slots_pages_for(request->source_len);
    int64_t needed = cross + rows * slots_pages_for(request->max_new);

    if (rows > s->free_count || needed > pages_unreserved(s->pages))
        return false;
    pages_reserve(s->pages, needed);
    slot->used = true;
    slot->encoded = false;
    slot->request = *request;
    slot->request.source = slot->source;
    slot->reserved = needed;
    slot->row_count = rows;
    memcpy(slot->source, request->source, (size_t)request->source_len * sizeof *slot->source);
    for (int64_t i = 0; i < cross; i++)
        slot->cross[i] = pages_take(s->pages);
    for (int32_t i = 0; i < rows; i++)
        row_begin(s, slot, i, start_token);
    slot->beams.over = false;
    slot->beams.candidate_count = 0;
    if (slot_searches(slot))
        beam_init(&slot->beams.state, request->num_beams, request->max_new, eos_token,
                  request->length_penalty, request->early_stopping);
    s->order[s->order_count++] = slot;
    return true;
}

void slots_release(struct slots *s, int32_t index)
{
    struct slot *slot = &s->slots[index];
    int32_t at = 0;

    for (int32_t i = 0; i < slot->row_count; i++) {
        struct row *row = slot->rows[i];

        for (int32_t p = 0; p < row->page_count; p++)
            pages_drop(s->pages, row->pages[p]);
        row->page_count = 0;
        row->running = false;
        s->free_rows[s->free_count++] = row;
    }
    for (int64_t i = 0; i < slots_pages_for(slot->request.source_len); i++)
        pages_drop(s->pages, slot->cross[i]);
    pages_unreserve(s->pages, slot->reserved);
    slot->used = false;
    while (s->order[at] != slot)
        at++;
    s->order_count--;
    memmove(s->order + at, s->order + at + 1,
            (size_t)(s->order_count - at) * sizeof(struct slot *));
}

void slots_grow(struct slots *s, struct row *row)
{
    if (row->length / OPS_PAGE >= row->page_count)
        row->pages[row->page_count++] = pages_take(s->pages);
}

/* Copies the first `filled` positions of a page. */
static void page_copy(const struct slots *s, char *to, const char *from, int32_t filled)
{
    size_t head = ops_head_bytes(&s->cache);
    size_t keys = head / 2, values = keys / OPS_PAGE * (size_t)filled;

    for (int32_t i = 0; i < s->layers * s->cache.heads; i++, to += head, from += head)
        memcpy(to, from, keys + values);
}

/* Page p of every beam becomes its parent's. */
static void pages_branch(struct slots *s, struct slot *slot, const int32_t *parents, int32_t p)
{
    int32_t beams = slot->row_count;
    char *before[SLOT_ROWS];

    for (int32_t i = 0; i < beams; i++)
        before[i] = slot->rows[i]->pages[p];
    for (int32_t i = 0; i < beams; i++) {
        slot->rows[i]->pages[p] = before[parents[i]];
        pages_share(s->pages, before[parents[i]]);
    }
    for (int32_t i = 0; i < beams; i++)
        pages_drop(s->pages, before[i]);
}

/* Gives each beam but the first of a parent its own copy of the page that is still filling. */
static void page_part(struct slots *s, struct slot *slot, const int32_t *parents, int32_t p,
                      int32_t filled)
{
    for (int32_t i = 1; i < slot->row_count; i++)
        for (int32_t j = 0; j < i; j++)
            if (parents[j] == parents[i]) {
                char *shared = slot->rows[i]->pages[p];

                slot->rows[i]->pages[p] = pages_take(s->pages);
                page_copy(s, slot->rows[i]->pages[p], shared, filled);
                pages_drop(s->pages, shared);
                break;
            }
}

void slots_branch(struct slots *s, struct slot *slot, const int32_t *parents, const int32_t *tokens)
{
    int32_t beams = slot->row_count, length = slot->rows[0]->length;
    int32_t last = length / OPS_PAGE, filled = length % OPS_PAGE + 1;
    bool moved = false;

    for (int32_t i = 0; i < beams; i++)
        moved = moved || parents[i] != i;
    for (int32_t p = 0; moved && p <= last; p++)
        pages_branch(s, slot, parents, p);
    if (moved && filled < OPS_PAGE)
        page_part(s, slot, parents, last, filled);
    for (int32_t t = 1; moved && t <= length; t++) {
        int32_t before[SLOT_ROWS];

        for (int32_t i = 0; i < beams; i++)
            before[i] = slot->rows[i]->history[t];
        for (int32_t i = 0; i < beams; i++)
            slot->rows[i]->history[t] = before[parents[i]];
    }
    for (int32_t i = 0; i < beams; i++) {
        slot->rows[i]->history[length + 1] = tokens[i];
        slot->rows[i]->length = length + 1;
    }
}
