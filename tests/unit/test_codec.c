/* SPDX-License-Identifier: MIT
 * The codec: round trips of every record, defaults, and payloads that lie. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include <avro.h>

#include "schema/binding.h"
#include "schema/canonical.h"
#include "schema/codec.h"
#include "schema/framing.h"
#include "tests/schema/twin_schemas.h"

static struct text text_of(const char *s)
{
    return (struct text){s, strlen(s)};
}

struct fixture {
    struct codec *codec; /* knows the twins */
    struct twin_schemas twins;
    struct arena *arena;
    struct buffer buffer;
    struct error error;
};

static int setup(void **state)
{
    struct fixture *f = calloc(1, sizeof *f);
    const char *directories[] = {f->twins.directory, NULL};

    if (twin_schemas_make(&f->twins, 64 << 20))
        return -1;
    f->codec = codec_open(directories, &f->error);
    (void)twin_schemas_remove(&f->twins);
    if (!f->codec) {
        print_error("%s\n", f->error.message);
        return -1;
    }
    f->arena = arena_create(4096, 64 << 20);
    *state = f;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *f = *state;

    codec_close(f->codec);
    twin_schemas_free(&f->twins);
    arena_destroy(f->arena);
    buffer_free(&f->buffer);
    free(f);
    return 0;
}

static avro_schema_t own_schema(enum record_type type)
{
    const char *json = codec_schema_json(type);
    avro_schema_t schema;

    assert_int_equal(avro_schema_from_json_length(json, strlen(json), &schema), 0);
    return schema;
}

/* Avro C reads what was written with the product's schema, and writes the same bytes. */
static void assert_as_avro_c(enum record_type type, const struct buffer *b)
{
    const char *body = (const char *)b->data + FRAMING_SINGLE_OBJECT_SIZE;
    size_t size = b->size - FRAMING_SINGLE_OBJECT_SIZE;
    char *again = malloc(size + 1);
    avro_reader_t reader = avro_reader_memory(body, (int64_t)size);
    avro_writer_t writer = avro_writer_memory(again, (int64_t)size);
    avro_schema_t schema = own_schema(type);
    avro_value_iface_t *iface = avro_generic_class_from_schema(schema);
    avro_value_t value;

    assert_int_equal(avro_generic_value_new(iface, &value), 0);
    assert_int_equal(avro_value_read(reader, &value), 0);
    assert_int_equal(avro_value_write(writer, &value), 0);
    assert_int_equal(avro_writer_tell(writer), size);
    assert_memory_equal(again, body, size);
    avro_value_decref(&value);
    avro_value_iface_decref(iface);
    avro_schema_decref(schema);
    avro_writer_free(writer);
    avro_reader_free(reader);
    free(again);
}

/* The body is read to the same record, or refused with the same words, straight and by Avro C. */
static void assert_read_as_avro_c(struct fixture *f, enum record_type type, const uint8_t *body,
                                  size_t size)
{
    const char *differs = twin_differs(&f->twins, f->codec, type, body, size);

    if (differs)
        fail_msg("%s differs: '%s', Avro C: '%s'", differs, f->twins.errors[0].message,
                 f->twins.errors[1].message);
}

/* Of any record that can be encoded, also one that Avro C would not write so. */
static void encode_alone(struct fixture *f, enum record_type type, const void *record)
{
    if (codec_encode(f->codec, type, record, &f->buffer, &f->error))
        fail_msg("%s", f->error.message);
    assert_read_as_avro_c(f, type, f->buffer.data + FRAMING_SINGLE_OBJECT_SIZE,
                          f->buffer.size - FRAMING_SINGLE_OBJECT_SIZE);
}

static void encode(struct fixture *f, enum record_type type, const void *record)
{
    encode_alone(f, type, record);
    assert_as_avro_c(type, &f->buffer);
}

static void decode(struct fixture *f, enum record_type type, void *record)
{
    enum codec_status status =
        codec_decode(f->codec, type, f->buffer.data, f->buffer.size, f->arena, record, &f->error);
    if (status)
        fail_msg("status %d: %s", status, f->error.message);
}

static void assert_text(struct text text, const char *wanted)
{
    assert_int_equal(text.size, strlen(wanted));
    assert_memory_equal(text.data, wanted, text.size + 1);
}

static struct generation_request request_full(void)
{
    static const int32_t source[] = {5, 445, 3};
    static const struct text stop[] = {{".", 1}, {"конец", 10}};
    static const struct text_pair metadata[] = {{{"k", 1}, {"значение", 16}}, {{"e", 1}, {"", 0}}};
    struct generation_request r;

    generation_request_init(&r);
    r.job_id = text_of("6f2c1c6e-7a52-4f0b-9a55-0c1d2e3f4a5b");
    r.prompt = text_of("Сегодня хорошая погода.");
    r.has_source_tokens = true;
    r.source_tokens = source;
    r.source_token_count = 3;
    r.target_language = text_of("en");
    r.max_length = 17;
    r.do_sample = true;
    r.temperature = 0.7f;
    r.top_k = 40;
    r.stop = stop;
    r.stop_count = 2;
    r.has_seed = true;
    r.seed = INT64_MIN;
    r.stream = true;
    r.has_deadline = true;
    r.deadline_us = 1790000000000000;
    r.created_at_us = 1780000000000000;
    r.metadata = metadata;
    r.metadata_count = 2;
    return r;
}

static void test_request_round_trip(void **state)
{
    struct fixture *f = *state;
    struct generation_request in = request_full(), out;

    encode(f, RECORD_GENERATION_REQUEST, &in);
    decode(f, RECORD_GENERATION_REQUEST, &out);
    assert_text(out.prompt, "Сегодня хорошая погода.");
    assert_true(out.has_source_tokens);
    assert_int_equal(out.source_token_count, 3);
    assert_int_equal(out.source_tokens[1], 445);
    assert_int_equal(out.max_length, 17);
    assert_true(out.temperature == 0.7f);
    assert_int_equal(out.stop_count, 2);
    assert_text(out.stop[1], "конец");
    assert_true(out.has_seed && out.seed == INT64_MIN);
    assert_true(out.has_deadline && out.deadline_us == in.deadline_us);
    assert_int_equal(out.metadata_count, 2);
    assert_text(out.tenant, "");
}

static void test_result_round_trip(void **state)
{
    struct fixture *f = *state;
    static const int32_t ids[] = {909, 431};
    struct generation_sequence sequence = {text_of("Stay"), ids, 2, "eos", -1.25};
    struct generation_result in = {.job_id = text_of("id"),
                                   .attempt = 2,
                                   .status = "completed",
                                   .sequences = &sequence,
                                   .sequence_count = 1,
                                   .usage = {11, 3},
                                   .timings = {.batch_size_mean = 1.5},
                                   .model = text_of("m"),
                                   .has_error = true,
                                   .error = {text_of("internal"), text_of("why")}};
    struct generation_result out;

    encode(f, RECORD_GENERATION_RESULT, &in);
    decode(f, RECORD_GENERATION_RESULT, &out);
    assert_string_equal(out.status, "completed");
    assert_string_equal(out.sequences[0].finish_reason, "eos");
    assert_int_equal(out.sequences[0].token_ids[1], 431);
    assert_true(out.sequences[0].score == -1.25);
    assert_int_equal(out.usage.generated_tokens, 3);
    assert_true(out.timings.batch_size_mean == 1.5);
    assert_true(out.has_error);
    assert_text(out.error.error_class, "internal");
}

/* Where a varint takes a byte more, on both sides of zero, and what no varint is. */
static void test_numbers_of_every_length(void **state)
{
    struct fixture *f = *state;
    static int32_t tokens[2 * 31 + 3];
    struct generation_sequence sequence = {.text = text_of(""), .finish_reason = ""};
    struct generation_result in = {.job_id = text_of("x"), .status = "completed"};
    struct generation_result out;
    size_t n = 0;

    for (int bit = 0; bit < 31; bit++) {
        tokens[n++] = (int32_t)(1u << bit);
        tokens[n++] = -(int32_t)(1u << bit) - (bit == 30 ? (1 << 30) : 0);
    }
    tokens[n++] = INT32_MAX;
    sequence.token_ids = tokens;
    sequence.token_count = n;
    sequence.score = -0.0;
    in.sequences = &sequence;
    in.sequence_count = 1;
    for (int bit = 0; bit < 64; bit++) {
        in.timings.queue_us = (int64_t)(UINT64_MAX >> bit);
        in.timings.total_us = (int64_t)(UINT64_C(1) << (63 - bit));
        in.timings.decode_us = -in.timings.queue_us - 1;
        in.timings.batch_size_mean = 1e300 / (bit + 1);
        encode(f, RECORD_GENERATION_RESULT, &in);
        decode(f, RECORD_GENERATION_RESULT, &out);
        assert_memory_equal(&out.timings, &in.timings, sizeof in.timings);
    }
    assert_memory_equal(out.sequences[0].token_ids, tokens, n * sizeof *tokens);
    assert_memory_equal(&out.sequences[0].score, &sequence.score, sizeof sequence.score);
}

/* A body may have 16 MiB, to the byte. */
static void test_largest_record(void **state)
{
    struct fixture *f = *state;
    static char bytes[16 << 20];
    struct job_control in = {text_of("x"), {bytes, 0}, text_of(""), 0};

    memset(bytes, 'a', sizeof bytes);
    in.action.size = sizeof bytes - 8; /* 2 of job_id, 4 of its own length, 1 and 1 of the rest */
    assert_int_equal(codec_encode(f->codec, RECORD_JOB_CONTROL, &in, &f->buffer, &f->error), 0);
    assert_int_equal(f->buffer.size, FRAMING_SINGLE_OBJECT_SIZE + sizeof bytes);
    in.action.size++;
    assert_int_equal(codec_encode(f->codec, RECORD_JOB_CONTROL, &in, &f->buffer, &f->error), -1);
    assert_non_null(strstr(f->error.message, "larger"));
}

static void test_index_and_event(void **state)
{
    struct fixture *f = *state;
    struct job_index_entry entry = {{1, 2, 3, [15] = 9}, 1234567890123};
    struct job_index index = {7, &entry, 1}, index_out;
    struct job_event event = {.job_id = text_of("id"),
                              .attempt = 1,
                              .state = "started",
                              .worker = text_of("w"),
                              .source_partition = 3,
                              .source_offset = 99};
    struct job_event event_out;

    encode(f, RECORD_JOB_INDEX, &index);
    decode(f, RECORD_JOB_INDEX, &index_out);
    assert_int_equal(index_out.job_count, 1);
    assert_memory_equal(index_out.jobs[0].id, entry.id, 16);
    assert_true(index_out.jobs[0].source_offset == 1234567890123);
    encode(f, RECORD_JOB_EVENT, &event);
    decode(f, RECORD_JOB_EVENT, &event_out);
    assert_false(event_out.has_usage);
    assert_int_equal(event_out.source_partition, 3);
    assert_string_equal(event_out.state, "started");
}

static void test_truncated_at_every_byte(void **state)
{
    struct fixture *f = *state;
    struct generation_request in = request_full(), out;

    encode(f, RECORD_GENERATION_REQUEST, &in);
    for (size_t size = 0; size < f->buffer.size; size++) {
        uint8_t *copy =
            malloc(size ? size : 1); /* exact, so that a sanitizer sees a read past it */

        memcpy(copy, f->buffer.data, size);
        assert_int_not_equal(codec_decode(f->codec, RECORD_GENERATION_REQUEST, copy, size, f->arena,
                                          &out, &f->error),
                             CODEC_OK);
        free(copy);
    }
}

static void test_trailing_bytes_and_wrong_record(void **state)
{
    struct fixture *f = *state;
    struct generation_request in = request_full(), out;
    struct job_control control;
    uint8_t longer[4096];

    encode(f, RECORD_GENERATION_REQUEST, &in);
    memcpy(longer, f->buffer.data, f->buffer.size);
    longer[f->buffer.size] = 0;
    assert_int_equal(codec_decode(f->codec, RECORD_GENERATION_REQUEST, longer, f->buffer.size + 1,
                                  f->arena, &out, &f->error),
                     CODEC_BAD_PAYLOAD);
    assert_int_equal(codec_decode(f->codec, RECORD_JOB_CONTROL, f->buffer.data, f->buffer.size,
                                  f->arena, &control, &f->error),
                     CODEC_UNKNOWN_SCHEMA);
    longer[5] ^= 1;
    assert_int_equal(codec_decode(f->codec, RECORD_GENERATION_REQUEST, longer, f->buffer.size,
                                  f->arena, &out, &f->error),
                     CODEC_UNKNOWN_SCHEMA);
}

static void test_random_damage_never_breaks(void **state)
{
    struct fixture *f = *state;
    struct generation_request in = request_full();
    uint32_t seed = 1;

    encode(f, RECORD_GENERATION_REQUEST, &in);
    for (int round = 0; round < 20000; round++) {
        uint8_t *copy = malloc(f->buffer.size);

        memcpy(copy, f->buffer.data, f->buffer.size);
        for (int i = 0; i < 1 + round % 4; i++) {
            seed = seed * 1664525u + 1013904223u;
            copy[10 + seed / 7 % (f->buffer.size - 10)] = (uint8_t)(seed >> 24);
        }
        assert_read_as_avro_c(f, RECORD_GENERATION_REQUEST, copy + FRAMING_SINGLE_OBJECT_SIZE,
                              f->buffer.size - FRAMING_SINGLE_OBJECT_SIZE);
        free(copy);
    }
}

static size_t put_long(uint8_t *out, int64_t value)
{
    uint64_t left = ((uint64_t)value << 1) ^ (uint64_t)(value >> 63);
    size_t size = 0;

    for (; left > 127; left >>= 7)
        out[size++] = (uint8_t)(left | 128);
    out[size++] = (uint8_t)left;
    return size;
}

/* A JobIndex whose list comes in blocks of so many items; of even ones with their size in bytes.
 * Returns its size. */
static size_t index_in_blocks(uint8_t *body, int items, int block)
{
    size_t size = put_long(body, 5);

    for (int i = 0; i < items; i++) {
        int left = items - i < block ? items - i : block;

        if (i % block == 0 && block % 2)
            size += put_long(body + size, left);
        if (i % block == 0 && block % 2 == 0) {
            size += put_long(body + size, -left);
            size += put_long(body + size, 17 * left);
        }
        memset(body + size, i, 16);
        size += 16;
        size += put_long(body + size, -(i % 64)); /* a byte */
    }
    return size + put_long(body + size, 0);
}

/* A list may come in any number of blocks, with and without their size in bytes. Ours has one. */
static void test_lists_in_blocks(void **state)
{
    struct fixture *f = *state;
    uint8_t body[1 << 14];
    union any_record read;

    for (int n = 0; n < 300 * 7; n++) {
        int items = n / 7;
        size_t size = index_in_blocks(body, items, 1 + n % 7);

        assert_read_as_avro_c(f, RECORD_JOB_INDEX, body, size);
        assert_int_equal(twin_read(&f->twins, f->codec, RECORD_JOB_INDEX, 0, body, size, &read),
                         CODEC_OK);
        assert_int_equal(read.index.job_count, items);
        for (int i = 0; i < items; i++) {
            assert_int_equal(read.index.jobs[i].id[0], i & 255);
            assert_int_equal(read.index.jobs[i].source_offset, -(i % 64));
        }
    }
}

/* Avro knows no key twice: the last value counts, and what it replaces is not looked at. */
static void test_key_that_is_there_twice(void **state)
{
    struct fixture *f = *state;
    struct text_pair metadata[] = {
        {{"k", 1}, {"\xff", 1}}, {{"e", 1}, {"", 0}}, {{"k", 1}, {"2", 1}}, {{"kk", 2}, {"3", 1}}};
    struct generation_request in = request_full(), out;

    in.metadata = metadata;
    in.metadata_count = 4;
    encode_alone(f, RECORD_GENERATION_REQUEST, &in);
    decode(f, RECORD_GENERATION_REQUEST, &out);
    assert_int_equal(out.metadata_count, 3);
    assert_text(out.metadata[0].key, "k");
    assert_text(out.metadata[0].value, "2");
    assert_text(out.metadata[2].value, "3");
    metadata[2].value = (struct text){"\xff", 1};
    encode_alone(f, RECORD_GENERATION_REQUEST, &in);
    assert_string_equal(f->twins.errors[0].message, "field metadata: its text is not valid UTF-8");
}

static void test_maps_of_every_size(void **state)
{
    struct fixture *f = *state;
    struct text_pair metadata[100];
    char keys[100][8];
    struct generation_request in = request_full(), out;

    for (size_t i = 0; i < 100; i++) {
        snprintf(keys[i], sizeof keys[i], "key %zu", i);
        metadata[i].key = metadata[i].value = text_of(keys[i]);
    }
    in.metadata = metadata;
    for (in.metadata_count = 0; in.metadata_count <= 100; in.metadata_count++) {
        encode_alone(f, RECORD_GENERATION_REQUEST, &in);
        decode(f, RECORD_GENERATION_REQUEST, &out);
        assert_int_equal(out.metadata_count, in.metadata_count);
        if (in.metadata_count)
            assert_text(out.metadata[in.metadata_count - 1].value, keys[in.metadata_count - 1]);
        arena_reset(f->arena);
    }
}

/* Bits that are no number go through as they are; validation refuses them. */
static void test_floats_that_are_no_numbers(void **state)
{
    static const uint32_t bits[] = {0x7f800000, 0xff800000, 0x7f800001, 0x7fc00000,
                                    0xffffffff, 0x80000000, 0x00000001};
    struct fixture *f = *state;
    struct generation_request in = request_full(), out;

    for (size_t i = 0; i < sizeof bits / sizeof *bits; i++) {
        memcpy(&in.temperature, &bits[i], sizeof *bits);
        encode_alone(f, RECORD_GENERATION_REQUEST, &in);
        decode(f, RECORD_GENERATION_REQUEST, &out);
        assert_memory_equal(&out.temperature, &bits[i], sizeof *bits);
    }
}

/* The reader and the writer go along the bindings and trust them to be the schemas. */
static void assert_bound(const struct record_binding *binding, avro_schema_t schema)
{
    static const avro_type_t types[] = {[BIND_TEXT] = AVRO_STRING,
                                        [BIND_LITERAL] = AVRO_STRING,
                                        [BIND_OPT_LITERAL] = AVRO_STRING,
                                        [BIND_INT] = AVRO_INT32,
                                        [BIND_LONG] = AVRO_INT64,
                                        [BIND_BOOL] = AVRO_BOOLEAN,
                                        [BIND_FLOAT] = AVRO_FLOAT,
                                        [BIND_DOUBLE] = AVRO_DOUBLE,
                                        [BIND_OPT_LONG] = AVRO_INT64,
                                        [BIND_INTS] = AVRO_ARRAY,
                                        [BIND_OPT_INTS] = AVRO_ARRAY,
                                        [BIND_TEXTS] = AVRO_ARRAY,
                                        [BIND_MAP] = AVRO_MAP,
                                        [BIND_FIXED16] = AVRO_FIXED,
                                        [BIND_RECORD] = AVRO_RECORD,
                                        [BIND_OPT_RECORD] = AVRO_RECORD,
                                        [BIND_RECORDS] = AVRO_ARRAY};

    assert_int_equal(avro_schema_record_size(schema), binding->field_count);
    for (size_t i = 0; i < binding->field_count; i++) {
        const struct field_binding *b = &binding->fields[i];
        avro_schema_t type = avro_schema_record_field_get_by_index(schema, (int)i);
        bool optional = b->kind == BIND_OPT_LITERAL || b->kind == BIND_OPT_LONG ||
                        b->kind == BIND_OPT_INTS || b->kind == BIND_OPT_RECORD;

        assert_string_equal(avro_schema_record_field_name(schema, (int)i), b->name);
        assert_int_equal(avro_typeof(type) == AVRO_UNION, optional);
        if (optional) {
            assert_int_equal(avro_schema_union_size(type), 2);
            assert_int_equal(avro_typeof(avro_schema_union_branch(type, 0)), AVRO_NULL);
            type = avro_schema_union_branch(type, 1);
        }
        if (avro_typeof(type) == AVRO_LINK)
            type = avro_schema_link_target(type);
        assert_int_equal(avro_typeof(type), types[b->kind]);
        if (b->kind == BIND_FIXED16)
            assert_int_equal(avro_schema_fixed_size(type), 16);
        if (b->kind == BIND_INTS || b->kind == BIND_OPT_INTS)
            assert_int_equal(avro_typeof(avro_schema_array_items(type)), AVRO_INT32);
        if (b->kind == BIND_TEXTS)
            assert_int_equal(avro_typeof(avro_schema_array_items(type)), AVRO_STRING);
        if (b->kind == BIND_MAP)
            assert_int_equal(avro_typeof(avro_schema_map_values(type)), AVRO_STRING);
        if (b->record)
            assert_bound(b->record, b->kind == BIND_RECORDS ? avro_schema_array_items(type) : type);
    }
}

static void test_bindings_are_the_schemas(void **state)
{
    (void)state;
    for (int type = 0; type < RECORD_TYPE_COUNT; type++) {
        avro_schema_t schema = own_schema((enum record_type)type);

        assert_bound(record_bindings[type], schema);
        avro_schema_decref(schema);
    }
}

static void test_chunk_and_control(void **state)
{
    struct fixture *f = *state;
    static const int32_t ids[] = {INT32_MIN, 0, INT32_MAX};
    struct generation_chunk chunk = {.job_id = text_of("id"),
                                     .attempt = 3,
                                     .sequence = 1,
                                     .seq = 2,
                                     .token_start = 4,
                                     .text_start = INT64_MAX,
                                     .token_ids = ids,
                                     .token_count = 3,
                                     .text = {"a\0ж", 4},
                                     .engine_id = text_of("e"),
                                     .created_at_us = -1};
    struct generation_chunk chunk_out;
    struct job_control control = {text_of("id"), text_of("cancel"), text_of(""), 5}, control_out;

    encode(f, RECORD_GENERATION_CHUNK, &chunk);
    decode(f, RECORD_GENERATION_CHUNK, &chunk_out);
    assert_null(chunk_out.finish_reason);
    assert_memory_equal(chunk_out.token_ids, ids, sizeof ids);
    assert_int_equal(chunk_out.text.size, 4);
    assert_memory_equal(chunk_out.text.data, "a\0ж", 5);
    assert_true(chunk_out.text_start == INT64_MAX);
    chunk.finish_reason = "eos";
    encode(f, RECORD_GENERATION_CHUNK, &chunk);
    decode(f, RECORD_GENERATION_CHUNK, &chunk_out);
    assert_string_equal(chunk_out.finish_reason, "eos");
    encode(f, RECORD_JOB_CONTROL, &control);
    decode(f, RECORD_JOB_CONTROL, &control_out);
    assert_text(control_out.action, "cancel");
    assert_true(control_out.created_at_us == 5);
}

static void test_words_and_texts_that_are_none(void **state)
{
    struct fixture *f = *state;
    struct job_event in = {.job_id = text_of("id"), .attempt = 1, .state = "started"}, out;
    uint8_t *state_text, *id_text;

    encode(f, RECORD_JOB_EVENT, &in);
    id_text = f->buffer.data + FRAMING_SINGLE_OBJECT_SIZE + 1;
    state_text = id_text + 4;
    assert_memory_equal(state_text, "started", 7);
    state_text[3] = '\0';
    assert_int_equal(codec_decode(f->codec, RECORD_JOB_EVENT, f->buffer.data, f->buffer.size,
                                  f->arena, &out, &f->error),
                     CODEC_BAD_PAYLOAD);
    assert_string_equal(f->error.message, "field state: its text contains a NUL");
    id_text[0] = 0xff;
    assert_int_equal(codec_decode(f->codec, RECORD_JOB_EVENT, f->buffer.data, f->buffer.size,
                                  f->arena, &out, &f->error),
                     CODEC_BAD_PAYLOAD);
    assert_string_equal(f->error.message, "field job_id: its text is not valid UTF-8");
}

/* A value that was used for a large record must not show through a small one. */
static void test_reuse_leaves_nothing_behind(void **state)
{
    struct fixture *f = *state;
    struct generation_request full = request_full(), small, out;

    generation_request_init(&small);
    small.job_id = text_of("j");
    small.prompt = text_of("");
    encode(f, RECORD_GENERATION_REQUEST, &full);
    decode(f, RECORD_GENERATION_REQUEST, &out);
    encode(f, RECORD_GENERATION_REQUEST, &small);
    decode(f, RECORD_GENERATION_REQUEST, &out);
    assert_text(out.prompt, "");
    assert_false(out.has_source_tokens || out.has_seed || out.has_deadline || out.stream);
    assert_int_equal(out.stop_count + out.metadata_count + out.source_token_count, 0);
    assert_int_equal(out.max_length, 128);
}

static void test_record_larger_than_its_arena(void **state)
{
    struct fixture *f = *state;
    struct generation_request in = request_full(), out;
    struct arena *small = arena_create(64, 64);

    encode(f, RECORD_GENERATION_REQUEST, &in);
    assert_int_equal(codec_decode(f->codec, RECORD_GENERATION_REQUEST, f->buffer.data,
                                  f->buffer.size, small, &out, &f->error),
                     CODEC_NO_MEMORY);
    arena_destroy(small);
}

static void test_key_that_cannot_be_encoded(void **state)
{
    struct fixture *f = *state;
    static const struct text_pair pair = {{"a\0b", 3}, {"v", 1}};
    struct generation_request in = request_full();

    in.metadata = &pair;
    in.metadata_count = 1;
    assert_int_equal(codec_encode(f->codec, RECORD_GENERATION_REQUEST, &in, &f->buffer, &f->error),
                     -1);
    assert_non_null(strstr(f->error.message, "NUL"));
}

/* Opens a codec with one more schema file; returns whether it opened. */
static bool opens_with(const char *name, const char *json, struct error *error)
{
    char directory[] = "/tmp/pgpt-codec-XXXXXX", path[256];
    const char *directories[] = {directory, NULL};
    struct codec *codec;
    FILE *file;

    assert_non_null(mkdtemp(directory));
    snprintf(path, sizeof path, "%s/%s", directory, name);
    file = fopen(path, "w");
    assert_non_null(file);
    assert_true(fputs(json, file) >= 0);
    assert_int_equal(fclose(file), 0);
    codec = codec_open(directories, error);
    assert_int_equal(remove(path) | remove(directory), 0);
    codec_close(codec);
    return codec != NULL;
}

static void test_schema_files(void **state)
{
    static const char control[] = "{\"type\":\"record\",\"name\":\"JobControl\",\"fields\":"
                                  "[{\"name\":\"job_id\",\"type\":\"string\"}]}";
    const char *missing[] = {"/nonexistent/schemas", NULL};
    struct error error = {""};

    (void)state;
    assert_true(opens_with("JobControl.v2.avsc", control, &error));
    assert_true(opens_with("JobControl.avsc", codec_schema_json(RECORD_JOB_CONTROL), &error));
    assert_true(opens_with("notes.txt", "no schema", &error));
    assert_false(opens_with("JobEvent.v2.avsc", control, &error));
    assert_non_null(strstr(error.message, "JobEvent"));
    assert_false(opens_with("Other.v2.avsc", control, &error));
    assert_non_null(strstr(error.message, "Other.v2.avsc"));
    assert_false(opens_with("JobControl.v2.avsc", "{", &error));
    assert_false(opens_with("JobControl.v2.avsc", "\"int\"", &error));
    assert_null(codec_open(missing, &error));
    assert_non_null(strstr(error.message, "/nonexistent/schemas"));
}

static void test_known_fingerprint(void **state)
{
    (void)state;
    /* CRC-64-AVRO of the canonical form of "int", from the Avro specification's implementations. */
    assert_true(canonical_crc64("\"int\"", 5) == 0x7275d51a3f395c8fu);
    assert_true(codec_schema_fingerprint(RECORD_GENERATION_REQUEST) == 0xb3691f7fcd34695cu);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_request_round_trip, setup, teardown),
        cmocka_unit_test_setup_teardown(test_result_round_trip, setup, teardown),
        cmocka_unit_test_setup_teardown(test_numbers_of_every_length, setup, teardown),
        cmocka_unit_test_setup_teardown(test_largest_record, setup, teardown),
        cmocka_unit_test_setup_teardown(test_index_and_event, setup, teardown),
        cmocka_unit_test_setup_teardown(test_truncated_at_every_byte, setup, teardown),
        cmocka_unit_test_setup_teardown(test_trailing_bytes_and_wrong_record, setup, teardown),
        cmocka_unit_test_setup_teardown(test_random_damage_never_breaks, setup, teardown),
        cmocka_unit_test_setup_teardown(test_lists_in_blocks, setup, teardown),
        cmocka_unit_test_setup_teardown(test_key_that_is_there_twice, setup, teardown),
        cmocka_unit_test_setup_teardown(test_maps_of_every_size, setup, teardown),
        cmocka_unit_test_setup_teardown(test_floats_that_are_no_numbers, setup, teardown),
        cmocka_unit_test(test_bindings_are_the_schemas),
        cmocka_unit_test_setup_teardown(test_chunk_and_control, setup, teardown),
        cmocka_unit_test_setup_teardown(test_words_and_texts_that_are_none, setup, teardown),
        cmocka_unit_test_setup_teardown(test_reuse_leaves_nothing_behind, setup, teardown),
        cmocka_unit_test_setup_teardown(test_record_larger_than_its_arena, setup, teardown),
        cmocka_unit_test_setup_teardown(test_key_that_cannot_be_encoded, setup, teardown),
        cmocka_unit_test(test_schema_files),
        cmocka_unit_test(test_known_fingerprint),
    };

    return cmocka_run_group_tests_name("codec", tests, NULL, NULL);
}
