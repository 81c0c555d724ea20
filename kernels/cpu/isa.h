/* SPDX-License-Identifier: MIT
 *
 * isa: which instruction set the CPU back end uses, decided once a process: the best that the
 * processor and the system support, or the one that the environment variable PGPT_CPU_ISA names
 * (plain; neon, neon_dot on aarch64; avx2, avx512 on x86-64). All of them give the same bits. Any
 * thread.
 */
#ifndef PGPT_KERNELS_CPU_ISA_H
#define PGPT_KERNELS_CPU_ISA_H

#include <stdbool.h>

#include "kernels/base/error.h"

/* What a machine has of these runs from the left to the right, the last one best. */
enum isa { ISA_PLAIN, ISA_NEON, ISA_NEON_DOT, ISA_AVX2, ISA_AVX512 };
enum { ISA_COUNT = 5 };

/* The choice; a name that is unknown or that this processor cannot run counts as unset here and is
 * an error of isa_check(), which a program calls once at its start. */
enum isa isa_current(void);
int isa_check(struct error *error) PGPT_MUST_CHECK;

bool isa_runs(enum isa isa);        /* can this processor run it? */
const char *isa_name(enum isa isa); /* "plain", "neon", ... */
int isa_force(enum isa isa);        /* for tests: -1 when it cannot run; no other thread may run */

#endif
