/* SPDX-License-Identifier: MIT
 *
 * cluster: blocks of a cluster send one another data without fences or barriers of the whole
 * cluster. A store into another block's shared memory counts its bytes at a mailbox there; the
 * receiver says how many bytes a letter has and waits until they are in. The same address in every
 * block, since all run the same kernel. Compute capability 9.0.
 */
#ifndef PGPT_KERNELS_CUDA_CLUSTER_CUH
#define PGPT_KERNELS_CUDA_CLUSTER_CUH

#include <stdint.h>

/* In shared memory. Every letter of a mailbox has the same size. `phase` is each thread's own count
 * of letters received, modulo 2. */
struct cluster_mailbox {
    uint64_t barrier;
};

#if __CUDA_ARCH__ >= 900
static __device__ __forceinline__ uint32_t cluster_rank(void)
{
    uint32_t rank;

    asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return rank;
}

/* Blocks of the cluster. */
static __device__ __forceinline__ int cluster_blocks(void)
{
    int blocks;

    asm("mov.u32 %0, %%cluster_nctaid.x;" : "=r"(blocks));
    return blocks;
}

/* A lane's own value, once: what the compiler knows to come from a special register it would read
 * anew wherever it is wanted, and that register is slow to answer. Whole warps call. */
static __device__ __forceinline__ int value_once(int value)
{
    return __shfl_sync(0xffffffffu, value, (int)threadIdx.x & 31);
}

/* All threads of all blocks. */
static __device__ __forceinline__ void cluster_sync(void)
{
    asm volatile(
        "barrier.cluster.arrive.release.aligned;\n\tbarrier.cluster.wait.acquire.aligned;" ::
            : "memory");
}

/* The same, and nothing written before is promised to be seen behind it. */
static __device__ __forceinline__ void cluster_meet(void)
{
    asm volatile("barrier.cluster.arrive.relaxed.aligned;\n\tbarrier.cluster.wait.aligned;" ::
                     : "memory");
}

static __device__ __forceinline__ uint32_t shared_address(const void *shared)
{
    return (uint32_t)__cvta_generic_to_shared(shared);
}

/* One thread: the box will get a letter of `bytes`. */
static __device__ __forceinline__ void mailbox_expect(struct cluster_mailbox *box, uint32_t bytes)
{
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(
                     shared_address(&box->barrier)),
                 "r"(bytes)
                 : "memory");
}

/* One thread, before a cluster_sync() that lets others write. */
static __device__ __forceinline__ void mailbox_open(struct cluster_mailbox *box, uint32_t bytes)
{
    asm volatile(
        "mbarrier.init.shared::cta.b64 [%0], 1;\n\tfence.mbarrier_init.release.cluster;" ::"r"(
            shared_address(&box->barrier))
        : "memory");
    mailbox_expect(box, bytes);
}

/* The block's threads wait for the next letter, of `bytes` as said when the box was opened; one of
 * them is the first. */
static __device__ __forceinline__ void mailbox_receive(struct cluster_mailbox *box, uint32_t bytes,
                                                       uint32_t *phase, bool first)
{
    const uint32_t barrier = shared_address(&box->barrier);
    uint32_t done = 0;

    while (!done)
        asm volatile("{\n\t.reg .pred p;\n\t"
                     "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n\t"
                     "selp.u32 %0, 1, 0, p;\n\t}"
                     : "=r"(done)
                     : "r"(barrier), "r"(*phase & 1)
                     : "memory");
    *phase ^= 1;
    if (first)
        mailbox_expect(box, bytes);
}

/* Addresses in block `rank` of what lies at `shared` here. */
static __device__ __forceinline__ uint32_t cluster_address(const void *shared, int rank)
{
    uint32_t remote;

    asm("mapa.shared::cluster.u32 %0, %1, %2;"
        : "=r"(remote)
        : "r"(shared_address(shared)), "r"(rank));
    return remote;
}

/* Sends to block `rank`: v lands at `to` there and counts at its `box`. */
static __device__ __forceinline__ void cluster_send16(const void *to, struct cluster_mailbox *box,
                                                      int rank, const uint4 &v)
{
    asm volatile(
        "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.b32 [%0], {%1, %2, %3, %4}, "
        "[%5];" ::"r"(cluster_address(to, rank)),
        "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w), "r"(cluster_address(&box->barrier, rank))
        : "memory");
}

static __device__ __forceinline__ void cluster_send8(const void *to, struct cluster_mailbox *box,
                                                     int rank, const uint2 &v)
{
    asm volatile(
        "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v2.b32 [%0], {%1, %2}, [%3];" ::
            "r"(cluster_address(to, rank)),
        "r"(v.x), "r"(v.y), "r"(cluster_address(&box->barrier, rank))
        : "memory");
}

static __device__ __forceinline__ void cluster_send4(const void *to, struct cluster_mailbox *box,
                                                     int rank, uint32_t v)
{
    asm volatile(
        "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.b32 [%0], %1, [%2];" ::"r"(
            cluster_address(to, rank)),
        "r"(v), "r"(cluster_address(&box->barrier, rank))
        : "memory");
}

/* 8 bytes into global memory, for another block: see cluster_publish(). */
static __device__ __forceinline__ void cluster_put8(void *global, const float2 &v)
{
    *(float2 *)global = v;
}

/* One thread: what it put into global memory, and what others put that it met at a barrier since,
 * is there for whoever then waits for its share at `barrier` of block `rank`, and reads past L1. */
static __device__ __forceinline__ void cluster_publish(uint64_t *barrier, int rank)
{
    asm volatile("mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%0];" ::"r"(
                     cluster_address(barrier, rank))
                 : "memory");
}

/* Until all shares of the turn-th publication (modulo 2) have come to this block's barrier. */
static __device__ __forceinline__ void cluster_await(uint64_t *barrier, uint32_t turn)
{
    uint32_t done = 0;

    while (!done)
        asm volatile("{\n\t.reg .pred p;\n\t"
                     "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 p, [%1], %2;\n\t"
                     "selp.u32 %0, 1, 0, p;\n\t}"
                     : "=r"(done)
                     : "r"(shared_address(barrier)), "r"(turn & 1)
                     : "memory");
}
#endif

#endif
