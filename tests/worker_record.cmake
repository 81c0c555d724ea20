# SPDX-License-Identifier: MIT
add_executable(bench_recorder EXCLUDE_FROM_ALL worker/bench_recorder.c)
set_target_properties(bench_recorder PROPERTIES RUNTIME_OUTPUT_DIRECTORY "${CMAKE_BINARY_DIR}/tests")
target_link_libraries(bench_recorder PRIVATE pgpt_worker)
