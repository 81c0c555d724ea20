/* SPDX-License-Identifier: MIT
 *
 * The choice of the instruction set: PGPT_CPU_ISA names a path and gets it, what it cannot have is
 * refused by name, and without it the best of this processor runs.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "kernels/cpu/isa.h"
#include "kernels/cpu/ops.h"
#include "kernels/cpu/product.h"

static const char *const products[ISA_COUNT] = {"plain", "neon", "neon_dot", "avx2", "avx512_vnni"};

/* What a process chooses that starts with this environment: its isa, or -1 when it was refused. The
 * choice is made once a process, so each one gets a child. */
static int chosen_under(const char *name)
{
    pid_t child;
    int status;

    assert_int_equal(name ? setenv("PGPT_CPU_ISA", name, 1) : unsetenv("PGPT_CPU_ISA"), 0);
    child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        struct error error;

        if (isa_check(&error))
            _exit(strstr(error.message, name) ? 100 : 101);
        if (strcmp(product_path(), products[isa_current()]) != 0 || !ops_current())
            _exit(102);
        _exit((int)isa_current());
    }
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status));
    assert_in_range(WEXITSTATUS(status), 0, 100);
    return WEXITSTATUS(status) == 100 ? -1 : WEXITSTATUS(status);
}

static void the_environment_gets_the_path_it_names(void **unused)
{
    (void)unused;
    for (int isa = 0; isa < ISA_COUNT; isa++)
        assert_int_equal(chosen_under(isa_name((enum isa)isa)), isa_runs((enum isa)isa) ? isa : -1);
    assert_int_equal(chosen_under("sse9"), -1);
}

static void without_a_name_the_best_runs(void **unused)
{
    int best = 0;

    (void)unused;
    for (int isa = 0; isa < ISA_COUNT; isa++)
        best = isa_runs((enum isa)isa) ? isa : best;
    assert_int_equal(chosen_under(NULL), best);
    assert_int_equal(chosen_under(""), best);
}

static void a_machine_has_the_paths_of_its_kind(void **unused)
{
    (void)unused;
    assert_true(isa_runs(ISA_PLAIN));
#if defined(__aarch64__)
    assert_true(isa_runs(ISA_NEON));
    assert_false(isa_runs(ISA_AVX2) || isa_runs(ISA_AVX512));
#else
    assert_false(isa_runs(ISA_NEON) || isa_runs(ISA_NEON_DOT));
#endif
    for (int isa = 0; isa < ISA_COUNT; isa++)
        if (!isa_runs((enum isa)isa))
            assert_int_equal(isa_force((enum isa)isa), -1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_environment_gets_the_path_it_names),
        cmocka_unit_test(without_a_name_the_best_runs),
        cmocka_unit_test(a_machine_has_the_paths_of_its_kind),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
