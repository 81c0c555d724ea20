/* SPDX-License-Identifier: MIT */
#include "worker/job_id.h"

#include <pthread.h>
#include <string.h>
#include <sys/random.h>

#include "kernels/base/clock.h"

static uint64_t secret[3];

static void secret_draw(void)
{
    if (getrandom(secret, sizeof secret, 0) == (ssize_t)sizeof secret)
        return;
    secret[0] = (uint64_t)clock_wall_us() * 0x9E3779B97F4A7C15u; /* better than none */
    secret[1] = (uint64_t)clock_mono_us() * 0xD6E8FEB86659FD93u;
    secret[2] = secret[0] ^ secret[1] >> 31;
}

/* Both halves of a 128-bit product. */
static uint64_t multiply(uint64_t a, uint64_t b)
{
    unsigned __int128 product = (unsigned __int128)a * b;

    return (uint64_t)product ^ (uint64_t)(product >> 64);
}

uint64_t job_id_hash(const uint8_t id[16])
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    uint64_t a, b;

    pthread_once(&once, secret_draw);
    memcpy(&a, id, 8);
    memcpy(&b, id + 8, 8);
    return multiply(multiply(a ^ secret[0], b ^ secret[1]) ^ secret[2], 0x9E3779B97F4A7C15u);
}
