/* SPDX-License-Identifier: MIT
 *
 * codec: records to framed Avro bytes and back. A codec holds the compiled writer schemas (its own
 * and every older or newer one it was given) and reusable Avro values, so it belongs to one thread;
 * each thread opens its own. Payloads are skimmed against hard caps before anything reads them.
 * Those of the product's own schemas go straight into the structs, others by Avro C: with the
 * writer's schema, mapped by field name, and missing fields take the defaults of the wire contract.
 */
#ifndef PGPT_SCHEMA_CODEC_H
#define PGPT_SCHEMA_CODEC_H

#include "schema/records.h"

#ifdef __cplusplus
extern "C" {
#endif

enum record_type {
    RECORD_GENERATION_REQUEST,
    RECORD_GENERATION_CHUNK,
    RECORD_GENERATION_RESULT,
    RECORD_JOB_EVENT,
    RECORD_JOB_INDEX,
    RECORD_JOB_CONTROL,
    RECORD_TYPE_COUNT
};

enum codec_status {
    CODEC_OK = 0,
    CODEC_BAD_FRAME,      /* neither framing, or too short: poison */
    CODEC_UNKNOWN_SCHEMA, /* a fingerprint or id nobody knows: poison */
    CODEC_BAD_PAYLOAD,    /* does not match its schema or breaks a cap: poison */
    CODEC_RETRY,          /* the registry did not answer: try again later, never poison */
    CODEC_NO_MEMORY
};

struct codec; /* opaque */

/* schema_dirs: extra directories with <Record>.*.avsc files of other writers, NULL = none. The
 * product's own schemas are compiled in. */
struct codec *codec_open(const char *const *schema_dirs, struct error *error) PGPT_MUST_CHECK;
void codec_close(struct codec *codec); /* NULL is allowed */

/* Bytes of a grown buffer that the caller owns and may reuse; free with buffer_free(). */
struct buffer {
    uint8_t *data;
    size_t size;
    size_t capacity;
};
void buffer_free(struct buffer *buffer);

/* Replaces buffer's content with the framed record. record points at the struct of that type.
 * Returns -1 with the reason: a body of more than 16 MiB, a NUL in a map's key, no memory. */
int codec_encode(struct codec *codec, enum record_type type, const void *record,
                 struct buffer *buffer, struct error *error) PGPT_MUST_CHECK;

/* Decodes one framed payload into *record (the struct of that type); texts and arrays are copied
 * into the arena. Fields the writer did not have take their defaults. */
enum codec_status codec_decode(struct codec *codec, enum record_type type, const void *data,
                               size_t size, struct arena *arena, void *record,
                               struct error *error) PGPT_MUST_CHECK;

/* The product's own schema as JSON text, and its CRC-64-AVRO fingerprint. */
const char *codec_schema_json(enum record_type type);
uint64_t codec_schema_fingerprint(enum record_type type);
const char *codec_record_name(enum record_type type); /* "GenerationRequest", ... */

#ifdef __cplusplus
}
#endif
#endif
