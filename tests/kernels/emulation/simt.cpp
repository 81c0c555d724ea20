// SPDX-License-Identifier: MIT
#include "simt.h"

#include <sys/mman.h>
#include <ucontext.h>

#include <vector>

enum { THREADS_MAX = 256, STACK = 128 << 10, SHARED = 256 << 10, GARBAGE = 0x7e };

struct copy {
    void *shared;
    const void *global;
    bool in;
};

struct fiber {
    ucontext_t context;
    std::vector<char> stack;
    bool done;
    std::vector<struct copy> open; /* not committed */
    std::vector<std::vector<struct copy>> groups;
};

struct simt_place simt_block, simt_grid;
int simt_thread, simt_threads;
enum simt_copies simt_copies;
struct simt_barrier simt_all, simt_warps[32], simt_groups[8], simt_group_steps[8],
    simt_lanes[32][32];
static struct fiber fibers[THREADS_MAX];
static ucontext_t outside;
static std::function<void()> running;

static char *shared_make(void)
{
    void *at = mmap((void *)0x20000000, SHARED, PROT_READ | PROT_WRITE,
                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);

    if (at == MAP_FAILED) {
        perror("simt: shared memory");
        exit(1);
    }
    return (char *)at;
}
char *simt_shared = shared_make();

static int next_fiber(void)
{
    int next = simt_thread;

    do
        next = (next + 1) % simt_threads;
    while (fibers[next].done && next != simt_thread);
    return next;
}

void simt_wait(struct simt_barrier *barrier, int count)
{
    const int phase = barrier->phase, own = simt_thread;

    if (++barrier->arrived == count) {
        barrier->arrived = 0;
        barrier->phase++;
        return;
    }
    while (barrier->phase == phase) {
        const int next = next_fiber();

        if (next == own) {
            fprintf(stderr, "simt: thread %d waits at a barrier that no other will reach\n", own);
            exit(1);
        }
        simt_thread = next;
        swapcontext(&fibers[own].context, &fibers[next].context);
        simt_thread = own;
    }
}

static void copy_land(const struct copy &copy)
{
    if (copy.in)
        memcpy(copy.shared, copy.global, 16);
    else
        memset(copy.shared, 0, 16);
}

void simt_copy(void *shared, const void *global, bool in)
{
    const struct copy copy = {shared, global, in};

    if (simt_copies == SIMT_AT_ONCE) {
        copy_land(copy);
        return;
    }
    memset(shared, GARBAGE, 16);
    fibers[simt_thread].open.push_back(copy);
}

void simt_copy_commit(void)
{
    struct fiber &fiber = fibers[simt_thread];

    fiber.groups.push_back(fiber.open);
    fiber.open.clear();
}

void simt_copy_wait(int pending)
{
    auto &groups = fibers[simt_thread].groups;

    while ((int)groups.size() > pending) {
        for (const struct copy &copy : groups.front())
            copy_land(copy);
        groups.erase(groups.begin());
    }
}

void simt_copies_between(void)
{
    if (simt_copies == SIMT_IN_BETWEEN && rand() % 2)
        simt_copy_wait(0);
}

static void fiber_run(void)
{
    running();
    simt_copy_wait(0);
    fibers[simt_thread].done = true;
    if (next_fiber() == simt_thread)
        setcontext(&outside);
    simt_thread = next_fiber();
    setcontext(&fibers[simt_thread].context);
}

static void block_run(void)
{
    memset(simt_shared, GARBAGE, SHARED);
    simt_all = {};
    memset(simt_warps, 0, sizeof simt_warps);
    memset(simt_lanes, 0, sizeof simt_lanes);
    for (int i = 0; i < 8; i++)
        simt_groups[i] = simt_group_steps[i] = {};
    for (int i = 0; i < simt_threads; i++) {
        struct fiber &fiber = fibers[i];

        fiber.done = false;
        fiber.open.clear();
        fiber.groups.clear();
        fiber.stack.resize(STACK);
        getcontext(&fiber.context);
        fiber.context.uc_stack.ss_sp = fiber.stack.data();
        fiber.context.uc_stack.ss_size = fiber.stack.size();
        makecontext(&fiber.context, fiber_run, 0);
    }
    simt_thread = 0;
    swapcontext(&outside, &fibers[0].context);
}

void simt_launch(struct simt_place grid, int threads, std::function<void()> kernel)
{
    running = kernel;
    simt_grid = grid;
    simt_threads = threads;
    for (int z = 0; z < grid.z; z++)
        for (int y = 0; y < grid.y; y++)
            for (int x = 0; x < grid.x; x++) {
                simt_block = {x, y, z};
                block_run();
            }
}
