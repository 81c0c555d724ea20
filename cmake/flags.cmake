# SPDX-License-Identifier: MIT
# Warnings, hardening and sanitizers, as one interface library that every target links.
add_library(pgpt_flags INTERFACE)
target_include_directories(pgpt_flags INTERFACE "${CMAKE_SOURCE_DIR}")
target_compile_definitions(pgpt_flags INTERFACE _GNU_SOURCE)
target_compile_options(pgpt_flags INTERFACE
  $<$<COMPILE_LANGUAGE:C,CXX>:-Wall;-Wextra;-Werror;-fstack-protector-strong;-fno-math-errno>
  $<$<COMPILE_LANGUAGE:C>:-Wstrict-prototypes;-Wmissing-prototypes;-Wold-style-definition>
  # Replays must be the same bits: no contraction or reassociation that the source does not spell out.
  $<$<COMPILE_LANGUAGE:C,CXX>:-ffp-contract=off>)
target_link_options(pgpt_flags INTERFACE -Wl,-z,relro,-z,now)
target_link_libraries(pgpt_flags INTERFACE Threads::Threads)
if(PGPT_SANITIZE)
  target_compile_options(pgpt_flags INTERFACE
    $<$<COMPILE_LANGUAGE:C,CXX>:-fsanitize=${PGPT_SANITIZE};-fno-omit-frame-pointer;-fno-sanitize-recover=all>)
  target_link_options(pgpt_flags INTERFACE -fsanitize=${PGPT_SANITIZE})
else()
  target_compile_options(pgpt_flags INTERFACE
    $<$<AND:$<COMPILE_LANGUAGE:C,CXX>,$<NOT:$<CONFIG:Debug>>>:-U_FORTIFY_SOURCE;-D_FORTIFY_SOURCE=2>)
endif()
if(PGPT_FUZZ)
  target_compile_options(pgpt_flags INTERFACE $<$<COMPILE_LANGUAGE:C,CXX>:-fsanitize=fuzzer-no-link>)
endif()

# Counts for tests/coverage: of what links this alone, so that the engine stays as fast as it is.
add_library(pgpt_coverage INTERFACE)
if(PGPT_COVERAGE)
  target_compile_options(pgpt_coverage INTERFACE -O0 -U_FORTIFY_SOURCE --coverage)
  target_link_options(pgpt_coverage INTERFACE --coverage)
endif()
