/* SPDX-License-Identifier: MIT
 *
 * test_hang: a kernel that does not end is noticed in the time that was set, with a message that
 * says what hung; every later call fails at once; closing and leaving the process wait for nothing.
 * Needs a device; run it under a time limit (`timeout 20 test_hang`), for what it tests is that it
 * comes back.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/base/clock.h"
#include "kernels/cuda/backend_state.h"
#include "kernels/cuda/check.h"

enum { LIMIT_US = 300000, LATE_US = 500000 };

static __global__ void spin(const volatile int *go)
{
    while (!*go) {
    }
}

static void check(bool ok, const char *what)
{
    if (ok)
        return;
    fprintf(stderr, "test_hang: %s\n", what);
    _Exit(1);
}

int main(void)
{
    struct engine_options options;
    struct engine_output out;
    struct error error;
    struct backend *backend;
    struct engine_limits limits = {};
    struct engine_info info;
    struct model *model = model_open("models/prometheus-mini", &error);
    int64_t begun;
    int *go;

    check(model != NULL, error.message);
    engine_options_init(&options);
    options.device = "cuda:0";
    options.max_rows = 8;
    backend = backend_cuda.open(model, &options, &limits, &info, &error);
    check(backend != NULL, error.message);
    check(cudaHostAlloc((void **)&go, sizeof *go, cudaHostAllocMapped) == cudaSuccess, "memory");
    *go = 0;
    backend->wait_most_us = LIMIT_US;
    backend->running = "a test";
    spin<<<1, 1, 0, backend->decode>>>(go);
    check(cudaEventRecord(backend->stepped, backend->decode) == cudaSuccess, "event");

    begun = clock_mono_us();
    check(backend_wait(backend, backend->stepped, 0.0, "decode steps", &error) == -1, "no error");
    begun = clock_mono_us() - begun;
    check(begun >= LIMIT_US && begun < LATE_US, "not noticed in time");
    puts(error.message);
    check(strstr(error.message, "decode steps (a test) did not end in 0.3 s") != NULL, "message");
    check(backend_cuda.step(backend, 1, &out, &error) == -1, "a step after it");
    check(strstr(error.message, "hangs") != NULL, "the first message is kept");
    backend_cuda.close(backend);
    model_close(model);
    puts("ok; the kernel still runs");
    return 0;
}
