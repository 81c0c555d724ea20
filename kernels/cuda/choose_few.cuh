/* SPDX-License-Identifier: MIT
 *
 * choose_few: sampling's short way when few tokens of a row can stay, by a small top-k: those above
 * block_floor() are sorted and one warp does the rest. The result is the same as
 * choose_block.cuh's; where no such floor is found (many equal scores) the caller goes the long
 * way.
 */
#ifndef PGPT_KERNELS_CUDA_CHOOSE_FEW_CUH
#define PGPT_KERNELS_CUDA_CHOOSE_FEW_CUH

#include "kernels/cuda/choose_block.cuh"

enum {
    FEW_MOST = 128, /* tokens above the floor; 4 a lane */
    FEW_TOP_K = 64, /* largest top-k that goes this way */
};

struct few_token {
    uint32_t key; /* of the score, not yet divided by the temperature: the same order */
    uint32_t token;
};

struct few_shared {
    struct few_token found[FEW_MOST];  /* in no order */
    struct few_token sorted[FEW_MOST]; /* by falling key, then rising token */
    uint32_t by_token[FEW_MOST];       /* places in sorted, by rising token */
    uint32_t weight[FEW_MOST];         /* of sorted ones */
    uint32_t count;                    /* zeroed when the kernel starts */
};

static __device__ __forceinline__ void few_put(struct few_shared *few, uint32_t at, uint32_t key,
                                               uint32_t token)
{
    if (at < FEW_MOST) {
        few->found[at].key = key;
        few->found[at].token = token;
    }
}

/* sorted and by_token from found. All threads; barriers before and after. */
static __device__ __forceinline__ void few_sort(struct few_shared *few, uint32_t count)
{
    for (uint32_t i = threadIdx.x; i < count; i += blockDim.x) {
        struct few_token mine = few->found[i];
        uint32_t rank = 0, before = 0;

#pragma unroll 4
        for (uint32_t j = 0; j < count; j++) {
            struct few_token other = few->found[j];

            before += other.token < mine.token;
            rank += other.key > mine.key || (other.key == mine.key && other.token < mine.token);
        }
        few->sorted[rank] = mine;
        few->by_token[before] = rank;
    }
    __syncthreads();
}

static __device__ __forceinline__ uint64_t few_scan(uint64_t mine, int lane)
{
#pragma unroll
    for (int step = 1; step < 32; step *= 2) {
        uint64_t other = __shfl_up_sync(BLOCK_ALL, mine, step);

        mine += lane >= step ? other : 0;
    }
    return mine;
}

/* One warp: weights of the sorted tokens that top-k and top-p leave, 0 for the others. */
static __device__ __forceinline__ void few_weigh(struct few_shared *few, uint32_t count,
                                                 uint32_t top_k, float top_p, float temperature,
                                                 int lane)
{
    float top = __fdiv_rn(block_value(few->sorted[0].key), temperature);
    float least = __fdiv_rn(block_value(few->sorted[top_k - 1].key), temperature);
    uint32_t greatest = sampling_key(top), lowest = sampling_key(least);
    uint32_t key[4], weight[4], last = UINT32_MAX;
    uint64_t sum = 0, above, total, limit;

#pragma unroll
    for (int i = 0; i < 4; i++) {
        uint32_t at = lane * 4 + i;

        float z = __fdiv_rn(block_value(few->sorted[at].key), temperature);

        key[i] = at < count ? sampling_key(z) : 0;
        weight[i] = key[i] >= lowest ? block_weight(z, top) : 0;
        sum += block_weight_long(weight[i]);
    }
    above = few_scan(sum, lane);
    total = __shfl_sync(BLOCK_ALL, above, 31);
    above -= sum;
    limit = sampling_limit(top_p, total);
    if (top_p < 1.0f) { /* of equal scores the first has all their weight in total - above */
#pragma unroll
        for (int i = 0; i < 4; i++) {
            if (key[i] >= lowest && total - above > limit)
                last = key[i];
            above += block_weight_long(weight[i]);
        }
        lowest = max(lowest, min(greatest, __reduce_min_sync(BLOCK_ALL, last)));
    }
#pragma unroll
    for (int i = 0; i < 4; i++)
        few->weight[lane * 4 + i] = key[i] >= lowest ? weight[i] : 0;
    __syncwarp();
}

/* One warp: the draw in the order of ids; one lane gets the token, the others -1. */
static __device__ __forceinline__ int32_t few_draw(const struct few_shared *few, uint32_t count,
                                                   uint64_t seed, uint32_t sequence,
                                                   uint32_t position, int lane)
{
    uint32_t place[4], weight[4];
    uint64_t sum = 0, before, target;

#pragma unroll
    for (int i = 0; i < 4; i++) {
        uint32_t at = lane * 4 + i;

        place[i] = at < count ? few->by_token[at] : 0;
        weight[i] = at < count ? few->weight[place[i]] : 0;
        sum += block_weight_long(weight[i]);
    }
    before = few_scan(sum, lane);
    target = sampling_target(seed, sequence, position, __shfl_sync(BLOCK_ALL, before, 31));
    before -= sum;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        uint64_t after = before + block_weight_long(weight[i]);

        if (before <= target && target < after)
            return (int32_t)few->sorted[place[i]].token;
        before = after;
    }
    return -1;
}

#endif
