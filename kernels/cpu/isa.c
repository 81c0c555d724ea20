/* SPDX-License-Identifier: MIT */
#include "kernels/cpu/isa.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#if defined(__x86_64__)
#include <cpuid.h>
#elif defined(__aarch64__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

static const char *const names[ISA_COUNT] = {"plain", "neon", "neon_dot", "avx2", "avx512"};
static _Atomic int chosen = -1; /* every thread that races to set it sets the same */

#if defined(__x86_64__)
/* clang 14 cannot be asked by name */
static bool has_f16c(void)
{
    unsigned a, b, c, d;

    return __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);
}
#endif

bool isa_runs(enum isa isa)
{
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (isa == ISA_AVX2)
        return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c();
    if (isa == ISA_AVX512)
        return isa_runs(ISA_AVX2) && __builtin_cpu_supports("avx512f") &&
               __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
               __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni");
#elif defined(__aarch64__)
    if (isa == ISA_NEON) /* every processor of this architecture */
        return true;
    if (isa == ISA_NEON_DOT)
        return getauxval(AT_HWCAP) & HWCAP_ASIMDDP;
#endif
    return isa == ISA_PLAIN;
}

const char *isa_name(enum isa isa)
{
    return names[isa];
}

/* The set that the environment names, -1 when none or an impossible one. */
static int isa_wanted(void)
{
    const char *name = getenv("PGPT_CPU_ISA");

    for (int i = 0; name && i < ISA_COUNT; i++)
        if (!strcmp(name, names[i]) && isa_runs((enum isa)i))
            return i;
    return -1;
}

int isa_check(struct error *error)
{
    const char *name = getenv("PGPT_CPU_ISA");

    if (name && *name && isa_wanted() < 0)
        return error_set(
            error,
            "PGPT_CPU_ISA=%s: not one of plain, neon, neon_dot, avx2, avx512, or more than this "
            "processor has; unset it to use the best",
            name);
    return 0;
}

enum isa isa_current(void)
{
    int isa = atomic_load_explicit(&chosen, memory_order_relaxed);

    if (isa >= 0)
        return (enum isa)isa;
    isa = isa_wanted();
    for (int i = ISA_COUNT - 1; isa < 0; i--)
        if (isa_runs((enum isa)i))
            isa = i;
    atomic_store_explicit(&chosen, isa, memory_order_relaxed);
    return (enum isa)isa;
}

int isa_force(enum isa isa)
{
    if (!isa_runs(isa))
        return -1;
    atomic_store(&chosen, (int)isa);
    return 0;
}
