# SPDX-License-Identifier: MIT
# pgpt-engine by its command line, and made models against Hugging Face's vectors.
if(CMAKE_CROSSCOMPILING)
  message(STATUS "cross-compiled: no test of pgpt-engine's command line")
elseif(EXISTS "${PGPT_LOCAL}/venv/bin/python")
  foreach(part generate verify models)
    add_test(NAME tool_${part} COMMAND "${PGPT_LOCAL}/venv/bin/python" -m pytest -q
      -p no:cacheprovider "${CMAKE_CURRENT_SOURCE_DIR}/kernels/test_tool_${part}.py")
    set_tests_properties(tool_${part} PROPERTIES ENVIRONMENT
      "PGPT_BUILD_DIR=${CMAKE_BINARY_DIR};PYTHONDONTWRITEBYTECODE=1")
  endforeach()
else()
  message(STATUS "${PGPT_LOCAL}/venv is missing (deploy/local/install): no test of pgpt-engine")
endif()
