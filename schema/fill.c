/* SPDX-License-Identifier: MIT */
#include "schema/fill.h"

#include <string.h>

#include "kernels/text/utf8.h"

/* Texts that are missing must still point at something. */
static void texts_empty(const struct record_binding *binding, char *base)
{
    for (size_t i = 0; i < binding->field_count; i++) {
        const struct field_binding *f = &binding->fields[i];

        if (f->kind == BIND_TEXT)
            *(struct text *)(base + f->offset) = (struct text){"", 0};
        else if (f->kind == BIND_LITERAL)
            *(const char **)(base + f->offset) = "";
        else if (f->kind == BIND_RECORD || f->kind == BIND_OPT_RECORD)
            texts_empty(f->record, base + f->offset);
    }
}

void fill_defaults(const struct record_binding *binding, void *record)
{
    memset(record, 0, binding->size);
    texts_empty(binding, record);
    if (binding->defaults)
        binding->defaults(record);
}

void fill_flag(const struct field_binding *f, char *base)
{
    if (f->kind == BIND_OPT_LONG || f->kind == BIND_OPT_INTS || f->kind == BIND_OPT_RECORD)
        *(bool *)(base + f->flag) = true;
}

int fill_no_memory(struct fill *fill)
{
    fill->status = CODEC_NO_MEMORY;
    return error_set(fill->error, "the record needs more memory than one record may take");
}

int fill_text(struct fill *fill, const char *field, const void *data, size_t size, struct text *out)
{
    if (!utf8_valid(data, size)) {
        fill->status = CODEC_BAD_PAYLOAD;
        return error_set(fill->error, "field %s: its text is not valid UTF-8", field);
    }
    *out = arena_text(fill->arena, data, size);
    return out->data ? 0 : fill_no_memory(fill);
}

int fill_literal(struct fill *fill, const char *field, struct text text, const char **out)
{
    if (memchr(text.data, 0, text.size)) {
        fill->status = CODEC_BAD_PAYLOAD;
        return error_set(fill->error, "field %s: its text contains a NUL", field);
    }
    *out = text.data;
    return 0;
}
