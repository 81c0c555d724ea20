/* SPDX-License-Identifier: MIT
 *
 * break_device: a library to be preloaded into a program of ours: a kernel that writes where it may
 * not breaks device 0's context, PGPT_BREAK_AFTER_MS (2000) after the program started, so that
 * every CUDA call of the program fails from then on, as after a fault of the hardware. In programs
 * called PGPT_BREAK_PROGRAM (pgpt-worker) alone, since others may be started by the same shell.
 */
#include <cuda_runtime.h>
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static __global__ void write_astray(int *nowhere)
{
    *nowhere = 1;
}

static void *break_later(void *)
{
    const char *after = getenv("PGPT_BREAK_AFTER_MS");

    usleep((useconds_t)(after ? atoi(after) : 2000) * 1000);
    if (cudaSetDevice(0) != cudaSuccess)
        return NULL;
    write_astray<<<1, 1>>>((int *)16);
    fprintf(stderr, "break_device: %s\n", cudaGetErrorString(cudaDeviceSynchronize()));
    return NULL;
}

__attribute__((constructor)) static void break_prepare(void)
{
    const char *program = getenv("PGPT_BREAK_PROGRAM");
    pthread_t thread;

    if (!strcmp(program_invocation_short_name, program ? program : "pgpt-worker") &&
        pthread_create(&thread, NULL, break_later, NULL))
        fprintf(stderr, "break_device: no thread\n");
}
