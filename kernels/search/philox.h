/* SPDX-License-Identifier: MIT
 *
 * philox: Philox4x32-10, the counter-based generator of Salmon, Moraes, Dror and Shaw, "Parallel
 * Random Numbers: As Easy as 1, 2, 3" (SC 2011). No state: a draw is a function of the request's
 * seed, the sequence and the position, so a job drawn again anywhere draws the same. Any thread.
 */
#ifndef PGPT_KERNELS_SEARCH_PHILOX_H
#define PGPT_KERNELS_SEARCH_PHILOX_H

#include <stdint.h>

#include "kernels/search/device.h"

struct philox_words {
    uint32_t word[4];
};

PGPT_DEVICE static inline struct philox_words philox4x32_10(struct philox_words counter,
                                                            uint32_t key0, uint32_t key1)
{
    struct philox_words c = counter;

    for (int round = 0; round < 10; round++) {
        uint64_t a = (uint64_t)0xD2511F53u * c.word[0];
        uint64_t b = (uint64_t)0xCD9E8D57u * c.word[2];
        struct philox_words next;

        next.word[0] = (uint32_t)(b >> 32) ^ c.word[1] ^ key0;
        next.word[1] = (uint32_t)b;
        next.word[2] = (uint32_t)(a >> 32) ^ c.word[3] ^ key1;
        next.word[3] = (uint32_t)a;
        c = next;
        key0 += 0x9E3779B9u;
        key1 += 0xBB67AE85u;
    }
    return c;
}

/* 64 random bits for the token at `position` (0 = the first new one) of `sequence`:
 * key = seed (low word first), counter = (position, sequence, 0, 0), result word 0 is the low half.
 */
PGPT_DEVICE static inline uint64_t philox_draw(uint64_t seed, uint32_t sequence, uint32_t position)
{
    struct philox_words counter;
    struct philox_words bits;

    counter.word[0] = position;
    counter.word[1] = sequence;
    counter.word[2] = 0;
    counter.word[3] = 0;
    bits = philox4x32_10(counter, (uint32_t)seed, (uint32_t)(seed >> 32));
    return (uint64_t)bits.word[1] << 32 | bits.word[0];
}

#endif
