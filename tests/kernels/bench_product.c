/* SPDX-License-Identifier: MIT
 *
 * bench_product: times product.c against OpenBLAS (float32) and oneDNN (float32 and int8) on the
 * shapes of a model, one thread, all in one run, and prints medians of processor time and ratios
 * (above 1: ours is faster). Our int8 time includes the quantisation of the inputs; oneDNN's is the
 * bare product of bytes into int32 with weights packed as it likes best, which is in its favour.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <cblas.h>
#include <oneapi/dnnl/dnnl.h>

#include "kernels/cpu/product.h"

enum { ROUNDS = 9 };

static double now_us(void)
{
    struct timespec t;

    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t); /* of all threads: others may be busy here */
    return (double)t.tv_sec * 1e6 + (double)t.tv_nsec * 1e-3;
}

static void check(dnnl_status_t status, const char *what)
{
    if (status == dnnl_success)
        return;
    fprintf(stderr, "bench_product: oneDNN: %s: status %d\n", what, (int)status);
    exit(1);
}

static void *memory_need(size_t size)
{
    void *memory = aligned_alloc(64, (size + 63) & ~(size_t)63);

    if (!memory) {
        fprintf(stderr, "bench_product: out of memory\n");
        exit(1);
    }
    memset(memory, 1, size);
    return memory;
}

struct case_data {
    int32_t M, N, K;
    float *x, *w, *y; /* (M,K), (N,K), (M,N) */
    struct product_weight *f32, *i8;
    struct threads *threads;
    dnnl_engine_t engine;
    dnnl_stream_t stream;
    dnnl_primitive_t matmul[2]; /* float32, int8 */
    dnnl_memory_t source[2], weight[2], target[2];
};

/* y = x W^T with the weight's memory in the layout that oneDNN asks for. */
static void dnnl_prepare(struct case_data *c, int which, dnnl_data_type_t source,
                         dnnl_data_type_t weight, dnnl_data_type_t target)
{
    dnnl_dims_t x = {c->M, c->K}, w = {c->K, c->N}, y = {c->M, c->N};
    dnnl_memory_desc_t dx, dw, dy;
    const dnnl_memory_desc_t *packed;
    dnnl_matmul_desc_t d;
    dnnl_primitive_desc_t pd;

    check(dnnl_memory_desc_init_by_tag(&dx, 2, x, source, dnnl_ab), "source");
    check(dnnl_memory_desc_init_by_tag(&dw, 2, w, weight, dnnl_format_tag_any), "weight");
    check(dnnl_memory_desc_init_by_tag(&dy, 2, y, target, dnnl_ab), "target");
    check(dnnl_matmul_desc_init(&d, &dx, &dw, NULL, &dy), "matmul");
    check(dnnl_primitive_desc_create(&pd, &d, NULL, c->engine, NULL), "primitive");
    packed = dnnl_primitive_desc_query_md(pd, dnnl_query_weights_md, 0);
    check(dnnl_memory_create(&c->source[which], &dx, c->engine, DNNL_MEMORY_ALLOCATE), "source");
    check(dnnl_memory_create(&c->weight[which], packed, c->engine, DNNL_MEMORY_ALLOCATE), "weight");
    check(dnnl_memory_create(&c->target[which], &dy, c->engine, DNNL_MEMORY_ALLOCATE), "target");
    check(dnnl_primitive_create(&c->matmul[which], pd), "create");
    check(dnnl_primitive_desc_destroy(pd), "destroy");
}

static void dnnl_run(struct case_data *c, int which)
{
    dnnl_exec_arg_t args[] = {{DNNL_ARG_SRC, c->source[which]},
                              {DNNL_ARG_WEIGHTS, c->weight[which]},
                              {DNNL_ARG_DST, c->target[which]}};

    check(dnnl_primitive_execute(c->matmul[which], c->stream, 3, args), "execute");
    check(dnnl_stream_wait(c->stream), "wait");
}

enum system { OURS_F32, OPENBLAS_F32, ONEDNN_F32, OURS_INT8, ONEDNN_INT8, SYSTEMS };

static void system_run(struct case_data *c, enum system system)
{
    switch (system) {
    case OURS_F32:
        product_run(c->f32, c->M, c->x, PRODUCT_NONE, NULL, c->y, NULL, c->threads);
        break;
    case OPENBLAS_F32:
        cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, c->M, c->N, c->K, 1.0f, c->x, c->K,
                    c->w, c->K, 0.0f, c->y, c->N);
        break;
    case ONEDNN_F32:
        dnnl_run(c, 0);
        break;
    case OURS_INT8:
        product_run(c->i8, c->M, c->x, PRODUCT_NONE, NULL, c->y, NULL, c->threads);
        break;
    case ONEDNN_INT8:
        dnnl_run(c, 1);
        break;
    case SYSTEMS:
        break;
    }
}

static int compare(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;

    return (x > y) - (x < y);
}

static void case_time(struct case_data *c)
{
    double work = 2.0 * c->M * c->N * c->K;
    int repeats = (int)(2e8 / (work + 2e5)) + 1;
    double times[SYSTEMS][ROUNDS];
    double median[SYSTEMS];

    for (int round = -1; round < ROUNDS; round++) /* -1 warms up */
        for (int s = 0; s < SYSTEMS; s++) {
            double start = now_us();

            for (int i = 0; i < repeats; i++)
                system_run(c, (enum system)s);
            if (round >= 0)
                times[s][round] = (now_us() - start) / repeats;
        }
    for (int s = 0; s < SYSTEMS; s++) {
        qsort(times[s], ROUNDS, sizeof times[s][0], compare);
        median[s] = times[s][ROUNDS / 2];
    }
    printf("| %4d x %4d x %3d | %8.2f | %6.1f | %5.2f | %5.2f | %8.2f | %6.1f | %5.2f |\n", c->M,
           c->N, c->K, median[OURS_F32], work / median[OURS_F32] * 1e-3,
           median[OPENBLAS_F32] / median[OURS_F32], median[ONEDNN_F32] / median[OURS_F32],
           median[OURS_INT8], work / median[OURS_INT8] * 1e-3,
           median[ONEDNN_INT8] / median[OURS_INT8]);
    fflush(stdout);
}

static void case_run(struct case_data *c)
{
    struct error error;

    c->x = memory_need((size_t)c->M * (size_t)c->K * sizeof(float));
    c->w = memory_need((size_t)c->N * (size_t)c->K * sizeof(float));
    c->y = memory_need((size_t)c->M * (size_t)c->N * sizeof(float));
    for (int64_t i = 0; i < (int64_t)c->N * c->K; i++)
        c->w[i] = (float)(i * 7919 % 257) / 128.0f - 1.0f;
    for (int64_t i = 0; i < (int64_t)c->M * c->K; i++)
        c->x[i] = (float)(i * 104729 % 263) / 128.0f - 1.0f;
    c->f32 = product_pack(PRODUCT_F32, c->N, c->K, c->w, NULL, NULL, &error);
    c->i8 = product_pack(PRODUCT_INT8, c->N, c->K, c->w, NULL, NULL, &error);
    if (!c->f32 || !c->i8) {
        fprintf(stderr, "bench_product: %s\n", error.message);
        exit(1);
    }
    dnnl_prepare(c, 0, dnnl_f32, dnnl_f32, dnnl_f32);
    dnnl_prepare(c, 1, dnnl_u8, dnnl_s8, dnnl_s32);
    case_time(c);
    for (int i = 0; i < 2; i++) {
        dnnl_primitive_destroy(c->matmul[i]);
        dnnl_memory_destroy(c->source[i]);
        dnnl_memory_destroy(c->weight[i]);
        dnnl_memory_destroy(c->target[i]);
    }
    product_free(c->f32);
    product_free(c->i8);
    free(c->x);
    free(c->w);
    free(c->y);
}

int main(int argc, char **argv)
{
    static const int32_t sizes[][2] = {
        {512, 512}, {1536, 512}, {256, 512}, {512, 256}, {3000, 512}};
    static const int32_t rows[] = {1, 8, 32, 128, 512};
    struct case_data c = {0};
    struct error error;

    (void)argc;
    if (!getenv("OMP_NUM_THREADS")) { /* read when oneDNN's OpenMP is loaded, before main */
        setenv("OMP_NUM_THREADS", "1", 1);
        execv("/proc/self/exe", argv);
        perror("bench_product: /proc/self/exe");
        return 1;
    }
    openblas_set_num_threads(1);
    c.threads = threads_create(1, &error);
    if (!c.threads) {
        fprintf(stderr, "bench_product: %s\n", error.message);
        return 1;
    }
    check(dnnl_engine_create(&c.engine, dnnl_cpu, 0), "engine");
    check(dnnl_stream_create(&c.stream, c.engine, dnnl_stream_default_flags), "stream");
    printf("path %s, 1 thread, medians of %d\n", product_path(), ROUNDS);
    printf("|   M x    N x   K | f32 us | GFLOP/s | /OpenBLAS | /oneDNN | int8 us | Gop/s | "
           "/oneDNN |\n");
    printf("|---|---|---|---|---|---|---|---|\n");
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++)
        for (size_t j = 0; j < sizeof rows / sizeof rows[0]; j++) {
            c.M = rows[j];
            c.N = sizes[i][0];
            c.K = sizes[i][1];
            case_run(&c);
        }
    dnnl_stream_destroy(c.stream);
    dnnl_engine_destroy(c.engine);
    threads_destroy(c.threads);
    return 0;
}
