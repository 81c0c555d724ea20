/* SPDX-License-Identifier: MIT
 *
 * weights_ring: weights on their way from global memory into slots of shared memory, by the copy
 * engine. A plan says which pieces a round of work reads, in order; piece t lies in slot t modulo
 * the number of slots. Warps wait until a slot is filled; when all have used what they read, a
 * thread that nobody waits for fetches what the slot holds next: behind a barrier, or when they
 * have released it at a second mbarrier of the slot. Compute capability 9.0.
 */
#ifndef PGPT_KERNELS_CUDA_WEIGHTS_RING_CUH
#define PGPT_KERNELS_CUDA_WEIGHTS_RING_CUH

#include "kernels/cuda/cluster.cuh"

/* A piece of the plan. */
struct ring_piece {
    const char *from;
    uint32_t bytes; /* a multiple of 16 */
};

#if __CUDA_ARCH__ >= 900
/* One thread, before a barrier of all who use it. */
static __device__ __forceinline__ void ring_open(uint64_t *barrier)
{
    asm volatile(
        "mbarrier.init.shared::cta.b64 [%0], 1;\n\tfence.mbarrier_init.release.cluster;" ::"r"(
            shared_address(barrier))
        : "memory");
}

/* The same for a barrier at which a slot is released, in `shares` all together. */
static __device__ __forceinline__ void ring_open_shared(uint64_t *barrier, uint32_t shares)
{
    asm volatile(
        "mbarrier.init.shared::cta.b64 [%0], %1;\n\tfence.mbarrier_init.release.cluster;" ::"r"(
            shared_address(barrier)),
        "r"(shares)
        : "memory");
}

/* A warp has used what it read of the slot. */
static __device__ __forceinline__ void ring_release(uint64_t *barrier, uint32_t shares)
{
    asm volatile(
        "mbarrier.arrive.release.cta.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)),
        "r"(shares)
        : "memory");
}

/* Until the slot is filled (released) for the turn-th time (modulo 2). */
static __device__ __forceinline__ void ring_wait(uint64_t *barrier, uint32_t turn)
{
    uint32_t done = 0;

    while (!done)
        asm volatile("{\n\t.reg .pred p;\n\t"
                     "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n\t"
                     "selp.u32 %0, 1, 0, p;\n\t}"
                     : "=r"(done)
                     : "r"(shared_address(barrier)), "r"(turn & 1)
                     : "memory");
}

/* One thread: `bytes` are to fill the slot, in one copy or several. */
static __device__ __forceinline__ void ring_expect(uint64_t *full, uint32_t bytes)
{
    asm volatile(
        "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(full)),
        "r"(bytes)
        : "memory");
}

/* One thread: one of them. */
static __device__ __forceinline__ void ring_copy(void *to, const void *from, uint32_t bytes,
                                                 uint64_t *full)
{
    asm volatile(
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::
            "r"(shared_address(to)),
        "l"(from), "r"(bytes), "r"(shared_address(full))
        : "memory");
}

/* One thread: the same into the slots of all `blocks` of a cluster, each of which counts its own.
 */
static __device__ __forceinline__ void ring_copy_all(void *to, const void *from, uint32_t bytes,
                                                     uint64_t *full, int blocks)
{
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::"
                 "cluster [%0], [%1], %2, [%3], %4;" ::"r"(shared_address(to)),
                 "l"(from), "r"(bytes), "r"(shared_address(full)),
                 "h"((uint16_t)((1 << blocks) - 1))
                 : "memory");
}

/* ring_release() of one share of a slot of block `rank`. */
static __device__ __forceinline__ void ring_release_at(uint64_t *barrier, int rank)
{
    asm volatile(
        "mbarrier.arrive.shared::cluster.b64 _, [%0];" ::"r"(cluster_address(barrier, rank))
        : "memory");
}

/* One thread: a piece into a slot out of which all have used what they read: behind the loads
 * alone, what is fetched next has been seen to overtake them. */
static __device__ __forceinline__ void ring_fetch(char *slot, const struct ring_piece &piece,
                                                  uint64_t *full)
{
    ring_expect(full, piece.bytes);
    ring_copy(slot, piece.from, piece.bytes, full);
}
#endif

#endif
