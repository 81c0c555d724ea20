# SPDX-License-Identifier: MIT
add_test(NAME chaos_mutations_apply COMMAND "${CMAKE_CURRENT_SOURCE_DIR}/chaos/mutate" --check)
