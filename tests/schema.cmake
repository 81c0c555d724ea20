# SPDX-License-Identifier: MIT
if(TARGET pgpt_schema)
  pgpt_unit_test(error pgpt_base)
  pgpt_unit_test(utf8 pgpt_base)
  pgpt_unit_test(codec pgpt_schema)
  target_link_libraries(test_codec PRIVATE "${AVRO_LIBRARY}") # it writes the same again
  pgpt_unit_test(canonical pgpt_schema)
  pgpt_unit_test(skim pgpt_schema)

  add_executable(codec_tool schema/codec_tool.c)
  set_target_properties(codec_tool PROPERTIES RUNTIME_OUTPUT_DIRECTORY "${CMAKE_BINARY_DIR}/tests")
  target_link_libraries(codec_tool PRIVATE pgpt_schema)
  if(EXISTS "${PGPT_LOCAL}/venv/bin/python")
    add_test(NAME codec_interop COMMAND "${PGPT_LOCAL}/venv/bin/python" -m pytest -q
      -p no:cacheprovider "${CMAKE_CURRENT_SOURCE_DIR}/schema/test_interop.py")
    set_tests_properties(codec_interop PROPERTIES ENVIRONMENT
      "PGPT_BUILD_DIR=${CMAKE_BINARY_DIR};PYTHONDONTWRITEBYTECODE=1")
  else()
    message(STATUS "${PGPT_LOCAL}/venv is missing (deploy/local/install): no test against fastavro")
  endif()

  add_executable(bench_codec schema/bench_codec.c)
  target_link_libraries(bench_codec PRIVATE pgpt_schema)
  add_test(NAME bench_codec COMMAND bench_codec 2000)
endif()
