// SPDX-License-Identifier: MIT
#include "simt.h"

#include <sys/mman.h>
#include <ucontext.h>

#include <vector>

enum {
    THREADS_MAX = SIMT_WARPS * 32,
    STACK = 128 << 10,
    SHARED = SIMT_BLOCKS << 18,
    GARBAGE = 0x7e,
    SENT_LATE = 6000, /* turns of waiting threads until what was sent lands at last */
    STRAGGLERS = 16,  /* of so many pieces of a ring one comes last of all */
    STRAGGLER_TURNS = 4,
    WAITS_MOST = 40 * 1000 * 1000,
};

struct copy {
    void *shared;
    const void *global;
    bool in;
};

/* A mailbox of cluster.cuh. */
struct box {
    int32_t
        bytes; /* of the letter, still to come; below zero when they came before it was announced */
    uint16_t announced, phase;
};

/* A barrier of weights_ring.cuh. */
struct ring {
    int32_t bytes;             /* on their way; or shares that are released */
    uint16_t phase;            /* modulo 2 */
    uint8_t shares, announced; /* of bytes: some may come from another block before that */
};

/* On its way to another block; or, with `from`, from global memory into a ring. */
struct sent {
    char *to;
    void *box; /* struct box, or struct ring */
    int bytes;
    char data[16];
    const char *from;
    bool straggler; /* does not land as long as anybody can go on without it */
};

struct fiber {
    ucontext_t context;
    char *stack;
    bool done;
    std::vector<struct copy> open; /* not committed */
    std::vector<std::vector<struct copy>> groups;
};

struct simt_place simt_block, simt_grid;
int simt_thread, simt_threads, simt_cluster;
enum simt_copies simt_copies;
struct simt_barrier simt_all[SIMT_BLOCKS], simt_workers[SIMT_BLOCKS], simt_everybody,
    simt_named[SIMT_BLOCKS][16], simt_warps[SIMT_WARPS], simt_groups[SIMT_WARPS / 4],
    simt_group_steps[SIMT_WARPS / 4], simt_lanes[SIMT_WARPS][32];
static struct fiber fibers[THREADS_MAX];
static ucontext_t outside;
static std::vector<struct sent> on_way;
static long waits, idle; /* turns since anybody could go on; since anything landed */
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
char *simt_memory = shared_make();

static int next_fiber(void)
{
    int next = simt_thread;

    do
        next = (next + 1) % (simt_threads * simt_cluster);
    while (fibers[next].done && next != simt_thread);
    return next;
}

void simt_wait(struct simt_barrier *barrier, int count)
{
    const int phase = barrier->phase, own = simt_thread;

    if (++barrier->arrived == count) {
        barrier->arrived = 0;
        barrier->phase++;
        idle = 0;
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

/* How often 128 threads have passed the turn to a group, and a thread has had it. */
static int turns_passed[SIMT_BLOCKS][2], turns_had[THREADS_MAX];

void simt_turn_pass(int group)
{
    turns_passed[simt_rank()][1 - group]++;
    waits = 0;
}

static void yield(void);
void simt_turn_wait(int group)
{
    turns_had[simt_thread]++;
    while (turns_passed[simt_rank()][group] < 128 * turns_had[simt_thread])
        yield();
}

/* Another thread's turn. */
static void yield(void)
{
    const int own = simt_thread, next = next_fiber();

    if (++waits > WAITS_MOST) {
        fprintf(stderr, "simt: thread %d waits for a letter that does not come\n", own);
        exit(1);
    }
    if (next == own) /* the last one, for which something may be on its way */
        return;
    simt_thread = next;
    swapcontext(&fibers[own].context, &fibers[next].context);
    simt_thread = own;
}

/* The letter is complete: its announcement has come, and its bytes. */
static void box_turn(struct box *box)
{
    if (box->announced && !box->bytes) {
        box->announced = 0;
        box->phase ^= 1;
    }
}

static void ring_turn(struct ring *ring)
{
    if (ring->announced && !ring->bytes) {
        ring->announced = 0;
        ring->phase ^= 1;
    }
}

void simt_box_open(void *box)
{
    memset(box, 0, sizeof(struct box));
}

void simt_box_expect(void *memory, uint32_t bytes)
{
    struct box *box = (struct box *)memory;

    if (box->announced) {
        fprintf(stderr, "simt: a letter is announced while another is on its way\n");
        exit(1);
    }
    box->announced = 1;
    box->bytes += (int32_t)bytes;
    box_turn(box);
}

static void sent_land(const struct sent &sent)
{
    memcpy(sent.to, sent.from ? sent.from : sent.data, (size_t)sent.bytes);
    if (sent.from) {
        struct ring *ring = (struct ring *)sent.box;

        ring->bytes -= sent.bytes;
        ring_turn(ring);
    } else {
        struct box *box = (struct box *)sent.box;

        box->bytes -= sent.bytes;
        box_turn(box);
    }
    waits = idle = 0;
}

/* Some, in any order; when late, all at once, after a while. A straggler lands when all that wait
 * have had their turn some times and nothing else has come. */
static void sent_arrive(void)
{
    static int turn;
    const bool late = simt_copies == SIMT_LATE;
    size_t count = late ? on_way.size() : (on_way.size() + 15) / 16;

    idle++;
    if (late && ++turn % SENT_LATE)
        return;
    for (; count; count--) {
        const size_t i = (size_t)rand() % on_way.size();
        const struct sent sent = on_way[i];

        if (sent.straggler && idle < STRAGGLER_TURNS * simt_threads * simt_cluster)
            continue;

        on_way[i] = on_way.back();
        on_way.pop_back();
        sent_land(sent);
    }
}

void simt_box_receive(void *memory, uint32_t phase)
{
    const struct box *box = (const struct box *)memory;

    while (box->phase == (phase & 1)) {
        sent_arrive();
        yield();
    }
}

void simt_box_send(const void *to, void *box, int rank, const void *data, int bytes)
{
    const ptrdiff_t away = (ptrdiff_t)(rank - simt_rank()) * (1 << 18);
    struct sent sent = {(char *)to + away, (char *)box + away, bytes, {}, NULL};

    memcpy(sent.data, data, (size_t)bytes);
    if (simt_copies == SIMT_AT_ONCE)
        sent_land(sent);
    else
        on_way.push_back(sent);
}

/* Of each warpgroup, what was put since one of its threads has published. */
struct put {
    void *global;
    char data[8];
};
static std::vector<struct put> unseen[SIMT_WARPS / 4];

void simt_put8(void *global, const void *data)
{
    struct put put = {global, {}};

    memcpy(put.data, data, sizeof put.data);
    unseen[simt_thread >> 7].push_back(put);
    if (simt_copies == SIMT_AT_ONCE)
        simt_publish();
}

void simt_publish(void)
{
    for (const struct put &put : unseen[simt_thread >> 7])
        memcpy(put.global, put.data, sizeof put.data);
    unseen[simt_thread >> 7].clear();
}

void simt_ring_open(void *barrier, uint32_t shares)
{
    const struct ring ring = {0, 0, (uint8_t)shares, 0};

    memcpy(barrier, &ring, sizeof ring);
}

void simt_ring_release(void *barrier, uint32_t shares)
{
    struct ring *ring = (struct ring *)barrier;

    ring->bytes += (int32_t)shares;
    if (ring->bytes > ring->shares) {
        fprintf(stderr, "simt: a slot is released by more than use it\n");
        exit(1);
    }
    if (ring->bytes == ring->shares) {
        ring->bytes = 0;
        ring->phase ^= 1;
    }
    waits = 0;
}

void simt_ring_wait(const void *barrier, uint32_t phase)
{
    const struct ring *ring = (const struct ring *)barrier;

    while (ring->phase == (phase & 1)) {
        sent_arrive();
        yield();
    }
}

void simt_ring_expect(void *full, uint32_t bytes)
{
    struct ring *ring = (struct ring *)full;

    if (ring->announced) {
        fprintf(stderr, "simt: a slot is fetched while another piece is on its way there\n");
        exit(1);
    }
    ring->announced = 1;
    ring->bytes += (int32_t)bytes;
    ring_turn(ring);
}

void simt_ring_copy(char *to, const char *from, uint32_t bytes, void *full)
{
    const bool straggler = simt_copies == SIMT_IN_BETWEEN && rand() % STRAGGLERS == 0;
    const struct sent sent = {to, full, (int)bytes, {}, from, straggler};

    memset(to, GARBAGE, bytes);
    if (simt_copies == SIMT_AT_ONCE)
        sent_land(sent);
    else
        on_way.push_back(sent);
}

void simt_ring_copy_all(char *to, const char *from, uint32_t bytes, void *full, int blocks)
{
    for (int i = 0; i < blocks; i++) {
        const ptrdiff_t away = (ptrdiff_t)(i - simt_rank()) * (1 << 18);

        simt_ring_copy(to + away, from, bytes, (char *)full + away);
    }
}

void simt_ring_release_at(void *barrier, int rank)
{
    simt_ring_release((char *)barrier + (ptrdiff_t)(rank - simt_rank()) * (1 << 18), 1);
}

void simt_ring_fetch(char *slot, const char *from, uint32_t bytes, void *full)
{
    simt_ring_expect(full, bytes);
    simt_ring_copy(slot, from, bytes, full);
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
    memset(simt_memory, GARBAGE, SHARED);
    memset(simt_all, 0, sizeof simt_all);
    memset(simt_workers, 0, sizeof simt_workers);
    memset(simt_named, 0, sizeof simt_named);
    simt_everybody = {};
    memset(simt_warps, 0, sizeof simt_warps);
    memset(simt_lanes, 0, sizeof simt_lanes);
    memset(turns_passed, 0, sizeof turns_passed);
    memset(turns_had, 0, sizeof turns_had);
    for (int i = 0; i < SIMT_WARPS / 4; i++)
        simt_groups[i] = simt_group_steps[i] = {};
    for (int i = 0; i < simt_threads * simt_cluster; i++) {
        struct fiber &fiber = fibers[i];

        fiber.done = false;
        fiber.open.clear();
        fiber.groups.clear();
        if (!fiber.stack)
            fiber.stack = (char *)malloc(STACK);
        if (!fiber.stack)
            abort();
        getcontext(&fiber.context);
        fiber.context.uc_stack.ss_sp = fiber.stack;
        fiber.context.uc_stack.ss_size = STACK;
        makecontext(&fiber.context, fiber_run, 0);
    }
    simt_thread = 0;
    swapcontext(&outside, &fibers[0].context);
}

void simt_launch(struct simt_place grid, int threads, std::function<void()> kernel, int cluster)
{
    running = kernel;
    simt_grid = grid;
    simt_threads = threads;
    simt_cluster = cluster;
    for (int z = 0; z < grid.z; z++)
        for (int y = 0; y < grid.y; y++)
            for (int x = 0; x < grid.x; x += cluster) {
                simt_block = {x, y, z};
                block_run();
            }
}
