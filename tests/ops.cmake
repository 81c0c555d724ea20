# SPDX-License-Identifier: MIT
# What operators get: the metrics' page, rules and dashboard against the worker's table.
pgpt_unit_test(lag pgpt_worker)
pgpt_unit_test(sample_config pgpt_worker)

find_program(PYTHON3 python3 REQUIRED)
add_test(NAME monitoring COMMAND "${PYTHON3}" "${CMAKE_SOURCE_DIR}/monitoring/check")

# Its pages link to one another, so it waits for the last of them.
if(EXISTS "${CMAKE_SOURCE_DIR}/kernels/README.md")
  add_test(NAME docs COMMAND "${PYTHON3}" "${CMAKE_SOURCE_DIR}/tests/docs/check")
endif()
