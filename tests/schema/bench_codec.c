/* SPDX-License-Identifier: MIT
 *
 * bench_codec: microseconds to encode and to decode a typical request (240 bytes of Russian text,
 * a stop string, two pairs of metadata). Usage: bench_codec [ROUNDS]. Prints the medians and the
 * best of 25 repetitions; exit code 1 when something fails. With "--limit US" as second and third
 * argument it also fails when the medians' sum is above US.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "schema/codec.h"

enum { REPETITIONS = 25 };

static double now_us(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (double)ts.tv_sec * 1e6 + (double)ts.tv_nsec / 1e3;
}

static int compare(const void *a, const void *b)
{
    double left = *(const double *)a, right = *(const double *)b;

    return (left > right) - (left < right);
}

static struct text text_of(const char *s)
{
    return (struct text){s, strlen(s)};
}

static void request_fill(struct generation_request *r)
{
    static const struct text stop[] = {{"\n\n", 2}};
    static const struct text_pair metadata[] = {{{"customer", 8}, {"example-0042", 12}},
                                                {{"trace", 5}, {"4bf92f3577b34da6", 16}}};

    generation_request_init(r);
    r->job_id = text_of("6f2c1c6e-7a52-4f0b-9a55-0c1d2e3f4a5b");
    r->prompt =
        text_of("Сегодня утром мы вышли из дома раньше обычного, потому что дорога к вокзалу "
                "занимает почти час, а поезд отправляется в девять.");
    r->target_language = text_of("en");
    r->stop = stop;
    r->stop_count = 1;
    r->stream = true;
    r->has_deadline = true;
    r->deadline_us = 1790000000000000;
    r->tenant = text_of("example");
    r->created_at_us = 1780000000000000;
    r->metadata = metadata;
    r->metadata_count = 2;
}

/* Times `rounds` of each; returns -1 with the reason. */
static int measure(struct codec *codec, struct arena *arena, struct buffer *buffer, long rounds,
                   double *encode_us, double *decode_us, struct error *error)
{
    struct generation_request in, out;
    double begun = now_us();

    request_fill(&in);
    for (long i = 0; i < rounds; i++) {
        in.created_at_us++;
        if (codec_encode(codec, RECORD_GENERATION_REQUEST, &in, buffer, error))
            return -1;
    }
    *encode_us = (now_us() - begun) / (double)rounds;
    begun = now_us();
    for (long i = 0; i < rounds; i++) {
        arena_reset(arena);
        if (codec_decode(codec, RECORD_GENERATION_REQUEST, buffer->data, buffer->size, arena, &out,
                         error))
            return -1;
    }
    *decode_us = (now_us() - begun) / (double)rounds;
    return out.created_at_us == in.created_at_us ? 0 : error_set(error, "decoded something else");
}

int main(int argc, char **argv)
{
    long rounds = argc > 1 ? strtol(argv[1], NULL, 10) : 20000;
    double limit = argc > 3 && !strcmp(argv[2], "--limit") ? strtod(argv[3], NULL) : 0;
    double encode_us[REPETITIONS], decode_us[REPETITIONS], sum;
    struct error error = {""};
    struct codec *codec = codec_open(NULL, &error);
    struct arena *arena = arena_create(8192, 1 << 20);
    struct buffer buffer = {NULL, 0, 0};
    int status = !codec || !arena || rounds < 1;

    for (int i = 0; !status && i < REPETITIONS; i++)
        status = measure(codec, arena, &buffer, rounds, &encode_us[i], &decode_us[i], &error) != 0;
    if (status) {
        fprintf(stderr, "bench_codec: %s\n", error.message);
    } else {
        qsort(encode_us, REPETITIONS, sizeof *encode_us, compare);
        qsort(decode_us, REPETITIONS, sizeof *decode_us, compare);
        sum = encode_us[REPETITIONS / 2] + decode_us[REPETITIONS / 2];
        printf("{\"bytes\": %zu, \"encode_us\": %.3f, \"decode_us\": %.3f, \"sum_us\": %.3f, "
               "\"best_sum_us\": %.3f}\n",
               buffer.size, encode_us[REPETITIONS / 2], decode_us[REPETITIONS / 2], sum,
               encode_us[0] + decode_us[0]);
        status = limit > 0 && sum > limit;
    }
    buffer_free(&buffer);
    arena_destroy(arena);
    codec_close(codec);
    return status;
}
