# SPDX-License-Identifier: MIT
# A short run shows that it runs; for a figure: migrations/test build/tests/bench_recorder
add_executable(bench_recorder worker/bench_recorder.c)
set_target_properties(bench_recorder PROPERTIES RUNTIME_OUTPUT_DIRECTORY "${CMAKE_BINARY_DIR}/tests")
target_link_libraries(bench_recorder PRIVATE pgpt_worker)
add_test(NAME bench_recorder
  COMMAND "${CMAKE_SOURCE_DIR}/migrations/test" $<TARGET_FILE:bench_recorder> 10000)
