/* SPDX-License-Identifier: MIT */
#include "schema/framing.h"

int framing_read(const void *data, size_t size, struct frame *frame, struct error *error)
{
    const uint8_t *bytes = data;

    if (size >= FRAMING_SINGLE_OBJECT_SIZE && bytes[0] == 0xc3 && bytes[1] == 0x01) {
        frame->kind = FRAMING_SINGLE_OBJECT;
        frame->fingerprint = 0;
        for (int i = 7; i >= 0; i--)
            frame->fingerprint = frame->fingerprint << 8 | bytes[2 + i];
        frame->body = bytes + FRAMING_SINGLE_OBJECT_SIZE;
        frame->body_size = size - FRAMING_SINGLE_OBJECT_SIZE;
        return 0;
    }
    if (size >= FRAMING_CONFLUENT_SIZE && bytes[0] == 0x00) {
        frame->kind = FRAMING_CONFLUENT;
        frame->schema_id = (uint32_t)bytes[1] << 24 | (uint32_t)bytes[2] << 16 |
                           (uint32_t)bytes[3] << 8 | bytes[4];
        frame->body = bytes + FRAMING_CONFLUENT_SIZE;
        frame->body_size = size - FRAMING_CONFLUENT_SIZE;
        return 0;
    }
    return error_set(error,
                     "the payload of %zu bytes has no known framing: it must begin with C3 01 "
                     "and the schema's fingerprint (Avro single-object encoding)",
                     size);
}

void framing_write_single_object(uint8_t out[FRAMING_SINGLE_OBJECT_SIZE], uint64_t fingerprint)
{
    out[0] = 0xc3;
    out[1] = 0x01;
    for (int i = 0; i < 8; i++)
        out[2 + i] = (uint8_t)(fingerprint >> 8 * i);
}
