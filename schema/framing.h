/* SPDX-License-Identifier: MIT
 *
 * framing: the bytes in front of an Avro body, told apart by the first one.
 *   C3 01 + 8 bytes   single-object encoding: CRC-64-AVRO of the writer's schema, little endian
 *   00 + 4 bytes      Confluent wire format: id of the writer's schema in a registry, big endian
 * Pure functions; any thread.
 */
#ifndef PGPT_SCHEMA_FRAMING_H
#define PGPT_SCHEMA_FRAMING_H

#include <stddef.h>
#include <stdint.h>

#include "kernels/base/error.h"

enum framing_kind { FRAMING_SINGLE_OBJECT, FRAMING_CONFLUENT };
enum { FRAMING_SINGLE_OBJECT_SIZE = 10, FRAMING_CONFLUENT_SIZE = 5 };

struct frame {
    enum framing_kind kind;
    uint64_t fingerprint; /* single object */
    uint32_t schema_id;   /* Confluent */
    const uint8_t *body;
    size_t body_size;
};

int framing_read(const void *data, size_t size, struct frame *frame,
                 struct error *error) PGPT_MUST_CHECK;
void framing_write_single_object(uint8_t out[FRAMING_SINGLE_OBJECT_SIZE], uint64_t fingerprint);

#endif
